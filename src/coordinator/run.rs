//! All hosts: at most so many at once, tried again as planned, each with a result.
//!
//! **Promise.** [`run`] returns a report for every target, in the order of the plan, also when it is stopped.
//! At most `max_parallel` conversations are open, and as many more that are over and say goodbye.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::carrier::{Carrier, Tcp};
use super::confirm::confirm;
use super::dial::{Attempt, Line, Words};
use super::fault::{Fault, repeat_is_harmless};
use super::hosts::Target;
use super::report::{HostReport, REPORT_VERSION, Report, Summary};
use super::schedule::{Next, Schedule, retry_at};
use super::waves::Wave;
use crate::protocol::{Action, HoldTerms, PresharedKey, Wire};

/// How long a guardian may take to say goodbye, while other hosts are talked to.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long the end of a run waits for goodbyes: a round trip. A socket that is closed before takes the guardian's
/// last words for an error, and so may the guardian take ours.
const LAST_GOODBYE: Duration = Duration::from_millis(50);

/// How many hosts are dialled at the same time. Few, because dialling is work for this host: what is in flight stays in
/// its caches (256 at a time cost a tenth more on loopback). Those that have taken the command and work on it do not
/// count, so a drain of a thousand hosts takes as long as the slowest of them, and not as long as several in a row.
pub(super) const DIALLING: usize = 32;
/// How long a host that is dialled may keep others waiting. Longer than a host that is near needs; on one that is far
/// away or gone there is nothing to do meanwhile but dial the next.
const TURN: Duration = Duration::from_millis(10);

/// What to do with whom.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to tell them.
    pub action: Action,
    /// The guardians.
    pub targets: Vec<Target>,
    /// The key that all of them know.
    pub key: PresharedKey,
    /// Which versions of the wire may be spoken.
    pub wire: Wire,
    /// For each attempt: name lookup, connection, handshake, authentication and answer together.
    pub timeout: Duration,
    /// Of that, for name lookup, connection and handshake.
    pub connect_timeout: Duration,
    /// Most conversations at once; 0 counts as 1.
    pub max_parallel: usize,
    /// How long after the start of the run hosts are tried again.
    pub retry_for: Option<Duration>,
    /// Sent with the command.
    pub generation: Option<u64>,
    /// Of a hold.
    pub terms: Option<HoldTerms>,
    /// Each host is told at a moment of its own within this time.
    pub jitter: Duration,
}

/// Who is told while a run goes on.
pub trait Observer {
    /// A host has its result.
    fn finished(&mut self, report: &HostReport) {
        let _ = report;
    }

    /// A wave begins, number `number` of `of`.
    fn wave(&mut self, number: usize, of: usize, wave: &Wave) {
        let _ = (number, of, wave);
    }

    /// A host will be tried again after `delay`.
    fn retrying(&mut self, target: &Target, attempts: u32, fault: &Fault, delay: Duration) {
        let _ = (target, attempts, fault, delay);
    }

    /// A host that had its result has another one: it was told again at the end of a drain.
    fn changed(&mut self, report: &HostReport) {
        let _ = report;
    }

    /// A host was drained, and could not be asked again at the end.
    fn out_of_sight(&mut self, target: &Target, fault: &Fault) {
        let _ = (target, fault);
    }
}

/// Nobody.
impl Observer for () {}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it found.
    pub report: Report,
    /// Whether it was stopped before all hosts had a result of their own, or a drain was confirmed.
    pub interrupted: bool,
}

/// A conversation, begun when it is its turn: it says when it has dialled.
pub(super) async fn in_turn<F>(
    dialling: Arc<Semaphore>,
    conversation: impl FnOnce(oneshot::Sender<()>) -> F,
) -> Attempt
where
    F: Future<Output = Attempt>,
{
    // The semaphore is never closed; without a turn it would be dialled at once, which does no harm.
    let turn = dialling.acquire_owned().await.ok();
    let (dialled, done) = oneshot::channel();
    let conversation = conversation(dialled);
    tokio::pin!(conversation);
    tokio::select! {
        biased;
        attempt = &mut conversation => return attempt,
        _ = timeout(TURN, done) => drop(turn),
    }
    conversation.await
}

/// How far a host has come.
#[derive(Default)]
pub(super) struct Progress {
    started: Option<Instant>,
    /// When its last attempt began.
    latest: Option<Instant>,
    pub(super) attempts: u32,
    pub(super) report: Option<HostReport>,
    /// When it answered, at the earliest.
    pub(super) answered: Option<Instant>,
    /// It failed in a way that may pass, and to tell it once more can do no harm.
    pub(super) again: bool,
    /// Its answer was another host's, too.
    aliased: bool,
}

impl Progress {
    pub(super) fn since_start(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// The same of a host that had come as far as `before`: what is reported is of both.
    pub(super) fn after(mut self, before: &Self) -> Self {
        if let (Some(report), Some(first), Some(then)) = (&mut self.report, before.started, self.started) {
            report.attempts += before.attempts;
            report.elapsed_ms += milliseconds(then - first);
        }
        self.attempts += before.attempts;
        self.started = before.started.or(self.started);
        self
    }
}

/// Tells all targets of `plan`, and returns when each has a result or `stop` is cancelled.
///
/// Nothing is printed. A future that is dropped closes all its connections.
pub async fn run(plan: &Plan, observer: &mut (dyn Observer + Send), stop: &CancellationToken) -> Outcome {
    run_over(&Tcp, plan, observer, stop).await
}

/// The same over `carrier`.
pub async fn run_over(
    carrier: &impl Carrier,
    plan: &Plan,
    observer: &mut (dyn Observer + Send),
    stop: &CancellationToken,
) -> Outcome {
    let begun = Instant::now();
    let Tally {
        mut progress,
        mut interrupted,
        goodbyes,
    } = tell(carrier, plan, observer, stop).await;
    if !interrupted && looks_twice(plan) {
        interrupted = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            () = confirm(carrier, plan, &mut progress, observer) => false,
        };
    }
    tell_apart(plan, &mut progress, observer);
    if !interrupted {
        part(goodbyes).await;
    }
    let missing = if interrupted {
        Fault::Interrupted
    } else {
        Fault::Internal
    };
    let now = Instant::now();
    let hosts: Vec<HostReport> = plan
        .targets
        .iter()
        .zip(progress)
        .map(|(target, slot)| {
            slot.report.unwrap_or_else(|| {
                let elapsed_ms = slot.started.map_or(0, |started| milliseconds(now - started));
                let report =
                    HostReport::failed(target.name.clone(), None, &missing, slot.attempts, elapsed_ms);
                observer.finished(&report);
                report
            })
        })
        .collect();
    Outcome {
        report: Report {
            version: REPORT_VERSION,
            action: plan.action,
            generation: plan.generation,
            summary: Summary::of(&hosts),
            hosts,
            rollout: None,
            elapsed_ms: milliseconds(now - begun),
        },
        interrupted,
    }
}

/// Whether hosts that were drained a while ago are told again.
pub(super) fn looks_twice(plan: &Plan) -> bool {
    plan.action == Action::Drain && repeat_is_harmless(plan.action, plan.generation)
}

/// How far all hosts have come.
pub(super) struct Tally {
    /// In the order of the plan.
    pub(super) progress: Vec<Progress>,
    /// Whether it was stopped before each had a result.
    pub(super) interrupted: bool,
    /// Connections whose guardians have not said theirs yet.
    pub(super) goodbyes: JoinSet<()>,
}

/// Waits for goodbyes, for a moment.
pub(super) async fn part(mut goodbyes: JoinSet<()>) {
    let _ = timeout(LAST_GOODBYE, async {
        while goodbyes.join_next().await.is_some() {}
    })
    .await;
}

/// Tells all targets of `plan` once, or as often as it takes, and looks at none of the results.
pub(super) async fn tell(
    carrier: &impl Carrier,
    plan: &Plan,
    observer: &mut (dyn Observer + Send),
    stop: &CancellationToken,
) -> Tally {
    let begun = Instant::now();
    let until = plan.retry_for.map(|duration| begun + plan.jitter + duration);
    let harmless = repeat_is_harmless(plan.action, plan.generation);
    let parallel = plan.max_parallel.max(1);
    let words = Arc::new(Words::of(plan, plan.timeout));
    let dialling = Arc::new(Semaphore::new(DIALLING));
    let chance = carrier.chance();

    let mut progress: Vec<Progress> = Vec::new();
    progress.resize_with(plan.targets.len(), Progress::default);
    let mut schedule = Schedule::spread(plan.targets.len(), begun, plan.jitter, |host| {
        chance.hash_one((host, 0))
    });
    let mut talking: JoinSet<(usize, Attempt)> = JoinSet::new();
    let mut leaving: JoinSet<()> = JoinSet::new();
    let stopped = stop.cancelled();
    tokio::pin!(stopped);

    let interrupted = loop {
        let mut wake = None;
        while talking.len() < parallel {
            let now = Instant::now();
            match schedule.next(now) {
                Next::Start(index) => {
                    let (Some(target), Some(slot)) = (plan.targets.get(index), progress.get_mut(index))
                    else {
                        continue;
                    };
                    slot.started.get_or_insert(now);
                    slot.latest = Some(now);
                    slot.attempts += 1;
                    let (target, words) = (target.clone(), Arc::clone(&words));
                    let (carrier, dialling) = (carrier.clone(), Arc::clone(&dialling));
                    talking.spawn(async move {
                        let converse = |dialled| carrier.converse(&words, &target, dialled);
                        (index, in_turn(dialling, converse).await)
                    });
                }
                Next::Wait(at) => {
                    wake = Some(at);
                    break;
                }
                Next::Done => break,
            }
        }
        if talking.is_empty() && wake.is_none() {
            break false;
        }
        let (index, attempt) = tokio::select! {
            biased;
            () = &mut stopped => break true,
            Some(ended) = talking.join_next() => match ended {
                Ok(ended) => ended,
                // The task broke; its host is found without a report below.
                Err(_) => continue,
            },
            () = sleep_until(wake.unwrap_or(begun)), if wake.is_some() => continue,
        };
        let (Some(target), Some(slot)) = (plan.targets.get(index), progress.get_mut(index)) else {
            continue;
        };
        while leaving.try_join_next().is_some() {}
        let wire = attempt.line.as_ref().map(Line::wire);
        if let Some(line) = attempt.line
            && leaving.len() < parallel
        {
            leaving.spawn(line.leave(GOODBYE));
        }
        let now = Instant::now();
        let elapsed_ms = milliseconds(now - slot.started.unwrap_or(begun));
        let mut report = match attempt.result {
            Ok(response) => {
                slot.answered = Some(said(slot.latest.unwrap_or(begun), now, response.elapsed_ms));
                HostReport::answered(
                    target.name.clone(),
                    attempt.address,
                    *response,
                    slot.attempts,
                    elapsed_ms,
                )
            }
            Err(fault) => {
                if fault.is_worth_retrying(harmless)
                    && let Some(at) =
                        retry_at(now, until, slot.attempts, chance.hash_one((index, slot.attempts)))
                {
                    observer.retrying(target, slot.attempts, &fault, at - now);
                    schedule.again(index, at);
                    continue;
                }
                slot.again = fault.is_worth_retrying(harmless);
                HostReport::failed(
                    target.name.clone(),
                    attempt.address,
                    &fault,
                    slot.attempts,
                    elapsed_ms,
                )
            }
        };
        report.wire = wire;
        observer.finished(&report);
        slot.report = Some(report);
    };
    talking.abort_all();
    Tally {
        progress,
        interrupted,
        goodbyes: leaving,
    }
}

/// When an answer that came at `now` was given, at the earliest, by the time that the guardian says it has worked since we `asked`. One that
/// a link has held up may be from long ago. Whoever says more than that was at work before, so it may be from any time since.
fn said(asked: Instant, now: Instant, worked_ms: Option<u64>) -> Instant {
    let given = worked_ms.and_then(|worked| asked.checked_add(Duration::from_millis(worked)));
    given.filter(|given| *given <= now).unwrap_or(asked)
}

/// A guardian that answers under two names answers for one host only: who could lead the connection of one host to another would
/// have the run say that both are drained.
pub(super) fn tell_apart(plan: &Plan, progress: &mut [Progress], observer: &mut (dyn Observer + Send)) {
    let mut first: HashMap<Box<str>, usize> = HashMap::new();
    let mut pairs = Vec::new();
    for (index, slot) in progress.iter().enumerate() {
        let instance = slot.report.as_ref().and_then(|report| report.instance.clone());
        if let Some(instance) = instance
            && let Some(other) = first.insert(instance, index)
        {
            pairs.extend([(other, index), (index, other)]);
        }
    }
    for (index, other) in pairs {
        let (Some(target), Some(other)) = (plan.targets.get(index), plan.targets.get(other)) else {
            continue;
        };
        let Some(slot) = progress.get_mut(index).filter(|slot| !slot.aliased) else {
            continue;
        };
        let Some(report) = slot.report.as_mut() else {
            continue;
        };
        let fault = Fault::SameGuardian {
            other: other.name.clone(),
        };
        let (address, attempts, elapsed_ms) = (report.address, report.attempts, report.elapsed_ms);
        *report = HostReport {
            // A third name may lead there, too.
            instance: report.instance.take(),
            ..HostReport::failed(target.name.clone(), address, &fault, attempts, elapsed_ms)
        };
        slot.aliased = true;
        observer.changed(report);
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
