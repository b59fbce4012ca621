//! Probes against scripted peers on loopback: raw bytes in, a verdict out.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::scripted::{Script, dialogue, listen, play};
use super::*;

/// The verdict of `probe` on a peer that plays `script`. The deadline is far: nothing here should need it.
async fn verdict(script: Script, probe: impl FnOnce(HostPort) -> Probe) -> Verdict {
    let (listener, address) = listen().await;
    let peer = tokio::spawn(play(listener, script));
    let verdict = probe(address)
        .attempt(Instant::now() + Duration::from_secs(60))
        .await;
    peer.abort();
    verdict
}

async fn cause(script: Script, probe: impl FnOnce(HostPort) -> Probe) -> Cause {
    match verdict(script, probe).await {
        Verdict::NotReady(cause) => cause,
        Verdict::Ready => panic!("ready"),
    }
}

fn postgres(address: HostPort) -> Probe {
    Probe::postgres(address, None)
}

fn postgres_login(password: Option<Password>, require_primary: bool) -> impl FnOnce(HostPort) -> Probe {
    move |address| {
        let login = PostgresLogin {
            user: "app".to_owned(),
            password,
            database: "app".to_owned(),
            require_primary,
        };
        Probe::postgres(address, Some(login))
    }
}

fn redis(address: HostPort) -> Probe {
    Probe::redis(address, None)
}

fn redis_login(address: HostPort) -> Probe {
    let login = RedisLogin {
        user: None,
        password: Password::from("secret"),
    };
    Probe::redis(address, Some(login))
}

/// A message of PostgreSQL.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

fn error(code: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0").as_bytes())
}

/// Lets in, and is ready for a query.
const LET_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
/// Answers `SELECT 1`.
const ONE: &[u8] = b"T\0\0\0\x21\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0b\0\x01\0\0\0\x011C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
/// Answers `SELECT pg_is_in_recovery()` with true.
const TRUE: &[u8] = b"T\0\0\0\x1a\0\x01r\0\0\0\0\0\0\0\0\0\0\x10\0\x01\xff\xff\xff\xff\0\0D\0\0\0\x0b\0\x01\0\0\0\x01tC\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
/// Answers `SELECT pg_is_in_recovery()` with false.
const FALSE: &[u8] = b"T\0\0\0\x1a\0\x01r\0\0\0\0\0\0\0\0\0\0\x10\0\x01\xff\xff\xff\xff\0\0D\0\0\0\x0b\0\x01\0\0\0\x01fC\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

#[tokio::test]
async fn a_postgres_that_asks_who_we_are_is_ready() {
    for answer in [
        message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
        message(b'R', b"\0\0\0\x05salt"),
        message(b'R', b"\0\0\0\x03"),
        LET_IN.to_vec(),
        error("28000", "role \"io_guardian_probe\" does not exist"),
        error("28000", "no pg_hba.conf entry for host"),
        [LET_IN[..9].to_vec(), error("28000", "role does not exist")].concat(),
    ] {
        let shown = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(
            verdict(Script::Says(answer), postgres).await,
            Verdict::Ready,
            "{shown:?}"
        );
    }
}

#[tokio::test]
async fn a_postgres_that_serves_nobody_is_not_ready_with_or_without_a_login() {
    for (code, text, expected) in [
        ("57P03", "the database system is starting up", Cause::Starting),
        (
            "57P03",
            "the database system is shutting down",
            Cause::ShuttingDown,
        ),
        (
            "57P03",
            "the database system is in recovery mode",
            Cause::Recovery,
        ),
        (
            "57P03",
            "the database system is not yet accepting connections",
            Cause::Recovery,
        ),
        (
            "57P03",
            "le système de bases de données se lance",
            Cause::NotAccepting("le système de bases de données se lance".to_owned()),
        ),
        (
            "53300",
            "sorry, too many clients already",
            Cause::TooManyConnections("sorry, too many clients already".to_owned()),
        ),
        (
            "3D000",
            "database \"app\" does not exist",
            Cause::NoSuchDatabase("database \"app\" does not exist".to_owned()),
        ),
        ("XX000", "odd", Cause::ErrorReply("odd (XX000)".to_owned())),
    ] {
        let says = || Script::Says(error(code, text));
        assert_eq!(cause(says(), postgres).await, expected);
        assert_eq!(cause(says(), postgres_login(None, false)).await, expected);
    }
}

#[tokio::test]
async fn with_a_login_the_query_must_come_back() {
    let refused = Script::Says(error("28000", "role \"app\" does not exist"));
    assert!(matches!(
        cause(refused, postgres_login(None, false)).await,
        Cause::NoSuchRole(_)
    ));
    let wants_tls = Script::Says(error(
        "28000",
        "no pg_hba.conf entry for host \"x\", no encryption",
    ));
    assert!(matches!(
        cause(wants_tls, postgres_login(None, false)).await,
        Cause::NotAllowedWithoutTls(_)
    ));
    let asks = Script::Says(message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
    let needed = Cause::PasswordNeeded(Kind::Postgres);
    assert_eq!(cause(asks, postgres_login(None, false)).await, needed);
    let wrong = dialogue(&[b"R\0\0\0\x08\0\0\0\x03", &error("28P01", "no")]);
    assert!(
        !verdict(wrong, postgres_login(Some("x".into()), false))
            .await
            .is_ready()
    );

    let answers = dialogue(&[LET_IN, ONE]);
    assert_eq!(
        verdict(answers, postgres_login(None, false)).await,
        Verdict::Ready
    );
    let goes = dialogue(&[LET_IN, &error("57P01", "terminating now")]);
    assert_eq!(
        cause(goes, postgres_login(None, false)).await,
        Cause::ShuttingDown
    );
}

#[tokio::test]
async fn a_standby_is_refused_where_a_primary_is_required() {
    let standby = || dialogue(&[LET_IN, ONE, TRUE]);
    assert_eq!(
        verdict(standby(), postgres_login(None, false)).await,
        Verdict::Ready
    );
    assert_eq!(cause(standby(), postgres_login(None, true)).await, Cause::Standby);
    let primary = dialogue(&[LET_IN, ONE, FALSE]);
    assert_eq!(verdict(primary, postgres_login(None, true)).await, Verdict::Ready);
    let no_rows = dialogue(&[LET_IN, ONE, b"C\0\0\0\x0dSELECT 0\0Z\0\0\0\x05I"]);
    assert_eq!(cause(no_rows, postgres_login(None, true)).await, Cause::Standby);
}

#[tokio::test]
async fn a_server_cannot_make_us_count_for_hours() {
    // The nonce of the client is random: the answer has to begin with it, so this peer listens first.
    let (listener, address) = listen().await;
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = vec![0; 4096];
        assert!(stream.read(&mut question).await.unwrap() > 0);
        let mechanisms = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        stream.write_all(&mechanisms).await.unwrap();
        let read = stream.read(&mut question).await.unwrap();
        let text = String::from_utf8_lossy(&question[..read]).into_owned();
        // All of it: a nonce may well hold an `r=` of its own.
        let (_, nonce) = text.split_once("r=").unwrap();
        let first = format!("\0\0\0\x0br={nonce}x,s=c2FsdA==,i=2000000000");
        stream.write_all(&message(b'R', first.as_bytes())).await.unwrap();
        let _ = stream.read(&mut question).await;
    });
    let verdict = postgres_login(Some("secret".into()), false)(address)
        .attempt(Instant::now() + Duration::from_secs(60))
        .await;
    assert!(verdict.to_string().contains("SCRAM iteration count"), "{verdict}");
    peer.abort();
}

#[tokio::test]
async fn a_redis_that_answers_pong_is_ready_and_nothing_else_is() {
    let says = |text: &str| Script::Says(text.as_bytes().to_vec());
    assert_eq!(verdict(says("+PONG\r\n"), redis).await, Verdict::Ready);
    for (line, expected) in [
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            Cause::Loading,
        ),
        ("-MASTERDOWN Link with MASTER is down\r\n", Cause::MasterDown),
        (
            "-NOAUTH Authentication required.\r\n",
            Cause::PasswordNeeded(Kind::Redis),
        ),
        ("-BUSY Redis is busy running a script.\r\n", Cause::Busy),
        (
            "-MISCONF Redis is configured to save RDB snapshots\r\n",
            Cause::CannotPersist,
        ),
        ("-ERR boom\r\n", Cause::ErrorReply("ERR boom".to_owned())),
    ] {
        assert_eq!(cause(says(line), redis).await, expected);
    }
    for other in ["+OK\r\n", "$4\r\nPONG\r\n", ":1\r\n", "*0\r\n", "_\r\n"] {
        let cause = cause(says(other), redis).await;
        assert!(
            matches!(cause, Cause::NotThisProtocol { .. }),
            "{other:?}: {cause:?}"
        );
    }
}

#[tokio::test]
async fn with_a_password_redis_must_take_it_first() {
    let ready = dialogue(&[b"+OK\r\n", b"+PONG\r\n"]);
    assert_eq!(verdict(ready, redis_login).await, Verdict::Ready);
    let loading = dialogue(&[b"+OK\r\n", b"-LOADING Redis is loading\r\n"]);
    assert_eq!(cause(loading, redis_login).await, Cause::Loading);
    let wrong = dialogue(&[b"-WRONGPASS invalid username-password pair\r\n", b"+PONG\r\n"]);
    assert!(matches!(cause(wrong, redis_login).await, Cause::BadPassword(_)));
    let unset = dialogue(&[b"-ERR Client sent AUTH, but no password is set\r\n", b"+PONG\r\n"]);
    assert_eq!(cause(unset, redis_login).await, Cause::PasswordNotWanted);
}

#[tokio::test]
async fn a_server_that_is_full_says_so_before_it_is_asked() {
    let full = || Script::HangsUp(b"-ERR max number of clients reached\r\n".to_vec());
    assert!(matches!(cause(full(), redis).await, Cause::TooManyConnections(_)));
    assert!(matches!(
        cause(full(), redis_login).await,
        Cause::TooManyConnections(_)
    ));
    let fork = || Script::HangsUp(b"Ecould not fork new process for connection: Out of memory\n\0".to_vec());
    let cause = cause(fork(), postgres).await;
    assert!(
        cause.to_string().contains("could not fork new process"),
        "{cause}"
    );
}

type Make = Box<dyn Fn(HostPort) -> Probe>;

fn every_probe() -> [Make; 4] {
    [
        Box::new(postgres),
        Box::new(|address| postgres_login(Some("secret".into()), true)(address)),
        Box::new(redis),
        Box::new(redis_login),
    ]
}

#[tokio::test]
async fn rubbish_is_never_ready_and_never_the_end_of_us() {
    #[rustfmt::skip]
    let mut rubbish: Vec<Vec<u8>> = [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n", b"\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff", b"R\0\0\0\x03", b"R\0\0\0\x04", b"R\0\0\0\x08\0\0\0\x63",
        b"R\0\0\0\x0d\0\0\0\x0aabcde", b"R\x7f\xff\xff\xff\0\0\0\x0a", b"R\xff\xff\xff\xff\0\0\0\x0a",
        b"E\0\0\0\x04", b"E\0\0\0\x06\xff\xfe", b"Z\0\0\0\x05I", b"T\0\0\0\x06\xff\xff", b"*2147483647\r\n",
        b"*9223372036854775807\r\n", b"*-2\r\n", b"$9223372036854775807\r\nx", b"$-9\r\n",
        b"%9223372036854775807\r\n", b"%-1\r\n", b"|1\r\n+a\r\n", b"|9223372036854775807\r\n",
        b">1\r\n$7\r\nmessage\r\n", b"=3\r\nabc\r\n", b"!-5\r\n", b"(x\r\n", b"-\r\n", b"- \r\n",
        b"+PING\r\n", b"\r\n\r\n",
    ]
    .iter()
    .map(|bytes| bytes.to_vec())
    .collect();
    rubbish.push(b"*1\r\n".repeat(2000));
    for bytes in rubbish {
        for make in every_probe() {
            let verdict = verdict(Script::HangsUp(bytes.clone()), make).await;
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            assert!(!verdict.is_ready(), "{shown:?}");
            assert!(
                !verdict.to_string().contains(['\n', '\r']),
                "{shown:?}: {verdict}"
            );
        }
    }
    let ssh = cause(Script::HangsUp(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), postgres).await;
    assert_eq!(
        ssh.to_string(),
        "what answers there is not PostgreSQL: it says \"SSH-2.0-OpenSSH_9.2\": check the port"
    );
}

#[tokio::test]
async fn a_peer_that_sends_without_end_is_cut_off() {
    for bytes in [
        b"x".repeat(4096),
        b"$1000000000\r\n".to_vec(),
        b"*1000000\r\n".to_vec(),
        message(b'N', &b"\0".repeat(1000)),
        message(b'S', b"name\0value\0"),
        b"R\0\x10\0\0".to_vec(),
    ] {
        for make in every_probe() {
            let verdict = verdict(Script::Endless(bytes.clone()), make).await;
            assert!(!verdict.is_ready());
        }
    }
}

#[tokio::test]
async fn a_peer_that_hangs_up_at_once_is_told_from_one_that_speaks() {
    for make in every_probe() {
        assert_eq!(
            cause(Script::HangsUp(Vec::new()), make).await,
            Cause::ClosedWithoutAnswer
        );
    }
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    for make in every_probe() {
        let (listener, address) = listen().await;
        let peer = tokio::spawn(play(listener, Script::Silence));
        let verdict = make(address)
            .attempt(Instant::now() + Duration::from_millis(100))
            .await;
        assert_eq!(verdict, Verdict::NotReady(Cause::TimedOut(Stage::Answer)));
        peer.abort();
    }
}

#[tokio::test]
async fn nobody_there_is_refused_and_a_name_without_address_says_so() {
    let (listener, address) = listen().await;
    drop(listener);
    let deadline = Instant::now() + Duration::from_secs(60);
    assert_eq!(
        redis(address.clone()).attempt(deadline).await,
        Verdict::NotReady(Cause::Refused)
    );
    for answer in [Ok(Vec::new()), Err("no such name")] {
        let mut probe = redis(HostPort::parse("db").unwrap());
        probe.place.lookup = Arc::new(move |_, _| answer.clone().map_err(io::Error::other));
        let verdict = probe.attempt(deadline).await;
        assert!(
            matches!(verdict, Verdict::NotReady(Cause::NameNotFound(_))),
            "{verdict}"
        );
    }
}

#[tokio::test]
async fn a_lookup_that_hangs_ends_at_the_deadline_and_is_not_started_twice() {
    let (answer, hung) = mpsc::channel::<SocketAddr>();
    let (started, starts) = mpsc::channel();
    let hung = std::sync::Mutex::new(hung);
    let (listener, address) = listen().await;
    let peer = tokio::spawn(play(listener, Script::Says(b"+PONG\r\n".to_vec())));
    let mut probe = redis(HostPort::parse("db").unwrap());
    probe.place.lookup = Arc::new(move |_, _| {
        started.send(()).unwrap();
        Ok(vec![hung.lock().unwrap().recv().unwrap()])
    });
    for _ in 0..2 {
        let verdict = probe.attempt(Instant::now() + Duration::from_millis(50)).await;
        assert_eq!(verdict, Verdict::NotReady(Cause::TimedOut(Stage::Lookup)));
    }
    answer
        .send(format!("127.0.0.1:{}", address.port.unwrap()).parse().unwrap())
        .unwrap();
    let verdict = probe.attempt(Instant::now() + Duration::from_secs(60)).await;
    assert_eq!(verdict, Verdict::Ready);
    assert_eq!(starts.try_iter().count(), 1);
    peer.abort();
}

#[tokio::test]
async fn one_address_that_answers_is_enough_whatever_the_others_do() {
    let (silent, silent_address) = listen().await;
    let (closed, closed_address) = listen().await;
    drop(closed);
    let (good, good_address) = listen().await;
    let peers = [
        tokio::spawn(play(silent, Script::Silence)),
        tokio::spawn(play(good, Script::Says(b"+PONG\r\n".to_vec()))),
    ];
    let addresses: Vec<SocketAddr> = [&closed_address, &silent_address, &good_address]
        .iter()
        .map(|address| address.to_string().parse().unwrap())
        .collect();
    let mut probe = redis(HostPort::parse("db").unwrap());
    probe.place.lookup = Arc::new(move |_, _| Ok(addresses.clone()));
    let verdict = probe.attempt(Instant::now() + Duration::from_secs(3)).await;
    assert_eq!(verdict, Verdict::Ready);
    for peer in peers {
        peer.abort();
    }
}

#[tokio::test]
async fn of_several_addresses_the_one_that_tells_most_is_heard() {
    let (closed, closed_address) = listen().await;
    drop(closed);
    let (loading, loading_address) = listen().await;
    let peer = tokio::spawn(play(loading, Script::Says(b"-LOADING wait\r\n".to_vec())));
    let addresses: Vec<SocketAddr> = [&loading_address, &closed_address]
        .iter()
        .map(|address| address.to_string().parse().unwrap())
        .collect();
    let mut probe = redis(HostPort::parse("db").unwrap());
    probe.place.lookup = Arc::new(move |_, _| Ok(addresses.clone()));
    let verdict = probe.attempt(Instant::now() + Duration::from_secs(60)).await;
    assert_eq!(verdict, Verdict::NotReady(Cause::Loading));
    peer.abort();
}
