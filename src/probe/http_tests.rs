//! HTTP checks against scripted peers on loopback: raw bytes in, a line out.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::scripted::{Script, dialogue, listen, play};
use super::{Check, HttpCheck, Password};

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn near() -> Instant {
    Instant::now() + Duration::from_millis(150)
}

/// Time for a busy machine to say what it has to say, and then nothing more.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

/// One attempt on a peer that plays `script`.
async fn attempt(
    script: Script,
    deadline: Instant,
    with: impl FnOnce(HttpCheck) -> HttpCheck,
) -> Result<(), String> {
    let (listener, address) = listen().await;
    let peer = tokio::spawn(play(listener, script));
    let mut check = Check::http(with(HttpCheck::new(format!("http://{address}/health")))).unwrap();
    // As a task of its own, as daemons run it.
    let found = tokio::spawn(async move { check.attempt(deadline).await })
        .await
        .unwrap();
    peer.abort();
    if let Err(line) = &found {
        assert!(
            !line.contains(['\n', '\r', '\x1b']) && line.len() < 600,
            "{line:?}"
        );
    }
    found
}

fn any(check: HttpCheck) -> HttpCheck {
    check
}

fn equals(text: &str) -> impl FnOnce(HttpCheck) -> HttpCheck {
    let expected_response = Some(text.to_owned());
    move |check| HttpCheck {
        expected_response,
        ..check
    }
}

fn contains(text: &str) -> impl FnOnce(HttpCheck) -> HttpCheck {
    let expected_response_contains = Some(text.to_owned());
    move |check| HttpCheck {
        expected_response_contains,
        ..check
    }
}

fn says(text: &str) -> Script {
    Script::Says(text.as_bytes().to_vec())
}

fn with_body(body: &str) -> Script {
    says(&format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

#[track_caller]
fn fails(found: Result<(), String>, text: &str) {
    let line = found.unwrap_err();
    assert!(line.contains(text), "{line}");
}

#[tokio::test]
async fn the_code_and_the_body_decide() {
    attempt(with_body("whatever"), far(), any).await.unwrap();
    attempt(with_body("up"), far(), equals("up")).await.unwrap();
    attempt(with_body("up\r\n"), far(), equals("up")).await.unwrap();
    attempt(with_body("up"), far(), equals("up\n")).await.unwrap();
    attempt(with_body(""), far(), equals("")).await.unwrap();
    attempt(
        with_body(r#"{"value":"foo"}"#),
        far(),
        contains(r#""value":"foo""#),
    )
    .await
    .unwrap();
    fails(
        attempt(with_body("down\x1b[31m\nmore"), far(), equals("up")).await,
        r#"its body is "down [31m more", and "up" is expected"#,
    );
    fails(
        attempt(with_body("upper"), far(), equals("up")).await,
        "is expected",
    );
    fails(attempt(with_body("x"), far(), equals("")).await, "is expected");
    fails(
        attempt(with_body("down"), far(), contains("up")).await,
        r#"its body does not contain "up": it is "down""#,
    );
    let both = |check| equals("up and well")(contains("up")(check));
    attempt(with_body("up and well"), far(), both).await.unwrap();
    fails(attempt(with_body("up"), far(), both).await, "is expected");
    let created = |check| HttpCheck {
        expected_code: 503,
        ..check
    };
    fails(
        attempt(with_body(""), far(), created).await,
        "it answers 200 OK, and 503 is expected",
    );
}

#[tokio::test]
async fn what_is_expected_is_found_across_the_parts_of_a_body() {
    let chunked = |chunks: &str| {
        says(&format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        ))
    };
    let parts = "4\r\nxxle\r\n1\r\na\r\n5\r\nderxx\r\n";
    // Found before the end, which never comes.
    attempt(chunked(parts), far(), contains("leader")).await.unwrap();
    let whole = format!("{parts}0\r\n\r\n");
    attempt(chunked(&whole), far(), equals("xxleaderxx"))
        .await
        .unwrap();
    fails(
        attempt(chunked(&whole), far(), contains("Leader")).await,
        r#"it is "xxleaderxx""#,
    );
    // A letter of two bytes in two parts.
    attempt(chunked("1\r\n\u{c3}\r\n"), near(), contains("x"))
        .await
        .unwrap_err();
    let mut letter = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nf\xc3\r\n".to_vec();
    letter.extend_from_slice(b"2\r\n\xbcr\r\n0\r\n\r\n");
    attempt(Script::Says(letter), far(), contains("für"))
        .await
        .unwrap();
    // Until the connection ends.
    let until_closed = b"HTTP/1.0 200 OK\r\n\r\nup".to_vec();
    attempt(Script::Answers(until_closed), far(), equals("up"))
        .await
        .unwrap();
}

#[tokio::test]
async fn no_more_of_a_body_is_read_than_is_needed_and_never_more_than_64_kib() {
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    attempt(says(head), far(), any).await.unwrap();
    attempt(says(&format!("{head}the leader and")), far(), contains("leader"))
        .await
        .unwrap();
    let most = "x".repeat(64 << 10);
    attempt(with_body(&most), far(), equals(&most)).await.unwrap();
    fails(
        attempt(with_body(&format!("{most}x")), far(), contains("y")).await,
        "longer than 64 KiB",
    );
    let endless = |head: &str, part: &str| {
        let (head, part) = (head.as_bytes().to_vec(), part.as_bytes().to_vec());
        let mut all = head;
        all.extend(part.repeat(200_000));
        Script::Answers(all)
    };
    fails(
        attempt(endless(head, "no end "), far(), contains("y")).await,
        "longer than 64 KiB",
    );
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    fails(
        attempt(endless(chunked, "1\r\nx\r\n"), far(), contains("y")).await,
        "longer than 64 KiB",
    );
    // Parts of nothing at all: what is around them counts, too.
    let extended = format!("1;{}\r\nx\r\n", "e".repeat(1000));
    attempt(endless(chunked, &extended), far(), contains("y"))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn another_code_is_told_with_what_to_do() {
    for (head, text) in [
        (
            "503 Service Unavailable\r\n",
            "it answers 503 Service Unavailable, and 200 is expected: see its log",
        ),
        ("404 Not Found\r\n", "check the path"),
        (
            "401 Unauthorized\r\n",
            "it wants a user and a password, give them",
        ),
        ("204 No Content\r\n", "it answers 204 No Content"),
        (
            "302 Found\r\nLocation: http://other/\r\n",
            r#"redirects are not followed, name the URL that answers (it leads to "http://other/")"#,
        ),
        ("304 Not Modified\r\n", "redirects are not followed"),
        (
            "101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n",
            "",
        ),
        ("777 Odd\r\n", "it answers 777"),
    ] {
        fails(
            attempt(
                says(&format!("HTTP/1.1 {head}Content-Length: 0\r\n\r\n")),
                far(),
                any,
            )
            .await,
            text,
        );
    }
    let login = |check| HttpCheck {
        user: Some("probe".to_owned()),
        password: Some(Password::from("secret")),
        ..check
    };
    fails(
        attempt(
            says("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
            far(),
            login,
        )
        .await,
        "it refuses the user or the password",
    );
}

/// What is sent to `url`, whose port is the listener's.
async fn sent(bind: &str, url: &str, with: impl FnOnce(HttpCheck) -> HttpCheck) -> Option<String> {
    // Where there is no IPv6, there is nothing to test.
    let listener = TcpListener::bind(bind).await.ok()?;
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = oneshot::channel();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        tell.send(String::from_utf8(request).unwrap()).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    });
    let url = url.replace("PORT", &port.to_string());
    let mut check = Check::http(with(HttpCheck::new(url))).unwrap();
    check.attempt(far()).await.unwrap();
    peer.await.unwrap();
    Some(
        told.await
            .unwrap()
            .to_ascii_lowercase()
            .replace(&port.to_string(), "PORT"),
    )
}

#[tokio::test]
async fn what_is_asked_is_one_get_for_the_path_with_the_host_and_the_user() {
    let request = sent("127.0.0.1:0", "http://127.0.0.1:PORT/a%20b?lag=1#part", |check| {
        HttpCheck {
            user: Some("Aladdin".to_owned()),
            password: Some(Password::from("open sesame")),
            ..check
        }
    });
    let request = request.await.unwrap();
    assert!(request.starts_with("get /a%20b?lag=1 http/1.1\r\n"), "{request}");
    for header in [
        "host: 127.0.0.1:PORT",
        "connection: close",
        // The example of RFC 7617, in small letters.
        "authorization: basic qwxhzgrpbjpvcgvuihnlc2ftzq==",
    ] {
        assert!(request.contains(&format!("\r\n{header}\r\n")), "{request}");
    }
    if let Some(request) = sent("[::1]:0", "http://[::1]:PORT", any).await {
        assert!(request.starts_with("get / http/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nhost: [::1]:PORT\r\n"), "{request}");
        assert!(!request.contains("authorization"), "{request}");
    }
}

#[tokio::test]
async fn rubbish_is_never_healthy_and_is_told() {
    for (bytes, text) in [
        (
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            r#"what answers there is not HTTP: it says "SSH-2.0-OpenSSH_9.2": check the port"#,
        ),
        (b"", "it closed the connection without an answer"),
        (b"\0", "is not HTTP"),
        (b"<html>up</html>", "is not HTTP"),
        (b"\x15\x03\x01\0\x02\x02\x46", "write https:// into the URL"),
        (b"HTTP/1.1", "breaks off or is none"),
        (b"HTTP/1.1 200", "breaks off or is none"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", "breaks off or is none"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "breaks off or is none"),
        (b"HTTP/1.1 20\r\n\r\n", "breaks off or is none"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "is not HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "breaks off or is none",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "breaks off or is none",
        ),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "breaks off or is none"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "is not HTTP"),
    ] {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        let line = attempt(Script::Answers(bytes.to_vec()), far(), any)
            .await
            .expect_err(&shown);
        assert!(line.contains(text), "{shown:?}: {line}");
    }
    for (body, text) in [
        ("Content-Length: 5\r\n\r\nabc", "breaks off"),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nabc", "breaks off"),
        (
            "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
            "breaks off",
        ),
        ("Transfer-Encoding: chunked\r\n\r\nx\r\nabc", "breaks off"),
        (
            "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffffffff\r\nabc",
            "breaks off",
        ),
    ] {
        let script = Script::Answers(format!("HTTP/1.1 200 OK\r\n{body}").into_bytes());
        fails(attempt(script, far(), equals("abc")).await, text);
    }
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    for part in [
        "x",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    ] {
        attempt(Script::Endless(part.repeat(100).into_bytes()), far(), any)
            .await
            .unwrap_err();
    }
    let ok = b"HTTP/1.1 200 OK\r\n".to_vec();
    for header in [
        "X-Y: z\r\n".to_owned(),
        format!("X: {}", "y".repeat(4000)),
        "X: y\r\n ".to_owned(),
    ] {
        let all = [ok.clone(), header.into_bytes().repeat(50_000)].concat();
        fails(
            attempt(Script::Answers(all), far(), any).await,
            "breaks off or is none",
        );
    }
}

#[tokio::test]
async fn silence_and_dribbling_end_at_the_deadline() {
    fails(
        attempt(Script::Silence, near(), any).await,
        "timed out waiting for its answer",
    );
    // Half of a head, and then nothing; or one byte for each of our waits.
    fails(
        attempt(says("HTTP/1.1 200 OK\r\nX"), soon(), any).await,
        "timed out in the middle of its answer",
    );
    let body = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab";
    fails(
        attempt(says(body), soon(), equals("abcde")).await,
        "timed out in the middle of its answer",
    );
    attempt(says(body), far(), any).await.unwrap();
    let (listener, address) = listen().await;
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        while stream.write_all(b"H").await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let mut check = Check::http(HttpCheck::new(format!("http://{address}"))).unwrap();
    check.attempt(soon()).await.unwrap_err();
    peer.abort();
}

#[tokio::test]
async fn a_check_asks_again_over_a_new_connection() {
    let (listener, address) = listen().await;
    let mut check = Check::http(HttpCheck::new(format!("http://{address}/"))).unwrap();
    for answer in ["HTTP/1.1 503 No\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        let played = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let (found, ()) = tokio::join!(check.attempt(far()), played);
        assert_eq!(found.is_ok(), answer.contains("200"), "{found:?}");
    }
    drop(listener);
    fails(check.attempt(far()).await, "connection refused");
}

#[tokio::test]
async fn an_answer_that_comes_before_the_question_counts_for_nothing() {
    let unasked = dialogue(&[b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"]);
    fails(attempt(unasked, far(), any).await, "it answers 503");
}
