//! The second version of the wire: the same messages inside a Noise channel, `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`
//! (The Noise Protocol Framework, revision 34). Pure: bytes in, bytes out.
//!
//! **Promise.** Both sides prove that they have the key, which does not cross the wire. What is said cannot be read, altered,
//! repeated, reordered or moved to another connection, and not be read later either by whoever gets the key then. A side that finds
//! anything of that kind gets an error, and must end the connection.
//!
//! The two messages of the handshake travel in headers of the WebSocket's own ([`HELLO_HEADER`], [`WELCOME_HEADER`]): a channel is
//! open when the WebSocket is, and costs no round trip of its own.
//!
//! Of a message its length is told, rounded up to [`PADDING`]. That the connection ends is not protected: whoever can cut
//! it can do that at any time, and an answer that has not come is not an answer.

use std::sync::LazyLock;

use clap::ValueEnum;
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState, TransportState};

use super::curve::Provider;
use super::key::{Keyring, PresharedKey};

/// The WebSocket subprotocol by which the second version is offered and chosen, and the prologue of its handshake.
pub const SUBPROTOCOL: &str = "io-guardian.v2";
/// In the request for the WebSocket: the first message of the handshake, as base64url without padding (RFC 4648, section 5).
pub const HELLO_HEADER: &str = "io-guardian-hello";
/// In its answer: the second message, the same way.
pub const WELCOME_HEADER: &str = "io-guardian-welcome";
/// Longest binary frame, in bytes (Noise, section 3).
pub const FRAME_MAX_BYTES: usize = 65_535;
/// Messages are filled up with spaces, which JSON allows, to a multiple of this many bytes: `drain` looks like `undrain`.
pub const PADDING: usize = 128;

/// Which versions of the wire a side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// The second version with those that know it, the plain one with others: they are told the key, or tell it, in clear
    #[default]
    Auto,
    /// The second version only
    V2,
}

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// The use of the key that its hash is for.
const PURPOSE: &[u8] = b"io-guardian.v2 psk";
/// An ephemeral public key and the tag of an empty payload.
const HANDSHAKE_BYTES: usize = 32 + TAG_BYTES;
const TAG_BYTES: usize = 16;
/// First byte of a frame's plaintext: whether the message is whole with it.
const LAST: u8 = 0;
const MORE: u8 = 1;
/// Text in one frame, after the first byte.
const FRAGMENT_BYTES: usize = FRAME_MAX_BYTES - TAG_BYTES - 1;

/// Why a channel cannot be opened, or not be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The first message was made with a key that is not ours, or by no one of us.
    #[error("wrong key")]
    WrongKey,
    /// The other side has our key, or repeats what one who has it has said; its answer to the handshake is not right.
    #[error("the answer to the handshake was altered on its way, or made without the key")]
    Unproven,
    /// A frame was altered, repeated, left out, or came in another order.
    #[error("a frame was altered, repeated, left out or reordered on its way")]
    Altered,
    /// A message in parts is longer than we take.
    #[error("a message is longer than {0} bytes")]
    TooLong(usize),
    /// What was in a frame is no text of ours. Whoever made it has the key.
    #[error("a frame holds no message")]
    NoMessage,
    /// The random numbers of this machine are not there, or too many frames were sent.
    #[error("the channel cannot be used")]
    Unusable,
}

fn builder() -> Result<Builder<'static>, ChannelError> {
    static PARAMS: LazyLock<Option<NoiseParams>> = LazyLock::new(|| PATTERN.parse().ok());
    let params = PARAMS.clone().ok_or(ChannelError::Unusable)?;
    Builder::with_resolver(params, Box::new(Provider))
        .prologue(SUBPROTOCOL.as_bytes())
        .map_err(|_| ChannelError::Unusable)
}

/// A message of the handshake as the value of its header.
pub fn to_header(message: &[u8]) -> String {
    BASE64URL_NOPAD.encode(message)
}

/// The message that a header holds; nothing when that cannot be one, whoever made it.
pub fn from_header(value: &[u8]) -> Option<Vec<u8>> {
    let message = BASE64URL_NOPAD.decode(value).ok()?;
    (message.len() == HANDSHAKE_BYTES).then_some(message)
}

/// Whoever connects has said its first message, and waits for the answer.
pub struct Opening(Box<HandshakeState>);

impl Opening {
    /// Begins: the first message.
    ///
    /// # Errors
    /// When this machine gives no random numbers.
    pub fn begin(key: &PresharedKey) -> Result<(Self, Vec<u8>), ChannelError> {
        let psk = key.hash(PURPOSE);
        let mut state = builder()?
            .psk(0, &psk)
            .and_then(Builder::build_initiator)
            .map_err(|_| ChannelError::Unusable)?;
        let message = write(&mut state)?;
        Ok((Self(Box::new(state)), message))
    }

    /// The other side's answer: from here on it has proven the key.
    ///
    /// # Errors
    /// When it has not.
    pub fn finish(mut self, answer: &[u8]) -> Result<Channel, ChannelError> {
        read(&mut self.0, answer).map_err(|()| ChannelError::Unproven)?;
        Channel::of(*self.0)
    }
}

/// Answers the first message of one who connects, with the key that it was made with: the channel, the answer, and the key.
///
/// It may be a repetition of what somebody else has once said: only its first message in the channel proves the key.
///
/// # Errors
/// When no key fits. That takes about as long whether there is none or one.
pub fn answer<'a>(
    keys: &'a Keyring,
    hello: &[u8],
) -> Result<(Channel, Vec<u8>, &'a PresharedKey), ChannelError> {
    for key in keys.iter() {
        let psk = key.hash(PURPOSE);
        let mut state = builder()?
            .psk(0, &psk)
            .and_then(Builder::build_responder)
            .map_err(|_| ChannelError::Unusable)?;
        if read(&mut state, hello).is_ok() {
            let message = write(&mut state)?;
            return Ok((Channel::of(state)?, message, key));
        }
    }
    Err(ChannelError::WrongKey)
}

fn write(state: &mut HandshakeState) -> Result<Vec<u8>, ChannelError> {
    let mut message = vec![0; HANDSHAKE_BYTES];
    let length = state
        .write_message(&[], &mut message)
        .map_err(|_| ChannelError::Unusable)?;
    message.truncate(length);
    Ok(message)
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<(), ()> {
    let mut payload = [0; HANDSHAKE_BYTES];
    if message.len() != HANDSHAKE_BYTES {
        return Err(());
    }
    state.read_message(message, &mut payload).map(drop).map_err(drop)
}

/// An open channel: one side of it.
pub struct Channel {
    state: Box<TransportState>,
    /// The parts of a message that is not whole yet.
    parts: Vec<u8>,
    /// Why nothing more is heard: what comes after a frame that is not right is not heard either, even if it is.
    over: Option<ChannelError>,
}

impl Channel {
    fn of(state: HandshakeState) -> Result<Self, ChannelError> {
        let state = state.into_transport_mode().map_err(|_| ChannelError::Unusable)?;
        Ok(Self {
            state: Box::new(state),
            parts: Vec::new(),
            over: None,
        })
    }

    /// `text` as the frames that carry it.
    ///
    /// # Errors
    /// After 2^64 - 1 frames.
    pub fn seal(&mut self, text: &str) -> Result<Vec<Vec<u8>>, ChannelError> {
        let mut frames = Vec::new();
        let mut rest = text.as_bytes();
        loop {
            let (part, after) = rest.split_at(rest.len().min(FRAGMENT_BYTES));
            rest = after;
            let mut plain = Vec::with_capacity(1 + part.len() + PADDING);
            plain.push(if rest.is_empty() { LAST } else { MORE });
            plain.extend_from_slice(part);
            let padded = plain.len().next_multiple_of(PADDING).min(1 + FRAGMENT_BYTES);
            plain.resize(padded, b' ');
            let mut frame = vec![0; plain.len() + TAG_BYTES];
            let length = self
                .state
                .write_message(&plain, &mut frame)
                .map_err(|_| ChannelError::Unusable)?;
            frame.truncate(length);
            frames.push(frame);
            if rest.is_empty() {
                return Ok(frames);
            }
        }
    }

    /// What `frame` carries: a message, when it is whole with it. At most `longest` bytes are kept.
    ///
    /// # Errors
    /// When it is not the next frame of the other side; then the channel is over.
    pub fn open(&mut self, frame: &[u8], longest: usize) -> Result<Option<String>, ChannelError> {
        if let Some(error) = self.over {
            return Err(error);
        }
        let opened = self.open_next(frame, longest);
        self.over = opened.as_ref().err().copied();
        opened
    }

    fn open_next(&mut self, frame: &[u8], longest: usize) -> Result<Option<String>, ChannelError> {
        if frame.len() > FRAME_MAX_BYTES {
            return Err(ChannelError::Altered);
        }
        let mut plain = vec![0; frame.len()];
        let length = self
            .state
            .read_message(frame, &mut plain)
            .map_err(|_| ChannelError::Altered)?;
        plain.truncate(length);
        let (kind, part) = plain.split_first().ok_or(ChannelError::NoMessage)?;
        if self.parts.len() + part.len() > longest + PADDING {
            return Err(ChannelError::TooLong(longest));
        }
        self.parts.extend_from_slice(part);
        match *kind {
            MORE => Ok(None),
            LAST => {
                let whole = std::mem::take(&mut self.parts);
                let mut text = String::from_utf8(whole).map_err(|_| ChannelError::NoMessage)?;
                text.truncate(text.trim_end_matches(' ').len());
                Ok(Some(text))
            }
            _ => Err(ChannelError::NoMessage),
        }
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
