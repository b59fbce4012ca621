//! The age of a command: a number that grows with every command of one database host.
//!
//! **Promise.** The number returned by [`take`] is on disk, folder included, before it is returned, and no other
//! call gets it, from this process or another one, at the same time or after a crash at any instruction. It is at
//! least the time in milliseconds since 1970, so a lost file does not make new commands look old.
//!
//! A disk that hangs costs no more than `LOCK_TIMEOUT` and `DISK_TIMEOUT` together, and blocks no thread that
//! anybody waits for.
//!
//! **Not guaranteed.** Order between two database hosts: each has its own file, and their clocks may differ. On
//! file systems whose `flock` is local (some network file systems) two hosts that share the file are not kept
//! apart.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use tokio::time::{Instant, sleep, timeout_at};

use crate::cli::{EXIT_CONFIG, EXIT_FAILED};

/// How long another coordinator may hold the lock. It holds it for two `fsync`s.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the disk may take to open the lock, and then to read and write the number.
const DISK_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest that [`take`] takes: the lock, and the number after it.
pub(super) const LONGEST: Duration = LOCK_TIMEOUT
    .saturating_add(DISK_TIMEOUT)
    .saturating_add(DISK_TIMEOUT);

/// Why there is no generation.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The file holds something else than a number.
    #[error("{} holds {found:?}, which is no generation (a whole number below 18446744073709551615): is it the right file? if so remove it, and the next generation is taken from the clock", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The beginning of what it holds.
        found: String,
    },
    /// The file, its folder or its lock cannot be used.
    #[error("cannot {verb} {}: {source}; name a file in an existing folder that this user may write, for example under /var/lib/io-coordinator", path.display())]
    Unusable {
        /// `lock`, `read`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new number could not be made durable.
    #[error("cannot write {}: {source}; make room on the disk, or give a number with --generation", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another coordinator holds the lock.
    #[error("{} has been locked by another process for {} s; end that process, or give a number with --generation", path.display(), LOCK_TIMEOUT.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The disk, or the server of a network file system, does not answer.
    #[error("cannot {verb} {}: its disk did not answer within {} s; look at the disk, or give a number with --generation", path.display(), DISK_TIMEOUT.as_secs())]
    Hung {
        /// `lock`, `read`, `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// No generation was taken; what a command may carry that cannot wait for one.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct NotTaken {
    /// Why not.
    pub why: GenerationError,
    /// The last number, when it could be read.
    pub last: Option<u64>,
    /// Greater than the last one, when that could be read, and no less than the clock. It is not on disk, so
    /// another command may get it too: guardians take the same number twice.
    pub number: u64,
}

impl GenerationError {
    /// Whether the number itself was fine and only the disk, or another holder of the lock, stood in the way.
    pub const fn is_the_disk(&self) -> bool {
        !matches!(self, Self::Corrupt { .. })
    }

    /// [`EXIT_CONFIG`] when the configuration must change, [`EXIT_FAILED`] when the same command may work later.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Corrupt { .. } | Self::Unusable { .. } => EXIT_CONFIG,
            Self::Write { .. } | Self::Locked { .. } | Self::Hung { .. } => EXIT_FAILED,
        }
    }
}

/// The generation after `last`: greater than it, and no less than the clock.
pub fn next(last: Option<u64>, milliseconds_since_1970: u64) -> Option<u64> {
    match last {
        None => Some(milliseconds_since_1970),
        Some(last) => Some(last.checked_add(1)?.max(milliseconds_since_1970)),
    }
}

/// Reads what a generation file holds: a number, white space around it dropped.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    // The highest number has no successor, so we never write it.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|n| *n < u64::MAX)
}

/// Takes the next generation from `path`. `now` is asked for milliseconds since 1970 once the lock is held.
///
/// The lock is `flock` on `path` with `.lock` added, which stays: a lock file that is removed protects nobody.
///
/// # Errors
/// When the number could not be made durable. The error holds a number for a command that must go out anyway.
pub async fn take(path: &Path, now: impl Fn() -> u64) -> Result<u64, NotTaken> {
    let not_taken = |why, last: Option<u64>| NotTaken {
        why,
        last,
        number: next(last, now()).unwrap_or(u64::MAX),
    };
    let lock = match lock(&with_suffix(path, ".lock")).await {
        Ok(lock) => lock,
        Err(why) => {
            // The number is replaced by rename, so it can be read without the lock.
            let deadline = Instant::now() + DISK_TIMEOUT;
            let last = on_disk(deadline, "read", path, read).await.ok().flatten();
            return Err(not_taken(why, last));
        }
    };
    let deadline = Instant::now() + DISK_TIMEOUT;
    let last = match on_disk(deadline, "read", path, read).await {
        Ok(last) => last,
        Err(why) => return Err(not_taken(why, None)),
    };
    let Some(number) = next(last, now()) else {
        let why = GenerationError::Corrupt {
            path: path.to_owned(),
            found: last.map_or_else(String::new, |n| n.to_string()),
        };
        return Err(not_taken(why, last));
    };
    let written = on_disk(deadline, "write", path, move |path| {
        // A write that outlives our patience keeps the lock until it ends.
        let _lock = lock;
        write(path, number).map_err(|source| GenerationError::Write {
            path: path.to_owned(),
            source,
        })
    });
    match written.await {
        Ok(()) => Ok(number),
        Err(why) => Err(NotTaken { why, last, number }),
    }
}

/// Does `work` with `path` on a thread of its own: nothing else can leave a call that a disk never ends.
async fn on_disk<T: Send + 'static>(
    deadline: Instant,
    verb: &'static str,
    path: &Path,
    work: impl FnOnce(&Path) -> Result<T, GenerationError> + Send + 'static,
) -> Result<T, GenerationError> {
    let owned = path.to_owned();
    let work = tokio::task::spawn_blocking(move || work(&owned));
    let path = path.to_owned();
    match timeout_at(deadline, work).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(GenerationError::Unusable {
            verb,
            path,
            source: io::Error::other(error),
        }),
        Err(_) => Err(GenerationError::Hung { verb, path }),
    }
}

async fn lock(path: &Path) -> Result<Flock<File>, GenerationError> {
    let begin = Instant::now();
    let deadline = begin + LOCK_TIMEOUT;
    let mut file = on_disk(begin + DISK_TIMEOUT, "lock", path, open_lock).await?;
    loop {
        // On a network file system this asks the server.
        let limit = deadline.min(Instant::now() + DISK_TIMEOUT);
        let tried = on_disk(limit, "lock", path, move |_| {
            Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock))
        });
        file = match tried.await? {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => {
                return Err(GenerationError::Unusable {
                    verb: "lock",
                    path: path.to_owned(),
                    source: errno.into(),
                });
            }
        };
        // Ends a little early, so that the last try has the time to be answered.
        let wait = Duration::from_millis(10);
        if Instant::now() + 2 * wait >= deadline {
            return Err(GenerationError::Locked {
                path: path.to_owned(),
            });
        }
        // flock has no asynchronous form; the holder needs milliseconds.
        sleep(wait).await;
    }
}

fn open_lock(path: &Path) -> Result<File, GenerationError> {
    let open = || {
        regular(path)?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)
    };
    open().map_err(|source| GenerationError::Unusable {
        verb: "lock",
        path: path.to_owned(),
        source,
    })
}

/// Refuses what is there and no regular file: to open a named pipe waits for its other end.
fn regular(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(io::Error::other("it is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> Result<Option<u64>, GenerationError> {
    let unusable = |source| GenerationError::Unusable {
        verb: "read",
        path: path.to_owned(),
        source,
    };
    regular(path).map_err(unusable)?;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error)),
    };
    let mut bytes = Vec::new();
    file.take(256).read_to_end(&mut bytes).map_err(unusable)?;
    let text = String::from_utf8_lossy(&bytes);
    match parse(&text) {
        Some(last) => Ok(Some(last)),
        None => Err(GenerationError::Corrupt {
            path: path.to_owned(),
            found: text.chars().take(40).collect(),
        }),
    }
}

/// Temporary file, fsync, rename, fsync of the folder. The temporary file has a fixed name, because only the
/// holder of the lock uses it: what a killed coordinator left is overwritten, not added to.
fn write(path: &Path, generation: u64) -> io::Result<()> {
    let temporary = with_suffix(path, ".new");
    regular(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&temporary)?;
    let written = writeln!(file, "{generation}").and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| std::fs::rename(&temporary, path)) {
        // Best effort: the next coordinator overwrites it anyway.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_follow_the_clock_and_never_go_back() {
        assert_eq!(next(None, 1_000), Some(1_000));
        assert_eq!(next(Some(5), 1_000), Some(1_000));
        assert_eq!(next(Some(1_000), 1_000), Some(1_001), "two in one millisecond");
        assert_eq!(next(Some(9_000), 1_000), Some(9_001), "the clock went back");
        assert_eq!(next(Some(u64::MAX), 1_000), None);
    }

    #[test]
    fn only_a_number_is_a_generation() {
        assert_eq!(parse(" 17\n"), Some(17));
        for wrong in ["", "\n", "+17", "-1", "1.5", "17 18", "18446744073709551615", "x"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn each_call_takes_a_number_of_its_own_and_leaves_it_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation");
        let mut taken = futures_util::future::join_all((0..50).map(|_| take(&path, || 1_000)))
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        taken.sort_unstable();
        assert_eq!(taken, (1_000..1_050).collect::<Vec<_>>());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1049\n");
        assert_eq!(take(&path, || 5_000).await.unwrap(), 5_000);
    }

    #[tokio::test]
    async fn what_a_killed_coordinator_left_does_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation");
        std::fs::write(with_suffix(&path, ".new"), "half a num").unwrap();
        std::fs::write(with_suffix(&path, ".lock"), "").unwrap();
        std::fs::write(&path, "7\n").unwrap();
        assert_eq!(take(&path, || 3).await.unwrap(), 8);
        assert!(!with_suffix(&path, ".new").exists());
    }

    #[tokio::test]
    async fn a_corrupt_file_is_named_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation");
        for corrupt in ["", "drain\n", "18446744073709551615"] {
            std::fs::write(&path, corrupt).unwrap();
            let error = take(&path, || 1).await.unwrap_err();
            assert_eq!(error.why.exit_code(), EXIT_CONFIG);
            let text = error.to_string();
            assert!(
                text.contains(path.to_str().unwrap()) && text.contains("remove it"),
                "{text}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), corrupt);
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_missing_is_a_mistake_of_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let error = take(&folder.path().join("missing/generation"), || 1)
            .await
            .unwrap_err();
        assert_eq!(error.why.exit_code(), EXIT_CONFIG);
        assert!(error.to_string().contains("name a file"), "{error}");
    }

    #[tokio::test]
    async fn a_number_that_cannot_be_written_is_still_above_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation");
        std::fs::write(&path, "9000\n").unwrap();
        // Stands for a full disk: for root too, nothing can be written to this name.
        std::fs::create_dir(with_suffix(&path, ".new")).unwrap();
        let error = take(&path, || 1_000).await.unwrap_err();
        assert_eq!(
            (error.why.exit_code(), error.number, error.last),
            (EXIT_FAILED, 9_001, Some(9_000))
        );
        assert_eq!(take(&path, || 20_000).await.unwrap_err().number, 20_000);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "9000\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_cannot_be_had_does_not_hide_the_last_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation");
        std::fs::write(&path, "9000\n").unwrap();
        let held = lock(&with_suffix(&path, ".lock")).await.unwrap();
        let error = take(&path, || 1_000).await.unwrap_err();
        assert!(matches!(error.why, GenerationError::Locked { .. }), "{error}");
        assert_eq!(error.number, 9_001);
        drop(held);

        std::fs::remove_file(with_suffix(&path, ".lock")).unwrap();
        std::fs::create_dir(with_suffix(&path, ".lock")).unwrap();
        let error = take(&path, || 1_000).await.unwrap_err();
        assert_eq!((error.why.exit_code(), error.number), (EXIT_CONFIG, 9_001));

        std::fs::remove_file(&path).unwrap();
        let error = take(&path, || 1_000).await.unwrap_err();
        assert_eq!((error.last, error.number), (None, 1_000), "nothing but the clock");
    }

    #[tokio::test]
    async fn a_named_pipe_is_refused_and_not_waited_for() {
        for suffix in [".new", "", ".lock"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("generation");
            let pipe = with_suffix(&path, suffix);
            nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
            let error = take(&path, || 1_000).await.unwrap_err();
            assert!(error.to_string().contains("it is no regular file"), "{error}");
            assert_eq!(error.number, 1_000);
        }
    }
}
