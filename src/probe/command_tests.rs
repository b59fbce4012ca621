//! Commands as checks: what their end means, and that nothing of them is left.
//!
//! A pipe with a name tells that a process has ended: its reader sees the end when nobody holds the other end any more.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::{OpenOptions, Receiver};
use tokio::time::{Instant, timeout};

use super::command::Program;
use super::{Check, CommandCheck};

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn environment() -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    std::env::var_os("PATH")
        .map(|path| ("PATH".into(), path))
        .into_iter()
        .collect()
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

fn check(argv: Vec<String>) -> Check {
    let environment = environment();
    Check::command(CommandCheck { argv, environment }).unwrap()
}

async fn run(script: &str) -> Result<(), String> {
    check(shell(script)).attempt(far()).await
}

/// A pipe in a folder of its own.
struct Named {
    _folder: TempDir,
    path: PathBuf,
}

impl Named {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        Self {
            _folder: folder,
            path,
        }
    }

    fn reader(&self) -> BufReader<Receiver> {
        BufReader::new(OpenOptions::new().open_receiver(&self.path).unwrap())
    }

    fn shown(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

async fn line(reader: &mut BufReader<Receiver>) -> String {
    let mut line = String::new();
    timeout(Duration::from_secs(60), reader.read_line(&mut line))
        .await
        .unwrap()
        .unwrap();
    line.trim().to_owned()
}

/// Waits until nobody holds the other end.
async fn end(mut reader: BufReader<Receiver>) {
    let mut rest = Vec::new();
    timeout(Duration::from_secs(60), reader.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn exit_code_0_is_healthy_and_all_else_is_told_with_its_last_line() {
    run("exit 0").await.unwrap();
    run("echo noise; echo noise >&2").await.unwrap();
    for (script, line) in [
        ("exit 3", "it ended with exit code 3"),
        (
            "echo one; echo two; exit 1",
            r#"it ended with exit code 1: "two""#,
        ),
        (
            "echo out; echo no such >&2; exit 2",
            r#"it ended with exit code 2: "no such""#,
        ),
        (
            "printf 'no end of line'; exit 1",
            r#"it ended with exit code 1: "no end of line""#,
        ),
        (
            "echo last; echo; echo '  '; exit 1",
            r#"it ended with exit code 1: "last""#,
        ),
        (
            r"printf 'a\033[31mb\n'; exit 1",
            r#"it ended with exit code 1: "a [31mb""#,
        ),
        ("kill -9 $$", "it was killed by signal 9 (SIGKILL)"),
        ("kill -40 $$", "it was killed by signal 40 (unknown)"),
    ] {
        assert_eq!(run(script).await.unwrap_err(), line, "{script}");
    }
    let long = run("head -c 100000 /dev/zero | tr '\\0' x; exit 1")
        .await
        .unwrap_err();
    assert!(long.len() < 300 && long.ends_with("xx…\""), "{long}");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told() {
    for program in ["/no/such/program", "no-such-program", "/dev/null", "/"] {
        let line = check(vec![program.to_owned()]).attempt(far()).await.unwrap_err();
        assert!(line.starts_with("cannot be started: "), "{line}");
    }
    for (argv, text) in [
        (vec![], "names no program"),
        (vec![String::new()], "names no program"),
        (vec!["a".to_owned(), "b\0".to_owned()], "a NUL byte"),
    ] {
        let environment = Vec::new();
        let line = Check::command(CommandCheck { argv, environment })
            .unwrap_err()
            .to_string();
        assert!(line.contains(text), "{line}");
    }
}

#[tokio::test]
async fn it_gets_its_arguments_and_the_environment_that_it_is_given_and_nothing_else() {
    let argv = [
        "sh",
        "-c",
        "echo \"$1|$*|$(pwd)|$(env | grep -vE '^(PWD|SHLVL|_|PATH)=')\"; exit 1",
        "x",
        "a b",
        "$c",
    ];
    let mut environment = environment();
    environment.push(("GIVEN".into(), "1".into()));
    let argv = argv.map(str::to_owned).to_vec();
    let mut check = Check::command(CommandCheck { argv, environment }).unwrap();
    let line = check.attempt(far()).await.unwrap_err();
    assert!(line.ends_with(r#": "a b|a b $c|/|GIVEN=1""#), "{line}");
}

#[tokio::test]
async fn the_deadline_kills_the_whole_group() {
    let pipe = Named::new();
    let mut reader = pipe.reader();
    let script = format!(
        "exec 3>{}; sleep 1000 & echo waiting; echo here >&3; wait",
        pipe.shown()
    );
    let mut check = check(shell(&script));
    let (found, ()) = tokio::join!(check.attempt(far()), async {
        assert_eq!(line(&mut reader).await, "here");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(61)).await;
        tokio::time::resume();
        end(reader).await;
    });
    assert_eq!(
        found.unwrap_err(),
        "timed out, and was killed with all that it had started: \"waiting\": see why it does not end by itself"
    );
}

#[tokio::test]
async fn an_attempt_that_is_dropped_leaves_nothing_and_the_next_one_waits_for_its_end() {
    let pipe = Named::new();
    let mut reader = pipe.reader();
    let script = format!("exec 3>{}; sleep 1000 & echo $$ >&3; wait", pipe.shown());
    let mut program = Program::new(shell(&script), environment());
    let leader = tokio::select! {
        found = program.attempt(far()) => panic!("{found:?}"),
        leader = line(&mut reader) => Pid::from_raw(leader.parse().unwrap()),
    };
    end(reader).await;
    // Over before it is begun: but it has seen the end of the one before, which is reaped then.
    let mut reader = pipe.reader();
    let second = tokio::select! {
        found = program.attempt(far()) => panic!("{found:?}"),
        second = line(&mut reader) => second,
    };
    assert_eq!(kill(leader, None), Err(Errno::ESRCH));
    assert_ne!(second, leader.to_string());
    drop(program);
    end(reader).await;
}

#[tokio::test]
async fn what_a_healthy_program_leaves_in_its_group_is_killed() {
    let pipe = Named::new();
    let mut reader = pipe.reader();
    let script = format!("exec 3>{}; echo here >&3; sleep 1000 & exit 0", pipe.shown());
    let (found, here) = tokio::join!(run(&script), line(&mut reader));
    assert_eq!((found, here.as_str()), (Ok(()), "here"));
    end(reader).await;
}

#[tokio::test]
async fn what_has_left_the_group_is_not_waited_for() {
    let pipe = Named::new();
    // It holds the output open until it has read a line.
    let script = format!("setsid sh -c 'read line <{}' & echo done; exit 1", pipe.shown());
    assert_eq!(
        run(&script).await.unwrap_err(),
        r#"it ended with exit code 1: "done""#
    );
    // Opened for both, so that this waits for nobody.
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe.path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"go\n"))
        .unwrap();
}

#[tokio::test]
async fn who_prints_without_end_is_stopped() {
    let line = run("while :; do echo no end; done").await.unwrap_err();
    assert!(
        line.starts_with("it prints without end: \"") && line.ends_with("\": let it print one line"),
        "{line}"
    );
    let line = run("cat /dev/zero").await.unwrap_err();
    assert!(line.starts_with("it prints without end"), "{line}");
}

#[tokio::test]
async fn a_hundred_runs_leave_no_descriptor() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut check = check(shell("exit 0"));
    check.attempt(far()).await.unwrap();
    let before = open();
    for _ in 0..100 {
        check.attempt(far()).await.unwrap();
    }
    // Other tests open theirs meanwhile.
    assert!(open() < before + 90, "{} then {}", before, open());
}
