//! `io-coordinator serve` beside guardians that really run, asked over HTTP by a client that knows nothing of us.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::seed::Seed;
use super::{KEY, Place};

/// How long anything here may take: long, because it is never waited for when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: &str = "a-token-of-more-than-thirty-two-characters";

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

/// A guardian of two processes, one of which takes half a second to stop.
async fn guardian(place: &Place, port: u16) -> Listening {
    let slow = "trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.05; done";
    let processes = format!(
        "[[process]]\nname = 'web'\ncommand = ['sleep', '1000']\n[[process]]\nname = 'slow'\ncommand = ['sh', '-c', \"{slow}\"]\n"
    );
    start_guardian(place, port, &processes).await
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

async fn serve(place: &Place, hosts: &str, more: &[&str]) -> Listening {
    let mut arguments = vec!["serve", "--listen", "127.0.0.1:0", "--hosts", hosts];
    arguments.extend(more);
    listening(place.command(&arguments), &["the fleet is shown at"]).await
}

/// One request, on a connection of its own: status, head and body.
async fn http(address: &str, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

async fn get(address: &str, path: &str) -> String {
    let (status, _, body) = http(address, "GET", path, "", "").await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// What is told as it happens.
struct Events(Lines<BufReader<TcpStream>>);

impl Events {
    async fn of(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /events HTTP/1.1\r\nHost: fleet\r\n\r\n")
            .await
            .unwrap();
        Self(BufReader::new(stream).lines())
    }

    /// The next event of which `wanted` is true: its name, and its document.
    async fn until(&mut self, mut wanted: impl FnMut(&str, &Value) -> bool) -> Value {
        let found = timeout(PATIENCE, async {
            let mut name = String::new();
            loop {
                let line = self.0.next_line().await.unwrap().expect("the stream ended");
                if let Some(event) = line.strip_prefix("event: ") {
                    event.clone_into(&mut name);
                }
                if let Some(data) = line.strip_prefix("data: ") {
                    let document: Value = serde_json::from_str(data).unwrap();
                    if wanted(&name, &document) {
                        return document;
                    }
                }
            }
        });
        found.await.expect("it was not told")
    }

    async fn until_state(&mut self, host: &str, state: &str) -> Value {
        let is = |document: &Value| document["name"] == host && document["state"] == state;
        self.until(|name, document| match name {
            "fleet" => document["hosts"].as_array().unwrap().iter().any(is),
            "host" => is(document),
            _ => false,
        })
        .await
    }

    async fn until_news(&mut self, what: &str) -> Value {
        self.until(|name, document| name == "history" && document["what"] == what)
            .await
    }
}

#[tokio::test]
async fn who_looks_sees_a_drain_as_it_happens_and_who_wanted_it() {
    let place = Place::new();
    let guardian = guardian(&place, 0).await;
    let host = guardian.addresses[0].clone();
    let port: u16 = host.rsplit(':').next().unwrap().parse().unwrap();
    let serve = serve(&place, &host, &[]).await;
    let mut events = Events::of(&serve.addresses[0]).await;
    events.until_state(&host, "drained").await;

    assert_eq!(place.run(&["undrain", "--hosts", &host]).await.code, Some(0));
    events.until_state(&host, "undrained").await;
    let done = events.until_news("undrain done").await;
    assert!(
        done["by"].as_str().unwrap().starts_with("127.0.0.1 v2:"),
        "{done}"
    );

    let drain = ["drain", "--hosts", &host];
    let (drained, ()) = tokio::join!(place.run(&drain), async {
        // Both states of its slow one are seen: this is no look at the end.
        let draining = events.until_state(&host, "draining").await;
        assert_eq!(draining["last_command"]["action"], "drain");
        events.until_state(&host, "drained").await;
    });
    assert_eq!(drained.code, Some(0));
    let figures = get(&serve.addresses[0], "/metrics").await;
    assert!(
        figures.contains("io_coordinator_hosts{state=\"drained\"} 1"),
        "{figures}"
    );
    let figures = get(&guardian.addresses[1], "/metrics").await;
    assert!(
        figures.contains("io_guardian_operations_total{action=\"drain\",result=\"ok\"} 1"),
        "{figures}"
    );

    // What dies without a word is missed at once, and found again when it is back.
    drop(guardian);
    let lost = events
        .until(|name, document| name == "host" && document["link"] == "lost")
        .await;
    assert!(
        lost["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()),
        "{lost}"
    );
    let _guardian = self::guardian(&place, port).await;
    events.until_news("reached again").await;
}

#[tokio::test]
async fn what_a_process_does_by_itself_is_seen_too() {
    let place = Place::new();
    let guardian = guardian(&place, 0).await;
    let host = guardian.addresses[0].clone();
    place.run(&["undrain", "--hosts", &host]).await;
    let serve = serve(&place, &host, &[]).await;
    let mut events = Events::of(&serve.addresses[0]).await;
    events.until_state(&host, "undrained").await;
    let id = children_of(guardian._child.id().unwrap(), "sleep 1000");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL).unwrap();
    let left = events
        .until(|name, document| {
            name == "host"
                && document["units"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|unit| unit["state"] != "active")
        })
        .await;
    assert_eq!(left["link"], "open");
}

/// The descendant of `parent` that runs this command line.
fn children_of(parent: u32, command: &str) -> i32 {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let mut open = vec![parent];
    while let Some(id) = open.pop() {
        if read(format!("/proc/{id}/cmdline")).replace('\0', " ").trim() == command {
            return i32::try_from(id).unwrap();
        }
        let children = read(format!("/proc/{id}/task/{id}/children"));
        open.extend(
            children
                .split_whitespace()
                .map(|child| child.parse::<u32>().unwrap()),
        );
    }
    panic!("nobody runs {command:?}");
}

#[tokio::test]
async fn nobody_changes_anything_without_the_token() {
    let place = Place::new();
    let guardian = guardian(&place, 0).await;
    let host = guardian.addresses[0].clone();
    let command = json!({"action": "undrain", "hosts": [host]}).to_string();

    let closed = serve(&place, &host, &[]).await;
    let (status, _, body) = http(&closed.addresses[0], "POST", "/api/command", "", &command).await;
    assert_eq!(status, 403);
    assert!(body.contains("--token-file"), "{body}");
    let document: Value = serde_json::from_str(&get(&closed.addresses[0], "/api/fleet").await).unwrap();
    assert_eq!(document["coordinator"]["commands"], false);

    let token = place.write("token", TOKEN);
    let generations = place.path("generation");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (token, generations) = (text(&token), text(&generations));
    let open = serve(
        &place,
        &host,
        &["--token-file", &token, "--generation-file", &generations],
    )
    .await;
    let address = open.addresses[0].as_str();
    let mut events = Events::of(address).await;
    events.until_state(&host, "drained").await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let give = async |token: &str, command: &Value| {
        let (status, _, body) = http(
            address,
            "POST",
            "/api/command",
            &bearer(token),
            &command.to_string(),
        )
        .await;
        (status, body)
    };
    let undrain = json!({"action": "undrain", "hosts": [host]});
    for wrong in ["", "a-token-of-more-than-thirty-two-character", KEY] {
        assert_eq!(give(wrong, &undrain).await.0, 401, "{wrong}");
    }
    for (wrong, says) in [
        (
            json!({"action": "undrain", "hosts": ["elsewhere"]}),
            "no host \"elsewhere\"",
        ),
        (json!({"action": "undrain", "hosts": []}), "name one"),
        (json!({"action": "hold", "hosts": [host]}), "reason"),
        (
            json!({"action": "hold", "hosts": [host], "reason": "a\nb"}),
            "reason",
        ),
        (json!({"action": "status", "hosts": [host]}), "expected drain"),
        (json!({"action": "explode", "hosts": [host]}), "explode"),
        (
            json!({"action": "undrain", "hosts": [host], "host": 1}),
            "unknown field",
        ),
    ] {
        let (status, body) = give(TOKEN, &wrong).await;
        assert_eq!(status, 400, "{wrong}");
        assert!(
            body.contains(says) || body.contains(&says.replace('"', "\\\"")),
            "{body}"
        );
    }
    assert_eq!(
        http(address, "GET", "/api/session", &bearer(TOKEN), "").await.0,
        204
    );
    assert_eq!(http(address, "POST", "/", "", "").await.0, 405);

    assert_eq!(give(TOKEN, &undrain).await, (202, "{\"accepted\":1}".to_owned()));
    let asked = events.until_news("undrain asked for").await;
    assert_eq!(asked["by"], "127.0.0.1 page");
    events.until_state(&host, "undrained").await;
    let hold = json!({"action": "hold", "hosts": [host], "reason": "a move", "for_ms": 3_600_000});
    assert_eq!(give(TOKEN, &hold).await.0, 202);
    let held = events.until_state(&host, "held").await;
    assert!(held["standing"].as_str().unwrap().contains("a move"), "{held}");
    // A generation that the guardian has already seen a higher one than is refused, and that is told here.
    let far = u64::MAX.to_string();
    place
        .run(&["release", "--hosts", &host, "--generation", &far])
        .await;
    assert_eq!(give(TOKEN, &undrain).await.0, 202);
    let refused = events.until_news("undrain failed").await;
    assert!(
        refused["message"].as_str().unwrap().contains("stale"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_guardian_that_knows_only_the_documentation_is_shown_as_what_it_is() {
    let place = Place::new();
    let Some(seed) = Seed::start("a_guardian_that_knows_only_the_documentation_is_shown_as_what_it_is").await
    else {
        return;
    };
    let host = seed.host.clone();
    let serve = serve(&place, &host, &[]).await;
    let mut events = Events::of(&serve.addresses[0]).await;
    let shown = events
        .until(|name, document| {
            name == "host"
                && document["fault"]
                    .as_str()
                    .is_some_and(|fault| fault.contains("pings only"))
        })
        .await;
    assert_eq!(
        (&shown["link"], &shown["wire"], &shown["state"]),
        (&json!("open"), &json!("plain"), &json!("unknown"))
    );
}

#[tokio::test]
async fn the_page_is_closed_to_whatever_comes_from_elsewhere() {
    let place = Place::new();
    let serve = serve(&place, "127.0.0.1:1", &[]).await;
    let address = serve.addresses[0].as_str();
    for path in ["/", "/page.js", "/page.css"] {
        let (status, head, _) = http(address, "GET", path, "", "").await;
        assert_eq!(status, 200);
        assert!(
            head.contains("content-security-policy: default-src 'none';"),
            "{head}"
        );
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
    assert_eq!(get(address, "/healthz").await.trim(), "ok");
    let (status, _, body) = http(address, "GET", "/absent", "", "").await;
    assert!(status == 404 && body.contains("/metrics"), "{body}");
    // Rubbish costs its own connection.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[b'x'; 40_000]).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(get(address, "/healthz").await.trim(), "ok");
}
