//! The end of a drain: hosts whose answer is not fresh any more are told again.
//!
//! A host that has been drained may boot while another one takes its time. The databases answer it as long as they are up, so
//! that what depends on them runs there again, and the run would say that all is drained.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::carrier::Carrier;
use super::dial::{Attempt, Line, Words};
use super::fault::{Fault, Phase, Verdict};
use super::report::HostReport;
use super::run::{DIALLING, Observer, Plan, Progress, in_turn, milliseconds};
use crate::protocol::Status;

/// How old an answer to a drain may be when the run ends.
const FRESH: Duration = Duration::from_secs(1);
/// How long hosts are told again, at most; it comes on top of everything else (docs/TIMING.md).
const CONFIRM_FOR: Duration = Duration::from_secs(10);
/// Between two attempts: one that cannot be reached boots, perhaps.
const PAUSE: Duration = Duration::from_millis(250);
/// With less time than this nobody is told again: on a slow link it would not suffice for an answer.
const TOO_LATE: Duration = Duration::from_secs(2);

/// Tells hosts whose answers are old again, until each has answered once more, or time is up. One that is not there then
/// counts as drained, and is named; one that is, and has not been drained again, has failed.
pub(super) async fn confirm(
    carrier: &impl Carrier,
    plan: &Plan,
    progress: &mut [Progress],
    observer: &mut (dyn Observer + Send),
) {
    let until = Instant::now() + CONFIRM_FOR;
    let mut faults: BTreeMap<usize, Fault> = BTreeMap::new();
    // Once each: on links on which an answer takes longer than it stays fresh there would be no end.
    let mut open = stale(progress, Instant::now());
    loop {
        if open.is_empty() || Instant::now() + TOO_LATE >= until {
            break;
        }
        let told = std::mem::take(&mut open);
        for some in told.chunks(plan.max_parallel.max(1)) {
            let left = until.saturating_duration_since(Instant::now());
            if left < TOO_LATE {
                let late = || Fault::TimedOut {
                    phase: Phase::Answer(plan.action),
                    after: CONFIRM_FOR,
                };
                faults.extend(some.iter().map(|index| (*index, late())));
                continue;
            }
            let mut talking = tell(carrier, plan, some, left);
            while let Some(ended) = talking.join_next().await {
                let Ok((index, attempt)) = ended else { continue };
                let (Some(target), Some(slot)) = (plan.targets.get(index), progress.get_mut(index)) else {
                    continue;
                };
                match attempt.result {
                    Ok(response) if response.status == Status::Ok => {
                        // Whoever answers now is the one who counts (`run::tell_apart`).
                        if let Some(report) = &mut slot.report {
                            report.instance = response.instance.map(Into::into);
                        }
                        faults.remove(&index);
                    }
                    Ok(response) => {
                        let took = milliseconds(slot.since_start());
                        let name = target.name.clone();
                        let mut report =
                            HostReport::answered(name, attempt.address, *response, slot.attempts, took);
                        report.wire = attempt.line.as_ref().map(Line::wire);
                        observer.changed(&report);
                        slot.report = Some(report);
                        faults.remove(&index);
                    }
                    Err(fault) => {
                        if fault.is_worth_retrying(true) {
                            open.push(index);
                        }
                        faults.insert(index, fault);
                    }
                }
            }
        }
        if !open.is_empty() {
            sleep(PAUSE).await;
        }
    }
    for (index, fault) in faults {
        let (Some(target), Some(slot)) = (plan.targets.get(index), progress.get_mut(index)) else {
            continue;
        };
        if fault.is_out_of_sight() {
            observer.out_of_sight(target, &fault);
            continue;
        }
        let took = milliseconds(slot.since_start());
        let address = slot.report.as_ref().and_then(|report| report.address);
        let report = HostReport::failed(target.name.clone(), address, &fault, slot.attempts, took);
        observer.changed(&report);
        slot.report = Some(report);
    }
}

/// The hosts that were drained some time before `now`.
fn stale(progress: &[Progress], now: Instant) -> Vec<usize> {
    let is_stale = |slot: &Progress| {
        let ok = slot
            .report
            .as_ref()
            .is_some_and(|report| report.result == Verdict::Ok);
        ok && slot
            .answered
            .is_some_and(|at| now.saturating_duration_since(at) >= FRESH)
    };
    let stale = progress.iter().enumerate().filter(|(_, slot)| is_stale(slot));
    stale.map(|(index, _)| index).collect()
}

/// A conversation with each of `hosts`, none of them longer than `left`.
fn tell(carrier: &impl Carrier, plan: &Plan, hosts: &[usize], left: Duration) -> JoinSet<(usize, Attempt)> {
    let words = Arc::new(Words::of(plan, plan.timeout.min(left)));
    let dialling = Arc::new(Semaphore::new(DIALLING));
    let mut talking = JoinSet::new();
    for index in hosts.iter().copied() {
        let Some(target) = plan.targets.get(index).cloned() else {
            continue;
        };
        let (carrier, words, dialling) = (carrier.clone(), Arc::clone(&words), Arc::clone(&dialling));
        talking.spawn(async move {
            let converse = |dialled| carrier.converse(&words, &target, dialled);
            (index, in_turn(dialling, converse).await)
        });
    }
    talking
}
