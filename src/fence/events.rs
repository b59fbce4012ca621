//! What happens to a monitor, and what it does about it: the words of `core`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::host::Ports;

/// What can be wrong with a write that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// The disk failed.
    Eio,
    /// The disk is full.
    Enospc,
    /// The disk is read-only.
    Erofs,
    /// The folder is gone, or another one is in its place.
    Vanished,
    /// Anything else.
    Other,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [Self::Eio, Self::Enospc, Self::Erofs, Self::Vanished, Self::Other];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eio => "eio",
            Self::Enospc => "enospc",
            Self::Erofs => "erofs",
            Self::Vanished => "vanished",
            Self::Other => "other",
        }
    }
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// The ports are fenced at once.
    Fence,
    /// It is a beat, and a line in the log.
    Warn,
    /// It is a beat.
    Ignore,
}

/// A verdict for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Verdicts {
    /// See [`Kind::Eio`].
    pub(super) eio: Verdict,
    /// See [`Kind::Enospc`].
    pub(super) enospc: Verdict,
    /// See [`Kind::Erofs`].
    pub(super) erofs: Verdict,
    /// See [`Kind::Vanished`].
    pub(super) vanished: Verdict,
    /// See [`Kind::Other`].
    pub(super) other: Verdict,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            eio: Verdict::Fence,
            // A database that finds no room says so to its clients, and still answers what it has.
            enospc: Verdict::Warn,
            erofs: Verdict::Fence,
            vanished: Verdict::Fence,
            other: Verdict::Fence,
        }
    }
}

impl Verdicts {
    /// What holds for this kind.
    pub(super) fn of(self, kind: Kind) -> Verdict {
        match kind {
            Kind::Eio => self.eio,
            Kind::Enospc => self.enospc,
            Kind::Erofs => self.erofs,
            Kind::Vanished => self.vanished,
            Kind::Other => self.other,
        }
    }
}

/// How a folder is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    /// What is fenced when it stalls.
    pub(super) ports: Ports,
    /// No beat for this long is a stall.
    pub(super) heartbeat: Duration,
    /// No beat for this long is one, too, on a disk that is seen to work. As long as the heartbeat: it is not looked at.
    pub(super) busy_limit: Duration,
    /// How long it must beat again.
    pub(super) unfence_after: Duration,
    /// After the start of the monitor, how long a folder that has never beaten is not fenced for.
    pub(super) wait: Duration,
    /// A p99 above this is a warning.
    pub(super) warn_latency: Duration,
    /// What errors mean.
    pub(super) on_error: Verdicts,
}

/// What somebody closes by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Target {
    /// The ports of a folder.
    Folder(String),
    /// These ports.
    Ports(Ports),
}

/// Why a folder is fenced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Why {
    /// No beat.
    Silent,
    /// A write failed.
    Failed {
        /// How.
        kind: Kind,
        /// In words.
        text: String,
    },
    /// It was so when the monitor started, and nobody knows more.
    Found,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => f.write_str("no write came back"),
            Self::Failed { kind, text } => write!(f, "{}: {text}", kind.name()),
            Self::Found => f.write_str("found fenced at the start"),
        }
    }
}

/// A folder's fence that must outlive the monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// What is fenced.
    pub(super) ports: Ports,
    /// Why.
    pub(super) why: Why,
    /// Since when.
    pub(super) since: Instant,
}

/// A fence made by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ByHand {
    /// What was named.
    pub(super) target: Target,
    /// The ports that it meant.
    pub(super) ports: Ports,
    /// In the words of whoever did it.
    pub(super) reason: String,
    /// Since when.
    pub(super) since: Instant,
}

/// What must outlive the monitor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memo {
    /// Folders that are fenced.
    pub(super) folders: BTreeMap<String, Kept>,
    /// Fences made by hand.
    pub(super) by_hand: Vec<ByHand>,
    /// Whether those who are to be told know of a fence, and not yet of its end.
    pub(super) told: bool,
    /// Whether they are being told something else: it may have reached them, or not.
    pub(super) telling: bool,
}

/// What happens to a monitor.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A reporter tells of a folder, for the first time or again.
    Registered {
        /// Its path.
        folder: String,
        /// How it is watched.
        watch: Box<Watch>,
    },
    /// A write has reached the disk and was read back.
    Beat {
        /// Its path.
        folder: String,
        /// How long the write took.
        took: Duration,
    },
    /// A write came back with an error.
    Failed {
        /// Its path.
        folder: String,
        /// How.
        kind: Kind,
        /// In words.
        text: String,
    },
    /// A reporter ends because somebody wants it to.
    Goodbye {
        /// Its path.
        folder: String,
    },
    /// Somebody fences by hand.
    Fence {
        /// What.
        target: Target,
        /// Why.
        reason: String,
    },
    /// Somebody undoes that.
    Unfence {
        /// What.
        target: Target,
    },
    /// Disks of folders were looked at, all that [`Core::to_look_at`] names: whether each was seen to complete a write.
    Looked(Vec<(String, bool)>),
    /// Whoever is to be told that something is fenced (true), or that nothing is any more, has been told.
    Announced(bool),
    /// The time of [`Core::wake_at`] has come.
    Time,
}

/// What is to be said in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// A folder's ports are fenced.
    Fenced {
        /// Its path.
        folder: String,
        /// Its ports.
        ports: Ports,
        /// Why.
        why: Why,
        /// How long ago its last beat was.
        last_beat: Option<Duration>,
        /// For how long, at most, its disk has completed no write, where it has since then.
        worked: Option<Duration>,
    },
    /// A beat is late, and its disk works: nothing is fenced.
    Busy {
        /// Its path.
        folder: String,
        /// How long ago its last beat was.
        last_beat: Duration,
        /// How long ago that may be.
        limit: Duration,
    },
    /// It has beaten again.
    BusyOver {
        /// Its path.
        folder: String,
        /// How long that took.
        after: Duration,
    },
    /// They are open again, unless something else fences them.
    Unfenced {
        /// Its path.
        folder: String,
        /// Its ports.
        ports: Ports,
        /// How long they were fenced.
        after: Duration,
        /// Those of them that something else keeps fenced.
        still: Ports,
    },
    /// A write failed; said once until it is over.
    Trouble {
        /// Its path.
        folder: String,
        /// How.
        kind: Kind,
        /// In words.
        text: String,
        /// What follows.
        verdict: Verdict,
    },
    /// That is over.
    TroubleOver {
        /// Its path.
        folder: String,
        /// What it was.
        kind: Kind,
    },
    /// Writes are slow, but come back.
    Slow {
        /// Its path.
        folder: String,
        /// The p99 of the last minute.
        p99: Duration,
        /// What is too slow.
        limit: Duration,
    },
    /// They are not slow any more.
    SlowOver {
        /// Its path.
        folder: String,
        /// The p99 of the last minute.
        p99: Duration,
    },
    /// A folder is watched.
    Watching {
        /// Its path.
        folder: String,
        /// Its ports.
        ports: Ports,
        /// Its heartbeat.
        heartbeat: Duration,
    },
    /// It is not any more.
    NotWatching {
        /// Its path.
        folder: String,
        /// Whether its fence stays.
        fenced: bool,
    },
    /// Ports were fenced by hand.
    FencedByHand {
        /// Which.
        ports: Ports,
        /// Why.
        reason: String,
    },
    /// That was undone.
    UnfencedByHand {
        /// Which.
        ports: Ports,
        /// Those that something else keeps fenced.
        still: Ports,
    },
    /// At the start there were ports in the kernel's set that nobody knows.
    Unknown {
        /// Which.
        ports: Ports,
    },
    /// A fence was kept over a restart.
    Kept {
        /// Which ports.
        ports: Ports,
    },
}

/// What a monitor does about it, in this order: act first, then remember, then tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// These ports, and no others, are fenced from now on.
    Enforce(Ports),
    /// These have just become so: their connections are to be ended.
    Cut(Ports),
    /// Write this down.
    Remember(Box<Memo>),
    /// Say it.
    Tell(Tell),
    /// Something is fenced now (true), or nothing is any more: whoever wants to know is told.
    Announce(bool),
    /// Answer whoever gave the command.
    Answer(Result<String, String>),
}
