//! A connection's socket, and the version of the wire that was chosen for it in the WebSocket handshake.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::handshake::server::{
    ErrorResponse, Request as Upgrade, Response as Upgraded,
};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::http::header::{HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use crate::protocol::channel::{
    self, Channel, ChannelError, HELLO_HEADER, SUBPROTOCOL, WELCOME_HEADER, Wire,
};
use crate::protocol::limits::{ANSWER_MAX_BYTES, READ_BUFFER_BYTES, REQUEST_MAX_BYTES};
use crate::protocol::{Answer, Keyring};

pub(super) type Socket = WebSocketStream<TcpStream>;

/// What is told of one who was refused for speaking the plain protocol.
pub(super) const PLAIN_REFUSED: &str =
    "it speaks the plain protocol, and this guardian the second version only (--wire v2): update it";

/// What lies between the socket and the messages.
pub(super) enum Layer {
    /// Nothing: the plain protocol.
    Plain,
    /// The second version was chosen, and none of our keys opens this first message: one that was put into the file a moment ago may.
    Opening {
        /// As it came.
        hello: Vec<u8>,
        /// The keys that were tried.
        tried: Arc<Keyring>,
    },
    /// The second version. Whether the peer has proven the key, the session knows.
    Sealed(Channel),
}

/// One conversation's socket.
pub(super) struct Line {
    pub(super) socket: Socket,
    pub(super) layer: Layer,
    /// Of the key that the peer has shown.
    pub(super) fingerprint: String,
}

impl Line {
    /// Shakes hands with one who has connected, and chooses the version of the wire.
    ///
    /// # Errors
    /// [`WsError::Http`] when `wire` allows the second version only, and it was not offered.
    pub(super) async fn accept(stream: TcpStream, wire: Wire, keys: Arc<Keyring>) -> Result<Self, WsError> {
        let mut layer = Layer::Plain;
        let mut fingerprint = String::new();
        #[expect(clippy::result_large_err, reason = "the error is tungstenite's")]
        let choose = |upgrade: &Upgrade, mut upgraded: Upgraded| {
            if let Some(hello) = offer_of_the_second_version(upgrade) {
                let headers = upgraded.headers_mut();
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
                layer = match channel::answer(&keys, &hello) {
                    Ok((channel, welcome, key)) => {
                        if let Ok(welcome) = HeaderValue::try_from(channel::to_header(&welcome)) {
                            headers.insert(HeaderName::from_static(WELCOME_HEADER), welcome);
                        }
                        fingerprint = key.fingerprint();
                        Layer::Sealed(channel)
                    }
                    Err(_) => Layer::Opening {
                        hello,
                        tried: Arc::clone(&keys),
                    },
                };
            } else if wire == Wire::V2 {
                // Before it has sent its key in clear.
                return Err(refuse_the_plain_protocol());
            }
            Ok(upgraded)
        };
        let socket = accept_hdr_async_with_config(stream, choose, Some(config())).await?;
        Ok(Self {
            socket,
            layer,
            fingerprint,
        })
    }

    /// By which version of the wire, and with which key, a command came: for the audit.
    pub(super) fn came_by(&self) -> String {
        let version = match self.layer {
            Layer::Plain => "plain",
            Layer::Opening { .. } | Layer::Sealed(_) => "v2",
        };
        format!("{version}:{}", self.fingerprint)
    }

    /// `answer` as what is sent of it. Nothing is said in clear to one who has chosen not to.
    pub(super) fn write(&mut self, answer: &Answer) -> Result<Vec<Message>, ChannelError> {
        let text = answer.to_text();
        Ok(match &mut self.layer {
            Layer::Plain => vec![Message::Text(text.into())],
            Layer::Opening { .. } => Vec::new(),
            Layer::Sealed(channel) => {
                let frames = channel.seal(&text)?.into_iter();
                frames.map(|frame| Message::Binary(frame.into())).collect()
            }
        })
    }
}

/// The first message of the handshake, from one who offers the second version. Subprotocols are offered as a list, in one header or in
/// several (RFC 6455, section 11.3.4).
fn offer_of_the_second_version(upgrade: &Upgrade) -> Option<Vec<u8>> {
    let offers = upgrade.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offers
        .iter()
        .filter_map(|offer| offer.to_str().ok())
        .flat_map(|offer| offer.split(','));
    let hello = upgrade.headers().get(HELLO_HEADER)?;
    offered
        .any(|name| name.trim() == SUBPROTOCOL)
        .then(|| channel::from_header(hello.as_bytes()))
        .flatten()
}

fn refuse_the_plain_protocol() -> ErrorResponse {
    let mut refusal = ErrorResponse::new(Some(format!(
        "this guardian speaks the WebSocket subprotocol {SUBPROTOCOL} only: update the client, or start the guardian with --wire auto\n"
    )));
    *refusal.status_mut() = StatusCode::UPGRADE_REQUIRED;
    // What to use instead (RFC 9110, section 15.5.22); and the connection ends here.
    let headers = refusal.headers_mut();
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    headers.insert("connection", HeaderValue::from_static("close"));
    refusal
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * ANSWER_MAX_BYTES)
        .max_message_size(Some(REQUEST_MAX_BYTES))
        .max_frame_size(Some(REQUEST_MAX_BYTES))
}
