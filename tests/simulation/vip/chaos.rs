//! What goes wrong, and how it is mended.

use std::net::IpAddr;
use std::time::Duration;

use io_guardian::store::Transaction;
use io_guardian::vip::core::Event;
use io_guardian::vip::keys::Key;

use super::store::Link;
use super::{CHAOS, Step, World, address, stranger_address};

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Crash(usize),
    Boot(usize),
    Kill(usize),
    Stop {
        host: usize,
        keep: bool,
    },
    Freeze(usize),
    Thaw(usize),
    Suspend(usize),
    Resume(usize),
    Health(usize, bool),
    Interface(usize, bool),
    Cut {
        host: usize,
        to: bool,
        from: bool,
    },
    Slow {
        host: usize,
        late_ms: u64,
        loses: Option<u64>,
    },
    Mend(usize),
    WatchEnds(usize),
    WatchStuck(usize, Duration),
    WatchDies(usize),
    /// The store does what it is told to do, and cannot be listed or watched from there; or it can again.
    Unseen(usize, bool),
    Majority(bool),
    /// Another member leads.
    Leader,
    Compact,
    Fails(usize, Option<IpAddr>),
    Works(usize),
    DropsFail(usize, bool),
    Lose(usize, IpAddr),
    /// Somebody who is no host of ours has an address, before it comes into the pool; or no more.
    Stranger(bool),
    Pool(IpAddr, bool),
    Prefer(IpAddr, Option<usize>),
    Pause(usize, bool),
    /// Somebody deletes a node's key by hand.
    DeleteNode(usize),
    /// Or what says how long it must be waited for: all others say the same.
    DeleteTtl(usize),
}

impl World {
    fn somewhen(&mut self) -> Duration {
        Duration::from_millis(self.chance.below(CHAOS.as_millis() as u64))
    }

    fn any(&mut self) -> usize {
        self.chance.below(self.hosts.len() as u64) as usize
    }

    /// Now, and the opposite after a while.
    fn for_a_while(&mut self, longest_ms: u64, fault: Fault, over: Fault) {
        let (at, length) = (self.somewhen(), self.chance.span(longest_ms));
        self.after(at, Step::Fault(fault));
        self.after(at + length, Step::Fault(over));
    }

    /// Draws all that the history will have.
    pub(super) fn plan(&mut self) {
        for host in 0..self.hosts.len() {
            let late = if self.chance.one_in(5) {
                self.somewhen()
            } else {
                Duration::ZERO
            };
            let delay = late + self.chance.span(300);
            self.after(delay, Step::Start { host, inherit: false });
        }
        self.after(CHAOS, Step::Peace);
        self.after(Duration::ZERO, Step::Expire);
        // Most histories have something of some kinds.
        let much = 2 + self.chance.below(14);
        for _ in 0..much {
            let host = self.any();
            match self.chance.below(24) {
                0 => {
                    let at = self.somewhen();
                    self.after(at, Step::Fault(Fault::Crash(host)));
                    if !self.chance.one_in(4) {
                        let off = self.chance.span(10_000);
                        self.after(at + off, Step::Fault(Fault::Boot(host)));
                    }
                }
                1 | 2 => {
                    let at = self.somewhen();
                    self.after(at, Step::Fault(Fault::Kill(host)));
                    let inherit = !self.chance.one_in(3);
                    let delay = self.chance.span(4_000);
                    self.after(at + delay, Step::Start { host, inherit });
                }
                3 => {
                    let at = self.somewhen();
                    let keep = self.chance.one_in(2);
                    self.after(at, Step::Fault(Fault::Stop { host, keep }));
                }
                4 | 5 => self.for_a_while(12_000, Fault::Freeze(host), Fault::Thaw(host)),
                6 => self.for_a_while(12_000, Fault::Suspend(host), Fault::Resume(host)),
                7 => self.for_a_while(6_000, Fault::Health(host, false), Fault::Health(host, true)),
                8 => self.for_a_while(6_000, Fault::Interface(host, false), Fault::Interface(host, true)),
                9..=11 => {
                    let (to, from) = self.chance.pick(&[(false, false), (true, false), (false, true)]);
                    self.for_a_while(12_000, Fault::Cut { host, to, from }, Fault::Mend(host));
                }
                12 => {
                    let late_ms = self.chance.pick(&[200, 1_000, 3_000]);
                    let loses = self.chance.pick(&[None, Some(2), Some(5)]);
                    self.for_a_while(10_000, Fault::Slow { host, late_ms, loses }, Fault::Mend(host));
                }
                13 => {
                    let (at, stuck) = (self.somewhen(), self.chance.span(15_000));
                    let fault = self.chance.pick(&[
                        Fault::WatchEnds(host),
                        Fault::WatchStuck(host, stuck),
                        Fault::WatchDies(host),
                        Fault::Compact,
                    ]);
                    self.after(at, Step::Fault(fault));
                }
                14 => {
                    self.for_a_while(8_000, Fault::Majority(false), Fault::Majority(true));
                }
                15 => {
                    let at = self.somewhen();
                    let fault =
                        self.chance
                            .pick(&[Fault::Leader, Fault::DeleteNode(host), Fault::DeleteTtl(host)]);
                    self.after(at, Step::Fault(fault));
                }
                16 => {
                    if self.chance.one_in(3) {
                        let which = address(self.chance.below(8));
                        let which = if self.chance.one_in(3) { None } else { Some(which) };
                        self.for_a_while(9_000, Fault::Fails(host, which), Fault::Works(host));
                    } else {
                        self.for_a_while(9_000, Fault::DropsFail(host, true), Fault::DropsFail(host, false));
                    }
                }
                17 | 18 => self.hangs(host),
                23 if self.chance.one_in(4) => {
                    let (at, soon, length) =
                        (self.somewhen(), self.chance.span(300), self.chance.span(12_000));
                    self.after(at, Step::Fault(Fault::Stranger(true)));
                    self.after(at + soon, Step::Fault(Fault::Pool(stranger_address(), true)));
                    if self.chance.one_in(2) {
                        self.after(at + soon + length, Step::Fault(Fault::Stranger(false)));
                    }
                }
                22 => self.for_a_while(12_000, Fault::Unseen(host, true), Fault::Unseen(host, false)),
                19 => {
                    let (at, which) = (self.somewhen(), address(self.chance.below(8)));
                    self.after(at, Step::Fault(Fault::Lose(host, which)));
                }
                20 => {
                    let (at, which) = (self.somewhen(), address(self.chance.below(10)));
                    let there = self.chance.one_in(2);
                    self.after(at, Step::Fault(Fault::Pool(which, there)));
                }
                _ => {
                    let (at, which) = (self.somewhen(), address(self.chance.below(8)));
                    let wanted = if self.chance.one_in(3) { None } else { Some(host) };
                    if self.chance.one_in(2) {
                        self.after(at, Step::Fault(Fault::Prefer(which, wanted)));
                    } else {
                        self.for_a_while(8_000, Fault::Pause(host, true), Fault::Pause(host, false));
                    }
                }
            }
        }
    }

    /// Its kernel does not let go just when it must; and somebody else was out of sight until then.
    fn hangs(&mut self, host: usize) {
        let at = self.somewhen();
        let (soon, longer) = (self.chance.span(500), self.chance.span(9_000));
        self.after(at, Step::Fault(Fault::DropsFail(host, true)));
        self.after(at + soon, Step::Fault(Fault::Health(host, false)));
        self.after(at + soon + longer, Step::Fault(Fault::DropsFail(host, false)));
        self.after(at + soon + longer, Step::Fault(Fault::Health(host, true)));
        let other = self.any();
        if other != host && self.chance.one_in(2) {
            let (before, after) = (self.chance.span(6_000), self.chance.span(1_000));
            let (to, from) = (false, false);
            self.after(
                at.saturating_sub(before),
                Step::Fault(Fault::Cut {
                    host: other,
                    to,
                    from,
                }),
            );
            self.after(at + soon + after, Step::Fault(Fault::Mend(other)));
        }
    }

    fn write(&mut self, transaction: &Transaction) {
        let before = self.memory.revision();
        // By hand, and again until it is done.
        self.memory
            .commit(transaction)
            .expect("an operator's transaction is done");
        self.told_of(before);
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.peaceful {
            return;
        }
        match fault {
            Fault::Crash(host) => self.power_off(host),
            Fault::Boot(host) => self.power_on(host),
            Fault::Kill(host) => self.kill(host),
            Fault::Stop { host, keep } => {
                let delay = self.chance.span(3_000);
                let inherit = keep || self.chance.one_in(2);
                self.hosts[host].begins_again = Some((delay, inherit));
                self.tell(host, Event::Stop { keep });
            }
            Fault::Freeze(host) => self.hosts[host].frozen = self.hosts[host].process.is_some(),
            Fault::Thaw(host) => {
                self.hosts[host].frozen = false;
                self.go_on(host);
            }
            Fault::Suspend(host) => self.hosts[host].suspended = self.hosts[host].powered,
            Fault::Resume(host) => {
                self.hosts[host].suspended = false;
                self.go_on(host);
            }
            Fault::Health(host, well) => {
                self.hosts[host].healthy = well;
                self.tell_health(host);
            }
            Fault::Interface(host, up) => {
                self.hosts[host].interface = up;
                self.tell_health(host);
                if up {
                    self.tell(host, Event::Heal);
                }
            }
            Fault::Cut { host, to, from } => {
                self.links[host].to = to;
                self.links[host].from = from;
            }
            Fault::Slow { host, late_ms, loses } => {
                self.links[host].late_ms = late_ms;
                self.links[host].loses = loses;
            }
            Fault::Mend(host) => self.links[host] = Link::default(),
            Fault::WatchEnds(host) => {
                if let Some(process) = &mut self.hosts[host].process
                    && process.watch.take().is_some()
                {
                    let error = io_guardian::store::StoreError::Unavailable("cancelled".to_owned());
                    self.tell(host, Event::WatchEnded(error));
                }
            }
            Fault::WatchStuck(host, length) => {
                let until = self.now + length;
                if let Some(watch) = self.watch(host) {
                    watch.stuck_until = until;
                }
            }
            Fault::WatchDies(host) => {
                if let Some(watch) = self.watch(host) {
                    watch.dead = true;
                }
            }
            Fault::Unseen(host, unseen) => self.unsee(host, unseen),
            Fault::Majority(there) => {
                if there && !self.majority {
                    let now = self.store_clock.local(self.now);
                    self.memory.renew_all(now);
                }
                self.majority = there;
            }
            Fault::Leader => {
                let now = self.store_clock.local(self.now);
                self.memory.renew_all(now);
            }
            Fault::Compact => {
                let now = self.memory.revision();
                self.memory.compact(now);
            }
            Fault::Fails(host, None) => self.hosts[host].all_fails = true,
            Fault::Fails(host, Some(address)) => {
                self.hosts[host].fails.insert(address);
            }
            Fault::Works(host) => {
                self.hosts[host].all_fails = false;
                self.hosts[host].fails.clear();
            }
            Fault::DropsFail(host, fail) => self.hosts[host].drops_fail = fail,
            Fault::Lose(host, address) => self.lose(host, address),
            // Once it is in the pool it is somebody's there.
            Fault::Stranger(there) => self.stranger = there && !self.pool.contains(&stranger_address()),
            Fault::Pool(address, there) => {
                let key = self.keys.of(&Key::Pool(address));
                let transaction = if there {
                    self.pool.insert(address);
                    Transaction::default().put(key, "", None)
                } else {
                    self.pool.remove(&address);
                    Transaction::default().delete(key)
                };
                self.write(&transaction);
            }
            Fault::Prefer(address, wanted) => {
                let key = self.keys.of(&Key::Preferred(address));
                let transaction = match wanted {
                    Some(host) => {
                        let node = self.hosts[host].settings.node.clone();
                        Transaction::default().put(key, node, None)
                    }
                    None => Transaction::default().delete(key),
                };
                self.write(&transaction);
            }
            Fault::Pause(host, paused) => {
                let key = self.keys.of(&Key::Paused(self.hosts[host].settings.node.clone()));
                let transaction = if paused {
                    Transaction::default().put(key, "maintenance", None)
                } else {
                    Transaction::default().delete(key)
                };
                self.write(&transaction);
            }
            Fault::DeleteNode(host) => {
                let key = self.keys.of(&Key::Node(self.hosts[host].settings.node.clone()));
                self.write(&Transaction::default().delete(key));
            }
            Fault::DeleteTtl(host) => {
                let session = self.hosts[host]
                    .process
                    .as_ref()
                    .and_then(|process| process.core.session());
                if let Some((lease, _)) = session.filter(|_| !self.mixed) {
                    let key = self.keys.of(&Key::Ttl(lease));
                    self.write(&Transaction::default().delete(key));
                }
            }
        }
    }

    fn unsee(&mut self, host: usize, unseen: bool) {
        self.links[host].unseen = unseen;
        if let Some(watch) = self.watch(host).filter(|_| unseen) {
            watch.dead = true;
        }
    }

    fn watch(&mut self, host: usize) -> Option<&mut super::store::Watched> {
        self.hosts[host].process.as_mut()?.watch.as_mut()
    }

    /// All that was broken is mended, but for what is left as it is for good, as long as one host is well.
    pub(super) fn mend(&mut self) {
        let now = self.store_clock.local(self.now);
        if !self.majority {
            self.memory.renew_all(now);
        }
        self.majority = true;
        let spared = self.any();
        for host in 0..self.hosts.len() {
            self.links[host] = Link::default();
            if host != spared && self.chance.one_in(3) {
                self.leave(host);
            } else {
                self.mend_one(host);
            }
        }
    }

    /// It stays as it is: off, stopped, ill, paused; or the chaos has one more fault for it that nobody mends.
    fn leave(&mut self, host: usize) {
        match self.chance.below(7) {
            6 => self.unsee(host, true),
            0 => self.hosts[host].frozen = self.hosts[host].process.is_some(),
            1 => {
                let (to, from) = self.chance.pick(&[(false, false), (true, false), (false, true)]);
                self.links[host] = Link {
                    to,
                    from,
                    for_good: true,
                    ..Link::default()
                };
            }
            2 => self.kill(host),
            _ => {}
        }
        let it = &mut self.hosts[host];
        // A host that can hold nothing tries again and again, and that would never be quiet.
        it.all_fails = false;
        it.fails.clear();
        it.is_left = true;
        it.begins_again = None;
        self.tell_health(host);
    }

    fn mend_one(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        it.frozen = false;
        it.suspended = false;
        it.interface = true;
        it.healthy = true;
        it.all_fails = false;
        it.fails.clear();
        it.drops_fail = false;
        if let Some(watch) = self.watch(host) {
            watch.stuck_until = Duration::ZERO;
        }
        let key = self.keys.of(&Key::Paused(self.hosts[host].settings.node.clone()));
        self.write(&Transaction::default().delete(key));
        self.power_on(host);
        self.go_on(host);
        self.tell_health(host);
        let delay = self.chance.span(500);
        self.after(delay, Step::Start { host, inherit: true });
    }
}
