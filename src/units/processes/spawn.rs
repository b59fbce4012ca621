//! The edge to the kernel: starting a process in its own group, signalling, waiting, looking around.
//!
//! Everything here returns at once. Nothing here decides.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::config::ProcessSpec;
use super::core::{Ending, Stray};

/// What a guardian is told through its environment and its children must not hear: who they would answer to, and
/// where the secrets are.
pub(super) const OURS: [&str; 9] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "CREDENTIALS_DIRECTORY",
    "GUARDIAN_PSK_FILE",
    "IO_GUARDIAN_PSK",
];

/// Starts a process in a group of its own, and returns the number of both. When it returns, the program runs.
pub(super) fn spawn(spec: &ProcessSpec) -> io::Result<i32> {
    let mut command = Command::new(&spec.program);
    if let Some(name) = spec.command.first() {
        command.arg0(name);
    }
    command.args(spec.command.iter().skip(1)).stdin(Stdio::null());
    if let Some(folder) = &spec.working_directory {
        command.current_dir(folder);
    }
    in_own_group(&mut command, Some(Signal::SIGKILL));
    command.envs(&spec.environment);
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// Makes `command` lead a process group of its own, get `on_our_death` when the thread that spawns it ends, and
/// inherit neither a descriptor but the standard ones, nor our ambient capabilities, nor what a service manager told us.
pub fn in_own_group(command: &mut Command, on_our_death: Option<Signal>) {
    command.process_group(0);
    for variable in OURS {
        command.env_remove(variable);
    }
    let parent = Pid::this();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(on_our_death)?;
        // Too late when the parent died before the line above.
        if Pid::parent() != parent {
            return Err(Errno::ESRCH.into());
        }
        close_on_exec();
        keep_capabilities_to_ourselves();
        Ok(())
    };
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec only async-signal-safe calls are allowed (signal-safety(7)). `prepare` makes
    // four system calls (prctl twice, getppid, close_range), and neither allocates, locks nor panics.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Makes `command` lead a session of its own, out of reach of the terminal's signals, and inherit no descriptor but
/// the standard ones. It outlives us.
pub(super) fn in_own_session(command: &mut Command) {
    let prepare = || {
        nix::unistd::setsid()?;
        close_on_exec();
        Ok(())
    };
    #[allow(unsafe_code)]
    // SAFETY: as above: two system calls (setsid, close_range), and nothing else.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// What a unit gives us as ambient capabilities (CAP_NET_ADMIN, say) is not for what we start.
fn keep_capabilities_to_ourselves() {
    let (all, none): (nix::libc::c_ulong, nix::libc::c_ulong) = (nix::libc::PR_CAP_AMBIENT_CLEAR_ALL as _, 0);
    #[allow(unsafe_code)]
    // SAFETY: prctl(2) with PR_CAP_AMBIENT and PR_CAP_AMBIENT_CLEAR_ALL takes numbers only, the rest of which must be zero.
    unsafe {
        nix::libc::prctl(nix::libc::PR_CAP_AMBIENT, all, none, none, none);
    }
}

/// Marks every descriptor from 3 on as close-on-exec: sockets that a service manager passed us come without that
/// mark. Kernels before 5.11 refuse; there the marks that each opener made have to do.
fn close_on_exec() {
    #[allow(unsafe_code)]
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC only sets a flag of descriptors, and touches no memory.
    unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            3u32,
            u32::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}

/// Sends `signal` to a whole group. A group that is gone is no error.
///
/// # Errors
/// When the kernel refuses, or there is no such signal.
pub fn signal_group(group: i32, signal: i32) -> nix::Result<()> {
    let signal = Signal::try_from(signal)?;
    ignore_gone(killpg(Pid::from_raw(group), signal))
}

/// Sends `signal` to a stray, and to its whole group when it leads one.
pub(super) fn signal_stray(pid: i32, signal: i32) -> nix::Result<()> {
    let signal = Signal::try_from(signal)?;
    let pid = Pid::from_raw(pid);
    if nix::unistd::getpgid(Some(pid)) == Ok(pid) {
        ignore_gone(killpg(pid, signal))
    } else {
        ignore_gone(kill(pid, signal))
    }
}

fn ignore_gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ESRCH) => Ok(()),
        other => other,
    }
}

/// Reaps one child that has ended: of the group `-which` when negative, any child at all for -1, or just `which`.
///
/// Not by nix: its `waitpid` reaps a child that died of a realtime signal and then returns an error for it.
pub(super) fn reap(which: i32) -> Option<(i32, Ending)> {
    let mut status = 0;
    loop {
        #[allow(unsafe_code)]
        // SAFETY: waitpid(2) writes one int to the address that it is given, and `status` is one that lives on.
        let pid = unsafe { nix::libc::waitpid(which, &raw mut status, nix::libc::WNOHANG) };
        match pid {
            -1 if Errno::last() == Errno::EINTR => {}
            ..=0 => return None,
            _ => break Some((pid, ending(ExitStatus::from_raw(status)))),
        }
    }
}

fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (None, Some(signal)) => Ending::Killed {
            signal,
            dumped: status.core_dumped(),
        },
        (code, _) => Ending::Exited(code.unwrap_or(-1)),
    }
}

/// Whether nothing of a group runs. The dead that their parent has not reaped do not count: nobody but that parent
/// can make them go away, and they hold nothing.
pub(super) fn group_is_empty(group: i32) -> bool {
    if killpg(Pid::from_raw(group), None) == Err(Errno::ESRCH) {
        return true;
    }
    let members: Vec<_> = processes().into_iter().filter(|p| p.group == group).collect();
    !members.is_empty() && members.iter().all(|p| p.dead)
}

/// Children of ours that are in none of `groups`, the dead and `except` left out.
///
/// All of /proc is read: /proc/self/task/*/children may miss some while others end (proc(5)).
pub(super) fn strays(groups: &BTreeSet<i32>, except: &BTreeSet<i32>) -> Vec<Stray> {
    let us = Pid::this().as_raw();
    processes()
        .into_iter()
        .filter(|p| p.parent == us && !p.dead && !groups.contains(&p.group) && !except.contains(&p.pid))
        .map(|p| Stray {
            pid: p.pid,
            name: p.name,
        })
        .collect()
}

/// Whether the environment that a process was started with holds `text`.
pub(super) fn environment_holds(pid: i32, text: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| String::from_utf8_lossy(&environment).contains(text))
}

/// Has the kernel give us the orphans among our descendants: whatever ends, nothing below us gets out of sight.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Reaps all children that have ended; whether one other than `except` still runs.
pub fn children_left(except: i32) -> bool {
    while reap(-1).is_some() {}
    !strays(&BTreeSet::new(), &BTreeSet::from([except])).is_empty()
}

struct Process {
    pid: i32,
    name: String,
    parent: i32,
    group: i32,
    dead: bool,
}

fn processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            parse_stat(&String::from_utf8_lossy(&stat))
        })
        .collect()
}

/// `PID (NAME) STATE PARENT GROUP …`, the number of threads as field 20 (proc(5)). The name may hold anything,
/// brackets and spaces included.
///
/// The state is that of the first thread only: one that called pthread_exit(3) is a zombie while the others go on.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // Fields 6 to 19 lie between. Where the number cannot be read, it runs: a drain must not end too early.
    let threads: Option<u32> = fields.nth(14).and_then(|threads| threads.parse().ok());
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        parent,
        group,
        dead: matches!(state, "Z" | "X" | "x") && threads.is_some_and(|threads| threads <= 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let read = parse_stat("12 (a) S 1 (b)) Z 3 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0").unwrap();
        assert_eq!(
            (read.pid, read.name.as_str(), read.parent, read.group, read.dead),
            (12, "a) S 1 (b)", 3, 4, true)
        );
        assert!(parse_stat("nonsense").is_none());
        assert!(processes().iter().any(|p| p.pid == Pid::this().as_raw()));
    }

    #[test]
    fn the_dead_have_no_thread_that_runs() {
        for (state, threads, dead) in [
            ("Z", "1", true),
            ("X", "0", true),
            ("Z", "2", false),
            ("S", "1", false),
            ("Z", "?", false),
        ] {
            let stat = format!("12 (a) 1) {state} 3 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 77 0");
            assert_eq!(parse_stat(&stat).unwrap().dead, dead, "{stat}");
        }
    }
}
