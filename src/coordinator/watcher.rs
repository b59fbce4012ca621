//! What people see while a run goes on.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::fault::{Fault, Verdict, seconds};
use super::hosts::Target;
use super::report::HostReport;
use super::run::{Observer, Plan};
use super::table;
use super::waves::Wave;

/// A progress bar on a terminal, a line for each host elsewhere.
pub(super) struct Watcher {
    pub(super) is_terminal: bool,
    bar: ProgressBar,
    failed: u64,
}

impl Watcher {
    pub(super) fn new(plan: &Plan) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal {
            let bar = ProgressBar::new(plan.targets.len() as u64).with_prefix(plan.action.as_str());
            let style = ProgressStyle::with_template(
                "{spinner} {prefix} {bar:30} {pos} of {len} hosts, {elapsed} {msg}",
            );
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        } else {
            ProgressBar::hidden()
        };
        Self {
            is_terminal,
            bar,
            failed: 0,
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Watcher {
    fn finished(&mut self, report: &HostReport) {
        if self.is_terminal {
            if report.result != Verdict::Ok {
                self.failed += 1;
                self.bar.set_message(format!("({} failed)", self.failed));
            }
            self.bar.inc(1);
            return;
        }
        log(report);
    }

    fn wave(&mut self, number: usize, of: usize, wave: &Wave) {
        let hosts = wave.hosts.len();
        if self.is_terminal {
            self.bar.set_message(format!("(wave {number} of {of})"));
        } else {
            tracing::info!(wave = number, of, hosts, tier = wave.tier, "wave begins");
        }
    }

    fn changed(&mut self, report: &HostReport) {
        if self.is_terminal {
            self.failed = match report.result {
                Verdict::Ok => self.failed.saturating_sub(1),
                _ => self.failed + 1,
            };
            self.bar.set_message(format!("({} failed)", self.failed));
        } else {
            log(report);
        }
    }

    fn retrying(&mut self, target: &Target, attempts: u32, fault: &Fault, delay: Duration) {
        if self.is_terminal {
            self.bar
                .set_message(format!("({}: {fault}; again in {})", target.name, seconds(delay)));
        } else if attempts == 1 {
            let result = fault.verdict();
            tracing::warn!(host = %target.name, %result, error = %fault, "host is not up yet, trying again");
        } else {
            tracing::debug!(host = %target.name, attempts, error = %fault, "still not up, trying again");
        }
    }

    fn out_of_sight(&mut self, target: &Target, fault: &Fault) {
        tracing::warn!(
            host = %target.name,
            error = %fault,
            "host was drained, and has gone since: if it boots before the databases stop, what depends on them may run there"
        );
    }
}

/// One line for a host that has its result.
fn log(report: &HostReport) {
    let (host, result, elapsed_ms) = (&report.host, report.result, report.elapsed_ms);
    match &report.remedy {
        None => tracing::info!(
            %host,
            %result,
            units = table::count_units(report),
            elapsed_ms,
            "host is done"
        ),
        Some(remedy) => tracing::error!(
            %host,
            %result,
            units = table::count_units(report),
            elapsed_ms,
            attempts = report.attempts,
            error = report.message,
            remedy = &**remedy,
            "host has failed"
        ),
    }
}
