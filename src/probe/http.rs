//! An HTTP endpoint as a check: one GET, over a connection of its own.
//!
//! **Promise.** Healthy is the expected code and, where one is expected, the expected body; nothing else. Redirects are not
//! followed: a 302 is a 302. No more of the body is read than is needed, never more than 64 KiB of it, and the deadline is over all:
//! lookup, connection, TLS, headers, body. No proxy is asked, whatever the environment says.
//!
//! A name with several addresses is healthy when one of them is.

use data_encoding::BASE64;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::check::{CheckError, HttpCheck, Verify};
use super::fault::Fault;
use super::reach::Place;
use super::stream::{Bounded, Heard};
use super::tls::{self, Tls};
use super::verdict::{Cause, Stage, quoted};

/// The most of a body that is looked at.
const BODY_MAX_BYTES: usize = 64 << 10;
/// The longest head of an answer.
const HEAD_MAX_BYTES: usize = 16 << 10;
/// The most that comes over the wire for the two of them: parts of a body have lengths around them, and TLS has certificates.
const WIRE_MAX_BYTES: usize = 512 << 10;
/// Two bytes that TLS begins each of its alerts with. Who is asked without TLS may answer so.
const TLS_ALERT: &[u8] = b"\x15\x03";

/// One endpoint.
pub(super) struct Endpoint {
    place: Place,
    request: Asked,
}

/// All of the endpoint but its address.
struct Asked {
    tls: Option<Tls>,
    host: HeaderValue,
    path: Uri,
    authorization: Option<HeaderValue>,
    code: StatusCode,
    body: Option<String>,
    contains: Option<String>,
}

impl Endpoint {
    /// What it is made of, and how it is shown.
    pub(super) fn new(check: HttpCheck) -> Result<(Self, String), CheckError> {
        let url = |why: &str| CheckError::Url {
            url: shown(&check.url),
            why: why.to_owned(),
        };
        let begins = |scheme: &str| {
            check
                .url
                .get(..scheme.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
        };
        let with_tls = begins("https://");
        if !with_tls && !begins("http://") {
            return Err(url("it begins neither with http:// nor with https://"));
        }
        let uri: Uri = check
            .url
            .parse()
            .map_err(|error: hyper::http::uri::InvalidUri| url(&error.to_string()))?;
        let authority = uri.authority().ok_or_else(|| url("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(url(
                "a user and a password do not belong into it: they would be shown; give them beside it",
            ));
        }
        let host = authority.host();
        let port = match authority.port() {
            None if authority.as_str() != host => return Err(url("its port is none from 1 to 65535")),
            None => {
                if with_tls {
                    443
                } else {
                    80
                }
            }
            Some(port) if port.as_u16() == 0 => return Err(url("its port is none from 1 to 65535")),
            Some(port) => port.as_u16(),
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.is_empty() {
            return Err(url("the host is missing"));
        }
        if !with_tls && !check.tls.is_empty() {
            return Err(CheckError::TlsFilesWithoutTls);
        }
        check.tls.check()?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let code = StatusCode::from_u16(check.expected_code)
            .ok()
            .filter(|code| code.as_u16() >= 200 && code.as_u16() <= 599)
            .ok_or(CheckError::Code(check.expected_code))?;
        for expected in [&check.expected_response, &check.expected_response_contains]
            .into_iter()
            .flatten()
        {
            if expected.len() > BODY_MAX_BYTES {
                return Err(CheckError::Expectation);
            }
        }
        let request = Asked {
            host: HeaderValue::from_str(authority.as_str()).map_err(|error| url(&error.to_string()))?,
            path: path
                .parse()
                .map_err(|error: hyper::http::uri::InvalidUri| url(&error.to_string()))?,
            authorization: authorization(&check)?,
            code,
            body: check
                .expected_response
                .as_deref()
                .map(|text| trimmed(text).to_owned()),
            contains: check.expected_response_contains.filter(|text| !text.is_empty()),
            // Last: what else is wrong is told where its files are not there, too.
            tls: match with_tls {
                true => Some(Tls::new(bare, &check.tls, Verify::Full, Some("http/1.1"))?),
                false => None,
            },
        };
        let place = Place::new(bare.to_owned(), port);
        Ok((Self { place, request }, format!("http {}", shown(&check.url))))
    }

    pub(super) async fn attempt(&mut self, deadline: Instant) -> Result<(), Fault> {
        let request = &self.request;
        self.place
            .ask(deadline, |stream| request.over(stream, deadline))
            .await
    }
}

/// A URL without what nobody should read: a query may hold a token.
fn shown(url: &str) -> String {
    let (before, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split('#').next().unwrap_or_default();
    let (place, query) = match rest.split_once('?') {
        Some((place, _)) => (place, "?…"),
        None => (rest, ""),
    };
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let scheme = if before.is_empty() {
        String::new()
    } else {
        format!("{before}://")
    };
    quoted(&format!("{scheme}{host}{path}{query}"))
}

/// The header that basic authentication is made of (RFC 7617).
fn authorization(check: &HttpCheck) -> Result<Option<HeaderValue>, CheckError> {
    let Some(user) = &check.user else {
        return match check.password {
            None => Ok(None),
            Some(_) => Err(CheckError::PasswordWithoutUser),
        };
    };
    if user.contains(':') || user.chars().any(char::is_control) {
        return Err(CheckError::User(quoted(user)));
    }
    let password = check
        .password
        .as_ref()
        .map_or(&b""[..], |password| password.expose());
    let clear = Zeroizing::new([user.as_bytes(), b":", password].concat());
    let text = Zeroizing::new(format!("Basic {}", BASE64.encode(&clear)));
    let mut value = HeaderValue::from_str(&text).map_err(|_| CheckError::User(quoted(user)))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Ends of lines after a text do not count: most endpoints send one, and hardly a configuration has one.
fn trimmed(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

impl Asked {
    async fn over(&self, stream: TcpStream, deadline: Instant) -> Result<(), Fault> {
        let stream = Bounded::with_limit(stream, WIRE_MAX_BYTES);
        let Some(tls) = &self.tls else {
            return self.converse(stream, deadline).await;
        };
        let below = stream.heard();
        let secured = match timeout_at(deadline, tls.wrap(stream, &below)).await {
            Ok(secured) => secured?,
            Err(_) => {
                return Err(Fault::said(
                    "timed out in the TLS handshake: check the port, and see its log",
                ));
            }
        };
        self.converse(Bounded::with_limit(secured, WIRE_MAX_BYTES), deadline)
            .await
    }

    async fn converse<S>(&self, stream: Bounded<S>, deadline: Instant) -> Result<(), Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let heard = stream.heard();
        let timed_out = |_| match heard.beginning() {
            None => Fault::Cause(Cause::TimedOut(Stage::Answer)),
            Some(_) => Fault::said("timed out in the middle of its answer: it sends too slowly, see its log"),
        };
        let mut builder = http1::Builder::new();
        builder
            .max_buf_size(HEAD_MAX_BYTES)
            .max_header_size(HEAD_MAX_BYTES);
        let handshake = builder.handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|error| fault(&error, &heard))?;
        let conversation = async {
            let answer = timeout_at(deadline, sender.send_request(self.request()))
                .await
                .map_err(timed_out)?
                .map_err(|error| fault(&error, &heard))?;
            self.judge_head(&answer)?;
            if self.body.is_none() && self.contains.is_none() {
                return Ok(());
            }
            let mut body = Body::new(answer.into_body());
            timeout_at(deadline, self.judge_body(&mut body, &heard))
                .await
                .map_err(timed_out)?
        };
        // The connection ends before the conversation where it breaks: then the conversation says why.
        let mut conversation = pin!(conversation);
        let connection = pin!(connection.map(drop));
        tokio::select! {
            biased;
            done = &mut conversation => done,
            () = connection => conversation.await,
        }
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("io-guardian/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }

    fn judge_head(&self, answer: &Response<Incoming>) -> Result<(), Fault> {
        let code = answer.status();
        if code == self.code {
            return Ok(());
        }
        let remedy = match code.as_u16() {
            300..=399 => {
                let to = answer
                    .headers()
                    .get(LOCATION)
                    .map(|to| quoted(&String::from_utf8_lossy(to.as_bytes())));
                let to = to.map(|to| format!(" (it leads to {to:?})")).unwrap_or_default();
                format!("redirects are not followed, name the URL that answers{to}")
            }
            401 if self.authorization.is_none() => "it wants a user and a password, give them".to_owned(),
            401 => "it refuses the user or the password, compare them with what it has".to_owned(),
            404 => "check the path".to_owned(),
            _ => "see its log".to_owned(),
        };
        Err(Fault::said(format!(
            "it answers {code}, and {} is expected: {remedy}",
            self.code.as_u16()
        )))
    }

    async fn judge_body(&self, body: &mut Body, heard: &Heard) -> Result<(), Fault> {
        let mut found = self.contains.is_none();
        loop {
            let before = body.bytes.len();
            let more = body.more(heard).await?;
            if let Some(part) = &self.contains
                && !found
            {
                // What begins in the bytes before may end in these.
                let from = before.saturating_sub(part.len());
                found = String::from_utf8_lossy(&body.bytes[from..]).contains(part.as_str());
            }
            if found && self.body.is_none() {
                return Ok(());
            }
            if more {
                continue;
            }
            let text = String::from_utf8_lossy(&body.bytes);
            let begins = format!("{:?}", quoted(&text));
            if let Some(part) = &self.contains
                && !found
            {
                return Err(Fault::said(format!(
                    "its body does not contain {:?}: it is {begins}",
                    quoted(part)
                )));
            }
            return match &self.body {
                Some(body) if trimmed(&text) != body => Err(Fault::said(format!(
                    "its body is {begins}, and {:?} is expected",
                    quoted(body)
                ))),
                _ => Ok(()),
            };
        }
    }
}

/// What of a body has come, and is looked at.
struct Body {
    incoming: Incoming,
    bytes: Vec<u8>,
}

impl Body {
    fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            bytes: Vec::new(),
        }
    }

    /// Reads on; false at the end.
    async fn more(&mut self, heard: &Heard) -> Result<bool, Fault> {
        match self.incoming.frame().await {
            None => Ok(false),
            Some(Err(error)) => Err(fault(&error, heard)),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else {
                    return Ok(true);
                };
                if self.bytes.len() + data.len() > BODY_MAX_BYTES {
                    return Err(Fault::said(
                        "its body is longer than 64 KiB, and what is expected was not in that: name a URL that answers briefly",
                    ));
                }
                self.bytes.extend_from_slice(&data);
                Ok(true)
            }
        }
    }
}

/// Why there is no answer.
fn fault(error: &hyper::Error, heard: &Heard) -> Fault {
    if let Some(fault) = tls::fault_in(error) {
        return fault;
    }
    let Some(beginning) = heard.beginning() else {
        return Cause::ClosedWithoutAnswer.into();
    };
    let why =
        std::error::Error::source(error).map_or_else(|| error.to_string(), |why| format!("{error}: {why}"));
    Fault::said(if heard.begins_with(TLS_ALERT) {
        "what answers there speaks TLS: write https:// into the URL".to_owned()
    } else if heard.begins_with(b"HTTP/1.") {
        format!("its answer breaks off or is none ({}): see its log", quoted(&why))
    } else {
        format!("what answers there is not HTTP: it says {beginning}: check the port")
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Check, HttpCheck, TlsFiles};

    #[test]
    fn a_check_that_cannot_be_made_says_why() {
        let refused = |check: HttpCheck| Check::http(check).unwrap_err().to_string();
        for (url, text) in [
            ("", "is no URL"),
            ("db/health", "begins neither with http://"),
            ("ftp://db/", "begins neither with http://"),
            ("http://", "is no URL"),
            ("http:///x", "is no URL"),
            ("http://:80/x", "the host is missing"),
            ("http://db:0/", "its port is none"),
            ("http://db:70000/", "its port is none"),
            ("http://db:x/", "is no URL"),
            ("http://db/a b", "is no URL"),
            ("http://probe:secret@db/?token=secret", "do not belong into it"),
            ("http://pro:secret@be@db/", "is no URL"),
        ] {
            let line = refused(HttpCheck::new(url));
            assert!(line.contains(text) && !line.contains("secret"), "{url}: {line}");
        }
        let check = || HttpCheck::new("http://db/");
        let tls = TlsFiles {
            ca: Some("/ca".into()),
            ..TlsFiles::default()
        };
        for (wrong, text) in [
            (
                HttpCheck {
                    expected_code: 100,
                    ..check()
                },
                "100 is no HTTP code",
            ),
            (
                HttpCheck {
                    expected_code: 600,
                    ..check()
                },
                "600 is no HTTP code",
            ),
            (
                HttpCheck {
                    user: Some("a:b".to_owned()),
                    ..check()
                },
                "a colon",
            ),
            (
                HttpCheck {
                    password: Some("secret".into()),
                    ..check()
                },
                "but no user",
            ),
            (
                HttpCheck {
                    expected_response: Some("x".repeat(70_000)),
                    ..check()
                },
                "longer than 64 KiB",
            ),
            (HttpCheck { tls, ..check() }, "files for TLS are given"),
        ] {
            let line = refused(wrong);
            assert!(line.contains(text), "{line}");
        }
        #[cfg(not(feature = "tls"))]
        assert!(refused(HttpCheck::new("https://db/")).contains("built without TLS"));
    }

    #[test]
    fn no_secret_is_shown() {
        let check = Check::http(HttpCheck::new("http://db:8008/health?token=secret#x")).unwrap();
        assert_eq!(check.to_string(), "http http://db:8008/health?…");
        assert_eq!(format!("{check:?}"), r#"Check("http http://db:8008/health?…")"#);
        let check = HttpCheck {
            user: Some("probe".to_owned()),
            password: Some("secret".into()),
            ..HttpCheck::new("http://db/")
        };
        assert!(!format!("{check:?}").contains("secret"));
    }
}
