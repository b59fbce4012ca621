//! `io-guardian serve` as people and units run it: settings, mistakes, and the conversation of the documentation.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

const KEY: &str = "0123456789abcdef0123456789abcdef";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("key", KEY);
        place
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A command with none of the settings that the caller's own environment may have.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_io-guardian"));
        command
            .current_dir(self.0.path())
            .arg("serve")
            .args(arguments)
            .stdin(Stdio::null());
        for name in [
            "GUARDIAN_HOST",
            "GUARDIAN_PORT",
            "GUARDIAN_PSK_FILE",
            "STATE_DIRECTORY",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn ends(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let Output {
            status,
            stderr,
            stdout,
        } = self.command(arguments).output().unwrap();
        (
            status.code(),
            String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap(),
        )
    }
}

/// A guardian that listens; killed when dropped.
struct Guardian {
    child: Child,
    address: String,
}

impl Guardian {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|l| l.contains("listening address="))
            .unwrap();
        let (_, rest) = line.split_once("address=").unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address: rest.split(' ').next().unwrap().to_owned(),
        }
    }

    async fn talk(&self, frames: &[&str]) -> Vec<String> {
        let (mut socket, _) = tokio_tungstenite::client_async(
            format!("ws://{}", self.address),
            tokio::net::TcpStream::connect(&self.address).await.unwrap(),
        )
        .await
        .unwrap();
        let mut heard = Vec::new();
        for frame in frames {
            socket.send(Message::text(*frame)).await.unwrap();
            match socket.next().await {
                Some(Ok(Message::Text(text))) => heard.push(text.to_string()),
                other => panic!("{frame}: {other:?}"),
            }
        }
        if let Ok(Some(Ok(Message::Close(Some(close))))) =
            tokio::time::timeout(std::time::Duration::from_millis(200), socket.next()).await
        {
            heard.push(format!("{} {}", u16::from(close.code), close.reason));
        }
        heard
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn each_mistake_is_one_message_with_its_place_and_remedy() {
    let place = Place::new();
    place.write("short", &"k".repeat(31));
    place.write("padded", &format!("  {}\n\n", "k".repeat(31)));
    std::fs::write(place.0.path().join("binary"), [0xff; 64]).unwrap();
    place.write(
        "bad.toml",
        "port = 'x'\nunits = 'systemd'\n[[process]]\nname = 'a'\ncommand = ['true']\n",
    );
    place.write("not.toml", "port 5");
    let key = ["--psk-file", "key"];
    let with = |more: &[&'static str]| [&key[..], more].concat();
    for (arguments, code, parts) in [
        (vec![], 64, &["no key", "--psk-file", "openssl rand"][..]),
        (
            vec!["--psk-file", "absent"],
            1,
            &["absent", "No such file", "sops"],
        ),
        (
            vec!["--psk-file", "short"],
            78,
            &["short", "31 characters", "at least 32"],
        ),
        (vec!["--psk-file", "padded"], 78, &["padded", "31 characters"]),
        (vec!["--psk-file", "binary"], 78, &["binary", "not UTF-8"]),
        (vec!["--psk-file", "."], 78, &["cannot read the key file"]),
        (with(&["--port", "65536"]), 64, &["65536", "--port"]),
        (with(&["--port", "x"]), 64, &["'x'", "--port"]),
        (
            with(&["--command-timeout", "0s"]),
            64,
            &["0s", "longer than zero"],
        ),
        (with(&["--command-timeout", "soon"]), 64, &["soon", "500ms"]),
        (with(&["--units", "pods"]), 64, &["pods", "systemd", "processes"]),
        (with(&["--prot", "1"]), 64, &["--prot", "--port"]),
        (
            with(&["--host", "no such host"]),
            78,
            &["no such host", "0.0.0.0"],
        ),
        (
            with(&["--host", "192.0.2.1", "--port", "0"]),
            1,
            &["192.0.2.1", "--host"],
        ),
        (with(&["--target", "databases"]), 78, &["databases", "suffix"]),
        (
            with(&["--state-dir", "absent"]),
            78,
            &[
                "state-dir: cannot use absent",
                "No such file",
                "create the folder",
                "StateDirectory=",
            ],
        ),
        (
            with(&["--state-dir", "key"]),
            78,
            &["state-dir: cannot use key", "not a directory"],
        ),
        (
            with(&["--config", "absent.toml"]),
            78,
            &["absent.toml", "No such file"],
        ),
        (with(&["--config", "not.toml"]), 78, &["not.toml", "line 1"]),
        (
            with(&["--config", "bad.toml"]),
            78,
            &["bad.toml:1: port", "units is systemd"],
        ),
    ] {
        let (ended, said) = place.ends(&arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?}: {part} is not in\n{said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = place.ends(&["--psk-file", "key", "--host", "127.0.0.1", "--port", &port]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&port) && said.contains("is another guardian running"),
        "{said}"
    );
}

#[test]
fn a_check_ends_with_0_or_with_all_that_is_wrong() {
    let place = Place::new();
    place.write(
        "good.toml",
        "port = 1\npsk-file = 'absent'\ncommand-timeout = '20s'\n",
    );
    let (code, said) = place.ends(&["--config", "good.toml", "--check-config"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("the configuration is fine; the key file is not there yet"),
        "{said}"
    );
    let (code, said) = place.ends(&["--psk-file", "key", "--state-dir", "absent", "--check-config"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("the key is fine; the state folder absent is not there yet"),
        "{said}"
    );
    let (code, said) = place.ends(&["--psk-file", "key", "--state-dir", "key", "--check-config"]);
    assert_eq!(code, Some(78), "{said}");
    let closed = place.0.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    // Root may write there all the same.
    if std::fs::write(closed.join("x"), "").is_err() {
        let (code, said) = place.ends(&["--psk-file", "key", "--state-dir", "closed", "--check-config"]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("cannot use closed"), "{said}");
    }
    place.write("bad.toml", "port = -1\npsk_file = 'key'\ncommand-timeout = 20\n");
    let (code, said) = place.ends(&["--config", "bad.toml", "--check-config"]);
    assert_eq!(code, Some(78), "{said}");
    for part in [
        "bad.toml:1: port",
        "bad.toml:2: psk_file is no setting",
        "bad.toml:3: command-timeout",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[tokio::test]
async fn flag_beats_environment_beats_file_beats_default() {
    let place = Place::new();
    let file = place.write(
        "c.toml",
        "host = '127.0.0.2'\nport = 0\npsk-file = 'key'\nunits = 'processes'\n",
    );
    let file = ["--config", file.to_str().unwrap()];
    let address = |command: Command| Guardian::start(command).address.clone();
    assert!(address(place.command(&file)).starts_with("127.0.0.2:"));
    let mut environment = place.command(&file);
    environment.env("GUARDIAN_HOST", "127.0.0.3");
    assert!(address(environment).starts_with("127.0.0.3:"));
    let mut flag = place.command(&[&file[..], &["--host", "::1"]].concat());
    flag.env("GUARDIAN_HOST", "127.0.0.3");
    assert!(address(flag).starts_with("[::1]:"));
}

fn serving(place: &Place) -> Command {
    let state = place.0.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let base = [
        "--psk-file",
        "key",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--units",
        "processes",
    ];
    place.command(&[&base[..], &["--state-dir", state.to_str().unwrap()]].concat())
}

#[tokio::test]
async fn the_documented_conversation_byte_for_byte() {
    let place = Place::new();
    let guardian = Guardian::start(serving(&place));
    let auth = format!(r#"{{"type": "auth", "key": "{KEY}"}}"#);
    let ok = r#"{"type": "auth", "status": "ok", "message": "Authentication successful"}"#;
    let pong = r#"{"type": "response", "action": "ping", "status": "ok", "message": "pong"}"#;
    let ping = r#"{"type": "command", "action": "ping"}"#;
    assert_eq!(
        guardian.talk(&[&auth, ping, &auth, ping]).await,
        [ok, pong, ok, pong]
    );
    assert_eq!(
        guardian.talk(&[r#"{"type": "auth", "key": "wrong"}"#]).await,
        [
            r#"{"type": "auth", "status": "error", "message": "Invalid key"}"#,
            "1008 Authentication failed"
        ]
    );
    assert_eq!(
        guardian.talk(&["no json", ping]).await,
        [
            r#"{"type": "error", "message": "Invalid JSON"}"#,
            r#"{"type": "error", "message": "Not authenticated"}"#,
            "1008 Not authenticated"
        ]
    );
}

#[tokio::test]
async fn a_guardian_that_was_killed_remembers_the_generation_and_takes_the_next_command() {
    let place = Place::new();
    let auth = format!(r#"{{"type": "auth", "key": "{KEY}"}}"#);
    let say = |action: &str, generation: u64| {
        format!(r#"{{"type": "command", "action": "{action}", "generation": {generation}}}"#)
    };
    let first = Guardian::start(serving(&place));
    assert!(first.talk(&[&auth, &say("drain", 7)]).await[1].contains(r#""status": "ok""#));
    // SIGKILL: nothing is said goodbye to.
    drop(first);
    let second = Guardian::start(serving(&place));
    let heard = second
        .talk(&[&auth, &say("undrain", 6), &say("undrain", 8)])
        .await;
    assert!(
        heard[1].contains("stale: generation 6 is older than 7"),
        "{heard:?}"
    );
    assert!(
        heard[2].contains(r#""action": "undrain", "status": "ok""#),
        "{heard:?}"
    );
    assert!(Path::new(&place.0.path().join("state/guardian.json")).exists());
}
