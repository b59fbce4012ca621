//! A host: its kernel, its process, what the process has left in `/run`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use io_guardian::store::{LeaseId, StoreError};
use io_guardian::vip::core::{At, Core, Effect, Event, Inheritance, Settings};
use io_guardian::vip::said::Said;

use super::store::{Request, Watched};
use super::{Clock, Step, World, stranger_address};

/// What the kernel answers for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    until: Duration,
    /// By which lease it was taken.
    lease: LeaseId,
    /// A drop has failed: it is not made to last longer.
    doomed: bool,
}

/// Something that a process does on its host.
#[derive(Clone, Debug)]
enum Operation {
    Take(IpAddr, Duration, LeaseId),
    Extend(Duration),
    Drop(IpAddr),
    Announce,
    Finished,
}

pub(super) struct Process {
    pub(super) life: u64,
    pub(super) core: Core,
    /// What has arrived while it stood still.
    inbox: VecDeque<Event>,
    operations: VecDeque<Operation>,
    /// When the last of them will be done.
    busy_until: Duration,
    /// The requests that it waits for: when they were sent.
    pub(super) waits: BTreeMap<u64, (At, Request)>,
    pub(super) watch: Option<Watched>,
    /// Only the newest wake counts.
    wake: u64,
}

pub(super) struct Host {
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    kernel: BTreeMap<IpAddr, Entry>,
    pub(super) process: Option<Process>,
    lives: u64,
    requests: u64,
    /// What is in `/run`.
    file: Option<(LeaseId, At)>,
    pub(super) powered: bool,
    pub(super) frozen: bool,
    pub(super) suspended: bool,
    pub(super) healthy: bool,
    pub(super) interface: bool,
    /// Nothing can be put on its interface; or not these.
    pub(super) all_fails: bool,
    pub(super) fails: BTreeSet<IpAddr>,
    pub(super) drops_fail: bool,
    /// Nobody mends it.
    pub(super) is_left: bool,
    /// When its process ends, another one begins.
    pub(super) begins_again: Option<(Duration, bool)>,
}

impl Host {
    pub(super) fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings,
            clock,
            kernel: BTreeMap::new(),
            process: None,
            lives: 0,
            requests: 0,
            file: None,
            powered: true,
            frozen: false,
            suspended: false,
            healthy: true,
            interface: true,
            all_fails: false,
            fails: BTreeSet::new(),
            drops_fail: false,
            is_left: false,
            begins_again: None,
        }
    }

    pub(super) fn answers(&self, now: Duration) -> impl Iterator<Item = (IpAddr, LeaseId)> + '_ {
        let now = self.clock.local(now);
        let alive = self.powered && !self.suspended;
        let entries = self
            .kernel
            .iter()
            .filter(move |(_, entry)| alive && now < entry.until);
        entries.map(|(address, entry)| (*address, entry.lease))
    }

    pub(super) fn stands_still(&self) -> bool {
        self.frozen || self.suspended
    }

    pub(super) fn health(&self) -> Result<(), String> {
        match (self.interface, self.healthy) {
            (false, _) => Err("the interface is down".to_owned()),
            (_, false) => Err("the check fails".to_owned()),
            _ => Ok(()),
        }
    }
}

impl World {
    fn is_alive(&self, host: usize, life: u64) -> bool {
        self.hosts[host]
            .process
            .as_ref()
            .is_some_and(|process| process.life == life)
    }

    pub(super) fn start(&mut self, host: usize, inherit: bool) {
        let now = self.now;
        let it = &mut self.hosts[host];
        if it.process.is_some() || !it.powered || it.is_left {
            return;
        }
        it.lives += 1;
        it.frozen = false;
        let local = it.clock.local(now);
        let inheritance = it.file.filter(|_| inherit).map(|(lease, until)| Inheritance {
            lease,
            until,
            addresses: it
                .kernel
                .iter()
                .filter(|(_, entry)| local < entry.until)
                .map(|(address, _)| *address)
                .collect(),
        });
        match &inheritance {
            Some(inheritance) => {
                self.told.inherited += inheritance.addresses.len() as u64;
                it.kernel
                    .retain(|address, _| inheritance.addresses.contains(address));
                // That a drop has failed only the one before knew.
                it.kernel.values_mut().for_each(|entry| entry.doomed = false);
            }
            // What is there is nobody's.
            None => it.kernel.clear(),
        }
        self.told.restarts += 1;
        let life = it.lives;
        it.process = Some(Process {
            life,
            core: Core::new(it.settings.clone(), inheritance),
            inbox: VecDeque::new(),
            operations: VecDeque::new(),
            busy_until: now,
            waits: BTreeMap::new(),
            watch: None,
            wake: 0,
        });
        self.feed(host, Event::Time);
        let soon = if self.peaceful { 20 } else { 500 };
        let delay = self.chance.span(soon);
        self.after(delay, Step::Health { host, life });
    }

    /// The process is gone, whatever it was about to do.
    pub(super) fn kill(&mut self, host: usize) {
        self.hosts[host].process = None;
        self.hosts[host].frozen = false;
    }

    /// The host is gone.
    pub(super) fn power_off(&mut self, host: usize) {
        self.kill(host);
        let it = &mut self.hosts[host];
        it.powered = false;
        it.suspended = false;
        it.kernel.clear();
        it.file = None;
        it.begins_again = None;
    }

    pub(super) fn power_on(&mut self, host: usize) {
        if self.hosts[host].powered {
            return;
        }
        self.told.boots += 1;
        let said = self.chance.span(10_000);
        let it = &mut self.hosts[host];
        it.powered = true;
        it.clock.began = self.now;
        it.clock.said = said;
        self.start(host, true);
    }

    pub(super) fn tell_health(&mut self, host: usize) {
        let Some(life) = self.hosts[host].process.as_ref().map(|process| process.life) else {
            return;
        };
        let delay = self.chance.span(5);
        self.after(delay, Step::Health { host, life });
    }

    /// The check says how it is now.
    pub(super) fn checked(&mut self, host: usize, life: u64) {
        let health = self.hosts[host].health();
        self.arrive(host, life, Event::Health(health));
    }

    /// Something happens to a host's process, a moment from now.
    pub(super) fn tell(&mut self, host: usize, event: Event) {
        let Some(life) = self.hosts[host].process.as_ref().map(|process| process.life) else {
            return;
        };
        let delay = self.chance.span(5);
        let event = Box::new(event);
        self.after(delay, Step::Arrive { host, life, event });
    }

    pub(super) fn arrive(&mut self, host: usize, life: u64, event: Event) {
        if self.is_alive(host, life) {
            self.receive(host, event);
        }
    }

    fn receive(&mut self, host: usize, event: Event) {
        if self.hosts[host].stands_still() {
            if let Some(process) = &mut self.hosts[host].process {
                process.inbox.push_back(event);
            }
        } else {
            self.feed(host, event);
        }
    }

    pub(super) fn wake(&mut self, host: usize, life: u64, number: u64) {
        let is_due = |process: &Process| process.life == life && process.wake == number;
        if self.hosts[host].process.as_ref().is_some_and(is_due) {
            self.receive(host, Event::Time);
        }
    }

    /// It goes on: all that has arrived meanwhile is looked at, in an order that nobody has promised.
    pub(super) fn go_on(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        if it.stands_still() {
            return;
        }
        let Some(process) = &mut it.process else { return };
        let (life, inbox) = (process.life, std::mem::take(&mut process.inbox));
        for event in self.mingle(inbox) {
            if self.is_alive(host, life) {
                self.receive(host, event);
            }
        }
        if self.is_alive(host, life) {
            self.operate_next(host);
        }
    }

    /// What has arrived while it stood still: what a watch tells, and what the host tells, is in order; what the store answers is in any; and which of the
    /// three is looked at first nobody knows.
    fn mingle(&mut self, inbox: VecDeque<Event>) -> Vec<Event> {
        let mut queues = [VecDeque::new(), VecDeque::new(), VecDeque::new()];
        for event in inbox {
            let queue = match event {
                Event::Committed { .. } | Event::KeptAlive { .. } | Event::Granted { .. } => 0,
                Event::Looked(_) | Event::Changes(_) | Event::WatchEnded(_) => 1,
                _ => 2,
            };
            if queue == 0 && self.chance.one_in(2) {
                queues[0].push_front(event);
            } else {
                queues[queue].push_back(event);
            }
        }
        let mut all = Vec::new();
        while queues.iter().any(|queue| !queue.is_empty()) {
            let queue = self.chance.below(3) as usize;
            let some = self.chance.below(4) as usize;
            let some = some.min(queues[queue].len());
            all.extend(queues[queue].drain(..some));
        }
        all
    }

    /// The core decides.
    fn feed(&mut self, host: usize, mut event: Event) {
        let (now, broken) = (self.now, self.broken);
        let it = &mut self.hosts[host];
        let local = At(it.clock.local(now));
        let Some(process) = &mut it.process else { return };
        if let Some(broken) = broken {
            broken.hears(local, &mut event);
        }
        let mut effects = process.core.on(local, event);
        let believed = broken.map(|broken| broken.does(it.settings.margin * 2, &mut effects));
        let (life, lease) = (process.life, process.core.session().map(|(lease, _)| lease));
        let session = process.core.session();
        // The last thing that it does; it may be killed before. But not before it takes away what is no inheritance any more.
        if session.is_none() || !self.chance.one_in(20) {
            it.file = session;
        }
        process.wake += 1;
        let (number, wake) = (process.wake, process.core.wake());
        for effect in effects {
            self.act(host, local, lease, effect);
        }
        if let Some(wake) = wake {
            let at = self.hosts[host].clock.truly(wake.0);
            let at = at.max(now + Duration::from_micros(10));
            self.at(at, Step::Wake { host, life, number });
        }
        for event in believed.into_iter().flatten() {
            self.feed(host, event);
        }
    }

    fn act(&mut self, host: usize, local: At, lease: Option<LeaseId>, effect: Effect) {
        if self.loud {
            println!("{:9.4}     host{host}: {effect:?}", self.now.as_secs_f64());
        }
        let operation = match effect {
            Effect::Grant { ttl } => return self.send(host, local, Request::Grant(ttl)),
            Effect::KeepAlive { lease } => return self.send(host, local, Request::KeepAlive(lease)),
            Effect::Revoke { lease } => return self.send(host, local, Request::Revoke(lease)),
            Effect::Commit { ticket, transaction } => {
                return self.send(host, local, Request::Commit(ticket, transaction));
            }
            Effect::Look => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.watch = None;
                }
                return self.send(host, local, Request::Look);
            }
            Effect::Say(said) => return self.hear(&said),
            Effect::Ask { addresses } => {
                let Some(life) = self.hosts[host].process.as_ref().map(|process| process.life) else {
                    return;
                };
                return self.neighbours(host, life, addresses, BTreeMap::new(), 3);
            }
            Effect::Take { address, until } => {
                self.told.taken += 1;
                assert!(
                    !self.quiet,
                    "host{host} takes {address}, and all was where it belongs"
                );
                let Some(lease) = lease else {
                    panic!("host{host} takes {address} with no lease");
                };
                Operation::Take(address, until.0, lease)
            }
            Effect::Extend { until } => Operation::Extend(until.0),
            Effect::Drop { address } => {
                self.told.dropped += 1;
                assert!(
                    !self.quiet,
                    "host{host} drops {address}, and all was where it belongs"
                );
                Operation::Drop(address)
            }
            Effect::Announce { .. } => Operation::Announce,
            Effect::Finished => Operation::Finished,
        };
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let was_idle = process.operations.is_empty();
        process.operations.push_back(operation);
        if was_idle {
            self.operate_next(host);
        }
    }

    /// Asks three times, a tenth of a second apart, and tells what was answered a tenth later.
    pub(super) fn neighbours(
        &mut self,
        host: usize,
        life: u64,
        addresses: BTreeSet<IpAddr>,
        mut found: BTreeMap<IpAddr, String>,
        more: u32,
    ) {
        if more == 0 {
            // Now and then nobody tells; but what a stranger says is heard.
            if !found.is_empty() || self.peaceful || !self.chance.one_in(60) {
                self.arrive(host, life, Event::Answered { addresses, found });
            }
            return;
        }
        for address in &addresses {
            let others = self
                .answering(*address)
                .into_iter()
                .filter(|other| *other != host);
            let strangers = self.stranger && *address == stranger_address();
            if let Some(other) = others.map(|other| format!("host{other}")).next() {
                found.insert(*address, other);
            } else if strangers {
                found.insert(*address, "a stranger".to_owned());
            }
        }
        let again = Step::Neighbours {
            host,
            life,
            addresses,
            found,
            more: more - 1,
        };
        self.after(Duration::from_millis(100), again);
    }

    fn hear(&mut self, said: &Said) {
        match said {
            Said::Took { from: Some(_), .. } => self.told.taken_over += 1,
            Said::Lapsed { .. } => self.told.lapsed += 1,
            Said::TakeFailed { .. } => {
                self.told.failed += 1;
                self.troubled = true;
            }
            Said::Stranger { .. } => {
                self.told.strangers += 1;
                self.troubled = true;
            }
            Said::NameInUse { .. } => self.told.rivals += 1,
            _ => {}
        }
    }

    fn operate_next(&mut self, host: usize) {
        let Some(process) = &self.hosts[host].process else {
            return;
        };
        if process.operations.is_empty() {
            return;
        }
        let life = process.life;
        let most = if self.chance.one_in(50) && !self.peaceful {
            40_000
        } else {
            800
        };
        let delay = Duration::from_micros(1 + self.chance.below(most));
        self.after(delay, Step::Operate { host, life });
    }

    pub(super) fn operate(&mut self, host: usize, life: u64) {
        if !self.is_alive(host, life) || self.hosts[host].stands_still() {
            return;
        }
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        // Another step for the same one, of before it stood still.
        if self.now < process.busy_until {
            return;
        }
        process.busy_until = self.now + Duration::from_nanos(1);
        let Some(operation) = process.operations.pop_front() else {
            return;
        };
        let answer = self.operate_one(host, operation);
        self.operate_next(host);
        // Now and then nobody says that it is done.
        if let Some(event) = answer
            && (self.peaceful || !self.chance.one_in(60))
        {
            self.receive(host, event);
        }
    }

    fn operate_one(&mut self, host: usize, operation: Operation) -> Option<Event> {
        let now = self.now;
        match operation {
            Operation::Take(address, until, lease) => {
                let fails = self.hosts[host].all_fails || self.hosts[host].fails.contains(&address);
                // What goes wrong may go wrong after the kernel has begun to answer.
                if !fails || self.chance.one_in(3) {
                    let doomed = false;
                    self.hosts[host]
                        .kernel
                        .insert(address, Entry { until, lease, doomed });
                }
                let result = if fails {
                    Err("it does not work".to_owned())
                } else {
                    Ok(())
                };
                Some(Event::Taken { address, result })
            }
            Operation::Extend(until) => {
                for entry in self.hosts[host].kernel.values_mut() {
                    if !entry.doomed {
                        entry.until = until;
                    }
                }
                None
            }
            Operation::Drop(address) => {
                let fails = self.hosts[host].drops_fail && self.chance.one_in(2);
                if fails {
                    if let Some(entry) = self.hosts[host].kernel.get_mut(&address) {
                        entry.doomed = true;
                    }
                } else {
                    self.hosts[host].kernel.remove(&address);
                }
                let result = if fails {
                    Err("it does not work".to_owned())
                } else {
                    Ok(())
                };
                Some(Event::Dropped { address, result })
            }
            // The kernel does not let it out when it does not answer for the address itself.
            Operation::Announce => None,
            Operation::Finished => {
                self.hosts[host].process = None;
                if let Some((delay, inherit)) = self.hosts[host].begins_again.take() {
                    self.at(now + delay, Step::Start { host, inherit });
                }
                None
            }
        }
    }

    /// Somebody else has taken it off the interface.
    pub(super) fn lose(&mut self, host: usize, address: IpAddr) {
        if self.hosts[host].kernel.remove(&address).is_some() {
            self.tell(host, Event::Lost { address });
        }
    }

    pub(super) fn next_request(&mut self, host: usize) -> u64 {
        self.hosts[host].requests += 1;
        self.hosts[host].requests
    }

    pub(super) fn answered(&mut self, host: usize, life: u64, request: u64, event: Event) {
        if !self.is_alive(host, life) {
            return;
        }
        let now = self.now;
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let was_waited_for = process.waits.remove(&request).is_some();
        // The shell has given up on it. Now and then it has not, and tells both.
        if !was_waited_for && !self.chance.one_in(8) {
            return;
        }
        if let Event::Looked(Ok(snapshot)) = &event {
            let watch = Watched::new(self.number, snapshot.revision, now);
            if let Some(process) = &mut self.hosts[host].process {
                process.watch = Some(watch);
            }
            self.pump_soon(host);
        }
        self.receive(host, event);
    }

    pub(super) fn impatient(&mut self, host: usize, life: u64, request: u64) {
        if !self.is_alive(host, life) || self.hosts[host].stands_still() {
            // What it finds when it goes on is the answer, if there is one; else it is still impatient.
            if self.is_alive(host, life) {
                self.after(Duration::from_millis(50), Step::Impatient { host, life, request });
            }
            return;
        }
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let Some((sent, what)) = process.waits.remove(&request) else {
            return;
        };
        let silent = || StoreError::Unknown("no answer in time".to_owned());
        let event = match what {
            Request::Grant(_) => Event::Granted {
                sent,
                result: Err(silent()),
            },
            Request::KeepAlive(lease) => Event::KeptAlive {
                lease,
                sent,
                result: Err(silent()),
            },
            Request::Commit(ticket, _) => Event::Committed {
                ticket,
                sent,
                result: Err(silent()),
            },
            Request::Look => Event::Looked(Err(silent())),
            Request::Revoke(_) => return,
        };
        self.feed(host, event);
    }
}
