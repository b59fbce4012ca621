//! `io-guardian serve --units processes`, when it ends well and when it is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(20);

/// A guardian with one process: a shell with a child that ignores SIGTERM, in a group of their own.
struct Guardian {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Guardian {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |file: &str| folder.path().join(file);
        std::fs::write(path("key"), "0123456789abcdef0123456789abcdef").unwrap();
        let script =
            "sh -c 'trap \"\" TERM; echo $$ > deaf; while :; do sleep 1; done' & echo $$ > leader; wait";
        let config = format!(
            "units = 'processes'\n[[process]]\nname = 'family'\ncommand = ['sh', '-c', '''{script}''']\n\
             stop-timeout = '500ms'\nworking-directory = '{}'\n",
            folder.path().display()
        );
        std::fs::write(path("config.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_io-guardian"))
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--config"])
            .arg(path("config.toml"))
            .arg("--psk-file")
            .arg(path("key"))
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map(Result::unwrap)
            .filter(|line| line.contains("listening"))
            .find_map(|line| line.split_once("address=").map(|(_, rest)| rest.to_owned()))
            .unwrap();
        let address = address.split(' ').next().unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address,
            folder,
        }
    }

    fn tell(&self, action: &str) {
        let told = Command::new(env!("CARGO_BIN_EXE_io-coordinator"))
            .args([action, "--hosts", &self.address, "--psk-file"])
            .arg(self.folder.path().join("key"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(told.status.success(), "{told:?}");
    }

    /// The leader and its deaf child, once both run.
    async fn family(&self) -> [i32; 2] {
        let number = async |file: &str| {
            let path = self.folder.path().join(file);
            loop {
                if let Ok(text) = std::fs::read_to_string(&path)
                    && text.ends_with('\n')
                {
                    return text.trim().parse().unwrap();
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        let both = async { [number("leader").await, number("deaf").await] };
        timeout(LONG, both).await.unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

/// The dead that nobody has reaped yet do not run.
fn runs(pid: i32) -> bool {
    std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        .is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_drain_and_an_orderly_end_leave_no_process() {
    let mut guardian = Guardian::start();
    guardian.tell("undrain");
    let family = guardian.family().await;
    guardian.tell("drain");
    assert_eq!(family.map(runs), [false; 2]);

    for file in ["leader", "deaf"] {
        std::fs::remove_file(guardian.folder.path().join(file)).unwrap();
    }
    guardian.tell("undrain");
    let family = guardian.family().await;
    guardian.signal(Signal::SIGTERM);
    assert!(guardian.child.wait().unwrap().success());
    assert_eq!(family.map(runs), [false; 2]);
}

#[tokio::test]
async fn kill_9_of_the_guardian_leaves_no_process() {
    let mut guardian = Guardian::start();
    guardian.tell("undrain");
    let family = guardian.family().await;
    assert_eq!(family.map(runs), [true; 2]);
    guardian.signal(Signal::SIGKILL);
    guardian.child.wait().unwrap();
    let gone = async {
        while family.map(runs) != [false; 2] {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, gone).await.unwrap();
}
