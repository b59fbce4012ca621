//! What a history has, and the coordinator's runs in it: each with options of its own, as a command line would have them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use io_guardian::coordinator::generation::next;
use io_guardian::coordinator::rollout::{Waves, roll_out_over};
use io_guardian::coordinator::waves::Wave;
use io_guardian::coordinator::{Fault, HostReport, Observer, Plan, Target, run_over};
use io_guardian::guardian::core::Health;
use io_guardian::protocol::{Action, HoldTerms, PresharedKey, Wire};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::network::Network;
use super::{CHAOS, Fleet, Shared, Step};

/// What somebody wants of the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) action: Action,
    /// Of a hold.
    length: Option<Duration>,
    /// When it is over the databases go, for so long; then comes an undrain.
    outage: Option<Duration>,
    /// Given when all is well: it is to succeed everywhere.
    pub(crate) last: bool,
}

impl Order {
    fn new(action: Action) -> Self {
        Self {
            action,
            length: None,
            outage: None,
            last: false,
        }
    }
}

/// What is told of one host in a run.
#[derive(Default)]
pub(crate) struct OfHost {
    /// The conversations in which it was told, by their numbers, and those in which it was asked.
    pub(crate) told: Vec<usize>,
    pub(crate) asked: Vec<usize>,
    /// When the round of telling began that it was first told in.
    pub(crate) round: Option<Instant>,
    /// How many of the conversations had been when it was told again although it had a result.
    pub(crate) again_from: Option<usize>,
    pub(crate) finished: Option<Instant>,
    /// What the observer was told last.
    pub(crate) shown: Option<HostReport>,
    pub(crate) out_of_sight: bool,
}

pub(crate) struct Run {
    pub(crate) order: Order,
    pub(crate) plan: Plan,
    pub(crate) waves: Option<Waves>,
    pub(crate) begun: Instant,
    pub(crate) hosts: Vec<OfHost>,
    /// When the last wave began, and which hosts it should have been for each: the judge's own idea.
    pub(crate) wave_begun: Instant,
    pub(crate) expected: Option<Vec<Vec<usize>>>,
    /// When the last host had its first result.
    pub(crate) told_by: Instant,
    pub(crate) told_to_stop: bool,
    pub(crate) over: bool,
    pub(crate) killed: bool,
    stop: CancellationToken,
    task: Option<AbortHandle>,
}

impl Run {
    pub(crate) fn is_over(&self) -> bool {
        self.over || self.killed
    }
}

impl Fleet {
    fn somewhen(&mut self) -> Duration {
        Duration::from_millis(self.chance.below(CHAOS.as_millis() as u64))
    }

    /// Draws what the history will have.
    pub(crate) fn plan(&mut self) {
        let secs = Duration::from_secs;
        let hosts = self.hosts.len() as u64;
        self.after(secs(0), Step::Probe);
        self.at(CHAOS, Step::Peace);
        // When something is about to happen, something else does.
        let mut moments = vec![self.somewhen()];
        // The databases are stopped by somebody, and started again.
        for _ in 0..self.chance.below(3) {
            let (at, length) = (self.somewhen(), self.chance.span(90_000));
            let order = Order {
                outage: Some(length),
                ..Order::new(Action::Drain)
            };
            self.at(at, Step::Order(order));
            moments.push(at);
        }
        // They die.
        for _ in 0..self.chance.below(3) {
            let (at, length) = (self.somewhen(), self.chance.span(90_000));
            let health = self.chance.pick(&[Health::Down, Health::Silent, Health::Unclear]);
            self.at(at, Step::Databases(health));
            self.at(at + length, Step::Databases(Health::Ready));
            if self.chance.one_in(2) {
                let undrain = Order::new(Action::Undrain);
                self.at(at + length + secs(1), Step::Order(undrain));
                moments.push(at + length);
            }
        }
        // Orders with no reason, often close to each other.
        for _ in 0..self.chance.below(4) {
            let mut at = self.somewhen();
            moments.push(at);
            for _ in 0..1 + self.chance.below(3) {
                let action = self.chance.pick(&[Action::Drain, Action::Undrain]);
                self.at(at, Step::Order(Order::new(action)));
                at += self.chance.span(60_000);
            }
        }
        if self.chance.one_in(3) {
            let (at, length) = (self.somewhen(), self.chance.span(200_000));
            let hold = Order {
                length: self.chance.one_in(2).then_some(length),
                ..Order::new(Action::Hold)
            };
            self.at(at, Step::Order(hold));
            if self.chance.one_in(2) {
                self.at(at + length, Step::Order(Order::new(Action::Release)));
            }
        }
        for _ in 0..self.chance.below(4 * hosts) {
            let host = self.chance.below(hosts) as usize;
            let at = self.chance.pick(&moments) + self.chance.span(60_000);
            match self.chance.below(8) {
                0..3 => {
                    // One way, the other, or both.
                    let (out, back) = self.chance.pick(&[(false, false), (true, false), (false, true)]);
                    let length = self.chance.span(60_000);
                    self.at(at, Step::Link { host, out, back });
                    let healed = Step::Link {
                        host,
                        out: true,
                        back: true,
                    };
                    self.at(at + length, healed);
                }
                3 => {
                    let told = self.chance.one_in(2);
                    self.at(at, Step::Restart { host, told });
                }
                4..6 => self.at(at, Step::PowerCut(host)),
                6 => {
                    let unit = self.chance.below(3) as usize;
                    self.at(at, Step::Fails { host, unit });
                }
                _ => {
                    let start = self.chance.one_in(2);
                    if self.chance.one_in(4) {
                        self.at(at, Step::Hand { host, start });
                    }
                }
            }
        }
    }

    /// The options of a command.
    fn options(&mut self, order: Order) -> (Plan, Option<Waves>) {
        let calm = order.last;
        let hosts = self.hosts.len();
        let secs = Duration::from_secs;
        let moves = matches!(order.action, Action::Drain | Action::Undrain);
        let generation = (calm || !self.chance.one_in(6)).then(|| self.generation());
        let mut targets: Vec<Target> = (0..hosts)
            .map(|host| Target {
                name: format!("app{host}"),
                host: format!("app{host}"),
                port: 9_876,
                tier: None,
            })
            .collect();
        let mut waves = (moves && self.chance.one_in(2)).then(|| Waves {
            size: (!self.chance.one_in(3)).then(|| 1 + self.chance.below(3) as usize),
            rules: Vec::new(),
            settle: self.chance.span(10_000),
            tolerate: self.chance.pick(&[0, 0, 1, 2]),
            go_on: self.chance.one_in(3),
            from: if calm || !self.chance.one_in(8) { 1 } else { 2 },
        });
        if let Some(waves) = &mut waves {
            for target in &mut targets {
                target.tier = self.chance.pick(&[None, Some(0), Some(1), Some(2)]);
            }
            if self.chance.one_in(4) {
                targets.iter_mut().for_each(|target| target.tier = None);
                waves.rules = ["0=worker.service", "1=web.*"]
                    .iter()
                    .map(|rule| rule.parse().expect("a rule"))
                    .collect();
            }
        }
        let retry = [None, Some(secs(15)), Some(secs(60)), Some(secs(90))];
        let plan = Plan {
            action: order.action,
            targets,
            key: PresharedKey::parse(&"k".repeat(40), Path::new("key")).expect("a key"),
            wire: self.chance.pick(&[Wire::V2, Wire::V2, Wire::Auto]),
            timeout: if calm || !self.chance.one_in(4) {
                secs(60)
            } else {
                secs(5) + self.chance.span(30_000)
            },
            connect_timeout: if self.chance.one_in(2) { secs(5) } else { secs(2) },
            max_parallel: if self.chance.one_in(4) {
                1 + self.chance.below(hosts as u64) as usize
            } else {
                hosts
            },
            retry_for: if calm {
                Some(secs(60))
            } else {
                self.chance.pick(&retry)
            },
            generation,
            terms: (order.action == Action::Hold).then(|| HoldTerms {
                reason: "a test".to_owned(),
                for_ms: order.length.map(|length| length.as_millis() as u64),
            }),
            jitter: if moves && self.chance.one_in(4) {
                self.chance.span(10_000)
            } else {
                Duration::ZERO
            },
        };
        // As `command` does it.
        let waves = waves.filter(|waves| !waves.is_one(&plan));
        (plan, waves)
    }

    /// The next generation, as `generation::take` has it: of a file, and of a clock that is set back now and then.
    fn generation(&mut self) -> u64 {
        if self.chance.one_in(6) {
            self.clock -= self.chance.below(1_000_000);
        }
        let now = self.clock + (self.now() - self.began).as_millis() as u64;
        self.file = next(self.file, now);
        self.orders += 1;
        self.file.expect("generations do not end")
    }

    pub(crate) fn last_order(&mut self) -> Order {
        let action = self.chance.pick(&[Action::Drain, Action::Undrain]);
        Order {
            last: true,
            ..Order::new(action)
        }
    }

    fn begin(&mut self, shared: &Shared, order: Order) -> (Plan, Option<Waves>, Network, CancellationToken) {
        let (plan, waves) = self.options(order);
        let (run, begun) = (self.runs.len(), self.now());
        let network = Network {
            fleet: shared.clone(),
            run,
            plain: plan.wire == Wire::Auto,
            order: self.orders,
            seed: self.chance.next(),
            rounds: Arc::default(),
        };
        self.say(|| format!("run {run}: order {}: {plan:?}, {waves:?}", self.orders));
        let stop = CancellationToken::new();
        self.runs.push(Run {
            order,
            plan: plan.clone(),
            waves: waves.clone(),
            begun,
            hosts: self.hosts.iter().map(|_| OfHost::default()).collect(),
            wave_begun: begun,
            expected: None,
            told_by: begun,
            told_to_stop: false,
            over: false,
            killed: false,
            stop: stop.clone(),
            task: None,
        });
        self.told.runs += 1;
        if !order.last {
            let at = self.chance.span(70_000);
            match self.chance.below(12) {
                0 => self.after(at, Step::Kill(run)),
                1 => self.after(at, Step::Stop(run)),
                _ => {}
            }
        }
        (plan, waves, network, stop)
    }

    /// The coordinator dies. Whoever looks after it begins again, or goes on without.
    pub(crate) fn kill(&mut self, run: usize) {
        let at = &mut self.runs[run];
        if at.is_over() {
            return;
        }
        at.killed = true;
        let order = at.order;
        if let Some(task) = &at.task {
            task.abort();
        }
        self.told.killed += 1;
        if self.chance.one_in(2) {
            self.after(Duration::from_secs(1), Step::Order(order));
        } else {
            self.and_then(order);
        }
    }

    pub(crate) fn stop(&mut self, run: usize) {
        let at = &mut self.runs[run];
        if !at.is_over() {
            at.told_to_stop = true;
            at.stop.cancel();
        }
    }

    /// What follows when an order has come to its end.
    pub(crate) fn and_then(&mut self, order: Order) {
        if let Some(length) = order.outage {
            self.after(Duration::from_millis(100), Step::Databases(Health::Down));
            self.after(length, Step::Databases(Health::Ready));
            let undrain = Order::new(Action::Undrain);
            self.after(length + Duration::from_secs(1), Step::Order(undrain));
        }
    }
}

/// Begins a run.
pub(crate) fn give(shared: &Shared, order: Order) {
    let (plan, waves, network, stop) = shared.with(|fleet| fleet.begin(shared, order));
    let run = network.run;
    let shared_too = shared.clone();
    let task = tokio::spawn(async move {
        let mut ear = Ear(shared_too.clone(), run);
        let outcome = match &waves {
            Some(waves) => roll_out_over(&network, &plan, waves, &mut ear, &stop).await,
            None => run_over(&network, &plan, &mut ear, &stop).await,
        };
        shared_too.with(|fleet| fleet.judge(run, &outcome));
    });
    shared.with(|fleet| fleet.runs[run].task = Some(task.abort_handle()));
}

/// Hears what a run tells while it goes on.
struct Ear(Shared, usize);

impl Observer for Ear {
    fn finished(&mut self, report: &HostReport) {
        self.0.with(|fleet| {
            let now = fleet.now();
            let run = &mut fleet.runs[self.1];
            run.told_by = now;
            let twice = self.of(run, &report.host).is_none_or(|host| {
                host.shown = Some(report.clone());
                host.finished.replace(now).is_some()
            });
            fleet.require(!twice, || {
                format!("run {}: {} has two results", self.1, report.host)
            });
        });
    }

    fn wave(&mut self, number: usize, _of: usize, wave: &Wave) {
        self.0.with(|fleet| {
            let now = fleet.now();
            fleet.say(|| format!("run {}: wave {number}: {:?}", self.1, wave.hosts));
            fleet.runs[self.1].wave_begun = now;
            fleet.told.waves += 1;
        });
    }

    fn retrying(&mut self, _target: &Target, _attempts: u32, _fault: &Fault, _delay: Duration) {
        self.0.with(|fleet| fleet.told.retried += 1);
    }

    fn changed(&mut self, report: &HostReport) {
        self.0.with(|fleet| {
            let has_one = self
                .of(&mut fleet.runs[self.1], &report.host)
                .is_some_and(|host| {
                    host.shown = Some(report.clone());
                    host.finished.is_some()
                });
            fleet.require(has_one, || {
                format!("run {}: {} changes, and was not", self.1, report.host)
            });
        });
    }

    fn out_of_sight(&mut self, target: &Target, _fault: &Fault) {
        self.0.with(|fleet| {
            fleet.told.out_of_sight += 1;
            if let Some(host) = self.of(&mut fleet.runs[self.1], &target.name) {
                host.out_of_sight = true;
            }
        });
    }
}

impl Ear {
    fn of<'a>(&self, run: &'a mut Run, name: &str) -> Option<&'a mut OfHost> {
        let at = run.plan.targets.iter().position(|target| target.name == name)?;
        run.hosts.get_mut(at)
    }
}
