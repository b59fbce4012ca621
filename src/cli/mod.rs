//! What every binary of this package does alike: arguments, durations, addresses, exit codes, and one place
//! that prints failures.

mod duration;
mod host_port;
mod live_lines;
mod pages;
mod unix_socket;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

pub use duration::{ConfigDuration, age, parse_duration};
pub use host_port::{HostPort, HostPortError};
pub use live_lines::{LiveLines, terminal_columns};
pub use pages::{PageCommand, print_page};
pub use unix_socket::listen_at;

/// Exit code: something failed at run time.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: the command line is wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// Exit code: the configuration is wrong (`EX_CONFIG` of sysexits.h). Units set `RestartPreventExitStatus=78`,
/// so that a bad configuration does not become a restart storm.
pub const EXIT_CONFIG: u8 = 78;

/// The exit codes, for the end of each binary's help.
pub const EXIT_CODES_HELP: &str =
    "Exit codes: 0 done; 1 failed at run time; 64 wrong command line; 78 wrong configuration.";

/// Why a command ends without success: an exit code, and a line for each thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// [`EXIT_FAILED`], [`EXIT_USAGE`] or [`EXIT_CONFIG`].
    pub code: u8,
    /// What is wrong, each with its place and its remedy. May be empty when all has been said already.
    pub messages: Vec<String>,
}

impl Failure {
    /// Something failed at run time.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self {
            code: EXIT_FAILED,
            messages: vec![message.to_string()],
        }
    }

    /// The command line is wrong.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self {
            code: EXIT_USAGE,
            messages: vec![message.to_string()],
        }
    }

    /// The configuration is wrong, in one place.
    pub fn config(message: impl fmt::Display) -> Self {
        Self {
            code: EXIT_CONFIG,
            messages: vec![message.to_string()],
        }
    }

    /// The configuration is wrong, in all these places.
    pub fn configs(messages: Vec<String>) -> Self {
        Self {
            code: EXIT_CONFIG,
            messages,
        }
    }
}

/// The whole of a binary's `main`: parses the command line, runs the command, prints what failed.
///
/// `run` returns the exit code of a command that did its work (a coordinator with `--fail-fast` ends with 1
/// although nothing is wrong with it).
pub fn main<P: Parser>(run: impl FnOnce(P) -> Result<u8, Failure>) -> ExitCode {
    let arguments = match P::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are asked for: standard output, success. A closed pipe ends them quietly.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let name = P::command().get_name().to_owned();
            let mut stderr = std::io::stderr().lock();
            for message in &failure.messages {
                // When standard error is gone there is nobody left to tell.
                let _ = writeln!(stderr, "{name}: {message}");
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Writes `text` to standard output. A reader that went away (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::failed(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

/// The time in milliseconds since 1970: what outlives a process, and what people and other hosts understand.
#[expect(
    clippy::disallowed_methods,
    reason = "no other clock is shared by hosts, or outlives a file"
)]
pub fn unix_milliseconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Runs `future` on this thread: the runtime of every binary of this package.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let output = runtime.block_on(future);
    // Dropping the runtime would wait for threads that nobody can wake, such as a lookup of a name with a dead
    // DNS: a process that is told to end must end.
    runtime.shutdown_background();
    Ok(output)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_end_of_the_runtime_waits_for_no_blocked_thread() {
        let (free, blocked) = std::sync::mpsc::channel::<()>();
        super::block_on(async {
            tokio::task::spawn_blocking(move || blocked.recv());
        })
        .unwrap();
        drop(free);
    }
}
