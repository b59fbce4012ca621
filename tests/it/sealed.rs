//! The second version of the wire, between the two real programs, with somebody in between who reads and meddles.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use io_guardian::coordinator::{Report, Verdict};
use io_guardian::protocol::{HELLO_HEADER, Opening, PresharedKey, WELCOME_HEADER, channel};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

const KEY: &str = "correct-horse-battery-staple-0123456789";
const NEW: &str = "hunter-two-hunter-two-hunter-two-hunter";
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("key", KEY);
        place.write(
            "guardian.toml",
            "units = 'processes'\n[[process]]\nname = 'app'\ncommand = ['sleep', '1000']\n",
        );
        place
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in [
            "GUARDIAN_PSK_FILE",
            "GUARDIAN_WIRE",
            "STATE_DIRECTORY",
            "RUST_LOG",
            "NOTIFY_SOCKET",
        ] {
            command.env_remove(name);
        }
        command.kill_on_drop(true);
        command
    }

    async fn guardian(&self, more: &[&str]) -> Guardian {
        let arguments = [
            "serve",
            "--config",
            "guardian.toml",
            "--psk-file",
            "key",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ];
        let mut command = self.command(
            env!("CARGO_BIN_EXE_io-guardian"),
            &[&arguments[..], more].concat(),
        );
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (tell, log) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = tell.send(line);
            }
        });
        let mut guardian = Guardian {
            child,
            address: String::new(),
            log,
        };
        let line = guardian.says("listening address=").await;
        let (_, rest) = line.split_once("address=").unwrap();
        guardian.address = rest.split(' ').next().unwrap().to_owned();
        guardian
    }

    async fn coordinator(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.command(env!("CARGO_BIN_EXE_io-coordinator"), arguments);
        let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// What the coordinator reports of `host`, and what it logs.
    async fn tell(&self, action: &str, host: &str, wire: &str) -> (Report, String) {
        self.tell_for(action, host, wire, "60s").await
    }

    async fn tell_for(&self, action: &str, host: &str, wire: &str, time: &str) -> (Report, String) {
        let arguments = [
            action,
            "--hosts",
            host,
            "--psk-file",
            "key",
            "--wire",
            wire,
            "--timeout",
            time,
            "--output",
            "json",
        ];
        let (_, stdout, stderr) = self.coordinator(&arguments).await;
        (
            serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")),
            stderr,
        )
    }
}

struct Guardian {
    child: Child,
    address: String,
    log: mpsc::UnboundedReceiver<String>,
}

impl Guardian {
    /// The next line of its log that has this in it.
    async fn says(&mut self, part: &str) -> String {
        let find = async {
            while let Some(line) = self.log.recv().await {
                if line.contains(part) {
                    return line;
                }
            }
            panic!("it ended without saying {part:?}");
        };
        timeout(PATIENCE, find)
            .await
            .unwrap_or_else(|_| panic!("it does not say {part:?}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().cast_signed()), signal).unwrap();
    }
}

/// Changes what goes to the guardian (true) or comes from it.
type Meddle = dyn Fn(bool, &mut [u8]) + Send + Sync;

/// Somebody between a coordinator and a guardian: everything that crossed, each way.
struct Between {
    address: String,
    crossed: Arc<Mutex<[Vec<u8>; 2]>>,
}

impl Between {
    async fn new(guardian: &str, meddle: impl Fn(bool, &mut [u8]) + Send + Sync + 'static) -> Self {
        Self::leading(&[guardian], meddle).await
    }

    /// Each connection goes to the next of `guardians`, and those after the last to the last.
    async fn leading(guardians: &[&str], meddle: impl Fn(bool, &mut [u8]) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let crossed = Arc::<Mutex<[Vec<u8>; 2]>>::default();
        let mut guardians: Vec<String> = guardians.iter().rev().map(|name| (*name).to_owned()).collect();
        let seen = Arc::clone(&crossed);
        let meddle: Arc<Meddle> = Arc::new(meddle);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(guardians.last().unwrap()).await.unwrap();
                if guardians.len() > 1 {
                    guardians.pop();
                }
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                for (up, mut from, mut to) in
                    [(true, from_client, to_server), (false, from_server, to_client)]
                {
                    let (seen, meddle) = (Arc::clone(&seen), Arc::clone(&meddle));
                    tokio::spawn(async move {
                        let mut bytes = vec![0; 1 << 16];
                        while let Ok(n @ 1..) = from.read(&mut bytes).await {
                            let mut part = bytes[..n].to_vec();
                            seen.lock().unwrap()[usize::from(!up)].extend(&part);
                            meddle(up, &mut part);
                            if to.write_all(&part).await.is_err() {
                                break;
                            }
                        }
                    });
                }
            }
        });
        Self { address, crossed }
    }

    fn crossed(&self) -> [Vec<u8>; 2] {
        self.crossed.lock().unwrap().clone()
    }

    /// Whether any of these crossed, as it is or masked as a client's frames are (RFC 6455, section 5.3): a mask of four
    /// bytes hides nothing of a text that repeats at that distance, so the frames are unmasked.
    fn shows(&self, parts: &[&str]) -> bool {
        let [up, down] = self.crossed();
        let head = end_of_head(&up);
        let mut plain = up[..head].to_vec();
        let mut rest = &up[head..];
        while rest.len() > 6 {
            let (length, start) = match rest[1] & 0x7f {
                126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                short => (usize::from(short), 2),
            };
            let mask = &rest[start..start + 4];
            let masked = &rest[start + 4..start + 4 + length];
            plain.extend(
                masked
                    .iter()
                    .zip(mask.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask),
            );
            rest = &rest[start + 4 + length..];
        }
        let holds =
            |bytes: &[u8], part: &str| bytes.windows(part.len()).any(|window| window == part.as_bytes());
        parts.iter().any(|part| holds(&plain, part) || holds(&down, part))
    }
}

/// Where the HTTP handshake ends.
fn end_of_head(bytes: &[u8]) -> usize {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n");
    end.map_or(bytes.len(), |at| at + 4)
}

fn result(report: &Report) -> (Verdict, &str) {
    (report.hosts[0].result, report.hosts[0].message.as_str())
}

#[tokio::test]
async fn a_capture_shows_neither_the_key_nor_what_was_said() {
    let place = Place::new();
    let guardian = place.guardian(&["--wire", "v2"]).await;
    let secrets = [
        KEY,
        &KEY[..8],
        "drain",
        "command",
        "action",
        "io-databases",
        "pong",
        "stopped",
    ];
    for action in ["ping", "undrain", "status", "drain"] {
        let between = Between::new(&guardian.address, |_, _| {}).await;
        let (report, _) = place.tell(action, &between.address, "v2").await;
        assert_eq!(result(&report).0, Verdict::Ok, "{report:?}");
        assert!(!between.shows(&secrets), "{action}");
    }
    // The same words in the plain protocol are seen: the check can fail.
    let guardian = place.guardian(&[]).await;
    let between = Between::new(&guardian.address, strip).await;
    let (report, _) = place.tell("drain", &between.address, "auto").await;
    assert_eq!(result(&report).0, Verdict::Ok, "{report:?}");
    assert!(secrets[..4].iter().all(|secret| between.shows(&[secret])));
}

/// Hides the offer of the second version.
fn strip(up: bool, bytes: &mut [u8]) {
    let offer = b"Sec-WebSocket-Protocol";
    if up && let Some(at) = bytes.windows(offer.len()).position(|part| part == offer) {
        bytes[at] = b'X';
    }
}

#[tokio::test]
async fn whoever_hides_the_offer_gets_nothing_from_v2_and_is_warned_of_by_auto() {
    let place = Place::new();
    let guardian = place.guardian(&[]).await;
    let between = Between::new(&guardian.address, strip).await;
    let (report, _) = place.tell("drain", &between.address, "v2").await;
    let (verdict, message) = result(&report);
    assert_eq!(verdict, Verdict::Failed);
    assert!(message.contains("the key was not sent"), "{message}");
    assert!(!between.shows(&[&KEY[..8], "drain"]));

    let (report, log) = place.tell("drain", &between.address, "auto").await;
    assert_eq!(result(&report).0, Verdict::Ok);
    assert!(
        log.contains("plain protocol: the key and the command can be read and altered"),
        "{log}"
    );
}

#[tokio::test]
async fn a_guardian_of_v2_refuses_the_plain_protocol_before_a_key_is_sent() {
    let place = Place::new();
    let mut guardian = place.guardian(&["--wire", "v2"]).await;
    let stream = TcpStream::connect(&guardian.address).await.unwrap();
    match tokio_tungstenite::client_async(format!("ws://{}", guardian.address), stream).await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), 426);
            let offer = &response.headers()["sec-websocket-protocol"];
            assert_eq!(offer, "io-guardian.v2");
        }
        other => panic!("{other:?}"),
    }
    guardian
        .says("plain protocol, and this guardian the second version only")
        .await;
    // And our own coordinator is told the same, by whoever hides its offer.
    let between = Between::new(&guardian.address, strip).await;
    let (report, _) = place.tell("drain", &between.address, "auto").await;
    let (verdict, message) = result(&report);
    assert_eq!(verdict, Verdict::Failed);
    assert!(message.contains("HTTP status 426"), "{message}");
    assert!(!between.shows(&[&KEY[..8]]));
}

#[tokio::test]
async fn what_is_altered_on_its_way_ends_the_connection_and_is_told_by_both() {
    let place = Place::new();
    for (altered_up, nth) in [(true, 0), (true, 1), (false, 0), (false, 1)] {
        let mut guardian = place.guardian(&["--wire", "v2"]).await;
        let parts = Mutex::new(0);
        let between = Between::new(&guardian.address, move |up, bytes| {
            // The first part each way is the WebSocket handshake, with that of Noise in a header; then come the frames.
            if up == altered_up {
                let mut parts = parts.lock().unwrap();
                if *parts == nth {
                    let header = if up { HELLO_HEADER } else { WELCOME_HEADER };
                    let at = match nth {
                        0 => value_of(bytes, header),
                        _ => bytes.len() - 1,
                    };
                    // Still a letter of base64.
                    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
                }
                *parts += 1;
            }
        })
        .await;
        let (report, _) = place.tell("drain", &between.address, "v2").await;
        assert_ne!(result(&report).0, Verdict::Ok, "{report:?}");
        match (altered_up, nth) {
            (true, 0) => drop(guardian.says("why=\"wrong key\"").await),
            (true, _) => drop(
                guardian
                    .says("was altered, repeated, left out or reordered")
                    .await,
            ),
            (false, _) => assert!(result(&report).1.contains("altered"), "{report:?}"),
        }
    }
}

/// Where the value of this header begins.
fn value_of(head: &[u8], name: &str) -> usize {
    let at = head
        .windows(name.len())
        .position(|part| part.eq_ignore_ascii_case(name.as_bytes()));
    at.unwrap() + name.len() + ": ".len()
}

#[tokio::test]
async fn whoever_offers_the_second_version_and_does_not_begin_it_has_not_offered_it() {
    let place = Place::new();
    let guardian = place.guardian(&["--wire", "v2"]).await;
    for hello in [None, Some("AAAA"), Some("no base64 at all!")] {
        let mut request = format!("ws://{}", guardian.address)
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", "io-guardian.v2".parse().unwrap());
        if let Some(hello) = hello {
            headers.insert(HELLO_HEADER, hello.parse().unwrap());
        }
        let stream = TcpStream::connect(&guardian.address).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Err(Error::Http(response)) => assert_eq!(response.status(), 426),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_recorded_drain_is_of_no_use() {
    let place = Place::new();
    let mut guardian = place.guardian(&["--wire", "v2"]).await;
    let between = Between::new(&guardian.address, |_, _| {}).await;
    let (report, _) = place.tell("drain", &between.address, "v2").await;
    assert_eq!(result(&report).0, Verdict::Ok);
    guardian.says("command received").await;
    let [recorded, _] = between.crossed();
    let (head, frames) = recorded.split_at(end_of_head(&recorded));
    let mut stream = TcpStream::connect(&guardian.address).await.unwrap();
    stream.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while end_of_head(&answer) == answer.len() {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        if answer.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    stream.write_all(frames).await.unwrap();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    ended.unwrap().unwrap();
    guardian
        .says("was altered, repeated, left out or reordered")
        .await;
    let (report, _) = place.tell("status", &guardian.address, "v2").await;
    let last = report.hosts[0].last_command.as_ref().unwrap();
    assert_eq!(
        last.message, "io-databases.target and 1 dependent are stopped",
        "{last:?}"
    );
    assert!(
        guardian
            .log
            .try_recv()
            .is_err_and(|error| error == mpsc::error::TryRecvError::Empty),
        "no second command"
    );
}

#[tokio::test]
async fn the_first_message_alone_makes_nobody_a_peer() {
    let place = Place::new();
    let mut guardian = place.guardian(&["--wire", "v2"]).await;
    let mut request = format!("ws://{}", guardian.address)
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", "chat, io-guardian.v2".parse().unwrap());
    let key = PresharedKey::parse(KEY, "key".as_ref()).unwrap();
    let (opening, hello) = Opening::begin(&key).unwrap();
    request
        .headers_mut()
        .insert(HELLO_HEADER, channel::to_header(&hello).parse().unwrap());
    let stream = TcpStream::connect(&guardian.address).await.unwrap();
    let (_socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "io-guardian.v2");
    let welcome = channel::from_header(response.headers()[WELCOME_HEADER].as_bytes()).unwrap();
    assert!(opening.finish(&welcome).is_ok());
    // It may have been repeated from a recording: whoever says no more is a stranger, and goes when strangers go.
    guardian.says("no key in time").await;
}

#[tokio::test]
async fn a_key_that_comes_between_the_connection_and_its_handshake_is_known() {
    let place = Place::new();
    let mut guardian = place.guardian(&["--wire", "v2"]).await;
    let stream = TcpStream::connect(&guardian.address).await.unwrap();
    // That connection is accepted, because this later one has been answered.
    let (report, _) = place.tell("ping", &guardian.address, "v2").await;
    assert_eq!(result(&report).0, Verdict::Ok);
    place.write("key", &format!("{KEY}\n{NEW}\n"));
    guardian.signal(Signal::SIGHUP);
    guardian.says("the keys have changed").await;
    let mut request = format!("ws://{}", guardian.address)
        .into_client_request()
        .unwrap();
    let key = PresharedKey::parse(NEW, "key".as_ref()).unwrap();
    let (opening, hello) = Opening::begin(&key).unwrap();
    let headers = request.headers_mut();
    headers.insert("sec-websocket-protocol", "io-guardian.v2".parse().unwrap());
    headers.insert(HELLO_HEADER, channel::to_header(&hello).parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    // The keys of the moment in which it came did not have it: so the answer comes in a frame.
    assert!(response.headers().get(WELCOME_HEADER).is_none());
    let welcome = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(opening.finish(&welcome.into_data()).is_ok());
}

#[tokio::test]
async fn keys_change_without_a_restart_and_without_an_end_of_connections() {
    let place = Place::new();
    let mut guardian = place.guardian(&[]).await;
    // An open connection, from before.
    let stream = TcpStream::connect(&guardian.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{}", guardian.address), stream)
        .await
        .unwrap();
    let mut say = async |text: String| {
        socket.send(Message::text(text)).await.unwrap();
        let heard = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        serde_json::from_str::<Value>(heard.to_text().unwrap()).unwrap()
    };
    assert_eq!(
        say(format!(r#"{{"type": "auth", "key": "{KEY}"}}"#)).await["status"],
        "ok"
    );

    // The new one is put beside it on the guardian, then it is spoken, then the old one is taken away.
    place.write("other", NEW);
    place.write("key", &format!("{KEY}\n{NEW}\n"));
    guardian.signal(Signal::SIGHUP);
    guardian.says("the keys have changed").await;
    let address = guardian.address.clone();
    let new = ["ping", "--hosts", &address, "--psk-file", "other", "--fail-fast"];
    assert_eq!(place.coordinator(&new).await.0, Some(0));
    place.write("key", NEW);
    guardian.signal(Signal::SIGHUP);
    guardian.says("the keys have changed").await;
    assert_eq!(place.coordinator(&new).await.0, Some(0));

    place.write("other", KEY);
    let (code, _, log) = place.coordinator(&new).await;
    assert_eq!(code, Some(1));
    assert!(log.contains("result=bad-key"), "{log}");
    // Whoever has come with the old one in time does not command with it for ever.
    let drain = r#"{"type": "command", "action": "drain"}"#.to_owned();
    let refused = say(drain).await;
    assert_eq!(refused["status"], "error");
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("no longer accepted"),
        "{refused}"
    );
}

#[tokio::test]
async fn whoever_stands_in_for_a_guardian_and_knows_no_second_version_gets_no_key_from_v2() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let standing_in = tokio::spawn(async move {
        let mut heard = String::new();
        while let Ok((stream, _)) = listener.accept().await {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                heard.push_str(message.to_text().unwrap_or_default());
                if heard.contains(KEY) {
                    return;
                }
            }
        }
    });
    let (report, _) = place.tell("drain", &host, "v2").await;
    assert!(result(&report).1.contains("the key was not sent"), "{report:?}");
    // A check shows all keys, one after the other: it must be told to.
    place.write("both", &format!("{NEW}\n{KEY}\n"));
    let check = ["key", "check", "--hosts", &host, "--psk-file", "both"];
    let (code, text, _) = place.coordinator(&check).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("the key was not sent"), "{text}");
    assert!(!standing_in.is_finished());
    // It does hear it where that is allowed: this can fail.
    let (_, log) = place.tell_for("drain", &host, "auto", "1s").await;
    assert!(
        log.contains("plain protocol: the key and the command can be read"),
        "{log}"
    );
    timeout(PATIENCE, standing_in).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_guardian_does_not_answer_for_two_hosts() {
    let place = Place::new();
    let [one, other] = [place.guardian(&[]).await, place.guardian(&[]).await];
    // Somebody in between, without the key, leads the connection to one host to the other.
    let between = Between::new(&other.address, |_, _| {}).await;
    let hosts = format!("{},{}", between.address, other.address);
    let (report, _) = place.tell("drain", &hosts, "v2").await;
    assert_eq!((report.summary.ok, report.summary.failed), (0, 2), "{report:?}");
    assert!(report.hosts[0].message.contains(&other.address), "{report:?}");
    let drain = [
        "drain",
        "--hosts",
        &hosts,
        "--wave-size",
        "1",
        "--go-on",
        "--psk-file",
        "key",
        "--wire",
        "v2",
        "--output",
        "json",
    ];
    let (_, stdout, _) = place.coordinator(&drain).await;
    let report: Report = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (report.summary.ok, report.summary.failed),
        (0, 2),
        "in waves: {report:?}"
    );
    let (report, _) = place
        .tell("drain", &format!("{},{}", one.address, other.address), "v2")
        .await;
    assert_eq!(report.summary.ok, 2, "{report:?}");
}

#[tokio::test]
async fn nor_when_only_the_second_look_is_led_elsewhere() {
    let place = Place::new();
    let one = place.guardian(&[]).await;
    // Slow enough that the other host is told again at the end.
    let ready = place.0.path().join("ready");
    nix::unistd::mkfifo(&ready, nix::sys::stat::Mode::S_IRWXU).unwrap();
    place.write(
        "guardian.toml",
        &format!(
            "units = 'processes'\n[[process]]\nname = 'app'\n\
             command = ['sh', '-c', \"trap 'sleep 2; exit 0' TERM; echo >{}; while :; do sleep 0.1; done\"]\n",
            ready.display()
        ),
    );
    let other = place.guardian(&[]).await;
    let (report, _) = place.tell("undrain", &other.address, "v2").await;
    assert_eq!(report.summary.ok, 1, "{report:?}");
    // It has set its trap.
    timeout(PATIENCE, tokio::fs::read(&ready)).await.unwrap().unwrap();
    let between = Between::leading(&[&one.address, &other.address], |_, _| {}).await;
    let hosts = format!("{},{}", between.address, other.address);
    let drain = [
        "drain",
        "--hosts",
        &hosts,
        "--psk-file",
        "key",
        "--wire",
        "v2",
        "--generation",
        "5",
        "--output",
        "json",
    ];
    let (_, stdout, _) = place.coordinator(&drain).await;
    let report: Report = serde_json::from_str(&stdout).unwrap();
    assert_eq!((report.summary.ok, report.summary.failed), (0, 2), "{report:?}");
}

#[tokio::test]
async fn a_check_tells_which_hosts_know_which_keys() {
    let place = Place::new();
    let old = place.guardian(&[]).await;
    place.write("both", &format!("{NEW}\n{KEY}\n"));
    let both = place.guardian(&["--psk-file", "both"]).await;
    let hosts = format!("{},{},127.0.0.1:1", old.address, both.address);
    let check = [
        "key",
        "check",
        "--hosts",
        &hosts,
        "--psk-file",
        "both",
        "--output",
        "json",
    ];
    let (code, stdout, _) = place.coordinator(&check).await;
    assert_eq!(code, Some(1), "not all know the new one");
    let told: Value = serde_json::from_str(&stdout).unwrap();
    let (new, known) = (&told["keys"][0], &told["keys"][1]);
    assert_eq!(told["hosts"][0]["keys"], serde_json::json!([known]));
    assert!(told["hosts"][1]["keys"].as_array().unwrap().contains(new));
    assert_eq!(told["hosts"][2]["result"], "refused");
    assert!(!stdout.contains(KEY) && !stdout.contains(NEW));
    let (code, text, _) = place
        .coordinator(&["key", "check", "--hosts", &both.address, "--psk-file", "both"])
        .await;
    assert_eq!(code, Some(0));
    assert!(text.contains("(spoken): 1 of 1 hosts accept it"), "{text}");
}

#[tokio::test]
async fn a_new_key_is_another_one_each_time() {
    let place = Place::new();
    let (code, first, _) = place.coordinator(&["key", "new"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(first.trim().len(), 64);
    assert_ne!(place.coordinator(&["key", "new"]).await.1, first);
    place.write("key", &first);
    assert!(place.guardian(&[]).await.address.starts_with("127.0.0.1:"));
}
