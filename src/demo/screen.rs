//! What the demo shows: a story that scrolls, and under it a table that is redrawn in place. Where standard output is
//! no terminal, each change of the table is a line of the story.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::Failure;

/// The demo's part of standard output.
pub(super) struct Screen {
    table: Option<MultiProgress>,
    rows: Vec<Row>,
}

struct Row {
    text: String,
    bar: Option<ProgressBar>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let table = io::stdout()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        Self {
            table,
            rows: Vec::new(),
        }
    }

    /// How long to stop at a place where a person would want to look.
    pub(super) fn pause(&self) -> Duration {
        if self.table.is_some() {
            Duration::from_millis(1_500)
        } else {
            Duration::from_millis(200)
        }
    }

    /// A line of the story.
    pub(super) fn say(&mut self, line: &str) -> Result<(), Failure> {
        let written = match &self.table {
            Some(table) => table.println(line),
            None => {
                let mut stdout = io::stdout().lock();
                writeln!(stdout, "{line}").and_then(|()| stdout.flush())
            }
        };
        written.map_err(|error| match error.kind() {
            // Nobody reads on: the end, and nothing to complain about.
            io::ErrorKind::BrokenPipe => Failure {
                code: crate::cli::EXIT_FAILED,
                messages: Vec::new(),
            },
            _ => Failure::failed(format!("cannot write to standard output: {error}")),
        })
    }

    /// What a row of the table says now. Rows come into being when they are first named.
    pub(super) fn row(&mut self, index: usize, text: &str) -> Result<(), Failure> {
        while self.rows.len() <= index {
            let bar = self.table.as_ref().map(|table| {
                let style = ProgressStyle::with_template("{msg}");
                table.add(
                    ProgressBar::no_length()
                        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
                )
            });
            self.rows.push(Row {
                text: String::new(),
                bar,
            });
        }
        let Some(row) = self.rows.get_mut(index).filter(|row| row.text != text) else {
            return Ok(());
        };
        text.clone_into(&mut row.text);
        match &row.bar {
            Some(bar) => {
                bar.set_message(text.to_owned());
                bar.tick();
                Ok(())
            }
            None => self.say(text),
        }
    }

    /// Takes the table away; the story stays.
    pub(super) fn close_table(&mut self) {
        let Some(table) = &self.table else {
            return;
        };
        // When it cannot be cleared, the terminal is gone, and so is the table. First of all, because a bar that is
        // removed is drawn once more.
        let _ = table.clear();
        table.set_draw_target(ProgressDrawTarget::hidden());
        self.rows.clear();
        self.table = None;
    }
}
