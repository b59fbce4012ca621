//! The shell around [`Operations`]: one task that owns it, runs its effects on the units, and answers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::memory::{self, Memory, MemoryError};
use super::operations::{Direction, Effect, Event, OperationId, Operations, Outcome, Ticket};
use crate::protocol::{Action, Response, Status};
use crate::telemetry::notify;
use crate::units::{Settled, Units, UnitsError};

/// How much longer than its deadline an operation may take to report what still moves.
const REPORT_GRACE: Duration = Duration::from_secs(5);
/// How long the units may take to be read for a `status`.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the disk may take to remember a generation before a drain goes on without.
const REMEMBER_TIMEOUT: Duration = Duration::from_secs(2);

/// What the manager is asked.
#[derive(Debug)]
pub(super) enum Message {
    /// Drain or undrain.
    Command {
        /// Which of them.
        direction: Direction,
        /// How old the command is, when it says so.
        generation: Option<u64>,
        /// Gets the answer.
        reply: oneshot::Sender<Box<Response>>,
    },
    /// What is the state of all?
    Status {
        /// Gets the answer.
        reply: oneshot::Sender<Box<Response>>,
    },
    /// Do you make progress? Dropped when answered.
    Alive(oneshot::Sender<()>),
}

type Running = BoxFuture<'static, Outcome>;

/// The task's state.
pub(super) struct Manager {
    units: Arc<dyn Units>,
    operations: Operations,
    command_timeout: Duration,
    memory: Option<Arc<Memory>>,
    writer: Option<JoinHandle<Result<(), MemoryError>>>,
    waiting: HashMap<Ticket, oneshot::Sender<Box<Response>>>,
    tickets: u64,
    running: Option<(OperationId, Direction, Running)>,
}

impl Manager {
    /// A manager of `units`, that remembers in `state_dir`.
    pub(super) fn new(units: Arc<dyn Units>, command_timeout: Duration, state_dir: Option<PathBuf>) -> Self {
        let generation = state_dir.as_deref().and_then(|folder| {
            memory::recall(folder)
                .inspect_err(|error| {
                    tracing::error!(%error, "cannot recall the generation: a stale command may be taken until one with a higher generation comes");
                })
                .ok()
                .flatten()
        });
        Self {
            units,
            operations: Operations::new(generation),
            command_timeout,
            memory: state_dir.map(|folder| Arc::new(Memory::new(folder, generation))),
            writer: None,
            waiting: HashMap::new(),
            tickets: 0,
            running: None,
        }
    }

    /// Runs until every sender of `messages` is gone and nothing is under way.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut open = true;
        while open || self.running.is_some() {
            let ended = async {
                match &mut self.running {
                    Some((_, _, running)) => running.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = messages.recv(), if open => match message {
                    Some(message) => self.message(message).await,
                    None => open = false,
                },
                outcome = ended => {
                    let Some((operation, direction, _)) = self.running.take() else { continue };
                    report(direction, &outcome);
                    let effects = self.operations.on(Instant::now(), Event::Finished { operation, outcome });
                    self.apply(effects).await;
                }
            }
        }
    }

    async fn message(&mut self, message: Message) {
        match message {
            Message::Command {
                direction,
                generation,
                reply,
            } => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.waiting.insert(ticket, reply);
                let event = Event::Command {
                    ticket,
                    direction,
                    generation,
                };
                let effects = self.operations.on(Instant::now(), event);
                self.apply(effects).await;
            }
            Message::Status { reply } => {
                let mut response = Response::new(Action::Status, Status::Ok, String::new());
                response.last_command = self.operations.last_command(Instant::now());
                response.generation = self.operations.generation();
                response.version = Some(env!("CARGO_PKG_VERSION").to_owned());
                response.target = Some(self.units.target().to_owned());
                tokio::spawn(status(self.units.clone(), response, reply));
            }
            Message::Alive(reply) => drop(reply.send(())),
        }
    }

    async fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Remember(generation) => self.remember(generation).await,
                Effect::Abandon(operation) => {
                    self.running.take_if(|(id, _, _)| *id == operation);
                }
                Effect::Begin(operation, direction) => {
                    tracing::info!(action = %direction.action(), unit = self.units.target(), "command begins");
                    notify::status(&format!(
                        "{} of {} under way",
                        direction.action(),
                        self.units.target()
                    ));
                    let work = operate(self.units.clone(), direction, self.command_timeout);
                    self.running = Some((operation, direction, work.boxed()));
                }
                Effect::Answer(ticket, response) => {
                    // Whoever hung up meanwhile needs no answer.
                    self.waiting.remove(&ticket).map(|reply| reply.send(response));
                }
            }
        }
    }

    /// A disk that is full or hangs must not keep the databases waiting for their drain: it is reported, and the
    /// command goes on.
    async fn remember(&mut self, generation: u64) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        if memory.ask(generation) {
            self.writer = Some(tokio::task::spawn_blocking(move || memory.write()));
        }
        // One that was left behind by an earlier command, when the disk was slow, writes this generation too.
        let Some(writer) = &mut self.writer else {
            return;
        };
        let ended = timeout(REMEMBER_TIMEOUT, writer).await;
        if ended.is_ok() {
            self.writer = None;
        }
        let why = match ended {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the disk did not answer within {REMEMBER_TIMEOUT:?}"),
        };
        tracing::error!(
            error = why,
            generation,
            "cannot remember the generation: after a restart a stale command may be taken until one with a higher generation comes"
        );
    }
}

async fn operate(units: Arc<dyn Units>, direction: Direction, limit: Duration) -> Outcome {
    let deadline = Instant::now() + limit;
    let work = match direction {
        Direction::Drain => units.drain(deadline),
        Direction::Undrain => units.undrain(deadline),
    };
    let settled: Result<Settled, UnitsError> = match timeout(limit + REPORT_GRACE, work).await {
        Ok(settled) => settled,
        Err(_) => Err(UnitsError::Unreachable {
            reason: format!("no answer within {:?}", limit + REPORT_GRACE),
        }),
    };
    match settled {
        Ok(settled) => Outcome {
            status: settled.status,
            message: settled.message,
            units: Some(settled.units),
        },
        Err(error) => Outcome {
            status: Status::Error,
            message: error.to_string(),
            units: None,
        },
    }
}

async fn status(units: Arc<dyn Units>, mut response: Response, reply: oneshot::Sender<Box<Response>>) {
    let survey = match timeout(STATUS_TIMEOUT, units.survey()).await {
        Ok(Ok(survey)) => Ok(survey),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the units could not be read within {STATUS_TIMEOUT:?}")),
    };
    match survey {
        Ok(survey) => {
            let running = survey.units.iter().filter(|u| !u.is_stopped()).count();
            response.message = format!(
                "{} is {}; {running} of {} dependents run",
                units.target(),
                survey.target_state,
                survey.units.len()
            );
            response.target_state = Some(survey.target_state);
            response = response.with_units(survey.units);
        }
        Err(why) => {
            response.status = Status::Error;
            response.message = why;
        }
    }
    let _ = reply.send(response.into());
}

fn report(direction: Direction, outcome: &Outcome) {
    let action = direction.action();
    match outcome.status {
        Status::Ok => tracing::info!(%action, why = outcome.message, "command done"),
        Status::Error => tracing::error!(%action, why = outcome.message, "command failed"),
    }
    let word = if outcome.status == Status::Ok {
        "ok"
    } else {
        "failed"
    };
    notify::status(&format!("last command: {action} {word}: {}", outcome.message));
}
