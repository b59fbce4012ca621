//! What a stranger, or one who has the key, can do to the second version of the wire: handshakes and frames of any bytes.
//!
//! The first byte chooses: a handshake from whoever connects, the answer to ours, frames in an open channel, or what somebody
//! with the key seals.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use io_guardian::protocol::{Keyring, Opening, PresharedKey, channel};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<PresharedKey> =
    LazyLock::new(|| PresharedKey::parse(&"k".repeat(32), Path::new("key")).expect("32 characters are a key"));
static KEYS: LazyLock<Keyring> = LazyLock::new(|| KEY.clone().into());

fn opened() -> (channel::Channel, channel::Channel) {
    let (opening, hello) = Opening::begin(&KEY).expect("random numbers");
    let (theirs, welcome, _) = channel::answer(&KEYS, &hello).expect("our own handshake");
    (opening.finish(&welcome).expect("our own answer"), theirs)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    match choice % 4 {
        0 => assert!(channel::answer(&KEYS, bytes).is_err(), "nobody guesses the key"),
        1 => {
            let (opening, _) = Opening::begin(&KEY).expect("random numbers");
            assert!(opening.finish(bytes).is_err());
        }
        2 => {
            let (mut ours, mut theirs) = opened();
            assert!(theirs.open(bytes, 8 << 10).is_err());
            // It is over, whatever comes.
            let right = ours.seal("right").expect("a frame");
            assert!(right.iter().all(|frame| theirs.open(frame, 8 << 10).is_err()));
        }
        _ => {
            // Whatever can be said can be heard, and nothing else.
            let text = String::from_utf8_lossy(bytes);
            let (mut ours, mut theirs) = opened();
            let mut heard = None;
            for frame in ours.seal(&text).expect("a few frames") {
                heard = theirs.open(&frame, 1 << 20).expect("our own frame");
            }
            assert_eq!(heard.as_deref(), Some(text.trim_end_matches(' ')));
        }
    }
});
