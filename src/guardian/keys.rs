//! The keys that are valid now. A changed file is picked up without a restart, and no connection ends for it.
//!
//! **Promise.** At SIGHUP, every [`LOOK`], and when a peer comes with a key that is not known, the files are read again: so a new
//! key may be used as soon as it is in the file, and one that was taken out is refused within [`LOOK`]. Files that cannot be read
//! or hold no key change nothing, and are told of. A file that hangs holds nobody back for longer than [`PATIENCE`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::protocol::Keyring;

/// How often the files are looked at: how long a key that was taken out may still be used.
const LOOK: Duration = Duration::from_secs(10);
/// Strangers make us read at most once in this time; whoever comes sooner waits for the rest of it.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a peer waits for a file to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Keys {
    files: Vec<PathBuf>,
    known: Mutex<Known>,
    /// Held while the files are read, by the thread that does it: one that hangs is not joined by others.
    reading: Arc<tokio::sync::Mutex<()>>,
}

struct Known {
    keys: Arc<Keyring>,
    read: Instant,
    /// What was wrong with the files when they were read last, so that it is told once.
    fault: Option<String>,
}

impl Keys {
    pub(super) fn new(keys: Keyring, files: Vec<PathBuf>) -> Self {
        Self {
            files,
            known: Mutex::new(Known {
                keys: Arc::new(keys),
                read: Instant::now(),
                fault: None,
            }),
            reading: Arc::default(),
        }
    }

    pub(super) fn now(&self) -> Arc<Keyring> {
        Arc::clone(&self.known().keys)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer has come with a key that is none of `tried`: the keys, if they are others by now.
    pub(super) async fn changed(&self, tried: &Arc<Keyring>) -> Option<Arc<Keyring>> {
        if Arc::ptr_eq(tried, &self.now()) {
            let again = self.known().read + PAUSE;
            sleep_until(again).await;
            // Another one may have read for all in the meantime, or be about to.
            if let Ok(busy) = timeout(PATIENCE, Arc::clone(&self.reading).lock_owned()).await
                && self.known().read + PAUSE <= Instant::now()
            {
                self.read(busy).await;
            }
        }
        let now = self.now();
        (!Arc::ptr_eq(tried, &now)).then_some(now)
    }

    /// Whether there are others than before.
    async fn read_again(&self) -> bool {
        match timeout(PATIENCE, Arc::clone(&self.reading).lock_owned()).await {
            Ok(busy) => self.read(busy).await,
            // It hangs, and will find what there is.
            Err(_) => false,
        }
    }

    async fn read(&self, busy: OwnedMutexGuard<()>) -> bool {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = Keyring::read(&files).map_err(|error| error.to_string());
            (read, busy)
        });
        // Until what was read is known, nobody reads again; a read that hangs keeps it to itself.
        let mut held = None;
        let read = match timeout(PATIENCE, read).await {
            Ok(Ok((read, busy))) => {
                held = Some(busy);
                read
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("they did not answer within {} s", PATIENCE.as_secs())),
        };
        let _held = held;
        let mut known = self.known();
        known.read = Instant::now();
        match read {
            Ok(keys) => {
                known.fault = None;
                let fingerprints = keys.fingerprints();
                if fingerprints == known.keys.fingerprints() {
                    return false;
                }
                tracing::info!(keys = fingerprints.join(" "), "the keys have changed");
                known.keys = Arc::new(keys);
                true
            }
            Err(fault) => {
                if known.fault.as_ref() != Some(&fault) {
                    tracing::error!(
                        error = fault,
                        "cannot read the keys again: going on with those from before"
                    );
                    known.fault = Some(fault);
                }
                false
            }
        }
    }

    /// Looks again and again, and whenever `told`.
    pub(super) async fn watch(self: Arc<Self>, mut told: Signal) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = told.recv() => {}
            }
            self.read_again().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old-old-old-old-old-old-old-old-old-old";
    const NEW: &str = "new-new-new-new-new-new-new-new-new-new";

    fn keys(text: &str) -> (tempfile::TempDir, Keys) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("psk");
        std::fs::write(&file, text).unwrap();
        let keys = Keys::new(Keyring::read(&[&file]).unwrap(), vec![file]);
        (folder, keys)
    }

    #[tokio::test]
    async fn a_new_key_is_known_when_it_is_first_used() {
        let (folder, keys) = keys(OLD);
        std::fs::write(folder.path().join("psk"), format!("{NEW}\n{OLD}\n")).unwrap();
        keys.known().read -= PAUSE;
        let tried = keys.now();
        let now = keys.changed(&tried).await.unwrap();
        assert!(now.find(NEW).is_some() && now.find(OLD).is_some());
        assert!(keys.now().find(NEW).is_some());
        // One who had looked before, and asks a moment later, gets it too.
        assert!(keys.changed(&tried).await.unwrap().find(NEW).is_some());
    }

    #[tokio::test]
    async fn a_key_that_came_a_moment_after_the_last_look_is_known_and_strangers_do_not_hurry_us() {
        let (folder, keys) = keys(OLD);
        let read = keys.known().read;
        std::fs::write(folder.path().join("psk"), NEW).unwrap();
        assert!(keys.changed(&keys.now()).await.unwrap().find(NEW).is_some());
        assert!(keys.known().read >= read + PAUSE);
    }

    #[tokio::test]
    async fn a_file_that_is_gone_or_empty_changes_nothing() {
        let (folder, keys) = keys(OLD);
        for damage in ["", "short", "\0"] {
            std::fs::write(folder.path().join("psk"), damage).unwrap();
            assert!(!keys.read_again().await);
            assert!(keys.now().find(OLD).is_some());
            assert!(keys.known().fault.is_some());
        }
        std::fs::remove_file(folder.path().join("psk")).unwrap();
        assert!(!keys.read_again().await);
        assert!(keys.now().find(OLD).is_some());
    }

    #[tokio::test]
    async fn a_key_that_was_taken_out_is_no_longer_accepted() {
        let (folder, keys) = keys(&format!("{NEW}\n{OLD}\n"));
        std::fs::write(folder.path().join("psk"), NEW).unwrap();
        assert!(keys.read_again().await);
        assert!(keys.now().find(OLD).is_none());
    }

    #[tokio::test]
    async fn a_file_that_hangs_holds_nobody_back() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("psk");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let old = crate::protocol::PresharedKey::parse(OLD, &pipe).unwrap();
        let keys = Keys::new(old.into(), vec![pipe.clone()]);
        assert!(!keys.read_again().await);
        assert!(keys.now().find(OLD).is_some());
        assert!(!keys.read_again().await, "nobody joins the one that hangs");
        // Lets the thread end.
        drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
    }
}
