//! Each way in which one host can answer, or not: the word, the message, the remedy.

use std::future::pending;

use io_guardian::coordinator::Verdict;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::*;

/// One host, one word; the message and the remedy hold these parts.
async fn expect(server: &Server, word: Verdict, message: &str, remedy: &str) {
    // Long enough that a busy machine comes as far as the phase that is meant.
    let timeout = if word == Verdict::TimedOut { "2s" } else { "60s" };
    let ended = Place::new()
        .json("drain", &server.host(), &["--timeout", timeout])
        .await;
    let host = ended.only_host();
    assert_eq!(host.result, word, "{host:?}");
    assert!(host.message.contains(message), "{host:?}");
    assert!(
        host.remedy.as_deref().unwrap_or_default().contains(remedy),
        "{host:?}"
    );
    // The line of the log says the same.
    assert!(
        ended.stderr.contains(&format!("host={}", server.host())),
        "{ended:?}"
    );
    assert!(ended.stderr.contains(&format!("result={word}")), "{ended:?}");
    assert_eq!(ended.code, Some(0), "failed hosts alone do not fail the command");
}

#[tokio::test]
async fn a_guardian_that_does_what_it_is_told() {
    let server = Server::answering(&[
        r#"{"type": "response", "action": "ACTION", "status": "ok", "message": "drained", "units": [{"name": "a.service", "state": "inactive", "elapsed_ms": 3}, {"name": "b.service", "state": "failed", "result": "exit-code"}]}"#,
    ])
    .await;
    let place = Place::new();
    let host = place.json("drain", &server.host(), &[]).await.only_host();
    assert_eq!(
        (host.result, host.message.as_str(), host.units.len()),
        (Verdict::Ok, "drained", 2)
    );
    assert_eq!(host.address, Some(server.address));
    assert_eq!(host.remedy, None);
    let ended = place.run(&["drain", "--hosts", &server.host()]).await;
    assert!(ended.stdout.contains("1 stopped, 1 failed"), "{ended:?}");
    assert!(
        ended.stdout.contains("[b.service failed (exit-code)]"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("drain: 1 of 1 hosts ok in "), "{ended:?}");
    assert!(
        ended.stderr.contains("units=\"1 stopped, 1 failed\""),
        "{ended:?}"
    );
}

#[tokio::test]
async fn an_error_answer_is_repeated_with_its_units() {
    let server = Server::answering(&[
        r#"{"type": "response", "action": "ACTION", "status": "error", "message": "still stopping: a.service", "units": [{"name": "a.service", "state": "deactivating"}]}"#,
    ])
    .await;
    expect(
        &server,
        Verdict::Failed,
        "still stopping: a.service",
        "systemctl status",
    )
    .await;
    let ended = Place::new().run(&["drain", "--hosts", &server.host()]).await;
    assert!(ended.stdout.contains("[a.service deactivating]"), "{ended:?}");
    assert!(ended.stdout.contains("0 of 1 hosts ok, 1 failed"), "{ended:?}");
}

#[tokio::test]
async fn a_guardian_with_another_key() {
    let server = Server::start(|stream, _| async move {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        text(&mut socket).await;
        send(
            &mut socket,
            r#"{"type": "auth", "status": "error", "message": "Invalid key"}"#,
        )
        .await;
        wait_for_end(&mut socket).await;
    })
    .await;
    expect(
        &server,
        Verdict::BadKey,
        "refused the key: Invalid key",
        "key check",
    )
    .await;
    let server = Server::start(|stream, _| async move {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        text(&mut socket).await;
        let frame = CloseFrame {
            code: 1008.into(),
            reason: "Not authenticated".into(),
        };
        let _ = socket.close(Some(frame)).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    expect(&server, Verdict::BadKey, "Not authenticated", "key check").await;
}

#[tokio::test]
async fn a_timeout_says_in_which_phase() {
    let silent = Server::start(|stream, _| async move {
        pending::<()>().await;
        drop(stream);
    })
    .await;
    let after_handshake = Server::start(|stream, _| async move {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        wait_for_end(&mut socket).await;
    })
    .await;
    let after_command = Server::answering(&[]).await;
    let (quiet, handshake, command) = (
        "waiting for the WebSocket handshake",
        "while authenticating",
        "timed out after 2.0 s while waiting for the answer to drain",
    );
    tokio::join!(
        expect(&silent, Verdict::TimedOut, quiet, "silent"),
        expect(&after_handshake, Verdict::TimedOut, handshake, "silent"),
        expect(&after_command, Verdict::TimedOut, command, "--timeout"),
    );
}

#[tokio::test]
async fn nobody_listens() {
    let place = Place::new();
    let closed = closed_port().await;
    let host = place.json("ping", &closed, &[]).await.only_host();
    assert_eq!(host.result, Verdict::Refused);
    assert!(host.remedy.unwrap().contains("systemctl status io-guardian"));
}

#[tokio::test]
async fn a_name_that_does_not_exist() {
    // RFC 6761: `.invalid` never resolves. Whether a resolver answers or not, there is no address.
    let place = Place::new();
    let ended = place
        .json("ping", "no-such-host.invalid", &["--timeout", "2s"])
        .await;
    let host = ended.only_host();
    assert!(
        matches!(host.result, Verdict::Unreachable | Verdict::TimedOut) && host.message.contains("name"),
        "{host:?}"
    );
    assert_eq!(host.address, None);
    assert!(host.remedy.unwrap().contains("DNS"));
}

#[tokio::test]
async fn something_else_listens() {
    for (reply, message) in [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "HTTP status 404",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            "HTTP status 200",
        ),
        ("SSH-2.0-OpenSSH_9.2\r\nnonsense\r\n\r\n", "not a guardian"),
    ] {
        let server = Server::start(move |mut stream, _| async move {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(reply.as_bytes()).await;
            let _ = stream.read(&mut request).await;
        })
        .await;
        expect(&server, Verdict::Failed, message, "something else listens").await;
    }
    let chatty = Server::answering(&["this is no JSON"]).await;
    expect(
        &chatty,
        Verdict::Failed,
        "not a guardian",
        "something else listens",
    )
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks() {
    let at_once = Server::start(|stream, _| async move { drop(stream) }).await;
    expect(
        &at_once,
        Verdict::Unreachable,
        "waiting for the WebSocket handshake",
        "drops them",
    )
    .await;
    let in_mid_command = Server::start(|stream, _| async move {
        let (socket, _) = command_on(stream).await.unwrap();
        drop(socket);
    })
    .await;
    expect(
        &in_mid_command,
        Verdict::Unreachable,
        "lost while waiting for the answer to drain",
        "io-coordinator status",
    )
    .await;
    let restarting = Server::start(|stream, _| async move {
        let (mut socket, _) = command_on(stream).await.unwrap();
        let frame = CloseFrame {
            code: 1001.into(),
            reason: "restarting".into(),
        };
        let _ = socket.close(Some(frame)).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    expect(
        &restarting,
        Verdict::Failed,
        "code 1001: restarting",
        "--retry-for",
    )
    .await;
}

#[tokio::test]
async fn an_answer_beyond_the_limit() {
    let server = Server::start(|stream, _| async move {
        let (mut socket, _) = command_on(stream).await.unwrap();
        send(&mut socket, &"x".repeat(300 << 10)).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    expect(&server, Verdict::Failed, "longer than 262144 bytes", "journalctl").await;
}

#[tokio::test]
async fn what_is_not_for_us_is_passed_over() {
    let server = Server::start(|stream, _| async move {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        send(&mut socket, r#"{"type": "welcome", "version": 9}"#).await;
        text(&mut socket).await;
        let _ = socket.send(Message::binary(vec![0, 1, 2])).await;
        send(&mut socket, r#"{"type": "auth", "status": "ok", "message": "m", "realm": {"a": [1]}}"#).await;
        text(&mut socket).await;
        send(&mut socket, r#"{"type": "progress", "done": 1}"#).await;
        send(&mut socket, r#"{"type": "response", "action": "undrain", "status": "error"}"#).await;
        let answer = r#"{"type": "response", "action": "drain", "status": "ok", "message": "done", "units": "many", "x": null}"#;
        send(&mut socket, answer).await;
        wait_for_end(&mut socket).await;
    })
    .await;
    let host = Place::new().json("drain", &server.host(), &[]).await.only_host();
    assert_eq!((host.result, host.message.as_str()), (Verdict::Ok, "done"));
}

#[tokio::test]
async fn a_guardian_that_keeps_alive_a_long_wait_gets_its_pongs() {
    let server = Server::start(|stream, _| async move {
        let (mut socket, _) = command_on(stream).await.unwrap();
        for n in 0..20_u8 {
            let _ = socket.send(Message::Ping(vec![n].into())).await;
            // The answer comes only after the pong has.
            loop {
                match socket.next().await {
                    Some(Ok(Message::Pong(echo))) if echo[..] == [n] => break,
                    Some(Ok(_)) => {}
                    _ => return,
                }
            }
        }
        send(
            &mut socket,
            r#"{"type": "response", "action": "drain", "status": "ok", "message": "done"}"#,
        )
        .await;
        wait_for_end(&mut socket).await;
    })
    .await;
    let host = Place::new().json("drain", &server.host(), &[]).await.only_host();
    assert_eq!(host.result, Verdict::Ok, "{host:?}");
}

#[tokio::test]
async fn a_guardian_cannot_forge_lines() {
    let server = Server::answering(&[
        r#"{"type": "response", "action": "ACTION", "status": "error", "message": "no\n<3>host=db1 result=ok\u001b[2J\rping: 1 of 1 hosts ok", "units": [{"name": "a\nb", "state": "c\u001b[31m"}]}"#,
    ])
    .await;
    let place = Place::new();
    let ended = place.run(&["ping", "--hosts", &server.host()]).await;
    for output in [&ended.stdout, &ended.stderr] {
        assert!(!output.contains('\u{1b}') && !output.contains('\r'), "{output:?}");
        assert!(
            !output
                .lines()
                .any(|line| line.starts_with("<3>") || line.starts_with("ping: 1")),
            "{output}"
        );
    }
    let host = place.json("ping", &server.host(), &[]).await.only_host();
    assert!(
        !host.message.contains('\n') && !host.units[0].name.contains('\n'),
        "{host:?}"
    );
}

#[tokio::test]
async fn status_shows_what_is_guarded() {
    let server = Server::answering(&[
        r#"{"type": "response", "action": "status", "status": "ok", "message": "fine", "target": "io-databases.target", "target_state": "active", "version": "0.1.0", "generation": 7, "last_command": {"action": "undrain", "status": "ok", "message": "m", "elapsed_ms": 5, "age_ms": 6}, "units": [{"name": "a.service", "state": "active"}]}"#,
    ])
    .await;
    let place = Place::new();
    let host = place.json("status", &server.host(), &[]).await.only_host();
    assert_eq!(host.target.as_deref(), Some("io-databases.target"));
    assert_eq!(host.guardian_version.as_deref(), Some("0.1.0"));
    assert_eq!(host.last_generation, Some(7));
    assert_eq!(host.last_command.unwrap().age_ms, 6);
    let ended = place.run(&["status", "--hosts", &server.host()]).await;
    for part in [
        "  target   io-databases.target active\n",
        "  version  0.1.0\n",
        "  last     undrain ok, 6 ms ago",
        "  units    a.service active\n",
    ] {
        assert!(ended.stdout.contains(part), "{part:?} is not in {}", ended.stdout);
    }
}
