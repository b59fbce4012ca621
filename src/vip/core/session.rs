//! The session: the lease, this node's key in the store, until when it may hold anything, and whether it takes part.

use std::time::Duration;

use super::{Advert, Asked, At, Core, Effect, FORMER, Keep, Lease, Purpose};
use crate::store::{Is, LeaseId, Outcome, Revision, StoreError, Transaction};
use crate::vip::keys::Key;
use crate::vip::said::{Said, Why};

impl Core {
    pub(super) fn lapse(&mut self) {
        if self.until.is_none_or(|until| self.now < until) {
            return;
        }
        let held = self.up().count();
        if held > 0 {
            self.todo.say(Said::Lapsed { held });
        }
        self.begin_a_term(&Why::Lapsed);
    }

    /// Nothing may be held by what was acknowledged before.
    fn begin_a_term(&mut self, why: &Why) {
        self.drop_all(why);
        self.until = None;
        self.beat = None;
        self.extended = None;
        self.term += 1;
        self.inherits = false;
        self.stirred = true;
        self.sign.due = self.sign.due.min(self.now);
    }

    pub(super) fn lose_lease(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        self.lose_advert(Said::LeaseLost {
            lease: lease.id.to_string(),
        });
        self.former.push_back(lease.id);
        if self.former.len() > FORMER {
            self.former.pop_front();
        }
        self.has_told_ttl = false;
        self.keep_alive = Asked::default();
    }

    fn lose_advert(&mut self, said: Said) {
        if self.takes_part || self.until.is_some() {
            self.todo.say(said);
        }
        self.forget_sign();
        self.sign.due = self.now;
        self.advert = Advert::Out(self.believed_from());
        let because = "its key or its lease is gone from the store".to_owned();
        self.begin_a_term(&Why::NotTakingPart { because });
    }

    /// From which revision on the view is believed about this node's key.
    fn believed_from(&self) -> Revision {
        match self.advert {
            Advert::Out(from) | Advert::In(from) | Advert::Leaving(from) => from,
        }
    }

    /// The lease under which this node's key is, as the view has it.
    fn advertised(&self) -> Option<(Option<LeaseId>, Revision)> {
        let advert = self.view.adverts().get(&self.settings.node)?;
        Some((advert.lease, advert.modified))
    }

    pub(super) fn is_mine(&self, lease: Option<LeaseId>) -> bool {
        lease.is_some() && lease == self.lease.map(|lease| lease.id)
    }

    pub(super) fn granted(&mut self, sent: At, result: Result<(LeaseId, Duration), StoreError>) {
        match result {
            Ok((id, ttl)) if self.lease.is_none() && self.stop.is_none() => {
                self.grant = Asked::default();
                self.store_works();
                let ends = Some(sent + self.counted(ttl));
                self.lease = Some(Lease { id, ends });
                self.keep_alive.due = sent + self.settings.interval;
                self.stirred = true;
            }
            // One that was given up on. It may end.
            Ok((id, _)) => {
                if self.lease.is_none_or(|lease| lease.id != id) {
                    self.todo.last.push(Effect::Revoke { lease: id });
                }
            }
            Err(error) => {
                self.grant.failed(self.now, self.pause());
                self.store_fails(&error);
            }
        }
    }

    pub(super) fn kept_alive(&mut self, lease: LeaseId, sent: At, result: Result<Duration, StoreError>) {
        if !self.is_mine(Some(lease)) {
            return;
        }
        match result {
            Ok(ttl) => {
                self.store_works();
                // One that was asked for before tells nothing of the one that is waited for.
                self.keep_alive.sent = self.keep_alive.sent.filter(|last| *last > sent);
                self.keep_alive.failed = 0;
                let ends = sent + self.counted(ttl);
                if let Some(lease) = &mut self.lease {
                    lease.ends = lease.ends.max(Some(ends));
                }
                self.extend();
            }
            Err(StoreError::LeaseGone) => self.lose_lease(),
            Err(error) => {
                // Not one after the other for longer and longer: that is what time is running out for.
                self.keep_alive.failed = 0;
                self.keep_alive.failed(self.now, self.pause());
                self.store_fails(&error);
            }
        }
    }

    /// The margin pays for clocks that differ for as long as `ttl`; the store's leases are whole seconds, and may be longer.
    fn counted(&self, granted: Duration) -> Duration {
        granted.min(self.settings.ttl)
    }

    /// What was acknowledged lets everything be held for longer.
    pub(super) fn extend(&mut self) {
        let (Some(beat), Some(lease)) = (self.beat, self.lease) else {
            return;
        };
        let Some(ends) = lease.ends else { return };
        let until = (beat + self.settings.ttl).min(ends).less(self.settings.margin);
        if until > self.now && self.until.is_none_or(|before| until > before) {
            let had_time = self.has_time();
            self.until = Some(until);
            self.stirred |= !had_time;
        }
    }

    /// Whether it is worth while to take something: as long as signs of life are answered there is more time than this. An answer that is very late may
    /// leave a moment only.
    pub(super) fn has_time(&self) -> bool {
        self.until
            .is_some_and(|until| until >= self.now + self.settings.interval)
    }

    /// What became of a sign of life, the first or the last one included.
    pub(super) fn signed(&mut self, purpose: Purpose, sent: At, result: Result<Outcome, StoreError>) {
        match (purpose, result) {
            (Purpose::Join | Purpose::Beat, Ok(Outcome::Done(revision))) => {
                self.sign.failed = 0;
                self.has_told_ttl = true;
                self.advert = Advert::In(revision);
                self.beat = self.beat.max(Some(sent));
                self.extend();
            }
            (Purpose::Join, Ok(Outcome::Refused(revision))) => {
                self.advert = Advert::Out(revision);
                self.stirred = true;
            }
            (Purpose::Beat, Ok(Outcome::Refused(revision))) => {
                // Whichever of the two keys is gone.
                self.has_told_ttl = false;
                self.lose_advert(Said::AdvertLost);
                self.advert = Advert::Out(revision);
            }
            (Purpose::Leave, Ok(Outcome::Done(revision) | Outcome::Refused(revision))) => {
                self.sign = Asked::default();
                self.advert = Advert::Out(revision);
                self.stirred = true;
            }
            (purpose, error) => {
                self.is_deaf =
                    !matches!(purpose, Purpose::Leave) && matches!(error, Err(StoreError::Unknown(_)));
                self.sign.failed = 0;
                self.sign.failed(self.now, self.pause());
            }
        }
    }

    /// Why this node should not take part.
    pub(super) fn why_not(&self) -> Option<String> {
        if self.stop.is_some() {
            return Some("it is told to end".to_owned());
        }
        match &self.health {
            Some(Err(why)) => return Some(why.clone()),
            None if !self.inherits => return Some("nothing is known of its health yet".to_owned()),
            _ => {}
        }
        if self.view.revision().is_none() && !self.inherits {
            return Some("nothing is known of the store yet".to_owned());
        }
        if self.is_blind {
            return Some("what is in the store cannot be seen".to_owned());
        }
        let why = self.view.paused().get(&self.settings.node)?;
        Some(if why.is_empty() {
            "it is paused".to_owned()
        } else {
            format!("it is paused: {why}")
        })
    }

    pub(super) fn wants_lease(&self) -> bool {
        self.lease.is_none() && self.stop.is_none() && matches!(self.health, Some(Ok(())))
    }

    /// Whether there is something to put or to take away, when it is time.
    pub(super) fn wants_sign(&self) -> bool {
        match self.advert {
            Advert::In(_) => !self.is_deaf,
            Advert::Leaving(_) => true,
            Advert::Out(from) => {
                self.sign.sent.is_some()
                    || (!self.is_deaf
                        && self.rival.is_none()
                        && self.lease.is_some()
                        && self.why_not().is_none()
                        && self.view.has(from))
            }
        }
    }

    /// What the view says of this node's key.
    pub(super) fn heed_view(&mut self) {
        if !self.view.has(self.believed_from()) {
            return;
        }
        let advertised = self.advertised();
        let mine = advertised.is_some_and(|(lease, _)| self.is_mine(lease));
        match self.advert {
            Advert::In(_) if !mine => self.lose_advert(Said::AdvertLost),
            // It was put after all.
            Advert::Out(_) if mine && self.sign.sent.is_none() => {
                self.sign.due = self.now;
                self.advert = Advert::In(advertised.map(|(_, at)| at).unwrap_or_default());
            }
            Advert::Leaving(from) if !mine => {
                self.forget_sign();
                self.advert = Advert::Out(from);
                self.stirred = true;
            }
            _ => {}
        }
    }

    /// Another instance of this node's name, while it is not known to be silent for as long as it asks to be waited for.
    pub(super) fn heed_rival(&mut self) {
        let other = self.advertised().and_then(|(lease, _)| lease);
        let other = other.filter(|lease| !self.is_mine(Some(*lease)) && !self.former.contains(lease));
        let rival = other
            .filter(|lease| matches!(self.advert, Advert::Out(_)) && self.now < self.view.waited_for(*lease));
        if let Some(rival) = rival
            && self.rival != Some(rival)
        {
            self.todo.say(Said::name_in_use(rival));
        }
        if self.rival != rival {
            self.rival = rival;
            self.stirred = true;
            self.sign.due = self.now;
        }
    }

    /// All is left to the next instance. It is given a whole `ttl` for its start, if there is anything and the store does what it is told.
    pub(super) fn keep_all(&mut self) {
        let by = self.now + self.settings.patience;
        let (is_in, works) = (matches!(self.advert, Advert::In(_)), self.failing.is_none());
        let is_worth_while = is_in && works && !self.is_deaf && self.up().next().is_some();
        if is_worth_while {
            self.forget_sign();
            self.sign(true);
            self.keep_alive.sent = None;
            self.keep_alive.due = self.now;
        }
        let sign = self.sign_ticket.filter(|_| is_worth_while);
        self.keep = Some(Keep { sign, by });
    }

    fn forget_sign(&mut self) {
        if let Some(ticket) = self.sign_ticket.take() {
            self.requests.remove(&ticket);
        }
        self.sign = Asked::default();
    }

    /// Gives up everything. That it takes no part is told to the others first, so that they need not wait for its leaving to share.
    pub(super) fn take_no_part(&mut self, because: &str) {
        if self.up().next().is_some() {
            let because = because.to_owned();
            self.drop_all(&Why::NotTakingPart { because });
        }
        if let Advert::In(from) = self.advert {
            self.forget_sign();
            self.advert = Advert::Leaving(from);
            // What is claimed is not wanted any more, and nothing may be held by signs of life of before.
            self.begin_a_term(&Why::Lapsed);
        }
    }

    pub(super) fn tell_part(&mut self, takes_part: bool, why_not: Option<String>) {
        if takes_part && !self.takes_part {
            let lease = self.lease.map(|lease| lease.id.to_string()).unwrap_or_default();
            self.told_why_not = None;
            self.todo.say(Said::TakesPart { lease });
        }
        if let Some(because) = why_not
            && self.told_why_not.as_ref() != Some(&because)
        {
            // While nothing is known it is only on its way there; and that it is told to end, who told it knows.
            let is_news = self.takes_part || (self.health.is_some() && self.view.revision().is_some());
            if is_news && self.stop.is_none() {
                self.todo.say(Said::TakesNoPart {
                    because: because.clone(),
                });
            }
            self.told_why_not = Some(because);
        }
        self.takes_part = takes_part;
    }

    /// Joins, shows a sign of life, or leaves.
    pub(super) fn sign(&mut self, wanted: bool) {
        let Some(lease) = self.lease.map(|lease| lease.id) else {
            return;
        };
        if !self.sign.is_due(self.now) || (self.is_deaf && !matches!(self.advert, Advert::Leaving(_))) {
            return;
        }
        let me = self.keys.of(&Key::Node(self.settings.node.clone()));
        let ttl = self.keys.of(&Key::Ttl(lease));
        let mut transaction = Transaction::default();
        let purpose = match self.advert {
            Advert::In(_) => {
                transaction = transaction.only_if(me.as_str(), Is::LeasedBy(lease));
                if self.has_told_ttl {
                    transaction = transaction.only_if(ttl.as_str(), Is::LeasedBy(lease));
                }
                Purpose::Beat
            }
            Advert::Leaving(_) => {
                transaction = transaction
                    .only_if(me.as_str(), Is::LeasedBy(lease))
                    .delete(me.as_str());
                Purpose::Leave
            }
            Advert::Out(from) => {
                if !wanted || !self.view.has(from) {
                    return;
                }
                let is = match self.advertised() {
                    None => Is::Absent,
                    Some(_) if self.rival.is_some() => return,
                    Some((_, at)) => Is::At(at),
                };
                transaction = transaction.only_if(me.as_str(), is);
                Purpose::Join
            }
        };
        if !matches!(purpose, Purpose::Leave) {
            transaction = transaction.put(me, "healthy", Some(lease));
            if !self.has_told_ttl {
                transaction = transaction.put(ttl, self.settings.ttl.as_millis().to_string(), Some(lease));
            }
        }
        self.sign.sent = Some(self.now);
        self.sign.due = self.now + self.settings.interval;
        self.sign_ticket = Some(self.request(purpose, transaction));
    }
}
