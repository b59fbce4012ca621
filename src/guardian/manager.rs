//! The shell around [`Core`]: one task that owns it, runs its effects on the units, and answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::core::{Attention, Core, Effect, Event, Health, Hold, Memo, Repairs, Standing};
use super::memory::{self, Folders, Memory, MemoryError, Remembered, WrittenHold};
use super::operations::{Direction, OperationId, Outcome, Ticket};
use super::watch::{Seen, health};
use crate::probe::Verdict;
use crate::protocol::{Action, DatabaseReport, HoldTerms, LastCommand, Response, Status};
use crate::telemetry::notify;
use crate::units::{Settled, Units, UnitsError, millis};

/// How much longer than its deadline an operation may take to report what still moves.
const REPORT_GRACE: Duration = Duration::from_secs(5);
/// How long the units may take to be read for a `status`.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the disk may take to remember something before a drain goes on without.
const REMEMBER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a peer wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Drain or undrain.
    Move(Direction),
    /// Hold the host down.
    Hold(HoldTerms),
    /// End the hold.
    Release,
}

/// What the manager is asked.
#[derive(Debug)]
pub(super) enum Message {
    /// Do this.
    Command {
        /// What.
        order: Order,
        /// How old the command is, when it says so.
        generation: Option<u64>,
        /// Who gives it.
        by: String,
        /// Gets the answer.
        reply: oneshot::Sender<Box<Response>>,
    },
    /// What is the state of all?
    Status {
        /// Gets the answer.
        reply: oneshot::Sender<Box<Response>>,
    },
    /// What have you done so far?
    Figures {
        /// Gets the answer.
        reply: oneshot::Sender<Figures>,
    },
    /// Do you make progress? Dropped when answered.
    Alive(oneshot::Sender<()>),
}

/// What is counted, and what is wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    /// What is under way.
    pub(super) current: Option<Direction>,
    /// Whether the host is meant to be drained, by whomever.
    pub(super) drained: bool,
    pub(super) held: bool,
    pub(super) generation: Option<u64>,
    /// Of drains and undrains since the start.
    pub(super) drains: Count,
    pub(super) undrains: Count,
}

/// Of operations of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) ok: u64,
    pub(super) failed: u64,
    /// Of the last one.
    pub(super) took: Option<Duration>,
}

type Running = BoxFuture<'static, Outcome>;

/// Who wanted what nobody has commanded.
const ITSELF: &str = "itself";

/// What is known of one database.
struct Database {
    name: String,
    /// What was seen last, and since when it has been so.
    seen: Option<(Verdict, Instant)>,
    /// It was seen not to be ready, before somebody who knows has commanded an undrain: what it is now only the next look tells.
    outdated: bool,
}

/// What the manager is told of the databases.
pub(super) struct Sight {
    /// Their names, in the order of their numbers.
    pub(super) names: Vec<String>,
    /// Where it says how closely they must be watched.
    pub(super) attention: watch::Sender<Attention>,
    /// Where it says that a `status` would be another one now.
    pub(super) changed: Arc<Notify>,
}

/// Of a `status`, what the manager itself knows.
type Shown = (String, Option<u64>, Option<Option<Status>>, Vec<bool>);

/// The task's state.
pub(super) struct Manager {
    units: Arc<dyn Units>,
    core: Core,
    command_timeout: Duration,
    memory: Option<Arc<Memory>>,
    writer: Option<JoinHandle<Result<(), MemoryError>>>,
    waiting: HashMap<Ticket, oneshot::Sender<Box<Response>>>,
    tickets: u64,
    running: Option<(OperationId, Direction, Running)>,
    began: Instant,
    drains: Count,
    undrains: Count,
    /// Who gives the command that is being decided, and who has given the last one that was begun.
    asking: Option<String>,
    by: Option<String>,
    /// What was shown last to those who watch, and where they are told that it is another.
    shown: Shown,
    changed: Arc<Notify>,
    looking: Option<BoxFuture<'static, Option<bool>>>,
    databases: Vec<Database>,
    attention: watch::Sender<Attention>,
    /// What is to be done at the start.
    first: Vec<Effect>,
}

impl Manager {
    /// A manager of `units`, that remembers in `folders`.
    pub(super) fn new(
        units: Arc<dyn Units>,
        command_timeout: Duration,
        folders: Folders,
        repairs: Repairs,
        sight: Sight,
    ) -> Self {
        let (remembered, errors) = memory::recall(&folders);
        for error in errors {
            tracing::error!(%error, "cannot recall what was before the start: without the generation a stale command may be taken until a newer one comes, and a hold that cannot be read stays on");
        }
        let now = Instant::now();
        let memo = Memo {
            generation: remembered.generation,
            standing: remembered.standing,
            unfinished: remembered.unfinished,
            hold: remembered.hold.clone().map(|hold| recalled(hold, now)),
        };
        let (core, first) = Core::start(now, repairs, memo);
        let forgets = folders == Folders::default();
        Self {
            units,
            core,
            command_timeout,
            memory: (!forgets).then(|| Arc::new(Memory::new(folders, remembered))),
            writer: None,
            waiting: HashMap::new(),
            tickets: 0,
            running: None,
            began: now,
            drains: Count::default(),
            undrains: Count::default(),
            asking: None,
            by: None,
            shown: Shown::default(),
            changed: sight.changed,
            looking: None,
            databases: sight
                .names
                .into_iter()
                .map(|name| Database {
                    name,
                    seen: None,
                    outdated: false,
                })
                .collect(),
            attention: sight.attention,
            first,
        }
    }

    /// Hears what is `seen` of the databases, and runs until every sender of `messages` is gone and nothing is under way.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>, mut seen: mpsc::Receiver<Seen>) {
        let first = std::mem::take(&mut self.first);
        self.apply(first).await;
        let mut open = true;
        let mut sighted = true;
        while open || self.running.is_some() {
            let ended = async {
                match &mut self.running {
                    Some((_, _, running)) => running.await,
                    None => std::future::pending().await,
                }
            };
            let looked = async {
                match &mut self.looking {
                    Some(looking) => looking.await,
                    None => std::future::pending().await,
                }
            };
            let wake_at = self.core.wake_at();
            let due = async {
                match wake_at {
                    Some(at) => sleep_until(at).await,
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
                    let count = match direction {
                        Direction::Drain => &mut self.drains,
                        Direction::Undrain => &mut self.undrains,
                    };
                    count.took = Some(self.began.elapsed());
                    match outcome.status {
                        Status::Ok => count.ok += 1,
                        Status::Error => count.failed += 1,
                    }
                    report(direction, &outcome);
                    self.happen(Event::Finished { operation, outcome }).await;
                }
                verdict = seen.recv(), if sighted && open => match verdict {
                    Some((at, verdict)) => self.see(at, verdict).await,
                    None => sighted = false,
                },
                running = looked => {
                    self.looking = None;
                    // What cannot be seen is asked for again.
                    if let Some(running) = running {
                        self.happen(Event::Looked { running }).await;
                    }
                }
                () = due, if open => self.happen(Event::Time).await,
            }
        }
    }

    async fn happen(&mut self, event: Event) {
        let effects = self.core.on(Instant::now(), event);
        self.apply(effects).await;
        let attention = self.core.attention();
        self.attention
            .send_if_modified(|now| std::mem::replace(now, attention) != attention);
        self.tell_watchers();
    }

    fn tell_watchers(&mut self) {
        let last = self.core.last_command(Instant::now()).map(|last| last.status);
        let seen = |database: &Database| {
            database
                .seen
                .as_ref()
                .is_some_and(|(verdict, _)| verdict.is_ready())
        };
        let databases = self.databases.iter().map(seen).collect();
        let shown = (self.core.shown(), self.core.generation(), last, databases);
        if std::mem::replace(&mut self.shown, shown) != self.shown {
            self.changed.notify_one();
        }
    }

    async fn see(&mut self, at: usize, verdict: Verdict) {
        let Some(database) = self.databases.get_mut(at) else {
            return;
        };
        let was = database.seen.as_ref().map(|(verdict, _)| verdict.is_ready());
        if was != Some(verdict.is_ready()) {
            match &verdict {
                Verdict::Ready => tracing::info!(database = database.name, "database answers"),
                Verdict::NotReady(cause) => {
                    tracing::warn!(database = database.name, %cause, "database does not answer as it should");
                }
            }
        }
        let since = match &database.seen {
            Some((_, since)) if was == Some(verdict.is_ready()) => *since,
            _ => Instant::now(),
        };
        database.seen = Some((verdict, since));
        database.outdated = false;
        // Until each has been asked once nothing is known of all.
        let all = self.databases.iter().map(|database| {
            let (verdict, _) = database.seen.as_ref().filter(|_| !database.outdated)?;
            Some(health(verdict))
        });
        let together = all.collect::<Option<Vec<_>>>();
        if let Some(together) = together.and_then(|all| all.into_iter().reduce(Health::and)) {
            self.happen(Event::Health(together)).await;
        }
    }

    async fn message(&mut self, message: Message) {
        match message {
            Message::Command {
                order,
                generation,
                by,
                reply,
            } => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.waiting.insert(ticket, reply);
                let undrains = matches!(order, Order::Move(Direction::Undrain));
                let event = match order {
                    Order::Move(direction) => Event::Command {
                        ticket,
                        direction,
                        generation,
                    },
                    Order::Hold(terms) => Event::Hold {
                        ticket,
                        generation,
                        hold: asked(terms, Instant::now()),
                    },
                    Order::Release => Event::Release { ticket, generation },
                };
                if undrains {
                    for database in &mut self.databases {
                        let ready = |(verdict, _): &(Verdict, Instant)| verdict.is_ready();
                        database.outdated = !database.seen.as_ref().is_some_and(ready);
                    }
                }
                self.asking = Some(by);
                self.happen(event).await;
                self.asking = None;
            }
            Message::Figures { reply } => {
                let figures = Figures {
                    current: self.core.current(),
                    drained: self.core.hold().is_some()
                        || matches!(self.core.standing(), Standing::Drained { .. }),
                    held: self.core.hold().is_some(),
                    generation: self.core.generation(),
                    drains: self.drains,
                    undrains: self.undrains,
                };
                let _ = reply.send(figures);
            }
            Message::Status { reply } => {
                let now = Instant::now();
                let mut response = Response::new(Action::Status, Status::Ok, String::new());
                response.last_command = self.core.last_command(now).map(|last| LastCommand {
                    by: self.by.clone(),
                    ..last
                });
                response.generation = self.core.generation();
                response.version = Some(env!("CARGO_PKG_VERSION").to_owned());
                response.target = Some(self.units.target().to_owned());
                response.standing = Some(self.core.shown());
                response.held = self.core.hold().is_some().then_some(true);
                response.databases = self.databases(now);
                tokio::spawn(status(self.units.clone(), response, reply));
            }
            Message::Alive(reply) => drop(reply.send(())),
        }
    }

    fn databases(&self, now: Instant) -> Option<Vec<DatabaseReport>> {
        let reports = self.databases.iter().filter_map(|database| {
            let (verdict, since) = database.seen.as_ref()?;
            Some(DatabaseReport {
                name: database.name.clone(),
                ready: verdict.is_ready(),
                why: (!verdict.is_ready()).then(|| verdict.to_string()),
                age_ms: millis(now.saturating_duration_since(*since)),
            })
        });
        (!self.databases.is_empty()).then(|| reports.collect())
    }

    async fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Remember(memo) => self.remember(*memo).await,
                Effect::Abandon(operation) => {
                    self.running.take_if(|(id, _, _)| *id == operation);
                }
                Effect::Begin(operation, direction, why) => {
                    tracing::info!(action = %direction.action(), unit = self.units.target(), why, "command begins");
                    notify::status(&format!(
                        "{} of {} under way",
                        direction.action(),
                        self.units.target()
                    ));
                    self.by = Some(self.asking.clone().unwrap_or_else(|| ITSELF.to_owned()));
                    self.began = Instant::now();
                    let work = operate(self.units.clone(), direction, self.command_timeout);
                    self.running = Some((operation, direction, work.boxed()));
                }
                Effect::Look => self.looking = Some(look(self.units.clone()).boxed()),
                Effect::Answer(ticket, response) => {
                    // Whoever hung up meanwhile needs no answer.
                    self.waiting.remove(&ticket).map(|reply| reply.send(response));
                }
            }
        }
    }

    /// A disk that is full or hangs must not keep the databases waiting for their drain: it is reported, and the
    /// command goes on.
    async fn remember(&mut self, memo: Memo) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        let generation = memo.generation;
        if memory.ask(remembered(memo)) {
            self.writer = Some(tokio::task::spawn_blocking(move || memory.write()));
        }
        // One that was left behind by an earlier command, when the disk was slow, writes this, too.
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
            "cannot remember what was decided: after a restart a stale command may be taken, and a hold is forgotten; make room on the disk, or mend it, and give the command again"
        );
    }
}

/// A hold that is to outlive a boot can go by the calendar only; a running guardian does not look at it again.
#[expect(
    clippy::disallowed_methods,
    reason = "no other clock goes on while the host is off"
)]
fn calendar() -> SystemTime {
    SystemTime::now()
}

/// A hold that was asked for, from now on.
fn asked(terms: HoldTerms, now: Instant) -> Hold {
    let length = terms.for_ms.map(Duration::from_millis);
    Hold {
        reason: terms.reason,
        until: length.and_then(|length| now.checked_add(length)),
        until_wall: length.and_then(|length| calendar().checked_add(length)),
    }
}

/// A hold of an earlier life.
fn recalled(hold: WrittenHold, now: Instant) -> Hold {
    let until_wall = hold.until_unix.map(|unix| UNIX_EPOCH + Duration::from_secs(unix));
    let left = until_wall.map(|until| until.duration_since(calendar()).unwrap_or_default());
    Hold {
        reason: hold.reason,
        until: left.and_then(|left| now.checked_add(left)),
        until_wall,
    }
}

fn remembered(memo: Memo) -> Remembered {
    let unix = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Remembered {
        generation: memo.generation,
        hold: memo.hold.map(|hold| WrittenHold {
            reason: hold.reason,
            until_unix: hold.until_wall.map(unix),
        }),
        standing: memo.standing,
        unfinished: memo.unfinished,
    }
}

/// Whether anything that depends on the databases runs; nothing when that cannot be seen.
async fn look(units: Arc<dyn Units>) -> Option<bool> {
    match timeout(STATUS_TIMEOUT, units.survey()).await {
        Ok(Ok(survey)) => {
            let runs = survey.units.iter().any(|unit| !unit.is_stopped());
            Some(runs || survey.target_state == "active")
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot see what runs");
            None
        }
        Err(_) => None,
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
