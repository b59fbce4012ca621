//! What `io-coordinator top` shows, and what keys do. Pure: a fleet, the time and a size in, a screen out.

use std::fmt::Write;

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState, Wrap};

use crate::coordinator::fleet::{Entry, Fleet, Host, Level, LinkState, State};
use crate::protocol::{Status, UnitReport};

const KEYS: &str = "↑↓ choose   Enter details   / filter   q quit";
/// Lines of the history.
const HISTORY_LINES: u16 = 8;
/// Most units that the details name.
const UNITS_MAX: usize = 40;

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Yes,
    No,
}

/// What somebody has chosen to see.
#[derive(Debug)]
pub(super) struct Screen {
    colors: bool,
    /// The host, by its name: the order changes.
    chosen: Option<String>,
    details: bool,
    filter: String,
    /// The filter is being written.
    filtering: bool,
}

impl Screen {
    pub(super) fn new(colors: bool) -> Self {
        Self {
            colors,
            chosen: None,
            details: false,
            filter: String::new(),
            filtering: false,
        }
    }

    pub(super) fn on_key(&mut self, key: KeyEvent, fleet: &Fleet) -> Done {
        if key.kind == KeyEventKind::Release {
            return Done::No;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') {
                Done::Yes
            } else {
                Done::No
            };
        }
        if self.filtering {
            match key.code {
                KeyCode::Enter => self.filtering = false,
                KeyCode::Esc => (self.filtering, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) => self.filter.push(letter),
                _ => {}
            }
            return Done::No;
        }
        match key.code {
            KeyCode::Char('q') => return Done::Yes,
            KeyCode::Esc if self.details => self.details = false,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => return Done::Yes,
            KeyCode::Char('/') => self.filtering = true,
            KeyCode::Enter => self.details = !self.details,
            KeyCode::Up | KeyCode::Char('k') => self.go(fleet, -1),
            KeyCode::Down | KeyCode::Char('j') => self.go(fleet, 1),
            KeyCode::PageUp => self.go(fleet, -10),
            KeyCode::PageDown => self.go(fleet, 10),
            KeyCode::Home => self.go(fleet, isize::MIN),
            KeyCode::End => self.go(fleet, isize::MAX),
            _ => {}
        }
        Done::No
    }

    fn go(&mut self, fleet: &Fleet, by: isize) {
        let shown = self.shown(fleet);
        let last = shown.len().saturating_sub(1);
        let at = self.at(&shown).saturating_add_signed(by).min(last);
        self.chosen = shown.get(at).map(|host| host.name.clone());
    }

    fn at(&self, shown: &[&Host]) -> usize {
        let chosen = self.chosen.as_deref();
        let at = shown.iter().position(|host| Some(host.name.as_str()) == chosen);
        at.unwrap_or_default()
    }

    /// The hosts that the filter leaves, those that need attention first.
    fn shown<'a>(&self, fleet: &'a Fleet) -> Vec<&'a Host> {
        let wanted = self.filter.to_lowercase();
        let is_wanted = |host: &&Host| {
            let text = format!("{} {}", host.name, word(host)).to_lowercase();
            wanted.split_whitespace().all(|part| text.contains(part))
        };
        in_order(fleet).into_iter().filter(is_wanted).collect()
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>, fleet: &Fleet, now_ms: u64) {
        let history = HISTORY_LINES.min(frame.area().height / 4);
        let [head, hosts, below, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(if self.details {
                frame.area().height / 2
            } else {
                history + 1
            }),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let bold = Style::default().add_modifier(Modifier::BOLD);
        frame.render_widget(Line::styled(sentence(fleet), bold), head);

        let shown = self.shown(fleet);
        let rows = shown.iter().map(|host| self.row(host, now_ms));
        let widths = [
            Constraint::Fill(3),
            Constraint::Length(10),
            Constraint::Fill(3),
            Constraint::Fill(3),
            Constraint::Fill(5),
        ];
        let table = Table::new(rows, widths)
            .header(Row::new(["HOST", "STATE", "UNITS", "DATABASES", "LAST COMMAND"]).style(bold))
            .row_highlight_style(Style::default().add_modifier(Modifier::REVERSED));
        let mut state = TableState::default().with_selected((!shown.is_empty()).then(|| self.at(&shown)));
        frame.render_stateful_widget(table, hosts, &mut state);

        let chosen = shown.get(self.at(&shown));
        let (title, lines) = match chosen {
            Some(host) if self.details => (host.name.as_str(), details(host, now_ms)),
            _ => (
                "what happened",
                fleet
                    .history()
                    .take(usize::from(history))
                    .map(|entry| happened(entry, now_ms))
                    .collect(),
            ),
        };
        let lines: Vec<Line<'_>> = lines.into_iter().map(Line::raw).collect();
        let block = Block::default().borders(Borders::TOP).title(title.to_owned());
        frame.render_widget(
            Paragraph::new(lines).block(block).wrap(Wrap { trim: false }),
            below,
        );

        let foot_line = if self.filtering || !self.filter.is_empty() {
            format!(
                "/{}{}   Enter keep   Esc all",
                self.filter,
                if self.filtering { "_" } else { "" }
            )
        } else {
            KEYS.to_owned()
        };
        frame.render_widget(Line::raw(foot_line), foot);
    }

    fn row(&self, host: &Host, now_ms: u64) -> Row<'static> {
        let color = match host.link {
            LinkState::Lost => Color::Red,
            LinkState::Connecting => Color::Reset,
            LinkState::Open => match host.state {
                State::Failed | State::Degraded => Color::Red,
                State::Draining | State::Undraining | State::Held | State::Drained => Color::Yellow,
                State::Unknown => Color::Reset,
                State::Undrained => Color::Green,
            },
        };
        let style = if self.colors {
            Style::default().fg(color)
        } else {
            Style::default()
        };
        Row::new([
            Cell::from(host.name.clone()),
            Cell::from(Span::styled(word(host), style)),
            Cell::from(units(host)),
            Cell::from(databases(host)),
            Cell::from(last(host, now_ms)),
        ])
    }
}

/// One word for a host: its state, or that it cannot be heard.
fn word(host: &Host) -> &'static str {
    match host.link {
        LinkState::Connecting => "connecting",
        LinkState::Lost => "lost",
        LinkState::Open => host.state.as_str(),
    }
}

/// Those that need attention first, then by name.
fn in_order(fleet: &Fleet) -> Vec<&Host> {
    let mut hosts: Vec<&Host> = fleet.hosts().iter().collect();
    hosts.sort_by_key(|host| (host.link != LinkState::Lost, host.state, &host.name));
    hosts
}

/// `20 hosts: 18 undrained, 1 draining, 1 lost`.
fn sentence(fleet: &Fleet) -> String {
    let (counts, lost) = fleet.counts();
    let mut parts: Vec<String> = counts
        .iter()
        .rev()
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if lost > 0 {
        parts.push(format!("{lost} lost"));
    }
    format!("{} hosts: {}", fleet.hosts().len(), parts.join(", "))
}

/// `3 active, 1 deactivating`.
fn units(host: &Host) -> String {
    let mut parts: Vec<String> = host
        .unit_states()
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if host.units_omitted > 0 {
        parts.push(format!("{} more", host.units_omitted));
    }
    parts.join(", ")
}

fn databases(host: &Host) -> String {
    let ready = host.databases.iter().filter(|database| database.ready).count();
    match host.databases.iter().find(|database| !database.ready) {
        _ if host.databases.is_empty() => String::new(),
        Some(lost) => format!("{} lost", lost.name),
        None => format!("{ready} ready"),
    }
}

/// `drain ok 3 s ago by 192.0.2.1 v2:92b1ddb6`, or what keeps us from knowing.
fn last(host: &Host, now_ms: u64) -> String {
    if let Some(fault) = &host.fault {
        return fault.clone();
    }
    let Some(last) = &host.last_command else {
        return String::new();
    };
    let word = match last.status {
        None => "under way",
        Some(Status::Ok) => "ok",
        Some(Status::Error) => "failed",
    };
    let by = last
        .by
        .as_deref()
        .map(|by| format!(" by {by}"))
        .unwrap_or_default();
    format!("{} {word}, {} ago{by}", last.action, age(now_ms, last.at_ms))
}

fn age(now_ms: u64, then_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn happened(entry: &Entry, now_ms: u64) -> String {
    let mark = match entry.level {
        Level::Info => ' ',
        Level::Warning => '!',
        Level::Error => 'x',
    };
    let mut line = format!(
        "{:>7} ago {mark} {}: {}",
        age(now_ms, entry.at_ms),
        entry.host,
        entry.what
    );
    // Writing to a String cannot fail.
    if let Some(by) = &entry.by {
        let _ = write!(line, " by {by}");
    }
    if !entry.message.is_empty() {
        let _ = write!(line, ": {}", entry.message);
    }
    line
}

fn details(host: &Host, now_ms: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |name: &str, value: String| lines.push(format!("{name:<9} {value}"));
    let since = age(now_ms, host.link_since_ms);
    add(
        "link",
        format!(
            "{} for {since}",
            match host.link {
                LinkState::Connecting => "connecting",
                LinkState::Open => "open",
                LinkState::Lost => "lost",
            }
        ),
    );
    for (name, value) in [
        ("why", &host.fault),
        ("remedy", &host.remedy),
        ("wanted", &host.standing),
    ] {
        if let Some(value) = value {
            add(name, value.clone());
        }
    }
    if let Some(target) = &host.target {
        add(
            "target",
            format!(
                "{target} {}",
                host.target_state.as_deref().unwrap_or("in an unknown state")
            ),
        );
    }
    for database in &host.databases {
        let state = match &database.why {
            _ if database.ready => "ready".to_owned(),
            Some(why) => why.clone(),
            None => "not ready".to_owned(),
        };
        add(
            "sees",
            format!(
                "{} for {}: {state}",
                database.name,
                age(now_ms, database.since_ms)
            ),
        );
    }
    if let Some(command) = &host.last_command {
        add("last", format!("{}: {}", last(host, now_ms), command.message));
    }
    for unit in host.units.iter().take(UNITS_MAX) {
        let UnitReport {
            name, state, result, ..
        } = unit;
        add(
            "unit",
            match result {
                Some(result) => format!("{name} {state} ({result})"),
                None => format!("{name} {state}"),
            },
        );
    }
    let more = host.units.len().saturating_sub(UNITS_MAX) as u64 + host.units_omitted;
    if more > 0 {
        add("", format!("{more} more"));
    }
    lines
}

/// The same without a terminal.
pub(super) fn plain(fleet: &Fleet, now_ms: u64) -> String {
    let hosts = in_order(fleet);
    let width = hosts
        .iter()
        .map(|host| host.name.chars().count())
        .max()
        .unwrap_or_default()
        .max(4);
    let unit_width = hosts
        .iter()
        .map(|host| units(host).chars().count())
        .max()
        .unwrap_or_default()
        .max(5);
    let mut out = format!(
        "{:width$}  {:10}  {:unit_width$}  LAST COMMAND\n",
        "HOST", "STATE", "UNITS"
    );
    for host in hosts {
        let line = format!(
            "{:width$}  {:10}  {:unit_width$}  {}",
            host.name,
            word(host),
            units(host),
            last(host, now_ms)
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out + &sentence(fleet) + "\n"
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
