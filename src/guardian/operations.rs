//! Which drain or undrain is under way, who waits for it, and what becomes of the next command: the guardian's
//! decisions, with no clock, no socket and no unit.
//!
//! Invariants:
//! - At most one operation is under way. A command of the same kind joins it; one of the other kind supersedes
//!   it, and those who waited for it are told so.
//! - Every command gets exactly one answer.
//! - The generations that are acted on never decrease, and each is remembered before it is acted on.

use std::time::Duration;

use tokio::time::Instant;

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

/// What happens to a guardian.
#[derive(Clone, Debug)]
pub enum Event {
    /// An authenticated peer commands.
    Command {
        /// Who waits for the answer.
        ticket: Ticket,
        /// What to do.
        direction: Direction,
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
}

/// What a guardian does about it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the highest generation down, before anything that follows.
    Remember(u64),
    /// Stop waiting for this operation. What it set in motion is overtaken by the one that begins next.
    Abandon(OperationId),
    /// Begin.
    Begin(OperationId, Direction),
    /// Answer.
    Answer(Ticket, Box<Response>),
}

struct Current {
    id: OperationId,
    direction: Direction,
    began: Instant,
    waiting: Vec<Ticket>,
}

struct Last {
    direction: Direction,
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
            action: last.direction.action(),
            status: last.status,
            message: last.message.clone(),
            elapsed_ms: millis(last.took.unwrap_or(now.saturating_duration_since(last.came))),
            age_ms: millis(now.saturating_duration_since(last.came)),
        })
    }

    /// Decides.
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match event {
            Event::Command {
                ticket,
                direction,
                generation,
            } => self.command(now, ticket, direction, generation),
            Event::Finished { operation, outcome } => self.finished(now, operation, outcome),
        }
    }

    fn command(
        &mut self,
        now: Instant,
        ticket: Ticket,
        direction: Direction,
        generation: Option<u64>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(new) = generation {
            match self.generation {
                Some(seen) if new < seen => {
                    return vec![Effect::Answer(ticket, stale(direction, new, seen).into())];
                }
                Some(seen) if new == seen => {}
                _ => {
                    self.generation = Some(new);
                    effects.push(Effect::Remember(new));
                }
            }
        }
        match &mut self.current {
            Some(current) if current.direction == direction => {
                current.waiting.push(ticket);
                return effects;
            }
            _ => {}
        }
        if let Some(old) = self.current.take() {
            effects.push(Effect::Abandon(old.id));
            let message = format!(
                "superseded: {} came while this {} was under way",
                direction.action(),
                old.direction.action()
            );
            let took = millis(now.saturating_duration_since(old.began));
            effects.extend(old.waiting.into_iter().map(|ticket| {
                let mut response = Response::new(old.direction.action(), Status::Error, message.clone());
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
            waiting: vec![ticket],
        });
        self.last = Some(Last {
            direction,
            came: now,
            took: None,
            status: None,
            message: String::new(),
        });
        effects.push(Effect::Begin(id, direction));
        effects
    }

    fn finished(&mut self, now: Instant, operation: OperationId, outcome: Outcome) -> Vec<Effect> {
        // One that was abandoned may still report: nobody waits for it.
        let Some(current) = self.current.take_if(|c| c.id == operation) else {
            return Vec::new();
        };
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
        current
            .waiting
            .into_iter()
            .map(|ticket| Effect::Answer(ticket, response.clone().into()))
            .collect()
    }
}

fn stale(direction: Direction, new: u64, seen: u64) -> Response {
    let message = format!(
        "stale: generation {new} is older than {seen}, which this guardian has already seen; \
         nothing was done; send a generation of at least {seen}"
    );
    let mut response = Response::new(direction.action(), Status::Error, message);
    response.generation = Some(seen);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn command(ticket: u64, direction: Direction, generation: Option<u64>) -> Event {
        Event::Command {
            ticket: Ticket(ticket),
            direction,
            generation,
        }
    }

    fn ok(message: &str) -> Outcome {
        Outcome {
            status: Status::Ok,
            message: message.to_owned(),
            units: Some(Vec::new()),
        }
    }

    fn finished(id: u64) -> Event {
        Event::Finished {
            operation: OperationId(id),
            outcome: ok("done"),
        }
    }

    fn answers(effects: &[Effect]) -> Vec<(u64, Status, String)> {
        effects
            .iter()
            .filter_map(|e| match e {
                Effect::Answer(t, r) => Some((t.0, r.status, r.message.clone())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_second_drain_joins_and_both_get_the_one_answer() {
        let now = Instant::now();
        let mut ops = Operations::default();
        assert_eq!(
            ops.on(now, command(1, Direction::Drain, None)),
            [Effect::Begin(OperationId(1), Direction::Drain)]
        );
        assert_eq!(ops.on(now, command(2, Direction::Drain, None)), []);
        let effects = ops.on(now + Duration::from_secs(3), finished(1));
        assert_eq!(
            answers(&effects),
            [(1, Status::Ok, "done".into()), (2, Status::Ok, "done".into())]
        );
        let last = ops.last_command(now + Duration::from_secs(5)).unwrap();
        assert_eq!(
            (last.elapsed_ms, last.age_ms, last.status),
            (3_000, 5_000, Some(Status::Ok))
        );
    }

    #[test]
    fn an_undrain_supersedes_a_drain_and_those_who_waited_are_told() {
        let now = Instant::now();
        let mut ops = Operations::default();
        ops.on(now, command(1, Direction::Drain, None));
        let effects = ops.on(now, command(2, Direction::Undrain, None));
        assert_eq!(effects[0], Effect::Abandon(OperationId(1)));
        assert!(
            answers(&effects)[0]
                .2
                .starts_with("superseded: undrain came while this drain")
        );
        assert_eq!(effects[2], Effect::Begin(OperationId(2), Direction::Undrain));
        // The abandoned one reports late: that changes nothing.
        assert_eq!(ops.on(now, finished(1)), []);
        assert_eq!(ops.current(), Some(Direction::Undrain));
    }

    #[test]
    fn a_stale_generation_is_refused_and_a_new_one_remembered_first() {
        let now = Instant::now();
        let mut ops = Operations::new(Some(7));
        let effects = ops.on(now, command(1, Direction::Undrain, Some(6)));
        assert!(answers(&effects)[0].2.contains("generation 6 is older than 7"));
        assert_eq!(
            ops.on(now, command(2, Direction::Drain, Some(7))),
            [Effect::Begin(OperationId(1), Direction::Drain)]
        );
        let effects = ops.on(now, command(3, Direction::Undrain, Some(8)));
        assert_eq!(effects[0], Effect::Remember(8));
        // A command that says nothing of its age is taken: the last one received wins.
        assert!(matches!(
            ops.on(now, command(4, Direction::Drain, None)).last(),
            Some(Effect::Begin(..))
        ));
        assert_eq!(ops.generation(), Some(8));
    }

    proptest! {
        /// Whatever comes in whatever order: one answer for each command, one operation at a time, and no
        /// generation that is acted on is lower than one before it.
        #[test]
        fn every_command_is_answered_exactly_once(steps in proptest::collection::vec((0u8..4, 0u64..6), 0..60)) {
            let now = Instant::now();
            let mut ops = Operations::default();
            let mut asked = 0u64;
            let mut running: Option<u64> = None;
            let mut begun = 0u64;
            let mut highest = 0u64;
            let mut count: BTreeMap<u64, u32> = BTreeMap::new();
            let mut apply = |effects: Vec<Effect>, running: &mut Option<u64>, begun: &mut u64| {
                for effect in effects {
                    match effect {
                        Effect::Begin(id, _) => { assert!(running.is_none()); *running = Some(id.0); *begun = id.0; }
                        Effect::Abandon(id) => { assert_eq!(*running, Some(id.0)); *running = None; }
                        Effect::Answer(t, _) => *count.entry(t.0).or_default() += 1,
                        Effect::Remember(g) => { assert!(g > highest || highest == 0); highest = g; }
                    }
                }
            };
            for (what, number) in steps {
                match what {
                    0 | 1 => {
                        asked += 1;
                        let direction = if what == 0 { Direction::Drain } else { Direction::Undrain };
                        let generation = (number > 2).then_some(number);
                        let effects = ops.on(now, command(asked, direction, generation));
                        apply(effects, &mut running, &mut begun);
                    }
                    2 => if let Some(id) = running.take() {
                        let effects = ops.on(now, finished(id));
                        apply(effects, &mut running, &mut begun);
                    },
                    // A report of an operation long gone.
                    _ => { let effects = ops.on(now, finished(begun.saturating_sub(1 + number))); apply(effects, &mut running, &mut begun); }
                }
            }
            if let Some(id) = running.take() {
                let effects = ops.on(now, finished(id));
                apply(effects, &mut running, &mut begun);
            }
            prop_assert_eq!(count.len() as u64, asked);
            prop_assert!(count.values().all(|&n| n == 1));
        }
    }
}
