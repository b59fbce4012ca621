//! Many hosts, one wave after the other: the next one begins when the one before is done, and well. [`super::waves`] decides.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::carrier::{Carrier, Tcp};
use super::confirm::confirm;
use super::fault::{Fault, Verdict};
use super::report::{HostReport, REPORT_VERSION, Report, Rollout, Summary};
use super::run::{
    Observer, Outcome, Plan, Progress, looks_twice, milliseconds, part, run, run_over, tell, tell_apart,
};
use super::waves::{Tier, TierRule, Wave, ails, has_failed, tier_of, waves, would};
use crate::protocol::Action;

/// How long a wave of an undrain waits for hosts that cannot be reached; they are told again after the last one.
const WAVE_RETRY: Duration = Duration::from_secs(15);
/// The same of a question about units.
const QUESTION_RETRY: Duration = Duration::from_secs(10);

/// How hosts are told in waves.
#[derive(Clone, Debug)]
pub struct Waves {
    /// Most hosts of one wave; without it a tier is one.
    pub size: Option<usize>,
    /// Tiers of hosts by what they run.
    pub rules: Vec<TierRule>,
    /// After an undrain, how long a wave must stay well before the next one begins.
    pub settle: Duration,
    /// How many hosts may fail, in all, before the next wave is not begun.
    pub tolerate: usize,
    /// Whether that is begun all the same.
    pub go_on: bool,
    /// Which wave is begun with, from 1 on.
    pub from: usize,
}

impl Waves {
    /// Whether nothing of it makes a difference to a run without waves.
    pub fn is_one(&self, plan: &Plan) -> bool {
        let tiers = plan.targets.iter().any(|target| target.tier.is_some());
        self.size.is_none() && self.rules.is_empty() && self.from <= 1 && !tiers
    }
}

/// Tells the targets of `plan` wave by wave.
pub async fn roll_out(
    plan: &Plan,
    how: &Waves,
    observer: &mut (dyn Observer + Send),
    stop: &CancellationToken,
) -> Outcome {
    roll_out_over(&Tcp, plan, how, observer, stop).await
}

/// The same over `carrier`.
pub async fn roll_out_over(
    carrier: &impl Carrier,
    plan: &Plan,
    how: &Waves,
    observer: &mut (dyn Observer + Send),
    stop: &CancellationToken,
) -> Outcome {
    let begun = Instant::now();
    let (tiers, unknown) = tiers(carrier, plan, how, stop).await;
    let mut slots: Vec<Progress> = Vec::new();
    slots.resize_with(plan.targets.len(), Progress::default);
    let mut work = Work {
        carrier,
        plan,
        how,
        waves: waves(&tiers, plan.action, how.size),
        slots,
        done: 0,
        begun,
    };
    let mut interrupted = stop.is_cancelled();
    // Whoever did not answer because nobody waited is not to blame.
    let mut stopped = work.refusal(&unknown).filter(|_| !interrupted);
    if stopped.is_none() && !interrupted {
        (stopped, interrupted) = work.go(observer, stop).await;
    }
    if stopped.is_none() && !interrupted {
        interrupted = work.end(observer, stop).await;
    }
    tell_apart(plan, &mut work.slots, observer);
    work.outcome(stopped, interrupted)
}

/// A run that is under way.
struct Work<'a, C> {
    carrier: &'a C,
    plan: &'a Plan,
    how: &'a Waves,
    waves: Vec<Wave>,
    /// Of all hosts, in the order of the plan.
    slots: Vec<Progress>,
    /// The last wave of which each host has a result.
    done: usize,
    begun: Instant,
}

impl<C: Carrier> Work<'_, C> {
    /// Why nothing is sent at all.
    fn refusal(&self, unknown: &[String]) -> Option<String> {
        if self.how.from > self.waves.len() {
            return Some(format!(
                "there are {} waves, and --from-wave is {}: nothing was sent; `--dry-run` shows the waves",
                self.waves.len(),
                self.how.from
            ));
        }
        if unknown.len() > self.how.tolerate && !self.how.go_on {
            return Some(format!(
                "of {} it could not be learned what they run, and --tier goes by that: nothing was sent; mend them, give them a tier in the \
                 hosts file, leave them out, or use --tolerate {}: then they come last in an undrain, and first in a drain",
                unknown.join(", "),
                unknown.len()
            ));
        }
        None
    }

    /// The waves: why they were stopped, and whether that was asked for.
    async fn go(
        &mut self,
        observer: &mut (dyn Observer + Send),
        stop: &CancellationToken,
    ) -> (Option<String>, bool) {
        let waves = self.waves.clone();
        for (at, wave) in waves.iter().enumerate() {
            let number = at + 1;
            if number < self.how.from {
                continue;
            }
            observer.wave(number, waves.len(), wave);
            if self
                .tell(wave, wave_retry(self.plan, self.how), observer, stop)
                .await
            {
                return (None, true);
            }
            self.done = number;
            if number == waves.len() {
                break;
            }
            // Before the next one is begun, and not at the end alone: nobody goes on after an answer for another host.
            tell_apart(self.plan, &mut self.slots, observer);
            let looks = self.plan.action == Action::Undrain;
            if looks && (self.how.go_on || self.failed() <= self.how.tolerate) {
                self.look_after(wave, observer, stop).await;
            }
            if stop.is_cancelled() {
                return (None, true);
            }
            let failed = self.failed();
            if failed > self.how.tolerate && !self.how.go_on {
                let why = how_to_go_on(number, waves.len(), failed, self.how.tolerate);
                return (Some(why), false);
            }
        }
        (None, false)
    }

    fn failed(&self) -> usize {
        let reports = self.slots.iter().filter_map(|slot| slot.report.as_ref());
        reports.filter(|report| has_failed(report)).count()
    }

    /// Tells the hosts of `wave`. Whether it was interrupted.
    async fn tell(
        &mut self,
        wave: &Wave,
        retry_for: Option<Duration>,
        observer: &mut (dyn Observer + Send),
        stop: &CancellationToken,
    ) -> bool {
        let part_of = Plan {
            retry_for,
            ..of(self.plan, wave)
        };
        let tally = tell(self.carrier, &part_of, observer, stop).await;
        for (host, progress) in wave.hosts.iter().zip(tally.progress) {
            if let Some(slot) = self.slots.get_mut(*host) {
                match &mut slot.report {
                    // One that was not reached again before all was stopped keeps what it had.
                    Some(report) if progress.report.is_none() => report.attempts += progress.attempts,
                    _ => *slot = progress.after(slot),
                }
            }
        }
        if !tally.interrupted {
            part(tally.goodbyes).await;
        }
        tally.interrupted
    }

    /// Looks at a wave that was undrained once more, after a while: who is not well has failed.
    async fn look_after(
        &mut self,
        wave: &Wave,
        observer: &mut (dyn Observer + Send),
        stop: &CancellationToken,
    ) {
        // Those that failed have been counted, and those that are held do not run.
        let told = self.that(wave.hosts.iter().copied(), |slot| {
            slot.report
                .as_ref()
                .is_some_and(|report| report.result == Verdict::Ok)
        });
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(self.how.settle) => {}
        }
        let question = question(&of(self.plan, &told), QUESTION_RETRY);
        let asked = run_over(self.carrier, &question, &mut (), stop).await;
        if asked.interrupted {
            return;
        }
        for (host, seen) in told.hosts.into_iter().zip(&asked.report.hosts) {
            let Some(report) = self.slots.get_mut(host).and_then(|slot| slot.report.as_mut()) else {
                continue;
            };
            let Some(why) = ails(seen, report) else { continue };
            let (name, fault) = (report.host.clone(), Fault::Ailing { why });
            let ailing = HostReport::failed(name, report.address, &fault, report.attempts, report.elapsed_ms);
            *report = HostReport {
                wire: report.wire,
                instance: report.instance.take(),
                ..ailing
            };
            observer.changed(report);
        }
    }

    /// After the last wave: a drain is looked at once more; an undrain reaches whom it has not reached. Whether it was interrupted.
    async fn end(&mut self, observer: &mut (dyn Observer + Send), stop: &CancellationToken) -> bool {
        if looks_twice(self.plan) {
            return tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = confirm(self.carrier, self.plan, &mut self.slots, observer) => false,
            };
        }
        let left = self
            .plan
            .retry_for
            .and_then(|all| all.checked_sub(self.begun.elapsed()));
        let Some(left) = left.filter(|_| self.plan.action == Action::Undrain) else {
            return false;
        };
        let absent = self.that(0..self.slots.len(), |slot| slot.again);
        if absent.hosts.is_empty() {
            return false;
        }
        self.tell(&absent, Some(left), &mut Again(observer), stop).await
    }

    /// Those of `hosts` that are so, as a wave.
    fn that(&self, hosts: impl Iterator<Item = usize>, is: impl Fn(&Progress) -> bool) -> Wave {
        Wave {
            tier: None,
            hosts: hosts
                .filter(|host| self.slots.get(*host).is_some_and(&is))
                .collect(),
        }
    }

    fn outcome(self, stopped: Option<String>, interrupted: bool) -> Outcome {
        let mut wave_of = vec![0; self.slots.len()];
        for (at, wave) in self.waves.iter().enumerate() {
            for host in &wave.hosts {
                if let Some(number) = wave_of.get_mut(*host) {
                    *number = at + 1;
                }
            }
        }
        let each = self.plan.targets.iter().zip(self.slots).zip(wave_of);
        let hosts: Vec<HostReport> = each
            // What was left out on purpose is no result.
            .filter(|(_, wave)| *wave >= self.how.from || self.how.from > self.waves.len())
            .map(|((target, slot), wave)| {
                let report = slot.report.unwrap_or_else(|| {
                    let fault = if interrupted {
                        Fault::Interrupted
                    } else {
                        Fault::NotTold { wave }
                    };
                    HostReport::failed(target.name.clone(), None, &fault, slot.attempts, 0)
                });
                HostReport {
                    wave: Some(wave),
                    ..report
                }
            })
            .collect();
        Outcome {
            report: Report {
                version: REPORT_VERSION,
                action: self.plan.action,
                generation: self.plan.generation,
                summary: Summary::of(&hosts),
                hosts,
                rollout: Some(Rollout {
                    waves: self.waves.len(),
                    done: self.done,
                    stopped,
                }),
                elapsed_ms: milliseconds(self.begun.elapsed()),
            },
            interrupted,
        }
    }
}

/// Where waves go on whatever fails, one of an undrain does not wait for a host that is off for as long as the run does: it is told at
/// the end. Otherwise it would stop the run, and may only be late.
fn wave_retry(plan: &Plan, how: &Waves) -> Option<Duration> {
    match plan.action {
        Action::Undrain if how.go_on => plan.retry_for.map(|all| all.min(WAVE_RETRY)),
        _ => plan.retry_for,
    }
}

/// Hosts that had a result, and are told again: only a better one is news.
struct Again<'a>(&'a mut (dyn Observer + Send));

impl Observer for Again<'_> {
    fn finished(&mut self, report: &HostReport) {
        if report.result == Verdict::Ok {
            self.0.changed(report);
        }
    }
}

/// The part of `plan` that is `wave`'s.
fn of(plan: &Plan, wave: &Wave) -> Plan {
    let targets = wave
        .hosts
        .iter()
        .filter_map(|host| plan.targets.get(*host))
        .cloned();
    Plan {
        targets: targets.collect(),
        ..plan.clone()
    }
}

/// A question to all of `plan`, tried again for at most so long.
fn question(plan: &Plan, most: Duration) -> Plan {
    Plan {
        action: Action::Status,
        generation: None,
        terms: None,
        retry_for: Some(plan.retry_for.map_or(most, |all| all.min(most))),
        jitter: Duration::ZERO,
        ..plan.clone()
    }
}

/// The tier of each target, its own, or by what it runs; and the names of those that did not say what they run.
async fn tiers(
    carrier: &impl Carrier,
    plan: &Plan,
    how: &Waves,
    stop: &CancellationToken,
) -> (Vec<Option<Tier>>, Vec<String>) {
    let own = || plan.targets.iter().map(|target| target.tier);
    if how.rules.is_empty() {
        return (own().collect(), Vec::new());
    }
    let asked = run_over(carrier, &question(plan, QUESTION_RETRY), &mut (), stop)
        .await
        .report
        .hosts;
    let silent = own().zip(&asked).filter(|(tier, report)| {
        tier.is_none() && (report.result != Verdict::Ok || report.units_omitted.is_some())
    });
    let names = silent.map(|(_, report)| report.host.clone()).collect();
    (tiers_by_units(own(), &asked, &how.rules), names)
}

fn tiers_by_units(
    own: impl Iterator<Item = Option<Tier>>,
    reports: &[HostReport],
    rules: &[TierRule],
) -> Vec<Option<Tier>> {
    own.zip(reports)
        .map(|(tier, report)| {
            tier.or_else(|| tier_of(rules, report.units.iter().map(|unit| unit.name.as_str())))
        })
        .collect()
}

fn how_to_go_on(number: usize, of: usize, failed: usize, tolerated: usize) -> String {
    let hosts = |n: usize| {
        if n == 1 {
            "1 host".to_owned()
        } else {
            format!("{n} hosts")
        }
    };
    format!(
        "stopped after wave {number} of {of}: {} failed, and {} may; mend it, and give the command again with --from-wave {number}, \
         or with --from-wave {} to leave that wave as it is, or with --tolerate {failed}",
        hosts(failed),
        hosts(tolerated),
        number + 1
    )
}

/// What a run would do.
#[derive(Debug, Serialize)]
pub struct DryRun {
    /// Always true: this is no report.
    pub dry_run: bool,
    /// What would be asked for.
    pub action: Action,
    /// In their order.
    pub waves: Vec<DryWave>,
    /// How many hosts it would not come about on.
    pub failing: usize,
}

/// One wave of it.
#[derive(Debug, Serialize)]
pub struct DryWave {
    /// From 1 on.
    pub number: usize,
    /// Of its hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// In the order of the plan.
    pub hosts: Vec<DryHost>,
}

/// One host of it.
#[derive(Debug, Serialize)]
pub struct DryHost {
    /// As it was named.
    pub host: String,
    /// Whether it would come about.
    pub ok: bool,
    /// What would happen.
    pub would: String,
}

/// Asks all targets of `plan` what they are in, and says what telling them would do. Nothing else is sent.
pub async fn dry_run(plan: &Plan, how: &Waves, stop: &CancellationToken) -> DryRun {
    let asked = run(&question(plan, Duration::ZERO), &mut (), stop).await;
    let reports = asked.report.hosts;
    let own = plan.targets.iter().map(|target| target.tier);
    let tiers = tiers_by_units(own, &reports, &how.rules);
    let mut failing = 0;
    let waves = waves(&tiers, plan.action, how.size)
        .into_iter()
        .enumerate()
        .map(|(at, wave)| DryWave {
            number: at + 1,
            tier: wave.tier,
            hosts: wave
                .hosts
                .iter()
                .filter_map(|host| reports.get(*host))
                .map(|report| {
                    let (ok, words) = if at + 1 < how.from {
                        (true, "left out by --from-wave".to_owned())
                    } else {
                        would(report, plan.action, plan.generation)
                    };
                    failing += usize::from(!ok);
                    DryHost {
                        host: report.host.clone(),
                        ok,
                        would: words,
                    }
                })
                .collect(),
        })
        .collect();
    DryRun {
        dry_run: true,
        action: plan.action,
        waves,
        failing,
    }
}

impl DryRun {
    /// For people.
    pub fn render(&self) -> String {
        let hosts: usize = self.waves.iter().map(|wave| wave.hosts.len()).sum();
        let width = self
            .waves
            .iter()
            .flat_map(|wave| wave.hosts.iter().map(|host| host.host.chars().count()))
            .max()
            .unwrap_or_default();
        let mut out = String::new();
        for wave in &self.waves {
            let tier = wave.tier.map(|tier| format!(", tier {tier}")).unwrap_or_default();
            out.push_str(&format!("wave {} of {}{tier}:\n", wave.number, self.waves.len()));
            for host in &wave.hosts {
                out.push_str(&format!("  {:width$}  {}\n", host.host, host.would));
            }
        }
        let failing = match self.failing {
            0 => String::new(),
            n => format!(", it would fail on {n}"),
        };
        out + &format!(
            "{}, dry run: {hosts} hosts in {} waves{failing}; nothing was changed\n",
            self.action,
            self.waves.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{PresharedKey, Wire};

    #[test]
    fn a_host_that_is_off_holds_back_only_what_it_would_stop() {
        let plan = |action| Plan {
            action,
            targets: Vec::new(),
            key: PresharedKey::parse(&"k".repeat(40), "key".as_ref()).unwrap(),
            wire: Wire::V2,
            timeout: Duration::ZERO,
            connect_timeout: Duration::ZERO,
            max_parallel: 1,
            retry_for: Some(WAVE_RETRY * 9),
            generation: None,
            terms: None,
            jitter: Duration::ZERO,
        };
        let how = |go_on| Waves {
            size: None,
            rules: Vec::new(),
            settle: Duration::ZERO,
            tolerate: 0,
            go_on,
            from: 1,
        };
        let retry = |action, go_on| wave_retry(&plan(action), &how(go_on)).unwrap();
        assert_eq!(retry(Action::Undrain, true), WAVE_RETRY);
        assert_eq!(retry(Action::Undrain, false), WAVE_RETRY * 9);
        // The databases go: nobody is told later.
        assert_eq!(retry(Action::Drain, true), WAVE_RETRY * 9);
    }
}
