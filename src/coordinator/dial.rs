//! One conversation with one guardian: look up, connect, shake hands, authenticate, command, answer.
//!
//! **Promise.** Everything together ends by the deadline, opening a line by a shorter one, and a timeout names what was
//! waited for. At most one answer's length of memory ([`ANSWER_MAX_BYTES`]) is used for what the guardian sends,
//! however much it sends.
//!
//! [`dial`] opens a line, in which the version of the wire is chosen; [`Line::authenticate`] is the first to speak on it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error as WsError, Message, Utf8Bytes};

use super::fault::{Fault, Phase, repeat_is_harmless};
use super::heard::{Heard, line, understand};
use super::hosts::Target;
use super::report::SpokenWire;
use super::run::Plan;
use super::upgrade::{Chosen, upgrade};
use crate::protocol::limits::{ANSWER_MAX_BYTES, KEY_MAX_BYTES, READ_BUFFER_BYTES};
use crate::protocol::{
    Action, CLOSE_NORMAL, Channel, ChannelError, Opening, PresharedKey, Request, Response, Wire,
};

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// How long an address may stay silent before the next one of the same name is tried beside it (RFC 8305, section
/// 5). One address that swallows packets must not eat the time of the command.
const HEAD_START: Duration = Duration::from_millis(250);
/// Most messages that are no answer which we pass over in one wait. More is no conversation.
const MAX_PASSED_OVER: u32 = 1_000;
/// While an answer is awaited: longer than a host that is busy, or a link that has just healed, needs.
const PINGS: Pings = Pings {
    after: Duration::from_secs(3),
    give_up: Duration::from_secs(21),
};
/// Code of a close frame that names none (RFC 6455, section 7.4.1).
const NO_CLOSE_CODE: u16 = 1005;

/// When a guardian that is silent is asked whether it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pings {
    /// After this time, and again each time that it has passed once more, ...
    pub(super) after: Duration,
    /// ... until it has been silent for this long, and is given up.
    pub(super) give_up: Duration,
}

/// What is said to every guardian of a run: texts that are made once and shared.
pub struct Words {
    auth: Utf8Bytes,
    command: Utf8Bytes,
    key: PresharedKey,
    wire: Wire,
    action: Action,
    /// For all of an attempt.
    timeout: Duration,
    /// For its line to open.
    connect_timeout: Duration,
    /// Whether the command goes out with the key, in one packet. That spares a round trip and a fifth of the work,
    /// but when the line breaks before the key is confirmed, nobody knows whether the command arrived: so only
    /// where a repetition does no harm.
    early: bool,
}

impl Words {
    /// What `plan` says, in attempts of at most `timeout`.
    pub(super) fn of(plan: &Plan, timeout: Duration) -> Self {
        let (key, action, generation) = (&plan.key, plan.action, plan.generation);
        let command = Request::Command {
            action,
            id: None,
            generation,
            terms: plan.terms.clone(),
        };
        // A copy of the key is made only where it may have to be sent.
        let auth = match plan.wire {
            Wire::Auto => Request::Auth {
                key: key.expose().to_owned().into(),
            }
            .to_text(),
            Wire::V2 => String::new(),
        };
        Self {
            auth: auth.into(),
            command: command.to_text().into(),
            key: key.clone(),
            wire: plan.wire,
            action,
            timeout,
            connect_timeout: plan.connect_timeout,
            early: repeat_is_harmless(action, generation),
        }
    }

    /// The command, as it is sent.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// For all of an attempt.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Of that, for its line to open.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }
}

/// How one attempt ended.
pub struct Attempt {
    /// The address that was connected to, or tried last.
    pub(super) address: Option<SocketAddr>,
    /// The guardian's answer, or why there is none.
    pub(super) result: Result<Box<Response>, Fault>,
    /// The connection, if there was one: our goodbye is said, the guardian's may be waited for.
    pub(super) line: Option<Line>,
}

impl Attempt {
    /// One that ended so, and left no connection behind.
    pub fn new(result: Result<Box<Response>, Fault>) -> Self {
        Self {
            address: None,
            result,
            line: None,
        }
    }
}

/// A whole conversation with `target`.
pub(super) async fn converse(words: &Words, target: &Target, dialled: oneshot::Sender<()>) -> Attempt {
    let mut attempt = talk(words, target, dialled).await;
    if let Some(line) = &mut attempt.line {
        line.say_goodbye();
    }
    attempt
}

/// The same without a goodbye: for who has more to say.
pub(super) async fn talk(words: &Words, target: &Target, dialled: oneshot::Sender<()>) -> Attempt {
    let mut call = Call {
        phase: Phase::LookingUp,
        address: None,
        line: None,
    };
    // One deadline for all of it, whatever it is spent on.
    let result = match timeout(words.timeout, call.hold(words, target, dialled)).await {
        Ok(result) => result,
        Err(_) => Err(Fault::TimedOut {
            phase: call.phase,
            after: words.timeout,
        }),
    };
    Attempt {
        address: call.address,
        result,
        line: call.line,
    }
}

/// How far a conversation has come: what is left of it when its time is over.
struct Call {
    /// What is waited for.
    phase: Phase,
    /// The address that was connected to, or is tried.
    address: Option<SocketAddr>,
    /// From the handshake on.
    line: Option<Line>,
}

impl Call {
    async fn hold(
        &mut self,
        words: &Words,
        target: &Target,
        dialled: oneshot::Sender<()>,
    ) -> Result<Box<Response>, Fault> {
        // Half a minute is right for units that stop, and far too long for a host that is not there: a shorter deadline
        // leaves time for another attempt.
        let dialling = dial(words, target, &mut self.phase, &mut self.address);
        let line = match timeout(words.connect_timeout, dialling).await {
            Ok(line) => line?,
            Err(_) => {
                return Err(Fault::TimedOut {
                    phase: self.phase,
                    after: words.connect_timeout,
                });
            }
        };
        let line = self.line.insert(line);
        self.phase = Phase::Authenticating;
        let authenticated = line.authenticate(words).await;
        // Whoever waits for its turn to dial may have it: from here on nothing but the guardian is at work.
        let _ = dialled.send(());
        authenticated?;
        self.phase = Phase::Answer(words.action);
        line.command(words).await
    }
}

/// Looks up, connects, shakes hands: an open line.
async fn dial(
    words: &Words,
    target: &Target,
    phase: &mut Phase,
    address: &mut Option<SocketAddr>,
) -> Result<Line, Fault> {
    let addresses = look_up(target).await?;
    *phase = Phase::Connecting;
    *address = addresses.first().copied();
    let (stream, connected) = connect(&addresses).await?;
    *phase = Phase::Handshake;
    *address = Some(connected);
    let line = Line::open(stream, target, connected, &words.key).await?;
    if matches!(line.layer, Layer::Plain) {
        if words.wire == Wire::V2 {
            return Err(Fault::Plain);
        }
        tracing::warn!(
            host = %target.name,
            "plain protocol: the key and the command can be read and altered on their way; update the guardian there, and \
             then use --wire v2"
        );
    }
    Ok(line)
}

async fn look_up(target: &Target) -> Result<Vec<SocketAddr>, Fault> {
    // An address needs no resolver, and no thread to wait for one.
    if let Ok(ip) = target.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, target.port)]);
    }
    let found = lookup_host((target.host.as_str(), target.port)).await;
    let addresses: Vec<_> = found
        .map_err(|error| Fault::Lookup {
            reason: error.to_string(),
        })?
        .take(MAX_ADDRESSES)
        .collect();
    if addresses.is_empty() {
        return Err(Fault::Lookup {
            reason: "it has no address".to_owned(),
        });
    }
    Ok(addresses)
}

/// Connects to the first of `addresses` that accepts; each gets a head start over the next one. The caller owns
/// the deadline.
async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Fault> {
    let attempt = |address: SocketAddr| async move { (address, TcpStream::connect(address).await) };
    let mut waiting = addresses.iter().copied();
    let mut trying = FuturesUnordered::new();
    let mut errors: Vec<(SocketAddr, io::Error)> = Vec::new();
    trying.extend(waiting.next().map(attempt));
    loop {
        tokio::select! {
            biased;
            ended = trying.next() => match ended {
                Some((address, Ok(stream))) => {
                    // Small messages that wait for answers: Nagle's algorithm only delays them.
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Some((address, Err(error))) => {
                    errors.push((address, error));
                    trying.extend(waiting.next().map(attempt));
                }
                None => return Err(connect_fault(&errors)),
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => trying.extend(waiting.next().map(attempt)),
        }
    }
}

fn connect_fault(errors: &[(SocketAddr, io::Error)]) -> Fault {
    let all = |kind| errors.iter().all(|(_, error)| error.kind() == kind);
    let join = |show: &dyn Fn(&(SocketAddr, io::Error)) -> String| {
        errors.iter().map(show).collect::<Vec<_>>().join(", ")
    };
    let descriptors = errors.iter().find(|(_, error)| {
        matches!(
            error.raw_os_error().map(nix::errno::Errno::from_raw),
            Some(nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE)
        )
    });
    if let Some((_, error)) = descriptors {
        return Fault::NoDescriptor {
            reason: error.to_string(),
        };
    }
    if all(io::ErrorKind::ConnectionRefused) {
        return Fault::Refused {
            addresses: join(&|(address, _)| address.to_string()),
        };
    }
    Fault::Unreachable {
        reason: join(&|(address, error)| format!("{address}: {error}")),
    }
}

/// What lies between the socket and the messages.
enum Layer {
    /// Nothing: the plain protocol.
    Plain,
    /// The second version was chosen, and the guardian's part of the handshake is still to come. Nothing, once it has come.
    Opening(Option<Opening>),
    /// The second version, and the guardian has proven the key.
    Sealed(Box<Channel>),
}

/// An open conversation.
pub(super) struct Line {
    socket: WebSocketStream<TcpStream>,
    layer: Layer,
}

impl Line {
    async fn open(
        mut stream: TcpStream,
        target: &Target,
        address: SocketAddr,
        key: &PresharedKey,
    ) -> Result<Self, Fault> {
        // The name for the Host header; what no header can hold (a zone, letters beyond ASCII) becomes the address.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let host = if target.host.chars().all(plain) {
            format!("{}:{}", target.host, target.port)
        } else {
            SocketAddr::new(address.ip(), address.port()).to_string()
        };
        // In a place of its own: a conversation waits for its answer far longer than it shakes hands, and would keep
        // what that takes.
        let (opening, hello) = Opening::begin(key).map_err(unsealed)?;
        let upgraded = Box::pin(upgrade(&mut stream, &host, &hello)).await?;
        let layer = match upgraded.chosen {
            Chosen::Plain => Layer::Plain,
            Chosen::SecondVersion(None) => Layer::Opening(Some(opening)),
            Chosen::SecondVersion(Some(welcome)) => {
                Layer::Sealed(Box::new(opening.finish(&welcome).map_err(unsealed)?))
            }
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(KEY_MAX_BYTES * 2)
            .max_message_size(Some(ANSWER_MAX_BYTES))
            .max_frame_size(Some(ANSWER_MAX_BYTES));
        let rest = upgraded.rest;
        Ok(Self {
            socket: WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(config)).await,
            layer,
        })
    }

    async fn authenticate(&mut self, words: &Words) -> Result<(), Fault> {
        let phase = Phase::Authenticating;
        if !matches!(self.layer, Layer::Plain) {
            return self.seal().await;
        }
        if words.early {
            let auth = Message::Text(words.auth.clone());
            let fed = self.socket.feed(auth).await;
            fed.map_err(|error| socket_fault(error, phase))?;
            self.say(&words.command, phase).await?;
        } else {
            self.say(&words.auth, phase).await?;
        }
        match self.hear(words.action, phase).await? {
            Heard::Auth { ok: true, .. } => Ok(()),
            Heard::Auth { ok: false, message } => Err(Fault::BadKey { message }),
            Heard::Error(message) => Err(Fault::Answered { message }),
            _ => Err(Fault::Internal),
        }
    }

    /// Opens the channel, if it is not: when it is the guardian has proven that it has the key.
    async fn seal(&mut self) -> Result<(), Fault> {
        let phase = Phase::Authenticating;
        let Layer::Opening(opening) = &mut self.layer else {
            return Ok(());
        };
        let opening = opening.take().ok_or(Fault::Internal)?;
        loop {
            match self.next(None).await {
                Ok(Message::Binary(welcome)) => {
                    self.layer = Layer::Sealed(Box::new(opening.finish(&welcome).map_err(unsealed)?));
                    return Ok(());
                }
                Ok(Message::Close(frame)) => return Err(closed(phase, frame)),
                Ok(Message::Text(text)) => {
                    return Err(Fault::Rubbish {
                        reason: format!("it said {:?} instead of a handshake", line(&text, 64)),
                    });
                }
                Ok(_) => {}
                Err(error) => return Err(socket_fault(error, phase)),
            }
        }
    }

    /// Which version of the wire was chosen.
    pub(super) fn wire(&self) -> SpokenWire {
        match self.layer {
            Layer::Plain => SpokenWire::Plain,
            Layer::Opening(_) | Layer::Sealed(_) => SpokenWire::V2,
        }
    }

    async fn command(&mut self, words: &Words) -> Result<Box<Response>, Fault> {
        let phase = Phase::Answer(words.action);
        if !matches!(self.layer, Layer::Plain) || !words.early {
            self.say(&words.command, phase).await?;
        }
        self.answer(words, phase).await
    }

    /// One more command, on a line that is open.
    pub(super) async fn ask(&mut self, words: &Words) -> Result<Box<Response>, Fault> {
        let phase = Phase::Answer(words.action);
        let asking = async {
            self.say(&words.command, phase).await?;
            self.answer(words, phase).await
        };
        match timeout(words.timeout, asking).await {
            Ok(answered) => answered,
            Err(_) => Err(Fault::TimedOut {
                phase,
                after: words.timeout,
            }),
        }
    }

    /// The next thing that a guardian tells by itself. Waits for ever, as long as it is there.
    pub(super) async fn event(&mut self, pings: Pings) -> Result<Box<Response>, Fault> {
        let phase = Phase::Answer(Action::Watch);
        loop {
            match self.heard(Action::Watch, phase, Some(pings)).await? {
                Some(Heard::Event(response)) => return Ok(response),
                Some(Heard::Error(message)) => return Err(Fault::Answered { message }),
                Some(Heard::Rubbish(reason)) => return Err(Fault::Rubbish { reason }),
                _ => {}
            }
        }
    }

    async fn answer(&mut self, words: &Words, phase: Phase) -> Result<Box<Response>, Fault> {
        match self.hear(words.action, phase).await? {
            Heard::Response(response) => Ok(response),
            Heard::Error(message) => Err(Fault::Answered { message }),
            _ => Err(Fault::Internal),
        }
    }

    async fn say(&mut self, text: &Utf8Bytes, phase: Phase) -> Result<(), Fault> {
        let frames = match &mut self.layer {
            Layer::Plain => {
                let said = self.socket.send(Message::Text(text.clone())).await;
                return said.map_err(|error| socket_fault(error, phase));
            }
            // Nothing is said in clear to one who has chosen not to.
            Layer::Opening(_) => return Err(Fault::Internal),
            Layer::Sealed(channel) => channel.seal(text).map_err(unsealed)?,
        };
        for frame in frames {
            let said = self.socket.send(Message::Binary(frame.into())).await;
            said.map_err(|error| socket_fault(error, phase))?;
        }
        Ok(())
    }

    /// The next message that `phase` waits for. Pings are answered while this waits.
    async fn hear(&mut self, action: Action, phase: Phase) -> Result<Heard, Fault> {
        // In the second version we ask, too: a host that has lost its power and is back knows nothing of this connection, and says
        // so when something comes on it. Whoever knows only the documentation may answer nothing while it stops units.
        let pings = matches!(self.layer, Layer::Sealed(_)).then_some(PINGS);
        for _ in 0..MAX_PASSED_OVER {
            let Some(heard) = self.heard(action, phase, pings).await? else {
                continue;
            };
            match (phase, heard) {
                (_, Heard::Rubbish(reason)) => return Err(Fault::Rubbish { reason }),
                (Phase::Authenticating, heard @ Heard::Auth { .. })
                | (Phase::Answer(_), heard @ Heard::Response(_))
                | (_, heard @ Heard::Error(_)) => return Ok(heard),
                // Said again, or too early: not what is waited for.
                _ => {}
            }
        }
        Err(Fault::Rubbish {
            reason: format!("it said {MAX_PASSED_OVER} things that are no answer"),
        })
    }

    /// What the next message means; nothing when it is no whole text.
    async fn heard(
        &mut self,
        action: Action,
        phase: Phase,
        pings: Option<Pings>,
    ) -> Result<Option<Heard>, Fault> {
        match (self.next(pings).await, &mut self.layer) {
            (Ok(Message::Close(frame)), _) => Err(closed(phase, frame)),
            (Ok(Message::Text(text)), Layer::Plain) => Ok(Some(understand(&text, action))),
            (Ok(Message::Binary(frame)), Layer::Sealed(channel)) => {
                let opened = channel.open(&frame, ANSWER_MAX_BYTES);
                let text = opened.map_err(unsealed)?;
                Ok(text.map(|text| understand(&text, action)))
            }
            // In clear: somebody in between may have said it.
            (Ok(Message::Text(_)), _) => Err(unsealed(ChannelError::Altered)),
            (Ok(_), _) => Ok(None),
            (Err(error), _) => Err(socket_fault(error, phase)),
        }
    }

    /// The next message that is no ping or pong: a guardian may keep alive a long wait as often as it likes.
    async fn next(&mut self, pings: Option<Pings>) -> Result<Message, WsError> {
        let mut silent = Duration::ZERO;
        loop {
            let heard = match pings {
                Some(pings) => timeout(pings.after, self.socket.next()).await,
                None => Ok(self.socket.next().await),
            };
            match (heard, pings) {
                (Ok(None), _) => return Err(WsError::ConnectionClosed),
                (Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))), _) => silent = Duration::ZERO,
                (Ok(Some(other)), _) => return other,
                (Err(_), Some(pings)) => {
                    silent += pings.after;
                    if silent >= pings.give_up {
                        let why = format!("it has not answered a ping for {} s", pings.give_up.as_secs());
                        return Err(WsError::Io(io::Error::new(io::ErrorKind::TimedOut, why)));
                    }
                    self.socket.send(Message::Ping(Bytes::new())).await?;
                }
                (Err(_), None) => {}
            }
        }
    }

    /// One write into a socket buffer that is empty or gone; what goes wrong with it has no consequence, so nothing
    /// is waited for. The code is 1000, because libraries take a close frame without one for an error and log it.
    fn say_goodbye(&mut self) {
        let frame = CloseFrame {
            code: CLOSE_NORMAL.into(),
            reason: Utf8Bytes::from_static(""),
        };
        let _ = self.socket.close(Some(frame)).now_or_never();
    }

    /// Waits for the guardian's goodbye, for at most `patience`, so that it sees a clean end.
    pub(super) async fn leave(mut self, patience: Duration) {
        let _ = timeout(patience, async {
            while let Some(Ok(_)) = self.socket.next().await {}
        })
        .await;
    }
}

fn unsealed(error: ChannelError) -> Fault {
    Fault::Unsealed { error }
}

fn closed(phase: Phase, frame: Option<CloseFrame>) -> Fault {
    let (code, reason) = frame.map_or((NO_CLOSE_CODE, String::new()), |frame| {
        (frame.code.into(), line(&frame.reason, 123))
    });
    Fault::closed(phase, code, reason)
}

fn socket_fault(error: WsError, phase: Phase) -> Fault {
    let lost = |reason: String| Fault::Lost { phase, reason };
    let end_of_stream = || lost("the other side closed it without a word".to_owned());
    match error {
        WsError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => end_of_stream(),
        WsError::Io(error) => lost(error.to_string()),
        WsError::ConnectionClosed | WsError::AlreadyClosed => end_of_stream(),
        WsError::Protocol(
            ProtocolError::HandshakeIncomplete | ProtocolError::ResetWithoutClosingHandshake,
        ) => end_of_stream(),
        WsError::Capacity(error @ CapacityError::MessageTooLong { .. }) => Fault::TooLong {
            reason: error.to_string(),
        },
        WsError::Http(response) => Fault::NoUpgrade {
            status: response.status().as_u16(),
        },
        other => Fault::Rubbish {
            reason: line(&other.to_string(), 200),
        },
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
