//! Whatever text comes in: no panic, a bounded answer, and what we write we can read.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use io_guardian::guardian::session::{Frame, Reaction, Session};
use io_guardian::protocol::limits::REQUEST_MAX_BYTES;
use io_guardian::protocol::{Answer, Keyring, PresharedKey, Request};
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<Keyring> = LazyLock::new(|| {
    let key = PresharedKey::parse(&"k".repeat(32), Path::new("key")).expect("32 characters are a key");
    key.into()
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.len() > REQUEST_MAX_BYTES {
        return;
    }
    // The request that was understood, written and read again, is the same request.
    if let Ok(request) = Request::parse(text) {
        let written = request.to_text();
        let again = Request::parse(&written).expect("what we write we can read").to_text();
        assert_eq!(written, again);
    }
    // The same for answers, which a coordinator reads from a guardian that it need not trust.
    if let Ok(answer) = Answer::parse(text) {
        let written = answer.to_text();
        assert_eq!(Answer::parse(&written).expect("what we write we can read"), answer);
    }
    // A conversation, line by line: a stranger stays one unless it shows the key, and every answer is bounded.
    let mut session = Session::default();
    for line in text.split('\n') {
        let before = session.is_authenticated();
        match session.on(&KEYS, &Frame::Text(line)) {
            Reaction::Reply(answer) | Reaction::WrongKey(answer) | Reaction::Close(Some(answer), _) => {
                assert!(answer.to_text().len() < 1024, "an answer to rubbish is short");
            }
            Reaction::Authenticated(..) => assert!(line.contains("kkkkkkkk") || line.contains("\\u")),
            Reaction::Command { .. } => assert!(before, "a stranger commands nothing"),
            Reaction::Ignore | Reaction::Close(None, _) => {}
        }
    }
});
