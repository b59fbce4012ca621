//! Whether somebody who is no node of this pool has an address of it already.
//!
//! An address that nobody of the pool has held since it came into it is asked for on the network first, by each node for itself, as soon as it is seen
//! there. So nothing waits when an address goes from one node to another: who has seen it marked asks nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::slots::Trouble;
use super::{ASKED_FOR, ASKED_TIMES, At, Core, Effect};
use crate::store::Revision;
use crate::vip::said::Said;

impl Core {
    /// Asks for what is not known to be the pool's own, and forgets what was asked for nothing.
    pub(super) fn ask_neighbours(&mut self) {
        let now = self.now;
        let changes = self.view.pool_changes();
        if self.all_cleared == Some(changes) {
            return;
        }
        let pool: BTreeMap<IpAddr, Revision> = self.view.pool_since().collect();
        self.cleared
            .retain(|address, since| pool.get(address) == Some(since));
        self.asked.retain(|address, _| pool.contains_key(address));
        let is_held = |core: &Self, address: &IpAddr, since: Revision| {
            core.view.marks().contains_key(address)
                || core.view.is_haunted_since(*address, since)
                || core.slots.get(address).is_some_and(|slot| slot.up().is_some())
        };
        for (address, since) in &pool {
            let is_over = self
                .asked
                .get(address)
                .is_some_and(|(asked, times)| now >= *asked + ASKED_FOR && *times >= ASKED_TIMES);
            if !self.cleared.contains_key(address) && (is_held(self, address, *since) || is_over) {
                self.clear(*address, *since);
            }
        }
        for (address, slot) in &mut self.slots {
            slot.trouble
                .take_if(|trouble| trouble.is_strangers && !pool.contains_key(address));
        }
        if pool.keys().all(|address| self.cleared.contains_key(address)) {
            self.all_cleared = Some(changes);
            return;
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
            .into_keys()
            .filter(|address| !self.cleared.contains_key(address) && !is_asked(address) && !is_left(address))
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
    fn clear(&mut self, address: IpAddr, since: Revision) {
        self.asked.remove(&address);
        self.cleared.insert(address, since);
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.trouble.take_if(|trouble| trouble.is_strangers);
        }
    }

    /// What the neighbours have said: who has what.
    pub(super) fn answered(&mut self, addresses: &BTreeSet<IpAddr>, found: &BTreeMap<IpAddr, String>) {
        self.stirred = true;
        let pool: BTreeMap<IpAddr, Revision> = self.view.pool_since().collect();
        for address in addresses {
            if self.asked.remove(address).is_none() {
                continue;
            }
            let Some(since) = pool.get(address).copied() else {
                continue;
            };
            match found.get(address) {
                // A node of ours, which was quicker.
                Some(_) if self.view.marks().contains_key(address) => self.clear(*address, since),
                Some(by) => self.leave_to_stranger(*address, by),
                None => self.clear(*address, since),
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
