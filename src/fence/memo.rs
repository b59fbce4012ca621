//! Whose fence is whose, over a restart of the monitor: a small file on a tmpfs. Which ports are fenced is in the kernel; without this file
//! they are fenced all the same.
//!
//! Times are of CLOCK_MONOTONIC, which goes on for as long as a tmpfs does.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::core::{ByHand, Kept, Memo, Target, Why};
use super::wire::millis;
use crate::host::Ports;

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// Of linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    folders: BTreeMap<String, WrittenFolder>,
    by_hand: Vec<WrittenByHand>,
    #[serde(default)]
    told: bool,
    #[serde(default)]
    telling: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenFolder {
    ports: Ports,
    why: Why,
    since_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenByHand {
    target: Target,
    ports: Ports,
    reason: String,
    since_ms: u64,
}

/// Two clocks at one moment: the one that goes on, and ours.
struct Now {
    monotonic_ms: u64,
    instant: Instant,
}

impl Now {
    fn read() -> Self {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        Self {
            monotonic_ms: millis(monotonic.unwrap_or_default()),
            instant: Instant::now(),
        }
    }

    fn written(&self, at: Instant) -> u64 {
        self.monotonic_ms
            .saturating_sub(millis(self.instant.saturating_duration_since(at)))
    }

    fn read_back(&self, ms: u64) -> Instant {
        let ago = Duration::from_millis(self.monotonic_ms.saturating_sub(ms));
        self.instant.checked_sub(ago).unwrap_or(self.instant)
    }
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct MemoFile(PathBuf);

impl MemoFile {
    /// Refuses a folder that may be on a disk: the monitor must not wait for one.
    pub(super) fn at(path: &Path) -> Result<Self, String> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let shown = folder.display();
        let kind = statfs(folder)
            .map_err(|error| format!("state: cannot use {shown}: {error}; set RuntimeDirectory=io-fence in the unit, or create it"))?
            .filesystem_type();
        if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
            return Err(format!(
                "state: {shown} is on a disk, and the monitor must not wait for one; name a file on a tmpfs, \
                 such as /run/io-fence/state.json or /dev/shm/io-fence.json"
            ));
        }
        Ok(Self(path.to_owned()))
    }

    /// What the last monitor wrote. One that cannot be read is none: the kernel still knows which ports are fenced.
    pub(super) fn read(&self) -> Memo {
        let text = match std::fs::metadata(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Memo::default(),
            Ok(meta) if meta.len() > MAX_BYTES => Err(io::Error::other("it is too long")),
            _ => std::fs::read_to_string(&self.0),
        };
        let written = text.and_then(|text| serde_json::from_str::<Written>(&text).map_err(io::Error::other));
        match written {
            Ok(written) => from(written, &Now::read()),
            Err(error) => {
                tracing::error!(file = %self.0.display(), %error, "cannot read whose fence is whose; fences that are on stay");
                Memo::default()
            }
        }
    }

    /// Written beside and renamed. Not synced: it need not outlive the kernel.
    pub(super) fn write(&self, memo: &Memo) -> io::Result<()> {
        let text = serde_json::to_vec(&to(memo, &Now::read())).map_err(io::Error::other)?;
        let mut beside = self.0.clone().into_os_string();
        beside.push(".new");
        std::fs::write(&beside, text)?;
        std::fs::rename(&beside, &self.0)
    }
}

fn to(memo: &Memo, now: &Now) -> Written {
    let folders = memo.folders.iter().map(|(path, kept)| {
        let written = WrittenFolder {
            ports: kept.ports.clone(),
            why: kept.why.clone(),
            since_ms: now.written(kept.since),
        };
        (path.clone(), written)
    });
    let by_hand = memo.by_hand.iter().map(|hand| WrittenByHand {
        target: hand.target.clone(),
        ports: hand.ports.clone(),
        reason: hand.reason.clone(),
        since_ms: now.written(hand.since),
    });
    Written {
        folders: folders.collect(),
        by_hand: by_hand.collect(),
        told: memo.told,
        telling: memo.telling,
    }
}

fn from(written: Written, now: &Now) -> Memo {
    let folders = written.folders.into_iter().map(|(path, folder)| {
        let kept = Kept {
            ports: folder.ports,
            why: folder.why,
            since: now.read_back(folder.since_ms),
        };
        (path, kept)
    });
    let by_hand = written.by_hand.into_iter().map(|hand| ByHand {
        target: hand.target,
        ports: hand.ports,
        reason: hand.reason,
        since: now.read_back(hand.since_ms),
    });
    Memo {
        folders: folders.collect(),
        by_hand: by_hand.collect(),
        told: written.told,
        telling: written.telling,
    }
}

#[cfg(test)]
mod tests {
    use super::super::core::Kind;
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_its_times_go_on() {
        let instant = Instant::now() + Duration::from_secs(1_000);
        let now = Now {
            monotonic_ms: 500_000,
            instant,
        };
        let ports = Ports::new([5432], [53]);
        let memo = Memo {
            folders: BTreeMap::from([(
                "/data".to_owned(),
                Kept {
                    ports: ports.clone(),
                    why: Why::Failed {
                        kind: Kind::Erofs,
                        text: "write: Read-only file system".to_owned(),
                    },
                    since: instant.checked_sub(Duration::from_secs(7)).unwrap(),
                },
            )]),
            by_hand: vec![ByHand {
                target: Target::Ports(ports.clone()),
                ports,
                reason: "maintenance".to_owned(),
                since: instant.checked_sub(Duration::from_secs(70)).unwrap(),
            }],
            told: true,
            telling: true,
        };
        let text = serde_json::to_string(&to(&memo, &now)).unwrap();
        // Another process, three seconds later.
        let later = Now {
            monotonic_ms: 503_000,
            instant: instant + Duration::from_secs(3),
        };
        assert_eq!(from(serde_json::from_str(&text).unwrap(), &later), memo, "{text}");
    }

    #[test]
    fn a_file_of_an_older_io_fence_is_read() {
        let written: Written = serde_json::from_str(r#"{"folders":{},"by_hand":[],"told":true}"#).unwrap();
        let memo = from(written, &Now::read());
        assert_eq!((memo.told, memo.telling), (true, false));
    }

    #[test]
    fn a_file_on_a_disk_is_refused() {
        let error = MemoFile::at(Path::new("/proc/state.json")).unwrap_err();
        assert!(error.contains("name a file on a tmpfs"), "{error}");
        let error = MemoFile::at(Path::new("/no/such/folder/state.json")).unwrap_err();
        assert!(error.contains("RuntimeDirectory="), "{error}");
    }
}
