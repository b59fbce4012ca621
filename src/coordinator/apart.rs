//! The generation is taken by a process of its own, because nothing else can be left behind: a thread that a disk does not
//! let go keeps its whole process from ending, kill -9 included, and systemd waits for that before it stops the databases.
//!
//! The process is this program again. It answers on its standard output, in one line, and then nobody waits for it.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::generation::{LONGEST, NotTaken, take};
use crate::cli::EXIT_FAILED;

/// The subcommand that this program is started with.
pub(super) const SUBCOMMAND: &str = "take-generation";
/// How much longer than its own deadlines the other process may take.
const GRACE: Duration = Duration::from_secs(3);

/// What came of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Taken {
    /// For the command; on disk, unless there is a fault.
    pub(super) number: u64,
    /// Why it is not on disk.
    pub(super) fault: Option<NotOnDisk>,
}

/// [`NotTaken`], as far as it crosses to another process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NotOnDisk {
    pub(super) why: String,
    /// Whether the last number could be read, and ours is above it.
    pub(super) above_the_last: bool,
    pub(super) is_the_disk: bool,
    pub(super) exit_code: u8,
}

impl From<Result<u64, NotTaken>> for Taken {
    fn from(taken: Result<u64, NotTaken>) -> Self {
        match taken {
            Ok(number) => Self { number, fault: None },
            Err(error) => Self {
                number: error.number,
                fault: Some(NotOnDisk {
                    above_the_last: error.last.is_some(),
                    is_the_disk: error.why.is_the_disk(),
                    exit_code: error.why.exit_code(),
                    why: error.to_string(),
                }),
            },
        }
    }
}

/// This program again, under the name that it has now.
pub(super) fn ourselves() -> Command {
    // Not by its path: a new version may lie there.
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

/// Takes the next generation from `path`, as [`take`] does; this process can end whatever the disk does.
pub(super) async fn take_apart(path: &Path, now: fn() -> u64) -> Taken {
    let without = |why: &str| Taken {
        number: now(),
        fault: Some(NotOnDisk {
            why: format!(
                "cannot take a generation from {}: {why}; look at the disk and at this unit's limits (MemoryMax=, TasksMax=), or give a number with --generation",
                path.display()
            ),
            above_the_last: false,
            is_the_disk: true,
            exit_code: EXIT_FAILED,
        }),
    };
    let mut command = ourselves();
    command.arg(SUBCOMMAND).arg("--").arg(path);
    let mut child = match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        // There is no /proc: then by ourselves.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return take(path, now).await.into(),
        Err(error) => return without(&format!("its process cannot be started: {error}")),
    };
    let Some(out) = child.stdout.take() else {
        return without("its process has no output");
    };
    let mut line = String::new();
    let mut out = BufReader::new(out);
    match timeout(LONGEST + GRACE, out.read_line(&mut line)).await {
        Err(_) => without("its process does not answer"),
        Ok(Err(error)) => without(&format!("its process cannot be heard: {error}")),
        Ok(Ok(_)) => serde_json::from_str(&line).unwrap_or_else(|_| without("its process has died")),
    }
}

/// The other process: what it is there for.
pub(super) async fn answer(path: &Path, now: fn() -> u64) -> std::io::Result<()> {
    let taken = Taken::from(take(path, now).await);
    let mut line = serde_json::to_string(&taken).map_err(std::io::Error::other)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()
}
