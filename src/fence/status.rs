//! What `io-fence status` shows, and the figures are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::core::Target;
use super::device::Device;
use super::wire::How;
use crate::host::Ports;

/// All that a monitor knows, for people and programs. Ages and times are in milliseconds, latencies in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Status {
    /// Of this format.
    pub(super) version: u32,
    /// Everything that is fenced.
    pub(super) fenced: Ports,
    pub(super) folders: Vec<FolderStatus>,
    pub(super) by_hand: Vec<HandStatus>,
    /// Fenced when the monitor started, and nobody knows why.
    pub(super) unknown: Ports,
    /// Whether the kernel keeps others from changing the table.
    pub(super) table_owned: bool,
    /// Whether the kernel has refused the last change.
    pub(super) pending: bool,
    /// Whether the monitor cannot be paged out.
    pub(super) memory_locked: bool,
}

/// A folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FolderStatus {
    pub(super) folder: String,
    /// `open`, `fenced` or `fenced by hand`.
    pub(super) state: String,
    pub(super) since_ms: u64,
    pub(super) why: Option<String>,
    pub(super) ports: Ports,
    /// Whether a reporter has told of it.
    pub(super) watched: bool,
    pub(super) heartbeat_ms: Option<u64>,
    pub(super) last_beat_ms: Option<u64>,
    pub(super) p99_us: Option<u64>,
    pub(super) how: Option<How>,
    /// What it is on, as its reporter says.
    #[serde(default)]
    pub(super) device: Option<Device>,
    /// Whether it would be fenced now if its disk were not seen to work.
    #[serde(default)]
    pub(super) busy: bool,
    /// How often that was so.
    #[serde(default)]
    pub(super) spared: u64,
    pub(super) fences: u64,
    /// Writes, by what came of them.
    pub(super) writes: BTreeMap<String, u64>,
}

/// A fence made by hand.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HandStatus {
    pub(super) target: Target,
    pub(super) ports: Ports,
    pub(super) reason: String,
    pub(super) since_ms: u64,
}
