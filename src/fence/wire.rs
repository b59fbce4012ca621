//! What is said over the Unix socket: a JSON object on a line, one line back where one is due. Unknown fields are ignored.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::core::{Kind, Target, Verdicts};
use super::device::Device;
use crate::host::Ports;

/// Longest line, in bytes.
pub(super) const LINE_MAX_BYTES: usize = 8 << 10;
/// Longest text of a reason or an error.
pub(super) const TEXT_MAX_CHARS: usize = 200;

/// What is asked or told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    /// A reporter tells of a folder. Answered.
    Register(Registration),
    /// A write has reached the disk. Not answered.
    Beat {
        folder: String,
        took_us: u64,
        how: How,
        /// What the folder is on now: whether that works is looked at while a beat is late.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<Device>,
    },
    /// A write came back with an error. Not answered.
    Failed {
        folder: String,
        kind: Kind,
        text: String,
        /// As of a beat.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<Device>,
    },
    /// The reporter ends because somebody wants it to. Not answered.
    Goodbye { folder: String },
    /// Answered with a [`super::status::Status`].
    Status {},
    /// Answered.
    Fence { target: Target, reason: String },
    /// Answered.
    Unfence { target: Target },
}

/// A folder, as its reporter knows it. What the monitor's own file says of it comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registration {
    pub(super) folder: String,
    #[serde(default)]
    pub(super) ports: Ports,
    pub(super) sleep_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) heartbeat_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) busy_limit_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) warn_latency_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) on_error: Option<Verdicts>,
}

/// How a reporter reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum How {
    /// Past the page cache, both ways.
    Direct,
    /// Written through it and synced; dropped from it before it is read back.
    Synced,
}

/// A short answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Ok(String),
    Error(String),
}

/// A line of it.
pub(super) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A text of somebody else: short, and on one line.
pub(super) fn tamed(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    visible.take(TEXT_MAX_CHARS).collect()
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
