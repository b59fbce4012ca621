//! What a node shows of itself.

use std::net::IpAddr;
use std::time::Duration;

use super::slots::{Kernel, Slot};
use super::{At, Core};
use crate::vip::shown::{Fault, Held, Node, Pooled, Shown, State};

impl Core {
    /// What this node is, and what it knows.
    #[must_use]
    pub fn status(&self, now: At) -> Shown {
        let why_not = self.why_not();
        let state = match () {
            () if self.finished => State::Finished,
            () if self.stop.is_some() => State::Stopping,
            () if why_not.is_some() => State::TakesNoPart,
            () if self.takes_part => State::TakesPart,
            () if self.rival.is_some() => State::NameInUse,
            () => State::Joining,
        };
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Shown {
            node: self.settings.node.clone(),
            state,
            because: why_not,
            lease: self.lease.map(|lease| lease.id.to_string()),
            until_ms: self.until.map(|until| millis(until.since(now))),
            held: self.show_held(now),
            pool: self.show_pool(now),
            nodes: self.show_nodes(now),
            paused: self.view.paused().clone(),
            revision: self.view.revision().map(|revision| revision.0),
            watching: self.watching,
            last_fault: self.fault.as_ref().map(|fault| Fault {
                error: fault.error.clone(),
                ago_ms: millis(now.since(fault.at)),
            }),
        }
    }

    fn show_held(&self, now: At) -> Vec<Held> {
        let millis = |at: At| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        let one = |(address, slot): (&IpAddr, &Slot)| {
            let address = *address;
            match slot.kernel {
                Kernel::Down => None,
                Kernel::Up(up) => Some(Held {
                    address,
                    token: up.token.map(|token| token.0),
                    since_ms: Some(millis(up.since)).filter(|_| up.since > At::default()),
                    up: up.there.is_some(),
                    dropping: false,
                }),
                Kernel::Going { .. } => Some(Held {
                    address,
                    token: None,
                    since_ms: None,
                    up: !slot.is_down(now),
                    dropping: true,
                }),
            }
        };
        self.slots.iter().filter_map(one).collect()
    }

    fn show_pool(&self, now: At) -> Vec<Pooled> {
        let one = |(address, _): (IpAddr, &str)| {
            let mark = self.view.marks().get(&address);
            let free = self.view.free_from(address);
            let cannot = self.view.cannot().iter().filter(|((_, of), _)| *of == address);
            Pooled {
                address,
                owner: mark.map(|mark| mark.node.clone()),
                token: mark.map(|mark| mark.modified.0),
                owner_alive: mark.is_some_and(|mark| self.is_mine(mark.lease) || now < free),
                preferred: self.view.preferred().get(&address).cloned(),
                share_of: self.shares.get(&address).cloned(),
                free_in_ms: u64::try_from(free.since(now).as_millis())
                    .ok()
                    .filter(|ms| *ms > 0),
                cannot: cannot
                    .map(|((node, _), why)| (node.clone(), why.clone()))
                    .collect(),
            }
        };
        self.view.pool().map(one).collect()
    }

    fn show_nodes(&self, now: At) -> Vec<Node> {
        let one = |(node, advert): (&String, &crate::vip::view::Advert)| {
            let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            let lease = advert.lease;
            Node {
                node: node.clone(),
                lease: lease.map(|lease| lease.to_string()),
                alive: lease.is_some_and(|of| self.is_mine(lease) || now < self.view.waited_for(of)),
                seen_ms: lease
                    .and_then(|of| self.view.seen(of))
                    .map(|seen| millis(now.since(seen))),
                ttl_ms: lease.and_then(|of| self.view.ttl_of(of)).map(millis),
            }
        };
        self.view.adverts().iter().map(one).collect()
    }
}
