//! The demo's guardians: the real `io-guardian serve`, each with dependents of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::libc::SIGTERM;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStderr;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::children::{Fate, Process, Shelter};
use crate::cli::{Failure, HostPort};
use crate::coordinator::Target;

/// The longest that a guardian may take to listen.
const START_TIME: Duration = Duration::from_secs(10);
/// The longest that a guardian may take to end.
const STOP_TIME: Duration = Duration::from_secs(8);

/// A dependent: its name, what it connects to, and how long it takes to stop.
pub(super) struct Dependent {
    name: &'static str,
    postgres: bool,
    redis: bool,
    goodbye: Option<&'static str>,
}

const fn dependent(
    name: &'static str,
    postgres: bool,
    redis: bool,
    goodbye: Option<&'static str>,
) -> Dependent {
    Dependent {
        name,
        postgres,
        redis,
        goodbye,
    }
}

/// Who guards what.
pub(super) const FLEET: [(&str, &[Dependent]); 3] = [
    (
        "app1",
        &[
            dependent("api", true, true, None),
            dependent("worker", false, true, Some("1200ms")),
        ],
    ),
    (
        "app2",
        &[
            dependent("shop", true, false, Some("600ms")),
            dependent("cache", false, true, None),
        ],
    ),
    ("app3", &[dependent("reports", true, true, None)]),
];

/// How many dependents there are in all.
pub(super) fn dependents() -> usize {
    FLEET.iter().map(|(_, dependents)| dependents.len()).sum()
}

/// How many connections PostgreSQL and Redis see when all dependents run.
pub(super) fn connections() -> [usize; 2] {
    let all = || FLEET.iter().flat_map(|(_, dependents)| *dependents);
    [
        all().filter(|d| d.postgres).count(),
        all().filter(|d| d.redis).count(),
    ]
}

/// What the configuration file of a guardian says.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ConfigFile {
    units: &'static str,
    command_timeout: &'static str,
    process: Vec<ProcessEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ProcessEntry {
    name: &'static str,
    command: Vec<String>,
    stop_timeout: &'static str,
}

/// A guardian that listens.
pub(super) struct Guardian {
    pub(super) target: Target,
    process: Process,
}

impl Guardian {
    /// Starts a guardian in a folder of its own inside of `root`. What its dependents complain of goes to `loud`.
    pub(super) async fn start(
        (name, dependents): (&'static str, &[Dependent]),
        root: &Path,
        key: &Path,
        databases: [&HostPort; 2],
        shelter: &Shelter,
        loud: mpsc::Sender<String>,
    ) -> Result<Self, Failure> {
        let fault = |why: String| Failure::failed(format!("cannot start the guardian of {name}: {why}"));
        let folder = root.join(name);
        let config = folder.join("guardian.toml");
        let text = config_text(dependents, databases).map_err(fault)?;
        std::fs::create_dir(&folder)
            .and_then(|()| std::fs::write(&config, text))
            .map_err(|error| fault(error.to_string()))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--config"])
            .arg(&config)
            .arg("--psk-file")
            .arg(key)
            .arg("--state-dir")
            .arg(&folder)
            .current_dir(&folder)
            // We read its log: it must have the lines that we look for.
            .env("RUST_LOG", "info")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = shelter
            .start(command, Fate::Killed)
            .map_err(|error| fault(error.to_string()))?;
        let log = process.child.stderr.take();
        let log = log.ok_or_else(|| fault("it has no standard error".to_owned()))?;
        let mut log = BufReader::new(log).lines();
        let address = match timeout(START_TIME, listening(&mut log)).await {
            Ok(found) => found.map_err(fault)?,
            Err(_) => {
                return Err(fault(format!(
                    "it does not listen after {} s",
                    START_TIME.as_secs()
                )));
            }
        };
        tokio::spawn(pass_on(name, log, loud));
        Ok(Self {
            target: Target {
                tier: None,
                name: name.to_owned(),
                host: address.host,
                port: address.port.unwrap_or_default(),
            },
            process,
        })
    }

    /// Stops it in order: it stops its dependents first.
    pub(super) async fn stop(self, shelter: &Shelter) -> Result<(), Failure> {
        let name = self.target.name;
        match shelter.stop(self.process, SIGTERM, STOP_TIME).await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure::failed(format!(
                "the guardian of {name} ended badly: {status}"
            ))),
            Err(error) => Err(Failure::failed(format!(
                "cannot stop the guardian of {name}: {error}"
            ))),
        }
    }
}

fn config_text(dependents: &[Dependent], [postgres, redis]: [&HostPort; 2]) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program has no path: {error}"))?;
    let program = program
        .to_str()
        .ok_or("the path of this program is no text, so no configuration file can hold it")?;
    let process = dependents
        .iter()
        .map(|dependent| {
            let mut command = vec![program.to_owned(), "demo-app".to_owned()];
            let mut add = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
            add("--name", dependent.name.to_owned());
            if dependent.postgres {
                add("--postgres", postgres.to_string());
            }
            if dependent.redis {
                add("--redis", redis.to_string());
            }
            if let Some(goodbye) = dependent.goodbye {
                add("--goodbye", goodbye.to_owned());
            }
            ProcessEntry {
                name: dependent.name,
                command,
                stop_timeout: "5s",
            }
        })
        .collect();
    let config = ConfigFile {
        units: "processes",
        command_timeout: "15s",
        process,
    };
    toml::to_string(&config).map_err(|error| error.to_string())
}

/// Reads a guardian's log until it says where it listens.
async fn listening(log: &mut Lines<BufReader<ChildStderr>>) -> Result<HostPort, String> {
    let mut last = "it said nothing".to_owned();
    while let Ok(Some(line)) = log.next_line().await {
        if line.contains("listening")
            && let Some(address) = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix("address="))
        {
            return HostPort::parse(address).map_err(|error| error.to_string());
        }
        last = line;
    }
    Err(format!("it ended: {last}"))
}

/// Passes on what dependents complain of: the lines of a guardian's log that its `demo-app`s wrote.
async fn pass_on(name: &str, mut log: Lines<BufReader<ChildStderr>>, loud: mpsc::Sender<String>) {
    while let Ok(Some(line)) = log.next_line().await {
        if let Some(complaint) = line.strip_prefix("io-guardian: ") {
            // When the story has ended, nobody listens, and reading on keeps the pipe from filling up.
            let _ = loud.try_send(format!("{name}: {complaint}"));
        }
    }
}
