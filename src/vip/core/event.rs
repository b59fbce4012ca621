//! What happens to a node, and what it does about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::{At, Ticket};
use crate::store::{Changes, LeaseId, Outcome, Snapshot, StoreError, Transaction};
use crate::vip::said::Said;

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Nothing but time: `wake` said when.
    Time,
    /// What the check says, after rise and fall counts; or the interface, which is down.
    Health(Result<(), String>),
    /// An answer to [`Effect::Grant`]: the lease and how long it lasts.
    Granted {
        /// When it was asked for.
        sent: At,
        /// What the store says.
        result: Result<(LeaseId, Duration), StoreError>,
    },
    /// An answer to [`Effect::KeepAlive`].
    KeptAlive {
        /// Which lease.
        lease: LeaseId,
        /// When it was asked for.
        sent: At,
        /// How long it lasts, from some moment after `sent`.
        result: Result<Duration, StoreError>,
    },
    /// An answer to [`Effect::Commit`].
    Committed {
        /// Which.
        ticket: Ticket,
        /// When it was asked for.
        sent: At,
        /// What the store says.
        result: Result<Outcome, StoreError>,
    },
    /// An answer to [`Effect::Look`]: everything below the prefix. A watch from there follows; its changes come as `Changes`.
    Looked(Result<Snapshot, StoreError>),
    /// What the watch told.
    Changes(Changes),
    /// The watch has ended.
    WatchEnded(StoreError),
    /// An answer to [`Effect::Take`].
    Taken {
        /// Which.
        address: IpAddr,
        /// Whether it is on the interface.
        result: Result<(), String>,
    },
    /// An answer to [`Effect::Drop`]: ok when the kernel answers for it no more. One comes for each, in the order of the effects.
    Dropped {
        /// Which.
        address: IpAddr,
        /// Whether it is down.
        result: Result<(), String>,
    },
    /// Somebody else has taken it off the interface.
    Lost {
        /// Which.
        address: IpAddr,
    },
    /// An answer to [`Effect::Ask`].
    Answered {
        /// What was asked for.
        addresses: BTreeSet<IpAddr>,
        /// Who has answered, for those for which somebody has.
        found: BTreeMap<IpAddr, String>,
    },
    /// The interface is up again, or its peers have changed: all that is held is announced again.
    Heal,
    /// The daemon is to end: give up all, or keep all for the one that follows.
    Stop {
        /// Whether all is kept.
        keep: bool,
    },
}

/// What is to be done, in this order. What concerns one address is done in this order even when it takes a while.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask the store for a lease.
    Grant {
        /// At least so long.
        ttl: Duration,
    },
    /// Tell the store that the lease is still wanted.
    KeepAlive {
        /// Which.
        lease: LeaseId,
    },
    /// End the lease. Nobody waits for the answer. What [`super::Core::session`] has left for the next instance is taken away before: a lease that is about
    /// to end is no inheritance.
    Revoke {
        /// Which.
        lease: LeaseId,
    },
    /// Do this in the store.
    Commit {
        /// Comes back with the answer.
        ticket: Ticket,
        /// What.
        transaction: Transaction,
    },
    /// List everything, and watch from there on; ends the watch before.
    Look,
    /// Put the address on the interface, let the kernel answer for it until then and no longer, and announce it. One that is there already is no error:
    /// what was not answered is told again.
    Take {
        /// Which.
        address: IpAddr,
        /// Until when.
        until: At,
    },
    /// The kernel may answer until then for all that was taken and that no [`Effect::Drop`] was for since, whatever became of that.
    Extend {
        /// Until when.
        until: At,
    },
    /// The kernel answers for it no more: at once, and whatever else fails.
    Drop {
        /// Which.
        address: IpAddr,
    },
    /// Tell the neighbours who holds it, if the kernel answers for it at that moment: whoever was stopped in between must not tell them what is not so.
    Announce {
        /// Which.
        address: IpAddr,
    },
    /// Ask the neighbours, and this host, whether somebody has these already, while nothing here answers for them.
    Ask {
        /// Which.
        addresses: BTreeSet<IpAddr>,
    },
    /// Something that an operator should read, once.
    Say(Said),
    /// The daemon may end.
    Finished,
}
