//! What a guardian wants for its host, and why: the commands that it was given, what its own probes see of the databases,
//! and the hold that somebody put on it. Decides with no clock, no socket and no unit; `manager` is the shell.
//!
//! Invariants, checked after every step by `tests/simulation`:
//! - Every command gets exactly one answer, and at most one operation is under way ([`Operations`]).
//! - No command with a generation below the highest one seen has any effect; generations are remembered before they are acted on.
//! - A drain by command is not undone by the guardian unless it has seen the databases gone since.
//! - Nothing is started by the guardian while a hold is on, nor while the databases do not answer.
//! - When the databases have been healthy for long enough after an outage, and no hold is on, the host is being undrained.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::operations::{Direction, OperationId, Operations, Outcome, Ticket};
use crate::protocol::{Action, LastCommand, Response, Status};

/// How long databases that say nothing at all (a network that is cut looks like that) must do so until that is an outage. One that
/// says that it goes down, or whose port is closed, needs no confirmation.
const SILENCE: Duration = Duration::from_secs(3);
/// How long the databases must be ready until an outage is over, and the next one has a grace of its own.
const STEADY: Duration = Duration::from_secs(5);
/// An outage this soon after the guardian's own undrain makes the next one wait twice as long.
const RELAPSE: Duration = Duration::from_secs(600);
/// Databases that come and go must be ready for twice as long each time that they have gone again, but for the first, and no longer than this: they may be
/// down for seconds that no look falls into, so that two moments look like one.
const FLAPPING_HEALING: Duration = Duration::from_secs(60);
/// The longest that relapses make it wait.
const LONGEST_HEALING: Duration = Duration::from_secs(300);
/// Undrains within [`RELAPSE`] after which a drain by command is nothing unusual. From the next on databases crash again and again: the host waits for
/// longer than its coordinator does (`coordinator::damping`), which knows better, and would otherwise be overtaken.
const UNDRAINS_FREE: u32 = 4;
/// How often a host that should have nothing running is looked at while the databases are lost.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// When an operation that failed is tried again by the guardian itself; that doubles each time, and it gives up after so many: a unit
/// that is broken needs a person, and one that a person has stopped meanwhile should not come back again and again.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRIES: u32 = 5;
/// More than that often twice as long is [`LONGEST_HEALING`] anyway.
const RELAPSES_MAX: u32 = 10;

/// What a guardian does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repairs {
    /// Databases that are lost for this long, and nobody has drained: drain.
    pub drain_after: Option<Duration>,
    /// Databases that are healthy for this long after an outage, and nobody has undrained: undrain.
    pub undrain_after: Option<Duration>,
}

impl Repairs {
    /// Commands only: a guardian with no probes.
    pub const NONE: Self = Self {
        drain_after: None,
        undrain_after: None,
    };
}

/// What the probes say of all databases together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All would serve a query.
    Ready,
    /// One of them is down, and its host says so: a closed port, a shutdown, a start.
    Down,
    /// One of them says nothing at all.
    Silent,
    /// One of them answers, but not as one that is ready: a wrong password, no slot left, a name that nobody knows. That is
    /// no reason to stop what works, and none to start what does not.
    Unclear,
}

impl Health {
    /// Of two databases together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let weight = |health| match health {
            Self::Ready => 0,
            Self::Unclear => 1,
            Self::Silent => 2,
            Self::Down => 3,
        };
        if weight(other) > weight(self) { other } else { self }
    }

    fn is_lost(self) -> bool {
        matches!(self, Self::Down | Self::Silent)
    }
}

/// How closely the databases must be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// All is well: whether they are there.
    Calm,
    /// The same, more often: the host is drained, and they may go.
    Close,
    /// They are not well: whether a query would be served.
    Full,
}

/// Who wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A coordinator.
    Command,
    /// This guardian, by what its probes saw.
    Probes,
}

/// What is wanted for the host, a hold left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Standing {
    /// As the boot or an administrator left it.
    #[default]
    Unknown,
    /// The dependents run.
    Undrained {
        /// Who wanted it.
        by: By,
    },
    /// The dependents are stopped.
    Drained {
        /// Who wanted it.
        by: By,
        /// Whether the databases were seen gone since.
        outage: bool,
    },
}

/// Somebody holds the host down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Why, in the words of whoever did it.
    pub reason: String,
    /// When it ends by itself.
    pub until: Option<Instant>,
    /// The same by the calendar: for people, and for the time after a boot.
    pub until_wall: Option<SystemTime>,
}

impl Hold {
    fn shown(&self) -> String {
        match self.until_wall {
            Some(until) => format!(
                "held until {}: {}",
                humantime::format_rfc3339_seconds(until),
                self.reason
            ),
            None => format!("held until it is released: {}", self.reason),
        }
    }
}

/// What must outlive the guardian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memo {
    /// The highest generation seen.
    pub generation: Option<u64>,
    /// Only within one boot: after another one, what runs is what that boot has started.
    pub standing: Standing,
    /// Whether what leads there is not over yet: after a restart it is begun again. Within one boot, too.
    pub unfinished: bool,
    /// Over boots, too.
    pub hold: Option<Hold>,
}

/// What happens to a guardian.
#[derive(Clone, Debug)]
pub enum Event {
    /// An authenticated peer wants a drain or an undrain.
    Command {
        /// Who waits for the answer.
        ticket: Ticket,
        /// What to do.
        direction: Direction,
        /// How old the command is, when it says so.
        generation: Option<u64>,
    },
    /// An authenticated peer holds the host down.
    Hold {
        /// Who waits for the answer.
        ticket: Ticket,
        /// How old the command is, when it says so.
        generation: Option<u64>,
        /// Why, and until when.
        hold: Hold,
    },
    /// An authenticated peer ends a hold.
    Release {
        /// Who waits for the answer.
        ticket: Ticket,
        /// How old the command is, when it says so.
        generation: Option<u64>,
    },
    /// An operation is over.
    Finished {
        /// Which one.
        operation: OperationId,
        /// What became of it.
        outcome: Outcome,
    },
    /// The probes have seen something.
    Health(Health),
    /// What was asked for by [`Effect::Look`]: whether the target or anything that depends on it runs.
    Looked {
        /// It does.
        running: bool,
    },
    /// The time of [`Core::wake_at`] has come.
    Time,
}

/// What a guardian does about it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write this down, before anything that follows.
    Remember(Box<Memo>),
    /// Stop waiting for this operation. What it set in motion is overtaken by the one that begins next.
    Abandon(OperationId),
    /// Begin, for this reason.
    Begin(OperationId, Direction, String),
    /// Look whether anything runs.
    Look,
    /// Answer.
    Answer(Ticket, Box<Response>),
}

/// The state of all that. See the module for its invariants.
pub struct Core {
    repairs: Repairs,
    operations: Operations,
    standing: Standing,
    hold: Option<Hold>,
    health: Option<Health>,
    /// The last time that the databases were not lost.
    last_answer: Option<Instant>,
    /// Since when they are ready without a break.
    ready_since: Option<Instant>,
    /// Since when they say nothing, without a break.
    silent_since: Option<Instant>,
    /// Since when they are not well: it is over only when they have been ready for [`STEADY`].
    outage_since: Option<Instant>,
    /// When this guardian has undrained by itself, and how often an outage came soon after that.
    own_undrain: Option<Instant>,
    relapses: u32,
    /// When this host was undrained, by whomever: the last [`RELAPSES_MAX`] times.
    undrains: VecDeque<Instant>,
    /// How many of them were within [`RELAPSE`] when it was drained by command.
    undrains_before: u32,
    /// How often they were ready in this outage, and gone again.
    flaps: u32,
    look_at: Option<Instant>,
    retry_at: Option<Instant>,
    retries: u32,
}

impl Core {
    /// A guardian that starts, and remembers `memo` from its last life. What it does at once is in the effects.
    pub fn start(now: Instant, repairs: Repairs, memo: Memo) -> (Self, Vec<Effect>) {
        let mut core = Self {
            repairs,
            operations: Operations::new(memo.generation),
            standing: memo.standing,
            hold: memo.hold.clone(),
            health: None,
            last_answer: None,
            ready_since: None,
            silent_since: None,
            outage_since: None,
            own_undrain: None,
            relapses: 0,
            undrains: VecDeque::new(),
            undrains_before: 0,
            flaps: 0,
            look_at: None,
            retry_at: None,
            retries: 0,
        };
        let mut effects = Vec::new();
        let over = |hold: &Hold| hold.until.is_some_and(|until| now >= until);
        if let Some(hold) = core.hold.as_ref().filter(|hold| !over(hold)) {
            // What has started it, a boot or a person, did not know of the hold.
            let why = hold.shown();
            effects = core.operations.begin(now, Direction::Drain, None, why);
        } else if let Some(direction) = core.wanted().filter(|_| memo.unfinished && core.hold.is_none()) {
            let why = format!(
                "this guardian ended before the last {} was over",
                direction.action()
            );
            effects = core.operations.begin(now, direction, None, why);
        } else if matches!(core.standing, Standing::Drained { .. }) {
            // Somebody may have started it while we were away.
            effects.push(Effect::Look);
        }
        effects.extend(core.settle(now));
        if core.memo() != memo {
            effects.insert(0, Effect::Remember(core.memo().into()));
        }
        (core, effects)
    }

    /// The highest generation seen.
    pub fn generation(&self) -> Option<u64> {
        self.operations.generation()
    }

    /// What was last commanded, for `status`.
    pub fn last_command(&self, now: Instant) -> Option<LastCommand> {
        self.operations.last_command(now)
    }

    /// What is under way.
    pub fn current(&self) -> Option<Direction> {
        self.operations.current()
    }

    /// What is wanted for the host.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The hold that is on.
    pub fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// What the probes have seen last.
    pub fn health(&self) -> Option<Health> {
        self.health
    }

    /// How closely the databases must be watched.
    pub fn attention(&self) -> Attention {
        if self.outage_since.is_some() || self.awaits_undrain() {
            Attention::Full
        } else if matches!(self.standing, Standing::Drained { .. }) {
            Attention::Close
        } else {
            Attention::Calm
        }
    }

    /// Whether the operation under way is one that failed, and is tried again.
    pub fn is_retrying(&self) -> bool {
        self.retries > 0
    }

    /// What must outlive this guardian.
    pub fn memo(&self) -> Memo {
        Memo {
            generation: self.operations.generation(),
            standing: self.standing,
            unfinished: self.operations.current().is_some() || self.retry_at.is_some(),
            hold: self.hold.clone(),
        }
    }

    /// In one line, for people: what is wanted, and why.
    pub fn shown(&self) -> String {
        let under_way = match self.operations.current() {
            Some(direction) => format!("{} under way; ", direction.action()),
            None => String::new(),
        };
        let standing = match (&self.hold, self.standing) {
            (Some(hold), _) => hold.shown(),
            (None, Standing::Unknown) => "no command yet".to_owned(),
            (None, Standing::Undrained { by: By::Command }) => "undrained by command".to_owned(),
            (None, Standing::Undrained { by: By::Probes }) => {
                "undrained: the databases answer again".to_owned()
            }
            (
                None,
                Standing::Drained {
                    by: By::Command,
                    outage: false,
                },
            ) => "drained by command; the databases were not seen gone since".to_owned(),
            (
                None,
                Standing::Drained {
                    by: By::Command,
                    outage: true,
                },
            ) => "drained by command".to_owned(),
            (None, Standing::Drained { by: By::Probes, .. }) => "drained: the databases were lost".to_owned(),
        };
        format!("{under_way}{standing}")
    }

    /// When something is to be decided although nothing happens: then [`Event::Time`] is due.
    pub fn wake_at(&self) -> Option<Instant> {
        let lost = self.health.is_some_and(Health::is_lost);
        let grace = self
            .outage_since
            .zip(self.repairs.drain_after)
            .filter(|_| lost && self.hold.is_none() && self.operations.current().is_none())
            .map(|(since, after)| (since + after).max(self.look_at.unwrap_or(since)));
        let ready = |for_long| self.ready_since.map(|since| since + for_long);
        let over = self.outage_since.and_then(|_| ready(STEADY));
        let healed = ready(self.healing()).filter(|_| self.awaits_undrain());
        let silence = self
            .silent_since
            .filter(|_| self.is_drained_without_outage())
            .map(|since| since + SILENCE);
        let until = self.hold.as_ref().and_then(|hold| hold.until);
        let retry = self.retry_at.filter(|_| self.operations.current().is_none());
        [grace, over, healed, silence, until, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// Decides.
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let before = self.memo();
        let mut effects = match event {
            Event::Command {
                ticket,
                direction,
                generation,
            } => self.command(now, ticket, direction, generation),
            Event::Hold {
                ticket,
                generation,
                hold,
            } => self.put_hold(now, ticket, generation, hold),
            Event::Release { ticket, generation } => self.release(now, ticket, generation),
            Event::Finished { operation, outcome } => self.finished(now, operation, outcome),
            Event::Health(health) => {
                self.see(now, health);
                Vec::new()
            }
            Event::Looked { running } => self.looked(now, running),
            Event::Time => Vec::new(),
        };
        effects.extend(self.settle(now));
        let memo = self.memo();
        if memo != before {
            effects.insert(0, Effect::Remember(memo.into()));
        }
        effects
    }

    fn command(
        &mut self,
        now: Instant,
        ticket: Ticket,
        direction: Direction,
        generation: Option<u64>,
    ) -> Vec<Effect> {
        let action = direction.action();
        // The same command once more, as a coordinator's second look is.
        let repeated = generation.is_some() && generation == self.operations.generation();
        if let Err(stale) = self.operations.check(action, generation) {
            return vec![Effect::Answer(ticket, stale)];
        }
        // What a hold keeps from being done is no reason to give up what it wants done.
        if self.hold.is_none() || direction == Direction::Drain {
            self.forget_retries();
        }
        match direction {
            Direction::Drain => {
                // A new drain begins a new story: what was seen before it is no reason to undo it.
                if !repeated {
                    self.flaps = 0;
                    self.undrains_before = self.undrains_soon_before(now);
                }
                let seen = repeated && matches!(self.standing, Standing::Drained { outage: true, .. });
                let outage = seen || self.health == Some(Health::Down);
                self.standing = Standing::Drained {
                    by: By::Command,
                    outage,
                };
            }
            Direction::Undrain => {
                self.standing = Standing::Undrained { by: By::Command };
                if let Some(hold) = &self.hold {
                    let message = format!(
                        "{}; nothing was started; it follows when the hold ends, or now with `io-coordinator release`",
                        hold.shown()
                    );
                    let mut response = Response::new(action, Status::Error, message);
                    response.held = Some(true);
                    return vec![Effect::Answer(ticket, response.into())];
                }
                if !repeated {
                    self.note_undrain(now);
                }
                // Told by one who knows: what the probes saw before is over, and if they still see it, it begins now.
                self.last_answer = None;
                // A drain that comes before the next look must not be undone for an outage that is over.
                if self.health.is_some_and(Health::is_lost) {
                    self.health = None;
                    self.silent_since = None;
                }
                self.flaps = 0;
                self.outage_since = self.outage_since.map(|_| now);
            }
        }
        self.operations.begin(
            now,
            direction,
            Some((ticket, action)),
            format!("{action} commanded"),
        )
    }

    fn put_hold(&mut self, now: Instant, ticket: Ticket, generation: Option<u64>, hold: Hold) -> Vec<Effect> {
        if let Err(stale) = self.operations.check(Action::Hold, generation) {
            return vec![Effect::Answer(ticket, stale)];
        }
        self.forget_retries();
        let why = hold.shown();
        self.hold = Some(hold);
        self.operations
            .begin(now, Direction::Drain, Some((ticket, Action::Hold)), why)
    }

    fn release(&mut self, now: Instant, ticket: Ticket, generation: Option<u64>) -> Vec<Effect> {
        if let Err(stale) = self.operations.check(Action::Release, generation) {
            return vec![Effect::Answer(ticket, stale)];
        }
        if self.hold.take().is_none() {
            let response = Response::new(Action::Release, Status::Ok, "there was no hold; nothing was done");
            return vec![Effect::Answer(ticket, response.into())];
        }
        self.after_hold(now, Some(ticket))
    }

    /// A hold is over: the host goes where the rest of the fleet is.
    fn after_hold(&mut self, now: Instant, ticket: Option<Ticket>) -> Vec<Effect> {
        let lost = self.health.is_some_and(Health::is_lost);
        let heals = self.repairs.undrain_after.is_some();
        if lost && heals && !matches!(self.standing, Standing::Drained { .. }) {
            // With the databases away it must not start; it will when they are back.
            self.standing = Standing::Drained {
                by: By::Probes,
                outage: true,
            };
        }
        match self.standing {
            Standing::Drained { by, .. } => {
                let why = match by {
                    By::Command => "the fleet is drained; it starts with the next undrain",
                    By::Probes => "the databases do not answer; it starts when they do",
                };
                let response = Response::new(Action::Release, Status::Ok, format!("released; {why}"));
                ticket
                    .map(|ticket| Effect::Answer(ticket, response.into()))
                    .into_iter()
                    .collect()
            }
            Standing::Undrained { .. } | Standing::Unknown => {
                let ticket = ticket.map(|ticket| (ticket, Action::Release));
                if self.standing == Standing::Unknown {
                    self.standing = Standing::Undrained { by: By::Command };
                }
                self.operations
                    .begin(now, Direction::Undrain, ticket, "the hold is over".to_owned())
            }
        }
    }

    fn finished(&mut self, now: Instant, operation: OperationId, outcome: Outcome) -> Vec<Effect> {
        let failed = outcome.status == Status::Error;
        let Some((direction, effects)) = self.operations.finished(now, operation, outcome) else {
            return Vec::new();
        };
        let ours = match direction {
            Direction::Drain => self.repairs.drain_after,
            Direction::Undrain => self.repairs.undrain_after,
        };
        if !failed || self.wanted() != Some(direction) {
            self.forget_retries();
        } else if ours.is_some() && self.retries < RETRIES {
            self.retry_at = Some(now + RETRY_FIRST * 2u32.pow(self.retries));
            self.retries += 1;
        }
        effects
    }

    fn forget_retries(&mut self) {
        self.retry_at = None;
        self.retries = 0;
    }

    fn wanted(&self) -> Option<Direction> {
        match (&self.hold, self.standing) {
            (Some(_), _) | (None, Standing::Drained { .. }) => Some(Direction::Drain),
            (None, Standing::Undrained { .. }) => Some(Direction::Undrain),
            (None, Standing::Unknown) => None,
        }
    }

    fn see(&mut self, now: Instant, health: Health) {
        if health.is_lost()
            && self.ready_since.is_some()
            && (self.outage_since.is_some() || self.awaits_undrain())
        {
            self.flaps = (self.flaps + 1).min(RELAPSES_MAX);
        }
        self.health = Some(health);
        self.ready_since = (health == Health::Ready).then(|| self.ready_since.unwrap_or(now));
        self.silent_since = (health == Health::Silent).then(|| self.silent_since.unwrap_or(now));
        match health {
            Health::Ready => self.last_answer = Some(now),
            Health::Down | Health::Silent => {
                // It was lost at some moment after its last answer.
                self.outage_since
                    .get_or_insert_with(|| self.last_answer.unwrap_or(now));
                if health == Health::Down {
                    self.mark_outage();
                }
            }
            // Whoever answers is not lost: a grace that began before begins anew.
            Health::Unclear => {
                self.last_answer = Some(now);
                self.outage_since = self.outage_since.map(|_| now);
            }
        }
    }

    fn mark_outage(&mut self) {
        if let Standing::Drained { outage, .. } = &mut self.standing {
            *outage = true;
        }
    }

    fn is_drained_without_outage(&self) -> bool {
        matches!(self.standing, Standing::Drained { outage: false, .. })
    }

    fn awaits_undrain(&self) -> bool {
        self.repairs.undrain_after.is_some()
            && matches!(self.standing, Standing::Drained { outage: true, .. })
    }

    /// How long the databases must be ready until a host that was drained is undrained.
    fn healing(&self) -> Duration {
        let base = self.repairs.undrain_after.unwrap_or(STEADY);
        let relapsed = (base * 2u32.saturating_pow(self.relapses)).min(LONGEST_HEALING.max(base));
        let flapped =
            (base * 2u32.saturating_pow(self.flaps.saturating_sub(1))).min(FLAPPING_HEALING.max(base));
        let crashed = match self.undrains_before.checked_sub(UNDRAINS_FREE) {
            None => base,
            Some(more) => (base * 2u32.saturating_pow(more + 2)).min(LONGEST_HEALING.max(base)),
        };
        relapsed.max(flapped).max(crashed)
    }

    fn note_undrain(&mut self, now: Instant) {
        self.undrains.push_back(now);
        if self.undrains.len() > RELAPSES_MAX as usize {
            self.undrains.pop_front();
        }
    }

    fn undrains_soon_before(&self, now: Instant) -> u32 {
        let soon = |at: &&Instant| now.saturating_duration_since(**at) < RELAPSE;
        u32::try_from(self.undrains.iter().filter(soon).count()).unwrap_or(RELAPSES_MAX)
    }

    fn looked(&mut self, now: Instant, running: bool) -> Vec<Effect> {
        let drained = matches!(self.standing, Standing::Drained { .. });
        if !running || self.operations.current().is_some() || self.hold.is_some() {
            return Vec::new();
        }
        if self.is_lost_for_too_long(now) {
            // What does not stop is tried again at its own pace, and not for ever.
            if self.retry_at.is_some() || self.retries >= RETRIES {
                return Vec::new();
            }
            return self.drain_by_probes(now);
        }
        if drained {
            // Somebody has started it. That is not ours to undo while the databases are there.
            self.standing = Standing::Unknown;
        }
        Vec::new()
    }

    fn is_lost_for_too_long(&self, now: Instant) -> bool {
        let lost = self.health.is_some_and(Health::is_lost);
        let grace = self.outage_since.zip(self.repairs.drain_after);
        lost && grace.is_some_and(|(since, after)| now.saturating_duration_since(since) >= after)
    }

    fn drain_by_probes(&mut self, now: Instant) -> Vec<Effect> {
        // One that is drained once more, because something of it still runs, is the same outage.
        if !matches!(self.standing, Standing::Drained { .. }) {
            let soon = self
                .own_undrain
                .is_some_and(|at| now.saturating_duration_since(at) < RELAPSE);
            self.relapses = if soon {
                (self.relapses + 1).min(RELAPSES_MAX)
            } else {
                0
            };
            // That has a memory of its own.
            self.undrains_before = 0;
        }
        self.standing = Standing::Drained {
            by: By::Probes,
            outage: true,
        };
        let why = "the databases are lost, and nobody has drained this host".to_owned();
        self.operations.begin(now, Direction::Drain, None, why)
    }

    /// What follows from the time alone.
    fn settle(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let has_been =
            |since: Option<Instant>, long| since.is_some_and(|at| now.saturating_duration_since(at) >= long);
        if has_been(self.silent_since, SILENCE) {
            self.mark_outage();
        }
        if let Some(hold) = &self.hold
            && hold.until.is_some_and(|until| now >= until)
        {
            self.hold = None;
            effects.extend(self.after_hold(now, None));
        }
        if has_been(self.ready_since, STEADY) {
            self.outage_since = None;
            if !matches!(self.standing, Standing::Drained { .. }) {
                self.flaps = 0;
            }
        }
        if has_been(self.ready_since, self.healing()) && self.awaits_undrain() {
            self.standing = Standing::Undrained { by: By::Probes };
            self.own_undrain = Some(now);
            self.note_undrain(now);
            self.flaps = 0;
            if self.hold.is_none() {
                let why = "the databases answer again, and nobody has undrained this host".to_owned();
                effects.extend(self.operations.begin(now, Direction::Undrain, None, why));
            }
        }
        if self.is_lost_for_too_long(now) && self.hold.is_none() && self.operations.current().is_none() {
            if matches!(self.standing, Standing::Undrained { .. }) {
                effects.extend(self.drain_by_probes(now));
            } else if self.look_at.is_none_or(|at| now >= at) {
                self.look_at = Some(now + LOOK_EVERY);
                effects.push(Effect::Look);
            }
        }
        if self.retry_at.is_some_and(|at| now >= at) && self.operations.current().is_none() {
            self.retry_at = None;
            match self.wanted() {
                // It would only wait for them.
                Some(Direction::Undrain) if self.health != Some(Health::Ready) => {
                    self.retry_at = Some(now + RETRY_FIRST);
                }
                Some(direction) => {
                    let why = format!("the last {} failed", direction.action());
                    effects.extend(self.operations.begin(now, direction, None, why));
                }
                None => {}
            }
        }
        effects
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
