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
use crate::protocol::{HELLO_HEADER, SUBPROTOCOL, WELCOME_HEADER, channel};

/// Longest answer to the handshake, in bytes, and most headers in it: those of a guardian have 200 bytes, those of a
/// proxy that has its say a few thousand.
const ANSWER_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// Which version of the wire the other side chose.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// It knows only the documentation, or wants no other.
    Plain,
    /// With its part of the handshake; without it when it has to look for the key first: then that comes in a frame.
    SecondVersion(Option<Vec<u8>>),
}

/// How it ended well.
pub(super) struct Upgraded {
    pub(super) chosen: Chosen,
    /// What came behind the answer, already in frames.
    pub(super) rest: Vec<u8>,
}

/// Asks the other side of `stream`, which is called `host`, to speak WebSocket, and in it the second version of the wire, of which
/// `hello` is the first message.
pub(super) async fn upgrade(stream: &mut TcpStream, host: &str, hello: &[u8]) -> Result<Upgraded, Fault> {
    let key = generate_key();
    let hello = channel::to_header(hello);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n{HELLO_HEADER}: {hello}\r\n\r\n"
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
        if let Some((length, chosen)) = judge(&answer, &key)? {
            return Ok(Upgraded {
                chosen,
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

/// What an answer says to the request with `key`: its length and what was chosen; nothing while it is not whole.
fn judge(answer: &[u8], key: &str) -> Result<Option<(usize, Chosen)>, Fault> {
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
        None => Ok(Some((length, Chosen::Plain))),
        Some(chosen) if chosen == SUBPROTOCOL => {
            let welcome = named(WELCOME_HEADER).map(|welcome| {
                channel::from_header(welcome.as_bytes())
                    .ok_or_else(|| rubbish(format!("its part of the handshake is {:?}", line(&welcome, 64))))
            });
            Ok(Some((length, Chosen::SecondVersion(welcome.transpose()?))))
        }
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

    fn judged(headers: &str) -> Result<Option<(usize, Chosen)>, Fault> {
        judge(format!("{headers}\r\n").as_bytes(), KEY)
    }

    #[test]
    fn one_who_knows_the_documentation_only_is_taken_as_it_is() {
        assert_eq!(judged(ANSWER).unwrap(), Some((ANSWER.len() + 2, Chosen::Plain)));
        let chosen = format!("{ANSWER}sec-websocket-protocol: io-guardian.v2\r\n");
        let later = Chosen::SecondVersion(None);
        assert_eq!(judged(&chosen).unwrap(), Some((chosen.len() + 2, later)));
        let welcomed = format!(
            "{chosen}Io-Guardian-Welcome: {}\r\n",
            channel::to_header(&[7; 48])
        );
        let at_once = Chosen::SecondVersion(Some(vec![7; 48]));
        assert_eq!(judged(&welcomed).unwrap(), Some((welcomed.len() + 2, at_once)));
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
            (
                format!("{ANSWER}Sec-WebSocket-Protocol: io-guardian.v2\r\nio-guardian-welcome: AAAA\r\n"),
                "AAAA",
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "no HTTP"),
            ("HTTP/1.1 426 Upgrade Required\r\n".to_owned(), "426"),
        ] {
            let fault = judged(&answer).unwrap_err().to_string();
            assert!(fault.contains(told), "{fault}");
        }
    }
}
