//! Scripted peers on loopback, for tests.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::cli::HostPort;

/// What a scripted peer does with its one connection.
pub(super) enum Script {
    /// Says this as soon as it is asked, then waits for us to go.
    Says(Vec<u8>),
    /// Says this without being asked, and hangs up.
    HangsUp(Vec<u8>),
    /// Says this as soon as it is asked, and hangs up.
    Answers(Vec<u8>),
    /// Says this over and over.
    Endless(Vec<u8>),
    /// Says nothing.
    Silence,
    /// Answers one question after the other.
    Dialogue(Vec<Vec<u8>>),
}

pub(super) fn dialogue(answers: &[&[u8]]) -> Script {
    Script::Dialogue(answers.iter().map(|answer| answer.to_vec()).collect())
}

pub(super) async fn play(listener: TcpListener, script: Script) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut question = [0; 4096];
    match script {
        Script::Says(bytes) => {
            let _ = stream.read(&mut question).await;
            let _ = stream.write_all(&bytes).await;
            while stream.read(&mut question).await.is_ok_and(|n| n > 0) {}
        }
        Script::Answers(bytes) => {
            let _ = stream.read(&mut question).await;
            let _ = stream.write_all(&bytes).await;
        }
        Script::HangsUp(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Script::Endless(bytes) => while stream.write_all(&bytes).await.is_ok() {},
        Script::Silence => while stream.read(&mut question).await.is_ok_and(|n| n > 0) {},
        Script::Dialogue(answers) => {
            for answer in answers {
                if !stream.read(&mut question).await.is_ok_and(|n| n > 0) {
                    return;
                }
                let _ = stream.write_all(&answer).await;
            }
            while stream.read(&mut question).await.is_ok_and(|n| n > 0) {}
        }
    }
}

pub(super) async fn listen() -> (TcpListener, HostPort) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::parse(&listener.local_addr().unwrap().to_string()).unwrap();
    (listener, address)
}
