//! Every message of the wire as a type, its text, and the way back.
//!
//! Requests go from the coordinator to the guardian, answers the other way. Text is written with a space after
//! each colon and comma, as the documentation prints it, so that a recorded conversation of the first
//! implementation and one of ours are equal byte for byte.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::limits::{ANSWER_MAX_BYTES, ANSWER_MAX_UNITS, HOLD_MAX_MS, ID_MAX_BYTES, REASON_MAX_CHARS};
use super::spaced::text;

/// What an answer keeps free of units for everything else, in bytes.
const MESSAGE_ROOM_BYTES: usize = 32 << 10;

/// What a coordinator can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Stop everything that depends on the databases.
    Drain,
    /// Start it again.
    Undrain,
    /// Are you there?
    Ping,
    /// What do you guard, and in which state is it?
    Status,
    /// Stop it, and keep it stopped whatever others say, until it is released or its time is over.
    Hold,
    /// End the hold.
    Release,
    /// What `status` says, now and each time that something of it changes.
    Watch,
}

impl Action {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Ping => "ping",
            Self::Status => "status",
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Watch => "watch",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [
            Self::Drain,
            Self::Undrain,
            Self::Ping,
            Self::Status,
            Self::Hold,
            Self::Release,
            Self::Watch,
        ]
        .into_iter()
        .find(|a| a.as_str() == word)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that the coordinator gives to a command, repeated in the answer: a number or a short text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CommandId {
    /// A number.
    Number(u64),
    /// At most [`ID_MAX_BYTES`] bytes of text.
    Text(String),
}

/// What a coordinator says.
#[derive(Clone)]
pub enum Request {
    /// "I hold the key."
    Auth {
        /// What the peer offers as the key; zeroed when dropped.
        key: Zeroizing<String>,
    },
    /// "Do this."
    Command {
        /// What to do.
        action: Action,
        /// Repeated in the answer.
        id: Option<CommandId>,
        /// The age of the command: one that is lower than the last one seen is refused as stale.
        generation: Option<u64>,
        /// `hold` only: why, and for how long.
        terms: Option<HoldTerms>,
    },
}

/// Why a host is held down, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldTerms {
    /// In the words of whoever does it: at most [`REASON_MAX_CHARS`], and no control characters.
    pub reason: String,
    /// In milliseconds; without it, until it is released.
    pub for_ms: Option<u64>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auth { .. } => f.write_str("Auth { key: [redacted] }"),
            Self::Command {
                action,
                id,
                generation,
                terms,
            } => {
                write!(
                    f,
                    "Command {{ action: {action}, id: {id:?}, generation: {generation:?}, terms: {terms:?} }}"
                )
            }
        }
    }
}

/// Why a text is no request. `Display` is the message of the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not JSON at all.
    #[error("Invalid JSON")]
    InvalidJson,
    /// JSON, but not an object.
    #[error("Invalid message: expected a JSON object, got {0}")]
    NotAnObject(&'static str),
    /// A `type` that this guardian does not know, or none.
    #[error("Unknown message type: {0}")]
    UnknownType(String),
    /// An `action` that this guardian does not know, or none.
    #[error("Unknown action: {0}")]
    UnknownAction(String),
    /// A known field with a value that cannot be used.
    #[error("Invalid {field}: expected {expected}, got {got}")]
    InvalidField {
        /// The field.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What came.
        got: String,
    },
}

impl Request {
    /// Reads a request from the text of one frame.
    ///
    /// Fields that are not known are ignored. An `auth` whose key is missing or no text is an `auth` with an
    /// empty key: it fails like any other wrong key, and tells a stranger nothing else.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let value: Value = serde_json::from_str(text).map_err(|_| RequestError::InvalidJson)?;
        let Value::Object(mut fields) = value else {
            return Err(RequestError::NotAnObject(kind(&value)));
        };
        match fields.get("type") {
            Some(Value::String(t)) if t == "auth" => {
                let key = match fields.remove("key") {
                    Some(Value::String(key)) => key,
                    _ => String::new(),
                };
                Ok(Self::Auth {
                    key: Zeroizing::new(key),
                })
            }
            Some(Value::String(t)) if t == "command" => {
                let action = match fields.get("action") {
                    Some(Value::String(word)) => {
                        Action::parse(word).ok_or_else(|| RequestError::UnknownAction(excerpt(word)))?
                    }
                    other => return Err(RequestError::UnknownAction(shown(other))),
                };
                Ok(Self::Command {
                    action,
                    id: id(fields.get("id"))?,
                    generation: generation(fields.get("generation"))?,
                    terms: match action {
                        Action::Hold => Some(HoldTerms {
                            reason: reason(fields.get("reason"))?,
                            for_ms: for_ms(fields.get("for_ms"))?,
                        }),
                        _ => None,
                    },
                })
            }
            Some(Value::String(other)) => Err(RequestError::UnknownType(excerpt(other))),
            other => Err(RequestError::UnknownType(shown(other))),
        }
    }

    /// The text of this request.
    pub fn to_text(&self) -> String {
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "lowercase")]
        enum Wire<'a> {
            Auth {
                key: &'a str,
            },
            Command {
                action: Action,
                #[serde(skip_serializing_if = "Option::is_none")]
                id: Option<&'a CommandId>,
                #[serde(skip_serializing_if = "Option::is_none")]
                generation: Option<u64>,
                #[serde(skip_serializing_if = "Option::is_none")]
                reason: Option<&'a str>,
                #[serde(skip_serializing_if = "Option::is_none")]
                for_ms: Option<u64>,
            },
        }
        text(&match self {
            Self::Auth { key } => Wire::Auth { key },
            Self::Command {
                action,
                id,
                generation,
                terms,
            } => Wire::Command {
                action: *action,
                id: id.as_ref(),
                generation: *generation,
                reason: terms.as_ref().map(|terms| terms.reason.as_str()),
                for_ms: terms.as_ref().and_then(|terms| terms.for_ms),
            },
        })
    }
}

fn id(value: Option<&Value>) -> Result<Option<CommandId>, RequestError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= ID_MAX_BYTES => Ok(Some(CommandId::Text(text.clone()))),
        Some(Value::Number(n)) if n.is_u64() => Ok(n.as_u64().map(CommandId::Number)),
        other => Err(RequestError::InvalidField {
            field: "id",
            expected: "a whole number from 0 on, or a text of at most 64 bytes",
            got: shown(other),
        }),
    }
}

fn generation(value: Option<&Value>) -> Result<Option<u64>, RequestError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(n)) if n.is_u64() => Ok(n.as_u64()),
        other => Err(RequestError::InvalidField {
            field: "generation",
            expected: "a whole number from 0 to 18446744073709551615",
            got: shown(other),
        }),
    }
}

fn reason(value: Option<&Value>) -> Result<String, RequestError> {
    match value {
        Some(Value::String(text)) if is_reason(text) => Ok(text.clone()),
        other => Err(RequestError::InvalidField {
            field: "reason",
            expected: "a sentence of at most 200 characters that says why the host is held",
            got: shown(other),
        }),
    }
}

/// Whether `text` can be the reason of a hold: it will be read in journals and on terminals.
pub fn is_reason(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= REASON_MAX_CHARS && !text.chars().any(char::is_control)
}

fn for_ms(value: Option<&Value>) -> Result<Option<u64>, RequestError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(n)) if n.as_u64().is_some_and(|ms| (1..=HOLD_MAX_MS).contains(&ms)) => {
            Ok(n.as_u64())
        }
        other => Err(RequestError::InvalidField {
            field: "for_ms",
            expected: "a whole number of milliseconds from 1 to 31536000000 (a year)",
            got: shown(other),
        }),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None => "None".to_owned(),
        Some(Value::String(text)) => excerpt(text),
        Some(Value::Number(n)) => excerpt(&n.to_string()),
        Some(other) => kind(other).to_owned(),
    }
}

/// The first 64 characters of what a peer sent, with control characters made visible: enough to find the
/// mistake, too little to flood or forge a journal.
pub fn excerpt(text: &str) -> String {
    const MOST: usize = 64;
    let mut out: String = text
        .chars()
        .take(MOST)
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// Whether what was asked for came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It did.
    Ok,
    /// It did not; the message says why.
    Error,
}

/// One dependent and its state, as a guardian reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitReport {
    /// Its name, suffix included.
    pub name: String,
    /// systemd's word for it (`ActiveState`): `active`, `reloading`, `inactive`, `failed`, `activating`,
    /// `deactivating`; or a word that systemd may add.
    pub state: String,
    /// Why it is in that state, where there is more to say than `success`: systemd's `Result` (`exit-code`,
    /// `signal`, `timeout`, …), or a sentence of the guardian.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// How long it took to come to rest in this command, in milliseconds; absent when it was at rest already or
    /// still moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
}

impl UnitReport {
    /// A unit in a state, with nothing more to say.
    pub fn new(name: impl Into<String>, state: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            state: state.into(),
            result: None,
            elapsed_ms: None,
        }
    }

    /// Whether nothing of it runs: `inactive`, or `failed` (which is stopped too).
    pub fn is_stopped(&self) -> bool {
        matches!(self.state.as_str(), "inactive" | "failed")
    }
}

/// One database, as a guardian's own probe has seen it last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseReport {
    /// Which: `postgres db:5432`.
    pub name: String,
    /// Whether it would serve a query.
    pub ready: bool,
    /// Why not, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How long it has been so, in milliseconds.
    #[serde(default)]
    pub age_ms: u64,
}

/// What a guardian last did, as `status` reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCommand {
    /// What it was.
    pub action: Action,
    /// Who wanted it: the address, and the version of the wire with the fingerprint of the key; `itself` when nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// `ok`, `error`, or none while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// What was answered; empty while it is under way.
    #[serde(default)]
    pub message: String,
    /// How long it took or has taken so far, in milliseconds.
    #[serde(default)]
    pub elapsed_ms: u64,
    /// How long ago it came, in milliseconds.
    #[serde(default)]
    pub age_ms: u64,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The action that this answers.
    pub action: Action,
    /// Whether it came about.
    pub status: Status,
    /// What happened, for people.
    #[serde(default)]
    pub message: String,
    /// The `id` of the command, when it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<CommandId>,
    /// How long the command took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// The dependents, those that need attention first; absent in answers that are not about units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<Vec<UnitReport>>,
    /// How many more there are than `units` names (as many are named as an answer can hold, and never more
    /// than [`ANSWER_MAX_UNITS`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units_omitted: Option<u64>,
    /// `status` only: the target that is guarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `status` only: the target's state, in systemd's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_state: Option<String>,
    /// `status` only: the last drain or undrain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_command: Option<LastCommand>,
    /// `status` only, and the refusal of a stale command: the highest generation seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// `status` only: the guardian's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Which guardian this is: random, made when it starts. The same from two names is one guardian, or one that stands for two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// `status` only: what the guardian wants for its host and why, in one line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<String>,
    /// Whether a hold is on; in the answer to an undrain, that it was refused because of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<bool>,
    /// `status` only: what the guardian's own probes have seen last, for each database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub databases: Option<Vec<DatabaseReport>>,
    /// `status` only: the fingerprints of the keys that the guardian accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
}

impl Response {
    /// An answer that is only a status and a message, as the documentation has it.
    pub fn new(action: Action, status: Status, message: impl Into<String>) -> Self {
        Self {
            action,
            status,
            message: message.into(),
            id: None,
            elapsed_ms: None,
            units: None,
            units_omitted: None,
            target: None,
            target_state: None,
            last_command: None,
            generation: None,
            version: None,
            instance: None,
            standing: None,
            held: None,
            databases: None,
            keys: None,
        }
    }

    /// Names `units`, those that are neither resting nor running first, and no more than an answer can hold.
    pub fn with_units(mut self, mut units: Vec<UnitReport>) -> Self {
        // Stable: within a class the guardian's own order stays.
        units.sort_by_key(|u| match (u.state.as_str(), u.result.is_some()) {
            ("activating" | "deactivating" | "reloading", _) => 0,
            ("failed", _) => 1,
            (_, true) => 2,
            _ => 3,
        });
        // The names of the fields and the numbers take under 96 bytes; a quote or backslash in a name takes two.
        let size = |u: &UnitReport| {
            96 + 2 * (u.name.len() + u.state.len() + u.result.as_ref().map_or(0, String::len))
        };
        let mut room = ANSWER_MAX_BYTES - MESSAGE_ROOM_BYTES;
        let fits = units.iter().take(ANSWER_MAX_UNITS).take_while(|unit| {
            let left = room.checked_sub(size(unit));
            room = left.unwrap_or(0);
            left.is_some()
        });
        let named = fits.count();
        let omitted = units.len() - named;
        units.truncate(named);
        self.units = Some(units);
        self.units_omitted = (omitted > 0).then_some(omitted as u64);
        self
    }
}

/// What a guardian says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Answer {
    /// To `auth`.
    Auth {
        /// Whether the key was right.
        status: Status,
        /// For people.
        #[serde(default)]
        message: String,
    },
    /// To a command.
    Response(Response),
    /// To `watch`, later: something has changed. The fields are those of a `status`.
    Event(Response),
    /// To what was no command.
    Error {
        /// What was wrong with it.
        #[serde(default)]
        message: String,
    },
}

impl Answer {
    /// "The key is right."
    pub fn auth_ok() -> Self {
        Self::Auth {
            status: Status::Ok,
            message: "Authentication successful".to_owned(),
        }
    }

    /// "The key is wrong."
    pub fn auth_error() -> Self {
        Self::Auth {
            status: Status::Error,
            message: "Invalid key".to_owned(),
        }
    }

    /// "This was no command."
    pub fn error(message: impl Into<String>) -> Self {
        Self::Error {
            message: message.into(),
        }
    }

    /// Reads an answer from the text of one frame. Unknown fields are ignored.
    ///
    /// # Errors
    /// What serde says of a text that is no answer: place and reason.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The text of this answer.
    pub fn to_text(&self) -> String {
        text(self)
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
