//! The store room: what more than one machine must agree on. Leases, compare-and-set and watches, over etcd or in memory.
//!
//! **Promise.** A [`Transaction`] happens as a whole or not at all, after all that was answered before it was sent, whoever asked; a
//! [`Snapshot`] holds all of that, too. A [`Revision`] only ever grows: it is the fencing token of what was decided at it.
//!
//! **Not promised.** An answer. [`StoreError::Unknown`] says that a transaction may have happened: only a look tells. A [`Change`] comes late
//! by as much as the network and the member that is watched are late; what is decided upon one is decided by a transaction that says so.
//! And a lease: it may end before its time, by a fault of the store or by somebody's hand, and all that is under it with it. That a key is gone
//! does not tell that whoever put it there knows.

#[cfg(feature = "etcd")]
mod etcd;
// A configuration can be checked without what would use it.
#[cfg_attr(not(feature = "etcd"), allow(dead_code))]
mod etcd_config;
mod memory;

use std::fmt;
use std::time::Duration;

#[cfg(feature = "etcd")]
pub use etcd::{Etcd, EtcdWatch};
pub use etcd_config::{ETCD_PORT, EtcdConfig, EtcdConfigError, EtcdSettings};
pub use memory::{InMemory, InMemoryWatch, Memory};

/// How often the store had been changed when something happened. The fencing token of what was decided then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A lease: what is put under it is gone when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// One key and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub key: String,
    /// What it holds. What is no UTF-8 is replaced, as `String::from_utf8_lossy` does.
    pub value: String,
    /// When it was created.
    pub created: Revision,
    /// When it was put last.
    pub modified: Revision,
    /// The lease that it goes with.
    pub lease: Option<LeaseId>,
}

/// What must be true of a key for a transaction to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// There is none.
    Absent,
    /// There is one.
    Present,
    /// It was put last at this revision.
    At(Revision),
    /// It is under this lease.
    LeasedBy(LeaseId),
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Of which key.
    pub key: String,
    /// What.
    pub is: Is,
}

/// What a transaction does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Writes a key.
    Put {
        /// Its name.
        key: String,
        /// What it shall hold.
        value: String,
        /// The lease that it goes with from now on; none takes it off the one that it had.
        lease: Option<LeaseId>,
    },
    /// Takes a key away. One that is not there is no error.
    Delete {
        /// Its name.
        key: String,
    },
}

/// All of `then`, if all of `only_if` is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must be true.
    pub only_if: Vec<Condition>,
    /// What is done then. No key more than once.
    pub then: Vec<Act>,
}

impl Transaction {
    /// With one condition more.
    #[must_use]
    pub fn only_if(mut self, key: impl Into<String>, is: Is) -> Self {
        self.only_if.push(Condition { key: key.into(), is });
        self
    }

    /// With one key more that is written.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<String>, lease: Option<LeaseId>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.then.push(Act::Put { key, value, lease });
        self
    }

    /// With one key more that is taken away.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.then.push(Act::Delete { key: key.into() });
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has happened, at this revision.
    Done(Revision),
    /// A condition was not true: nothing has happened. The store was at this revision.
    Refused(Revision),
}

/// All keys below a prefix, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Which.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// A key that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was put.
    Put(Entry),
    /// It is gone: taken away, or its lease has ended.
    Gone {
        /// Its name.
        key: String,
        /// When.
        at: Revision,
    },
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// All changes up to here have been told with these.
    pub revision: Revision,
    /// In the order in which they happened; may be none.
    pub changes: Vec<Change>,
}

/// Why the store did not do what it was asked. `Display` names the endpoint where there is one, and the remedy where it is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Not done, and it never will be: nothing was sent, or the store has said so. Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// No answer: it may have been done, or be done yet.
    #[error("no answer: {0}")]
    Unknown(String),
    /// The lease has ended.
    #[error("the lease has ended")]
    LeaseGone,
    /// A watch from a revision that the store does not know any more: look at all of it again.
    #[error("the store has forgotten what happened then (compaction)")]
    Compacted,
    /// We may not, or are not who we say: trying again does not help until somebody changes that.
    #[error("{0}")]
    NotAllowed(String),
}

/// Where more than one machine agrees. Requests may be made at the same time (a clone is another handle of the same store); each ends within its `timeout`,
/// the endpoint that hangs included.
#[expect(
    async_fn_in_trait,
    reason = "every daemon is one thread: nothing needs to be Send"
)]
pub trait Store: Clone {
    /// The stream of [`Store::watch`].
    type Watch: Watch;

    /// A new lease and how long it lasts without [`Store::keep_alive`]: at least `ttl`.
    ///
    /// # Errors
    /// When there is none.
    async fn grant(&self, ttl: Duration, timeout: Duration) -> Result<(LeaseId, Duration), StoreError>;

    /// Makes a lease last as long again as when it was granted, counted from when the store does it. The answer is how long that is.
    ///
    /// # Errors
    /// When it was not done, or nobody knows.
    async fn keep_alive(&self, lease: LeaseId, timeout: Duration) -> Result<Duration, StoreError>;

    /// Ends a lease and all that is under it. One that is gone is no error.
    ///
    /// # Errors
    /// When it was not done, or nobody knows.
    async fn revoke(&self, lease: LeaseId, timeout: Duration) -> Result<(), StoreError>;

    /// Does a transaction, if its conditions are true.
    ///
    /// # Errors
    /// When it was not done, or nobody knows.
    async fn commit(&self, transaction: Transaction, timeout: Duration) -> Result<Outcome, StoreError>;

    /// All keys below `prefix`, as all members agree on it (a linearizable read).
    ///
    /// # Errors
    /// When nobody says.
    async fn list(&self, prefix: &str, timeout: Duration) -> Result<Snapshot, StoreError>;

    /// All changes below `prefix` after `after`.
    ///
    /// # Errors
    /// When it cannot be watched.
    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
        timeout: Duration,
    ) -> Result<Self::Watch, StoreError>;
}

/// Changes as they happen.
#[expect(
    async_fn_in_trait,
    reason = "every daemon is one thread: nothing needs to be Send"
)]
pub trait Watch {
    /// The next ones. May be dropped before it is done, and asked again: nothing is lost.
    ///
    /// # Errors
    /// When the watch has ended: cancelled, compacted, a member without a leader, a connection that says nothing for longer than the
    /// store's own sign of life may take. There is nothing more to hear from it then.
    async fn next(&mut self) -> Result<Changes, StoreError>;
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LeaseId {
    /// As `etcdctl lease list` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}
