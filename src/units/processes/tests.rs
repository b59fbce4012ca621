//! With real processes: shell scripts that behave well and badly.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::protocol::UnitReport;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Processes whose scripts can tell us things by way of files in a folder of their own.
struct Bench {
    folder: tempfile::TempDir,
    units: Processes,
}

const LONG: Duration = Duration::from_secs(20);

impl Bench {
    fn new(scripts: &[(&str, &str)]) -> Self {
        Self::with(scripts, Duration::from_secs(10), Restart::Never)
    }

    fn with(scripts: &[(&str, &str)], stop_timeout: Duration, restart: Restart) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mark = format!(
            "MARK={}-{}-end",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let (key, value) = mark.split_once('=').unwrap();
        let spec = |&(name, script): &(&str, &str)| ProcessSpec {
            name: name.to_owned(),
            program: PathBuf::from("/bin/sh"),
            command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            policy: Policy {
                stop_signal: nix::libc::SIGTERM,
                stop_timeout,
                restart,
            },
            working_directory: Some(folder.path().to_owned()),
            environment: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        };
        let specs = scripts.iter().map(spec).collect();
        let options = Options {
            only: Some(mark.clone()),
        };
        let units = Processes::start_with("io-databases.target".to_owned(), specs, options).unwrap();
        Self { folder, units }
    }

    async fn undrain(&self) -> Settled {
        self.units.undrain(Instant::now() + LONG).await.unwrap()
    }

    async fn drain(&self) -> Settled {
        self.units.drain(Instant::now() + LONG).await.unwrap()
    }

    async fn state(&self, name: &str) -> UnitReport {
        let units = self.units.survey().await.unwrap().units;
        units.into_iter().find(|u| u.name == name).unwrap()
    }

    /// Waits until a unit has this state.
    async fn until(&self, name: &str, state: &str) {
        let mut snapshots = self.units.snapshots.clone();
        let there = |s: &Snapshot| s.units.iter().any(|u| u.name == name && u.state == state);
        tokio::time::timeout(LONG, snapshots.wait_for(there))
            .await
            .unwrap()
            .unwrap();
    }

    /// Waits until a script has written a whole line into a file, and returns it as a number.
    async fn number(&self, file: &str) -> i32 {
        let path = self.folder.path().join(file);
        let read = async {
            loop {
                if let Ok(text) = std::fs::read_to_string(&path)
                    && let Some(line) = text.strip_suffix('\n')
                {
                    return line.trim().parse().unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, read).await.unwrap()
    }
}

/// Whether one of its threads runs. The dead that nobody has reaped yet do not.
fn runs(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let stats = threads.map_while(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    stats
        .into_iter()
        .any(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// A shell that is really there, and ends at SIGTERM.
const GOOD: &str = "echo $$ > pid; exec sleep 1000";

#[tokio::test]
async fn undrain_starts_and_drain_stops() {
    let bench = Bench::new(&[("good", GOOD)]);
    assert_eq!(bench.units.survey().await.unwrap().target_state, "inactive");
    let up = bench.undrain().await;
    assert_eq!(up.message, "io-databases.target and 1 dependent are started");
    assert_eq!(up.status, Status::Ok);
    let pid = bench.number("pid").await;
    assert!(runs(pid));
    assert_eq!(bench.units.survey().await.unwrap().target_state, "active");
    assert_eq!(bench.undrain().await.status, Status::Ok, "again changes nothing");
    assert_eq!(bench.state("good").await.state, "active");

    let down = bench.drain().await;
    assert_eq!(down.message, "io-databases.target and 1 dependent are stopped");
    assert_eq!(
        (down.status, down.units[0].state.as_str()),
        (Status::Ok, "inactive")
    );
    assert!(down.units[0].elapsed_ms.is_some());
    assert!(!runs(pid));
    assert_eq!(
        bench.drain().await.units[0].elapsed_ms,
        None,
        "it was at rest already"
    );
    bench.units.close().await;
    assert!(matches!(bench.units.survey().await, Err(UnitsError::Ending)));
    assert!(matches!(
        bench.units.drain(Instant::now() + LONG).await,
        Err(UnitsError::Ending)
    ));
}

#[tokio::test]
async fn one_that_ignores_the_signal_is_killed_and_named() {
    let script = "trap '' TERM; echo $$ > pid; while :; do sleep 1; done";
    let bench = Bench::with(&[("deaf", script)], Duration::from_millis(200), Restart::Never);
    bench.undrain().await;
    let pid = bench.number("pid").await;
    let down = bench.drain().await;
    assert_eq!(down.status, Status::Ok);
    assert!(
        down.message.ends_with("stopped, but failed: deaf (timeout)"),
        "{}",
        down.message
    );
    assert!(!runs(pid));
}

#[tokio::test]
async fn past_the_deadline_the_answer_names_what_still_moves() {
    let script = "trap '' TERM; echo $$ > pid; while :; do sleep 1; done";
    let bench = Bench::new(&[("deaf", script), ("good", "exec sleep 1000")]);
    bench.undrain().await;
    let pid = bench.number("pid").await;
    let down = bench
        .units
        .drain(Instant::now() + Duration::from_millis(300))
        .await
        .unwrap();
    assert_eq!(down.status, Status::Error);
    assert!(
        down.message.contains("1 of 2 units still not stopped"),
        "{}",
        down.message
    );
    assert!(down.message.contains("deaf (deactivating)"), "{}", down.message);
    assert!(down.message.ends_with(SEE_LOG), "{}", down.message);
    assert!(runs(pid));
    spawn::signal_group(pid, nix::libc::SIGKILL).unwrap();
    assert_eq!(bench.drain().await.status, Status::Ok);
}

#[tokio::test]
async fn one_that_fails_while_it_stops_is_stopped_and_named() {
    let script = "trap 'exit 1' TERM; echo $$ > pid; while :; do sleep 0.05; done";
    let bench = Bench::new(&[("sulky", script)]);
    bench.undrain().await;
    bench.number("pid").await;
    let down = bench.drain().await;
    assert_eq!(down.status, Status::Ok);
    assert!(
        down.message.ends_with("stopped, but failed: sulky (exit-code)"),
        "{}",
        down.message
    );
    assert_eq!(bench.undrain().await.status, Status::Ok, "failed is no dead end");
    bench.drain().await;
}

#[tokio::test]
async fn a_grandchild_that_ignores_the_signal_holds_the_answer_back_until_it_is_gone() {
    let script = "sh -c \"trap '' TERM; echo \\$\\$ > pid; while :; do sleep 1; done\" & sleep 1000";
    let bench = Bench::with(&[("parent", script)], Duration::from_millis(300), Restart::Never);
    bench.undrain().await;
    let grandchild = bench.number("pid").await;
    let down = bench.drain().await;
    assert_eq!(down.status, Status::Ok);
    assert!(!runs(grandchild));
    assert!(down.message.ends_with("parent (timeout)"), "{}", down.message);
}

/// Its first thread ends, as a zombie; the other one ignores SIGTERM and then tells the process id. The alarm is for
/// a test that fails: it would stay behind.
const HALF: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void *other(void *nothing) {
    char path[64], stat[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)getpid());
    while (!strstr(stat, ") Z ")) {
        FILE *file = fopen(path, "r");
        if (file) {
            if (!fgets(stat, sizeof stat, file)) stat[0] = 0;
            fclose(file);
        }
        usleep(1000);
    }
    FILE *file = fopen("pid", "w");
    fprintf(file, "%d\n", (int)getpid());
    fclose(file);
    for (;;) pause();
    return nothing;
}

int main(void) {
    pthread_t thread;
    alarm(60);
    signal(SIGTERM, SIG_IGN);
    if (pthread_create(&thread, NULL, other, NULL)) return 1;
    pthread_exit(NULL);
}
"#;

#[tokio::test]
async fn a_process_whose_first_thread_ended_runs_for_as_long_as_another_does() {
    let bench = Bench::with(
        &[("parent", "./half & sleep 1000")],
        Duration::from_millis(300),
        Restart::Never,
    );
    std::fs::write(bench.folder.path().join("half.c"), HALF).unwrap();
    let compiler = std::process::Command::new("cc")
        .args(["-pthread", "-o", "half", "half.c"])
        .current_dir(bench.folder.path())
        .status();
    match compiler {
        Ok(status) => assert!(status.success(), "{status}"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = "a_process_whose_first_thread_ended_runs_for_as_long_as_another_does";
            writeln!(std::io::stdout(), "SKIP {name}: no C compiler").unwrap();
            return;
        }
        Err(error) => panic!("{error}"),
    }
    bench.undrain().await;
    let half = bench.number("pid").await;
    assert!(runs(half));
    let down = bench.drain().await;
    assert_eq!(down.status, Status::Ok);
    assert!(!runs(half));
    assert!(down.message.ends_with("parent (timeout)"), "{}", down.message);
}

#[tokio::test]
async fn a_daemon_that_left_its_group_is_found_and_stopped() {
    let script = "setsid sh -c 'echo $$ > pid; exec sleep 1000' & while ! [ -s pid ]; do sleep 0.01; done";
    let bench = Bench::new(&[("starter", script)]);
    bench.undrain().await;
    let daemon = bench.number("pid").await;
    bench.until("starter", "inactive").await;
    assert!(runs(daemon));
    let down = bench.drain().await;
    assert_eq!(down.status, Status::Ok, "{}", down.message);
    assert!(!runs(daemon));
}

#[tokio::test]
async fn a_daemon_that_ignores_the_signal_is_killed() {
    let script = "setsid sh -c 'trap \"\" TERM; echo $$ > pid; while :; do sleep 1; done' &
                  while ! [ -s pid ]; do sleep 0.01; done; exec sleep 1000";
    let bench = Bench::with(&[("starter", script)], Duration::from_millis(100), Restart::Never);
    bench.undrain().await;
    let daemon = bench.number("pid").await;
    let down = bench.drain().await;
    assert_eq!(down.status, Status::Ok, "{}", down.message);
    assert!(!runs(daemon));
}

#[tokio::test]
async fn a_crash_is_followed_by_a_restart() {
    let script = "if [ -e once ]; then echo $$ > second; exec sleep 1000; fi; touch once; exit 3";
    let bench = Bench::with(&[("shaky", script)], Duration::from_secs(10), Restart::OnFailure);
    bench.undrain().await;
    bench.until("shaky", "activating").await;
    assert_eq!(bench.state("shaky").await.result.as_deref(), Some("exit-code"));
    let second = bench.number("second").await;
    assert!(runs(second));
    assert_eq!(bench.state("shaky").await.state, "active");
    bench.drain().await;
    assert!(!runs(second));
}

#[tokio::test]
async fn what_cannot_be_run_is_named_with_the_reason() {
    let bench = Bench::new(&[("good", GOOD)]);
    let mut specs = vec![];
    for name in ["missing", "other"] {
        specs.push(ProcessSpec {
            name: name.to_owned(),
            program: bench.folder.path().join(name),
            command: vec![name.to_owned()],
            policy: Policy {
                stop_signal: 15,
                stop_timeout: LONG,
                restart: Restart::OnFailure,
            },
            working_directory: None,
            environment: BTreeMap::new(),
        });
    }
    let options = Options {
        only: Some("nobody".to_owned()),
    };
    let units = Processes::start_with("t".to_owned(), specs, options).unwrap();
    let up = units.undrain(Instant::now() + LONG).await.unwrap();
    assert_eq!(up.status, Status::Error);
    assert!(
        up.message.contains("did not start: missing (cannot run /"),
        "{}",
        up.message
    );
    assert!(up.message.contains("No such file"), "{}", up.message);
    assert_eq!(
        units.drain(Instant::now() + LONG).await.unwrap().status,
        Status::Ok
    );
}

#[tokio::test]
async fn an_undrain_overtakes_a_drain() {
    let script = "trap 'sleep 0.3; exit 0' TERM; echo $$ > pid; while :; do sleep 0.05; done";
    let bench = Bench::new(&[("slow", script)]);
    bench.undrain().await;
    let first = bench.number("pid").await;
    let drain = bench.units.drain(Instant::now() + LONG);
    let undrain = async {
        bench.until("slow", "deactivating").await;
        bench.undrain().await
    };
    let (down, up) = tokio::join!(drain, undrain);
    let down = down.unwrap();
    assert_eq!(down.status, Status::Error);
    assert!(down.message.contains("an undrain came"), "{}", down.message);
    assert_eq!(up.status, Status::Ok, "{}", up.message);
    assert!(!runs(first));
    assert_eq!(bench.state("slow").await.state, "active");
    bench.units.close().await;
}

#[tokio::test]
async fn closing_stops_everything() {
    let bench = Bench::new(&[("good", GOOD)]);
    bench.undrain().await;
    let pid = bench.number("pid").await;
    bench.units.close().await;
    assert!(!runs(pid));
    bench.units.close().await;
}

#[tokio::test]
async fn children_get_no_secrets_and_no_descriptors() {
    let script = "ls -l /proc/$$/fd > fds; env > environment; echo 1 > done; exec sleep 1000";
    let bench = Bench::new(&[("good", script)]);
    let file = std::fs::File::create(bench.folder.path().join("not-for-children")).unwrap();
    let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(&file, flags).unwrap();
    bench.undrain().await;
    bench.number("done").await;
    let descriptors = std::fs::read_to_string(bench.folder.path().join("fds")).unwrap();
    assert!(
        descriptors.contains("/dev/null") && !descriptors.contains("not-for-children"),
        "{descriptors}"
    );
    let environment = std::fs::read_to_string(bench.folder.path().join("environment")).unwrap();
    for secret in spawn::OURS {
        assert!(!environment.contains(&format!("{secret}=")), "{environment}");
    }
    bench.drain().await;
}
