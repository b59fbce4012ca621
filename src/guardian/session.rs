//! One connection's conversation: what a frame means, given whether its peer is authenticated. Pure.
//!
//! The rules are those of the seed's page (`docs/PROTOCOL.md`): the first message must be `auth`; a wrong key
//! and a command without a key end the connection with code 1008; text that is no JSON is answered and does not
//! end it. A peer that is not authenticated learns nothing else.

use crate::protocol::limits::FRAMES_BEFORE_AUTH;
use crate::protocol::{Action, Answer, CommandId, HoldTerms, Keyring, Request, RequestError};

/// What a peer sent, as far as this room cares.
#[derive(Debug)]
pub enum Frame<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary,
    /// A ping or pong: answered below us, counted here.
    Control,
}

/// What to do about a frame.
#[derive(Debug)]
pub enum Reaction {
    /// Nothing.
    Ignore,
    /// Send this and go on.
    Reply(Answer),
    /// The peer holds the key of this fingerprint: count it among the peers, then send the answer.
    Authenticated(Answer, String),
    /// The key is wrong: send this (when the address may have its answer), and close with 1008.
    WrongKey(Answer),
    /// Send this, if anything, and close with 1008 and this reason.
    Close(Option<Answer>, &'static str),
    /// An authenticated peer commands.
    Command {
        /// What.
        action: Action,
        /// Repeated in the answer.
        id: Option<CommandId>,
        /// How old the command is.
        generation: Option<u64>,
        /// Of a hold.
        terms: Option<HoldTerms>,
    },
}

/// The state of one conversation.
#[derive(Debug, Default)]
pub struct Session {
    authenticated: bool,
    frames: u32,
}

impl Session {
    /// Whether the peer has shown the key.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// The peer has proven the key in another way: by what it said in a channel that only a key can open.
    pub fn prove(&mut self) {
        self.authenticated = true;
    }

    /// Decides.
    pub fn on(&mut self, keys: &Keyring, frame: &Frame<'_>) -> Reaction {
        if !self.authenticated {
            self.frames += 1;
            if self.frames > FRAMES_BEFORE_AUTH {
                return Reaction::Close(None, "Not authenticated");
            }
        }
        let text = match frame {
            Frame::Control => return Reaction::Ignore,
            Frame::Binary if self.authenticated => {
                return Reaction::Reply(Answer::error(
                    "Invalid message: expected a text frame, got a binary one",
                ));
            }
            Frame::Binary => return not_authenticated(),
            Frame::Text(text) => text,
        };
        match Request::parse(text) {
            Ok(Request::Auth { key: offered }) => {
                let key = keys.find(&offered);
                self.authenticated = key.is_some();
                match key {
                    Some(key) => Reaction::Authenticated(Answer::auth_ok(), key.fingerprint()),
                    None => Reaction::WrongKey(Answer::auth_error()),
                }
            }
            // The first implementation answers this one before it asks for the key, and so do we: it tells a
            // stranger only that it sent no JSON.
            Err(error @ RequestError::InvalidJson) => Reaction::Reply(Answer::error(error.to_string())),
            _ if !self.authenticated => not_authenticated(),
            Ok(Request::Command {
                action,
                id,
                generation,
                terms,
            }) => Reaction::Command {
                action,
                id,
                generation,
                terms,
            },
            Err(error) => Reaction::Reply(Answer::error(error.to_string())),
        }
    }
}

fn not_authenticated() -> Reaction {
    Reaction::Close(Some(Answer::error("Not authenticated")), "Not authenticated")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PresharedKey;
    use std::path::Path;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn keys() -> Keyring {
        PresharedKey::parse(KEY, Path::new("key")).unwrap().into()
    }

    fn say(session: &mut Session, text: &str) -> String {
        match session.on(&keys(), &Frame::Text(text)) {
            Reaction::Reply(answer) => answer.to_text(),
            Reaction::Authenticated(answer, _) => format!("+ {}", answer.to_text()),
            Reaction::WrongKey(answer) => format!("{} then 1008", answer.to_text()),
            Reaction::Close(Some(answer), reason) => format!("{} then 1008 {reason}", answer.to_text()),
            other => format!("{other:?}"),
        }
    }

    fn authenticated() -> Session {
        let mut session = Session::default();
        let answer = say(&mut session, &format!(r#"{{"type": "auth", "key": "{KEY}"}}"#));
        assert_eq!(
            answer,
            r#"+ {"type": "auth", "status": "ok", "message": "Authentication successful"}"#
        );
        session
    }

    #[test]
    fn a_stranger_learns_nothing_but_that_it_is_one() {
        let not_authenticated =
            r#"{"type": "error", "message": "Not authenticated"} then 1008 Not authenticated"#;
        for text in [
            r#"{"type": "command", "action": "ping"}"#,
            r#"{"type": "command", "action": "explode"}"#,
            r#"{"type": "nonsense"}"#,
            "[]",
            "17",
            "{}",
        ] {
            assert_eq!(say(&mut Session::default(), text), not_authenticated, "{text}");
        }
        let wrong = r#"{"type": "auth", "status": "error", "message": "Invalid key"} then 1008"#;
        for text in [
            r#"{"type": "auth", "key": "wrong"}"#,
            r#"{"type": "auth"}"#,
            r#"{"type": "auth", "key": 5}"#,
        ] {
            assert_eq!(say(&mut Session::default(), text), wrong, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_json_is_answered_and_forgiven() {
        let invalid = r#"{"type": "error", "message": "Invalid JSON"}"#;
        let mut stranger = Session::default();
        assert_eq!(say(&mut stranger, "not json"), invalid);
        assert!(say(&mut stranger, &format!(r#"{{"type": "auth", "key": "{KEY}"}}"#)).starts_with('+'));
        assert_eq!(say(&mut authenticated(), "{"), invalid);
        assert_eq!(say(&mut authenticated(), &"[".repeat(4_000)), invalid);
    }

    #[test]
    fn a_peer_gets_an_answer_to_everything() {
        let mut peer = authenticated();
        for (text, answer) in [
            ("[]", "Invalid message: expected a JSON object, got a list"),
            (r#""x""#, "Invalid message: expected a JSON object, got a text"),
            (
                r#"{"type": "command", "action": "explode"}"#,
                "Unknown action: explode",
            ),
            (r#"{"type": "command"}"#, "Unknown action: None"),
            (r#"{"type": "nonsense"}"#, "Unknown message type: nonsense"),
            (
                r#"{"type": "command", "action": "drain", "generation": -1}"#,
                "Invalid generation: expected a whole number from 0 to 18446744073709551615, got -1",
            ),
            (
                r#"{"type": "command", "action": "ping", "id": []}"#,
                "Invalid id: expected a whole number from 0 on, or a text of at most 64 bytes, got a list",
            ),
        ] {
            assert_eq!(
                say(&mut peer, text),
                format!(r#"{{"type": "error", "message": "{answer}"}}"#)
            );
        }
        assert!(
            say(
                &mut peer,
                r#"{"type": "command", "action": "drain", "colour": "red"}"#
            )
            .contains("Drain")
        );
    }

    #[test]
    fn showing_the_right_key_again_is_fine_and_a_wrong_one_ends_it() {
        let mut peer = authenticated();
        assert!(say(&mut peer, &format!(r#"{{"type": "auth", "key": "{KEY}"}}"#)).starts_with('+'));
        assert!(say(&mut peer, r#"{"type": "auth", "key": "x"}"#).ends_with("then 1008"));
        assert!(!peer.is_authenticated());
    }

    #[test]
    fn a_stranger_cannot_keep_us_busy() {
        let mut session = Session::default();
        for _ in 0..FRAMES_BEFORE_AUTH {
            assert!(matches!(session.on(&keys(), &Frame::Control), Reaction::Ignore));
        }
        assert!(matches!(
            session.on(&keys(), &Frame::Control),
            Reaction::Close(None, _)
        ));
    }
}
