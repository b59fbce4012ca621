//! What an operator should read, once, when it happens.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::store::{LeaseId, Revision};

/// Why an address is held no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is another node's share, or an operator wants it there.
    Share {
        /// Whose.
        to: String,
    },
    /// It is of the pool no more.
    Removed,
    /// Another node has marked it: this one had been silent for too long, or somebody had a hand in it.
    TakenOver {
        /// Who.
        by: String,
    },
    /// The mark is gone from the store, by another hand than ours.
    Unmarked,
    /// This node takes part no more.
    NotTakingPart {
        /// Why.
        because: String,
    },
    /// It could not be put on the interface, or somebody takes it off again and again.
    Failed {
        /// What went wrong.
        error: String,
    },
    /// No sign of life got through to the store in time.
    Lapsed,
}

/// Something that an operator should read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// This node takes part.
    TakesPart {
        /// Under this lease, as `etcdctl lease list` shows it.
        lease: String,
    },
    /// This node takes part no more: whatever it holds is given up.
    TakesNoPart {
        /// Why.
        because: String,
    },
    /// An address is ours, and the kernel answers for it.
    Took {
        /// Which.
        address: IpAddr,
        /// Its fencing token.
        token: u64,
        /// Who was silent for too long. None: nobody held it.
        from: Option<String>,
    },
    /// An address is ours no more.
    Dropped {
        /// Which.
        address: IpAddr,
        /// Why.
        why: Why,
    },
    /// An address could not be put on the interface: another node may try.
    TakeFailed {
        /// Which.
        address: IpAddr,
        /// Why.
        error: String,
        /// When this node tries again.
        again_in: Duration,
    },
    /// Somebody who is no node of the pool has an address of it: no node that hears the answer takes it.
    Stranger {
        /// Which.
        address: IpAddr,
        /// Who.
        by: String,
        /// When they are asked again.
        again_in: Duration,
    },
    /// The kernel may still answer for an address: it will not, from the end of the lease on.
    DropFailed {
        /// Which.
        address: IpAddr,
        /// Why.
        error: String,
    },
    /// Somebody has taken an address off the interface: it is put there again.
    Lost {
        /// Which.
        address: IpAddr,
    },
    /// Another instance runs under this node's name, or did until just now: this one waits until it is silent.
    NameInUse {
        /// The other's lease, as `etcdctl lease list` shows it.
        lease: String,
    },
    /// The store does not do what it is told to do: signs of life, marks, leases.
    StoreLost {
        /// What it says, or what went wrong.
        error: String,
    },
    /// It does again.
    StoreBack {
        /// For how long it did not.
        after: Duration,
    },
    /// The store cannot be listed, or not be watched, whether or not it does what it is told to.
    StoreUnseen {
        /// What it says, or what went wrong.
        error: String,
    },
    /// It can again.
    StoreSeen {
        /// For how long it could not.
        after: Duration,
    },
    /// The store has ended this node's lease: all is dropped, and another one is asked for.
    LeaseLost {
        /// As `etcdctl lease list` shows it.
        lease: String,
    },
    /// This node's key is gone from the store, by another hand than ours: all is dropped, and it begins anew.
    AdvertLost,
    /// No sign of life got through to the store in time: all is dropped.
    Lapsed {
        /// How many addresses were held.
        held: usize,
    },
    /// A key of the store should be about an address, and is not.
    Rubbish {
        /// Which.
        key: String,
        /// Why not.
        why: String,
    },
    /// What another instance has left is held on.
    Inherited {
        /// Its lease.
        lease: String,
        /// How many addresses.
        held: usize,
    },
}

impl Said {
    pub(super) fn name_in_use(lease: LeaseId) -> Self {
        Self::NameInUse {
            lease: lease.to_string(),
        }
    }

    pub(super) fn took(address: IpAddr, token: Revision, from: Option<String>) -> Self {
        let token = token.0;
        Self::Took { address, token, from }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share { to } => write!(f, "it is {to}'s share"),
            Self::Removed => f.write_str("it is of the pool no more"),
            Self::TakenOver { by } => write!(f, "{by} has marked it"),
            Self::Unmarked => f.write_str("its mark was taken away"),
            Self::NotTakingPart { because } => write!(f, "this node takes no part: {because}"),
            Self::Failed { error } => write!(f, "it cannot be held: {error}"),
            Self::Lapsed => f.write_str("no sign of life got through in time"),
        }
    }
}
