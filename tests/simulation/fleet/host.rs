//! A host: the guardian's real core with its memory on the disk and on `/run`, and [`units`] as systemd moves them.

mod units;

use std::collections::BTreeMap;
use std::time::Duration;

use io_guardian::guardian::core::{Attention, Core, Effect, Event, Health, Hold, Memo, Repairs, Standing};
use io_guardian::guardian::operations::{Direction, OperationId, Outcome, Ticket};
use io_guardian::protocol::{Action, DatabaseReport, Response, Status};
use tokio::time::Instant;

use super::network::{Back, Command, Out};
use super::{Fleet, Step};
use units::{State, Unit};

/// The guardians' `--command-timeout`.
const DEADLINE: Duration = Duration::from_secs(45);
/// Between two looks of a guardian at the databases, while something hangs on it; five times as long otherwise.
const LOOK: Duration = Duration::from_secs(1);
const TARGET: &str = "io-databases.target";

pub(crate) struct Host {
    repairs: Repairs,
    /// From the coordinator, and back.
    pub(crate) out: bool,
    pub(crate) back: bool,
    pub(crate) on: bool,
    pub(crate) boot: u64,
    /// Nothing while the guardian is not up.
    pub(crate) core: Option<Core>,
    /// Of the guardian: what an earlier one waited for does not reach it.
    pub(crate) life: u64,
    memo: Memo,
    /// When the guardian looks at the databases again.
    looks_at: Instant,
    /// The newest order that the guardian has taken, and that the disk knows of.
    newest: u64,
    newest_on_disk: u64,
    under_way: Option<(OperationId, Direction)>,
    open: BTreeMap<u64, Option<usize>>,
    tickets: u64,
    pub(crate) units: Vec<Unit>,
    pub(crate) target: bool,
    /// The last job of the target, and whether it is a start.
    job: u64,
    starts: bool,
    /// How often the wait in front of it has looked.
    waits: Option<u32>,
    /// A person has had a hand in it since the guardian's last operation.
    pub(crate) by_hand: bool,
    changes: u64,
}

impl Host {
    pub(crate) fn new(now: Instant, repairs: Repairs, units: usize) -> Self {
        Self {
            repairs,
            out: true,
            back: true,
            on: true,
            boot: 0,
            core: Some(Core::start(now, repairs, Memo::default()).0),
            life: 0,
            memo: Memo::default(),
            looks_at: now,
            newest: 0,
            newest_on_disk: 0,
            under_way: None,
            open: BTreeMap::new(),
            tickets: 0,
            units: units::all(now).take(units).collect(),
            target: true,
            job: 0,
            starts: true,
            waits: None,
            by_hand: false,
            changes: 0,
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.units.iter().any(Unit::runs)
    }
}

impl Fleet {
    /// What the guardian of `host` sees of the databases.
    pub(crate) fn seen(&self, host: usize) -> Health {
        let link = self.hosts[host].out && self.hosts[host].back;
        if link { self.databases } else { Health::Silent }
    }

    /// All look in the same moment: what they see changes in moments of its own.
    pub(crate) fn probe(&mut self) {
        let now = self.now();
        for host in 0..self.hosts.len() {
            let health = self.seen(host);
            let at = &mut self.hosts[host];
            let Some(core) = at.core.as_ref().filter(|_| now >= at.looks_at) else {
                continue;
            };
            let calm = core.attention() == Attention::Calm && health == Health::Ready;
            at.looks_at = now + if calm { 5 * LOOK } else { LOOK };
            // All is well for ever, and the times that follow from it are the core's.
            if !(self.peaceful && health == Health::Ready && core.health() == Some(health)) {
                self.guardian(host, Event::Health(health));
            }
        }
        let every = if self.peaceful { 30 * LOOK } else { LOOK };
        self.after(every, Step::Probe);
    }

    /// The guardian is told of an event that is no order.
    pub(crate) fn guardian(&mut self, host: usize, event: Event) {
        let now = self.now();
        self.touched = true;
        if let Some(core) = self.hosts[host].core.as_mut() {
            let effects = core.on(now, event);
            self.apply(host, effects);
        }
    }

    /// A command is there. `talk` is who waits for the answer: nobody, when it comes a second time.
    pub(crate) fn command(&mut self, host: usize, talk: Option<usize>, command: &Command) {
        let now = self.now();
        let at = &mut self.hosts[host];
        let Some(core) = at.core.as_mut() else { return };
        let life = at.life;
        let event = match command.action {
            Action::Drain | Action::Undrain | Action::Hold | Action::Release => {
                at.tickets += 1;
                at.open.insert(at.tickets, talk);
                let (ticket, generation) = (Ticket(at.tickets), command.generation);
                match command.action {
                    Action::Hold => Event::Hold {
                        ticket,
                        generation,
                        hold: Hold {
                            reason: "a test".to_owned(),
                            until: command.hold_for.map(|length| now + length),
                            until_wall: None,
                        },
                    },
                    Action::Release => Event::Release { ticket, generation },
                    Action::Drain => Event::Command {
                        ticket,
                        direction: Direction::Drain,
                        generation,
                    },
                    _ => Event::Command {
                        ticket,
                        direction: Direction::Undrain,
                        generation,
                    },
                }
            }
            _ => {
                if let Some(talk) = talk {
                    let takes = self.chance.span(300);
                    self.after(takes, Step::Surveyed { host, life, talk });
                }
                return;
            }
        };
        let stale = command
            .generation
            .zip(core.generation())
            .is_some_and(|(new, seen)| new < seen);
        let before = (core.standing(), core.hold().cloned());
        let effects = core.on(now, event);
        self.touched = true;
        if stale {
            let after = (core.standing(), core.hold().cloned());
            self.told.stale += 1;
            let begins = effects.iter().any(|effect| matches!(effect, Effect::Begin(..)));
            self.require(!begins && before == after, || {
                format!("host {host}: a stale command changed something")
            });
        } else if command.generation.is_some() {
            let newest = at.newest;
            at.newest = newest.max(command.order);
            self.require(command.order >= newest, || {
                format!(
                    "host {host}: {} of order {} overrides order {newest}",
                    command.action, command.order
                )
            });
        }
        self.apply(host, effects);
    }

    /// What `status` says.
    pub(crate) fn surveyed(&mut self, host: usize, life: u64, talk: usize) {
        let at = &self.hosts[host];
        let Some(core) = at.core.as_ref().filter(|_| at.life == life) else {
            return;
        };
        let mut response = Response::new(Action::Status, Status::Ok, "as it is").with_units(at.reports());
        response.target = Some(TARGET.to_owned());
        let state = match (at.target, at.waits) {
            (_, Some(_)) => "activating",
            (true, None) => "active",
            (false, None) => "inactive",
        };
        response.target_state = Some(state.to_owned());
        response.generation = core.generation();
        response.held = core.hold().is_some().then_some(true);
        response.databases = core.health().map(|health| {
            vec![DatabaseReport {
                name: "postgres db:5432".to_owned(),
                ready: health == Health::Ready,
                why: None,
                age_ms: 0,
            }]
        });
        self.reply(host, talk, Back::Answer(Box::new(response)));
    }

    /// Does what the guardian has decided, unless it is killed in the middle of it.
    fn apply(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            if !self.peaceful && self.chance.one_in(500) {
                self.say(|| format!("host {host}: killed before {effect:?}"));
                return self.end_guardian(host, false);
            }
            self.say(|| format!("host {host}: {effect:?}"));
            let (now, life) = (self.now(), self.hosts[host].life);
            let at = &mut self.hosts[host];
            match effect {
                Effect::Remember(memo) => {
                    let grows = memo.generation >= at.memo.generation;
                    at.memo = *memo;
                    at.newest_on_disk = at.newest;
                    self.require(grows, || format!("host {host}: generations go back"));
                }
                Effect::Abandon(id) => {
                    let was = at.under_way.take();
                    self.require(was.is_some_and(|(old, _)| old == id), || {
                        format!("host {host}: another operation was under way")
                    });
                }
                Effect::Begin(operation, direction, _) => {
                    let idle = at.under_way.replace((operation, direction)).is_none();
                    let held = at.core.as_ref().is_some_and(|core| core.hold().is_some());
                    at.by_hand = false;
                    self.require(idle, || format!("host {host}: two operations at a time"));
                    self.require(!held || direction == Direction::Drain, || {
                        format!("host {host}: it starts what somebody holds down")
                    });
                    match direction {
                        Direction::Drain => self.stop_units(host),
                        Direction::Undrain => self.start_units(host),
                    }
                    self.look_whether_settled(host);
                    let step = Step::Deadline {
                        host,
                        life,
                        operation,
                    };
                    self.after(DEADLINE, step);
                }
                Effect::Look => {
                    let takes = self.chance.span(500);
                    self.after(takes, Step::Looked { host, life });
                }
                Effect::Answer(ticket, mut response) => {
                    let waits = at.open.remove(&ticket.0);
                    let runs = at.runs();
                    let drained = response.action == Action::Drain && response.status == Status::Ok;
                    response.instance = Some(format!("{host}.{life}"));
                    self.require(waits.is_some(), || format!("host {host}: one answer too many"));
                    self.require(!(drained && runs), || {
                        format!("host {host}: it is said to be drained, and something runs")
                    });
                    if let Some(Some(talk)) = waits {
                        self.talks[talk].emitted = Some(now);
                        self.reply(host, talk, Back::Answer(response));
                    }
                }
            }
        }
    }

    pub(crate) fn looked(&mut self, host: usize, life: u64) {
        if self.hosts[host].life == life {
            let running = self.hosts[host].runs() || self.hosts[host].target;
            self.guardian(host, Event::Looked { running });
        }
    }

    /// The end of an operation: because all has come to rest, or because its time is over.
    pub(crate) fn settle(&mut self, host: usize, life: u64, operation: OperationId, late: bool) {
        let at = &mut self.hosts[host];
        let Some((_, direction)) = at
            .under_way
            .filter(|(id, _)| at.life == life && at.core.is_some() && *id == operation)
        else {
            return;
        };
        let settled = at.settled(direction);
        if settled.is_none() && !late {
            return;
        }
        at.under_way = None;
        let status = if settled == Some(true) {
            Status::Ok
        } else {
            Status::Error
        };
        let outcome = Outcome {
            status,
            message: "at rest, or too late".to_owned(),
            units: Some(at.reports()),
        };
        self.guardian(host, Event::Finished { operation, outcome });
    }

    /// The guardian ends: killed, or stopped, which it tells those it talks to.
    pub(crate) fn end_guardian(&mut self, host: usize, told: bool) {
        let at = &mut self.hosts[host];
        if at.core.take().is_none() {
            return;
        }
        self.told.restarts += 1;
        at.life += 1;
        at.under_way = None;
        at.open.clear();
        let boot = at.boot;
        let takes = Duration::from_millis(50) + self.chance.span(3_000);
        self.after(takes, Step::Up { host, boot });
        for talk in self.talks_with(host) {
            let back = if told { Back::GoingAway } else { Back::Broken };
            self.reply(host, talk, back);
        }
    }

    pub(crate) fn up(&mut self, host: usize, boot: u64) {
        let now = self.now();
        let at = &mut self.hosts[host];
        if at.boot != boot || !at.on || at.core.is_some() {
            return;
        }
        at.life += 1;
        at.newest = at.newest_on_disk;
        let (core, effects) = Core::start(now, at.repairs, at.memo.clone());
        at.core = Some(core);
        at.looks_at = now;
        self.apply(host, effects);
    }

    /// The power is gone, and back after a while.
    pub(crate) fn power_cut(&mut self, host: usize) {
        let now = self.now();
        let at = &mut self.hosts[host];
        if !at.on {
            return;
        }
        self.told.boots += 1;
        (at.on, at.core, at.under_way, at.by_hand) = (false, None, None, false);
        at.boot += 1;
        at.life += 1;
        at.open.clear();
        (at.target, at.waits, at.job, at.starts) = (false, None, at.job + 1, false);
        at.memo.standing = Standing::Unknown;
        at.memo.unfinished = false;
        for unit in &mut at.units {
            (unit.state, unit.started) = (State::Inactive, now);
        }
        let boot = at.boot;
        let takes = Duration::from_secs(2) + self.chance.span(40_000);
        self.after(takes, Step::Boot { host, boot });
    }

    /// It boots: what is enabled is started, unless the file of a hold is there; the guardian before or after.
    pub(crate) fn boot(&mut self, host: usize, boot: u64) {
        let at = &mut self.hosts[host];
        if at.on || at.boot != boot {
            return;
        }
        at.on = true;
        if at.memo.hold.is_none() {
            self.start_units(host);
        }
        let takes = self.chance.span(6_000);
        self.after(takes, Step::Up { host, boot });
    }

    /// What comes on a connection to the guardian.
    pub(crate) fn receive(&mut self, host: usize, talk: usize, out: &Out) {
        match out {
            Out::Hello => self.reply(host, talk, Back::Welcome),
            Out::Key => self.reply(host, talk, Back::Known),
            Out::KeyAndCommand(command) => {
                self.reply(host, talk, Back::Known);
                self.command(host, Some(talk), command);
            }
            Out::Command(command) => self.command(host, Some(talk), command),
        }
    }
}
