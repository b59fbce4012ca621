//! `io-guardian demo`: told to its end, and ended in its midst. Whatever happens, nothing of it is left.
//!
//! Each demo gets a folder of its own as TMPDIR. What belongs to it is what names that folder: its command line, its
//! working folder or its environment.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

struct Demo {
    child: Child,
    /// Lives as long as the demo: what is found in it afterwards was left behind.
    folder: tempfile::TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_io-guardian"))
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", folder.path())
            // A signal to us is not for the demo.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Reads on until a line holds `text`; returns what was read.
    fn read_until(&mut self, text: &str) -> String {
        let mut stdout = BufReader::new(self.child.stdout.take().unwrap());
        let mut all = String::new();
        loop {
            let from = all.len();
            if stdout.read_line(&mut all).unwrap() == 0 {
                panic!("the demo ended before {text:?}:\n{all}\n{}", self.complaints());
            }
            if all[from..].contains(text) {
                // The rest goes on being read, so that the demo does not end for want of a reader.
                std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
                return all;
            }
        }
    }

    fn complaints(&mut self) -> String {
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// What is left of it now.
    fn left(&self) -> Vec<String> {
        let folder = self.folder.path();
        let files = std::fs::read_dir(folder).unwrap().flatten();
        let mut left: Vec<_> = files.map(|file| file.path().display().to_string()).collect();
        left.extend(processes_of(folder));
        left
    }

    async fn nothing_is_left(&self, within: Duration) {
        let until = Instant::now() + within;
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left behind: {left:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Processes whose command line, environment or working folder names `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let us = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            pid.parse::<u32>().ok().filter(|_| pid != us)?;
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let place = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let about = format!(
                "{command} {} {}",
                String::from_utf8_lossy(&read("environ")),
                place.display()
            );
            about.contains(folder).then(|| format!("{pid}: {command}"))
        })
        .collect()
}

async fn told_to_its_end(arguments: &[&str]) -> String {
    let mut demo = Demo::start(arguments);
    let mut told = String::new();
    demo.child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    let complaints = demo.complaints();
    let status = demo.child.wait().unwrap();
    assert!(status.success(), "{status}\n{told}\n{complaints}");
    assert_eq!(complaints, "");
    assert!(
        told.contains("Connections left: 0, says postgres; 0, says redis"),
        "{told}"
    );
    assert!(told.contains("shop lost its connection to postgres"), "{told}");
    assert!(told.contains("all 5 dependents run again"), "{told}");
    assert!(
        told.lines().last().unwrap().starts_with("It worked, in "),
        "{told}"
    );
    // At once: a demo that has ended has nothing that still ends.
    assert_eq!(demo.left(), Vec::<String>::new());
    told
}

#[tokio::test]
async fn the_story_is_told_to_its_end_and_nothing_is_left() {
    told_to_its_end(&[]).await;
}

#[tokio::test]
async fn stand_ins_tell_the_same_story_and_say_what_they_are() {
    let told = told_to_its_end(&["--stand-ins"]).await;
    assert_eq!(
        told.matches("a built-in STAND-IN, because you asked for it")
            .count(),
        2,
        "{told}"
    );
}

#[tokio::test]
async fn an_interrupt_at_any_moment_leaves_nothing() {
    for (moment, signal) in [
        ("Three guardians, five dependents", Signal::SIGINT),
        ("4. Drain", Signal::SIGINT),
        ("7. postgres dies", Signal::SIGTERM),
    ] {
        let mut demo = Demo::start(&[]);
        demo.read_until(moment);
        demo.signal(signal);
        let status = demo.child.wait().unwrap();
        let complaints = demo.complaints();
        assert_eq!(status.code(), Some(1), "{moment}: {complaints}");
        assert!(
            complaints.contains(&format!("{signal} came")),
            "{moment}: {complaints}"
        );
        assert_eq!(demo.left(), Vec::<String>::new(), "{moment}");
    }
}

#[tokio::test]
async fn kill_9_leaves_nothing_after_a_moment() {
    for moment in ["1. The databases come up", "app3      ● reports active"] {
        let mut demo = Demo::start(&[]);
        demo.read_until(moment);
        assert!(!demo.left().is_empty());
        demo.signal(Signal::SIGKILL);
        demo.child.wait().unwrap();
        demo.nothing_is_left(Duration::from_secs(60)).await;
    }
}
