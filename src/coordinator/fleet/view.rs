//! What is known of each host, and what has happened. Pure: the time is an argument, in milliseconds since 1970.
//!
//! These types are the documents of `io-coordinator serve`, too (docs/MONITORING.md): all texts are one line each, whatever a guardian
//! has sent.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use super::super::fault::Fault;
use super::super::report::SpokenWire;
use crate::protocol::{Action, Response, Status, UnitReport};

/// Most entries of the history that are kept.
pub const HISTORY_MAX: usize = 200;
/// Most units of one look that are told of as failed, one by one.
const FAILED_MAX: usize = 5;
/// How far apart the time of a command may seem in two answers about it: they are told by their age.
const SAME_COMMAND_MS: u64 = 1_500;

/// Whether the guardian can be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// It has not been reached yet.
    Connecting,
    /// It tells.
    Open,
    /// It cannot be reached, or not any more.
    Lost,
}

/// What a host is in, in one word, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The last drain or undrain failed.
    Failed,
    /// The target is active and something has failed, or it is inactive and something runs.
    Degraded,
    /// A drain is under way.
    Draining,
    /// An undrain is under way.
    Undraining,
    /// Somebody holds it down.
    Held,
    /// Nothing runs.
    Drained,
    /// Its guardian does not say.
    Unknown,
    /// All runs.
    Undrained,
}

impl State {
    /// All of them, the ones that need attention first.
    pub const ALL: [Self; 8] = [
        Self::Failed,
        Self::Degraded,
        Self::Draining,
        Self::Undraining,
        Self::Held,
        Self::Drained,
        Self::Unknown,
        Self::Undrained,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Undraining => "undraining",
            Self::Held => "held",
            Self::Drained => "drained",
            Self::Unknown => "unknown",
            Self::Undrained => "undrained",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One database, as a host's own probes see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Database {
    /// Which: `postgres db:5432`.
    pub name: String,
    /// Whether it would serve a query.
    pub ready: bool,
    /// Why not.
    pub why: Option<String>,
    /// Since when.
    pub since_ms: u64,
}

/// The last drain or undrain of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Command {
    /// Which.
    pub action: Action,
    /// What came of it; none while it is under way.
    pub status: Option<Status>,
    /// In the guardian's words.
    pub message: String,
    /// Who wanted it.
    pub by: Option<String>,
    /// When it came.
    pub at_ms: u64,
    /// How long it took, or has taken so far.
    pub elapsed_ms: u64,
    /// It is one that was done already, once more: a coordinator makes sure of a drain at its end.
    #[serde(skip)]
    repeated: bool,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// As it was named.
    pub name: String,
    /// Where it was reached last.
    pub address: Option<SocketAddr>,
    /// Whether it can be heard, and since when that is so.
    pub link: LinkState,
    /// See `link`.
    pub link_since_ms: u64,
    /// Why it cannot be heard, or does not say more.
    pub fault: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Which version of the wire it speaks.
    pub wire: Option<SpokenWire>,
    /// What it was in when it was last heard.
    pub state: State,
    /// What its guardian wants, and why.
    pub standing: Option<String>,
    /// Whether a hold is on.
    pub held: bool,
    /// The target that it guards.
    pub target: Option<String>,
    /// Its state.
    pub target_state: Option<String>,
    /// What depends on the databases there.
    pub units: Vec<UnitReport>,
    /// How many more there are.
    pub units_omitted: u64,
    /// What it sees of the databases.
    pub databases: Vec<Database>,
    /// The last drain or undrain.
    pub last_command: Option<Command>,
    /// The highest generation that it has seen.
    pub generation: Option<u64>,
    /// Of its guardian.
    pub guardian_version: Option<String>,
    /// When it was last heard; of one that is heard now, when it last had something to tell.
    pub seen_ms: Option<u64>,
}

/// How much somebody should care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It went as it should.
    Info,
    /// It may be worth a look.
    Warning,
    /// Something failed.
    Error,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When.
    pub at_ms: u64,
    /// Where.
    pub host: String,
    /// What, in two or three words.
    pub what: String,
    /// Who wanted it.
    pub by: Option<String>,
    /// More words.
    pub message: String,
    /// How much somebody should care.
    pub level: Level,
}

/// What one learns of a host.
#[derive(Debug)]
pub enum Event {
    /// Its guardian was reached.
    Opened {
        /// Where.
        address: Option<SocketAddr>,
        /// How it is spoken to.
        wire: Option<SpokenWire>,
    },
    /// What its guardian says of itself.
    Told(Box<Response>),
    /// It is there, and too old to say more.
    Alive,
    /// It cannot be reached, or not any more.
    Lost(Fault),
    /// Somebody has given it a command here.
    Asked {
        /// Which.
        action: Action,
        /// Who.
        by: String,
    },
    /// A command that was given here has failed.
    Refused {
        /// Which.
        action: Action,
        /// Who gave it.
        by: String,
        /// Why.
        message: String,
    },
}

/// What came of an [`Event`], for those who are told as it happens.
#[derive(Debug, Default)]
pub struct Learned {
    /// Whether its host is another one now.
    pub changed: bool,
    /// What is new in the history, the oldest first.
    pub entries: Vec<Entry>,
}

/// All that is known.
#[derive(Debug)]
pub struct Fleet {
    hosts: Vec<Host>,
    history: VecDeque<Entry>,
    /// How often a link was lost that was open.
    pub links_lost: u64,
    /// How often a guardian has told something.
    pub told: u64,
}

impl Fleet {
    /// Hosts of these names, of which nothing is known.
    pub fn new(names: impl IntoIterator<Item = String>, now_ms: u64) -> Self {
        let hosts = names.into_iter().map(|name| Host {
            name,
            address: None,
            link: LinkState::Connecting,
            link_since_ms: now_ms,
            fault: None,
            remedy: None,
            wire: None,
            state: State::Unknown,
            standing: None,
            held: false,
            target: None,
            target_state: None,
            units: Vec::new(),
            units_omitted: 0,
            databases: Vec::new(),
            last_command: None,
            generation: None,
            guardian_version: None,
            seen_ms: None,
        });
        Self {
            hosts: hosts.collect(),
            history: VecDeque::new(),
            links_lost: 0,
            told: 0,
        }
    }

    /// The hosts, in the order of their names when this was made.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What has happened, the newest first.
    pub fn history(&self) -> impl Iterator<Item = &Entry> {
        self.history.iter()
    }

    /// How many hosts are in which state. Those that cannot be heard are counted as lost alone: what they are in is not known.
    pub fn counts(&self) -> (Vec<(State, usize)>, usize) {
        let open = |host: &&Host| host.link == LinkState::Open;
        let of = |state| {
            self.hosts
                .iter()
                .filter(open)
                .filter(|host| host.state == state)
                .count()
        };
        let counts = State::ALL.map(|state| (state, of(state)));
        let lost = self.hosts.len() - self.hosts.iter().filter(open).count();
        (counts.into(), lost)
    }

    /// Learns `event` of host number `at`.
    pub fn on(&mut self, now_ms: u64, at: usize, event: Event) -> Learned {
        let Some(host) = self.hosts.get_mut(at) else {
            return Learned::default();
        };
        let mut changed = true;
        let mut notes = Notes {
            now_ms,
            host: host.name.clone(),
            entries: Vec::new(),
        };
        match event {
            Event::Opened { address, wire } => {
                if host.link == LinkState::Lost {
                    notes.add("reached again", None, String::new(), Level::Info);
                }
                host.address = address.or(host.address);
                host.wire = wire;
                host.link = LinkState::Open;
                host.link_since_ms = now_ms;
                (host.fault, host.remedy) = (None, None);
                host.seen_ms = Some(now_ms);
            }
            Event::Told(response) => {
                self.told += 1;
                host.seen_ms = Some(now_ms);
                host.learn(now_ms, *response, &mut notes);
            }
            Event::Alive => {
                host.seen_ms = Some(now_ms);
                host.fault = Some("its guardian answers pings only".to_owned());
                host.remedy = Some("update io-guardian there, or look at its units on that host".to_owned());
            }
            Event::Lost(fault) => {
                changed = host.link != LinkState::Lost || host.fault.as_deref() != Some(&fault.to_string());
                if host.link != LinkState::Lost {
                    if host.link == LinkState::Open {
                        self.links_lost += 1;
                        host.seen_ms = Some(now_ms);
                    }
                    host.link = LinkState::Lost;
                    host.link_since_ms = now_ms;
                    notes.add("lost", None, fault.to_string(), Level::Warning);
                }
                host.fault = Some(fault.to_string());
                host.remedy = Some(fault.remedy().to_owned());
            }
            Event::Asked { action, by } => {
                changed = false;
                notes.add(
                    &format!("{action} asked for"),
                    Some(by),
                    String::new(),
                    Level::Info,
                );
            }
            Event::Refused { action, by, message } => {
                changed = false;
                notes.add(&format!("{action} failed"), Some(by), message, Level::Error);
            }
        }
        for entry in &notes.entries {
            self.history.push_front(entry.clone());
        }
        self.history.truncate(HISTORY_MAX);
        Learned {
            changed,
            entries: notes.entries,
        }
    }
}

/// What has happened to one host at one moment.
struct Notes {
    now_ms: u64,
    host: String,
    entries: Vec<Entry>,
}

impl Notes {
    fn add(&mut self, what: &str, by: Option<String>, message: String, level: Level) {
        self.entries.push(Entry {
            at_ms: self.now_ms,
            host: self.host.clone(),
            what: what.to_owned(),
            by,
            message,
            level,
        });
    }
}

impl Host {
    /// How many of its units are in which state, in the order in which the states come.
    pub fn unit_states(&self) -> Vec<(&str, u32)> {
        let mut counts: Vec<(&str, u32)> = Vec::new();
        for unit in &self.units {
            match counts.iter_mut().find(|(state, _)| *state == unit.state) {
                Some((_, count)) => *count += 1,
                None => counts.push((&unit.state, 1)),
            }
        }
        counts
    }

    fn learn(&mut self, now_ms: u64, told: Response, notes: &mut Notes) {
        let is_first = self.target.is_none();
        let held = told.held.unwrap_or(false);
        let same_generation = told.generation.is_some() && told.generation == self.generation;
        let command = told.last_command.map(|last| {
            let mut command = Command {
                action: last.action,
                status: last.status,
                message: last.message,
                by: last.by,
                at_ms: now_ms.saturating_sub(last.age_ms),
                elapsed_ms: last.elapsed_ms,
                repeated: false,
            };
            command.repeated = self.last_command.as_ref().is_some_and(|before| {
                if command.is(before) {
                    before.repeated
                } else {
                    same_generation && before.action == command.action && before.status == Some(Status::Ok)
                }
            });
            command
        });
        if let Some(command) = &command {
            // A hold is told with its reason.
            let reason = told
                .standing
                .as_ref()
                .filter(|_| held && command.action == Action::Hold);
            note_command(self.last_command.as_ref(), command, reason, is_first, notes);
        }
        let databases: Vec<Database> = told
            .databases
            .into_iter()
            .flatten()
            .map(|database| Database {
                name: database.name,
                ready: database.ready,
                why: database.why,
                since_ms: now_ms.saturating_sub(database.age_ms),
            })
            .collect();
        note_databases(&self.databases, &databases, notes);
        let last = command.as_ref().map(|command| command.action);
        if self.held && !held && last != Some(Action::Release) {
            let words = told.standing.clone().unwrap_or_default();
            notes.add("hold is over", None, words, Level::Info);
        }
        self.last_command = command.or(self.last_command.take());
        self.databases = databases;
        self.held = held;
        self.standing = told.standing;
        self.target = told.target.or(self.target.take());
        self.generation = told.generation.or(self.generation);
        self.guardian_version = told.version.or(self.guardian_version.take());
        if told.status == Status::Error {
            // Its units could not be read: what was known of them is not known any more.
            self.fault = Some(told.message);
            self.remedy = Some("see `journalctl -u io-guardian` on that host".to_owned());
            self.target_state = None;
            self.units = Vec::new();
            self.units_omitted = 0;
        } else {
            (self.fault, self.remedy) = (None, None);
            let units = told.units.unwrap_or_default();
            let moves = self
                .last_command
                .as_ref()
                .is_some_and(|last| last.status.is_none());
            if !is_first && !moves {
                note_units(&self.units, &units, notes);
            }
            self.target_state = told.target_state;
            self.units = units;
            self.units_omitted = told.units_omitted.unwrap_or_default();
        }
        self.state = self.judge();
    }

    fn judge(&self) -> State {
        let runs = self.units.iter().any(|unit| !unit.is_stopped());
        let repeated = self.last_command.as_ref().is_some_and(|last| last.repeated);
        match self.last_command.as_ref().map(|last| (last.action, last.status)) {
            Some((Action::Drain | Action::Hold, None)) if runs || !repeated => return State::Draining,
            Some((Action::Undrain | Action::Release, None)) if !repeated => return State::Undraining,
            Some((_, Some(Status::Error))) => return State::Failed,
            _ => {}
        }
        let failed = self.units.iter().any(|unit| unit.state == "failed");
        match self.target_state.as_deref() {
            _ if self.held && !runs => State::Held,
            Some("active") if !failed => State::Undrained,
            Some("inactive" | "failed") if !runs => State::Drained,
            Some(_) => State::Degraded,
            None => State::Unknown,
        }
    }
}

impl Command {
    /// Whether it is the one that was told of before.
    fn is(&self, before: &Self) -> bool {
        before.action == self.action && before.at_ms.abs_diff(self.at_ms) < SAME_COMMAND_MS
    }
}

fn note_command(
    before: Option<&Command>,
    now: &Command,
    reason: Option<&String>,
    is_first: bool,
    notes: &mut Notes,
) {
    let same = before.is_some_and(|before| now.is(before));
    let ended_before = same && before.is_some_and(|before| before.status.is_some());
    // What was over when we came is no news.
    if ended_before || (is_first && now.status.is_some()) {
        return;
    }
    let (what, level) = match now.status {
        None | Some(Status::Ok) if now.repeated => return,
        None if same => return,
        None => ("begun", Level::Info),
        Some(Status::Ok) => ("done", Level::Info),
        Some(Status::Error) => ("failed", Level::Error),
    };
    let words = reason.unwrap_or(&now.message).clone();
    notes.add(&format!("{} {what}", now.action), now.by.clone(), words, level);
}

fn note_databases(before: &[Database], now: &[Database], notes: &mut Notes) {
    for database in now {
        let was = before.iter().find(|was| was.name == database.name);
        match (was, database.ready) {
            (Some(was), ready) if was.ready == ready => {}
            (None, true) => {}
            (Some(_), true) => notes.add("database answers", None, database.name.clone(), Level::Info),
            (_, false) => {
                let why = database.why.as_deref().unwrap_or("not ready");
                notes.add(
                    "database lost",
                    None,
                    format!("{}: {why}", database.name),
                    Level::Warning,
                );
            }
        }
    }
}

/// Units that nobody has told to stop.
fn note_units(before: &[UnitReport], now: &[UnitReport], notes: &mut Notes) {
    let died = now.iter().filter_map(|unit| {
        let was = before.iter().find(|was| was.name == unit.name)?;
        match (was.state.as_str(), unit.state.as_str()) {
            ("failed", "failed") => None,
            (_, "failed") => Some((unit, "unit failed", Level::Error)),
            ("active", "activating") => Some((unit, "unit starts again", Level::Warning)),
            _ => None,
        }
    });
    for (unit, what, level) in died.take(FAILED_MAX) {
        let message = match &unit.result {
            Some(why) => format!("{}: {why}", unit.name),
            None => unit.name.clone(),
        };
        notes.add(what, None, message, level);
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
