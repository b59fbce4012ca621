//! One history of a cluster of `io-vip`: the real cores of two to five hosts over a network and a store that do everything that a network and a
//! store may do. What happens is drawn from the seed (`chaos`), `host` has what a host is made of, `store` what lies between the hosts.
//!
//! **Invariants**, looked at after every step:
//! - An address that a stranger has had since before it came into the pool is answered for by no host.
//! - While a host answers for an address, the store has that address marked under the lease that the host has taken it by. As there is one mark for
//!   an address, never do two hosts answer for it.
//!
//! **And at the end**, when all that was broken is mended: within [`World::bound`] each address of the pool is answered for by one host that is well,
//! nothing else is held, the spread is what `share` would leave alone, and from then on nothing is taken or dropped any more.
//!
//! The kernel is as good as its word here: an address answers from `Take` to `Drop`, or until the moment of the host's clock that `Take` and `Extend` have named.

mod broken;
mod chaos;
mod host;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::AddAssign;
use std::time::Duration;

use io_guardian::store::Memory;
use io_guardian::vip::core::{Event, Settings};
use io_guardian::vip::keys::{Key, Keys, is_untried};
use io_guardian::vip::share::{Question, share};

use super::chance::Chance;
pub(crate) use broken::Broken;
use chaos::Fault;
use host::Host;
use store::{Link, Request};

const PREFIX: &str = "/service/lab/";
/// How long the chaos lasts.
const CHAOS: Duration = Duration::from_secs(20);
/// How long nothing may move at the end.
const QUIET: Duration = Duration::from_secs(5);
/// The longest that a node leaves an address alone which it could not take.
const TROUBLE: Duration = Duration::from_secs(60);

/// What happened, in all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) taken: u64,
    pub(crate) taken_over: u64,
    pub(crate) dropped: u64,
    pub(crate) lapsed: u64,
    pub(crate) inherited: u64,
    pub(crate) failed: u64,
    pub(crate) rivals: u64,
    pub(crate) strangers: u64,
    pub(crate) restarts: u64,
    pub(crate) boots: u64,
    pub(crate) steps: u64,
}

impl AddAssign for Told {
    fn add_assign(&mut self, more: Self) {
        self.taken += more.taken;
        self.taken_over += more.taken_over;
        self.dropped += more.dropped;
        self.lapsed += more.lapsed;
        self.inherited += more.inherited;
        self.failed += more.failed;
        self.rivals += more.rivals;
        self.strangers += more.strangers;
        self.restarts += more.restarts;
        self.boots += more.boots;
        self.steps += more.steps;
    }
}

/// A clock that is faster or slower than the true time. It counts suspend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// When it began, truly, and what it said then.
    began: Duration,
    said: Duration,
    /// Parts in a million.
    fast: i64,
}

impl Clock {
    fn local(&self, now: Duration) -> Duration {
        let span = (now - self.began).as_nanos() as i128;
        self.said + Duration::from_nanos((span + span * i128::from(self.fast) / 1_000_000) as u64)
    }

    /// The first moment at which it says `at`, or more.
    fn truly(&self, at: Duration) -> Duration {
        let span = at.saturating_sub(self.said).as_nanos() as i128;
        let million = 1_000_000;
        self.began + Duration::from_nanos((span * million / (million + i128::from(self.fast))) as u64 + 2)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A process wanted to be asked again.
    Wake {
        host: usize,
        life: u64,
        number: u64,
    },
    /// Something arrives at a process.
    Arrive {
        host: usize,
        life: u64,
        event: Box<Event>,
    },
    /// A process hears how its host is.
    Health {
        host: usize,
        life: u64,
    },
    /// A process' next operation on its host is done.
    Operate {
        host: usize,
        life: u64,
    },
    /// A process asks its neighbours who has these, once more or for the last time.
    Neighbours {
        host: usize,
        life: u64,
        addresses: BTreeSet<IpAddr>,
        found: BTreeMap<IpAddr, String>,
        more: u32,
    },
    /// A request arrives at the store.
    Ask {
        host: usize,
        life: u64,
        request: u64,
        what: Box<Request>,
        again: bool,
    },
    /// An answer of the store arrives at a process.
    Answer {
        host: usize,
        life: u64,
        request: u64,
        event: Box<Event>,
    },
    /// A process waits for an answer no longer.
    Impatient {
        host: usize,
        life: u64,
        request: u64,
    },
    /// A member of the store looks at what a watch has not been told yet.
    Pump {
        host: usize,
        life: u64,
        watch: u64,
    },
    /// The store looks for leases that have ended.
    Expire,
    /// A process begins.
    Start {
        host: usize,
        inherit: bool,
    },
    Fault(Fault),
    Peace,
    /// By now all should be where it belongs.
    Settled,
    End,
}

pub(crate) struct World {
    chance: Chance,
    now: Duration,
    steps: BTreeMap<(Duration, u64), Step>,
    number: u64,
    loud: bool,
    told: Told,
    keys: Keys,
    /// They are looked at all the time.
    mark_keys: BTreeMap<IpAddr, String>,

    hosts: Vec<Host>,
    /// They do not all go by the same times.
    mixed: bool,
    links: Vec<Link>,
    memory: Memory,
    store_clock: Clock,
    majority: bool,
    pool: BTreeSet<IpAddr>,
    /// Somebody who is no host of ours has the last address, [`stranger_address`].
    stranger: bool,
    /// Something could not be put on an interface: it is left alone for a while.
    troubled: bool,
    /// The chaos is over.
    peaceful: bool,
    /// Nothing may move any more.
    quiet: bool,
    broken: Option<Broken>,
}

pub(crate) fn live(seed: u64, loud: bool) -> Told {
    live_with(seed, loud, None)
}

/// The same with cores that are broken.
pub(crate) fn live_with(seed: u64, loud: bool, broken: Option<Broken>) -> Told {
    let mut world = World::new(seed, loud);
    world.broken = broken;
    world.plan();
    world.run();
    world.told
}

/// One that is never in the pool unless somebody else has it already.
fn stranger_address() -> IpAddr {
    address(10)
}

fn address(n: u64) -> IpAddr {
    if n % 3 == 2 {
        format!("2001:db8::{n:x}").parse().expect("it is one")
    } else {
        IpAddr::from([10, 0, 0, n as u8 + 1])
    }
}

impl World {
    fn new(seed: u64, loud: bool) -> Self {
        let mut chance = Chance(seed);
        let hosts = 2 + chance.below(4) as usize;
        let namesakes = chance.one_in(12);
        let mixed = chance.one_in(4);
        let common = Self::settings(&mut chance);
        let all: Vec<Settings> = (0..hosts)
            .map(|n| {
                let mut settings = if mixed {
                    Self::settings(&mut chance)
                } else {
                    common.clone()
                };
                settings.node = format!("host{}", if namesakes && n == 1 { 0 } else { n });
                settings
            })
            .collect();
        // As fast and as slow as the smallest margin pays for.
        let bound = |settings: &Settings| {
            let (ttl, margin) = (
                settings.ttl.as_micros() as i64,
                settings.margin.as_micros() as i64,
            );
            margin * 1_000_000 / (2 * ttl - margin)
        };
        let most = all.iter().map(bound).min().unwrap_or(0);
        let clock = |chance: &mut Chance| Clock {
            began: Duration::ZERO,
            said: chance.span(1_000_000),
            fast: match chance.below(3) {
                0 => most,
                1 => -most,
                _ => chance.below(2 * most as u64 + 1) as i64 - most,
            },
        };
        let store_clock = clock(&mut chance);
        let hosts: Vec<Host> = all
            .into_iter()
            .map(|settings| Host::new(settings, clock(&mut chance)))
            .collect();
        let mut memory = Memory::default();
        let keys = Keys::new(PREFIX);
        let pool: BTreeSet<IpAddr> = (0..1 + chance.below(8)).map(address).collect();
        for address in &pool {
            let put = io_guardian::store::Transaction::default().put(keys.of(&Key::Pool(*address)), "", None);
            memory.commit(&put).expect("it is put");
        }
        Self {
            links: vec![Link::default(); hosts.len()],
            chance,
            now: Duration::from_secs(1),
            steps: BTreeMap::new(),
            number: 0,
            loud,
            told: Told::default(),
            mark_keys: (0..=10)
                .map(address)
                .map(|at| (at, keys.of(&Key::Marked(at))))
                .collect(),
            keys,
            hosts,
            mixed,
            memory,
            store_clock,
            majority: true,
            pool,
            stranger: false,
            troubled: false,
            peaceful: false,
            quiet: false,
            broken: None,
        }
    }

    fn settings(chance: &mut Chance) -> Settings {
        let ttl = Duration::from_millis(chance.pick(&[2_000, 2_000, 2_500, 2_500, 3_000, 5_000]));
        let margin = ttl / chance.pick(&[4, 10, 20]) as u32;
        let interval = (ttl - margin) / chance.pick(&[3, 4]) as u32;
        Settings {
            node: String::new(),
            prefix: PREFIX.to_owned(),
            ttl,
            margin,
            interval,
            patience: interval * chance.pick(&[2, 3, 4]) as u32 / 4,
        }
    }

    /// Within this all is where it belongs, once nothing is broken any more: whoever is silent is waited for, what has hung is given up, and the rest is
    /// a few answers of the store for each address that moves.
    fn bound(&self) -> Duration {
        let longest = self
            .hosts
            .iter()
            .map(|host| host.settings.ttl)
            .max()
            .unwrap_or_default();
        longest * 2 + Duration::from_secs(4) + if self.troubled { TROUBLE } else { Duration::ZERO }
    }

    fn after(&mut self, delay: Duration, step: Step) {
        self.at(self.now + delay, step);
    }

    fn at(&mut self, at: Duration, step: Step) {
        self.number += 1;
        self.steps.insert((at.max(self.now), self.number), step);
    }

    fn run(&mut self) {
        while let Some(((at, _), step)) = self.steps.pop_first() {
            self.told.steps += 1;
            assert!(self.told.steps < 300_000, "it does not come to an end");
            self.now = at;
            if self.loud
                && !matches!(
                    step,
                    Step::Wake { .. }
                        | Step::Pump { .. }
                        | Step::Expire
                        | Step::Operate { .. }
                        | Step::Ask { .. }
                )
            {
                println!("{:9.4} {step:?}", at.as_secs_f64());
            }
            if matches!(step, Step::End) {
                return;
            }
            // Whether a host answers, and who has marked what, changes in no other way but by time, which only ever ends it.
            let matters = matches!(
                step,
                Step::Operate { .. } | Step::Start { .. } | Step::Fault(_) | Step::Peace
            );
            let before = self.memory.revision();
            self.happen(step);
            if matters || self.memory.revision() != before {
                self.judge();
            }
        }
    }

    fn happen(&mut self, step: Step) {
        match step {
            Step::Wake { host, life, number } => self.wake(host, life, number),
            Step::Arrive { host, life, event } => self.arrive(host, life, *event),
            Step::Health { host, life } => self.checked(host, life),
            Step::Operate { host, life } => self.operate(host, life),
            Step::Neighbours {
                host,
                life,
                addresses,
                found,
                more,
            } => self.neighbours(host, life, addresses, found, more),
            Step::Ask {
                host,
                life,
                request,
                what,
                again,
            } => self.ask(host, life, request, *what, again),
            Step::Answer {
                host,
                life,
                request,
                event,
            } => self.answered(host, life, request, *event),
            Step::Impatient { host, life, request } => self.impatient(host, life, request),
            Step::Pump { host, life, watch } => self.pump(host, life, watch),
            Step::Expire => self.expire(),
            Step::Start { host, inherit } => self.start(host, inherit),
            Step::Fault(fault) => self.fault(fault),
            Step::Peace => self.peace(),
            Step::Settled => self.settled(),
            Step::End => {}
        }
    }

    /// The invariants.
    fn judge(&self) {
        for (n, host) in self.hosts.iter().enumerate() {
            for (address, lease) in host.answers(self.now) {
                assert!(
                    !self.stranger || address != stranger_address(),
                    "host{n} answers for {address}, and so does somebody else"
                );
                let mark = self.mark_keys.get(&address).and_then(|key| self.memory.get(key));
                let by = mark.and_then(|mark| mark.lease);
                assert!(
                    by == Some(lease),
                    "host{n} answers for {address} by lease {lease}, and its mark is {mark:?}"
                );
            }
        }
    }

    fn answering(&self, address: IpAddr) -> Vec<usize> {
        let answers = |n: &usize| self.hosts[*n].answers(self.now).any(|(of, _)| of == address);
        (0..self.hosts.len()).filter(answers).collect()
    }

    /// Whether it should take part, now that all is mended.
    fn is_well(&self, host: usize) -> bool {
        let link = self.links[host];
        let host = &self.hosts[host];
        let paused = self.keys.of(&Key::Paused(host.settings.node.clone()));
        let runs = host.process.is_some() && !host.stands_still();
        runs && host.health().is_ok()
            && link.to
            && link.from
            && !link.unseen
            && self.memory.get(&paused).is_none()
    }

    fn peace(&mut self) {
        self.mend();
        self.peaceful = true;
        let bound = self.bound();
        self.after(bound, Step::Settled);
        self.after(bound + QUIET, Step::End);
    }

    /// All is where it belongs.
    fn settled(&mut self) {
        self.quiet = true;
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for address in &self.pool {
            let by = self.answering(*address);
            if self.stranger && *address == stranger_address() {
                continue;
            }
            assert!(
                by.len() == 1,
                "{address} is answered for by {by:?}: {}",
                self.shown()
            );
            assert!(self.is_well(by[0]), "{address} is answered for by host {}", by[0]);
            owners.insert(*address, self.hosts[by[0]].settings.node.as_str());
        }
        for host in &self.hosts {
            for (address, _) in host.answers(self.now) {
                assert!(self.pool.contains(&address), "{address} is not of the pool");
            }
        }
        let well = (0..self.hosts.len()).filter(|host| self.is_well(*host));
        let nodes = well.map(|host| self.hosts[host].settings.node.as_str()).collect();
        let prefers = |address: &IpAddr| {
            let node = &self.memory.get(&self.keys.of(&Key::Preferred(*address)))?.value;
            Some((*address, node.as_str()))
        };
        let entries = self.memory.list(PREFIX).entries;
        let unable: Vec<(String, IpAddr, bool)> = entries
            .iter()
            .filter_map(|entry| match self.keys.read(&entry.key) {
                Ok(Some(Key::Cannot(node, address))) => {
                    let wanted = self.memory.get(&self.keys.of(&Key::Preferred(address)));
                    let wanted = wanted.filter(|wanted| wanted.value == node);
                    let is_untried = is_untried(&entry.value);
                    let is_wanted = wanted.is_some_and(|wanted| wanted.modified > entry.modified);
                    (!is_untried || !is_wanted).then_some((node, address, is_untried))
                }
                _ => None,
            })
            .collect();
        let of = |untried: bool| {
            let those = unable
                .iter()
                .filter(move |(_, _, is_untried)| *is_untried == untried);
            those
                .map(|(node, address, _)| (node.as_str(), *address))
                .collect()
        };
        let question = Question {
            pool: self.pool.clone(),
            nodes,
            owners: owners.clone(),
            preferred: self.pool.iter().filter_map(prefers).collect(),
            cannot: of(false),
            untried: of(true),
        };
        assert!(
            share(&question) == owners,
            "{owners:?} is not fair: {:?}",
            share(&question)
        );
    }

    fn shown(&self) -> String {
        let of = |host: &Host| {
            let process = host.process.as_ref()?;
            let shown = process
                .core
                .status(io_guardian::vip::core::At(host.clock.local(self.now)));
            Some(format!("{shown:#?}"))
        };
        let all: Vec<String> = self.hosts.iter().filter_map(of).collect();
        all.join("\n")
    }
}
