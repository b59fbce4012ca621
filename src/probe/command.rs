//! A program as a check: exit code 0 is healthy.
//!
//! **Promise.** It is started without a shell, in a process group of its own, with no more environment than it is given. When
//! the attempt ends, however it does (an exit, the deadline, a future that is dropped), its whole group is killed, and the
//! program is reaped. However much it prints, only its last line is kept. One run at a time: where a killed one does not go
//! away, because it waits for a disk, the next attempt waits for its end and says so.
//!
//! **Not guaranteed.** A process that left its group is not followed. When we are killed by SIGKILL, the program itself ends
//! with us (PR_SET_PDEATHSIG), its children do not: a service manager ends those, by the control group.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::fault::Fault;
use super::verdict::quoted;
use crate::units::processes::{in_own_group, signal_group};

/// The most that a program may print: whoever prints more is broken, and would keep us busy until the deadline.
const OUTPUT_MAX_BYTES: usize = 1 << 20;
/// The most of a line that is kept.
const LINE_MAX_BYTES: usize = 1024;
/// The thread that waits for a program calls a few functions of the kernel.
const STACK_BYTES: usize = 128 << 10;

/// What is run.
pub(super) struct Program {
    argv: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    /// A run that an earlier attempt did not see the end of.
    pending: Option<Run>,
}

impl Program {
    /// `argv` is the program and its arguments, `environment` all that it gets to see.
    pub(super) fn new(argv: Vec<String>, environment: Vec<(OsString, OsString)>) -> Self {
        Self {
            argv,
            environment,
            pending: None,
        }
    }

    pub(super) async fn attempt(&mut self, deadline: Instant) -> Result<(), Fault> {
        if let Some(earlier) = &mut self.pending {
            if timeout_at(deadline, earlier.ended()).await.is_err() {
                return Err(Fault::said(
                    "the run before was killed and does not end: it waits where no signal reaches it, look at its disk",
                ));
            }
            self.pending = None;
        }
        let cannot = |error: io::Error| {
            Fault::said(format!(
                "cannot be started: {}: check the path, and that this user may run it",
                quoted(&error.to_string())
            ))
        };
        let (run, output) = Run::start(self.command()).map_err(cannot)?;
        // An attempt that is dropped leaves to the next one what to wait for.
        let run = self.pending.insert(run);
        let _killed = KilledWhenDropped(Arc::clone(&run.process));
        let mut last = LastLine::default();
        let ended = tokio::select! {
            ended = timeout_at(deadline, run.ended()) => ended,
            flood = last.follow(&output) => return Err(flood),
        };
        let Ok(ended) = ended else {
            last.rest(&output);
            return Err(Fault::said(format!(
                "timed out, and was killed with all that it had started{last}: see why it does not end by itself"
            )));
        };
        self.pending = None;
        last.rest(&output);
        let status = ended.map_err(cannot)?;
        if status.success() {
            return Ok(());
        }
        Err(Fault::said(match (status.code(), status.signal()) {
            (None, Some(signal)) => {
                let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
                format!("it was killed by signal {signal} ({name}){last}")
            }
            (code, _) => format!("it ended with exit code {}{last}", code.unwrap_or(-1)),
        }))
    }

    fn command(&self) -> Command {
        let mut argv = self.argv.iter();
        let mut command = Command::new(argv.next().map(String::as_str).unwrap_or_default());
        command.args(argv).current_dir("/").stdin(Stdio::null());
        in_own_group(&mut command, Some(Signal::SIGKILL));
        command.env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// One run of the program, which a thread of its own starts, waits for and reaps: a program on a disk that hangs is not
/// started until the disk goes on, and the daemon has other things to do.
struct Run {
    process: Arc<Process>,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Run {
    fn start(mut command: Command) -> io::Result<(Self, Receiver)> {
        let (output, input) = io::pipe()?;
        let output = Receiver::from_owned_fd(OwnedFd::from(output))?;
        command.stdout(input.try_clone()?).stderr(input);
        let process = Arc::new(Process(Mutex::new(State::Starting)));
        let (tell, ended) = oneshot::channel();
        let its = Arc::clone(&process);
        let thread = std::thread::Builder::new()
            .name("check".to_owned())
            .stack_size(STACK_BYTES);
        thread.spawn(move || {
            // Nobody listens where the whole check is gone.
            let _ = tell.send(its.run(command));
        })?;
        Ok((Self { process, ended }, output))
    }

    /// Waits for the end. May be called again where it was not seen.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        (&mut self.ended)
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread that runs it has ended")))
    }
}

/// A process that can be killed as long as it is not reaped: its number may be another's after that.
struct Process(Mutex<State>);

enum State {
    Starting,
    /// To be killed as soon as it runs.
    Unwanted,
    Running(i32),
    Gone,
}

impl Process {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Kills the whole group.
    fn kill(&self) {
        self.with(|state| match *state {
            State::Starting => *state = State::Unwanted,
            State::Running(group) => kill_group(group),
            State::Unwanted | State::Gone => {}
        });
    }

    fn run(&self, mut command: Command) -> io::Result<ExitStatus> {
        let mut child = command.spawn()?;
        // Its ends of the pipe, which we would read from for ever.
        drop(command);
        self.wait(&mut child)
    }

    /// Waits for the program, kills what it leaves, and reaps it.
    fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let group = i32::try_from(child.id()).map_err(io::Error::other)?;
        self.with(|state| {
            if matches!(state, State::Unwanted) {
                kill_group(group);
            }
            *state = State::Running(group);
        });
        // As long as the dead leader is not reaped, nobody else can be given the number of its group. Other errors are
        // not about the wait: nix has no word for a death by a realtime signal.
        let leader = Pid::from_raw(group);
        while waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        self.with(|state| {
            kill_group(group);
            *state = State::Gone;
        });
        child.wait()
    }
}

fn kill_group(group: i32) {
    if let Err(error) = signal_group(group, SIGKILL) {
        tracing::warn!(group, %error, "cannot kill the processes of a check");
    }
}

struct KilledWhenDropped(Arc<Process>);

impl Drop for KilledWhenDropped {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// The last line of an output that is not blank. `Display` is nothing, or `: "the line"`.
#[derive(Default)]
struct LastLine {
    whole: Vec<u8>,
    begun: Vec<u8>,
    bytes: usize,
}

impl LastLine {
    /// Reads on and on; ends only where there is too much.
    async fn follow(&mut self, output: &Receiver) -> Fault {
        let mut part = [0; 4096];
        while self.bytes <= OUTPUT_MAX_BYTES {
            let read = match output.readable().await {
                Ok(()) => output.try_read(&mut part),
                Err(error) => Err(error),
            };
            match read {
                Ok(count @ 1..) => self.push(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Closed: the end of the program is what tells.
                Ok(0) | Err(_) => match pending::<Infallible>().await {},
            }
        }
        Fault::said(format!("it prints without end{self}: let it print one line"))
    }

    /// Reads what is there already. Not by tokio, which may not have heard of it yet.
    fn rest(&mut self, output: &Receiver) {
        let mut part = [0; 4096];
        while self.bytes <= OUTPUT_MAX_BYTES
            && let Ok(count @ 1..) = nix::unistd::read(output, &mut part)
        {
            self.push(&part[..count]);
        }
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes += part.len();
        for &byte in part {
            if byte != b'\n' {
                if self.begun.len() < LINE_MAX_BYTES {
                    self.begun.push(byte);
                }
            } else if self.begun.trim_ascii().is_empty() {
                self.begun.clear();
            } else {
                self.whole = std::mem::take(&mut self.begun);
            }
        }
    }
}

impl fmt::Display for LastLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self.begun.trim_ascii() {
            [] => &self.whole,
            begun => begun,
        };
        if line.is_empty() {
            return Ok(());
        }
        write!(f, ": {:?}", quoted(&String::from_utf8_lossy(line)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_run_that_cannot_be_killed_is_waited_for_and_no_other_is_started() {
        let argv = ["sh", "-c", "exit 0"].map(str::to_owned).to_vec();
        let path = std::env::var_os("PATH").unwrap();
        let mut program = Program::new(argv, vec![("PATH".into(), path)]);
        let (end, ended) = oneshot::channel();
        program.pending = Some(Run {
            process: Arc::new(Process(Mutex::new(State::Gone))),
            ended,
        });
        for _ in 0..2 {
            let fault = program.attempt(Instant::now()).await.unwrap_err();
            assert!(fault.to_string().contains("does not end"), "{fault}");
        }
        end.send(Ok(ExitStatus::from_raw(SIGKILL))).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        program.attempt(later).await.unwrap();
        assert!(program.pending.is_none());
    }

    #[test]
    fn a_process_that_is_unwanted_before_it_runs_is_killed_when_it_does() {
        let process = Process(Mutex::new(State::Starting));
        process.kill();
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do sleep 1000; done"]);
        in_own_group(&mut command, Some(Signal::SIGKILL));
        let status = process.run(command).unwrap();
        assert_eq!(status.signal(), Some(SIGKILL));
        // Its number may be another's now.
        process.kill();
    }
}
