//! One connection: handshake, conversation, goodbye. Every wait on the network has a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Message as WsMessage, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use super::admission::{ConnectionId, Origin};
use super::manager::Message;
use super::operations::Direction;
use super::server::{Noise, Shared};
use super::session::{Frame, Reaction, Session};
use crate::protocol::limits::{
    AUTH_TIMEOUT, HANDSHAKE_TIMEOUT, KEEPALIVE_INTERVAL, MAX_COMMANDS_IN_FLIGHT, READ_BUFFER_BYTES,
    REQUEST_MAX_BYTES, WRITE_TIMEOUT,
};
use crate::protocol::{
    Action, Answer, CLOSE_GOING_AWAY, CLOSE_NORMAL, CLOSE_NOT_TEXT, CLOSE_POLICY, CLOSE_PROTOCOL,
    CLOSE_TOO_BIG, CLOSE_TRY_LATER, CommandId, Response, Status,
};

type Socket = WebSocketStream<TcpStream>;

/// How long a peer may take to say goodbye back.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The peer closed, or vanished.
    Peer,
    /// We close, with this code and reason.
    Close(u16, &'static str),
    /// The peer takes nothing off our hands: there is no use in a goodbye.
    Stuck,
}

/// What a connection is given.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) peer: SocketAddr,
    pub(super) shared: Arc<Shared>,
    /// Cancelled when this connection has to make room.
    pub(super) evicted: CancellationToken,
}

/// Answers on their way, each with the id of its command.
type InFlight = FuturesUnordered<
    BoxFuture<
        'static,
        (
            Action,
            Option<CommandId>,
            Result<Box<Response>, oneshot::error::RecvError>,
        ),
    >,
>;

impl Connection {
    /// Talks until the end.
    pub(super) async fn run(self, stream: TcpStream) {
        let began = Instant::now();
        if stream.set_nodelay(true).is_ok() {
            let handshake = tokio_tungstenite::accept_async_with_config(stream, Some(config()));
            tokio::select! {
                socket = timeout(HANDSHAKE_TIMEOUT, handshake) => match socket {
                    Ok(Ok(socket)) => self.talk(socket, began).await,
                    Ok(Err(error)) => self.shared.noise(Noise::Handshake, self.peer, &error.to_string()),
                    Err(_) => self.shared.noise(Noise::Handshake, self.peer, "no WebSocket handshake in time"),
                },
                () = self.evicted.cancelled() => {}
                () = self.shared.closing.cancelled() => {}
            }
        }
        self.shared.release(self.id);
    }

    async fn talk(&self, mut socket: Socket, began: Instant) {
        let mut session = Session::default();
        let mut in_flight = InFlight::new();
        let end = self
            .converse(&mut socket, &mut session, &mut in_flight, began)
            .await;
        if let End::Close(code, reason) = end {
            // Whoever had to make room has none left for a long goodbye.
            tokio::select! {
                biased;
                () = goodbye(&mut socket, code, reason) => {}
                () = self.evicted.cancelled() => {}
            }
        }
        if session.is_authenticated() {
            tracing::debug!(peer = %self.peer, why = ?end, "peer left");
        }
    }

    async fn converse(
        &self,
        socket: &mut Socket,
        session: &mut Session,
        in_flight: &mut InFlight,
        began: Instant,
    ) -> End {
        let auth_deadline = began + AUTH_TIMEOUT;
        let mut heard = Instant::now();
        let mut pinged = false;
        loop {
            let closing = self.shared.closing.is_cancelled();
            if closing && in_flight.is_empty() {
                return End::Close(CLOSE_GOING_AWAY, "Going away");
            }
            let silent_until = heard
                + if pinged {
                    KEEPALIVE_INTERVAL * 2
                } else {
                    KEEPALIVE_INTERVAL
                };
            tokio::select! {
                message = socket.next() => {
                    heard = Instant::now();
                    pinged = false;
                    let reaction = match message {
                        Some(Ok(WsMessage::Text(text))) => session.on(&self.shared.key, &Frame::Text(&text)),
                        Some(Ok(WsMessage::Binary(_))) => session.on(&self.shared.key, &Frame::Binary),
                        Some(Ok(WsMessage::Close(_))) | None => return End::Peer,
                        Some(Ok(_)) => session.on(&self.shared.key, &Frame::Control),
                        Some(Err(error)) => return self.broken(session, error),
                    };
                    if let Err(end) = self.react(socket, session, in_flight, reaction, auth_deadline).await {
                        return end;
                    }
                }
                Some((action, id, response)) = in_flight.next() => {
                    let mut response = response.unwrap_or_else(|_| {
                        Response::new(action, Status::Error, "the guardian is going away; try again when it is back").into()
                    });
                    response.id = id;
                    if let Err(end) = self.send(socket, &Answer::Response(*response)).await {
                        return end;
                    }
                    // It was silent because it waited for this.
                    heard = Instant::now();
                    pinged = false;
                }
                () = sleep_until(auth_deadline), if !session.is_authenticated() => {
                    self.shared.noise(Noise::Silent, self.peer, "no key in time");
                    return End::Close(CLOSE_POLICY, "Not authenticated");
                }
                () = self.evicted.cancelled(), if !session.is_authenticated() => {
                    return End::Close(CLOSE_TRY_LATER, "Too many connections");
                }
                () = self.shared.closing.cancelled(), if !closing => {}
                // One that waits for an answer is left alone, however long that takes.
                () = sleep_until(silent_until), if session.is_authenticated() && in_flight.is_empty() => {
                    if pinged {
                        return End::Close(CLOSE_NORMAL, "Silent for too long");
                    }
                    pinged = true;
                    match timeout(WRITE_TIMEOUT, socket.send(WsMessage::Ping(Default::default()))).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return End::Peer,
                        Err(_) => return End::Stuck,
                    }
                }
            }
        }
    }

    async fn react(
        &self,
        socket: &mut Socket,
        session: &Session,
        in_flight: &mut InFlight,
        reaction: Reaction,
        auth_deadline: Instant,
    ) -> Result<(), End> {
        match reaction {
            Reaction::Ignore => Ok(()),
            Reaction::Reply(answer) => self.send(socket, &answer).await,
            Reaction::Authenticated(answer) => {
                if let Err(crowded) = self.shared.promote(self.id, self.peer) {
                    self.shared.noise(Noise::Crowded, self.peer, &crowded.to_string());
                    self.send(socket, &Answer::error(crowded.to_string())).await?;
                    return Err(End::Close(CLOSE_TRY_LATER, "Too many connections"));
                }
                tracing::debug!(peer = %self.peer, "authenticated");
                self.send(socket, &answer).await
            }
            Reaction::WrongKey(answer) => {
                let wait = self.shared.wrong_key(self.peer);
                self.shared.noise(Noise::WrongKey, self.peer, "wrong key");
                let answer_at = (Instant::now() + wait).min(auth_deadline.max(Instant::now()));
                tokio::select! {
                    () = sleep_until(answer_at) => {}
                    () = self.evicted.cancelled() => {}
                }
                self.send(socket, &answer).await?;
                Err(End::Close(CLOSE_POLICY, "Authentication failed"))
            }
            Reaction::Close(answer, reason) => {
                self.shared.noise(Noise::Silent, self.peer, reason);
                if let Some(answer) = answer {
                    self.send(socket, &answer).await?;
                }
                Err(End::Close(CLOSE_POLICY, reason))
            }
            Reaction::Command {
                action: Action::Ping,
                id,
                ..
            } => {
                let mut response = Response::new(Action::Ping, Status::Ok, "pong");
                response.id = id;
                self.send(socket, &Answer::Response(response)).await
            }
            Reaction::Command {
                action,
                id,
                generation,
            } => {
                debug_assert!(session.is_authenticated());
                let refusal = if self.shared.closing.is_cancelled() {
                    Some("the guardian is going away; try again when it is back".to_owned())
                } else if in_flight.len() >= MAX_COMMANDS_IN_FLIGHT {
                    Some(format!(
                        "{MAX_COMMANDS_IN_FLIGHT} commands of this connection wait for answers; wait for them"
                    ))
                } else {
                    None
                };
                if let Some(message) = refusal {
                    let mut response = Response::new(action, Status::Error, message);
                    response.id = id;
                    return self.send(socket, &Answer::Response(response)).await;
                }
                let (reply, answer) = oneshot::channel();
                let message = match action {
                    Action::Drain => Message::Command {
                        direction: Direction::Drain,
                        generation,
                        reply,
                    },
                    Action::Undrain => Message::Command {
                        direction: Direction::Undrain,
                        generation,
                        reply,
                    },
                    Action::Status | Action::Ping => Message::Status { reply },
                };
                if !matches!(action, Action::Status) {
                    tracing::info!(%action, peer = %self.peer, generation, "command received");
                }
                // A manager that is busy for a moment holds back this connection only.
                if self.shared.manager.send(message).await.is_err() {
                    return Err(End::Close(CLOSE_GOING_AWAY, "Going away"));
                }
                in_flight.push(answer.map(move |response| (action, id, response)).boxed());
                Ok(())
            }
        }
    }

    async fn send(&self, socket: &mut Socket, answer: &Answer) -> Result<(), End> {
        match timeout(
            WRITE_TIMEOUT,
            socket.send(WsMessage::Text(answer.to_text().into())),
        )
        .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Peer),
            Err(_) => {
                self.shared
                    .noise(Noise::Stuck, self.peer, "does not read its answers");
                Err(End::Stuck)
            }
        }
    }

    /// What an error of the WebSocket means for the connection: it cannot go on, but a peer that broke a rule is
    /// told which.
    fn broken(&self, session: &Session, error: WsError) -> End {
        let end = match &error {
            WsError::Capacity(CapacityError::MessageTooLong { .. }) => {
                End::Close(CLOSE_TOO_BIG, "Message too long")
            }
            WsError::Utf8(_) => End::Close(CLOSE_NOT_TEXT, "Invalid UTF-8"),
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) | WsError::Io(_) => {
                return End::Peer;
            }
            WsError::Protocol(_) => End::Close(CLOSE_PROTOCOL, "Protocol error"),
            _ => return End::Peer,
        };
        self.shared.noise(
            if session.is_authenticated() {
                Noise::Peer
            } else {
                Noise::Silent
            },
            self.peer,
            &error.to_string(),
        );
        end
    }
}

/// Says goodbye, and waits for the peer's for a moment: a socket that is closed while the peer still sends is
/// reset, and our last words would be lost.
async fn goodbye(socket: &mut Socket, code: u16, reason: &'static str) {
    let deadline = Instant::now() + GOODBYE_TIMEOUT;
    let frame = CloseFrame {
        code: code.into(),
        reason: Utf8Bytes::from_static(reason),
    };
    let _ = timeout_at(deadline, socket.close(Some(frame))).await;
    while let Ok(Some(Ok(_))) = timeout_at(deadline, socket.next()).await {}
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * crate::protocol::limits::ANSWER_MAX_BYTES)
        .max_message_size(Some(REQUEST_MAX_BYTES))
        .max_frame_size(Some(REQUEST_MAX_BYTES))
}

/// Where the manager listens.
pub(super) type ToManager = mpsc::Sender<Message>;

/// The part of an address that limits care about.
pub(super) fn origin(peer: SocketAddr) -> Origin {
    Origin::from(peer.ip())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::time::{pause, sleep};
    use tokio_tungstenite::client_async;
    use tokio_util::task::TaskTracker;

    use super::super::server::accept;
    use super::*;
    use crate::protocol::{PresharedKey, Request};

    /// An authenticated peer of a guardian whose manager is the test, from then on with a clock that jumps to the next
    /// deadline whenever all wait.
    async fn peer() -> (Socket, mpsc::Receiver<Message>) {
        let key = PresharedKey::parse(&"k".repeat(40), Path::new("key")).unwrap();
        let auth = Request::Auth {
            key: key.expose().to_owned().into(),
        };
        let (manager, messages) = mpsc::channel(1);
        let shared = Arc::new(Shared::new(key, manager, CancellationToken::new()));
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
}
