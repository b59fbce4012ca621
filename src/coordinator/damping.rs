//! Databases that crash again and again must not drag the fleet with them: an undrain waits when there were several a short while ago.
//!
//! What is remembered is when the fleet was undrained, in a file on /run: gone with the boot, and on no disk that could hang. Times are those of
//! `CLOCK_BOOTTIME`, which nobody sets. A file that cannot be used costs a line in the log, and no wait.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What is longer ago counts no more.
pub(super) const WINDOW: Duration = Duration::from_secs(600);
/// Undrains within it for which nobody waits: an evening's maintenance restarts them a few times. The guardians know it, too
/// (`guardian::core`): they must not be faster than this waits.
const FREE: u32 = 4;
/// The first wait; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(10);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);
/// Most times that are kept: more than it takes to reach the longest wait.
const KEPT: usize = 8;

/// How long to wait before the next undrain, when the fleet was undrained at these times since the boot.
pub(super) fn wait(undrained: &[Duration], now: Duration) -> Duration {
    let recent = undrained.iter().filter(|at| now.saturating_sub(**at) < WINDOW);
    let recent = u32::try_from(recent.count()).unwrap_or(u32::MAX);
    match recent.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(more) => FIRST.saturating_mul(2_u32.saturating_pow(more)).min(LONGEST),
    }
}

/// The file of such times.
#[derive(Clone, Debug)]
pub(super) struct Damping(PathBuf);

impl Damping {
    /// # Errors
    /// When `path` is not on /run.
    pub(super) fn parse(path: &str) -> Result<Self, String> {
        if path.starts_with("/run/") && !path.contains("/../") {
            Ok(Self(path.into()))
        } else {
            Err("expected a file below /run, which is on no disk and gone with the boot, for example /run/io-coordinator/undrained".to_owned())
        }
    }

    /// What there is to wait for now.
    pub(super) fn wait(&self) -> Duration {
        match read(&self.0) {
            Ok(undrained) => wait(&undrained, since_boot()),
            Err(error) => {
                self.unusable(&error);
                Duration::ZERO
            }
        }
    }

    /// The fleet is undrained now.
    pub(super) fn note(&self) {
        let noted = read(&self.0).and_then(|mut undrained| {
            undrained.push(since_boot());
            let text = undrained
                .iter()
                .rev()
                .take(KEPT)
                .rev()
                .fold(String::new(), |mut text, at| {
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "{}", at.as_millis());
                    text
                });
            let new = self.0.with_extension("new");
            std::fs::write(&new, text)?;
            std::fs::rename(&new, &self.0)
        });
        if let Err(error) = noted {
            self.unusable(&error);
        }
    }

    fn unusable(&self, error: &io::Error) {
        tracing::warn!(
            file = %self.0.display(),
            %error,
            "cannot remember when the fleet was undrained: databases that crash again and again are not waited for; \
             RuntimeDirectory=io-coordinator with RuntimeDirectoryPreserve=yes makes the folder"
        );
    }
}

fn read(path: &Path) -> io::Result<Vec<Duration>> {
    match std::fs::read_to_string(path) {
        // What is no number was not written by us.
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| line.parse().ok())
            .map(Duration::from_millis)
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_not_waited_for_and_a_crash_loop_is() {
        let now = Duration::from_secs(10_000);
        let at = |ago: &[u64]| {
            let undrained: Vec<_> = ago.iter().map(|ago| now - Duration::from_secs(*ago)).collect();
            wait(&undrained, now).as_secs()
        };
        assert_eq!(at(&[]), 0);
        assert_eq!(at(&[90, 60, 30]), 0);
        assert_eq!(at(&[120, 90, 60, 30]), 10);
        assert_eq!(at(&[1; 5]), 20);
        assert_eq!(at(&[1; 6]), 40);
        assert_eq!(at(&[1; 7]), 60);
        assert_eq!(at(&[1; 100]), 60);
        assert_eq!(at(&[900, 800, 700, 601, 600, 30, 20, 10]), 0, "that is over");
    }

    #[test]
    fn what_was_noted_is_found_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let damping = Damping(folder.path().join("undrained"));
        assert_eq!(damping.wait(), Duration::ZERO);
        std::fs::write(&damping.0, "rubbish\n").unwrap();
        for _ in 0..2 * KEPT {
            damping.note();
        }
        assert_eq!(damping.wait(), LONGEST);
        assert_eq!(read(&damping.0).unwrap().len(), KEPT);
        let nowhere = Damping(folder.path().join("missing/undrained"));
        nowhere.note();
        assert_eq!(nowhere.wait(), Duration::ZERO);
    }

    #[test]
    fn a_file_on_a_disk_is_refused() {
        assert!(Damping::parse("/run/io-coordinator/undrained").is_ok());
        for wrong in [
            "/var/lib/io-coordinator/undrained",
            "undrained",
            "/run/../var/x",
            "/run",
        ] {
            let error = Damping::parse(wrong).unwrap_err();
            assert!(error.contains("/run/io-coordinator/undrained"), "{error}");
        }
    }
}
