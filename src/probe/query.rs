//! A PostgreSQL as a check: it lets in, and answers a query as expected.
//!
//! **Promise.** Healthy is an answer to the query: where a text is expected, the first column of its first row, compared as text.
//! The connection is for one attempt, and no more than 64 KiB is taken from it.
//! The server ends a query that is still running when the attempt is over (`statement_timeout`): a query that waits for a lock must not
//! cost the database one more session with each attempt.
//!
//! `sslmode` is libpq's: `disable`, `prefer` (TLS where the server has it, unverified), `require` (TLS, unverified; with a CA file like
//! `verify-ca`, as libpq has it), `verify-ca` and `verify-full`. Over a Unix socket there is no TLS.

use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};
use tokio_util::bytes::BytesMut;

use super::check::{CheckError, PostgresCheck, TlsFiles, Verify};
use super::fault::Fault;
use super::postgres::{self, NOBODY};
use super::reach::Place;
use super::stream::{Bounded, Heard};
use super::tls::{self, Tls};
use super::verdict::{Cause, Stage, quoted};
use super::{Kind, POSTGRES_PORT};

/// The query where none is given.
const ANY_QUERY: &str = "SELECT 1";
/// The database of PgBouncer's own, which knows no `SET` and no more than one statement at once.
const PGBOUNCER: &str = "pgbouncer";

/// One server and one query.
pub(super) struct Server {
    place: At,
    asked: Asked,
}

enum At {
    Network(Place),
    /// The socket's file.
    Unix(PathBuf),
}

/// All of it but its address.
struct Asked {
    config: Config,
    tls: Option<Tls>,
    /// Whether a server without TLS is asked without.
    without_tls: bool,
    query: String,
    /// Whether the server can be told when to give up.
    limits: bool,
    expected: Option<String>,
}

impl Server {
    /// What it is made of, and how it is shown.
    pub(super) fn new(check: PostgresCheck) -> Result<(Self, String), CheckError> {
        let wrong = |why: String| CheckError::Connection(why);
        let (text, mode) = Mode::taken_from(&check.url);
        // The library's words name an option at most, never what it is set to.
        let mut config = Config::from_str(&text).map_err(|error| {
            let why = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            let remedy = match why.contains("`ssl") && why.contains("unknown option") {
                true => "; files of TLS are given beside it",
                false => "",
            };
            wrong(format!("{}{remedy}", quoted(&format!("{error}: {why}"))))
        })?;
        if let Some(user) = check.user {
            config.user(user);
        }
        if let Some(password) = &check.password {
            config.password(password.expose());
        }
        let Some(user) = config.get_user().map(str::to_owned) else {
            return Err(wrong(
                "it names no user; write postgres://USER@HOST/DATABASE, or give the user beside it"
                    .to_owned(),
            ));
        };
        let database = config.get_dbname().unwrap_or(&user).to_owned();
        if config.get_application_name().is_none() {
            config.application_name(NOBODY);
        }
        if config.get_target_session_attrs() != TargetSessionAttrs::Any {
            return Err(wrong(
                "target_session_attrs is for clients that choose among servers; ask the query SELECT pg_is_in_recovery() and expect f (a primary) or t (a standby)"
                    .to_owned(),
            ));
        }
        if config.get_channel_binding() == ChannelBinding::Require {
            return Err(wrong("channel_binding=require cannot be met; leave it out, and verify the certificate: sslmode=verify-full".to_owned()));
        }
        let (place, name) = place(&config)?;
        let query = check.query.unwrap_or_else(|| ANY_QUERY.to_owned());
        if query.trim().is_empty() || query.contains('\0') {
            return Err(CheckError::Query);
        }
        // Last: what else is wrong is told where its files are not there, too.
        let asked = Asked {
            tls: match (&place, mode.tls(&config, &check.tls)) {
                (At::Unix(_), _) | (_, None) => {
                    if !check.tls.is_empty() {
                        return Err(CheckError::TlsFilesWithoutTls);
                    }
                    None
                }
                (_, Some(verify)) => {
                    check.tls.check()?;
                    Some(Tls::new(&name, &check.tls, verify, Some("postgresql"))?)
                }
            },
            without_tls: config.get_ssl_mode() != SslMode::Require && mode == Mode::AsWritten,
            query,
            limits: database != PGBOUNCER,
            expected: check.expected_response,
            config,
        };
        let shown = match &place {
            At::Unix(socket) => socket.display().to_string(),
            At::Network(_) => {
                let port = asked.config.get_ports().first().copied().unwrap_or(POSTGRES_PORT);
                match name.contains(':') {
                    true => format!("[{name}]:{port}"),
                    false => format!("{name}:{port}"),
                }
            }
        };
        Ok((
            Self { place, asked },
            format!("postgres {}", quoted(&format!("{shown}/{database}"))),
        ))
    }

    pub(super) async fn attempt(&mut self, deadline: Instant) -> Result<(), Fault> {
        let asked = &self.asked;
        match &mut self.place {
            At::Network(place) => {
                place
                    .ask(deadline, |stream| asked.over_tcp(stream, deadline))
                    .await
            }
            At::Unix(path) => match timeout_at(deadline, UnixStream::connect(&*path)).await {
                Err(_) => Err(Cause::TimedOut(Stage::Connect).into()),
                Ok(Err(error)) => Err(Fault::said(format!(
                    "its socket {:?} cannot be connected to: {}: start it, or see its unix_socket_directories and the rights of the folder",
                    quoted(&path.to_string_lossy()),
                    quoted(&error.to_string())
                ))),
                Ok(Ok(stream)) => asked.query(Bounded::new(stream), deadline).await,
            },
        }
    }
}

/// How far TLS goes, where the library has no word for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    AsWritten,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    /// The library knows `disable`, `prefer` and `require`: what goes further is taken out of the text before.
    fn taken_from(text: &str) -> (String, Self) {
        let begin = match text.contains("://") {
            true => text.find('?').unwrap_or(text.len()),
            false => 0,
        };
        let (before, options) = text.split_at(begin);
        for (written, mode) in [
            ("sslmode=verify-full", Self::VerifyFull),
            ("sslmode=verify-ca", Self::VerifyCa),
        ] {
            let is_edge = |c: Option<char>| c.is_none_or(|c| matches!(c, '?' | '&' | ' '));
            for (at, _) in options.match_indices(written) {
                let (left, right) = (&options[..at], &options[at + written.len()..]);
                if is_edge(left.chars().next_back()) && is_edge(right.chars().next()) {
                    return (format!("{before}{left}sslmode=require{right}"), mode);
                }
            }
        }
        (text.to_owned(), Self::AsWritten)
    }

    /// How the server is verified; None where there is to be no TLS.
    fn tls(self, config: &Config, files: &TlsFiles) -> Option<Verify> {
        match (self, config.get_ssl_mode()) {
            (Self::VerifyFull, _) => Some(Verify::Full),
            (Self::VerifyCa, _) => Some(Verify::Chain),
            (_, SslMode::Disable) => None,
            // libpq tries to; where TLS is not built in, it is not tried.
            (_, SslMode::Prefer) if !cfg!(feature = "tls") => None,
            (_, SslMode::Prefer) => Some(Verify::Nothing),
            (_, _) if files.ca.is_some() => Some(Verify::Chain),
            (_, _) => Some(Verify::Nothing),
        }
    }
}

/// Where it is, and the name that its certificate has to be for.
fn place(config: &Config) -> Result<(At, String), CheckError> {
    let wrong = |why: &str| CheckError::Connection(why.to_owned());
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    if hosts.len() > 1 || addresses.len() > 1 || config.get_ports().len() > 1 {
        return Err(wrong(
            "it names several servers; a check is of one: name that of this host",
        ));
    }
    let port = config.get_ports().first().copied().unwrap_or(POSTGRES_PORT);
    if port == 0 {
        return Err(wrong("its port is none from 1 to 65535"));
    }
    let address = addresses.first().map(ToString::to_string);
    match (hosts.first(), address) {
        (Some(Host::Unix(folder)), None) => {
            Ok((At::Unix(folder.join(format!(".s.PGSQL.{port}"))), String::new()))
        }
        (Some(Host::Unix(_)), Some(_)) => {
            Err(wrong("it names a socket and an address; leave one of them out"))
        }
        (Some(Host::Tcp(host)), address) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            Ok((
                At::Network(Place::new(address.unwrap_or_else(|| bare.clone()), port)),
                bare,
            ))
        }
        (None, Some(address)) => Ok((At::Network(Place::new(address.clone(), port)), address)),
        (None, None) => Err(wrong(
            "the host is missing; write postgres://USER@HOST/DATABASE, or ?host=/run/postgresql at its end for a socket",
        )),
    }
}

impl Asked {
    async fn over_tcp(&self, stream: TcpStream, deadline: Instant) -> Result<(), Fault> {
        let mut stream = Bounded::new(stream);
        let Some(tls) = &self.tls else {
            return self.query(stream, deadline).await;
        };
        let heard = stream.heard();
        let secured = async {
            if self.config.get_ssl_negotiation() == SslNegotiation::Postgres
                && !greet(&mut stream, &heard).await?
            {
                return match self.without_tls {
                    true => Ok(Err(stream)),
                    false => Err(Fault::said(
                        "it does not speak TLS, and sslmode asks for it: set ssl = on there, or sslmode=disable here",
                    )),
                };
            }
            tls.wrap(stream, &heard).await.map(Ok)
        };
        match timeout_at(deadline, secured).await {
            Err(_) => Err(Cause::TimedOut(Stage::Answer).into()),
            Ok(secured) => match secured? {
                Ok(secured) => self.query(Bounded::new(secured), deadline).await,
                Err(clear) => self.query(clear, deadline).await,
            },
        }
    }

    async fn query<S>(&self, stream: Bounded<S>, deadline: Instant) -> Result<(), Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let heard = stream.heard();
        let mut config = self.config.clone();
        config.ssl_mode(SslMode::Disable);
        let has_password = config.get_password().is_some();
        let fault = |error: &tokio_postgres::Error, is_in: bool| -> Fault {
            if let Some(fault) = tls::fault_in(error) {
                return fault;
            }
            if heard.is_flood() {
                return Fault::said("it says more than 64 KiB: let the query give one row");
            }
            match postgres::fault(error, has_password) {
                // It has let us in: it speaks this protocol, and what breaks off is our query.
                postgres::Fault::Stream if is_in => {
                    let why = match std::error::Error::source(error) {
                        Some(why) => format!("{error}: {why}"),
                        None => error.to_string(),
                    };
                    let why = quoted(&why);
                    Fault::said(format!(
                        "the query gets no answer ({why}): see its log, and let the query give a row"
                    ))
                }
                fault => fault.cause(&heard).into(),
            }
        };
        let conversation = async {
            let (client, connection) = config
                .connect_raw(stream, NoTls)
                .await
                .map_err(|error| fault(&error, false))?;
            let query = self.limited(deadline);
            let question = async move { client.simple_query(&query).await };
            let (mut question, mut connection) = (pin!(question), pin!(connection));
            let answer = tokio::select! {
                biased;
                answer = &mut question => answer,
                // The connection is at its end: when it says why, that is why the question has no answer.
                ended = &mut connection => match ended {
                    Err(why) => Err(why),
                    Ok(()) => question.await,
                },
            };
            self.judge(&answer.map_err(|error| fault(&error, true))?)
        };
        timeout_at(deadline, conversation)
            .await
            .unwrap_or_else(|_| Err(Cause::TimedOut(Stage::Answer).into()))
    }

    /// The query, with the server told to give it up a little before we do: then it says so itself.
    fn limited(&self, deadline: Instant) -> String {
        let left = deadline.saturating_duration_since(Instant::now());
        // `SET LOCAL` ends with the query, so that a pooler hands nothing on to others.
        match self.limits {
            true => format!("SET LOCAL statement_timeout = {}; {}", in_time(left), self.query),
            false => self.query.clone(),
        }
    }

    fn judge(&self, answer: &[SimpleQueryMessage]) -> Result<(), Fault> {
        let Some(expected) = &self.expected else {
            return Ok(());
        };
        let first = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.try_get(0)),
            _ => None,
        });
        let found = match first {
            Some(Ok(Some(text))) if text == expected => return Ok(()),
            Some(Ok(Some(text))) => format!("{:?}", quoted(text)),
            Some(Ok(None)) => "NULL".to_owned(),
            Some(Err(_)) => "no column".to_owned(),
            None => "no row".to_owned(),
        };
        Err(Fault::said(format!(
            "the query gives {found}, and {:?} is expected",
            quoted(expected)
        )))
    }
}

/// Milliseconds; 0 would be no limit at all.
fn in_time(left: Duration) -> u128 {
    (left.as_millis() * 9 / 10).clamp(1, i32::MAX.unsigned_abs().into())
}

/// Asks whether TLS may begin.
async fn greet<S>(stream: &mut Bounded<S>, heard: &Heard) -> Result<bool, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    let mut answer = [0];
    let exchange = async {
        stream.write_all(&out).await?;
        stream.read_exact(&mut answer).await
    };
    match (exchange.await, &answer) {
        (Ok(_), b"S") => Ok(true),
        (Ok(_), b"N") => Ok(false),
        _ => Err(heard.cause(Kind::Postgres).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_has_no_word_for_is_taken_out_of_a_url_or_of_words() {
        let url = "postgres://u@h/d?a=b&sslmode=verify-full&c=d";
        let (text, mode) = Mode::taken_from(url);
        assert_eq!(text, "postgres://u@h/d?a=b&sslmode=require&c=d");
        assert!(mode == Mode::VerifyFull);
        let (text, mode) = Mode::taken_from("sslmode=verify-ca password=a?b");
        assert_eq!(text, "sslmode=require password=a?b");
        assert!(mode == Mode::VerifyCa);
        for other in [
            "postgres://u:sslmode=verify-ca@h/d",
            "postgres://u@h/d?sslmode=verify-fuller",
            "postgres://u@h/d?xsslmode=verify-full",
            "postgres://u@h/d?sslmode=require",
            "host=h xsslmode=verify-ca",
        ] {
            let (text, mode) = Mode::taken_from(other);
            assert!(text == other && mode == Mode::AsWritten, "{other}");
        }
    }

    #[test]
    fn the_server_gives_up_before_we_do_and_always_has_a_limit() {
        let in_time = |time| in_time(Duration::from_millis(time));
        assert_eq!([in_time(0), in_time(1), in_time(1000)], [1, 1, 900]);
        assert_eq!(in_time(u64::MAX), i32::MAX.unsigned_abs().into());
    }
}
