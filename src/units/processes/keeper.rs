//! The keeper: a small process of its own that outlives whoever started it, and then cleans up.
//!
//! **Promise.** However its owner ends, `kill -9` included, the process groups that it registered end too, and the
//! temporary folders that it was told of are removed. The kernel tells the keeper: the owner holds the only
//! writing end of a pipe, and when that is closed the keeper reads the end of its standard input.
//!
//! **Not guaranteed.** A process that left its group is not followed. When owner and keeper are both killed,
//! nobody is left; direct children of a guardian end even then (PR_SET_PDEATHSIG).
//!
//! A folder is removed only when it holds the file [`MARKER`], which [`mark`] puts there: a wrong argument must
//! not cost anybody a home folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::SIGKILL;

use super::spawn;
use crate::cli::{Failure, block_on};

/// The file that says "this folder was made by us, to be removed by the keeper".
pub const MARKER: &str = ".made-by-io-guardian";

/// Longest line that a keeper reads, in bytes: a sign and two numbers.
const LINE_MAX_BYTES: usize = 32;
/// The longest that a group which may end in order is waited for. On a busy machine it needs its time, and nobody
/// waits for us then.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `io-guardian keeper`.
#[derive(clap::Args, Clone, Debug)]
pub struct KeeperArgs {
    /// A folder to remove at the end; it must hold the file .made-by-io-guardian.
    #[arg(long, value_name = "DIR")]
    pub remove: Vec<PathBuf>,
}

/// Groups that were registered, each with the signal that asks it to end in order where it may; 0 asks nothing, and
/// only waits.
type Groups = BTreeMap<i32, Option<i32>>;

/// Reads `+GROUP`, `+GROUP SIGNAL` and `-GROUP` from standard input until it ends; then ends the groups that are
/// left, and removes the folders.
///
/// # Errors
/// When a folder carries no mark, or could not be removed.
pub fn run(args: KeeperArgs) -> Result<u8, Failure> {
    block_on(async move {
        // Whoever ends the owner's whole session means the owner; the keeper goes last.
        ignore_signals().map_err(|error| Failure::failed(format!("cannot ignore signals: {error}")))?;
        for folder in &args.remove {
            check_marked(folder)?;
        }
        let mut groups = Groups::new();
        let mut stdin = io::stdin().lock();
        let mut line = Vec::new();
        // A read that fails is an end too: the owner cannot be heard any more.
        while let Ok(1..) = io::Read::take(&mut stdin, LINE_MAX_BYTES as u64).read_until(b'\n', &mut line) {
            note(&mut groups, &line);
            line.clear();
        }
        end_all(&groups).await;
        remove_all(&args.remove).await.map(|()| 0)
    })?
}

fn note(groups: &mut Groups, line: &[u8]) {
    let Ok(line) = std::str::from_utf8(line) else {
        return;
    };
    // Never a group that kill(2) reads as "all that I may": 0 and 1 have a meaning of their own there.
    let number = |text: &str| text.parse::<i32>().ok().filter(|&group| group > 1);
    let (group, signal) = match line.trim_end().split_once(' ') {
        Some((group, signal)) => (group, signal.parse().ok()),
        None => (line.trim_end(), None),
    };
    if let Some(group) = group.strip_prefix('+').and_then(number) {
        groups.insert(group, signal);
    } else if let Some(group) = group.strip_prefix('-').and_then(number) {
        groups.remove(&group);
    }
}

async fn end_all(groups: &Groups) {
    let send = |group: i32, signal: i32| {
        if let Err(error) = spawn::signal_group(group, signal) {
            tracing::warn!(group, signal, %error, "cannot signal a process group");
        }
    };
    for (&group, signal) in groups {
        match signal {
            None => send(group, SIGKILL),
            Some(0) => {}
            Some(signal) => send(group, *signal),
        }
    }
    let in_order = groups.iter().filter(|(_, signal)| signal.is_some());
    let in_order: Vec<i32> = in_order.map(|(&group, _)| group).collect();
    let all_gone = async {
        while !in_order.iter().all(|&group| spawn::group_is_empty(group)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, all_gone).await.is_err() {
        in_order.into_iter().for_each(|group| send(group, SIGKILL));
    }
}

fn ignore_signals() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // A handler that nobody listens to: unlike SIG_IGN it is not inherited by what we might ever start, and it
    // stays in place for as long as the process lives.
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ] {
        let _handled_from_now_on = signal(kind)?;
    }
    Ok(())
}

async fn remove_all(folders: &[PathBuf]) -> Result<(), Failure> {
    let mut left = Vec::new();
    for folder in folders {
        check_marked(folder)?;
        // What was killed a moment ago may still be writing its last file.
        for attempt in 1.. {
            match remove(folder) {
                Ok(()) => break,
                Err(error) if attempt == 20 => {
                    left.push(format!("cannot remove {}: {error}; remove it", folder.display()));
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure {
        code: crate::cli::EXIT_FAILED,
        messages: left,
    })
}

/// Removes a folder, its mark last: a removal that is interrupted can be begun again.
fn remove(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        // A link is removed, not what it points to.
        let removed = if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    fs::remove_file(folder.join(MARKER))?;
    fs::remove_dir(folder)
}

fn check_marked(folder: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| {
        Failure::usage(format!(
            "--remove {}: {why}; only a folder that io-guardian made, with the file {MARKER} in it, is removed",
            folder.display()
        ))
    };
    let kind = match fs::symlink_metadata(folder) {
        // Removed by its owner, who ended well.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refuse(&error.to_string())),
        Ok(found) => found.file_type(),
    };
    if !kind.is_dir() {
        return Err(refuse("it is no folder"));
    }
    match fs::symlink_metadata(folder.join(MARKER)) {
        Ok(mark) if mark.is_file() => Ok(()),
        _ => Err(refuse("it carries no mark")),
    }
}

/// Marks a folder as ours, to be removed by the keeper.
///
/// # Errors
/// When the mark cannot be written.
pub fn mark(folder: &Path) -> io::Result<()> {
    fs::write(
        folder.join(MARKER),
        "io-guardian made this folder and removes it.\n",
    )
}

/// The owner's end of a keeper. Dropping it is the end that the keeper waits for.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
}

impl Keeper {
    /// Starts a keeper: this program itself, as `keeper`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(remove: &[&Path]) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("keeper");
        for folder in remove {
            command.arg("--remove").arg(folder);
        }
        Self::start_as(command)
    }

    fn start_as(mut command: Command) -> io::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .current_dir("/");
        spawn::in_own_session(&mut command);
        let child = command.spawn()?;
        if let Some(pipe) = &child.stdin {
            // A keeper that does not read (frozen, say) must not stop its owner.
            let flags = OFlag::from_bits_retain(fcntl(pipe.as_fd(), FcntlArg::F_GETFL)?);
            fcntl(pipe.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self { child })
    }

    /// Its process number.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Registers a process group: it ends when we do.
    ///
    /// # Errors
    /// When the keeper is gone or does not read.
    pub fn add(&mut self, group: i32) -> io::Result<()> {
        self.say(format!("+{group}\n"))
    }

    /// Registers a process group that may end in order when we do: it is sent `signal`, or left to what it does when
    /// that is 0, and killed some seconds later.
    ///
    /// # Errors
    /// When the keeper is gone or does not read.
    pub fn add_in_order(&mut self, group: i32, signal: i32) -> io::Result<()> {
        self.say(format!("+{group} {signal}\n"))
    }

    /// Forgets a process group of which nothing is left: its number may be given to others.
    ///
    /// # Errors
    /// When the keeper is gone or does not read.
    pub fn forget(&mut self, group: i32) -> io::Result<()> {
        self.say(format!("-{group}\n"))
    }

    fn say(&mut self, line: String) -> io::Result<()> {
        let pipe = self.child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(line.as_bytes())
    }

    /// Tells the keeper that its owner has ended, and waits until it has done its work.
    ///
    /// # Errors
    /// When the keeper could not do it, or could not be waited for.
    pub fn finish(mut self) -> io::Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("the keeper ended with {status}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_groups_are_noted() {
        let mut groups = Groups::new();
        let lines = "+12\n+13\n-12\n+0\n+1\n+-5\n+x\n14\n+99999999999\n\n+15 3\n+16 0\n";
        lines
            .split_inclusive('\n')
            .for_each(|line| note(&mut groups, line.as_bytes()));
        assert_eq!(groups, Groups::from([(13, None), (15, Some(3)), (16, Some(0))]));
    }

    #[tokio::test]
    async fn only_a_folder_with_our_mark_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ours");
        let outside = root.path().join("outside");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("link")).unwrap();

        let refused = remove_all(std::slice::from_ref(&folder)).await.unwrap_err();
        assert!(refused.messages[0].contains("carries no mark"), "{refused:?}");
        assert!(folder.join("a/b").is_dir());

        mark(&folder).unwrap();
        let link = root.path().join("link-to-ours");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        remove_all(&[link]).await.unwrap_err();
        remove_all(std::slice::from_ref(&folder)).await.unwrap();
        assert!(!folder.exists() && outside.join("kept").exists());
        remove_all(&[folder]).await.unwrap();
    }
}
