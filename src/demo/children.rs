//! The demo's child processes: each in a group of its own, known to the keeper, stopped in order or by force.

use std::io;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;

use crate::units::processes::keeper::Keeper;
use crate::units::processes::{in_own_group, signal_group};

/// The keeper, shared by all that start processes.
pub(super) struct Shelter(Mutex<Keeper>);

impl Shelter {
    pub(super) fn new(keeper: Keeper) -> Self {
        Self(Mutex::new(keeper))
    }

    /// Has the keeper kill what is left and remove the folder.
    pub(super) fn close(self) -> io::Result<()> {
        self.0
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .finish()
    }

    /// Its process number.
    pub(super) fn pid(&self) -> i32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pid()
    }

    /// Starts a process whose group the keeper knows. What happens to it when the demo is killed is `fate`'s business.
    ///
    /// It is not killed when it is dropped: a story that is interrupted leaves it to the keeper.
    pub(super) fn start(&self, mut command: Command, fate: Fate) -> io::Result<Process> {
        in_own_group(
            &mut command,
            match fate {
                Fate::Killed => Some(Signal::SIGKILL),
                Fate::Asked(signal) => Some(signal),
                Fate::Finishes => None,
            },
        );
        let child = tokio::process::Command::from(command).spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let group = group.ok_or_else(|| io::Error::other("the process has no number"))?;
        let mut keeper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match fate {
            Fate::Killed => keeper.add(group)?,
            Fate::Asked(signal) => keeper.add_in_order(group, signal as i32)?,
            Fate::Finishes => keeper.add_in_order(group, 0)?,
        }
        Ok(Process { child, group })
    }

    /// Waits for the end of a process; past the time, it is killed.
    pub(super) async fn wait(&self, mut process: Process, time: Duration) -> io::Result<ExitStatus> {
        let ended = match timeout(time, process.child.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                signal_group(process.group, nix::libc::SIGKILL)?;
                process.child.wait().await
            }
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .forget(process.group)?;
        ended
    }

    /// Asks a process to stop, and waits for its end; past the time, its group is killed.
    pub(super) async fn stop(&self, process: Process, signal: i32, time: Duration) -> io::Result<ExitStatus> {
        signal_group(process.group, signal)?;
        self.wait(process, time).await
    }
}

/// What becomes of a process when the demo ends without stopping it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Killed,
    /// It ends by this signal, and cleans up after itself.
    Asked(Signal),
    /// It ends by itself soon.
    Finishes,
}

/// A process that runs, as far as we know.
pub(super) struct Process {
    pub(super) child: tokio::process::Child,
    pub(super) group: i32,
}
