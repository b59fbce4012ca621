//! What is seen from outside while the story goes on: guardians are asked over the wire, databases count.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::app;
use super::databases::name;
use super::screen::Screen;
use crate::cli::{Failure, HostPort};
use crate::coordinator::{self, Plan, Target};
use crate::probe::Kind;
use crate::protocol::{Action, PresharedKey, UnitReport, Wire};

/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(120);
/// The longest that one guardian may take to answer `status`.
const STATUS_TIME: Duration = Duration::from_secs(2);
/// Connections that are not the counter's own.
const COUNT_QUERY: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";

/// What one look saw.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// When the look began: what it saw is younger than this.
    pub(super) begun: Instant,
    /// For each guardian its dependents, where it answered.
    pub(super) guardians: Vec<Option<Vec<UnitReport>>>,
    /// The connections of others that PostgreSQL and Redis count, where they answer.
    pub(super) counts: [Option<usize>; 2],
}

impl View {
    pub(super) fn new(begun: Instant) -> Self {
        Self {
            begun,
            guardians: Vec::new(),
            counts: [None; 2],
        }
    }

    /// How many dependents are in one of these states.
    pub(super) fn dependents_in(&self, states: &[&str]) -> usize {
        let units = self.guardians.iter().flatten().flatten();
        units.filter(|unit| states.contains(&unit.state.as_str())).count()
    }
}

/// Counts the connections to one database.
enum Counter {
    Postgres(HostPort, Option<Client>),
    Redis(HostPort, Option<MultiplexedConnection>),
}

impl Counter {
    fn new(kind: Kind, address: HostPort) -> Self {
        match kind {
            Kind::Postgres => Self::Postgres(address, None),
            Kind::Redis => Self::Redis(address, None),
        }
    }

    async fn count(&mut self) -> Option<usize> {
        let counted = self.try_count().await.ok();
        if counted.is_none() {
            // The next look connects anew.
            match self {
                Self::Postgres(_, client) => *client = None,
                Self::Redis(_, connection) => *connection = None,
            }
        }
        counted
    }

    async fn try_count(&mut self) -> Result<usize, String> {
        match self {
            Self::Postgres(address, slot) => {
                let client = match slot.take() {
                    Some(client) => client,
                    None => app::postgres(address, "demo-counter").await?,
                };
                let answer = app::ask_postgres(slot.insert(client), COUNT_QUERY).await?;
                answer.parse().map_err(|_| answer)
            }
            Self::Redis(address, slot) => {
                let connection = match slot.take() {
                    Some(connection) => connection,
                    None => app::redis(address).await?,
                };
                let list = app::ask_redis(slot.insert(connection), &["CLIENT", "LIST"]).await?;
                Ok(list.lines().count().saturating_sub(1))
            }
        }
    }
}

/// Looks at everything, again and again.
pub(super) struct Watcher<'a> {
    pub(super) key: PresharedKey,
    /// The guardians; filled by the story as they start.
    pub(super) targets: &'a Mutex<Vec<Target>>,
    /// The databases; filled by the story as they start.
    pub(super) databases: &'a Mutex<Vec<(Kind, HostPort)>>,
    pub(super) screen: &'a Mutex<Screen>,
    pub(super) view: watch::Sender<View>,
    /// What dependents complain of.
    pub(super) loud: mpsc::Receiver<String>,
}

impl Watcher<'_> {
    /// Goes on until it is dropped; returns only when nobody reads standard output any more.
    pub(super) async fn run(mut self) -> Failure {
        let mut counters: Vec<Counter> = Vec::new();
        loop {
            for (kind, address) in lock(self.databases).iter().skip(counters.len()) {
                counters.push(Counter::new(*kind, address.clone()));
            }
            let targets = lock(self.targets).clone();
            let mut view = View::new(Instant::now());
            if !targets.is_empty() {
                view.guardians = self.ask(&targets).await;
            }
            for (slot, counter) in view.counts.iter_mut().zip(&mut counters) {
                *slot = counter.count().await;
            }
            while let Ok(complaint) = self.loud.try_recv() {
                if let Err(gone) = lock(self.screen).say(&format!("     ! {complaint}")) {
                    return gone;
                }
            }
            if let Err(gone) = self.show(&targets, counters.len(), &view) {
                return gone;
            }
            self.view.send_replace(view);
            sleep(LOOK_EVERY).await;
        }
    }

    async fn ask(&self, targets: &[Target]) -> Vec<Option<Vec<UnitReport>>> {
        let plan = Plan {
            action: Action::Status,
            targets: targets.to_vec(),
            key: self.key.clone(),
            timeout: STATUS_TIME,
            wire: Wire::V2,
            connect_timeout: STATUS_TIME,
            max_parallel: targets.len(),
            retry_for: None,
            generation: None,
            terms: None,
            jitter: Duration::ZERO,
        };
        let outcome = coordinator::run(&plan, &mut (), &CancellationToken::new()).await;
        let hosts = outcome.report.hosts.into_iter();
        hosts
            .map(|mut host| {
                // Guardians name what moves first; a table keeps its places.
                host.units.sort_by(|a, b| a.name.cmp(&b.name));
                (host.result == coordinator::Verdict::Ok).then_some(host.units)
            })
            .collect()
    }

    fn show(&self, targets: &[Target], databases: usize, view: &View) -> Result<(), Failure> {
        let mut screen = lock(self.screen);
        for (row, (kind, count)) in [Kind::Postgres, Kind::Redis]
            .into_iter()
            .zip(view.counts)
            .enumerate()
        {
            if row < databases {
                let count = match count {
                    Some(1) => "● up, counts 1 connection of dependents".to_owned(),
                    Some(n) => format!("● up, counts {n} connections of dependents"),
                    None => "○ down".to_owned(),
                };
                screen.row(row, &format!("     {:9} {count}", name(kind)))?;
            }
        }
        for (index, (target, units)) in targets.iter().zip(&view.guardians).enumerate() {
            let states = match units {
                Some(units) => units.iter().map(state).collect::<Vec<_>>().join("   "),
                None => "the guardian does not answer".to_owned(),
            };
            screen.row(2 + index, &format!("     {:9} {states}", target.name))?;
        }
        Ok(())
    }
}

fn state(unit: &UnitReport) -> String {
    let sign = match unit.state.as_str() {
        "active" => '●',
        "inactive" => '○',
        "failed" => '✗',
        _ => '◐',
    };
    format!("{sign} {} {}", unit.name, unit.state)
}

/// A lock of this one thread, never held while anything is awaited.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
