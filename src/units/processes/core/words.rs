//! What goes into the core, and what comes out.

use std::time::Duration;

use crate::protocol::UnitReport;

/// When a process that ended on its own is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// When it failed.
    OnFailure,
    /// Always.
    Always,
    /// Only by the next undrain.
    Never,
}

/// How one process is stopped and restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The signal that asks it to stop. To die of it counts as success.
    pub stop_signal: i32,
    /// The time after which it is killed.
    pub stop_timeout: Duration,
    /// When it is started again.
    pub restart: Restart,
}

/// How a leader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::units::processes) enum Ending {
    Exited(i32),
    Killed { signal: i32, dumped: bool },
}

/// A child of ours that belongs to no group that we started: it left with setsid(2) or setpgid(2), its parent
/// ended, and the kernel gave it to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::units::processes) struct Stray {
    pub(in crate::units::processes) pid: i32,
    pub(in crate::units::processes) name: String,
}

#[derive(Clone, Debug)]
pub(in crate::units::processes) enum Event {
    Drain,
    Undrain,
    Spawned {
        index: usize,
        group: i32,
    },
    SpawnFailed {
        index: usize,
        why: String,
    },
    /// `alone`: nothing else of its group is left.
    LeaderEnded {
        index: usize,
        ending: Ending,
        alone: bool,
    },
    GroupEmpty {
        index: usize,
    },
    /// All strays that there are now.
    Strays(Vec<Stray>),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::units::processes) enum Effect {
    /// Answered by `Spawned` or `SpawnFailed`.
    Spawn {
        index: usize,
    },
    Signal {
        group: i32,
        signal: i32,
    },
    /// Nothing of the group is left; its number may be given to others.
    Forget {
        group: i32,
    },
    /// Answered by `Strays`.
    LookForStrays,
    SignalStray {
        pid: i32,
        signal: i32,
    },
}

/// What is published after each step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::units::processes) struct Snapshot {
    pub(in crate::units::processes) epoch: u64,
    pub(in crate::units::processes) up: bool,
    pub(in crate::units::processes) at_rest: bool,
    /// The processes in the order of the file, then strays.
    pub(in crate::units::processes) units: Vec<UnitReport>,
    /// What an undrain still waits for: name and state.
    pub(in crate::units::processes) pending: Vec<(String, String)>,
    /// What did not come up: name and reason.
    pub(in crate::units::processes) failed: Vec<(String, String)>,
}
