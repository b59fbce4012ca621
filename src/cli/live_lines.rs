//! Lines at the end of a terminal that change in place, under a text that scrolls.
//!
//! Six escape codes that every terminal knows, and no library: the one that would do it brings a mathematics
//! library and half a megabyte into a daemon that never draws.

use std::io::{self, Write};

/// The lines. Each write is one write to the terminal, so that nothing flickers.
pub struct LiveLines<W: Write> {
    out: W,
    columns: usize,
    lines: Vec<String>,
    drawn: usize,
}

impl<W: Write> LiveLines<W> {
    /// No lines yet, on `out`, which is a terminal `columns` wide.
    pub fn new(out: W, columns: usize) -> Self {
        Self {
            out,
            columns: columns.max(1),
            lines: Vec::new(),
            drawn: 0,
        }
    }

    /// What a line says from now on; lines come into being when they are first named. Returns whether that is new.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn set(&mut self, index: usize, text: &str) -> io::Result<bool> {
        while self.lines.len() <= index {
            self.lines.push(String::new());
        }
        match self.lines.get_mut(index) {
            Some(line) if line != text => text.clone_into(line),
            _ => return Ok(false),
        }
        self.draw(None).map(|()| true)
    }

    /// Writes a line of the text above the lines.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.draw(Some(text))
    }

    /// Takes the lines away; the text stays.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn clear(&mut self) -> io::Result<()> {
        self.lines.clear();
        self.draw(None)
    }

    fn draw(&mut self, above: Option<&str>) -> io::Result<()> {
        let mut screen = String::new();
        if self.drawn > 0 {
            // Up to the first of our lines, and everything from there on away (ECMA-48: CUU, ED).
            screen.push_str(&format!("\x1b[{}A\r\x1b[J", self.drawn));
        }
        if let Some(text) = above {
            screen.push_str(text);
            screen.push('\n');
        }
        for line in &self.lines {
            // A line that wraps would take two, and the next drawing would begin in the wrong one.
            screen.extend(line.chars().take(self.columns - 1));
            screen.push('\n');
        }
        self.drawn = self.lines.len();
        self.out.write_all(screen.as_bytes())?;
        self.out.flush()
    }
}

/// How wide the terminal is; 80 when it does not say.
pub fn terminal_columns() -> usize {
    terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_change_in_place_and_the_text_scrolls_above_them() {
        let mut out = Vec::new();
        let mut live = LiveLines::new(&mut out, 8);
        assert!(live.set(1, "b").unwrap());
        assert!(live.set(0, "much too long").unwrap());
        assert!(!live.set(0, "much too long").unwrap());
        live.say("text").unwrap();
        live.clear().unwrap();
        let drawn = String::from_utf8(out).unwrap();
        assert_eq!(
            drawn,
            "\nb\n\x1b[2A\r\x1b[Jmuch to\nb\n\x1b[2A\r\x1b[Jtext\nmuch to\nb\n\x1b[2A\r\x1b[J"
        );
    }
}
