use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::protocol::limits::{ANSWER_MAX_BYTES, REQUEST_MAX_BYTES};

const DRAIN: &str = r#"{"type": "command", "action": "drain"}"#;
const LONGEST: usize = REQUEST_MAX_BYTES;

fn key(letter: &str) -> PresharedKey {
    PresharedKey::parse(&letter.repeat(40), Path::new("key")).unwrap()
}

/// A channel's two sides, and all that crossed the wire to open it.
fn opened() -> (Channel, Channel, Vec<u8>, Vec<u8>) {
    let (opening, hello) = Opening::begin(&key("k")).unwrap();
    let keys = key("k").into();
    let (theirs, welcome, _) = answer(&keys, &hello).unwrap();
    (opening.finish(&welcome).unwrap(), theirs, hello, welcome)
}

fn sealed(channel: &mut Channel, text: &str) -> Vec<u8> {
    let mut frames = channel.seal(text).unwrap();
    assert_eq!(frames.len(), 1);
    frames.remove(0)
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn what_one_side_says_the_other_hears() {
    let (mut ours, mut theirs, ..) = opened();
    for text in [DRAIN, "", "ü", &"x".repeat(LONGEST)] {
        let frame = sealed(&mut ours, text);
        assert_eq!(theirs.open(&frame, LONGEST).unwrap().as_deref(), Some(text));
        let frame = sealed(&mut theirs, text);
        assert_eq!(ours.open(&frame, LONGEST).unwrap().as_deref(), Some(text));
    }
}

#[test]
fn nothing_of_the_key_or_of_what_is_said_crosses_the_wire() {
    let (mut ours, mut theirs, hello, welcome) = opened();
    let drain = sealed(&mut ours, DRAIN);
    let auth = sealed(&mut theirs, &format!(r#"{{"key": "{}"}}"#, key("k").expose()));
    let psk = key("k").hash(PURPOSE);
    for bytes in [&hello, &welcome, &drain, &auth] {
        // The first bytes of each would do.
        assert!(!holds(bytes, b"kkkk") && !holds(bytes, b"drai") && !holds(bytes, b"type"));
        assert!(!holds(bytes, &psk[..4]));
    }
}

#[test]
fn a_drain_is_as_long_as_an_undrain() {
    let (mut ours, ..) = opened();
    let lengths: Vec<_> = ["drain", "undrain", "ping", "status"]
        .map(|action| sealed(&mut ours, &DRAIN.replace("drain", action)).len())
        .to_vec();
    assert!(
        lengths.iter().all(|length| *length == PADDING + TAG_BYTES),
        "{lengths:?}"
    );
}

#[test]
fn a_long_answer_comes_in_parts_and_one_that_is_too_long_is_refused() {
    let (mut ours, mut theirs, ..) = opened();
    let text = "u".repeat(ANSWER_MAX_BYTES);
    let frames = theirs.seal(&text).unwrap();
    assert!(frames.iter().all(|frame| frame.len() <= FRAME_MAX_BYTES));
    let mut parts: Vec<_> = frames
        .iter()
        .map(|frame| ours.open(frame, ANSWER_MAX_BYTES).unwrap())
        .collect();
    assert_eq!(parts.pop().flatten().as_deref(), Some(text.as_str()));
    assert!(parts.len() > 1 && parts.iter().all(Option::is_none));

    let frames = theirs.seal(&text).unwrap();
    let heard: Result<Vec<_>, _> = frames.iter().map(|frame| ours.open(frame, LONGEST)).collect();
    assert_eq!(heard, Err(ChannelError::TooLong(LONGEST)));
}

#[test]
fn whoever_has_another_key_or_none_gets_nothing() {
    let (_, hello) = Opening::begin(&key("x")).unwrap();
    assert_eq!(
        answer(&key("k").into(), &hello).err(),
        Some(ChannelError::WrongKey)
    );
    for bytes in [
        &b""[..],
        &[0; HANDSHAKE_BYTES],
        &[7; HANDSHAKE_BYTES - 1],
        &[7; 10_000],
    ] {
        assert_eq!(
            answer(&key("k").into(), bytes).err(),
            Some(ChannelError::WrongKey)
        );
        let (opening, _) = Opening::begin(&key("k")).unwrap();
        assert_eq!(opening.finish(bytes).err(), Some(ChannelError::Unproven));
    }
    // A guardian of another key cannot answer, and one in between cannot with what it has seen of another connection.
    let (.., welcome) = opened();
    let (opening, _) = Opening::begin(&key("k")).unwrap();
    assert_eq!(opening.finish(&welcome).err(), Some(ChannelError::Unproven));
}

#[test]
fn a_session_of_yesterday_is_of_no_use_today_even_with_the_key() {
    let (mut ours, _, hello, welcome) = opened();
    let drain = sealed(&mut ours, DRAIN);
    // Said again to a guardian that has the key: it opens another channel, in which the rest is not right.
    let keys = key("k").into();
    let (mut today, answered, _) = answer(&keys, &hello).unwrap();
    assert_ne!(answered, welcome);
    assert_eq!(today.open(&drain, LONGEST), Err(ChannelError::Altered));
    // And to whoever connects, as the guardian's part.
    let (opening, _) = Opening::begin(&key("k")).unwrap();
    assert_eq!(opening.finish(&welcome).err(), Some(ChannelError::Unproven));
    // The same words are other bytes each time.
    let (mut again, ..) = opened();
    assert_ne!(sealed(&mut again, DRAIN), drain);
}

#[test]
fn a_frame_that_is_repeated_left_out_reordered_or_sent_back_ends_it() {
    let broken = |tamper: fn(&mut Channel, &mut Channel) -> Vec<Vec<u8>>| {
        let (mut ours, mut theirs, ..) = opened();
        let frames = tamper(&mut ours, &mut theirs);
        let heard: Vec<_> = frames.iter().map(|frame| theirs.open(frame, LONGEST)).collect();
        assert_eq!(heard.last(), Some(&Err(ChannelError::Altered)), "{heard:?}");
    };
    broken(|ours, _| {
        let frame = sealed(ours, DRAIN);
        vec![frame.clone(), frame]
    });
    broken(|ours, _| {
        sealed(ours, "left out");
        vec![sealed(ours, DRAIN)]
    });
    broken(|ours, _| {
        let first = sealed(ours, "first");
        vec![sealed(ours, DRAIN), first]
    });
    broken(|ours, _| {
        let mut truncated = sealed(ours, DRAIN);
        truncated.truncate(truncated.len() - 1);
        vec![truncated]
    });
    broken(|ours, _| vec![sealed(ours, DRAIN)[..TAG_BYTES].to_vec()]);
    broken(|_, theirs| vec![sealed(theirs, DRAIN)]);
    broken(|_, _| vec![sealed(&mut opened().0, DRAIN)]);
    broken(|_, _| vec![DRAIN.as_bytes().to_vec()]);
    broken(|_, _| vec![Vec::new()]);
    broken(|_, _| vec![vec![0; FRAME_MAX_BYTES + 1]]);
}

#[test]
fn one_who_has_the_key_can_say_nothing_that_hurts() {
    let raw = |state: &mut TransportState, plain: &[u8]| {
        let mut frame = vec![0; plain.len() + TAG_BYTES];
        state.write_message(plain, &mut frame).unwrap();
        frame
    };
    for plain in [&[][..], &[LAST, 0xff], &[9, b'x']] {
        let (mut ours, mut theirs, ..) = opened();
        let frame = raw(&mut ours.state, plain);
        assert_eq!(theirs.open(&frame, LONGEST), Err(ChannelError::NoMessage));
        let next = sealed(&mut ours, DRAIN);
        assert_eq!(
            theirs.open(&next, LONGEST),
            Err(ChannelError::NoMessage),
            "it is over"
        );
    }
    // Parts that never end are not collected for ever.
    let (mut ours, mut theirs, ..) = opened();
    let endless = (0..=LONGEST + PADDING)
        .find_map(|_| theirs.open(&raw(&mut ours.state, &[MORE, b'x']), LONGEST).err());
    assert_eq!(endless, Some(ChannelError::TooLong(LONGEST)));
}

#[test]
fn while_keys_change_each_of_them_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, format!("{}\n{}\n", key("n").expose(), key("o").expose())).unwrap();
    let both = Keyring::read(&[&path]).unwrap();
    for known in ["o", "n"] {
        let (opening, hello) = Opening::begin(&key(known)).unwrap();
        let (_, welcome, with) = answer(&both, &hello).unwrap();
        assert_eq!(with.expose(), key(known).expose());
        assert!(opening.finish(&welcome).is_ok());
    }
    let (_, hello) = Opening::begin(&key("x")).unwrap();
    assert_eq!(answer(&both, &hello).err(), Some(ChannelError::WrongKey));
}

proptest! {
    #[test]
    fn a_single_bit_that_is_altered_is_found(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let flip = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            bytes
        };
        let (mut ours, mut theirs, hello, _) = opened();
        let frame = sealed(&mut ours, DRAIN);
        prop_assert_eq!(theirs.open(&flip(&frame), LONGEST), Err(ChannelError::Altered));
        // The top bit of a public key has no meaning (RFC 7748, section 5), but it is part of what both have heard.
        let keys: Keyring = key("k").into();
        if let Ok((_, welcome, _)) = answer(&keys, &flip(&hello)) {
            let (opening, _) = Opening::begin(&key("k")).unwrap();
            prop_assert!(opening.finish(&welcome).is_err());
        }
        let (opening, hello) = Opening::begin(&key("k")).unwrap();
        let (_, welcome, _) = answer(&keys, &hello).unwrap();
        prop_assert!(opening.finish(&flip(&welcome)).is_err());
    }

    #[test]
    fn any_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_, mut theirs, ..) = opened();
        prop_assert!(theirs.open(&bytes, LONGEST).is_err());
        prop_assert!(answer(&key("k").into(), &bytes).is_err());
    }

    #[test]
    fn a_channel_carries_any_text(text in "\\PC{0,300}") {
        let text = text.trim_end_matches(' ');
        let (mut ours, mut theirs, ..) = opened();
        let frame = sealed(&mut ours, text);
        prop_assert_eq!(theirs.open(&frame, LONGEST).unwrap(), Some(text.to_owned()));
    }
}
