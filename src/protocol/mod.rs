//! The wire: what a coordinator and a guardian say to each other, as types and pure functions.
//!
//! **Promise.** What the IO Guardian documentation gives is spoken exactly, spaces included: a client that
//! knows only that page drives our guardian, and our coordinator drives a guardian that knows only that page.
//! Fields that are new are optional in both directions, and unknown fields are ignored.
//!
//! There is no socket here and no clock. `docs/PROTOCOL.md` is this room in prose.
//!
//! The second version of the wire ([`channel`]) is the same messages inside a Noise channel: it lies between [`message`],
//! which it leaves alone, and the sockets of the roles.

pub mod channel;
mod curve;
pub mod key;
pub mod limits;
pub mod message;
mod spaced;

pub use channel::{Channel, ChannelError, HELLO_HEADER, Opening, SUBPROTOCOL, WELCOME_HEADER, Wire};
pub use key::{KeyError, Keyring, PresharedKey, hex};
pub use message::{
    Action, Answer, CommandId, DatabaseReport, HoldTerms, LastCommand, Request, RequestError, Response,
    Status, UnitReport, is_reason,
};

/// The TCP port that a guardian listens on when none is named.
pub const DEFAULT_PORT: u16 = 9876;

/// WebSocket close code 1000: the conversation is over, nothing is wrong (RFC 6455, section 7.4.1).
pub const CLOSE_NORMAL: u16 = 1000;
/// WebSocket close code 1001: the guardian is going away (RFC 6455, section 7.4.1).
pub const CLOSE_GOING_AWAY: u16 = 1001;
/// WebSocket close code 1002: the peer broke the rules of WebSocket itself (RFC 6455, section 7.4.1).
pub const CLOSE_PROTOCOL: u16 = 1002;
/// WebSocket close code 1007: text that is not UTF-8 (RFC 6455, section 7.4.1).
pub const CLOSE_NOT_TEXT: u16 = 1007;
/// WebSocket close code 1008: the peer did not authenticate, or broke a rule (RFC 6455, section 7.4.1).
pub const CLOSE_POLICY: u16 = 1008;
/// WebSocket close code 1009: a message longer than the limit (RFC 6455, section 7.4.1).
pub const CLOSE_TOO_BIG: u16 = 1009;
/// WebSocket close code 1013: a limit on connections is reached; try again later (IANA registry).
pub const CLOSE_TRY_LATER: u16 = 1013;
