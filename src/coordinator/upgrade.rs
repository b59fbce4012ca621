//! The WebSocket handshake of one who connects (RFC 6455, section 4.1).
//!
//! Not the library's: it takes a server that chooses none of the subprotocols which it was offered for an error, although the RFC
//! does not, and so whoever knows only the documentation would have to be called a second time.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::fault::{Fault, Phase};
use super::heard::line;
use crate::protocol::SUBPROTOCOL;

/// Longest answer to the handshake, in bytes, and most headers in it: those of a guardian have 200 bytes, those of a
/// proxy that has its say a few thousand.
const ANSWER_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// How it ended well.
pub(super) struct Upgraded {
    /// Whether the second version of the wire was chosen.
    pub(super) second_version: bool,
    /// What came behind the answer, already in frames.
    pub(super) rest: Vec<u8>,
}

/// Asks the other side of `stream`, which is called `host`, to speak WebSocket.
pub(super) async fn upgrade(stream: &mut TcpStream, host: &str) -> Result<Upgraded, Fault> {
    let key = generate_key();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    let lost = |reason: String| Fault::Lost {
        phase: Phase::Handshake,
        reason,
    };
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(|error| lost(error.to_string()))?;
    let mut answer = Vec::with_capacity(512);
    loop {
        let read = stream.read_buf(&mut answer).await;
        if read.map_err(|error| lost(error.to_string()))? == 0 {
            return Err(lost("the other side closed it without a word".to_owned()));
        }
        if let Some((length, second_version)) = judge(&answer, &key)? {
            return Ok(Upgraded {
                second_version,
                rest: answer.split_off(length),
            });
        }
        if answer.len() > ANSWER_MAX {
            return Err(Fault::Rubbish {
                reason: format!("its answer to the handshake is longer than {ANSWER_MAX} bytes"),
            });
        }
    }
}

/// What an answer says to the request with `key`: its length and whether the second version was chosen; nothing while it is not
/// whole.
fn judge(answer: &[u8], key: &str) -> Result<Option<(usize, bool)>, Fault> {
    let rubbish = |reason: String| Fault::Rubbish { reason };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(answer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => {
            return Err(rubbish(format!(
                "its answer to the handshake is no HTTP: {error}"
            )));
        }
    };
    let status = response.code.unwrap_or_default();
    if status != 101 {
        return Err(Fault::NoUpgrade { status });
    }
    // A list may come in several headers (RFC 9110, section 5.3).
    let named = |name: &str| {
        let found = response
            .headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name));
        let values: Vec<_> = found
            .filter_map(|header| std::str::from_utf8(header.value).ok())
            .map(str::trim)
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    };
    let wanted = [
        ("Upgrade", "websocket".to_owned(), true),
        ("Connection", "upgrade".to_owned(), true),
        ("Sec-WebSocket-Accept", derive_accept_key(key.as_bytes()), false),
    ];
    for (name, value, any_case) in wanted {
        let said = named(name).unwrap_or_default();
        let right = said
            .split(',')
            .map(str::trim)
            .any(|said| said == value || (any_case && said.eq_ignore_ascii_case(&value)));
        if !right {
            return Err(rubbish(format!(
                "its answer to the handshake says {name}: {:?}",
                line(&said, 64)
            )));
        }
    }
    match named("Sec-WebSocket-Protocol") {
        None => Ok(Some((length, false))),
        Some(chosen) if chosen == SUBPROTOCOL => Ok(Some((length, true))),
        Some(other) => Err(rubbish(format!(
            "it chose the subprotocol {:?}, which was not offered",
            line(&other, 64)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    // The example of RFC 6455, section 1.3.
    const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    fn judged(headers: &str) -> Result<Option<(usize, bool)>, Fault> {
        judge(format!("{headers}\r\n").as_bytes(), KEY)
    }

    #[test]
    fn one_who_knows_the_documentation_only_is_taken_as_it_is() {
        assert_eq!(judged(ANSWER).unwrap(), Some((ANSWER.len() + 2, false)));
        let chosen = format!("{ANSWER}sec-websocket-protocol: io-guardian.v2\r\n");
        assert_eq!(judged(&chosen).unwrap(), Some((chosen.len() + 2, true)));
        for connection in [
            "connection: keep-alive, upgrade",
            "Connection: keep-alive\r\nConnection: upgrade",
        ] {
            let proxied = ANSWER.replace("Connection: Upgrade", connection);
            assert!(judged(&proxied).unwrap().is_some(), "{connection}");
        }
    }

    #[test]
    fn an_answer_that_is_not_whole_is_waited_for() {
        let whole = format!("{ANSWER}\r\nrest");
        for length in 0..ANSWER.len() {
            assert_eq!(judge(&whole.as_bytes()[..length], KEY).unwrap(), None, "{length}");
        }
    }

    proptest::proptest! {
        /// Whoever listens on that port may say anything.
        #[test]
        fn no_answer_is_too_strange(
            answer in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600),
            at in 0..ANSWER.len(),
            byte in proptest::prelude::any::<u8>(),
        ) {
            let _ = judge(&answer, KEY);
            let mut almost = format!("{ANSWER}\r\n").into_bytes();
            almost[at] = byte;
            almost.extend(&answer);
            // What it takes for the end of the answer is in what has come: the rest is split off there.
            if let Ok(Some((length, _))) = judge(&almost, KEY) {
                proptest::prop_assert!(length <= almost.len());
            }
        }
    }

    #[test]
    fn what_is_no_websocket_is_said_so() {
        for (answer, told) in [
            (ANSWER.replace("s3pP", "S3pP"), "Sec-WebSocket-Accept"),
            (ANSWER.replace("websocket", "h2c"), "h2c"),
            (ANSWER.replace("Connection: Upgrade\r\n", ""), "Connection"),
            (format!("{ANSWER}Sec-WebSocket-Protocol: chat\r\n"), "chat"),
            ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "no HTTP"),
            ("HTTP/1.1 426 Upgrade Required\r\n".to_owned(), "426"),
        ] {
            let fault = judged(&answer).unwrap_err().to_string();
            assert!(fault.contains(told), "{fault}");
        }
    }
}
