//! What is said at the end of an operation: verdicts from the states that were seen, and systemd's reasons.
//!
//! The verdict never hangs on a reason: a systemd that is slow to give one costs the reason and nothing else.

use std::sync::Arc;

use futures_util::future::join_all;
use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, timeout};

use super::bus::{Link, Listed};
use super::states::{Progress, Started, interface, is_at_rest, started};
use super::{LAST_LOOK, Systemd, Verb, cgroups};
use crate::protocol::UnitReport;
use crate::units::{Settled, UnitsError};

const SERVICE: &str = "org.freedesktop.systemd1.Service";

impl Systemd {
    /// What is said of `units`: states, times since `began`, and systemd's reasons for failures where it gives them.
    pub(super) async fn reports(
        &self,
        progress: &Progress,
        units: impl Iterator<Item = &Listed>,
        began: Instant,
    ) -> Vec<UnitReport> {
        let mut reports: Vec<UnitReport> = units.map(|unit| report(progress, unit, began)).collect();
        let Ok(Ok(link)) = timeout(LAST_LOOK, self.bus.link()).await else {
            return reports;
        };
        let failed = reports.iter_mut().filter(|r| r.state == "failed");
        join_all(failed.map(|report| reason(&link, report))).await;
        reports
    }

    pub(super) async fn drain_until(&self, deadline: Instant) -> Result<Settled, UnitsError> {
        let began = Instant::now();
        let mut progress = Progress::default();
        self.until_done(Verb::Stop, deadline, &mut progress).await?;
        // The target is named only when it is what holds the drain.
        let mut units: Vec<&Listed> = progress.concerned(&self.target).collect();
        units.extend(
            progress
                .listed
                .get(&self.target)
                .filter(|target| !is_at_rest(target)),
        );
        let resting = units.iter().filter(|u| is_at_rest(u)).map(|u| u.name.as_str());
        let left = cgroups::left_behind(resting);
        let reports = self.reports(&progress, units.into_iter(), began).await;
        Ok(Settled::drained(&self.target, reports, &left, began.elapsed()))
    }

    pub(super) async fn undrain_until(&self, deadline: Instant) -> Result<Settled, UnitsError> {
        let began = Instant::now();
        let began_us = monotonic_us();
        let mut progress = Progress::default();
        self.until_done(Verb::Start, deadline, &mut progress).await?;
        let dependents = progress
            .graph
            .dependents
            .iter()
            .filter_map(|name| progress.listed.get(name));
        let reports = self.reports(&progress, dependents, began).await;
        let (mut pending, mut failed) = (Vec::new(), Vec::new());
        for unit in progress.pulled(&self.target) {
            let job = progress.jobs.get(&unit.name).map(|(_, result)| result.as_str());
            match started(unit, job) {
                Started::Up => {}
                Started::Pending(state) => pending.push((unit.name.clone(), state)),
                Started::Failed(why) => {
                    let reason = reports
                        .iter()
                        .find(|r| r.name == unit.name)
                        .and_then(|r| r.result.clone());
                    failed.push((unit.name.clone(), reason.unwrap_or(why)));
                }
                Started::Unknown => {
                    if !self.has_run_since(&unit.name, began_us).await {
                        failed.push((unit.name.clone(), "inactive, and did not run".to_owned()));
                    }
                }
            }
        }
        let unwanted: Vec<String> = reports
            .iter()
            .filter(|r| r.is_stopped() && !progress.graph.brings_up(&r.name))
            .map(|r| r.name.clone())
            .collect();
        Ok(Settled::undrained(
            &self.target,
            reports,
            &pending,
            &failed,
            &unwanted,
            began.elapsed(),
        ))
    }

    /// Whether an inactive unit, of whose start job we heard nothing, has run well since `began_us`: a oneshot, or a
    /// service that ended by itself.
    async fn has_run_since(&self, unit: &str, began_us: u64) -> bool {
        let asked = async {
            let link = self.bus.link().await?;
            let (started, result) = tokio::join!(
                link.property::<u64>(unit, SERVICE, "ExecMainStartTimestampMonotonic"),
                link.property::<String>(unit, SERVICE, "Result"),
            );
            Ok::<_, super::CallError>((started?, result?))
        };
        match timeout(LAST_LOOK, asked).await {
            Ok(Ok((Some(started), Some(result)))) => started >= began_us && result == "success",
            // What cannot be shown to have run counts as not run.
            _ => false,
        }
    }
}

fn report(progress: &Progress, unit: &Listed, began: Instant) -> UnitReport {
    let mut report = UnitReport::new(&unit.name, &unit.active_state);
    match progress.jobs.get(&unit.name) {
        Some((ended, result)) if unit.job == 0 => {
            report.elapsed_ms = Some(crate::units::millis(ended.saturating_duration_since(began)));
            if result != "done" {
                report.result = Some(format!("its last job ended as {result}"));
            }
        }
        _ => {}
    }
    // It is down, and about to come up: that is no rest.
    if report.is_stopped() && !is_at_rest(unit) {
        report.state = "activating".to_owned();
        report.result = Some(format!("{}, {} job queued", unit.active_state, unit.job_type));
        report.elapsed_ms = None;
    }
    report
}

async fn reason(link: &Arc<Link>, report: &mut UnitReport) {
    let interface = interface(&report.name);
    let asked = link.property::<String>(&report.name, &interface, "Result");
    if let Ok(Ok(Some(result))) = timeout(LAST_LOOK, asked).await
        && result != "success"
    {
        report.result = Some(result);
    }
}

/// systemd's monotonic timestamps are microseconds of this clock (org.freedesktop.systemd1(5)).
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(std::time::Duration::from)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::states::unit;
    use super::*;
    use crate::protocol::Status;

    fn drained(units: &[Listed]) -> Settled {
        let progress = Progress::default();
        let now = Instant::now();
        let reports = units.iter().map(|u| report(&progress, u, now)).collect();
        Settled::drained("io.target", reports, &[], std::time::Duration::from_secs(45))
    }

    #[test]
    fn a_drain_is_ok_only_when_all_that_was_seen_rests() {
        assert_eq!(
            drained(&[unit("inactive", 0), unit("failed", 0)]).status,
            Status::Ok
        );
        for (state, job) in [
            ("deactivating", 7),
            ("deactivating", 0),
            ("active", 0),
            ("inactive", 7),
        ] {
            let settled = drained(&[unit("inactive", 0), unit(state, job)]);
            assert_eq!(
                settled.status,
                Status::Error,
                "{state} {job}: {}",
                settled.message
            );
            assert!(settled.message.contains("app.service"), "{}", settled.message);
        }
    }
}
