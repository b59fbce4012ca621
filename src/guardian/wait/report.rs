//! How `wait` tells what it sees: on a terminal a line for each database that changes in place, elsewhere a log line
//! for each change.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::progress::shown;
use crate::probe::Verdict;
use crate::telemetry;

/// Where the reports go.
pub(super) enum Report {
    /// Standard error is a terminal.
    Terminal(Vec<ProgressBar>),
    /// A journal, a pipe or a file.
    Lines,
}

impl Report {
    /// Chooses by what standard error is.
    pub(super) fn start(names: &[String]) -> Self {
        if !std::io::stderr().is_terminal() || telemetry::stderr_is_journal() {
            return Self::Lines;
        }
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let style = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let lines = names.iter().map(|name| {
            let line = lines.add(ProgressBar::new_spinner().with_style(style.clone()));
            line.set_prefix(format!("{name:width$}"));
            line.set_message("asking");
            line.enable_steady_tick(Duration::from_millis(100));
            line
        });
        Self::Terminal(lines.collect())
    }

    /// An attempt is over. `news` says whether it found something else than the one before.
    pub(super) fn attempt(&self, at: &Attempt<'_>) {
        let Attempt {
            index,
            database,
            failed,
            found_ready,
            of,
            elapsed,
            verdict,
            news,
        } = *at;
        match (self, verdict) {
            // Ready as before: the line says since when.
            (Self::Terminal(_), Verdict::Ready) if !news => {}
            (Self::Terminal(lines), verdict) => {
                if let Some(line) = lines.get(index) {
                    line.set_message(match verdict {
                        Verdict::Ready => format!("ready after {}", shown(elapsed)),
                        Verdict::NotReady(cause) => format!("{failed}/{of}  {cause}"),
                    });
                }
            }
            (Self::Lines, _) if !news => {}
            (Self::Lines, Verdict::Ready) => {
                tracing::info!(
                    database,
                    attempt = failed + found_ready,
                    elapsed = shown(elapsed),
                    "ready"
                );
            }
            (Self::Lines, Verdict::NotReady(cause)) => {
                tracing::info!(database, attempt = failed, of, why = %cause, "not ready yet");
            }
        }
    }

    /// The wait is over. The lines of a terminal stay as they are.
    pub(super) fn end(&self) {
        if let Self::Terminal(lines) = self {
            for line in lines {
                line.abandon();
            }
            // The cursor stays behind the last line; what comes next begins on its own.
            let _ = writeln!(std::io::stderr().lock());
        }
    }
}

/// An attempt that is over.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) index: usize,
    pub(super) database: &'a str,
    /// Attempts that did not find it ready, of at most `of`.
    pub(super) failed: u32,
    /// Attempts that found it ready.
    pub(super) found_ready: u32,
    pub(super) of: u32,
    pub(super) elapsed: Duration,
    pub(super) verdict: &'a Verdict,
    pub(super) news: bool,
}
