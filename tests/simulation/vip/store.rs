//! What lies between the hosts: links that lose, delay, double and are cut one way; a store that has no majority, members that are behind,
//! watches that end, get stuck, or die and say nothing.

use std::time::Duration;

use io_guardian::store::{LeaseId, Outcome, Revision, StoreError, Transaction};
use io_guardian::vip::core::{At, Event, Ticket};

use super::chaos::Fault;
use super::{PREFIX, Step, World};

#[derive(Clone, Debug)]
pub(super) enum Request {
    Grant(Duration),
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    Commit(Ticket, Transaction),
    Look,
}

/// Between a host and the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) to: bool,
    pub(super) from: bool,
    /// One in so many is lost.
    pub(super) loses: Option<u64>,
    /// As late as that.
    pub(super) late_ms: u64,
    /// What is sent until then, either way, gets there then.
    pub(super) held_until: Duration,
    /// Lists and watches do not get through, and all else does.
    pub(super) unseen: bool,
    /// It is cut for good: nothing is held up, to get through later.
    pub(super) for_good: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            to: true,
            from: true,
            loses: None,
            late_ms: 5,
            held_until: Duration::ZERO,
            unseen: false,
            for_good: false,
        }
    }
}

/// A watch, as the member has it that serves it.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) id: u64,
    after: Revision,
    /// What is told arrives in order.
    last: Duration,
    pumping: bool,
    /// It says nothing any more, not even that.
    pub(super) dead: bool,
    pub(super) stuck_until: Duration,
}

impl Watched {
    pub(super) fn new(id: u64, after: Revision, now: Duration) -> Self {
        Self {
            id,
            after,
            last: now,
            pumping: false,
            dead: false,
            stuck_until: now,
        }
    }
}

impl World {
    fn delay(&mut self, host: usize) -> Duration {
        let late = self.links[host].late_ms;
        if !self.peaceful && self.chance.one_in(100) {
            return self.chance.span(4_000);
        }
        Duration::from_micros(100) + self.chance.span(late)
    }

    fn is_lost(&mut self, host: usize) -> bool {
        match self.links[host].loses {
            Some(of) => self.chance.one_in(of),
            None => false,
        }
    }

    /// A process asks the store for something.
    pub(super) fn send(&mut self, host: usize, sent: At, what: Request) {
        let request = self.next_request(host);
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let life = process.life;
        if !matches!(what, Request::Revoke(_)) {
            process.waits.insert(request, (sent, what.clone()));
        }
        let patience = self.hosts[host].settings.patience;
        let at = self.hosts[host].clock.truly((sent + patience).0);
        // Now and then the shell forgets that it should give up.
        if self.peaceful || !self.chance.one_in(40) {
            self.at(at, Step::Impatient { host, life, request });
        }
        if self.is_lost(host) {
            return;
        }
        let struck = self.strike(host, &what);
        let is_held = !struck || self.chance.one_in(2);
        let held = self.links[host].held_until.saturating_sub(self.now);
        let delay = self.delay(host) + if is_held { held } else { Duration::ZERO };
        let what = Box::new(what);
        if !self.peaceful && self.chance.one_in(60) {
            let (later, what) = (self.chance.span(6_000), what.clone());
            self.after(
                delay + later,
                Step::Ask {
                    host,
                    life,
                    request,
                    what,
                    again: true,
                },
            );
        }
        self.after(
            delay,
            Step::Ask {
                host,
                life,
                request,
                what,
                again: false,
            },
        );
    }

    /// What is worst just when a request is under way: to be stopped, or killed, or not to be answered.
    fn strike(&mut self, host: usize, what: &Request) -> bool {
        if self.peaceful || !matches!(what, Request::Commit(..)) || !self.chance.one_in(150) {
            return false;
        }
        let soon = self.chance.span(20);
        let length = self.chance.span(6_000);
        let link = self.links[host];
        let (fault, over) = match self.chance.below(6) {
            0 | 1 => (Fault::Freeze(host), Fault::Thaw(host)),
            2 if link.to && link.from => (
                Fault::Cut {
                    host,
                    to: true,
                    from: false,
                },
                Fault::Mend(host),
            ),
            // It stands still, and what it has asked stands still on its way, until others may have given it up.
            3 | 4 => {
                let settings = &self.hosts[host].settings;
                let (ttl, interval) = (
                    settings.ttl.as_millis() as u64,
                    settings.interval.as_millis() as u64,
                );
                let held = Duration::from_millis(ttl / 2 + self.chance.below(ttl * 3 / 5));
                self.links[host].held_until = self.now + held;
                let (freezes, thaws) = (self.chance.span(interval), self.chance.span(60));
                self.after(freezes, Step::Fault(Fault::Freeze(host)));
                self.after(held.max(freezes) + thaws, Step::Fault(Fault::Thaw(host)));
                return true;
            }
            _ => {
                let inherit = self.chance.one_in(2);
                self.after(soon, Step::Fault(Fault::Kill(host)));
                self.after(soon + length, Step::Start { host, inherit });
                return true;
            }
        };
        self.after(soon, Step::Fault(fault));
        self.after(soon + length, Step::Fault(over));
        true
    }

    /// A request is at the store.
    pub(super) fn ask(&mut self, host: usize, life: u64, request: u64, what: Request, again: bool) {
        if !self.links[host].to {
            // It is lost, or it gets through when the link is mended.
            if !self.links[host].for_good && self.chance.one_in(2) {
                let later = self.chance.span(3_000);
                let what = Box::new(what);
                self.after(
                    later,
                    Step::Ask {
                        host,
                        life,
                        request,
                        what,
                        again: true,
                    },
                );
            }
            return;
        }
        if self.links[host].unseen && matches!(what, Request::Look) {
            // It says so, or nothing at all.
            if self.chance.one_in(2) {
                let error = || StoreError::Unavailable("the list is too long".to_owned());
                if let Some(event) = self.refusal(host, request, &what, error) {
                    self.reply(host, life, request, event);
                }
            }
            return;
        }
        if !self.majority {
            match self.chance.below(3) {
                // It is proposed, and may be agreed on later.
                0 => {
                    let later = self.chance.span(3_000);
                    let what = Box::new(what);
                    self.after(
                        later,
                        Step::Ask {
                            host,
                            life,
                            request,
                            what,
                            again,
                        },
                    );
                }
                1 => {
                    let error = || StoreError::Unavailable("no leader".to_owned());
                    if let Some(event) = self.refusal(host, request, &what, error) {
                        self.reply(host, life, request, event);
                    }
                }
                _ => {}
            }
            return;
        }
        let before = self.memory.revision();
        let now = self.store_clock.local(self.now);
        let Some(sent) = self.sent(host, request) else {
            // Nobody waits for the answer; it is done nevertheless.
            self.do_it(now, what);
            self.told_of(before);
            return;
        };
        let event = match what {
            Request::Grant(ttl) => {
                let result = Ok(self.memory.grant(now, ttl));
                Event::Granted { sent, result }
            }
            Request::KeepAlive(lease) => {
                let result = self.memory.keep_alive(now, lease);
                Event::KeptAlive { lease, sent, result }
            }
            Request::Revoke(lease) => {
                self.memory.revoke(lease);
                self.told_of(before);
                return;
            }
            Request::Commit(ticket, transaction) => {
                let result = self.memory.commit(&transaction);
                if self.loud && !matches!(result, Ok(Outcome::Done(_))) {
                    println!(
                        "{:9.4}     the store: {transaction:?}: {result:?}",
                        self.now.as_secs_f64()
                    );
                }
                Event::Committed { ticket, sent, result }
            }
            Request::Look => Event::Looked(Ok(self.memory.list(PREFIX))),
        };
        self.told_of(before);
        self.reply(host, life, request, event);
    }

    fn do_it(&mut self, now: Duration, what: Request) {
        match what {
            Request::Grant(ttl) => drop(self.memory.grant(now, ttl)),
            Request::KeepAlive(lease) => drop(self.memory.keep_alive(now, lease)),
            Request::Revoke(lease) => self.memory.revoke(lease),
            Request::Commit(_, transaction) => drop(self.memory.commit(&transaction)),
            Request::Look => {}
        }
    }

    /// When a request was sent by a process that lives.
    fn sent(&self, host: usize, request: u64) -> Option<At> {
        let process = self.hosts[host].process.as_ref()?;
        process.waits.get(&request).map(|(sent, _)| *sent)
    }

    fn refusal(
        &self,
        host: usize,
        request: u64,
        what: &Request,
        error: impl Fn() -> StoreError,
    ) -> Option<Event> {
        let sent = self.sent(host, request)?;
        Some(match what {
            Request::Grant(_) => Event::Granted {
                sent,
                result: Err(error()),
            },
            Request::KeepAlive(lease) => Event::KeptAlive {
                lease: *lease,
                sent,
                result: Err(error()),
            },
            Request::Commit(ticket, _) => Event::Committed {
                ticket: *ticket,
                sent,
                result: Err(error()),
            },
            Request::Look => Event::Looked(Err(error())),
            Request::Revoke(_) => return None,
        })
    }

    fn reply(&mut self, host: usize, life: u64, request: u64, event: Event) {
        let link = self.links[host];
        let is_cut = !link.from && (link.for_good || !self.chance.one_in(4));
        if is_cut || self.is_lost(host) {
            return;
        }
        let held_up = if self.links[host].from {
            Duration::ZERO
        } else {
            self.chance.span(3_000)
        };
        let held = link.held_until.saturating_sub(self.now);
        let delay = self.delay(host) + held.max(held_up);
        let event = Box::new(event);
        self.after(
            delay,
            Step::Answer {
                host,
                life,
                request,
                event,
            },
        );
    }

    /// Something may have changed: whoever watches is told, sooner or later.
    pub(super) fn told_of(&mut self, before: Revision) {
        if self.memory.revision() != before {
            for host in 0..self.hosts.len() {
                self.pump_soon(host);
            }
        }
    }

    pub(super) fn pump_soon(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else {
            return;
        };
        let life = process.life;
        let Some(watch) = process.watch.as_mut().filter(|watch| !watch.pumping) else {
            return;
        };
        watch.pumping = true;
        let watch = watch.id;
        let behind = if !self.peaceful && self.chance.one_in(30) {
            1_500
        } else {
            2
        };
        let delay = self.chance.span(behind);
        self.after(delay, Step::Pump { host, life, watch });
    }

    pub(super) fn pump(&mut self, host: usize, life: u64, id: u64) {
        let delay = self.delay(host);
        let later = self.chance.span(400);
        let ends = self.chance.one_in(40);
        let (now, from, majority) = (self.now, self.links[host].from, self.majority);
        let unseen = self.links[host].unseen;
        let Some(process) = self.hosts[host]
            .process
            .as_mut()
            .filter(|process| process.life == life)
        else {
            return;
        };
        let Some(watch) = process
            .watch
            .as_mut()
            .filter(|watch| watch.id == id && !watch.dead)
        else {
            return;
        };
        // One that was asked for before.
        watch.dead |= unseen;
        if unseen || (self.links[host].for_good && !from) {
            return;
        }
        if !from || !majority || now < watch.stuck_until {
            if ends {
                process.watch = None;
                let event = Box::new(Event::WatchEnded(StoreError::Unavailable("no leader".to_owned())));
                self.after(delay, Step::Arrive { host, life, event });
            } else {
                self.after(
                    later,
                    Step::Pump {
                        host,
                        life,
                        watch: id,
                    },
                );
            }
            return;
        }
        watch.pumping = false;
        let arrives = watch.last.max(now + delay) + Duration::from_nanos(1);
        watch.last = arrives;
        let event = match self.memory.changes(PREFIX, watch.after) {
            Ok(changes) if changes.revision > watch.after => {
                watch.after = changes.revision;
                Event::Changes(changes)
            }
            Ok(_) => return,
            Err(error) => {
                process.watch = None;
                Event::WatchEnded(error)
            }
        };
        let event = Box::new(event);
        self.at(arrives, Step::Arrive { host, life, event });
    }

    /// Leases that have ended are noticed up to half a second late, by a leader that has a majority.
    pub(super) fn expire(&mut self) {
        if self.majority {
            let before = self.memory.revision();
            self.memory.expire(self.store_clock.local(self.now));
            self.told_of(before);
        }
        let next = Duration::from_millis(20 + self.chance.below(480));
        self.after(next, Step::Expire);
    }
}
