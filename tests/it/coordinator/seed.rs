//! Our coordinator and a guardian that knows only the page of the documentation, written in another language.

use std::process::Stdio;

use io_guardian::coordinator::Verdict;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::*;

pub(super) struct Seed {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(super) host: String,
}

impl Seed {
    /// None where the library is missing.
    pub(super) async fn start(test: &str) -> Option<Self> {
        let python = "/usr/bin/python3";
        let probe = Command::new(python)
            .args(["-c", "import websockets"])
            .stderr(Stdio::null())
            .status()
            .await;
        if !probe.is_ok_and(|status| status.success()) {
            println!("SKIP {test}: python3-websockets is not installed");
            return None;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/seed_server.py");
        let mut child = Command::new(python)
            .args([script, KEY])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next_line().await.unwrap().unwrap();
        Some(Self {
            child,
            lines,
            host: format!("127.0.0.1:{port}"),
        })
    }

    async fn received(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap()
    }

    /// Ends it. It must have nothing to complain about: the library logs connections that end without a goodbye.
    async fn end(mut self) {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().await.unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[tokio::test]
async fn the_documented_frames_are_sent_byte_for_byte() {
    let Some(mut seed) = Seed::start("the_documented_frames_are_sent_byte_for_byte").await else {
        return;
    };
    let place = Place::new();
    for action in ["drain", "undrain", "ping"] {
        let host = place.json(action, &seed.host, &[]).await.only_host();
        assert_eq!(
            (host.result, host.message),
            (Verdict::Ok, format!("{action} done"))
        );
        assert_eq!(
            seed.received().await,
            format!(r#"{{"type": "auth", "key": "{KEY}"}}"#)
        );
        assert_eq!(
            seed.received().await,
            format!(r#"{{"type": "command", "action": "{action}"}}"#)
        );
    }
    // A generation is one more field, which such a guardian ignores.
    let host = place
        .json("drain", &seed.host, &["--generation", "7"])
        .await
        .only_host();
    assert_eq!(host.result, Verdict::Ok);
    seed.received().await;
    assert_eq!(
        seed.received().await,
        r#"{"type": "command", "action": "drain", "generation": 7}"#
    );
    seed.end().await;
}

#[tokio::test]
async fn a_guardian_of_the_documentation_knows_no_status_and_its_refusals_are_understood() {
    let Some(seed) = Seed::start("a_guardian_of_the_documentation_knows_no_status").await else {
        return;
    };
    let place = Place::new();
    let host = place.json("status", &seed.host, &[]).await.only_host();
    assert_eq!(
        (host.result, host.message.as_str()),
        (Verdict::Failed, "Unknown action: status")
    );
    assert!(host.remedy.unwrap().contains("older than this command"));
    place.write("key", &"another key ".repeat(4));
    let host = place.json("ping", &seed.host, &[]).await.only_host();
    assert_eq!(
        (host.result, host.message.as_str()),
        (Verdict::BadKey, "the guardian refused the key: Invalid key")
    );
    seed.end().await;
}
