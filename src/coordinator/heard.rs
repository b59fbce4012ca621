//! What one text frame of a guardian means to us. Pure.
//!
//! A guardian may say more than we know: unknown types, answers to other actions and unknown fields are passed
//! over. Fields that we know but that hold something else than ours (a guardian of another make may have its own
//! `units`) cost only themselves; the four fields of the documentation decide.

use serde_json::{Map, Value};

use crate::protocol::limits::KEYS_MAX;
use crate::protocol::{Action, Answer, DatabaseReport, LastCommand, Response, Status, UnitReport};

/// Most databases of one host that are told of.
const DATABASES_MAX: usize = 64;
/// Most characters of a guardian's message that we repeat.
const MESSAGE_MAX: usize = 1_000;
/// Most characters of a name or a state that we repeat: systemd's own names end at 255.
const WORD_MAX: usize = 256;

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The answer to `auth`.
    Auth {
        /// Whether the key was accepted.
        ok: bool,
        /// The guardian's words.
        message: String,
    },
    /// The answer to our command.
    Response(Box<Response>),
    /// To a `watch`: what has become of it.
    Event(Box<Response>),
    /// The guardian did not understand us.
    Error(String),
    /// Nothing for us.
    Other,
    /// Nothing that a guardian would say.
    Rubbish(String),
}

/// Reads one frame while the answer to `action` is wanted. Everything in the result is safe to print.
pub(super) fn understand(text: &str, action: Action) -> Heard {
    match Answer::parse(text) {
        Ok(Answer::Auth { status, message }) => Heard::Auth {
            ok: status == Status::Ok,
            message: line(&message, MESSAGE_MAX),
        },
        Ok(Answer::Response(response)) if response.action == action => {
            Heard::Response(Box::new(clean(response)))
        }
        Ok(Answer::Response(_)) => Heard::Other,
        Ok(Answer::Event(response)) => Heard::Event(Box::new(clean(response))),
        Ok(Answer::Error { message }) => Heard::Error(line(&message, MESSAGE_MAX)),
        Err(_) => from_documented_fields(text, action),
    }
}

/// The same by the four documented fields only.
fn from_documented_fields(text: &str, action: Action) -> Heard {
    let rubbish = || Heard::Rubbish(format!("it said {:?}", line(text, 64)));
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(text) else {
        return rubbish();
    };
    let word = |name: &str| fields.get(name).and_then(Value::as_str);
    let status = match word("status") {
        Some("ok") => Some(Status::Ok),
        Some("error") => Some(Status::Error),
        _ => None,
    };
    let message = line(&message_of(&fields), MESSAGE_MAX);
    match (word("type"), status) {
        (Some("auth"), Some(status)) => Heard::Auth {
            ok: status == Status::Ok,
            message,
        },
        (Some("error"), _) => Heard::Error(message),
        (Some("response"), Some(status)) if word("action") == Some(action.as_str()) => {
            Heard::Response(Box::new(Response::new(action, status, message)))
        }
        (Some("response"), _) if word("action").is_some_and(|a| a != action.as_str()) => Heard::Other,
        (Some("auth" | "response"), _) => rubbish(),
        (Some(_), _) => Heard::Other,
        (None, _) => rubbish(),
    }
}

fn message_of(fields: &Map<String, Value>) -> String {
    match fields.get("message") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn clean(response: Response) -> Response {
    let word = |text: String| line(&text, WORD_MAX);
    Response {
        message: line(&response.message, MESSAGE_MAX),
        units: response.units.map(|units| {
            units
                .into_iter()
                .map(|unit| UnitReport {
                    name: word(unit.name),
                    state: word(unit.state),
                    result: unit.result.map(word),
                    elapsed_ms: unit.elapsed_ms,
                })
                .collect()
        }),
        target: response.target.map(word),
        target_state: response.target_state.map(word),
        standing: response.standing.map(|standing| line(&standing, MESSAGE_MAX)),
        databases: response.databases.map(|databases| {
            let databases = databases.into_iter().take(DATABASES_MAX);
            databases
                .map(|database| DatabaseReport {
                    name: word(database.name),
                    why: database.why.map(|why| line(&why, MESSAGE_MAX)),
                    ..database
                })
                .collect()
        }),
        version: response.version.map(word),
        instance: response.instance.map(word),
        keys: response
            .keys
            .map(|keys| keys.into_iter().take(KEYS_MAX).map(word).collect()),
        last_command: response.last_command.map(|last| LastCommand {
            message: line(&last.message, MESSAGE_MAX),
            by: last.by.map(|by| line(&by, WORD_MAX)),
            ..last
        }),
        ..response
    }
}

/// The first `most` characters as one line: control characters, line separators and characters that change the
/// direction of writing become U+FFFD, so that no peer forges a line of a journal or of a table.
pub(super) fn line(text: &str, most: usize) -> String {
    let harmless = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut rest = text.trim().chars();
    let mut out: String = rest
        .by_ref()
        .take(most)
        .map(|c| {
            if harmless(c) {
                c
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect();
    if rest.next().is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_answers_are_understood() {
        assert_eq!(
            understand(
                r#"{"type": "auth", "status": "ok", "message": "Authentication successful"}"#,
                Action::Drain
            ),
            Heard::Auth {
                ok: true,
                message: "Authentication successful".into()
            }
        );
        let text = r#"{"type": "response", "action": "drain", "status": "error", "message": "no"}"#;
        assert_eq!(
            understand(text, Action::Drain),
            Heard::Response(Box::new(Response::new(Action::Drain, Status::Error, "no")))
        );
        assert_eq!(
            understand(text, Action::Ping),
            Heard::Other,
            "an answer to somebody else"
        );
        assert_eq!(
            understand(
                r#"{"type": "error", "message": "Unknown action: status"}"#,
                Action::Status
            ),
            Heard::Error("Unknown action: status".into())
        );
    }

    #[test]
    fn what_a_later_or_another_guardian_adds_is_passed_over() {
        for other in [
            r#"{"type": "event", "status": "ok"}"#,
            r#"{"type": "event", "action": "drain", "status": 7}"#,
            r#"{"type": "response", "action": "hold", "status": "ok"}"#,
        ] {
            assert_eq!(understand(other, Action::Drain), Heard::Other, "{other}");
        }
        // Fields of ours that hold something else cost only themselves.
        assert_eq!(
            understand(
                r#"{"type": "response", "action": "drain", "status": "ok", "message": "m", "units": 3, "id": [1]}"#,
                Action::Drain
            ),
            Heard::Response(Box::new(Response::new(Action::Drain, Status::Ok, "m")))
        );
        assert_eq!(
            understand(
                r#"{"type": "auth", "status": "ok", "message": null}"#,
                Action::Drain
            ),
            Heard::Auth {
                ok: true,
                message: String::new()
            }
        );
    }

    #[test]
    fn what_no_guardian_would_say_is_rubbish() {
        for rubbish in [
            "",
            "hello",
            "[]",
            "7",
            "{}",
            r#"{"type": 1}"#,
            r#"{"type": "response", "action": "drain", "status": "perhaps"}"#,
            r#"{"type": "auth"}"#,
        ] {
            assert!(
                matches!(understand(rubbish, Action::Drain), Heard::Rubbish(_)),
                "{rubbish}"
            );
        }
    }

    #[test]
    fn no_guardian_can_forge_a_line() {
        let evil = "done\n<3>host=db result=ok\u{1b}[2J\u{202e}\u{2028}x";
        let text = serde_json::json!({
            "type": "response", "action": "drain", "status": "ok", "message": evil,
            "units": [{"name": evil, "state": evil, "result": evil}],
        })
        .to_string();
        let Heard::Response(response) = understand(&text, Action::Drain) else {
            panic!("no response");
        };
        let shown = format!("{response:?}");
        assert!(!shown.contains("\\n") && !shown.contains("\\u{1b}"), "{shown}");
        assert_eq!(
            response.message,
            "done\u{fffd}<3>host=db result=ok\u{fffd}[2J\u{fffd}\u{fffd}x"
        );
        assert_eq!(line(&"x".repeat(2_000), 10), "xxxxxxxxxx…");
    }
}
