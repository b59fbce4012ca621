//! What a stranger, or one who has the key, can do to the second version of the wire: handshakes and frames of any bytes.
//!
//! The first byte chooses: a handshake from whoever connects, in bytes and in its header, the answer to ours, frames in an open channel, what our side
//! can say, or plaintexts of any bytes from somebody with the key and a program of his own.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use blake2::{Blake2s256, Digest};
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

/// The channel of a guardian, and the side of one who has the key but not our program.
fn opened_by_another_program() -> (snow::TransportState, channel::Channel) {
    let mut hash = Blake2s256::new();
    hash.update(b"io-guardian.v2 psk\0");
    hash.update(KEY.expose());
    let psk: [u8; 32] = hash.finalize().into();
    let parameters = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse().expect("a known pattern");
    let mut initiator = snow::Builder::new(parameters)
        .prologue(channel::SUBPROTOCOL.as_bytes())
        .and_then(|builder| builder.psk(0, &psk))
        .and_then(snow::Builder::build_initiator)
        .expect("an initiator");
    let mut hello = [0; 48];
    initiator.write_message(&[], &mut hello).expect("random numbers");
    let (ours, welcome, _) = channel::answer(&KEYS, &hello).expect("a right handshake");
    initiator.read_message(&welcome, &mut []).expect("a right answer");
    (initiator.into_transport_mode().expect("it is over"), ours)
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    match choice % 5 {
        0 => {
            assert!(channel::answer(&KEYS, bytes).is_err(), "nobody guesses the key");
            // As it comes: in a header.
            if let Some(hello) = channel::from_header(bytes) {
                assert_eq!(channel::to_header(&hello).as_bytes(), bytes);
                assert!(channel::answer(&KEYS, &hello).is_err());
            }
        }
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
        3 => {
            // Whatever can be said can be heard, and nothing else.
            let text = String::from_utf8_lossy(bytes);
            let (mut ours, mut theirs) = opened();
            let mut heard = None;
            for frame in ours.seal(&text).expect("a few frames") {
                heard = theirs.open(&frame, 1 << 20).expect("our own frame");
            }
            assert_eq!(heard.as_deref(), Some(text.trim_end_matches(' ')));
        }
        _ => {
            let (mut stranger, mut ours) = opened_by_another_program();
            let longest = 1 << 10;
            let mut over = false;
            // Each frame has a byte that tells how long it is.
            let mut rest = bytes;
            while let Some((length, after)) = rest.split_first() {
                let (plain, after) = after.split_at(usize::from(*length).min(after.len()));
                rest = after;
                let mut frame = vec![0; plain.len() + 16];
                let length = stranger.write_message(plain, &mut frame).expect("a frame");
                match ours.open(&frame[..length], longest) {
                    Ok(text) => {
                        assert!(!over, "nothing is heard after an error");
                        assert!(text.is_none_or(|text| text.len() <= longest + channel::PADDING));
                    }
                    Err(_) => over = true,
                }
            }
        }
    }
});
