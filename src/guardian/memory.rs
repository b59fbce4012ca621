//! What a guardian must remember and systemd cannot tell it: the highest generation seen.
//!
//! **Promise.** The file is whole at all times: it is written beside the old one, synced and renamed. What is not
//! promised: that the newest write survives a power cut on a disk that lies about syncs. One thread at a time
//! writes, and no write is of a lower generation than the one before: a slow disk cannot bring an old one back.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

const FILE: &str = "guardian.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    // No Option: serde takes a field that is missing for None, and a damaged file would pass for an empty one.
    generation: u64,
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
        Ok(remembered) => Ok(Some(remembered.generation)),
        Err(source) => Err(MemoryError::Damaged { path, source }),
    }
}

/// Writes `generation` into `folder`. Blocks for as long as the disk does.
pub fn remember(folder: &Path, generation: u64) -> Result<(), MemoryError> {
    let path = folder.join(FILE);
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, &Remembered { generation })?;
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

/// The folder, and who writes to it.
#[derive(Debug)]
pub struct Memory {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<u64>,
    written: Option<u64>,
    writing: bool,
}

impl Memory {
    /// A memory in `folder`, which holds `generation`.
    pub fn new(folder: PathBuf, generation: Option<u64>) -> Self {
        let state = Mutex::new(State {
            wanted: generation,
            written: generation,
            writing: false,
        });
        Self { folder, state }
    }

    /// Asks that `generation`, or a higher one, be written. True when nobody writes: then the caller must see to
    /// it that [`Self::write`] runs. Otherwise the one who writes will write this one too.
    pub fn ask(&self, generation: u64) -> bool {
        let mut state = self.lock();
        state.wanted = state.wanted.max(Some(generation));
        let begin = !state.writing && state.wanted > state.written;
        state.writing |= begin;
        begin
    }

    /// Writes what was asked for, until no more is asked for. Blocks for as long as the disk does.
    pub fn write(&self) -> Result<(), MemoryError> {
        self.write_with(|generation| remember(&self.folder, generation))
    }

    fn write_with(&self, mut write: impl FnMut(u64) -> Result<(), MemoryError>) -> Result<(), MemoryError> {
        loop {
            let Some(highest) = self.next() else {
                return Ok(());
            };
            let written = write(highest);
            let mut state = self.lock();
            match written {
                Ok(()) => state.written = Some(highest),
                Err(error) => {
                    state.writing = false;
                    return Err(error);
                }
            }
        }
    }

    fn next(&self) -> Option<u64> {
        let mut state = self.lock();
        let next = state.wanted.filter(|_| state.wanted > state.written);
        state.writing = next.is_some();
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        for damaged in [
            "",
            "{\"gener",
            "{}",
            "{\"generaton\":5}",
            "{\"generation\":null}",
            "{\"generation\":5,\"more\":1}",
        ] {
            std::fs::write(folder.path().join(FILE), damaged).unwrap();
            let found = recall(folder.path());
            assert!(
                found
                    .as_ref()
                    .is_err_and(|error| error.to_string().contains("is damaged")),
                "{damaged}: {found:?}"
            );
        }
        assert!(remember(&folder.path().join("absent"), 1).is_err());
    }

    #[test]
    fn one_writes_at_a_time_and_an_older_generation_is_never_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path().to_owned(), Some(4));
        assert!(!memory.ask(4), "it is written already");
        assert!(memory.ask(5));
        let mut written = Vec::new();
        memory
            .write_with(|generation| {
                // Commands that come while the disk is slow.
                assert!(!memory.ask(7) && !memory.ask(6), "two would write at once");
                written.push(generation);
                Ok(())
            })
            .unwrap();
        assert_eq!(written, [5, 7]);

        assert!(memory.ask(8));
        let full = || MemoryError::Io {
            path: folder.path().to_owned(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        assert!(memory.write_with(|_| Err(full())).is_err());
        assert!(
            memory.ask(8),
            "what failed is tried again when it is asked for again"
        );
        memory.write().unwrap();
        assert_eq!(recall(folder.path()).unwrap(), Some(8));
    }
}
