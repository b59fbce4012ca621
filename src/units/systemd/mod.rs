//! systemd over D-Bus: jobs are queued, and waited for by systemd's own signals. Nothing polls, and no
//! `systemctl` is run.
//!
//! **Promise.** A drain ends when *every* dependent has come to rest and no process of it is left; the target's
//! own job being done is not the end (a unit that is only `PartOf=` the target stops later). A bus or a systemd
//! that restarts meanwhile is survived: the connection is made again, and the states are read again.
//!
//! Who depends is asked of systemd each time (`graph`); what a stop drags along further down
//! (a dependent of a dependent) is found among the jobs that systemd itself makes of it.
//!
//! **Not promised.** A dependent that a socket or a timer outside the graph starts again is stopped again while
//! the drain is under way, and not after it.

mod bus;
mod cgroups;
mod graph;
mod reports;
mod states;
mod waiting;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::bus::{Bus, CallError, Link, Listed, Signal};
use self::graph::Graph;
use self::states::{Progress, is_at_rest, to_wait_for};
use self::waiting::Waiting;
use super::{Settled, Survey, Units, UnitsError};

/// How long after a deadline the states may take to be read, for the answer that names what still moves.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// Longest pause before a unit that does not stay stopped is told again.
const STOP_AGAIN_MOST: Duration = Duration::from_secs(5);
/// Between two tries to reach a bus that is away: from this on, doubling, to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(20);
/// See [`RETRY_FIRST`].
const RETRY_MOST: Duration = Duration::from_millis(500);

/// The units of this host.
pub struct Systemd {
    target: String,
    bus: Bus,
}

/// What is done to the target.
#[derive(Clone, Copy)]
enum Verb {
    Stop,
    Start,
}

/// How long to wait before a unit is told to stop again, after it was told `times` times.
fn again(times: u32) -> Duration {
    match times {
        0 => Duration::ZERO,
        n => (RETRY_FIRST * 2u32.saturating_pow(n)).min(STOP_AGAIN_MOST),
    }
}

/// Why an attempt ended early.
enum Interrupted {
    /// The bus or systemd went away: try again.
    Lost(String),
    /// It makes no sense to try again.
    Fatal(UnitsError),
}

impl Systemd {
    /// The units that hang on `target`. Connects when it is first used.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            bus: Bus::default(),
        }
    }

    /// The dependents that may take longer to stop than a drain waits, and how long: each makes a drain a gamble.
    ///
    /// # Errors
    /// When systemd could not be asked, or the target does not exist.
    pub async fn slower_than(
        &self,
        command_timeout: Duration,
    ) -> Result<Vec<(String, Duration)>, UnitsError> {
        let work = async {
            let link = self.link().await?;
            let (graph, _) = self.read_graph(&link).await?;
            let services: Vec<_> = graph
                .dependents
                .into_iter()
                .filter(|u| u.ends_with(".service"))
                .collect();
            let stops = services.iter().map(|unit| {
                link.property::<u64>(unit, "org.freedesktop.systemd1.Service", "TimeoutStopUSec")
            });
            let stops = join_all(stops).await;
            let slower = services
                .into_iter()
                .zip(stops)
                .filter_map(|(unit, stop)| match stop {
                    Ok(Some(stop)) => {
                        Some((unit, Duration::from_micros(stop))).filter(|(_, s)| *s >= command_timeout)
                    }
                    _ => None,
                });
            Ok(slower.collect())
        };
        match work.await {
            Ok(slower) => Ok(slower),
            Err(Interrupted::Fatal(error)) => Err(error),
            Err(Interrupted::Lost(reason)) => Err(UnitsError::Unreachable { reason }),
        }
    }

    async fn link(&self) -> Result<Arc<Link>, Interrupted> {
        self.bus
            .link()
            .await
            .map_err(|error| self.interrupted(error, "reach", &self.target))
    }

    fn interrupted(&self, error: CallError, verb: &'static str, unit: &str) -> Interrupted {
        match error.meaning(verb, unit, &self.target) {
            Ok(fatal) => Interrupted::Fatal(fatal),
            Err(lost) => Interrupted::Lost(lost),
        }
    }

    /// The graph and the target's own state.
    async fn read_graph(&self, link: &Link) -> Result<(Graph, Listed), Interrupted> {
        let fault = |error| self.interrupted(error, "read", &self.target);
        let names = [self.target.as_str()];
        let (properties, listed) = tokio::join!(link.dependencies(&self.target), link.list(&names));
        let target = listed.map_err(fault)?.into_iter().next();
        let Some(target) = target.filter(|t| t.load_state != "not-found") else {
            return Err(Interrupted::Fatal(UnitsError::NoTarget {
                target: self.target.clone(),
                reason: "systemd finds no unit file for it".to_owned(),
            }));
        };
        Ok((Graph::read(&self.target, &properties.map_err(fault)?), target))
    }

    /// Runs attempts until one is not interrupted, the deadline passes or trying is of no use. The states in
    /// `progress` are then those of the end.
    async fn until_done(
        &self,
        verb: Verb,
        deadline: Instant,
        progress: &mut Progress,
    ) -> Result<(), UnitsError> {
        let mut pause = RETRY_FIRST;
        let mut lost = None;
        let tries = async {
            loop {
                let attempt = match verb {
                    Verb::Stop => self.try_drain(progress).await,
                    Verb::Start => self.try_undrain(progress).await,
                };
                match attempt {
                    Ok(()) => return Ok(()),
                    Err(Interrupted::Fatal(error)) => return Err(error),
                    Err(Interrupted::Lost(why)) => {
                        if lost.is_none() {
                            tracing::warn!(error = %why, "lost systemd, connecting again");
                        }
                        lost = Some(why);
                    }
                }
                self.bus.forget().await;
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MOST);
            }
        };
        if let Ok(ended) = timeout_at(deadline, tries).await {
            return ended;
        }
        self.last_look(progress).await;
        if progress.listed.is_empty() {
            // Nothing was ever seen: there is nothing to report but that.
            let reason = lost.unwrap_or_else(|| "no answer before the deadline".to_owned());
            return Err(UnitsError::Unreachable { reason });
        }
        Ok(())
    }

    /// Reads the states of all units that the operation is about into `progress`.
    async fn look(&self, link: &Link, progress: &mut Progress) -> Result<(), Interrupted> {
        let mut names: Vec<&str> = vec![&self.target];
        names.extend(progress.graph.dependents.iter().map(String::as_str));
        names.extend(progress.graph.pulled.iter().map(String::as_str));
        names.extend(progress.dragged.iter().map(String::as_str));
        names.sort_unstable();
        names.dedup();
        let listed = link
            .list(&names)
            .await
            .map_err(|error| self.interrupted(error, "read", &self.target))?;
        progress.listed = listed.into_iter().map(|unit| (unit.name.clone(), unit)).collect();
        Ok(())
    }

    /// A last look after the deadline, as good as it can be had.
    async fn last_look(&self, progress: &mut Progress) {
        let look = async {
            let link = self.link().await?;
            if progress.listed.is_empty() {
                progress.graph = self.read_graph(&link).await?.0;
            }
            self.look(&link, progress).await
        };
        if !matches!(timeout(LAST_LOOK, look).await, Ok(Ok(()))) {
            tracing::warn!("systemd does not answer; the states in this answer are older than it");
        }
    }

    async fn try_drain(&self, progress: &mut Progress) -> Result<(), Interrupted> {
        let link = self.link().await?;
        let mut waiting = Waiting::new(&link);
        // Who depends is read in the same moment: the answer needs it, the stop does not wait for it.
        let (stop, graph) = tokio::join!(link.queue("StopUnit", &self.target), self.read_graph(&link));
        progress.graph = graph?.0;
        stop.map_err(|error| self.interrupted(error, "stop", &self.target))?;
        self.find_dragged(&link, progress).await?;
        let mut told: HashMap<String, u32> = HashMap::from([(self.target.clone(), 1)]);
        loop {
            self.look(&link, progress).await?;
            waiting.collect(&mut progress.jobs);
            // The target too: one whose stop was cancelled is up, and pulls its dependents up again.
            let moving: Vec<&Listed> = progress
                .concerned_and_target(&self.target)
                .filter(|u| !is_at_rest(u))
                .collect();
            if moving.is_empty() {
                return Ok(());
            }
            // What is only wanted or upheld does not stop with the target: it has no job, and needs one.
            let idle: Vec<String> = moving
                .iter()
                .filter(|u| u.job == 0 && u.active_state != "deactivating")
                .map(|u| u.name.clone())
                .collect();
            if !idle.is_empty() {
                // One that was told before and runs again (a busy mount, a stop that was cancelled) is told again,
                // but not as fast as systemd can answer.
                sleep(again(
                    idle.iter()
                        .filter_map(|unit| told.get(unit))
                        .max()
                        .copied()
                        .unwrap_or(0),
                ))
                .await;
                let stops = join_all(idle.iter().map(|unit| link.queue("StopUnit", unit))).await;
                for (unit, stop) in idle.into_iter().zip(stops) {
                    stop.map_err(|error| self.interrupted(error, "stop", &unit))?;
                    *told.entry(unit).or_default() += 1;
                }
                self.find_dragged(&link, progress).await?;
                continue;
            }
            let (jobs, jobless) = to_wait_for(&moving);
            waiting
                .for_change(jobs, jobless, &mut progress.jobs)
                .await
                .map_err(Interrupted::Lost)?;
        }
    }

    /// Finds the dependents of dependents: units that systemd is stopping because what they depend on stops.
    async fn find_dragged(&self, link: &Link, progress: &mut Progress) -> Result<(), Interrupted> {
        let fault = |error| self.interrupted(error, "read", &self.target);
        let known = |progress: &Progress, unit: &str| {
            unit == self.target || progress.graph.dependents.contains(unit) || progress.dragged.contains(unit)
        };
        let mut stopping = link.units_with_job("stop").await.map_err(fault)?;
        stopping.retain(|unit| !known(progress, unit));
        // Usually there are none; at a shutdown all units of the host stop, and most are no concern of ours.
        let properties = join_all(stopping.iter().map(|unit| link.dependencies(unit))).await;
        let mut others: Vec<_> = stopping
            .into_iter()
            .zip(properties)
            // One that cannot be read is gone already.
            .filter_map(|(unit, properties)| Some((unit, properties.ok()?)))
            .collect();
        // Each round finds those that hang on the ones found before it.
        loop {
            let (found, rest): (Vec<_>, Vec<_>) = others
                .into_iter()
                .partition(|(_, properties)| graph::stops_with(properties, &|unit| known(progress, unit)));
            if found.is_empty() {
                return Ok(());
            }
            progress.dragged.extend(found.into_iter().map(|(unit, _)| unit));
            others = rest;
        }
    }

    /// The object paths of the target and all that hangs on it.
    async fn paths(&self, link: &Link) -> Result<HashSet<String>, Interrupted> {
        let graph = self.read_graph(link).await?.0;
        let names = graph.dependents.iter().chain([&self.target]);
        Ok(names.map(|unit| bus::unit_path(unit)).collect())
    }

    /// Tells `changed` of what systemd says of the units of the graph as it is now, until they may be others.
    async fn watch_link(&self, changed: &Notify) -> Result<(), Interrupted> {
        let lost = |why: &str| Interrupted::Lost(why.to_owned());
        let link = self.link().await?;
        let mut signals = link.signals();
        let mut changes = link
            .unit_changes()
            .await
            .map_err(|error| self.interrupted(error, "read", &self.target))?;
        let mut paths = self.paths(&link).await?;
        // What changed while nobody listened.
        changed.notify_one();
        loop {
            tokio::select! {
                message = changes.next() => match message {
                    Some(Ok(message)) => {
                        if message.header().path().is_some_and(|path| paths.contains(path.as_str())) {
                            changed.notify_one();
                        }
                    }
                    _ => return Err(lost("the connection to the system bus ended")),
                },
                signal = signals.recv() => match signal {
                    // Also of what depends on a dependent: it is shown while it stops. And one that nobody has heard of may hang
                    // on the target since the last reload.
                    Ok(Signal::JobRemoved { unit, .. }) => {
                        if !paths.contains(&bus::unit_path(&unit)) {
                            paths = self.paths(&link).await?;
                        }
                        changed.notify_one();
                    }
                    // Its units may be others now.
                    Ok(Signal::Restarted) | Err(RecvError::Lagged(_)) => return Ok(()),
                    Err(RecvError::Closed) => return Err(lost("the connection to the system bus ended")),
                },
            }
        }
    }

    async fn try_undrain(&self, progress: &mut Progress) -> Result<(), Interrupted> {
        let link = self.link().await?;
        let mut waiting = Waiting::new(&link);
        self.start(&link, &mut waiting, progress).await?;
        progress.graph = self.read_graph(&link).await?.0;
        let mut started_again = false;
        loop {
            self.look(&link, progress).await?;
            waiting.collect(&mut progress.jobs);
            let pending: Vec<&Listed> = progress
                .pulled(&self.target)
                .filter(|u| u.job != 0 || matches!(u.active_state.as_str(), "activating" | "deactivating"))
                .collect();
            if pending.is_empty() {
                if started_again || !progress.has_missed_one() {
                    return Ok(());
                }
                started_again = true;
                self.start(&link, &mut waiting, progress).await?;
                continue;
            }
            let (jobs, jobless) = to_wait_for(&pending);
            waiting
                .for_change(jobs, jobless, &mut progress.jobs)
                .await
                .map_err(Interrupted::Lost)?;
        }
    }

    /// Starts the target, and waits until its job is over.
    async fn start(
        &self,
        link: &Link,
        waiting: &mut Waiting<'_>,
        progress: &mut Progress,
    ) -> Result<(), Interrupted> {
        let started = link.queue("StartUnit", &self.target).await;
        let job = started.map_err(|error| self.interrupted(error, "start", &self.target))?;
        // systemd runs jobs when it has no call to answer: what we asked now would only delay the start.
        let job = job.into_iter().collect();
        let ended = waiting.for_change(job, HashSet::new(), &mut progress.jobs).await;
        ended.map_err(Interrupted::Lost)
    }
}

/// Starts one unit, and returns when its job is over: a oneshot has run then.
///
/// # Errors
/// When systemd could not be reached, or the job did not end well. Trying again may help.
pub async fn start_unit(unit: &str) -> Result<(), UnitsError> {
    match Systemd::new(unit).try_start_one().await {
        Ok(()) => Ok(()),
        Err(Interrupted::Fatal(error)) => Err(error),
        Err(Interrupted::Lost(reason)) => Err(UnitsError::Unreachable { reason }),
    }
}

impl Systemd {
    async fn try_start_one(&self) -> Result<(), Interrupted> {
        let lost = |why: &str| Interrupted::Lost(why.to_owned());
        let link = self.link().await?;
        let mut signals = link.signals();
        let queued = link.queue("StartUnit", &self.target).await;
        let wanted = queued.map_err(|error| self.interrupted(error, "start", &self.target))?;
        loop {
            match signals.recv().await {
                Ok(Signal::JobRemoved { job, result, .. }) if Some(job) == wanted => {
                    if result == "done" || result == "skipped" {
                        return Ok(());
                    }
                    return Err(Interrupted::Fatal(UnitsError::Job {
                        verb: "start",
                        unit: self.target.clone(),
                        reason: format!("its job ended with {result:?}"),
                    }));
                }
                Ok(Signal::JobRemoved { .. }) => {}
                Ok(Signal::Restarted) => return Err(lost("systemd was restarted")),
                Err(RecvError::Lagged(_)) => return Err(lost("too many signals at once")),
                Err(RecvError::Closed) => return Err(lost("the connection to the system bus ended")),
            }
        }
    }
}

impl Units for Systemd {
    fn target(&self) -> &str {
        &self.target
    }

    fn drain(&self, deadline: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
        self.drain_until(deadline).boxed()
    }

    fn undrain(&self, deadline: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
        self.undrain_until(deadline).boxed()
    }

    fn survey(&self) -> BoxFuture<'_, Result<Survey, UnitsError>> {
        async {
            let look = async {
                let link = self.link().await?;
                let (graph, target) = self.read_graph(&link).await?;
                let mut progress = Progress {
                    graph,
                    ..Progress::default()
                };
                self.find_dragged(&link, &mut progress).await?;
                self.look(&link, &mut progress).await?;
                Ok((progress, target))
            };
            match look.await {
                Ok((progress, target)) => Ok(Survey {
                    target_state: target.active_state,
                    units: self
                        .reports(&progress, progress.concerned(&self.target), Instant::now())
                        .await,
                }),
                Err(Interrupted::Fatal(error)) => Err(error),
                Err(Interrupted::Lost(reason)) => {
                    self.bus.forget().await;
                    Err(UnitsError::Unreachable { reason })
                }
            }
        }
        .boxed()
    }

    fn watch<'a>(&'a self, changed: &'a Notify) -> BoxFuture<'a, ()> {
        async move {
            let mut pause = RETRY_FIRST;
            loop {
                match self.watch_link(changed).await {
                    Ok(()) => pause = RETRY_FIRST,
                    Err(Interrupted::Lost(_)) => self.bus.forget().await,
                    Err(Interrupted::Fatal(_)) => pause = STOP_AGAIN_MOST,
                }
                changed.notify_one();
                sleep(pause).await;
                pause = (pause * 2).min(STOP_AGAIN_MOST);
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_does_not_stay_stopped_is_told_at_once_and_then_ever_more_rarely() {
        assert_eq!(again(0), Duration::ZERO);
        let pauses: Vec<_> = (1..20).map(again).collect();
        assert!(pauses[0] >= RETRY_FIRST);
        assert!(
            pauses
                .windows(2)
                .all(|pair| pair[0] < pair[1] || pair[1] == STOP_AGAIN_MOST)
        );
        assert_eq!(again(u32::MAX), STOP_AGAIN_MOST);
    }
}
