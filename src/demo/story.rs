//! The story, step by step. Each step is checked: what is not seen is a failure, not a pause.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::children::Shelter;
use super::databases::{Database, name};
use super::fleet::{FLEET, Guardian, connections, dependents};
use super::screen::Screen;
use super::view::{View, lock};
use crate::cli::{Failure, HostPort};
use crate::coordinator::{self, Plan, Target, Verdict};
use crate::probe::{Kind, Verdict as Readiness};
use crate::protocol::{Action, PresharedKey, Wire};

/// The longest that a database may take to answer a query.
const READY_TIME: Duration = Duration::from_secs(30);
/// The pause between two attempts of a probe.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// The longest that a guardian may take to answer; longer than its own command timeout.
const COMMAND_TIME: Duration = Duration::from_secs(20);
/// The longest until what a command brought about is seen by the databases.
const SEEN_TIME: Duration = Duration::from_secs(10);

/// All that the demo made. It outlives the story, which may be interrupted anywhere.
pub(super) struct Stage {
    pub(super) root: PathBuf,
    pub(super) key_path: PathBuf,
    pub(super) key: PresharedKey,
    pub(super) stand_ins: bool,
    pub(super) shelter: Shelter,
    pub(super) databases: Vec<Database>,
    pub(super) guardians: Vec<Guardian>,
}

impl Stage {
    /// Stops everything in order.
    pub(super) async fn strike(&mut self) -> Result<(), Failure> {
        let shelter = &self.shelter;
        let mut results = join_all(self.guardians.drain(..).map(|guardian| guardian.stop(shelter))).await;
        results.extend(join_all(self.databases.iter_mut().map(|database| database.stop(shelter))).await);
        results.into_iter().collect()
    }
}

/// Who tells it, and to whom.
pub(super) struct Story<'a> {
    pub(super) stage: &'a mut Stage,
    pub(super) screen: &'a Mutex<Screen>,
    pub(super) view: watch::Receiver<View>,
    pub(super) targets: &'a Mutex<Vec<Target>>,
    pub(super) addresses: &'a Mutex<Vec<(Kind, HostPort)>>,
    /// Where dependents complain.
    pub(super) loud: mpsc::Sender<String>,
    pub(super) generation: u64,
    pub(super) seen: Vec<String>,
}

impl Story<'_> {
    /// Tells all of it; returns what was seen.
    pub(super) async fn tell(mut self) -> Result<Vec<String>, Failure> {
        self.chapter("1. The databases come up")?;
        self.make_databases().await?;
        self.ready("", 0..2).await?;
        self.rest().await;

        self.chapter("2. Three guardians start; their dependents stay stopped until they are told to start")?;
        self.start_guardians().await?;
        let all = dependents();
        self.until("all dependents are stopped", |v| {
            v.dependents_in(&["inactive"]) == all
        })
        .await?;
        self.rest().await;

        self.chapter(
            "3. Undrain: the coordinator tells all guardians to start what depends on the databases",
        )?;
        self.command(Action::Undrain).await?;
        self.connected().await?;
        self.seen(
            "undrain",
            format!("{all} of {all} dependents run, and hold {} connections", total()),
        );
        self.rest().await;

        self.chapter(
            "4. Drain, before the databases stop: the answer comes when nothing of a dependent runs",
        )?;
        let took = self.command(Action::Drain).await?;
        let after = self.disconnected().await?;
        self.seen(
            "drain",
            format!("answered after {took}, when all {all} dependents had stopped; {after}"),
        );
        self.rest().await;

        self.chapter("5. The databases stop. Nobody is there who could notice")?;
        for database in &mut self.stage.databases {
            database.stop(&self.stage.shelter).await?;
        }
        self.until("both databases are down", |v| v.counts == [None; 2])
            .await?;
        self.rest().await;

        self.chapter("6. They come back; wait until they answer, then undrain")?;
        for database in &mut self.stage.databases {
            database.start(&self.stage.shelter)?;
        }
        let waited = self.ready("again ", 0..2).await?;
        self.command(Action::Undrain).await?;
        self.connected().await?;
        self.seen(
            "restart of the databases",
            format!("ready after {waited}, then services again"),
        );
        self.rest().await;

        self.chapter("7. postgres dies (kill -9) with no warning. Its clients fail, and try again in vain")?;
        self.stage.databases[0].kill(&self.stage.shelter).await?;
        let clients = connections()[0];
        self.until("the clients of postgres have failed", |v| {
            v.counts[0].is_none() && v.dependents_in(&["activating", "failed"]) >= clients
        })
        .await?;
        self.say("     Drain: nothing more starts against a database that is not there")?;
        let took = self.command(Action::Drain).await?;
        self.until("all dependents have stopped, and redis counts none", |v| {
            v.dependents_in(&["inactive", "failed"]) == all && v.counts == [None, Some(0)]
        })
        .await?;
        self.rest().await;

        self.chapter("8. postgres comes back, recovers, and answers; undrain: services again")?;
        self.stage.databases[0].start(&self.stage.shelter)?;
        let waited = self.ready("again ", 0..1).await?;
        self.command(Action::Undrain).await?;
        self.connected().await?;
        self.seen(
            "death of postgres",
            format!("drained in {took}, back and ready after {waited}, all {all} dependents run again"),
        );
        self.rest().await;

        self.chapter("9. The end: everything stops, and the folder goes")?;
        Ok(self.seen)
    }

    fn say(&self, line: &str) -> Result<(), Failure> {
        lock(self.screen).say(line)
    }

    fn chapter(&self, title: &str) -> Result<(), Failure> {
        self.say("").and_then(|()| self.say(title))
    }

    async fn rest(&self) {
        let pause = lock(self.screen).pause();
        sleep(pause).await;
    }

    fn seen(&mut self, what: &str, fact: String) {
        self.seen.push(format!("{what}: {fact}"));
    }

    async fn make_databases(&mut self) -> Result<(), Failure> {
        let stage = &mut *self.stage;
        for kind in [Kind::Postgres, Kind::Redis] {
            let mut database = Database::prepare(kind, &stage.root, stage.stand_ins, &stage.shelter).await?;
            database.start(&stage.shelter)?;
            lock(self.addresses).push((kind, database.address()));
            lock(self.screen).say(&format!("     {}, at {}", database.what, database.address()))?;
            stage.databases.push(database);
        }
        Ok(())
    }

    async fn start_guardians(&mut self) -> Result<(), Failure> {
        let stage = &mut *self.stage;
        let addresses: Vec<HostPort> = stage.databases.iter().map(Database::address).collect();
        let [postgres, redis] = addresses.as_slice() else {
            return Err(Failure::failed("the demo has lost a database"));
        };
        for entry in FLEET {
            let (root, key) = (&stage.root, &stage.key_path);
            let guardian = Guardian::start(
                entry,
                root,
                key,
                [postgres, redis],
                &stage.shelter,
                self.loud.clone(),
            )
            .await?;
            lock(self.targets).push(guardian.target.clone());
            stage.guardians.push(guardian);
        }
        Ok(())
    }

    /// Waits until these databases would serve a query; says how long that took.
    async fn ready(&mut self, again: &str, which: std::ops::Range<usize>) -> Result<String, Failure> {
        let begun = Instant::now();
        for database in self.stage.databases.iter_mut().take(which.end).skip(which.start) {
            let mut probe = database.probe();
            loop {
                let now = Instant::now();
                match probe.attempt(now + Duration::from_secs(1)).await {
                    Readiness::Ready => break,
                    Readiness::NotReady(cause) => {
                        if let Some(why) = database.ended() {
                            return Err(Failure::failed(why));
                        }
                        if now.saturating_duration_since(begun) > READY_TIME {
                            return Err(Failure::failed(format!("{probe} is not ready: {cause}")));
                        }
                    }
                }
                sleep(PROBE_EVERY).await;
            }
            lock(self.screen).say(&format!(
                "     wait: {probe} is ready {again}and answers queries, after {}",
                seconds(begun.elapsed())
            ))?;
        }
        Ok(seconds(begun.elapsed()))
    }

    /// Tells all guardians; returns how long the answer took.
    async fn command(&mut self, action: Action) -> Result<String, Failure> {
        self.generation += 1;
        let plan = Plan {
            action,
            targets: lock(self.targets).clone(),
            key: self.stage.key.clone(),
            timeout: COMMAND_TIME,
            wire: Wire::V2,
            connect_timeout: COMMAND_TIME,
            max_parallel: FLEET.len(),
            retry_for: None,
            generation: Some(self.generation),
            terms: None,
            jitter: Duration::ZERO,
        };
        let outcome = coordinator::run(&plan, &mut (), &CancellationToken::new()).await;
        let mut wrong = Vec::new();
        for host in &outcome.report.hosts {
            self.say(&format!(
                "     {action} {}: {}, {}: {}",
                host.host,
                host.result.as_str(),
                seconds(Duration::from_millis(host.elapsed_ms)),
                host.message
            ))?;
            if host.result != Verdict::Ok {
                wrong.push(format!("{action} of {} failed: {}", host.host, host.message));
            }
        }
        if wrong.is_empty() {
            Ok(seconds(Duration::from_millis(outcome.report.elapsed_ms)))
        } else {
            Err(Failure {
                code: crate::cli::EXIT_FAILED,
                messages: wrong,
            })
        }
    }

    async fn connected(&mut self) -> Result<(), Failure> {
        let wanted = connections().map(Some);
        let all = dependents();
        self.until("all dependents run and are connected", |v| {
            v.counts == wanted && v.dependents_in(&["active"]) == all
        })
        .await
        .map(drop)
    }

    async fn disconnected(&mut self) -> Result<String, Failure> {
        let all = dependents();
        self.until("all dependents are stopped, and no connection is left", |v| {
            v.counts == [Some(0); 2] && v.dependents_in(&["inactive"]) == all
        })
        .await?;
        let [postgres, redis] = [Kind::Postgres, Kind::Redis].map(name);
        self.say(&format!(
            "     Connections left: 0, says {postgres}; 0, says {redis}"
        ))?;
        Ok(format!("{postgres} and {redis} count 0 connections"))
    }

    /// Waits until a look that begins after now sees `wanted`.
    async fn until(&mut self, what: &str, wanted: impl Fn(&View) -> bool) -> Result<(), Failure> {
        let asked = Instant::now();
        let fresh = |view: &View| view.begun >= asked && wanted(view);
        if let Ok(Ok(_)) = timeout(SEEN_TIME, self.view.wait_for(fresh)).await {
            return Ok(());
        }
        let view = self.view.borrow().clone();
        let states: Vec<_> = view.guardians.iter().flatten().flatten().collect();
        Err(Failure::failed(format!(
            "not seen within {}: {what}; the databases count {:?}, the dependents are {}",
            seconds(SEEN_TIME),
            view.counts,
            states
                .iter()
                .map(|unit| format!("{} {}", unit.name, unit.state))
                .collect::<Vec<_>>()
                .join(", ")
        )))
    }
}

fn total() -> usize {
    connections().iter().sum()
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
