//! A store of one process: etcd's semantics, with a clock that is passed in.
//!
//! **Promise.** What etcd 3 promises of revisions, transactions, leases and watches, as a plain machine ([`Memory`]) and behind the room's traits
//! ([`InMemory`]). What etcd leaves open is left to whoever drives the machine: when a lease that has ended is noticed, what is compacted.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    Act, Change, Changes, Condition, Entry, Is, LeaseId, Outcome, Revision, Snapshot, Store, StoreError,
    Transaction, Watch,
};

/// As etcd's: a lease is never shorter than the elections of its default settings.
const SHORTEST: Duration = Duration::from_secs(2);

/// The machine. `now` is its own clock's.
#[derive(Clone, Debug)]
pub struct Memory {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: i64,
    /// What has happened since `forgotten`.
    log: VecDeque<(Revision, Change)>,
    forgotten: Revision,
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    ends: Duration,
    keys: BTreeSet<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            // As in an etcd in which nothing was ever written.
            revision: Revision(1),
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0x1000,
            log: VecDeque::new(),
            forgotten: Revision(1),
        }
    }
}

impl Memory {
    /// How often it was changed.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What a key holds.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// A new lease, and how long it lasts: whole seconds, as etcd's.
    pub fn grant(&mut self, now: Duration, ttl: Duration) -> (LeaseId, Duration) {
        let whole = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        let ttl = whole.max(SHORTEST);
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        let lease = Lease {
            ttl,
            ends: now + ttl,
            keys: BTreeSet::new(),
        };
        self.leases.insert(id, lease);
        (id, ttl)
    }

    /// A lease lasts from now on as long as it was granted for.
    ///
    /// # Errors
    /// When it has ended.
    pub fn keep_alive(&mut self, now: Duration, lease: LeaseId) -> Result<Duration, StoreError> {
        let lease = self.leases.get_mut(&lease).ok_or(StoreError::LeaseGone)?;
        lease.ends = now + lease.ttl;
        Ok(lease.ttl)
    }

    /// Ends a lease and all that is under it, at one revision.
    pub fn revoke(&mut self, lease: LeaseId) {
        let Some(lease) = self.leases.remove(&lease) else {
            return;
        };
        let next = Revision(self.revision.0 + 1);
        for key in lease.keys {
            if self.entries.remove(&key).is_some() {
                self.log.push_back((next, Change::Gone { key, at: next }));
                self.revision = next;
            }
        }
    }

    /// Ends the leases whose time is over.
    pub fn expire(&mut self, now: Duration) {
        let over = |(id, lease): (&LeaseId, &Lease)| (lease.ends <= now).then_some(*id);
        let over: Vec<LeaseId> = self.leases.iter().filter_map(over).collect();
        for lease in over {
            self.revoke(lease);
        }
    }

    /// When the next lease's time is over.
    #[must_use]
    pub fn next_end(&self) -> Option<Duration> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    /// All leases last for as long as they were granted for, from now on: what a new leader of etcd does, since it does not know when
    /// the one before was last asked.
    pub fn renew_all(&mut self, now: Duration) {
        for lease in self.leases.values_mut() {
            lease.ends = lease.ends.max(now + lease.ttl);
        }
    }

    /// Does a transaction, if its conditions are true.
    ///
    /// # Errors
    /// When it puts something under a lease that has ended, or names a key twice.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        if !transaction.only_if.iter().all(|condition| self.is(condition)) {
            return Ok(Outcome::Refused(self.revision));
        }
        let mut named = BTreeSet::new();
        for act in &transaction.then {
            let (key, lease) = match act {
                Act::Put { key, lease, .. } => (key, *lease),
                Act::Delete { key } => (key, None),
            };
            if !named.insert(key) {
                return Err(StoreError::Unavailable(format!(
                    "{key} is named twice in one transaction"
                )));
            }
            if lease.is_some_and(|lease| !self.leases.contains_key(&lease)) {
                return Err(StoreError::LeaseGone);
            }
        }
        let next = Revision(self.revision.0 + 1);
        let before = self.log.len();
        for act in &transaction.then {
            match act {
                Act::Put { key, value, lease } => self.put(next, key, value, *lease),
                Act::Delete { key } => self.delete(next, key),
            }
        }
        if self.log.len() > before {
            self.revision = next;
        }
        Ok(Outcome::Done(self.revision))
    }

    fn is(&self, condition: &Condition) -> bool {
        let entry = self.entries.get(&condition.key);
        match condition.is {
            Is::Absent => entry.is_none(),
            Is::Present => entry.is_some(),
            Is::At(revision) => entry.is_some_and(|entry| entry.modified == revision),
            Is::LeasedBy(lease) => entry.is_some_and(|entry| entry.lease == Some(lease)),
        }
    }

    fn put(&mut self, at: Revision, key: &str, value: &str, lease: Option<LeaseId>) {
        let before = self.entries.get(key);
        let entry = Entry {
            key: key.to_owned(),
            value: value.to_owned(),
            created: before.map_or(at, |before| before.created),
            modified: at,
            lease,
        };
        if let Some(of) = before.and_then(|before| before.lease)
            && let Some(of) = self.leases.get_mut(&of)
        {
            of.keys.remove(key);
        }
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(key.to_owned());
        }
        self.entries.insert(key.to_owned(), entry.clone());
        self.log.push_back((at, Change::Put(entry)));
    }

    fn delete(&mut self, at: Revision, key: &str) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        if let Some(lease) = entry.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove(key);
        }
        let key = key.to_owned();
        self.log.push_back((at, Change::Gone { key, at }));
    }

    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn list(&self, prefix: &str) -> Snapshot {
        let below = self.entries.range(prefix.to_owned()..);
        let below = below.take_while(|(key, _)| key.starts_with(prefix));
        Snapshot {
            revision: self.revision,
            entries: below.map(|(_, entry)| entry.clone()).collect(),
        }
    }

    /// All that has happened below `prefix` after `after`.
    ///
    /// # Errors
    /// When that was compacted away.
    pub fn changes(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError> {
        if after < self.forgotten {
            return Err(StoreError::Compacted);
        }
        let key = |change: &'_ Change| match change {
            Change::Put(entry) => entry.key.starts_with(prefix),
            Change::Gone { key, .. } => key.starts_with(prefix),
        };
        // The log is in the order of revisions.
        let from = self.log.partition_point(|(at, _)| *at <= after);
        let changes = self.log.iter().skip(from).map(|(_, change)| change);
        Ok(Changes {
            revision: self.revision,
            changes: changes.filter(|change| key(change)).cloned().collect(),
        })
    }

    /// Forgets what has happened up to `revision`.
    pub fn compact(&mut self, revision: Revision) {
        self.forgotten = self.forgotten.max(revision.min(self.revision));
        while self.log.front().is_some_and(|(at, _)| *at <= self.forgotten) {
            self.log.pop_front();
        }
    }
}

/// How much of the past is kept for watches that are behind.
const REMEMBERED: u64 = 10_000;

/// A [`Memory`] as a [`Store`], on tokio's clock. A clone is another handle of the same one.
#[derive(Clone, Debug)]
pub struct InMemory {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    memory: RefCell<Memory>,
    /// The revision, for those who wait for the next one.
    revision: watch::Sender<Revision>,
}

impl InMemory {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            began: Instant::now(),
            memory: RefCell::default(),
            revision: watch::Sender::new(Revision(1)),
        };
        Self {
            shared: Rc::new(shared),
        }
    }

    /// Does something with the machine, after all leases whose time is over have ended.
    pub fn with<T>(&self, act: impl FnOnce(&mut Memory, Duration) -> T) -> T {
        let now = self.shared.began.elapsed();
        let mut memory = self.shared.memory.borrow_mut();
        memory.expire(now);
        let answer = act(&mut memory, now);
        let revision = memory.revision();
        let forgotten = Revision(revision.0.saturating_sub(REMEMBERED));
        memory.compact(forgotten);
        drop(memory);
        self.shared.revision.send_if_modified(|told| {
            let is_new = *told != revision;
            *told = revision;
            is_new
        });
        answer
    }
}

impl Default for InMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for InMemory {
    type Watch = InMemoryWatch;

    async fn grant(&self, ttl: Duration, _: Duration) -> Result<(LeaseId, Duration), StoreError> {
        Ok(self.with(|memory, now| memory.grant(now, ttl)))
    }

    async fn keep_alive(&self, lease: LeaseId, _: Duration) -> Result<Duration, StoreError> {
        self.with(|memory, now| memory.keep_alive(now, lease))
    }

    async fn revoke(&self, lease: LeaseId, _: Duration) -> Result<(), StoreError> {
        self.with(|memory, _| memory.revoke(lease));
        Ok(())
    }

    async fn commit(&self, transaction: Transaction, _: Duration) -> Result<Outcome, StoreError> {
        self.with(|memory, _| memory.commit(&transaction))
    }

    async fn list(&self, prefix: &str, _: Duration) -> Result<Snapshot, StoreError> {
        Ok(self.with(|memory, _| memory.list(prefix)))
    }

    async fn watch(&self, prefix: &str, after: Revision, _: Duration) -> Result<InMemoryWatch, StoreError> {
        Ok(InMemoryWatch {
            store: self.clone(),
            prefix: prefix.to_owned(),
            after,
            revision: self.shared.revision.subscribe(),
        })
    }
}

/// A watch of an [`InMemory`].
#[derive(Debug)]
pub struct InMemoryWatch {
    store: InMemory,
    prefix: String,
    after: Revision,
    revision: watch::Receiver<Revision>,
}

impl Watch for InMemoryWatch {
    async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            self.revision.mark_unchanged();
            let changes = self
                .store
                .with(|memory, _| memory.changes(&self.prefix, self.after))?;
            if changes.revision > self.after {
                self.after = changes.revision;
                return Ok(changes);
            }
            // Nobody may be there to notice that a lease has ended.
            let end = self.store.with(|memory, _| memory.next_end());
            let end = async {
                match end {
                    Some(end) => tokio::time::sleep_until(self.store.shared.began + end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives as long as the store that this watch holds.
                _ = self.revision.changed() => {}
                () = end => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
