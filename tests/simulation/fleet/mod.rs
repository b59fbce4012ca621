//! Histories of a whole fleet: the coordinator's real runs (retries, waves, the second look, generations) against several guardians'
//! real cores. Time is tokio's, which stands still while anybody has something to do; the network is [`network`]'s, the hosts are
//! [`host`]'s. What is drawn is drawn from the seed, in the order in which it happens: the same seed is the same history.

mod host;
mod judge;
mod network;
mod orders;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use io_guardian::guardian::core::{Event, Health, Repairs, Standing};
use io_guardian::guardian::operations::OperationId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::chance::Chance;
use host::Host;
use network::{Back, Command, Out, Talk};
use orders::{Order, Run};

/// How long the chaos lasts, ...
const CHAOS: Duration = Duration::from_secs(400);
/// ... and how long all is well afterwards: longer than the longest healing and all retries.
const PEACE: Duration = Duration::from_secs(1_800);
/// Then there is one more order, and this is the longest that it may take.
const LAST: Duration = Duration::from_secs(900);
/// After it, until all is at rest.
const REST: Duration = Duration::from_secs(60);

/// What happened, in all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) runs: u64,
    pub(crate) talks: u64,
    pub(crate) retried: u64,
    /// Hosts that were told again at the end of a drain, those of them that had to be drained again, and those that were not there.
    pub(crate) second_looks: u64,
    pub(crate) redrained: u64,
    pub(crate) out_of_sight: u64,
    /// Hosts that are reported as drained, and run at that moment, by right.
    pub(crate) run_again: u64,
    pub(crate) waves: u64,
    pub(crate) stopped_plans: u64,
    pub(crate) interrupted: u64,
    pub(crate) killed: u64,
    pub(crate) stale: u64,
    pub(crate) restarts: u64,
    pub(crate) boots: u64,
}

impl AddAssign for Told {
    fn add_assign(&mut self, more: Self) {
        self.runs += more.runs;
        self.talks += more.talks;
        self.retried += more.retried;
        self.second_looks += more.second_looks;
        self.redrained += more.redrained;
        self.out_of_sight += more.out_of_sight;
        self.run_again += more.run_again;
        self.waves += more.waves;
        self.stopped_plans += more.stopped_plans;
        self.interrupted += more.interrupted;
        self.killed += more.killed;
        self.stale += more.stale;
        self.restarts += more.restarts;
        self.boots += more.boots;
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Each guardian looks at the databases, if it is time.
    Probe,
    /// What was awaited of a unit.
    Unit {
        host: usize,
        boot: u64,
        unit: usize,
        change: u64,
    },
    /// The wait looks at the databases.
    Wait {
        host: usize,
        boot: u64,
        job: u64,
    },
    Settled {
        host: usize,
        life: u64,
        operation: OperationId,
    },
    Deadline {
        host: usize,
        life: u64,
        operation: OperationId,
    },
    Looked {
        host: usize,
        life: u64,
    },
    Surveyed {
        host: usize,
        life: u64,
        talk: usize,
    },
    Deliver {
        talk: usize,
        tries: u32,
        out: Out,
    },
    Reply {
        talk: usize,
        boot: u64,
        tries: u32,
        back: Back,
    },
    /// A command once more, which nobody has sent twice.
    Again {
        host: usize,
        command: Command,
    },
    Link {
        host: usize,
        out: bool,
        back: bool,
    },
    Databases(Health),
    /// A guardian is killed, or stopped; and it is there again.
    Restart {
        host: usize,
        told: bool,
    },
    Up {
        host: usize,
        boot: u64,
    },
    PowerCut(usize),
    Boot {
        host: usize,
        boot: u64,
    },
    Fails {
        host: usize,
        unit: usize,
    },
    Hand {
        host: usize,
        start: bool,
    },
    Order(Order),
    /// The coordinator of a run is killed; or told to end.
    Kill(usize),
    Stop(usize),
    Peace,
}

pub(crate) struct Fleet {
    chance: Chance,
    began: Instant,
    loud: bool,
    told: Told,
    hosts: Vec<Host>,
    databases: Health,
    peaceful: bool,
    steps: BinaryHeap<Reverse<(Instant, u64)>>,
    kept: BTreeMap<u64, Step>,
    number: u64,
    /// When the next of them is waited for, and whether there is another since.
    armed: Option<Instant>,
    touched: bool,
    talks: Vec<Talk>,
    open_talks: Vec<usize>,
    runs: Vec<Run>,
    /// Given, and not begun yet.
    given: Vec<Order>,
    /// The generation file, and the clock that its numbers come from: it may go back.
    file: Option<u64>,
    clock: u64,
    orders: u64,
    /// The first invariant that did not hold.
    broken: Option<String>,
}

/// The fleet, as all tasks of a history have it.
#[derive(Clone)]
pub(crate) struct Shared {
    fleet: Arc<Mutex<Fleet>>,
    /// Rings when something is to happen earlier than was known.
    bell: Arc<Notify>,
}

impl Shared {
    pub(crate) fn with<T>(&self, with: impl FnOnce(&mut Fleet) -> T) -> T {
        let mut fleet = self.lock();
        let out = with(&mut fleet);
        let touched = std::mem::take(&mut fleet.touched);
        let sooner = |next: Instant| fleet.armed.is_none_or(|armed| next < armed);
        if touched && fleet.next().is_some_and(sooner) {
            self.bell.notify_one();
        }
        out
    }

    fn lock(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn live(seed: u64, loud: bool) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(history(seed, loud))
}

async fn history(seed: u64, loud: bool) -> Told {
    let began = Instant::now();
    let mut chance = Chance(seed);
    let repairs = if chance.one_in(5) {
        Repairs::NONE
    } else {
        Repairs {
            drain_after: Some(Duration::from_secs(30)),
            undrain_after: Some(Duration::from_secs(5)),
        }
    };
    let hosts = 2 + chance.below(4);
    let host = |_| Host::new(began, repairs, 1 + chance.below(3) as usize);
    let hosts = (0..hosts).map(host).collect();
    let mut fleet = Fleet {
        chance,
        began,
        loud,
        told: Told::default(),
        hosts,
        databases: Health::Ready,
        peaceful: false,
        steps: BinaryHeap::new(),
        kept: BTreeMap::new(),
        number: 0,
        armed: None,
        touched: false,
        talks: Vec::new(),
        open_talks: Vec::new(),
        runs: Vec::new(),
        given: Vec::new(),
        file: None,
        clock: 1_700_000_000_000,
        orders: 0,
        broken: None,
    };
    fleet.plan();
    let shared = Shared {
        fleet: Arc::new(Mutex::new(fleet)),
        bell: Arc::new(Notify::new()),
    };
    let peace = began + CHAOS + PEACE;
    drive(&shared, peace).await;
    shared.with(|fleet| {
        fleet.all_is_well(repairs);
        let order = fleet.last_order();
        fleet.given.push(order);
    });
    drive(&shared, peace + LAST).await;
    drive(&shared, peace + LAST + REST).await;
    shared.with(|fleet| {
        fleet.last_order_was_followed();
        if let Some(broken) = &fleet.broken {
            panic!("{broken}");
        }
        fleet.told.talks = fleet.talks.len() as u64;
        fleet.told
    })
}

/// Until `end`.
async fn drive(shared: &Shared, end: Instant) {
    loop {
        let (given, broken, next) = {
            let mut fleet = shared.lock();
            fleet.turn();
            fleet.touched = false;
            fleet.armed = fleet.next();
            (
                std::mem::take(&mut fleet.given),
                fleet.broken.clone(),
                fleet.armed,
            )
        };
        for order in given {
            orders::give(shared, order);
        }
        // Here and not where it was seen: what a task dies of is not heard.
        if let Some(broken) = broken {
            panic!("{broken}");
        }
        if Instant::now() >= end {
            return;
        }
        let at = next.map_or(end, |next| next.min(end));
        tokio::select! {
            biased;
            () = sleep_until(at) => {}
            () = shared.bell.notified() => {}
        }
    }
}

impl Fleet {
    pub(crate) fn now(&self) -> Instant {
        Instant::now()
    }

    pub(crate) fn after(&mut self, delay: Duration, step: Step) {
        self.touched = true;
        self.number += 1;
        self.kept.insert(self.number, step);
        self.steps.push(Reverse((self.now() + delay, self.number)));
    }

    fn at(&mut self, since_begin: Duration, step: Step) {
        let delay = (self.began + since_begin).saturating_duration_since(self.now());
        self.after(delay, step);
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.loud {
            println!("{:9.3} {}", (self.now() - self.began).as_secs_f64(), what());
        }
    }

    /// An invariant.
    pub(crate) fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            let at = (self.now() - self.began).as_secs_f64();
            let what = format!("{at:.3} s: {}", what());
            self.say(|| format!("BROKEN: {what}"));
            self.broken = Some(what);
        }
    }

    /// When something happens next.
    fn next(&self) -> Option<Instant> {
        let step = self.steps.peek().map(|Reverse((at, _))| *at);
        let cores = self.hosts.iter().filter_map(|host| host.core.as_ref());
        cores.filter_map(|core| core.wake_at()).chain(step).min()
    }

    /// All that is due.
    fn turn(&mut self) {
        let now = self.now();
        for _ in 0..100_000 {
            for host in 0..self.hosts.len() {
                let core = self.hosts[host].core.as_ref();
                if core.and_then(|core| core.wake_at()).is_some_and(|at| at <= now) {
                    self.guardian(host, Event::Time);
                }
            }
            match self.steps.peek() {
                Some(Reverse((at, number))) if *at <= now => {
                    let number = *number;
                    self.steps.pop();
                    if let Some(step) = self.kept.remove(&number) {
                        if !matches!(step, Step::Probe) {
                            self.say(|| format!("{step:?}"));
                        }
                        self.happen(step);
                    }
                }
                _ if self.next().is_none_or(|at| at > now) => return,
                _ => {}
            }
        }
        self.require(false, || "it does not come to an end".to_owned());
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Probe => self.probe(),
            Step::Unit {
                host,
                boot,
                unit,
                change,
            } => self.unit(host, boot, unit, change),
            Step::Wait { host, boot, job } => self.wait(host, boot, job),
            Step::Settled {
                host,
                life,
                operation,
            } => self.settle(host, life, operation, false),
            Step::Deadline {
                host,
                life,
                operation,
            } => self.settle(host, life, operation, true),
            Step::Looked { host, life } => self.looked(host, life),
            Step::Surveyed { host, life, talk } => self.surveyed(host, life, talk),
            Step::Deliver { talk, tries, out } => self.deliver(talk, tries, out),
            Step::Reply {
                talk,
                boot,
                tries,
                back,
            } => self.come_back(talk, boot, tries, back),
            Step::Again { host, command } => {
                let at = &self.hosts[host];
                if at.out && at.on {
                    self.command(host, None, &command);
                }
            }
            Step::Link { host, out, back } => {
                let at = &mut self.hosts[host];
                (at.out, at.back) = (out || self.peaceful, back || self.peaceful);
            }
            Step::Databases(health) => {
                if !self.peaceful {
                    self.databases = health;
                }
            }
            Step::Restart { host, told } => self.end_guardian(host, told),
            Step::Up { host, boot } => self.up(host, boot),
            Step::PowerCut(host) => self.power_cut(host),
            Step::Boot { host, boot } => self.boot(host, boot),
            Step::Fails { host, unit } => self.fail(host, unit),
            Step::Hand { host, start } => self.by_hand(host, start),
            Step::Order(order) => {
                if !self.peaceful {
                    self.given.push(order);
                }
            }
            Step::Kill(run) => self.kill(run),
            Step::Stop(run) => self.stop(run),
            Step::Peace => {
                self.peaceful = true;
                self.databases = Health::Ready;
                for host in &mut self.hosts {
                    (host.out, host.back) = (true, true);
                }
            }
        }
    }

    /// After the peace, before the last order: each host is where its guardian says, and where it says is right.
    fn all_is_well(&mut self, repairs: Repairs) {
        self.require(self.open_talks.is_empty(), || {
            "a conversation has no end".to_owned()
        });
        let runs = self.runs.iter().filter(|run| !run.is_over()).count();
        self.require(runs == 0, || "a run has no end".to_owned());
        for host in 0..self.hosts.len() {
            let at = &self.hosts[host];
            let Some(core) = at.core.as_ref() else {
                self.require(false, || format!("host {host} has no guardian"));
                continue;
            };
            let (standing, held, busy) = (core.standing(), core.hold().is_some(), core.current().is_some());
            let (runs, by_hand) = (at.runs(), at.by_hand);
            self.require(!busy, || format!("host {host}: something is under way for ever"));
            let right = match standing {
                _ if by_hand => true,
                _ if held => !runs,
                Standing::Undrained { .. } => runs || repairs == Repairs::NONE,
                Standing::Drained { outage, .. } => !(outage && repairs.undrain_after.is_some()),
                Standing::Unknown => true,
            };
            self.require(right, || {
                format!("host {host} is {standing:?}, held: {held}, runs: {runs}")
            });
        }
    }
}
