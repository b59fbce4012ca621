//! Whether a disk works, without asking it: what the kernel has counted of its writes, in /sys/dev/block/MAJOR:MINOR/stat. That is its row
//! of /proc/diskstats, by itself: as long on a host with a thousand disks, and to be had where a unit's /proc shows processes only.
//!
//! **Promise.** Nothing here waits for a disk. One that has no such file, or whose writes are not counted, does not work, as far as is known.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Where the kernel tells of them.
const DEVICES: &str = "/sys/dev/block";
/// Longer than any row: 17 numbers, as of Linux 6.18.
const ROW_MAX_BYTES: usize = 512;

/// A disk, a part of one, or what is made of them, by what the kernel calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Device {
    major: u64,
    minor: u64,
}

impl Device {
    /// What a file is on, by its `st_dev`.
    pub(super) fn of(st_dev: u64) -> Self {
        Self {
            major: major(st_dev),
            minor: minor(st_dev),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split_once(':');
        let numbers = parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers.ok_or_else(|| format!("{text:?} is no MAJOR:MINOR"))?;
        Ok(Self { major, minor })
    }
}

/// What a disk has done since it is there. All of it wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// Writes that were completed; of disks that are made of others (dm, md) older kernels count those that have begun. ...
    writes: u64,
    /// ... How long they took, in milliseconds: all kernels count that at their end.
    write_ms: u64,
    /// Flushes that were completed; 0 before Linux 5.5, and for a part of a disk.
    flushes: u64,
}

impl Counted {
    /// A row, as long as the kernel makes it.
    fn read(row: &[u8]) -> Option<Self> {
        let row = std::str::from_utf8(row).ok()?;
        let mut numbers = row.split_ascii_whitespace().map(str::parse::<u64>);
        // The n-th after what was taken before.
        let mut skip = |n: usize| numbers.nth(n)?.ok();
        Some(Self {
            writes: skip(4)?,
            write_ms: skip(2)?,
            flushes: skip(7).unwrap_or_default(),
        })
    }

    /// Whether a write has reached the disk since then. Reads are none: a cache of the disk's own answers them while it takes no writes; and
    /// neither is what it is told to forget (discards).
    fn works_since(self, then: Self) -> bool {
        (self.writes != then.writes && self.write_ms != then.write_ms) || self.flushes != then.flushes
    }
}

/// What a folder is on.
#[derive(Debug)]
struct Look {
    device: Device,
    /// Open before it is needed.
    row: Option<File>,
    /// What was seen when it was last seen to work, or first after a beat.
    seen: Option<(Instant, Counted)>,
}

/// Looks at the disks of folders.
#[derive(Debug)]
pub(super) struct Looks {
    devices: PathBuf,
    folders: BTreeMap<String, Look>,
}

impl Default for Looks {
    fn default() -> Self {
        Self::at(DEVICES.into())
    }
}

impl Looks {
    fn at(devices: PathBuf) -> Self {
        Self {
            devices,
            folders: BTreeMap::new(),
        }
    }

    /// The folder is on this device now. None changes nothing: an older reporter does not tell.
    pub(super) fn on(&mut self, folder: &str, device: Option<Device>) {
        let Some(device) = device else {
            return;
        };
        if self.device(folder) == Some(device) {
            return;
        }
        let row = open(&self.devices, device);
        let seen = None;
        self.folders.insert(folder.to_owned(), Look { device, row, seen });
    }

    /// What the folder is on, as far as is known.
    pub(super) fn device(&self, folder: &str) -> Option<Device> {
        self.folders.get(folder).map(|look| look.device)
    }

    /// Nobody watches it any more.
    pub(super) fn forget(&mut self, folder: &str) {
        self.folders.remove(folder);
    }

    /// Whether the folder's disk has completed a write since the last look, both after `beat`.
    pub(super) fn works(&mut self, folder: &str, beat: Instant, now: Instant) -> bool {
        let Some(look) = self.folders.get_mut(folder) else {
            return false;
        };
        if look.row.is_none() {
            look.row = open(&self.devices, look.device);
        }
        let Some(counted) = look.row.as_ref().and_then(count) else {
            // It is gone, or never was; what comes back may be another one.
            (look.row, look.seen) = (None, None);
            return false;
        };
        let before = look.seen.filter(|(at, _)| *at >= beat);
        let works = before.is_some_and(|(_, then)| counted.works_since(then));
        if works || before.is_none() {
            look.seen = Some((now, counted));
        }
        works
    }
}

fn open(devices: &Path, device: Device) -> Option<File> {
    // What is on no disk has a number of its own, and no row.
    if device.major == 0 {
        return None;
    }
    File::open(devices.join(device.to_string()).join("stat")).ok()
}

fn count(row: &File) -> Option<Counted> {
    let mut text = [0; ROW_MAX_BYTES];
    let read = row.read_at(&mut text, 0).ok()?;
    Counted::read(text.get(..read)?)
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
