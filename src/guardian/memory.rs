//! What a guardian must remember and systemd cannot tell it.
//!
//! | file | in | outlives |
//! |---|---|---|
//! | `guardian.json`: the highest generation seen | the state folder | boots |
//! | `hold.json`: the hold; it is there as long as there is one, so that a unit can ask for it with `ConditionPathExists=` | the state folder | boots |
//! | `standing.json`: what is wanted for the host | the runtime folder | restarts; another boot begins anew |
//!
//! **Promise.** Each file is whole at all times: it is written beside the old one, synced and renamed. What is not
//! promised: that the newest write survives a power cut on a disk that lies about syncs. One thread at a time
//! writes, and always the newest: a slow disk cannot bring an old state back.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::core::Standing;

const GENERATION: &str = "guardian.json";
const HOLD: &str = "hold.json";
const STANDING: &str = "standing.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generation {
    // No Option: serde takes a field that is missing for None, and a damaged file would pass for an empty one.
    generation: u64,
}

/// A hold, as it is written down: its end by the calendar, because no other clock goes on while the host is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenHold {
    /// Why.
    pub reason: String,
    /// When it ends by itself, in seconds since 1970.
    pub until_unix: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenStanding {
    standing: Standing,
    unfinished: bool,
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The highest generation seen.
    pub generation: Option<u64>,
    /// The hold.
    pub hold: Option<WrittenHold>,
    /// What is wanted for the host.
    pub standing: Standing,
    /// Whether what leads there is not over yet.
    pub unfinished: bool,
}

/// Where it is remembered. What has no folder is forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folders {
    /// On a disk.
    pub state: Option<PathBuf>,
    /// Gone at a boot: `/run`.
    pub runtime: Option<PathBuf>,
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

/// What the folders remember, and what of it could not be read. A hold that cannot be read is one: it was put there by somebody who
/// wanted nothing to run.
pub fn recall(folders: &Folders) -> (Remembered, Vec<MemoryError>) {
    let mut errors = Vec::new();
    let generation: Option<Generation> = read(folders.state.as_deref(), GENERATION, &mut errors);
    let told = errors.len();
    let hold = read(folders.state.as_deref(), HOLD, &mut errors).or_else(|| {
        errors.get(told).map(|error| WrittenHold {
            reason: format!("nobody knows why: {error}"),
            until_unix: None,
        })
    });
    let standing: Option<WrittenStanding> = read(folders.runtime.as_deref(), STANDING, &mut errors);
    let remembered = Remembered {
        generation: generation.map(|file| file.generation),
        hold,
        standing: standing.as_ref().map(|file| file.standing).unwrap_or_default(),
        unfinished: standing.is_some_and(|file| file.unfinished),
    };
    (remembered, errors)
}

fn read<T: DeserializeOwned>(folder: Option<&Path>, name: &str, errors: &mut Vec<MemoryError>) -> Option<T> {
    let path = folder?.join(name);
    let found = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|source| MemoryError::Damaged { path, source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(source) => Err(MemoryError::Io { path, source }),
    };
    found.map_err(|error| errors.push(error)).ok()
}

/// Writes `what` as `name` into `folder`, or removes it. Blocks for as long as the disk does.
fn write(folder: &Path, name: &str, what: Option<&impl Serialize>) -> Result<(), MemoryError> {
    let path = folder.join(name);
    let write = || -> std::io::Result<()> {
        match what {
            Some(what) => {
                let mut file = tempfile::NamedTempFile::new_in(folder)?;
                serde_json::to_writer(&mut file, what)?;
                file.flush()?;
                file.as_file().sync_all()?;
                file.persist(&path)?;
            }
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| MemoryError::Io {
        path: path.clone(),
        source,
    })
}

impl Folders {
    /// Makes the folders, which hold `written` (nothing is known of them when it is none), hold `wanted`. What is on the disk
    /// does not keep the rest from being written.
    fn write(&self, wanted: &Remembered, written: Option<&Remembered>) -> Result<(), MemoryError> {
        let mut result = Ok(());
        if let Some(folder) = &self.runtime
            && written.is_none_or(|written| {
                (written.standing, written.unfinished) != (wanted.standing, wanted.unfinished)
            })
        {
            let standing = WrittenStanding {
                standing: wanted.standing,
                unfinished: wanted.unfinished,
            };
            result = write(folder, STANDING, Some(&standing));
        }
        let Some(folder) = &self.state else {
            return result;
        };
        if written.is_none_or(|written| written.hold != wanted.hold) {
            result = result.and(write(folder, HOLD, wanted.hold.as_ref()));
        }
        if let Some(generation) = wanted.generation
            && written.is_none_or(|written| written.generation != wanted.generation)
        {
            result = result.and(write(folder, GENERATION, Some(&Generation { generation })));
        }
        result
    }
}

/// The folders, and who writes to them.
#[derive(Debug)]
pub struct Memory {
    folders: Folders,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    wanted: Remembered,
    /// None after a failure: then nothing is known of the files.
    written: Option<Remembered>,
    writing: bool,
}

impl Memory {
    /// A memory in `folders`, which hold `remembered`.
    pub fn new(folders: Folders, remembered: Remembered) -> Self {
        let state = Mutex::new(State {
            wanted: remembered.clone(),
            written: Some(remembered),
            writing: false,
        });
        Self { folders, state }
    }

    /// Asks that `remembered` be written, instead of all that was asked before. True when nobody writes: then the caller must see to
    /// it that [`Self::write`] runs. Otherwise the one who writes will write this, too.
    pub fn ask(&self, remembered: Remembered) -> bool {
        let mut state = self.lock();
        state.wanted = remembered;
        let begin = !state.writing && state.written.as_ref() != Some(&state.wanted);
        state.writing |= begin;
        begin
    }

    /// Writes what was asked for, until no more is asked for. Blocks for as long as the disk does.
    ///
    /// # Errors
    /// When something could not be written. It is tried again when it is asked for again.
    pub fn write(&self) -> Result<(), MemoryError> {
        self.write_with(|wanted, written| self.folders.write(wanted, written))
    }

    fn write_with(
        &self,
        mut write: impl FnMut(&Remembered, Option<&Remembered>) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        while let Some((wanted, written)) = self.next() {
            let result = write(&wanted, written.as_ref());
            let mut state = self.lock();
            if let Err(error) = result {
                state.written = None;
                state.writing = false;
                return Err(error);
            }
            state.written = Some(wanted);
        }
        Ok(())
    }

    fn next(&self) -> Option<(Remembered, Option<Remembered>)> {
        let mut state = self.lock();
        state.writing = state.written.as_ref() != Some(&state.wanted);
        state
            .writing
            .then(|| (state.wanted.clone(), state.written.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::core::By;
    use super::*;

    fn generation(generation: u64) -> Remembered {
        Remembered {
            generation: Some(generation),
            ..Remembered::default()
        }
    }

    fn keep(folders: &Folders, remembered: &Remembered) {
        let memory = Memory::new(folders.clone(), recall(folders).0);
        memory.ask(remembered.clone());
        memory.write().unwrap();
    }

    #[test]
    fn what_was_remembered_is_recalled_and_damage_is_named() {
        let (state, runtime) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = Folders {
            state: Some(state.path().to_owned()),
            runtime: Some(runtime.path().to_owned()),
        };
        assert_eq!(recall(&folders).0, Remembered::default());
        let all = Remembered {
            generation: Some(u64::MAX),
            hold: Some(WrittenHold {
                reason: "a migration".to_owned(),
                until_unix: Some(2_000_000_000),
            }),
            standing: Standing::Drained {
                by: By::Command,
                outage: true,
            },
            unfinished: true,
        };
        keep(&folders, &all);
        assert_eq!(recall(&folders).0, all);
        // Another boot.
        std::fs::remove_file(runtime.path().join(STANDING)).unwrap();
        assert_eq!(recall(&folders).0.standing, Standing::Unknown);
        keep(&folders, &generation(7));
        assert!(
            !state.path().join(HOLD).exists(),
            "the file is there while there is a hold"
        );
        for damaged in [
            "",
            "{\"gener",
            "{}",
            "{\"generaton\":5}",
            "{\"generation\":null}",
            "{\"generation\":5,\"more\":1}",
        ] {
            std::fs::write(state.path().join(GENERATION), damaged).unwrap();
            let (remembered, errors) = recall(&folders);
            assert_eq!(remembered.generation, None, "{damaged}");
            assert!(errors[0].to_string().contains("is damaged"), "{damaged}");
        }
        std::fs::write(state.path().join(HOLD), "{").unwrap();
        let (remembered, errors) = recall(&folders);
        assert_eq!(errors.len(), 2);
        assert!(remembered.hold.unwrap().reason.contains("hold.json is damaged"));
    }

    #[test]
    fn one_writes_at_a_time_and_an_older_state_is_never_written_last() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders {
            state: Some(state.path().to_owned()),
            runtime: None,
        };
        let memory = Memory::new(folders.clone(), generation(4));
        assert!(!memory.ask(generation(4)), "it is written already");
        assert!(memory.ask(generation(5)));
        let mut written = Vec::new();
        memory
            .write_with(|wanted, _| {
                // Commands that come while the disk is slow.
                assert!(
                    !memory.ask(generation(6)) && !memory.ask(generation(7)),
                    "two would write at once"
                );
                written.push(wanted.generation);
                Ok(())
            })
            .unwrap();
        assert_eq!(written, [Some(5), Some(7)]);

        assert!(memory.ask(generation(8)));
        let full = || MemoryError::Io {
            path: state.path().to_owned(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        assert!(memory.write_with(|_, _| Err(full())).is_err());
        assert!(
            memory.ask(generation(8)),
            "what failed is tried again when it is asked for again"
        );
        memory.write().unwrap();
        assert_eq!(recall(&folders).0.generation, Some(8));
    }
}
