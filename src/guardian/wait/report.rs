//! How `wait` tells what it sees: on a terminal a line for each database that changes in place, elsewhere a log line
//! for each change.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::UNLIMITED;
use super::progress::shown;
use crate::cli::{LiveLines, terminal_columns};
use crate::probe::Verdict;
use crate::telemetry;

/// Where the reports go.
pub(super) enum Report {
    /// Standard error is a terminal.
    Terminal(Mutex<Terminal>),
    /// A journal, a pipe or a file.
    Lines,
}

/// A line for each database.
pub(super) struct Terminal {
    lines: LiveLines<io::Stderr>,
    names: Vec<String>,
}

impl Terminal {
    fn set(&mut self, index: usize, text: &str) {
        let name = self.names.get(index).map_or("", String::as_str);
        // When the terminal is gone there is nobody left to tell.
        let _ = self.lines.set(index, &format!("{name}  {text}"));
    }
}

impl Report {
    /// Chooses by what standard error is.
    pub(super) fn start(names: &[String]) -> Self {
        if !std::io::stderr().is_terminal() || telemetry::stderr_is_journal() {
            return Self::Lines;
        }
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let names: Vec<_> = names.iter().map(|name| format!("{name:width$}")).collect();
        let lines = LiveLines::new(io::stderr(), terminal_columns());
        let mut terminal = Terminal { lines, names };
        for index in 0..terminal.names.len() {
            terminal.set(index, "asking");
        }
        Self::Terminal(Mutex::new(terminal))
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
            (Self::Terminal(terminal), verdict) => {
                let text = match verdict {
                    Verdict::Ready => format!("ready after {}", shown(elapsed)),
                    Verdict::NotReady(cause) if of == UNLIMITED => format!("{failed}  {cause}"),
                    Verdict::NotReady(cause) => format!("{failed}/{of}  {cause}"),
                };
                terminal
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .set(index, &text);
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
                let of = (of != UNLIMITED).then_some(of);
                tracing::info!(database, attempt = failed, of, why = %cause, "not ready yet");
            }
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
