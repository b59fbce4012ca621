//! Whose each address should be, and what is written about it in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::slots::{Kernel, Slot, What};
use super::{Advert, Core, Purpose, REQUESTS};
use crate::store::{Is, LeaseId, Outcome, StoreError, Transaction};
use crate::vip::keys::{self, Key};
use crate::vip::said::Why;
use crate::vip::share::{self, Question};

impl Core {
    pub(super) fn slot_committed(
        &mut self,
        address: IpAddr,
        what: What,
        result: Result<Outcome, StoreError>,
    ) {
        self.stirred = true;
        let pause = self.pause();
        let Some(slot) = self.slots.get_mut(&address) else {
            return;
        };
        slot.request = None;
        slot.claims = false;
        match result {
            Ok(Outcome::Refused(revision)) => {
                slot.settled = revision;
                slot.refused += 1;
                // Once is a race that was lost. Again and again, and what is known here cannot be what there is.
                if slot.refused > 1 {
                    slot.not_before = self.now + pause;
                    self.doubts |= slot.refused % 3 == 0;
                }
            }
            Ok(Outcome::Done(revision)) => {
                slot.settled = revision;
                slot.refused = 0;
                if let What::Claim { term, from } = what {
                    self.claimed(address, term, from, revision);
                }
            }
            Err(_) => slot.not_before = self.now + pause,
        }
    }

    /// Looks at all addresses again.
    pub(super) fn settle_slots(&mut self) {
        self.stirred = false;
        self.ask_neighbours();
        let shares = self.work_out_shares();
        let mut waiting = self.waiting(shares.as_ref());
        for address in self.addresses() {
            self.judge(address, shares.as_ref(), &mut waiting);
            self.tell_again(address);
            self.write(address, shares.as_ref());
            self.announce(address);
        }
        if let Some(shares) = shares {
            self.shares = shares;
        }
        let (now, view) = (self.now, &self.view);
        self.slots.retain(|address, slot| {
            !matches!(slot.kernel, Kernel::Down)
                || slot.takes + slot.drops > 0
                || slot.request.is_some()
                || slot.troubled(now).is_some()
                || !view.has(slot.settled)
                || view.pool_key(*address).is_some()
        });
        self.slots_due = self.next_for_slots();
    }

    /// All that this node may have to do with.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        let mut all: BTreeSet<IpAddr> = self.view.pool().map(|(address, _)| address).collect();
        all.extend(self.slots.keys());
        let marks = self.view.marks().iter();
        all.extend(
            marks
                .filter(|(_, mark)| self.is_mine(mark.lease))
                .map(|(address, _)| address),
        );
        let cannot = self.view.cannot().keys();
        let mine = cannot.filter(|(node, _)| *node == self.settings.node);
        all.extend(mine.map(|(_, address)| address));
        all
    }

    /// Whose each address should be. None: this node does not take part, or does not know what the others know.
    fn work_out_shares(&self) -> Option<BTreeMap<IpAddr, String>> {
        if !self.watching || !matches!(self.advert, Advert::In(_)) {
            return None;
        }
        let me = self.settings.node.as_str();
        let nodes = self.view.taking_part(self.now, self.lease.map(|lease| lease.id));
        if !nodes.contains(me) {
            // The view does not have it yet that this node does.
            return None;
        }
        let pool: BTreeSet<IpAddr> = self.view.pool().map(|(address, _)| address).collect();
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        let marks = self.view.marks().iter();
        let marks = marks.map(|(address, mark)| (*address, mark.node.as_str()));
        // Whoever has lost its lease and is back under another one gets back what it held: nobody else may take it as soon.
        for (address, node) in self.view.haunted().chain(marks) {
            if let Some(node) = nodes.get(node) {
                owners.insert(address, node);
            }
        }
        let mut cannot: BTreeSet<(&str, IpAddr)> = BTreeSet::new();
        let mut untried: BTreeSet<(&str, IpAddr)> = BTreeSet::new();
        let is_there = |address| self.slots.get(address).is_some_and(Slot::is_there);
        for ((node, address), why) in self.view.cannot() {
            if node == me && is_there(address) {
                continue;
            }
            if let Some(name) = nodes.get(node.as_str()) {
                match keys::is_untried(why) {
                    false => cannot.insert((name, *address)),
                    // An operator who wants it there knows better.
                    true => !self.view.is_wanted_since(node, *address) && untried.insert((name, *address)),
                };
            }
        }
        for (address, slot) in &self.slots {
            // What is claimed is as good as held: or else each answer would have the rest dealt anew.
            if slot.up().is_some() || slot.is_claimed() {
                owners.insert(*address, me);
            } else if !self.view.has(slot.settled) && owners.get(address) == Some(&me) {
                owners.remove(address);
            }
            if slot.troubled(self.now).is_some() {
                cannot.insert((me, *address));
            }
        }
        let preferred = self.view.preferred().iter();
        let preferred = preferred
            .map(|(address, node)| (*address, node.as_str()))
            .collect();
        let answer = share::share(&Question {
            pool,
            nodes,
            owners,
            preferred,
            cannot,
            untried,
        });
        Some(
            answer
                .into_iter()
                .map(|(at, node)| (at, node.to_owned()))
                .collect(),
        )
    }

    /// Nodes that have something to claim. They are given nothing more until they have: one that does not come to it would have it all lie idle.
    fn waiting(&self, shares: Option<&BTreeMap<IpAddr, String>>) -> BTreeSet<String> {
        let is_held = |address: &IpAddr| {
            if let Some(slot) = self.slots.get(address)
                && slot.up().is_some()
            {
                return true;
            }
            let mark = self.view.marks().get(address);
            mark.is_some_and(|mark| !self.is_mine(mark.lease) && self.now < self.view.free_from(*address))
        };
        let shares = shares.into_iter().flatten();
        let waiting = shares.filter(|(address, node)| **node != self.settings.node && !is_held(address));
        waiting.map(|(_, node)| node.clone()).collect()
    }

    /// Whether what is held may be held on.
    fn judge(
        &mut self,
        address: IpAddr,
        shares: Option<&BTreeMap<IpAddr, String>>,
        waiting: &mut BTreeSet<String>,
    ) {
        let Some(up) = self.slots.get(&address).and_then(Slot::up) else {
            return;
        };
        // The store has not been looked at since the address was claimed.
        if !self.view.has(up.token.unwrap_or_default()) {
            return;
        }
        let why = match self.view.marks().get(&address) {
            Some(mark) if self.is_mine(mark.lease) => {
                let token = Some(mark.modified);
                if let Some(Kernel::Up(up)) = self.slots.get_mut(&address).map(|slot| &mut slot.kernel) {
                    up.token = token;
                }
                None
            }
            Some(mark) => Some(Why::TakenOver {
                by: mark.node.clone(),
            }),
            None => Some(Why::Unmarked),
        };
        let removed = || self.view.pool_key(address).is_none().then_some(Why::Removed);
        let anothers = || {
            let to = shares?.get(&address)?;
            let is_due = *to != self.settings.node && !waiting.contains(to);
            is_due.then(|| Why::Share { to: to.clone() })
        };
        let Some(why) = why.or_else(removed).or_else(anothers) else {
            return;
        };
        if let Why::Share { to } = &why {
            waiting.insert(to.clone());
        }
        self.drop_one(address, why);
    }

    /// What is to be written in the store about an address, if anything.
    fn write(&mut self, address: IpAddr, shares: Option<&BTreeMap<IpAddr, String>>) {
        let now = self.now;
        let Some(lease) = self.lease.map(|lease| lease.id) else {
            return;
        };
        let slot = self.slots.entry(address).or_default();
        if slot.request.is_some() || now < slot.not_before || !self.view.has(slot.settled) {
            return;
        }
        if self.requests.len() >= REQUESTS {
            return;
        }
        if slot.up().is_some() {
            if slot.is_there() {
                // What was said of it before, and came late, is not so.
                self.write_cannot(address, lease);
            }
            return;
        }
        let (is_down, can_take) = (slot.is_down(now), matches!(slot.kernel, Kernel::Down));
        let marked = self.view.marks().get(&address);
        let mine = marked.is_some_and(|mark| mark.lease == Some(lease));
        let is_pooled = self.view.pool_key(address).is_some();
        // While it is not known whose share it is, what is ours stays so.
        let wished = is_pooled
            && self.why_not().is_none()
            && match shares {
                Some(shares) => shares.get(&address) == Some(&self.settings.node),
                None => self.rival.is_none(),
            };
        if mine && !wished {
            if is_down {
                self.release(address, lease);
            }
            return;
        }
        let is_ours = self.cleared.contains_key(&address);
        let may_claim = shares.is_some() && self.beat.is_some() && self.has_time() && is_ours;
        if wished && can_take && may_claim && (mine || self.is_free(address)) {
            self.claim(address, lease);
            return;
        }
        if !mine {
            self.write_cannot(address, lease);
        }
    }

    /// Whether an address is nobody's, as far as is known here. What was held by our own leases of before is down.
    fn is_free(&self, address: IpAddr) -> bool {
        let by = match self.view.marks().get(&address) {
            Some(mark) => mark.lease,
            None => self.view.haunted_by(address),
        };
        by.is_some_and(|by| self.former.contains(&by)) || self.now >= self.view.free_from(address)
    }

    fn claim(&mut self, address: IpAddr, lease: LeaseId) {
        let Some(pooled) = self.view.pool_key(address) else {
            return;
        };
        let key = self.keys.of(&Key::Marked(address));
        let me = &self.settings.node;
        let mut transaction = Transaction::default().only_if(pooled, Is::Present);
        let marked = self.view.marks().get(&address);
        transaction = match marked {
            Some(mark) => transaction.only_if(key.as_str(), Is::At(mark.modified)),
            None => transaction.only_if(key.as_str(), Is::Absent),
        };
        let from = marked
            .filter(|mark| mark.lease != Some(lease))
            .map(|mark| mark.node.clone());
        if let Some(mark) = marked
            && mark.node != *me
        {
            // That it has shown no sign of life that is not seen here yet.
            let is = match self.view.adverts().get(&mark.node) {
                None => Is::Absent,
                Some(advert) => match advert.lease {
                    Some(other) if mark.lease != Some(other) => Is::LeasedBy(other),
                    _ => Is::At(advert.modified),
                },
            };
            transaction = transaction.only_if(self.keys.of(&Key::Node(mark.node.clone())), is);
        }
        transaction = transaction
            .only_if(self.keys.of(&Key::Node(me.clone())), Is::LeasedBy(lease))
            .put(key, me.as_str(), Some(lease));
        let of = (me.clone(), address);
        if self.view.cannot().contains_key(&of) {
            // It is tried. If that fails, it is told anew.
            transaction = transaction.delete(self.keys.of(&Key::Cannot(of.0, address)));
        }
        let what = What::Claim {
            term: self.term,
            from,
        };
        self.ask(address, what, transaction);
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.claims = true;
        }
    }

    fn release(&mut self, address: IpAddr, lease: LeaseId) {
        let Some(mark) = self.view.marks().get(&address) else {
            return;
        };
        let key = self.keys.of(&Key::Marked(address));
        let mut transaction = Transaction::default()
            .only_if(key.as_str(), Is::At(mark.modified))
            .delete(key);
        if let Some((cannot, Some(why))) = self.cannot_to_tell(address) {
            // At once, so that nobody thinks that it is still this node's share.
            transaction = transaction.put(cannot, why, Some(lease));
        }
        self.ask(address, What::Release, transaction);
    }

    /// What the store should have about why an address cannot be held here, if it has something else: the key, and its value, if any.
    fn cannot_to_tell(&self, address: IpAddr) -> Option<(String, Option<String>)> {
        let now = self.now;
        let of = (self.settings.node.clone(), address);
        let told = self.view.cannot().get(&of);
        let slot = self.slots.get(&address).filter(|slot| !slot.is_there());
        let trouble = slot.and_then(|slot| slot.trouble.as_ref());
        let says = trouble.and_then(|trouble| {
            if now < trouble.until || trouble.is_strangers {
                return Some(trouble.error.clone());
            }
            // It would try again. Whoever has it does not give it up for that.
            let is_left =
                told.is_some() && now < trouble.forgotten && !self.view.is_wanted_since(&of.0, address);
            is_left.then(|| keys::untried(&trouble.error))
        });
        if told == says.as_ref() {
            return None;
        }
        Some((self.keys.of(&Key::Cannot(of.0, address)), says))
    }

    fn write_cannot(&mut self, address: IpAddr, lease: LeaseId) {
        let Some((cannot, says)) = self.cannot_to_tell(address) else {
            return;
        };
        let transaction = match says {
            Some(_) if !matches!(self.advert, Advert::In(_)) => return,
            Some(why) => Transaction::default()
                .only_if(
                    self.keys.of(&Key::Node(self.settings.node.clone())),
                    Is::LeasedBy(lease),
                )
                .put(cannot, why, Some(lease)),
            None => Transaction::default().delete(cannot),
        };
        self.ask(address, What::Cannot, transaction);
    }

    fn ask(&mut self, address: IpAddr, what: What, transaction: Transaction) {
        let ticket = self.request(Purpose::Slot { address, what }, transaction);
        self.slots.entry(address).or_default().request = Some(ticket);
    }

    /// Whether there is nothing left to give up.
    pub(super) fn is_empty_handed(&self) -> bool {
        let busy = |slot: &Slot| !slot.is_down(self.now) || slot.request.is_some();
        let settled = |address| {
            self.slots
                .get(address)
                .is_none_or(|slot| self.view.has(slot.settled))
        };
        let marked = self.view.marks().iter();
        let mut marked = marked.filter(|(address, mark)| self.is_mine(mark.lease) && settled(address));
        !self.slots.values().any(busy) && marked.next().is_none()
    }
}
