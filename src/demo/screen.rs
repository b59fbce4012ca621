//! What the demo shows: a story that scrolls, and under it a table that is redrawn in place. Where standard output is
//! no terminal, each change of the table is a line of the story.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::cli::{Failure, LiveLines, terminal_columns};

/// The demo's part of standard output.
pub(super) struct Screen {
    table: Option<LiveLines<io::Stdout>>,
    /// The rows, where there is no terminal to keep them.
    rows: Vec<String>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let table = io::stdout()
            .is_terminal()
            .then(|| LiveLines::new(io::stdout(), terminal_columns()));
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
        let written = match &mut self.table {
            Some(table) => table.say(line),
            None => {
                let mut stdout = io::stdout().lock();
                writeln!(stdout, "{line}").and_then(|()| stdout.flush())
            }
        };
        ended(written)
    }

    /// What a row of the table says now. Rows come into being when they are first named.
    pub(super) fn row(&mut self, index: usize, text: &str) -> Result<(), Failure> {
        if let Some(table) = &mut self.table {
            return ended(table.set(index, text).map(|_| ()));
        }
        while self.rows.len() <= index {
            self.rows.push(String::new());
        }
        match self.rows.get_mut(index) {
            Some(row) if row != text => text.clone_into(row),
            _ => return Ok(()),
        }
        self.say(text)
    }

    /// Takes the table away; the story stays.
    pub(super) fn close_table(&mut self) {
        if let Some(mut table) = self.table.take() {
            // When it cannot be cleared, the terminal is gone, and so is the table.
            let _ = table.clear();
        }
        self.rows.clear();
    }
}

fn ended(written: io::Result<()>) -> Result<(), Failure> {
    written.map_err(|error| match error.kind() {
        // Nobody reads on: the end, and nothing to complain about.
        io::ErrorKind::BrokenPipe => Failure {
            code: crate::cli::EXIT_FAILED,
            messages: Vec::new(),
        },
        _ => Failure::failed(format!("cannot write to standard output: {error}")),
    })
}
