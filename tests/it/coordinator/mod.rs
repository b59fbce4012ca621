//! `io-coordinator` as people and units run it.

mod answers;
mod arguments;
mod disks;
mod fleets;
mod seed;
mod serve;
mod waves;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use io_guardian::coordinator::{HostReport, Report};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// The key of these tests. It must not show up in any output.
pub(crate) const KEY: &str = "correct-horse-battery-staple-0123456789";
pub(crate) const AUTH_OK: &str =
    r#"{"type": "auth", "status": "ok", "message": "Authentication successful"}"#;

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// What a run of the binary printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn report(&self) -> Report {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn only_host(&self) -> HostReport {
        let mut hosts = self.report().hosts;
        assert_eq!(hosts.len(), 1, "{self:?}");
        hosts.remove(0)
    }
}

/// A folder with a key file in it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), format!("{KEY}\n")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// The binary with these arguments, with the key file, and with nothing of our environment that it reads.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bare(arguments);
        command.env("GUARDIAN_PSK_FILE", self.path("key"));
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        end(self.command(arguments)).await
    }

    /// A run against these hosts, with JSON as output.
    pub(crate) async fn json(&self, action: &str, hosts: &str, more: &[&str]) -> Ended {
        let mut arguments = vec![action, "--hosts", hosts, "--output", "json"];
        arguments.extend(more);
        self.run(&arguments).await
    }
}

/// The binary, with no key file and nothing of our environment that it reads.
pub(crate) fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_io-coordinator"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for variable in [
        "GUARDIAN_PORT",
        "GUARDIAN_PSK_FILE",
        "GUARDIAN_TIMEOUT",
        "RUST_LOG",
        "JOURNAL_STREAM",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(variable);
    }
    command
}

pub(crate) async fn end(mut command: Command) -> Ended {
    let output = command.output().await.unwrap();
    let ended = Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(
        !ended.stdout.contains(KEY) && !ended.stderr.contains(KEY),
        "the key was printed"
    );
    ended
}

/// A server on loopback that does `script` with each connection, numbered from 0. It ends with the test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start<F, S>(script: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream, usize) -> F + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut scripts = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                scripts.spawn(script(stream, counter.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self {
            address,
            connections,
            task,
        }
    }

    /// A guardian that accepts the key and answers every command with `answers`, in which `ACTION` stands for
    /// the action.
    pub(crate) async fn answering(answers: &'static [&'static str]) -> Self {
        Self::start(move |stream, _| async move {
            let Some((mut socket, action)) = command_on(stream).await else {
                return;
            };
            for answer in answers {
                send(&mut socket, &answer.replace("ACTION", &action)).await;
            }
            wait_for_end(&mut socket).await;
        })
        .await
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Shakes hands, accepts the key, and returns the connection with the action of its first command.
pub(crate) async fn command_on(stream: TcpStream) -> Option<(Socket, String)> {
    let mut socket = tokio_tungstenite::accept_async(stream).await.ok()?;
    let auth: serde_json::Value = serde_json::from_str(&text(&mut socket).await?).unwrap();
    assert_eq!(auth["key"], KEY);
    send(&mut socket, AUTH_OK).await;
    let command: serde_json::Value = serde_json::from_str(&text(&mut socket).await?).unwrap();
    let action = command["action"].as_str().unwrap().to_owned();
    Some((socket, action))
}

pub(crate) async fn text(socket: &mut Socket) -> Option<String> {
    loop {
        match socket.next().await?.ok()? {
            Message::Text(text) => return Some(text.to_string()),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

pub(crate) async fn send(socket: &mut Socket, text: &str) {
    // The other side may be gone: then the test sees what it printed.
    let _ = socket.send(Message::text(text)).await;
}

pub(crate) async fn wait_for_end(socket: &mut Socket) {
    while let Some(Ok(_)) = socket.next().await {}
}

/// An address of this machine that nothing listens on: taken and given back.
pub(crate) async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

pub(crate) fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}
