//! What the next start on this host must know: under which lease this one took part. On /run: it is worth nothing after a boot.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::core::Settings;
use crate::cli::Failure;
use crate::store::LeaseId;

/// Longest file that is read, in bytes.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memo {
    boot_id: String,
    prefix: String,
    node: String,
    /// As `etcdctl lease list` shows it.
    lease: String,
    /// The `ttl` that it was granted for.
    #[serde(default)]
    ttl_ms: u128,
}

impl Memo {
    pub(super) fn lease(&self) -> Option<LeaseId> {
        i64::from_str_radix(&self.lease, 16).ok().map(LeaseId)
    }
}

/// The file.
pub(super) struct MemoFile {
    path: PathBuf,
    boot_id: String,
    prefix: String,
    node: String,
    ttl_ms: u128,
    kept: Option<String>,
    failed: bool,
}

impl MemoFile {
    /// # Errors
    /// When there is no folder for it.
    pub(super) fn at(path: &Path, settings: &Settings) -> Result<Self, Failure> {
        let folder = path.parent().filter(|folder| folder.is_dir());
        if folder.is_none() {
            return Err(Failure::config(format!(
                "state: {} is in no folder that exists; set RuntimeDirectory=io-vip in the unit, or choose another --state",
                path.display()
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|id| id.trim().to_owned())
                .unwrap_or_default(),
            prefix: settings.prefix.clone(),
            node: settings.node.clone(),
            ttl_ms: settings.ttl.as_millis(),
            kept: None,
            failed: false,
        })
    }

    /// The lease of the one before, if it was this node in this pool and in this boot. And with this `ttl`: a lease lasts for as long as it was granted for, and
    /// what the kernel was told by a longer one is longer than others wait for this node now.
    pub(super) fn read(&self) -> Option<LeaseId> {
        use std::io::Read;
        let mut text = String::new();
        let file = std::fs::File::open(&self.path).ok()?;
        file.take(FILE_MAX_BYTES).read_to_string(&mut text).ok()?;
        let memo: Memo = match serde_json::from_str(&text) {
            Ok(memo) => memo,
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "what an earlier start has left makes no sense; going on without");
                return None;
            }
        };
        let is_ours = memo.boot_id == self.boot_id && memo.prefix == self.prefix && memo.node == self.node;
        if is_ours && memo.ttl_ms != self.ttl_ms {
            tracing::info!("the ttl is another one than before: what an earlier start has left is given up");
        }
        memo.lease()
            .filter(|_| is_ours && memo.ttl_ms == self.ttl_ms && !self.boot_id.is_empty())
    }

    /// Keeps what the next start must know; none: nothing.
    pub(super) fn keep(&mut self, lease: Option<&str>) {
        if self.kept.as_deref() == lease && !self.failed {
            return;
        }
        let result = match lease {
            Some(lease) => self.write(lease),
            None => match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        if let Err(error) = &result
            && !self.failed
        {
            tracing::warn!(file = %self.path.display(), %error, "cannot keep the lease for a restart; after one its addresses wait for the ttl");
        }
        self.failed = result.is_err();
        self.kept = lease.map(str::to_owned);
    }

    fn write(&self, lease: &str) -> std::io::Result<()> {
        let memo = Memo {
            boot_id: self.boot_id.clone(),
            prefix: self.prefix.clone(),
            node: self.node.clone(),
            lease: lease.to_owned(),
            ttl_ms: self.ttl_ms,
        };
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(&memo)?)?;
        file.persist(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(node: &str) -> Settings {
        let second = std::time::Duration::from_secs(1);
        Settings {
            node: node.to_owned(),
            prefix: "/service/yaim/".to_owned(),
            ttl: 10 * second,
            margin: second,
            interval: second,
            patience: second,
        }
    }

    #[test]
    fn the_same_node_finds_its_lease_and_no_other_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut memo = MemoFile::at(&path, &settings("a")).unwrap();
        assert_eq!(memo.read(), None);
        memo.keep(Some("6f0a"));
        assert_eq!(memo.read(), Some(LeaseId(0x6f0a)));
        assert_eq!(MemoFile::at(&path, &settings("b")).unwrap().read(), None);
        let longer = Settings {
            ttl: std::time::Duration::from_secs(30),
            ..settings("a")
        };
        assert_eq!(MemoFile::at(&path, &longer).unwrap().read(), None);
        let mut later = MemoFile::at(&path, &settings("a")).unwrap();
        later.boot_id = "another".to_owned();
        assert_eq!(later.read(), None);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(memo.read(), None);
        memo.keep(None);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let Err(error) = MemoFile::at(Path::new("/nowhere/state.json"), &settings("a")) else {
            panic!("it was taken");
        };
        assert!(error.messages[0].contains("/nowhere/state.json"), "{error:?}");
    }
}
