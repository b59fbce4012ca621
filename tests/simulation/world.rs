//! One history: what happens is drawn from the seed, and told in order of time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::AddAssign;
use std::time::Duration;

use io_guardian::guardian::core::{
    Attention, By, Core, Effect, Event, Health, Hold, Memo, Repairs, Standing,
};
use io_guardian::guardian::operations::{Direction, OperationId, Outcome, Ticket};
use io_guardian::protocol::Status;
use tokio::time::Instant;

use super::chance::Chance;

const GRACE: Duration = Duration::from_secs(30);
const HEALTHY: Duration = Duration::from_secs(5);
/// How long the chaos lasts.
const CHAOS: Duration = Duration::from_secs(900);
/// How long all is well afterwards: longer than the longest healing and all retries.
const PEACE: Duration = Duration::from_secs(2_500);
/// Between two looks at the databases while something hangs on them.
const LOOK: Duration = Duration::from_secs(1);

/// What happened, in all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) commands: u64,
    pub(crate) stale: u64,
    pub(crate) held: u64,
    pub(crate) own_drains: u64,
    pub(crate) own_undrains: u64,
    pub(crate) restarts: u64,
    pub(crate) boots: u64,
}

impl AddAssign for Told {
    fn add_assign(&mut self, more: Self) {
        self.commands += more.commands;
        self.stale += more.stale;
        self.held += more.held;
        self.own_drains += more.own_drains;
        self.own_undrains += more.own_undrains;
        self.restarts += more.restarts;
        self.boots += more.boots;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Move(Direction),
    Hold(Option<Duration>),
    Release,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A command arrives: with the generation of when it was given.
    Arrives(Order, Option<u64>),
    /// The guardian looks at the databases.
    Probe,
    /// The units have come to rest after what this operation began.
    Settled(u64, OperationId, Direction),
    /// The guardian's look at its units is over.
    Looked(u64),
    /// The guardian is killed, and started again.
    Restart,
    /// The host loses its power.
    PowerCut,
    /// The databases, as all see them, or the network of this host to them.
    Databases(Health),
    Network(bool),
    /// The coordinator gives an order.
    Ordered(Order),
    /// A person starts or stops the target by hand.
    ByHand(bool),
    /// The chaos is over.
    Peace,
}

struct World {
    chance: Chance,
    began: Instant,
    now: Instant,
    steps: BinaryHeap<Reverse<(Duration, u64)>>,
    kept: BTreeMap<u64, Step>,
    number: u64,
    loud: bool,
    told: Told,

    databases: Health,
    network: bool,
    /// The coordinator's, which grows with each order.
    generation: u64,

    core: Core,
    /// Which life of the guardian it is: what an earlier one waited for does not reach it.
    life: u64,
    /// What is on the disk; the standing does not outlive a boot.
    memo: Memo,
    under_way: Option<OperationId>,
    /// The newest operation, with the life of the guardian that has begun it.
    latest: Option<(u64, OperationId)>,
    running: bool,
    tickets: u64,
    open: Vec<u64>,
    /// Since when the databases were not seen ready, from this host.
    unseen_since: Option<Instant>,
    /// Since when they are ready without a break.
    ready_since: Option<Instant>,
    /// Since when they are not well: lost, and not ready for long enough in between, nor with an answer that told nothing.
    unwell_since: Option<Instant>,
    /// Whether they were seen gone since the last drain.
    gone_since_drain: bool,
    /// What that was before the order that is being taken.
    gone_before: Option<bool>,
    peaceful: bool,
    /// A new life begins again what the last one has not brought to its end.
    starting: bool,
    /// A person has had a hand in it since the last operation: what runs is that person's business.
    by_hand: bool,
}

pub(crate) fn live(seed: u64, loud: bool) -> Told {
    let began = Instant::now();
    let repairs = Repairs {
        drain_after: Some(GRACE),
        undrain_after: Some(HEALTHY),
    };
    let (core, effects) = Core::start(began, repairs, Memo::default());
    let mut world = World {
        chance: Chance(seed),
        began,
        now: began,
        steps: BinaryHeap::new(),
        kept: BTreeMap::new(),
        number: 0,
        loud,
        told: Told::default(),
        databases: Health::Ready,
        network: true,
        generation: 1,
        core,
        life: 0,
        memo: Memo::default(),
        under_way: None,
        latest: None,
        running: true,
        tickets: 0,
        open: Vec::new(),
        unseen_since: None,
        ready_since: None,
        unwell_since: None,
        gone_since_drain: false,
        gone_before: None,
        peaceful: false,
        starting: false,
        by_hand: false,
    };
    world.apply(effects, None);
    world.plan();
    world.run();
    world.told
}

impl World {
    fn after(&mut self, delay: Duration, step: Step) {
        self.number += 1;
        self.kept.insert(self.number, step);
        self.steps
            .push(Reverse((self.now + delay - self.began, self.number)));
    }

    fn somewhen(&mut self) -> Duration {
        Duration::from_millis(self.chance.below(CHAOS.as_millis() as u64))
    }

    /// Draws all that the history will have.
    fn plan(&mut self) {
        self.after(Duration::ZERO, Step::Probe);
        self.after(CHAOS, Step::Peace);
        for _ in 0..self.chance.below(8) {
            let at = self.somewhen();
            let health = [Health::Down, Health::Silent, Health::Unclear][self.chance.below(3) as usize];
            let length = self.chance.span(200_000);
            self.after(at, Step::Databases(health));
            self.after(at + length, Step::Databases(Health::Ready));
            // As a coordinator does; now and then it dies before.
            if !self.chance.one_in(4) {
                self.after(
                    at.saturating_sub(Duration::from_secs(2)),
                    Step::Ordered(Order::Move(Direction::Drain)),
                );
            }
            if !self.chance.one_in(4) {
                self.after(
                    at + length + Duration::from_secs(1),
                    Step::Ordered(Order::Move(Direction::Undrain)),
                );
            }
        }
        for _ in 0..self.chance.below(4) {
            let (at, length) = (self.somewhen(), self.chance.span(120_000));
            self.after(at, Step::Network(false));
            self.after(at + length, Step::Network(true));
        }
        // Flapping.
        if self.chance.one_in(4) {
            let mut at = self.somewhen();
            for _ in 0..self.chance.below(40) {
                self.after(at, Step::Databases(Health::Down));
                at += self.chance.span(10_000);
                self.after(at, Step::Databases(Health::Ready));
                at += self.chance.span(10_000);
            }
        }
        for _ in 0..self.chance.below(3) {
            let at = self.somewhen();
            let length = self.chance.span(400_000);
            let until = self.chance.one_in(2).then_some(length);
            self.after(at, Step::Ordered(Order::Hold(until)));
            if !self.chance.one_in(3) {
                self.after(at + length, Step::Ordered(Order::Release));
            }
        }
        for _ in 0..self.chance.below(4) {
            let at = self.somewhen();
            self.after(at, Step::Restart);
        }
        if self.chance.one_in(3) {
            let at = self.somewhen();
            self.after(at, Step::PowerCut);
        }
        if self.chance.one_in(6) {
            let at = self.somewhen();
            let start = self.chance.one_in(2);
            self.after(at, Step::ByHand(start));
        }
    }

    fn run(&mut self) {
        let end = CHAOS + PEACE;
        let mut turns = 0u64;
        loop {
            turns += 1;
            assert!(turns < 200_000, "it does not come to an end");
            let step = self.steps.peek().map(|Reverse((at, number))| (*at, *number));
            let woken = self
                .core
                .wake_at()
                .map(|at| at.saturating_duration_since(self.began));
            match (step, woken) {
                (step, Some(at)) if step.is_none_or(|(next, _)| at <= next) && at <= end => {
                    self.now = self.now.max(self.began + at);
                    let effects = self.core.on(self.now, Event::Time);
                    self.apply(effects, None);
                }
                (Some((at, number)), _) if at <= end => {
                    self.steps.pop();
                    self.now = self.now.max(self.began + at);
                    let step = self.kept.remove(&number).unwrap_or(Step::Peace);
                    if self.loud && !matches!(step, Step::Probe) {
                        println!("{:9.3} {step:?}", at.as_secs_f64());
                    }
                    self.happen(step);
                }
                _ => break,
            }
        }
        self.judge();
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Databases(health) => {
                if !self.peaceful {
                    self.databases = health;
                }
            }
            Step::Network(up) => self.network = up || self.peaceful,
            Step::Peace => {
                self.peaceful = true;
                self.databases = Health::Ready;
                self.network = true;
            }
            Step::Ordered(order) => self.order(order),
            Step::Arrives(order, generation) => self.arrive(order, generation),
            Step::Probe => {
                let health = if self.network {
                    self.databases
                } else {
                    Health::Silent
                };
                match health {
                    Health::Ready => self.unseen_since = None,
                    _ => {
                        self.unseen_since.get_or_insert(self.now);
                    }
                }
                self.ready_since = (health == Health::Ready).then(|| self.ready_since.unwrap_or(self.now));
                if self.ready_since.is_some_and(|since| self.now - since >= HEALTHY) {
                    self.unwell_since = None;
                }
                if health == Health::Unclear {
                    self.unwell_since = self.unwell_since.map(|_| self.now);
                }
                if matches!(health, Health::Down | Health::Silent) {
                    self.gone_since_drain = true;
                    self.unwell_since.get_or_insert(self.now);
                }
                let effects = self.core.on(self.now, Event::Health(health));
                self.apply(effects, None);
                let calm = self.core.attention() == Attention::Calm && health == Health::Ready;
                self.after(if calm { 5 * LOOK } else { LOOK }, Step::Probe);
            }
            Step::Settled(life, operation, direction) => self.settled(life, operation, direction),
            Step::Looked(life) if life == self.life => {
                let running = self.running;
                let effects = self.core.on(self.now, Event::Looked { running });
                self.apply(effects, None);
            }
            Step::Looked(_) => {}
            Step::Restart => {
                self.told.restarts += 1;
                self.start();
            }
            Step::PowerCut => {
                self.told.boots += 1;
                self.memo.standing = Standing::Unknown;
                self.memo.unfinished = false;
                self.latest = None;
                // The boot waits for the databases, which are there in the end; it starts nothing while there is a hold.
                self.running = self.memo.hold.is_none() && self.network && self.databases == Health::Ready;
                self.start();
            }
            Step::ByHand(start) => {
                self.running = start;
                self.by_hand = true;
            }
        }
    }

    /// The coordinator sends an order: it may be lost, late, or there twice.
    fn order(&mut self, order: Order) {
        self.generation += 1;
        let generation = (!self.chance.one_in(5)).then_some(self.generation);
        for _ in 0..=u64::from(self.chance.one_in(4)) {
            if self.chance.one_in(4) {
                continue;
            }
            let late = if self.chance.one_in(4) { 60_000 } else { 500 };
            let delay = self.chance.span(late);
            self.after(delay, Step::Arrives(order, generation));
        }
    }

    fn arrive(&mut self, order: Order, generation: Option<u64>) {
        if !self.network && !self.peaceful {
            return;
        }
        self.told.commands += 1;
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.open.push(self.tickets);
        let known = self.core.generation();
        let stale = generation
            .zip(self.core.generation())
            .is_some_and(|(new, seen)| new < seen);
        let before = (self.core.standing(), self.core.hold().cloned());
        let event = match order {
            Order::Move(direction) => Event::Command {
                ticket,
                direction,
                generation,
            },
            Order::Hold(length) => Event::Hold {
                ticket,
                generation,
                hold: Hold {
                    reason: "a test".to_owned(),
                    until: length.map(|length| self.now + length),
                    until_wall: None,
                },
            },
            Order::Release => Event::Release { ticket, generation },
        };
        let effects = self.core.on(self.now, event);
        if stale {
            self.told.stale += 1;
            assert!(
                !effects.iter().any(|effect| matches!(effect, Effect::Begin(..))),
                "a stale command began something: {effects:?}"
            );
            assert_eq!(
                (self.core.standing(), self.core.hold().cloned()),
                before,
                "a stale command changed something"
            );
        }
        let obeyed = (!stale).then_some(order);
        let again = generation.is_some() && generation == known;
        if obeyed == Some(Order::Move(Direction::Drain)) && !again {
            self.gone_before = Some(self.gone_since_drain);
            self.gone_since_drain = self.unseen_since.is_some();
        }
        self.apply(effects, obeyed);
        self.gone_before = None;
    }

    fn settled(&mut self, life: u64, operation: OperationId, direction: Direction) {
        // What systemd was told goes on without the guardian, unless something else was begun since, or the host was off.
        if self.latest != Some((life, operation)) {
            return;
        }
        let there = self.network && self.databases == Health::Ready;
        let failed = !self.peaceful && self.chance.one_in(8);
        let done = match direction {
            Direction::Drain => !failed,
            Direction::Undrain => there && !failed,
        };
        self.by_hand = false;
        if done {
            self.running = direction == Direction::Undrain;
        }
        if life != self.life || self.under_way != Some(operation) {
            return;
        }
        self.under_way = None;
        let outcome = Outcome {
            status: if done { Status::Ok } else { Status::Error },
            message: String::new(),
            units: None,
        };
        let effects = self.core.on(self.now, Event::Finished { operation, outcome });
        self.apply(effects, None);
    }

    /// A new life, from what is on the disk.
    fn start(&mut self) {
        self.life += 1;
        self.under_way = None;
        // Whoever waited sees the connection break.
        self.open.clear();
        let repairs = Repairs {
            drain_after: Some(GRACE),
            undrain_after: Some(HEALTHY),
        };
        let (core, effects) = Core::start(self.now, repairs, self.memo.clone());
        self.core = core;
        self.unseen_since = None;
        self.starting = true;
        self.apply(effects, None);
        self.starting = false;
    }

    /// Does what the guardian decided, unless it is killed in the middle of it; and checks that it may. `obeyed` is the order that it
    /// follows, if it follows one.
    fn apply(&mut self, effects: Vec<Effect>, obeyed: Option<Order>) {
        let held = self.core.hold().is_some();
        for effect in effects {
            if !self.peaceful && self.chance.one_in(400) {
                if self.loud {
                    println!("          killed before {effect:?}");
                }
                self.told.restarts += 1;
                // An order that was not written down is as lost as one that never came.
                if let (Effect::Remember(_), Some(gone)) = (&effect, self.gone_before.take()) {
                    self.gone_since_drain = gone;
                }
                return self.start();
            }
            if self.loud {
                println!("          {effect:?}");
            }
            match effect {
                Effect::Remember(memo) => {
                    assert!(memo.generation >= self.memo.generation, "generations go back");
                    self.memo = *memo;
                }
                Effect::Abandon(id) => {
                    assert_eq!(self.under_way.take(), Some(id), "another operation was under way");
                }
                Effect::Begin(id, direction, _) => {
                    assert!(self.under_way.replace(id).is_none(), "two operations at a time");
                    self.latest = Some((self.life, id));
                    self.check(direction, obeyed, held);
                    let takes = self.chance.span(40_000);
                    self.after(takes, Step::Settled(self.life, id, direction));
                }
                Effect::Look => {
                    let takes = self.chance.span(500);
                    self.after(takes, Step::Looked(self.life));
                }
                Effect::Answer(ticket, _) => {
                    let at = self.open.iter().position(|open| *open == ticket.0);
                    assert!(at.is_some(), "each command has one answer");
                    at.map(|at| self.open.swap_remove(at));
                }
            }
        }
        assert!(
            self.open.is_empty() || self.under_way.is_some(),
            "somebody waits, and nothing is under way"
        );
    }

    /// May this begin?
    fn check(&mut self, direction: Direction, obeyed: Option<Order>, held: bool) {
        match direction {
            Direction::Drain if held => self.told.held += 1,
            Direction::Drain if obeyed.is_some() || self.starting => {}
            Direction::Drain => {
                self.told.own_drains += 1;
                let standing = self.core.standing();
                let retried = matches!(standing, Standing::Drained { .. }) && self.core.is_retrying();
                // From the last look that found them, which was up to a look before the first that did not.
                let unwell = self.unwell_since.map(|since| self.now - since + 5 * LOOK);
                assert!(
                    retried || unwell.is_some_and(|unwell| unwell >= GRACE),
                    "it drains before the grace is over: {unwell:?}"
                );
            }
            Direction::Undrain => {
                assert!(!held, "it starts what somebody holds down");
                if self.starting || matches!(obeyed, Some(Order::Move(Direction::Undrain) | Order::Release)) {
                    return;
                }
                self.told.own_undrains += 1;
                assert_ne!(
                    self.core.health(),
                    Some(Health::Down),
                    "it starts with the databases away"
                );
                assert_ne!(
                    self.core.health(),
                    Some(Health::Silent),
                    "it starts with the databases away"
                );
                if let Standing::Undrained { by: By::Probes } = self.core.standing() {
                    assert!(
                        self.gone_since_drain,
                        "it undoes a drain although the databases never went"
                    );
                }
            }
        }
    }

    /// All has been well for long: is the host where it should be?
    fn judge(&self) {
        assert!(self.open.is_empty(), "commands without an answer");
        assert!(self.under_way.is_none(), "something is under way for ever");
        let standing = self.core.standing();
        if self.core.hold().is_some() {
            assert!(!self.running || self.by_hand, "what is held runs");
            return;
        }
        match standing {
            Standing::Undrained { .. } => {
                assert!(self.running || self.by_hand, "undrained, and nothing runs")
            }
            Standing::Drained { outage: true, .. } => {
                panic!("the databases are back, and it is still drained")
            }
            // By command, with databases that never went: as it was told.
            Standing::Drained { by: By::Command, .. } | Standing::Unknown => {}
            Standing::Drained { by: By::Probes, .. } => panic!("drained for an outage that it has not seen"),
        }
    }
}
