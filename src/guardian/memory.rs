//! What a guardian must remember and systemd cannot tell it: the highest generation seen.
//!
//! **Promise.** The file is whole at all times: it is written beside the old one, synced and renamed. What is not
//! promised: that the newest write survives a power cut on a disk that lies about syncs.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const FILE: &str = "guardian.json";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered {
    #[serde(default)]
    generation: Option<u64>,
}

/// Why something could not be remembered or recalled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("{} is damaged: {source}; remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The generation that `folder` remembers; none when it remembers nothing yet.
pub fn recall(folder: &Path) -> Result<Option<u64>, MemoryError> {
    let path = folder.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MemoryError::Io { path, source }),
    };
    match serde_json::from_str::<Remembered>(&text) {
        Ok(remembered) => Ok(remembered.generation),
        Err(source) => Err(MemoryError::Damaged { path, source }),
    }
}

/// Writes `generation` into `folder`. Blocks for as long as the disk does.
pub fn remember(folder: &Path, generation: u64) -> Result<(), MemoryError> {
    let path = folder.join(FILE);
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(
            &mut file,
            &Remembered {
                generation: Some(generation),
            },
        )?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| MemoryError::Io {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_is_recalled_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(recall(folder.path()).unwrap(), None);
        remember(folder.path(), 7).unwrap();
        remember(folder.path(), u64::MAX).unwrap();
        assert_eq!(recall(folder.path()).unwrap(), Some(u64::MAX));
        std::fs::write(folder.path().join(FILE), "{\"gener").unwrap();
        assert!(
            recall(folder.path())
                .unwrap_err()
                .to_string()
                .contains("is damaged")
        );
        assert!(remember(&folder.path().join("absent"), 1).is_err());
    }
}
