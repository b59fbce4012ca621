use std::path::Path;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{pause, sleep};
use tokio_tungstenite::client_async;
use tokio_util::task::TaskTracker;

use super::super::keys::Keys;
use super::super::publish::Publisher;
use super::super::server::accept;
use super::*;
use crate::protocol::{PresharedKey, Request, Wire};

/// An authenticated peer of a guardian whose manager is the test, from then on with a clock that jumps to the next
/// deadline whenever all wait.
async fn peer() -> (Socket, mpsc::Receiver<Message>) {
    let key = PresharedKey::parse(&"k".repeat(40), Path::new("key")).unwrap();
    let auth = Request::Auth {
        key: key.expose().to_owned().into(),
    };
    let (manager, messages) = mpsc::channel(1);
    let keys = Arc::new(Keys::new(key.into(), Vec::new()));
    let units = Arc::new(crate::units::systemd::Systemd::new("io-databases.target"));
    let (publisher, _) = Publisher::new(manager.clone(), units, Arc::default());
    let shared = Arc::new(Shared::new(
        keys,
        Wire::Auto,
        manager,
        publisher,
        CancellationToken::new(),
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, alive) = mpsc::channel(1);
    tokio::spawn(accept(listener, shared, TaskTracker::new(), alive));
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = client_async("ws://guardian/", stream).await.unwrap();
    socket.send(WsMessage::text(auth.to_text())).await.unwrap();
    let answer = socket.next().await.unwrap().unwrap().into_text().unwrap();
    assert_eq!(Answer::parse(&answer).unwrap(), Answer::auth_ok());
    pause();
    (socket, messages)
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_asked_once_and_let_go() {
    let (socket, _messages) = peer().await;
    let began = Instant::now();
    let mut said = Vec::new();
    // Bytes are read, and nothing is answered.
    socket.into_inner().read_to_end(&mut said).await.unwrap();
    let reason = "Silent for too long";
    let mut expected = vec![0x89, 0, 0x88, 2 + reason.len() as u8, 0x03, 0xe8];
    expected.extend(reason.bytes());
    assert_eq!(said, expected, "one ping, then close code 1000");
    assert!(began.elapsed() >= KEEPALIVE_INTERVAL * 2);
}

#[tokio::test]
async fn a_peer_that_answers_pings_stays() {
    let (mut socket, _messages) = peer().await;
    for _ in 0..10 {
        let message = socket.next().await.unwrap().unwrap();
        assert!(message.is_ping(), "{message:?}");
    }
}

#[tokio::test]
async fn a_peer_that_waits_for_an_answer_is_left_alone() {
    let (mut socket, mut messages) = peer().await;
    let drain = Request::Command {
        action: Action::Drain,
        id: None,
        generation: None,
        terms: None,
    };
    socket.send(WsMessage::text(drain.to_text())).await.unwrap();
    let Some(Message::Command { reply, .. }) = messages.recv().await else {
        panic!("no command");
    };
    sleep(KEEPALIVE_INTERVAL * 100).await;
    let done = Response::new(Action::Drain, Status::Ok, "done");
    reply.send(done.clone().into()).unwrap();
    let answer = socket.next().await.unwrap().unwrap().into_text().unwrap();
    assert_eq!(Answer::parse(&answer).unwrap(), Answer::Response(done));
}
