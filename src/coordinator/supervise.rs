//! `drain --supervised`: the drain in a process of its own, which is begun again when it is killed.
//!
//! For the stop of a unit. systemd takes a command of a stop that was killed (by hand, by the kernel for its memory) for the end of
//! the stop, and goes on to stop the databases. Whatever else the drain ends with is its last word.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::apart;
use crate::cli::EXIT_FAILED;

/// The flag, which the other process is not given.
const FLAG: &str = "--supervised";
/// Before it is begun again: one that is killed each time must not keep the host busy.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs this program again with its own arguments, but for the flag, until it has ended by itself. Nothing when there is no
/// process to be had: a drain that nobody looks after is better than none.
///
/// SIGTERM and SIGINT are passed on; after one of them nothing is begun again.
pub(super) async fn supervise() -> Option<u8> {
    match supervised().await {
        Ok(code) => Some(code),
        Err(error) => {
            tracing::warn!(%error, "cannot drain in a process of its own: draining without");
            None
        }
    }
}

async fn supervised() -> io::Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut told = false;
    loop {
        let mut command = apart::ourselves();
        command.args(std::env::args_os().skip(1).filter(|argument| argument != FLAG));
        // Of a group of its own: Ctrl-C is passed on, and does not come twice.
        let mut child = command.process_group(0).spawn()?;
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break ended,
                _ = terminate.recv() => pass_on(&child, Signal::SIGTERM),
                _ = interrupt.recv() => pass_on(&child, Signal::SIGINT),
            }
            told = true;
        };
        let ended = ended?;
        match last_word(ended, told) {
            Some(code) => return Ok(code),
            None => {
                tracing::warn!(
                    signal = ended.signal(),
                    "the drain was killed: beginning it again"
                );
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    _ = terminate.recv() => return Ok(EXIT_FAILED),
                    _ = interrupt.recv() => return Ok(EXIT_FAILED),
                }
            }
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    if let Some(id) = child.id() {
        // It may just have ended.
        let _ = kill(Pid::from_raw(id.cast_signed()), signal);
    }
}

/// The exit code to end with; none when it is to be begun again.
fn last_word(ended: ExitStatus, told: bool) -> Option<u8> {
    match ended.code() {
        Some(code) => Some(u8::try_from(code).unwrap_or(EXIT_FAILED)),
        None if told => Some(EXIT_FAILED),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_drain_that_was_killed_unasked_is_begun_again() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(last_word(exited(0), false), Some(0));
        assert_eq!(last_word(exited(78), false), Some(78));
        assert_eq!(last_word(ExitStatus::from_raw(9), false), None);
        assert_eq!(last_word(ExitStatus::from_raw(15), true), Some(EXIT_FAILED));
    }
}
