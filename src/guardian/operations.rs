//! Which drain or undrain is under way, who waits for it, and what becomes of the next one. A part of [`super::core`]; pure.
//!
//! Invariants:
//! - At most one operation is under way. A command of the same kind joins it; one of the other kind supersedes
//!   it, and those who waited for it are told so.
//! - Every command gets exactly one answer.
//! - The generations that are acted on never decrease.

use std::time::Duration;

use tokio::time::Instant;

use super::core::Effect;
use crate::protocol::{Action, LastCommand, Response, Status, UnitReport};
use crate::units::millis;

/// Who waits for an answer. The shell knows which connection that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Which operation an outcome belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OperationId(pub u64);

/// What changes the state of the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Stop what depends on the databases.
    Drain,
    /// Start it.
    Undrain,
}

impl Direction {
    /// The word on the wire.
    pub const fn action(self) -> Action {
        match self {
            Self::Drain => Action::Drain,
            Self::Undrain => Action::Undrain,
        }
    }
}

/// What became of an operation, as the units room tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it came about.
    pub status: Status,
    /// What happened, for people.
    pub message: String,
    /// The dependents and their states, where they are known.
    pub units: Option<Vec<UnitReport>>,
}

struct Current {
    id: OperationId,
    direction: Direction,
    began: Instant,
    /// And what they have asked for: a hold is a drain.
    waiting: Vec<(Ticket, Action)>,
}

struct Last {
    /// What was asked for: a hold is a drain.
    action: Action,
    came: Instant,
    took: Option<Duration>,
    status: Option<Status>,
    message: String,
}

/// The state of all that. See the module for its invariants.
#[derive(Default)]
pub struct Operations {
    generation: Option<u64>,
    current: Option<Current>,
    last: Option<Last>,
    operations: u64,
}

impl Operations {
    /// A guardian that starts, and remembers `generation` from its last life.
    pub fn new(generation: Option<u64>) -> Self {
        Self {
            generation,
            ..Self::default()
        }
    }

    /// The highest generation seen.
    pub fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// What is under way.
    pub fn current(&self) -> Option<Direction> {
        self.current.as_ref().map(|c| c.direction)
    }

    /// What was last commanded, for `status`.
    pub fn last_command(&self, now: Instant) -> Option<LastCommand> {
        self.last.as_ref().map(|last| LastCommand {
            action: last.action,
            by: None,
            status: last.status,
            message: last.message.clone(),
            elapsed_ms: millis(last.took.unwrap_or(now.saturating_duration_since(last.came))),
            age_ms: millis(now.saturating_duration_since(last.came)),
        })
    }

    /// Whether a command of this `generation` may be carried out. If so it is the highest one seen.
    ///
    /// # Errors
    /// The answer, when it is stale.
    pub(super) fn check(&mut self, action: Action, generation: Option<u64>) -> Result<(), Box<Response>> {
        match (generation, self.generation) {
            (Some(new), Some(seen)) if new < seen => Err(stale(action, new, seen).into()),
            (Some(new), _) => {
                self.generation = Some(new);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Begins, for this reason, or joins what is under way. Whoever waits, for the answer to which action, gets it at the end.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        direction: Direction,
        waiting: Option<(Ticket, Action)>,
        why: String,
    ) -> Vec<Effect> {
        if let Some(current) = &mut self.current
            && current.direction == direction
        {
            current.waiting.extend(waiting);
            return Vec::new();
        }
        let mut effects = Vec::new();
        if let Some(old) = self.current.take() {
            effects.push(Effect::Abandon(old.id));
            let message = format!(
                "superseded: {} came while this {} was under way",
                waiting.map_or(direction.action(), |(_, action)| action),
                old.direction.action()
            );
            let took = millis(now.saturating_duration_since(old.began));
            effects.extend(old.waiting.into_iter().map(|(ticket, action)| {
                let mut response = Response::new(action, Status::Error, message.clone());
                response.elapsed_ms = Some(took);
                Effect::Answer(ticket, response.into())
            }));
        }
        self.operations += 1;
        let id = OperationId(self.operations);
        self.current = Some(Current {
            id,
            direction,
            began: now,
            waiting: waiting.into_iter().collect(),
        });
        self.last = Some(Last {
            action: waiting.map_or(direction.action(), |(_, action)| action),
            came: now,
            took: None,
            status: None,
            message: String::new(),
        });
        effects.push(Effect::Begin(id, direction, why));
        effects
    }

    /// An operation is over: which it was, and the answers. Nothing when it was abandoned: nobody waits for it.
    pub(super) fn finished(
        &mut self,
        now: Instant,
        operation: OperationId,
        outcome: Outcome,
    ) -> Option<(Direction, Vec<Effect>)> {
        let current = self.current.take_if(|c| c.id == operation)?;
        let took = now.saturating_duration_since(current.began);
        if let Some(last) = &mut self.last {
            last.took = Some(took);
            last.status = Some(outcome.status);
            last.message.clone_from(&outcome.message);
        }
        let mut response = Response::new(current.direction.action(), outcome.status, outcome.message);
        response.elapsed_ms = Some(millis(took));
        if let Some(units) = outcome.units {
            response = response.with_units(units);
        }
        let answers = current.waiting.into_iter().map(|(ticket, action)| {
            let mut response = response.clone();
            response.action = action;
            Effect::Answer(ticket, response.into())
        });
        Some((current.direction, answers.collect()))
    }
}

fn stale(action: Action, new: u64, seen: u64) -> Response {
    let message = format!(
        "stale: generation {new} is older than {seen}, which this guardian has already seen; \
         nothing was done; send a generation of at least {seen}"
    );
    let mut response = Response::new(action, Status::Error, message);
    response.generation = Some(seen);
    response
}
