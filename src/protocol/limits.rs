//! The limits of the wire. They are part of the protocol: reaching one is an answer and a log line, never a
//! hang, and strangers can never use up what authenticated peers need.

use std::time::Duration;

/// Longest message that a guardian takes, in bytes.
///
/// The longest request that makes sense is `auth` with a key of [`KEY_MAX_BYTES`]; everything else is under 200
/// bytes. 8 KiB leaves room for fields to come, and 768 connections that each fill it cost 6 MiB; with the
/// 1 MiB that WebSocket libraries default to, they would cost 768 MiB.
pub const REQUEST_MAX_BYTES: usize = 8 << 10;

/// Longest message that a coordinator takes, in bytes: an answer that names 1,000 units fits.
///
/// A guardian keeps to it by leaving out units that rest, and says how many (`units_omitted`).
pub const ANSWER_MAX_BYTES: usize = 256 << 10;

/// Most units that one answer names: 1,000 of them at 200 bytes stay under [`ANSWER_MAX_BYTES`].
pub const ANSWER_MAX_UNITS: usize = 1_000;

/// Read buffer of one connection, in bytes. Tungstenite's default is 128 KiB, zero-filled, for each connection:
/// 20 times the memory for messages that are 40 bytes long.
pub const READ_BUFFER_BYTES: usize = 4 << 10;

/// Shortest key, in characters after trimming (the seed's rule).
pub const KEY_MIN_CHARS: usize = 32;

/// Longest key, in bytes: so that `auth` always fits into [`REQUEST_MAX_BYTES`], escaped or not.
pub const KEY_MAX_BYTES: usize = 1_024;

/// Most keys that are valid at once: a rotation takes two, one that was left half done three.
pub const KEYS_MAX: usize = 8;

/// Longest `id` of a command, in bytes.
pub const ID_MAX_BYTES: usize = 64;

/// Time from the TCP connection to the end of the WebSocket handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time from the TCP connection to a successful `auth`.
pub const AUTH_TIMEOUT: Duration = Duration::from_secs(10);

/// Most messages and control frames that a peer may send before it is authenticated.
pub const FRAMES_BEFORE_AUTH: u32 = 16;

/// Most connections that are not authenticated yet, in all. When one more comes, the oldest one of the address
/// that holds the most is closed: a newcomer always gets its chance, and a flood crowds out itself first.
pub const MAX_STRANGERS: usize = 256;

/// Most connections that are not authenticated yet, from one address.
pub const MAX_STRANGERS_PER_ADDRESS: usize = 64;

/// Most authenticated connections, in all. With [`MAX_STRANGERS`] this stays under the 1,024 descriptors that a
/// service gets by default.
pub const MAX_PEERS: usize = 512;

/// Most authenticated connections from one address.
pub const MAX_PEERS_PER_ADDRESS: usize = 256;

/// Wrong keys that one address may try in a burst; after them each answer to a wrong key takes
/// [`WRONG_KEY_INTERVAL`] longer than the one before. A right key is always accepted at once: whoever shares an
/// address with an attacker is not locked out.
pub const WRONG_KEY_BURST: u32 = 10;

/// Time in which an address earns back one wrong key.
pub const WRONG_KEY_INTERVAL: Duration = Duration::from_secs(1);

/// Most addresses whose wrong keys are remembered; the one with the least to remember is forgotten first.
pub const MAX_TRACKED_ADDRESSES: usize = 4_096;

/// Most commands that one connection may have unanswered.
pub const MAX_COMMANDS_IN_FLIGHT: usize = 32;

/// Time for a peer to take one answer off our hands.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// An authenticated connection that has been silent for this long is pinged, and closed when it stays silent for
/// twice as long. One that waits for an answer is never closed for silence.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

// The chain of the limits, checked by the compiler.
const _: () = assert!(
    KEY_MAX_BYTES * 6 + 64 <= REQUEST_MAX_BYTES,
    "an escaped key must fit into a request"
);
const _: () = assert!(
    MAX_STRANGERS + MAX_PEERS + 64 < 1_024,
    "the default descriptor limit must suffice"
);
const _: () = assert!(MAX_STRANGERS_PER_ADDRESS <= MAX_STRANGERS && MAX_PEERS_PER_ADDRESS <= MAX_PEERS);
const _: () = assert!(HANDSHAKE_TIMEOUT.as_secs() < AUTH_TIMEOUT.as_secs());

/// Longest reason of a hold, in characters.
pub const REASON_MAX_CHARS: usize = 200;
/// Longest hold with an end, in milliseconds: a year.
pub const HOLD_MAX_MS: u64 = 365 * 24 * 3_600 * 1_000;
