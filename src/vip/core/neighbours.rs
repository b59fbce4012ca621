//! Whether somebody who is no node of this pool has an address of it already.
//!
//! An address that nobody of the pool has held since it came into it is asked for on the network first, by each node for itself, as soon as it is seen
//! there. So nothing waits when an address goes from one node to another: who has seen it marked asks nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::slots::Trouble;
use super::{ASKED_FOR, ASKED_TIMES, At, Core, Effect};
use crate::vip::said::Said;

impl Core {
    /// Asks for what is not known to be the pool's own, and forgets what was asked for nothing.
    pub(super) fn ask_neighbours(&mut self) {
        let now = self.now;
        let pool: BTreeSet<IpAddr> = self.view.pool().map(|(address, _)| address).collect();
        self.cleared.retain(|address| pool.contains(address));
        self.asked.retain(|address, _| pool.contains(address));
        let is_held = |core: &Self, address: &IpAddr| {
            core.view.marks().contains_key(address)
                || core.view.haunted_by(*address).is_some()
                || core.slots.get(address).is_some_and(|slot| slot.up().is_some())
        };
        for address in &pool {
            let is_over = self
                .asked
                .get(address)
                .is_some_and(|(asked, times)| now >= *asked + ASKED_FOR && *times >= ASKED_TIMES);
            if !self.cleared.contains(address) && (is_held(self, address) || is_over) {
                self.clear(*address);
            }
        }
        for (address, slot) in &mut self.slots {
            slot.trouble
                .take_if(|trouble| trouble.is_strangers && !pool.contains(address));
        }
        if !matches!(self.health, Some(Ok(()))) || self.stop.is_some() {
            return;
        }
        let is_left = |address: &IpAddr| {
            let trouble = self.slots.get(address).and_then(|slot| slot.trouble.as_ref());
            trouble.is_some_and(|trouble| now < trouble.until)
        };
        let is_asked = |address: &IpAddr| {
            let asked = self.asked.get(address);
            asked.is_some_and(|(asked, _)| now < *asked + ASKED_FOR)
        };
        let addresses: BTreeSet<IpAddr> = pool
            .into_iter()
            .filter(|address| !self.cleared.contains(address) && !is_asked(address) && !is_left(address))
            .collect();
        if addresses.is_empty() {
            return;
        }
        for address in &addresses {
            let asked = self.asked.entry(*address).or_default();
            *asked = (now, asked.1 + 1);
        }
        self.todo.rest.push(Effect::Ask { addresses });
    }

    /// It is the pool's own.
    fn clear(&mut self, address: IpAddr) {
        self.asked.remove(&address);
        self.cleared.insert(address);
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.trouble.take_if(|trouble| trouble.is_strangers);
        }
    }

    /// What the neighbours have said: who has what.
    pub(super) fn answered(&mut self, addresses: &BTreeSet<IpAddr>, found: &BTreeMap<IpAddr, String>) {
        self.stirred = true;
        for address in addresses {
            if self.asked.remove(address).is_none() {
                continue;
            }
            match found.get(address) {
                // A node of ours, which was quicker.
                Some(_) if self.view.marks().contains_key(address) => self.clear(*address),
                Some(by) => self.leave_to_stranger(*address, by),
                None => self.clear(*address),
            }
        }
    }

    fn leave_to_stranger(&mut self, address: IpAddr, by: &str) {
        let error = format!("{by} has it already, and holds it for no node");
        let slot = self.slots.entry(address).or_default();
        let is_news = slot.trouble.as_ref().is_none_or(|before| before.error != error);
        let trouble = Trouble::after(slot.trouble.as_ref(), self.now, error, true);
        let again_in = trouble.until.since(self.now);
        slot.trouble = Some(trouble);
        if is_news {
            let by = by.to_owned();
            self.todo.say(Said::Stranger {
                address,
                by,
                again_in,
            });
        }
    }

    /// When an answer is waited for no longer.
    pub(super) fn unanswered_at(&self) -> Option<At> {
        let at = self.asked.values().map(|(asked, _)| *asked + ASKED_FOR);
        at.filter(|at| *at > self.now).min()
    }
}
