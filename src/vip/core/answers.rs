//! What comes back from the store, and what does not; whether it still tells what happens.

use super::{Advert, At, Core, Failing, PAUSE_LONGEST, Purpose, StoreFault, Ticket};
use crate::store::{Outcome, Revision, Snapshot, StoreError};
use crate::vip::said::Said;
use crate::vip::view::News;

impl Core {
    pub(super) fn committed(&mut self, ticket: Ticket, sent: At, result: Result<Outcome, StoreError>) {
        let Some(request) = self.requests.remove(&ticket) else {
            // Given up on. What it did is seen in the view.
            return;
        };
        match &result {
            Ok(Outcome::Done(revision) | Outcome::Refused(revision)) => {
                self.heard = self.heard.max(*revision);
                self.store_works();
            }
            // Of a lease of before: that is known.
            Err(StoreError::LeaseGone) if !self.is_mine(request.lease) => {}
            Err(StoreError::LeaseGone) => self.lose_lease(),
            Err(error) => self.store_fails(error),
        }
        if let Purpose::Slot { address, what } = request.purpose {
            self.slot_committed(address, what, result);
            return;
        }
        if self.sign_ticket == Some(ticket) {
            self.sign_ticket = None;
            self.sign.sent = None;
        }
        self.signed(request.purpose, sent, result);
    }

    pub(super) fn looked(&mut self, result: Result<Snapshot, StoreError>) {
        let was_asked = self.look.sent.take().is_some();
        match result {
            Ok(snapshot) => {
                self.is_deaf = false;
                if self
                    .view
                    .revision()
                    .is_some_and(|known| known > snapshot.revision)
                {
                    if !was_asked {
                        // Of before a later one.
                        return;
                    }
                    self.set_back(snapshot.revision);
                }
                self.store_is_seen();
                self.watching = true;
                self.watching_since = self.now;
                self.watch_heard = self.now;
                self.stirred = true;
                self.doubts = false;
                self.behind = None;
                self.heard = snapshot.revision;
                let news = self.view.look(self.now, &snapshot);
                self.take_news(news);
            }
            Err(error) => {
                self.watching = false;
                self.look.failed(self.now, self.pause());
                self.store_is_unseen(&error);
            }
        }
    }

    /// A store that was restored from a copy has less than was known before. It is the one that there is.
    fn set_back(&mut self, revision: Revision) {
        self.advert = match self.advert {
            Advert::Out(from) => Advert::Out(from.min(revision)),
            Advert::In(from) => Advert::In(from.min(revision)),
            Advert::Leaving(from) => Advert::Leaving(from.min(revision)),
        };
        for slot in self.slots.values_mut() {
            slot.set_back(revision);
        }
    }

    /// The watch that is there has ended, or is believed no more.
    pub(super) fn watch_ended(&mut self, error: &StoreError) {
        // Nothing is wrong with a store that forgets.
        if *error != StoreError::Compacted {
            self.note(error.to_string());
        }
        if self.look.sent.is_some() {
            // Another one follows anyway.
            return;
        }
        let lived = self.watching && self.now.since(self.watching_since) > PAUSE_LONGEST;
        self.watching = false;
        self.stirred = true;
        if lived {
            self.look.failed = 0;
            self.look.due = self.now;
        } else {
            self.look.failed(self.now, self.pause());
        }
    }

    pub(super) fn take_news(&mut self, news: News) {
        self.stirred |= news.changed;
        for (key, why) in news.rubbish {
            self.todo.say(Said::Rubbish { key, why });
        }
    }

    /// When a watch that tells nothing is not believed any more: there is a sign of life far more often, if anybody is alive. A node that takes no part
    /// gets no answers that would tell it that it misses something.
    pub(super) fn silent_at(&self) -> At {
        self.watch_heard + self.settings.ttl
    }

    /// Whether the view has missed something for longer than an answer may take: then the watch is stuck.
    pub(super) fn is_behind(&mut self) -> bool {
        if self.doubts || self.now >= self.silent_at() {
            return true;
        }
        match self.behind {
            Some((missed, since)) if !self.view.has(missed) => self.now >= since + self.settings.patience,
            _ => {
                self.behind = (!self.view.has(self.heard)).then_some((self.heard, self.now));
                false
            }
        }
    }

    /// The shell ends each request in time, and tells. If not: nobody waits for ever.
    pub(super) fn give_up_on_answers(&mut self) {
        let (now, gives_up) = (self.now, self.gives_up());
        let over = move |sent: &At| now >= *sent + gives_up;
        let silent = StoreError::Unknown("nothing came back".to_owned());
        if let Some(sent) = self.grant.sent.filter(over) {
            self.granted(sent, Err(silent.clone()));
        }
        if let (Some(sent), Some(lease)) = (self.keep_alive.sent.filter(over), self.lease) {
            self.kept_alive(lease.id, sent, Err(silent.clone()));
        }
        if self.look.sent.filter(over).is_some() {
            self.looked(Err(silent.clone()));
        }
        let over: Vec<Ticket> = self
            .requests
            .iter()
            .filter(|(_, request)| over(&request.sent))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in over {
            let sent = self.requests.get(&ticket).map(|request| request.sent);
            self.committed(ticket, sent.unwrap_or_default(), Err(silent.clone()));
        }
    }

    fn note(&mut self, error: String) {
        let at = self.now;
        self.fault = Some(StoreFault { error, at });
    }

    /// From when on it takes no part, if it does not see the store before: while nothing gets through either, that is the clock's matter (`until`).
    pub(super) fn blind_at(&self) -> Option<At> {
        self.until?;
        // One list that was lost is no fault: the next one may tell all.
        let unseen = self.unseen.filter(|unseen| unseen.times > 1)?;
        Some(unseen.since + self.settings.ttl)
    }

    /// It has done something, or refused to.
    pub(super) fn store_works(&mut self) {
        self.is_deaf = false;
        if let Some(failing) = self.failing.take().filter(|failing| failing.told) {
            let after = self.now.since(failing.since);
            self.todo.say(Said::StoreBack { after });
        }
    }

    pub(super) fn store_fails(&mut self, error: &StoreError) {
        self.note(error.to_string());
        if Self::fails_again(&mut self.failing, self.now) {
            let error = error.to_string();
            self.todo.say(Said::StoreLost { error });
        }
    }

    /// It was listed, and is watched.
    fn store_is_seen(&mut self) {
        self.is_blind = false;
        if let Some(unseen) = self.unseen.take().filter(|unseen| unseen.told) {
            let after = self.now.since(unseen.since);
            self.todo.say(Said::StoreSeen { after });
        }
    }

    fn store_is_unseen(&mut self, error: &StoreError) {
        self.note(error.to_string());
        // A watch may have told nothing for a while before that is noticed.
        let since = match self.view.revision() {
            Some(_) => self.watch_heard,
            None => self.now,
        };
        if Self::fails_again(&mut self.unseen, since) {
            let error = error.to_string();
            self.todo.say(Said::StoreUnseen { error });
        }
    }

    /// Whether that is worth saying now: one answer that is lost is nothing to read about.
    fn fails_again(failing: &mut Option<Failing>, since: At) -> bool {
        let failing = failing.get_or_insert(Failing {
            since,
            times: 0,
            told: false,
        });
        failing.times += 1;
        failing.times > 1 && !std::mem::replace(&mut failing.told, true)
    }
}
