//! One connection: handshake, conversation, goodbye. Every wait on the network has a deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use super::admission::{ConnectionId, Origin};
use super::line::{Layer, Line, PLAIN_REFUSED, Socket};
use super::manager::{Message, Order};
use super::operations::Direction;
use super::server::{Noise, Shared};
use super::session::{Frame, Reaction, Session};
use crate::protocol::limits::{
    AUTH_TIMEOUT, HANDSHAKE_TIMEOUT, KEEPALIVE_INTERVAL, MAX_COMMANDS_IN_FLIGHT, REQUEST_MAX_BYTES,
    WRITE_TIMEOUT,
};
use crate::protocol::{
    Action, Answer, CLOSE_GOING_AWAY, CLOSE_NORMAL, CLOSE_NOT_TEXT, CLOSE_POLICY, CLOSE_PROTOCOL,
    CLOSE_TOO_BIG, CLOSE_TRY_LATER, ChannelError, CommandId, Keyring, Response, Status, channel,
};
use crate::telemetry::audit;

/// How long a peer may take to say goodbye back.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Whoever has to make room for others.
const TOO_MANY: End = End::Close(CLOSE_TRY_LATER, "Too many connections");
/// How many frames that were on their way are taken until then.
const GOODBYE_FRAMES: usize = 256;

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
            Option<u64>,
            Result<Box<Response>, oneshot::error::RecvError>,
        ),
    >,
>;

/// What a peer wants to be told of.
#[derive(Default)]
struct Watched {
    id: Option<CommandId>,
    /// The next status is the answer to its `watch`; those after it are events.
    begins: bool,
    statuses: Option<watch::Receiver<Option<Arc<Response>>>>,
}

impl Watched {
    /// The next status, if any is wanted.
    async fn next(&mut self) -> Arc<Response> {
        if let Some(statuses) = &mut self.statuses {
            while statuses.changed().await.is_ok() {
                if let Some(status) = statuses.borrow_and_update().clone() {
                    return status;
                }
            }
        }
        std::future::pending().await
    }
}

/// Whether nothing is done about it.
fn is_question(action: Action) -> bool {
    matches!(action, Action::Ping | Action::Status | Action::Watch)
}

impl Connection {
    /// Talks until the end.
    pub(super) async fn run(self, stream: TcpStream) {
        let began = Instant::now();
        if stream.set_nodelay(true).is_ok() {
            tokio::select! {
                line = timeout(HANDSHAKE_TIMEOUT, self.accept(stream)) => match line {
                    Ok(Ok(line)) => self.talk(line, began).await,
                    Ok(Err(WsError::Http(_))) => self.shared.noise(Noise::Plain, self.peer, PLAIN_REFUSED),
                    Ok(Err(error)) => self.shared.noise(Noise::Handshake, self.peer, &error.to_string()),
                    Err(_) => self.shared.noise(Noise::Handshake, self.peer, "no WebSocket handshake in time"),
                },
                () = self.evicted.cancelled() => {}
                () = self.shared.closing.cancelled() => {}
            }
        }
        self.shared.release(self.id);
    }

    async fn accept(&self, stream: TcpStream) -> Result<Line, WsError> {
        Line::accept(stream, self.shared.wire, self.shared.keys.now()).await
    }

    async fn talk(&self, mut line: Line, began: Instant) {
        let mut session = Session::default();
        let mut in_flight = InFlight::new();
        let mut watched = Watched::default();
        let end = self
            .converse(&mut line, &mut session, &mut in_flight, &mut watched, began)
            .await;
        if let End::Close(code, reason) = end {
            // Whoever had to make room has none left for a long goodbye.
            tokio::select! {
                biased;
                () = goodbye(&mut line.socket, code, reason) => {}
                () = self.evicted.cancelled() => {}
            }
        }
        if session.is_authenticated() {
            tracing::debug!(peer = %self.peer, why = ?end, "peer left");
        }
    }

    async fn converse(
        &self,
        line: &mut Line,
        session: &mut Session,
        in_flight: &mut InFlight,
        watched: &mut Watched,
        began: Instant,
    ) -> End {
        let auth_deadline = began + AUTH_TIMEOUT;
        if let Layer::Opening { hello, tried } = &line.layer {
            let (hello, tried) = (hello.clone(), Arc::clone(tried));
            // In a place of its own, which most connections never need: they would all be as large as this is.
            let opening = Box::pin(async {
                let reaction = self.open_later(line, &hello, &tried).await?;
                self.react(line, session, in_flight, watched, reaction, auth_deadline)
                    .await
            });
            let opened = tokio::select! {
                biased;
                opened = opening => opened,
                // Room is made at once, and not after a look into a file: else whoever comes by the thousand would fill our memory.
                () = self.evicted.cancelled() => {
                    self.guessed();
                    Err(TOO_MANY)
                }
            };
            if let Err(end) = opened {
                return end;
            }
        }
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
                message = line.socket.next() => {
                    heard = Instant::now();
                    pinged = false;
                    let reaction = match message {
                        Some(Ok(WsMessage::Close(_))) | None => return End::Peer,
                        Some(Ok(message)) => {
                            let stranger = !session.is_authenticated();
                            tokio::select! {
                                biased;
                                heard = self.hear(line, session, &message) => heard,
                                () = self.evicted.cancelled(), if stranger => {
                                    // What a stranger's words wait for is a look into the key's file.
                                    self.guessed();
                                    Err(TOO_MANY)
                                }
                            }
                        }
                        Some(Err(error)) => return self.broken(session, error),
                    };
                    let reaction = match reaction {
                        Ok(reaction) => reaction,
                        Err(end) => return end,
                    };
                    if let Err(end) = self.react(line, session, in_flight, watched, reaction, auth_deadline).await {
                        return end;
                    }
                }
                Some((action, id, generation, response)) = in_flight.next() => {
                    let mut response = response.unwrap_or_else(|_| {
                        Response::new(action, Status::Error, "the guardian is going away; try again when it is back").into()
                    });
                    response.id = id;
                    if !is_question(action) {
                        self.audit("command answered", line, action, generation, &[
                            ("result", if response.status == Status::Ok { "ok" } else { "error" }),
                            ("elapsed_ms", &response.elapsed_ms.unwrap_or_default().to_string()),
                            ("why", &response.message),
                        ]);
                    }
                    response.instance = self.instance_on(line);
                    if is_question(action) {
                        response.keys = Some(self.shared.keys.now().fingerprints());
                    }
                    if let Err(end) = self.send(line, &Answer::Response(*response)).await {
                        return end;
                    }
                    // It was silent because it waited for this.
                    heard = Instant::now();
                    pinged = false;
                }
                status = watched.next() => {
                    if !self.shared.keys.now().knows(&line.fingerprint) {
                        return End::Close(CLOSE_POLICY, "Authentication failed");
                    }
                    let mut status = Response::clone(&status);
                    status.id.clone_from(&watched.id);
                    status.instance = self.instance_on(line);
                    let told = if std::mem::take(&mut watched.begins) {
                        status.action = Action::Watch;
                        status.keys = Some(self.shared.keys.now().fingerprints());
                        Answer::Response(status)
                    } else {
                        Answer::Event(status)
                    };
                    if let Err(end) = self.send(line, &told).await {
                        return end;
                    }
                }
                () = sleep_until(auth_deadline), if !session.is_authenticated() => {
                    self.shared.noise(Noise::Silent, self.peer, "no key in time");
                    return End::Close(CLOSE_POLICY, "Not authenticated");
                }
                () = self.evicted.cancelled(), if !session.is_authenticated() => {
                    return TOO_MANY;
                }
                () = self.shared.closing.cancelled(), if !closing => {}
                // One that waits for an answer is left alone, however long that takes.
                () = sleep_until(silent_until), if session.is_authenticated() && in_flight.is_empty() => {
                    if pinged {
                        return End::Close(CLOSE_NORMAL, "Silent for too long");
                    }
                    pinged = true;
                    match timeout(WRITE_TIMEOUT, line.socket.send(WsMessage::Ping(Default::default()))).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return End::Peer,
                        Err(_) => return End::Stuck,
                    }
                }
            }
        }
    }

    /// A wrong key whose connection has to make room: it is counted all the same.
    fn guessed(&self) {
        self.shared.wrong_key(self.peer);
        self.shared.noise(Noise::WrongKey, self.peer, "wrong key");
    }

    /// Opens the channel with a key that has just been put into the file, if there is one.
    async fn open_later(&self, line: &mut Line, hello: &[u8], tried: &Arc<Keyring>) -> Result<Reaction, End> {
        let Some(keys) = self.shared.keys.changed(tried).await else {
            return Ok(Reaction::WrongKey(Answer::auth_error()));
        };
        match channel::answer(&keys, hello) {
            Ok((channel, welcome, key)) => {
                self.write(line, vec![WsMessage::Binary(welcome.into())]).await?;
                line.fingerprint = key.fingerprint();
                line.layer = Layer::Sealed(channel);
                Ok(Reaction::Ignore)
            }
            Err(ChannelError::WrongKey) => Ok(Reaction::WrongKey(Answer::auth_error())),
            Err(error) => Err(self.unsealed(&Session::default(), error)),
        }
    }

    /// What `message` means. In the second version: what is in the frames.
    async fn hear(
        &self,
        line: &mut Line,
        session: &mut Session,
        message: &WsMessage,
    ) -> Result<Reaction, End> {
        let keys = self.shared.keys.now();
        match (&mut line.layer, message) {
            (Layer::Plain, WsMessage::Text(text)) => {
                let reaction = session.on(&keys, &Frame::Text(text));
                // It may be one that has just been put into the file.
                if matches!(reaction, Reaction::WrongKey(_))
                    && let Some(keys) = self.shared.keys.changed(&keys).await
                {
                    return Ok(session.on(&keys, &Frame::Text(text)));
                }
                Ok(reaction)
            }
            (Layer::Plain, WsMessage::Binary(_)) => Ok(session.on(&keys, &Frame::Binary)),
            (Layer::Sealed(channel), WsMessage::Binary(frame)) => {
                let text = match channel.open(frame, REQUEST_MAX_BYTES) {
                    Ok(Some(text)) => text,
                    Ok(None) => return Ok(Reaction::Ignore),
                    Err(error) => return Err(self.unsealed(session, error)),
                };
                if !session.is_authenticated() {
                    // What came before may have been a repetition. This was not.
                    self.promote(line).await?;
                    session.prove();
                }
                Ok(session.on(&keys, &Frame::Text(&text)))
            }
            (Layer::Opening { .. }, WsMessage::Binary(_))
            | (Layer::Opening { .. } | Layer::Sealed(_), WsMessage::Text(_)) => {
                Err(self.unsealed(session, ChannelError::NoMessage))
            }
            _ => Ok(session.on(&keys, &Frame::Control)),
        }
    }

    /// The channel is over.
    fn unsealed(&self, session: &Session, error: ChannelError) -> End {
        let kind = if session.is_authenticated() {
            Noise::Peer
        } else {
            Noise::Silent
        };
        self.shared.noise(kind, self.peer, &error.to_string());
        End::Close(CLOSE_PROTOCOL, "Broken channel")
    }

    /// The peer has proven the key: it is counted among the peers.
    async fn promote(&self, line: &mut Line) -> Result<(), End> {
        if let Err(crowded) = self.shared.promote(self.id, self.peer) {
            self.shared.noise(Noise::Crowded, self.peer, &crowded.to_string());
            self.send(line, &Answer::error(crowded.to_string())).await?;
            return Err(TOO_MANY);
        }
        tracing::debug!(peer = %self.peer, "authenticated");
        Ok(())
    }

    async fn react(
        &self,
        line: &mut Line,
        session: &Session,
        in_flight: &mut InFlight,
        watched: &mut Watched,
        reaction: Reaction,
        auth_deadline: Instant,
    ) -> Result<(), End> {
        match reaction {
            Reaction::Ignore => Ok(()),
            Reaction::Reply(answer) => self.send(line, &answer).await,
            Reaction::Authenticated(answer, fingerprint) => {
                if matches!(line.layer, Layer::Plain) {
                    line.fingerprint = fingerprint;
                    self.promote(line).await?;
                    if let Some(suppressed) = self.shared.may_say(Noise::Spoken) {
                        tracing::warn!(
                            peer = %self.peer,
                            suppressed,
                            "plain protocol: the key and the commands of this peer can be read and altered on their way; \
                             update it, and then set `--wire v2` here"
                        );
                    }
                }
                self.send(line, &answer).await
            }
            Reaction::WrongKey(answer) => {
                let wait = self.shared.wrong_key(self.peer);
                self.shared.noise(Noise::WrongKey, self.peer, "wrong key");
                let answer_at = (Instant::now() + wait).min(auth_deadline.max(Instant::now()));
                tokio::select! {
                    () = sleep_until(answer_at) => {}
                    () = self.evicted.cancelled() => {}
                }
                self.send(line, &answer).await?;
                Err(End::Close(CLOSE_POLICY, "Authentication failed"))
            }
            Reaction::Close(answer, reason) => {
                self.shared.noise(Noise::Silent, self.peer, reason);
                if let Some(answer) = answer {
                    self.send(line, &answer).await?;
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
                response.instance = self.instance_on(line);
                self.send(line, &Answer::Response(response)).await
            }
            Reaction::Command {
                action,
                id,
                generation,
                terms,
            } => {
                debug_assert!(session.is_authenticated());
                let revoked = !self.shared.keys.now().knows(&line.fingerprint);
                let refusal = if revoked {
                    Some(
                        "the key of this connection is no longer accepted; connect again with one that is"
                            .to_owned(),
                    )
                } else if self.shared.closing.is_cancelled() {
                    Some("the guardian is going away; try again when it is back".to_owned())
                } else if in_flight.len() >= MAX_COMMANDS_IN_FLIGHT {
                    Some(format!(
                        "{MAX_COMMANDS_IN_FLIGHT} commands of this connection wait for answers; wait for them"
                    ))
                } else {
                    None
                };
                if let Some(message) = refusal {
                    if self.shared.may_say(Noise::Refused).is_some() {
                        let more = [("result", "error"), ("why", message.as_str())];
                        self.audit("command refused", line, action, generation, &more);
                    }
                    let mut response = Response::new(action, Status::Error, message);
                    response.id = id;
                    self.send(line, &Answer::Response(response)).await?;
                    return if revoked {
                        Err(End::Close(CLOSE_POLICY, "Authentication failed"))
                    } else {
                        Ok(())
                    };
                }
                if action == Action::Watch {
                    *watched = Watched {
                        id,
                        begins: true,
                        statuses: Some(self.shared.publisher.subscribe()),
                    };
                    return Ok(());
                }
                let (reply, answer) = oneshot::channel();
                let reason = terms.as_ref().map(|terms| terms.reason.clone());
                let order = match (action, terms) {
                    (Action::Drain, _) => Some(Order::Move(Direction::Drain)),
                    (Action::Undrain, _) => Some(Order::Move(Direction::Undrain)),
                    (Action::Hold, Some(terms)) => Some(Order::Hold(terms)),
                    (Action::Release, _) => Some(Order::Release),
                    // A hold without terms is none that could be parsed.
                    (Action::Status | Action::Watch | Action::Ping | Action::Hold, _) => None,
                };
                let message = match order {
                    Some(order) => Message::Command {
                        order,
                        generation,
                        by: format!("{} {}", self.peer.ip(), line.came_by()),
                        reply,
                    },
                    None => Message::Status { reply },
                };
                if !is_question(action) {
                    self.shared.commands(self.peer);
                    let reason = reason.as_ref().map(|reason| ("reason", reason.as_str()));
                    self.audit("command received", line, action, generation, reason.as_slice());
                }
                // A manager that is busy for a moment holds back this connection only.
                if self.shared.manager.send(message).await.is_err() {
                    return Err(End::Close(CLOSE_GOING_AWAY, "Going away"));
                }
                in_flight.push(
                    answer
                        .map(move |response| (action, id, generation, response))
                        .boxed(),
                );
                Ok(())
            }
        }
    }

    /// Which guardian this is. Not in the plain protocol: its frames are written down, and anybody could change them.
    fn instance_on(&self, line: &Line) -> Option<String> {
        match line.layer {
            Layer::Sealed(_) => self.shared.instance.clone(),
            _ => None,
        }
    }

    /// Who commands what, and, in `more`, what came of it.
    fn audit(
        &self,
        message: &str,
        line: &Line,
        action: Action,
        generation: Option<u64>,
        more: &[(&str, &str)],
    ) {
        let (peer, port) = (self.peer.ip().to_string(), self.peer.port().to_string());
        let by = line.came_by();
        let generation = generation.map(|generation| generation.to_string());
        let mut fields = vec![
            ("action", action.as_str()),
            ("peer", peer.as_str()),
            ("port", &port),
            ("by", &by),
        ];
        fields.extend(generation.as_deref().map(|generation| ("generation", generation)));
        fields.extend(more);
        audit(message, &fields);
    }

    async fn send(&self, line: &mut Line, answer: &Answer) -> Result<(), End> {
        let messages = line.write(answer).map_err(|error| {
            tracing::error!(peer = %self.peer, %error, "cannot answer: its connection is closed");
            End::Stuck
        })?;
        self.write(line, messages).await
    }

    async fn write(&self, line: &mut Line, messages: Vec<WsMessage>) -> Result<(), End> {
        let writing = async {
            for message in messages {
                line.socket.send(message).await?;
            }
            Ok::<_, WsError>(())
        };
        match timeout(WRITE_TIMEOUT, writing).await {
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
/// reset, and our last words would be lost. One that goes on and on loses them: it is not listened to for that.
async fn goodbye(socket: &mut Socket, code: u16, reason: &'static str) {
    let deadline = Instant::now() + GOODBYE_TIMEOUT;
    let frame = CloseFrame {
        code: code.into(),
        reason: Utf8Bytes::from_static(reason),
    };
    let _ = timeout_at(deadline, socket.close(Some(frame))).await;
    for _ in 0..GOODBYE_FRAMES {
        let Ok(Some(Ok(_))) = timeout_at(deadline, socket.next()).await else {
            break;
        };
    }
}

/// Where the manager listens.
pub(super) type ToManager = mpsc::Sender<Message>;

/// The part of an address that limits care about.
pub(super) fn origin(peer: SocketAddr) -> Origin {
    Origin::from(peer.ip())
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
