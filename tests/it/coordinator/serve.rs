//! Guardians that really run, for tests of what tells them.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Place;

/// How long anything here may take: long, because it is never waited for when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that has said where it listens; killed when dropped.
pub(super) struct Listening {
    _child: Child,
    pub(super) addresses: Vec<String>,
}

/// Starts `command`, and reads its log until it has said `words` and an address, for each of them.
async fn listening(mut command: Command, words: &[&str]) -> Listening {
    command.kill_on_drop(true).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut addresses = Vec::new();
    for words in words {
        let line = timeout(PATIENCE, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it ended");
                if line.contains(words) {
                    return line;
                }
            }
        });
        let line = line.await.unwrap();
        let (_, rest) = line.split_once("address=").unwrap();
        addresses.push(rest.split(' ').next().unwrap().to_owned());
    }
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Listening {
        _child: child,
        addresses,
    }
}

/// A guardian of one process, `app`, that is this script.
pub(super) async fn guardian_of(place: &Place, port: u16, script: &str) -> Listening {
    start_guardian(
        place,
        port,
        &format!("[[process]]\nname = 'app'\ncommand = ['sh', '-c', '{script}']\nrestart = 'never'\n"),
    )
    .await
}

pub(super) async fn start_guardian(place: &Place, port: u16, processes: &str) -> Listening {
    let mut command = Command::new(env!("CARGO_BIN_EXE_io-guardian"));
    let config = place.write("guardian.toml", &format!("units = 'processes'\n{processes}"));
    command
        .args([
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--config",
        ])
        .arg(config)
        .env("GUARDIAN_PSK_FILE", place.path("key"))
        .env("GUARDIAN_METRICS", "127.0.0.1:0");
    listening(command, &["listening", "figures at"]).await
}
