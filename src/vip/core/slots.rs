//! What is done for each address on the interface.

use std::net::IpAddr;
use std::time::Duration;

use super::{
    ANNOUNCED_AFTER, ANNOUNCED_EVERY, Advert, At, Core, Effect, LOSSES, TROUBLE_FIRST, TROUBLE_FORGOTTEN,
    TROUBLE_LONGEST, Ticket, UNTRIED_FIRST, UNTRIED_LONGEST,
};
use crate::store::Revision;
use crate::vip::said::{Said, Why};

/// Why something was asked of the store.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// To hold it. It counts in this term only.
    Claim { term: u64, from: Option<String> },
    /// To let others have it.
    Release,
    /// To say that it cannot be held here, or can again.
    Cannot,
}

/// An address, as far as this node has to do with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) kernel: Kernel,
    /// Answers that are owed, of this address's whole life: they come in the order of the effects.
    pub(super) takes: u32,
    pub(super) drops: u32,
    /// The one request to the store that is under way, and whether it is a claim.
    pub(super) request: Option<Ticket>,
    pub(super) claims: bool,
    /// The view is believed about this address from here on: what was decided before was decided without what was done since.
    pub(super) settled: Revision,
    /// When the store is asked again, after it did not do something; and how often it has refused since it did.
    pub(super) not_before: At,
    pub(super) refused: u32,
    pub(super) trouble: Option<Trouble>,
    /// What is said as soon as the kernel says that it is there.
    pub(super) took: Option<Said>,
    /// How often it was taken off the interface by somebody else, since when.
    pub(super) losses: Option<(At, u32)>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Kernel {
    /// It does not answer for it.
    #[default]
    Down,
    Up(Up),
    /// It has been told to stop.
    Going {
        /// It stops by then, whatever becomes of what it was told.
        ends: At,
        /// Answers that are still to come to drops of before.
        old: u32,
        /// When it is told once more.
        again: At,
        /// That it fails was said.
        said: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Up {
    /// None: inherited, and the store has not been looked at yet.
    pub(super) token: Option<Revision>,
    /// It was an earlier process that told the kernel until when: that may be later than what it has left for us to read.
    inherited: bool,
    pub(super) since: At,
    /// Answers that are still to come to takes of before.
    old: u32,
    /// When it was there. None: the kernel has not said so yet.
    pub(super) there: Option<At>,
    /// When it is told once more, if it does not say so.
    again: At,
    /// How often that was told to the neighbours, and when it is told next.
    told: usize,
    tell: Option<At>,
}

/// It could not be held.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) error: String,
    /// Until when it is left to others.
    pub(super) until: At,
    /// Until when it is left to those who can hold it.
    pub(super) forgotten: At,
    times: u32,
    /// Somebody who is no node has it. Then it is asked for again before it is tried again.
    pub(super) is_strangers: bool,
}

impl Trouble {
    /// Once more, after what was before.
    pub(super) fn after(before: Option<&Self>, now: At, error: String, is_strangers: bool) -> Self {
        let times = before.map_or(0, |trouble| trouble.times) + 1;
        let pause = TROUBLE_FIRST.saturating_mul(1 << (times - 1).min(8));
        let until = now + pause.min(TROUBLE_LONGEST);
        Self {
            error,
            until,
            forgotten: until + UNTRIED_FIRST.saturating_mul(times).min(UNTRIED_LONGEST),
            times,
            is_strangers,
        }
    }
}

impl Slot {
    /// Up, as an earlier process has left it.
    pub(super) fn inherited() -> Self {
        let up = Up {
            token: None,
            inherited: true,
            since: At::default(),
            old: 0,
            there: Some(At::default()),
            again: At::default(),
            told: ANNOUNCED_AFTER.len(),
            tell: Some(At::default()),
        };
        Self {
            kernel: Kernel::Up(up),
            ..Self::default()
        }
    }

    /// The store has less than it had.
    pub(super) fn set_back(&mut self, revision: Revision) {
        self.settled = self.settled.min(revision);
        if let Kernel::Up(up) = &mut self.kernel {
            up.token = up.token.min(Some(revision));
        }
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.claims && self.request.is_some()
    }

    pub(super) fn up(&self) -> Option<&Up> {
        match &self.kernel {
            Kernel::Up(up) => Some(up),
            _ => None,
        }
    }

    /// The kernel has said that it answers for it.
    pub(super) fn is_there(&self) -> bool {
        self.up().is_some_and(|up| up.there.is_some())
    }

    pub(super) fn is_down(&self, now: At) -> bool {
        match self.kernel {
            Kernel::Down => true,
            Kernel::Up(_) => false,
            Kernel::Going { ends, .. } => now >= ends,
        }
    }

    pub(super) fn troubled(&self, now: At) -> Option<&Trouble> {
        let holds = |trouble: &&Trouble| now < trouble.until || trouble.is_strangers;
        self.trouble.as_ref().filter(holds)
    }
}
impl Core {
    /// What is held, as far as this node knows.
    pub(super) fn up(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.slots
            .iter()
            .filter(|(_, slot)| slot.up().is_some())
            .map(|(address, _)| *address)
    }

    /// The kernel is told until when it may answer for all that is held.
    pub(super) fn extend_all(&mut self, until: At) {
        for slot in self.slots.values_mut() {
            if let Kernel::Up(up) = &mut slot.kernel {
                up.inherited = false;
            }
        }
        self.todo.host.push(Effect::Extend { until });
    }

    pub(super) fn drop_all(&mut self, why: &Why) {
        let held: Vec<IpAddr> = self.up().collect();
        for address in held {
            self.drop_one(address, why.clone());
        }
    }

    pub(super) fn drop_one(&mut self, address: IpAddr, why: Why) {
        let again = self.now + self.gives_up();
        let until = self.until.unwrap_or(self.now);
        let Some(slot) = self.slots.get_mut(&address) else {
            return;
        };
        let is_known = slot.up().is_some_and(|up| !up.inherited);
        let ends = if is_known { until } else { At(Duration::MAX) };
        let old = slot.drops;
        slot.took = None;
        slot.kernel = Kernel::Going {
            ends,
            old,
            again,
            said: false,
        };
        slot.drops += 1;
        self.stirred = true;
        self.todo.host.push(Effect::Drop { address });
        self.todo.say(Said::Dropped { address, why });
    }

    /// What the kernel was told, and has not said that it has done, it is told again.
    pub(super) fn tell_again(&mut self, address: IpAddr) {
        let (now, later, until) = (self.now, self.now + self.gives_up(), self.until);
        let Some(slot) = self.slots.get_mut(&address) else {
            return;
        };
        match &mut slot.kernel {
            Kernel::Up(up) if up.there.is_none() && now >= up.again => {
                let Some(until) = until else { return };
                up.again = later;
                slot.takes += 1;
                self.todo.host.push(Effect::Take { address, until });
            }
            Kernel::Going { again, .. } if now >= *again => {
                *again = later;
                slot.drops += 1;
                self.todo.host.push(Effect::Drop { address });
            }
            _ => {}
        }
    }

    pub(super) fn taken(&mut self, address: IpAddr, result: Result<(), String>) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&address) else {
            return;
        };
        slot.takes = slot.takes.saturating_sub(1);
        let Kernel::Up(up) = &mut slot.kernel else { return };
        if up.old > 0 {
            up.old -= 1;
            return;
        }
        match result {
            Ok(()) => {
                up.there = Some(now);
                up.told = 0;
                up.tell = ANNOUNCED_AFTER.first().map(|after| now + *after);
                self.stirred = true;
                if let Some(took) = slot.took.take() {
                    self.todo.say(took);
                }
            }
            Err(error) => self.fail(address, error),
        }
    }

    /// It cannot be held here: others may try, and this node tries again later.
    fn fail(&mut self, address: IpAddr, error: String) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&address) else {
            return;
        };
        // From the claim on: what it fails with now is a take that the kernel has not answered yet, put back a moment ago.
        let held_for = slot.up().map(|up| now.since(up.since));
        let was_well = held_for.is_some_and(|held_for| held_for >= TROUBLE_FORGOTTEN);
        let before = slot.trouble.as_ref().filter(|_| !was_well);
        let trouble = Trouble::after(before, now, error.clone(), false);
        let again_in = trouble.until.since(now);
        slot.losses = None;
        slot.trouble = Some(trouble);
        self.todo.say(Said::TakeFailed {
            address,
            error: error.clone(),
            again_in,
        });
        self.drop_one(address, Why::Failed { error });
    }

    pub(super) fn dropped(&mut self, address: IpAddr, result: Result<(), String>) {
        let soon = self.now + self.pause();
        let Some(slot) = self.slots.get_mut(&address) else {
            return;
        };
        slot.drops = slot.drops.saturating_sub(1);
        let Kernel::Going { old, again, said, .. } = &mut slot.kernel else {
            return;
        };
        self.stirred = true;
        if *old > 0 {
            // It was told so before the address was taken again.
            *old -= 1;
            return;
        }
        match result {
            Ok(()) => slot.kernel = Kernel::Down,
            Err(error) => {
                *again = soon;
                if !std::mem::replace(said, true) {
                    self.todo.say(Said::DropFailed { address, error });
                }
            }
        }
    }

    pub(super) fn lost(&mut self, address: IpAddr) {
        let (now, until, again) = (self.now, self.until, self.now + self.gives_up());
        let Some(slot) = self.slots.get_mut(&address) else {
            return;
        };
        let (Kernel::Up(up), Some(until)) = (&mut slot.kernel, until) else {
            return;
        };
        let recent = slot
            .losses
            .filter(|(since, _)| now.since(*since) < TROUBLE_FORGOTTEN);
        let (since, times) = recent.unwrap_or((now, 0));
        slot.losses = Some((since, times + 1));
        if times >= LOSSES {
            self.fail(
                address,
                "somebody takes it off the interface again and again".to_owned(),
            );
            return;
        }
        (up.there, up.again, up.tell) = (None, again, None);
        slot.takes += 1;
        self.todo.say(Said::Lost { address });
        self.todo.host.push(Effect::Take { address, until });
    }

    pub(super) fn announce_all(&mut self) {
        let now = self.now;
        for (address, slot) in &mut self.slots {
            if let Kernel::Up(up) = &mut slot.kernel
                && up.there.is_some()
            {
                let address = *address;
                self.todo.host.push(Effect::Announce { address });
                up.there = Some(now);
                up.told = 0;
                up.tell = ANNOUNCED_AFTER.first().map(|after| now + *after);
            }
        }
        self.stirred = true;
    }

    pub(super) fn announce(&mut self, address: IpAddr) {
        let now = self.now;
        let Some(Kernel::Up(up)) = self.slots.get_mut(&address).map(|slot| &mut slot.kernel) else {
            return;
        };
        let (Some(there), Some(tell)) = (up.there, up.tell) else {
            return;
        };
        if now < tell {
            return;
        }
        up.told += 1;
        let next = ANNOUNCED_AFTER.get(up.told).map(|after| there + *after);
        up.tell = Some(next.unwrap_or(now + ANNOUNCED_EVERY));
        self.todo.host.push(Effect::Announce { address });
    }

    /// The store says that it is ours. If that was decided in an earlier term, it may be somebody else's since.
    pub(super) fn claimed(&mut self, address: IpAddr, term: u64, from: Option<String>, token: Revision) {
        let is_mine = self.shares.get(&address) == Some(&self.settings.node);
        let wanted = is_mine && self.why_not().is_none() && self.view.pool_key(address).is_some();
        if term != self.term || !wanted || !matches!(self.advert, Advert::In(_)) || !self.has_time() {
            return;
        }
        let (now, again) = (self.now, self.now + self.gives_up());
        let (Some(until), Some(slot)) = (self.until, self.slots.get_mut(&address)) else {
            return;
        };
        if !matches!(slot.kernel, Kernel::Down) {
            return;
        }
        slot.kernel = Kernel::Up(Up {
            token: Some(token),
            inherited: false,
            since: now,
            old: slot.takes,
            there: None,
            again,
            told: 0,
            tell: None,
        });
        slot.takes += 1;
        slot.took = Some(Said::took(address, token, from));
        self.todo.host.push(Effect::Take { address, until });
    }

    /// When something is to be done for an address, if nothing changes.
    pub(super) fn next_for_slots(&self) -> Option<At> {
        let now = self.now;
        let of_one = |slot: &Slot| {
            let kernel = match slot.kernel {
                Kernel::Down => None,
                Kernel::Up(up) if up.there.is_none() => Some(up.again),
                Kernel::Up(up) => up.tell,
                Kernel::Going { ends, again, .. } => {
                    let again = Some(again);
                    if now < ends { again.min(Some(ends)) } else { again }
                }
            };
            let trouble = slot.trouble.iter();
            let trouble = trouble.flat_map(|trouble| [trouble.until, trouble.forgotten]);
            let later = trouble.chain([slot.not_before]).filter(|at| *at > now);
            later.chain(kernel).min()
        };
        let slots = self.slots.values().filter_map(of_one).min();
        let view = self
            .view
            .next(now)
            .filter(|_| matches!(self.advert, Advert::In(_)));
        slots.into_iter().chain(view).chain(self.unanswered_at()).min()
    }

    /// By when the kernel answers for nothing any more that it was told to drop. For what is inherited that is not known: as long as others would wait.
    pub(super) fn down_by(&self) -> At {
        let most = self.now + self.settings.ttl;
        let ends = self.slots.values().filter_map(|slot| match slot.kernel {
            Kernel::Going { ends, .. } => Some(ends.min(most)),
            _ => None,
        });
        ends.max().unwrap_or_default()
    }
}
