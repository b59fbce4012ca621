//! The text of the wire, byte for byte, and properties of the codec.

use super::super::limits::{ANSWER_MAX_BYTES, KEY_MAX_BYTES, REQUEST_MAX_BYTES};
use super::*;
use proptest::prelude::*;

#[test]
fn requests_are_written_as_documented() {
    let auth = Request::Auth {
        key: Zeroizing::new("secret \"é\"".to_owned()),
    };
    assert_eq!(auth.to_text(), r#"{"type": "auth", "key": "secret \"é\""}"#);
    assert!(!format!("{auth:?}").contains("secret"));
    let command = |id, generation| {
        Request::Command {
            action: Action::Drain,
            id,
            generation,
            terms: None,
        }
        .to_text()
    };
    assert_eq!(command(None, None), r#"{"type": "command", "action": "drain"}"#);
    assert_eq!(
        command(Some(CommandId::Text("a".into())), Some(7)),
        r#"{"type": "command", "action": "drain", "id": "a", "generation": 7}"#
    );
}

#[test]
fn a_hold_says_why_and_for_how_long() {
    let hold = |reason: &str, for_ms| {
        Request::Command {
            action: Action::Hold,
            id: None,
            generation: None,
            terms: Some(HoldTerms {
                reason: reason.to_owned(),
                for_ms,
            }),
        }
        .to_text()
    };
    assert_eq!(
        hold("a migration", Some(7_200_000)),
        r#"{"type": "command", "action": "hold", "reason": "a migration", "for_ms": 7200000}"#
    );
    let parsed = Request::parse(&hold("a migration", Some(7_200_000))).unwrap();
    let Request::Command {
        terms: Some(terms), ..
    } = parsed
    else {
        panic!("{parsed:?}");
    };
    assert_eq!(
        (terms.reason.as_str(), terms.for_ms),
        ("a migration", Some(7_200_000))
    );
    for (bad, told) in [
        (hold("", None), "reason"),
        (hold("two\nlines", None), "reason"),
        (hold(&"x".repeat(201), None), "reason"),
        (hold("x", Some(0)), "for_ms"),
        (hold("x", Some(HOLD_MAX_MS + 1)), "for_ms"),
        (r#"{"type": "command", "action": "hold"}"#.to_owned(), "reason"),
    ] {
        let error = Request::parse(&bad).unwrap_err().to_string();
        assert!(error.contains(told), "{bad}: {error}");
    }
}

#[test]
fn answers_are_written_as_documented() {
    assert_eq!(
        Answer::auth_ok().to_text(),
        r#"{"type": "auth", "status": "ok", "message": "Authentication successful"}"#
    );
    assert_eq!(
        Answer::auth_error().to_text(),
        r#"{"type": "auth", "status": "error", "message": "Invalid key"}"#
    );
    assert_eq!(
        Answer::Response(Response::new(Action::Ping, Status::Ok, "pong")).to_text(),
        r#"{"type": "response", "action": "ping", "status": "ok", "message": "pong"}"#
    );
    let mut report = UnitReport::new("a.service", "failed");
    report.result = Some("exit-code".into());
    report.elapsed_ms = Some(3);
    let mut drain = Response::new(Action::Drain, Status::Ok, "m").with_units(vec![report]);
    drain.elapsed_ms = Some(5);
    assert_eq!(
        Answer::Response(drain).to_text(),
        r#"{"type": "response", "action": "drain", "status": "ok", "message": "m", "elapsed_ms": 5, "units": [{"name": "a.service", "state": "failed", "result": "exit-code", "elapsed_ms": 3}]}"#
    );
}

#[test]
fn a_guardian_that_knows_more_or_less_than_we_do_is_understood() {
    let bare = Answer::parse(r#"{"type":"response","action":"drain","status":"error","message":"Timeout"}"#)
        .unwrap();
    assert_eq!(
        bare,
        Answer::Response(Response::new(Action::Drain, Status::Error, "Timeout"))
    );
    let more = r#"{"type":"response","action":"ping","status":"ok","message":"pong","mood":{"good":[1,2]},"units":[{"name":"a","state":"active","cpu":5}]}"#;
    assert!(
        matches!(Answer::parse(more), Ok(Answer::Response(r)) if r.units.as_ref().is_some_and(|u| u.len() == 1))
    );
}

#[test]
fn what_needs_attention_comes_first_and_the_rest_is_counted() {
    let mut units: Vec<_> = (0..2_000)
        .map(|i| UnitReport::new(format!("{i}.service"), "inactive"))
        .collect();
    units.push(UnitReport::new("failed.service", "failed"));
    units.push(UnitReport::new("moving.service", "deactivating"));
    let response = Response::new(Action::Drain, Status::Error, "").with_units(units);
    let named = response.units.as_ref().unwrap();
    assert_eq!(
        (named[0].name.as_str(), named[1].name.as_str()),
        ("moving.service", "failed.service")
    );
    assert_eq!(
        (named.len(), response.units_omitted),
        (ANSWER_MAX_UNITS, Some(1_002))
    );
}

#[test]
fn the_longest_names_that_systemd_allows_still_fit_into_an_answer() {
    let units = (0..5_000)
        .map(|_| {
            let mut unit = UnitReport::new("u".repeat(255), "deactivating");
            unit.result = Some("exit-code".into());
            unit.elapsed_ms = Some(123_456);
            unit
        })
        .collect();
    let text =
        Answer::Response(Response::new(Action::Drain, Status::Error, "m".repeat(4_096)).with_units(units))
            .to_text();
    assert!(text.len() <= ANSWER_MAX_BYTES, "{}", text.len());
}

proptest! {
    #[test]
    fn no_text_makes_the_codec_panic(text in ".{0,300}") {
        let _ = Request::parse(&text);
        let _ = Answer::parse(&text);
    }

    #[test]
    fn what_is_written_is_read_again(key in "\\PC{0,200}", id in proptest::option::of(0u64..), generation in proptest::option::of(0u64..)) {
        let auth = Request::Auth { key: Zeroizing::new(key.clone()) };
        let same = matches!(Request::parse(&auth.to_text()), Ok(Request::Auth { key: read }) if *read == key);
        prop_assert!(same);
        let text = Request::Command { action: Action::Status, id: id.map(CommandId::Number), generation, terms: None }.to_text();
        let same = matches!(
            Request::parse(&text),
            Ok(Request::Command { action: Action::Status, id: i, generation: g, terms: None })
                if i == id.map(CommandId::Number) && g == generation
        );
        prop_assert!(same, "{}", text);
    }

    #[test]
    fn any_key_that_is_allowed_fits_into_a_request(key in "[\\x00-\\x1f]{1024}") {
        // Control characters are the worst case: six bytes each.
        prop_assert!(key.len() <= KEY_MAX_BYTES);
        let text = Request::Auth { key: Zeroizing::new(key) }.to_text();
        prop_assert!(text.len() <= REQUEST_MAX_BYTES);
    }

    #[test]
    fn an_error_never_echoes_more_than_a_line(word in "\\PC{0,400}") {
        let text = serde_json::json!({"type": "command", "action": word}).to_string();
        if let Err(error) = Request::parse(&text) {
            prop_assert!(error.to_string().chars().count() < 100);
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
