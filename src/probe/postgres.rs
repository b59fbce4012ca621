//! PostgreSQL is ready when it would serve a query.
//!
//! Without a login we send a startup message and see what comes back. A request for authentication, or a refusal
//! of our role, is the word of a server that accepts connections. With a login a query must come back.

use std::io;
use std::pin::pin;

use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::fallible_iterator::FallibleIterator;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tokio_util::bytes::BytesMut;

use super::Kind;
use super::password::Password;
use super::stream::{Bounded, Heard, READ_MAX_BYTES};
use super::verdict::{Cause, Verdict, quoted};

/// The role that is named where no login is given. It need not exist, and nothing is logged in PostgreSQL's log
/// unless pg_hba.conf says `trust` or `reject` for us: then one line, which says by this name who asked.
pub(super) const NOBODY: &str = "io_guardian_probe";
/// A database that every cluster has.
const ANY_DATABASE: &str = "postgres";

/// How to log in to PostgreSQL, and what to demand of it then.
#[derive(Clone, Debug)]
pub struct PostgresLogin {
    /// The role.
    pub user: String,
    /// Its password, where it needs one. It is sent as the server asks for it: in clear where pg_hba.conf says
    /// `password`.
    pub password: Option<Password>,
    /// The database.
    pub database: String,
    /// Whether a standby is refused.
    pub require_primary: bool,
}

/// Asks over `stream`. The caller holds the deadline.
pub(super) async fn ask(stream: Bounded, login: Option<&PostgresLogin>) -> Verdict {
    let heard = stream.heard();
    let found = match login {
        None => knock(stream).await,
        Some(login) => query(stream, login).await,
    };
    found.unwrap_or_else(|fault| Verdict::NotReady(fault.cause(&heard)))
}

/// Why there is no verdict yet.
pub(super) enum Fault {
    /// The peer broke off, or said what PostgreSQL does not say.
    Stream,
    /// It said so itself.
    Said(Cause),
}

impl From<io::Error> for Fault {
    fn from(_: io::Error) -> Self {
        // Whatever the error is, what the peer said until then tells more.
        Self::Stream
    }
}

impl Fault {
    pub(super) fn cause(self, heard: &Heard) -> Cause {
        match self {
            Self::Stream => heard.cause(Kind::Postgres),
            Self::Said(cause) => cause,
        }
    }
}

/// Asks whether TLS may begin, and hangs up: whoever does so is not logged (ProcessStartupPacket in postgres.c says why).
/// A server that has a process for us answers, be it yes or no.
pub(super) async fn greet(mut stream: Bounded) -> Verdict {
    let heard = stream.heard();
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    let mut answer = [0];
    let exchange = async {
        stream.write_all(&out).await?;
        stream.read_exact(&mut answer).await
    };
    match exchange.await {
        Ok(_) if matches!(&answer, b"S" | b"N") => Verdict::Ready,
        _ => Verdict::NotReady(heard.cause(Kind::Postgres)),
    }
}

/// The startup message, and the first answer that tells something.
async fn knock(mut stream: Bounded) -> Result<Verdict, Fault> {
    let mut out = BytesMut::new();
    let parameters = [
        ("user", NOBODY),
        ("database", ANY_DATABASE),
        ("application_name", NOBODY),
        ("client_encoding", "UTF8"),
    ];
    frontend::startup_message(parameters, &mut out)?;
    stream.write_all(&out).await?;
    let mut buffer = BytesMut::with_capacity(1024);
    let mut is_in = false;
    loop {
        use backend::Message;
        match next_message(&mut stream, &mut buffer).await? {
            // We are in without a password: then the server says more, and we hear it out.
            Message::AuthenticationOk => is_in = true,
            Message::ParameterStatus(_) | Message::BackendKeyData(_) | Message::NoticeResponse(_) => {}
            Message::ReadyForQuery(_) if is_in => {
                out.clear();
                frontend::terminate(&mut out);
                stream.write_all(&out).await?;
                return Ok(Verdict::Ready);
            }
            Message::AuthenticationCleartextPassword
            | Message::AuthenticationMd5Password(_)
            | Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential => return Ok(Verdict::Ready),
            // The list of mechanisms must be one: rubbish can begin like this message.
            Message::AuthenticationSasl(body) if body.mechanisms().count()? > 0 => return Ok(Verdict::Ready),
            Message::ErrorResponse(body) => {
                let error = ErrorReply::read(&body)?;
                return Ok(match error.classify() {
                    // It refuses our role, as it should: only a server that accepts connections looks at roles.
                    _ if error.code.starts_with("28") => Verdict::Ready,
                    cause => Verdict::NotReady(cause),
                });
            }
            _ => return Err(Fault::Stream),
        }
    }
}

/// One message. A message that claims to be longer than anything PostgreSQL says here is no message.
async fn next_message(stream: &mut Bounded, buffer: &mut BytesMut) -> Result<backend::Message, Fault> {
    loop {
        if let Some(header) = backend::Header::parse(buffer)? {
            let too_long = usize::try_from(header.len()).is_ok_and(|length| length > READ_MAX_BYTES);
            if too_long && header.tag() == backend::ERROR_RESPONSE_TAG {
                // A postmaster that cannot start a process for us writes `E` and plain text
                // (report_fork_failure_to_client in postmaster.c).
                while !buffer.contains(&b'\n') && stream.read_buf(buffer).await? > 0 {}
                return Err(Fault::Said(Cause::ErrorReply(quoted(&String::from_utf8_lossy(
                    &buffer[1..],
                )))));
            }
            if too_long {
                return Err(Fault::Stream);
            }
        }
        if let Some(message) = backend::Message::parse(buffer)? {
            return Ok(message);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(Fault::Stream);
        }
    }
}

/// Logs in, and has a query answered.
async fn query(stream: Bounded, login: &PostgresLogin) -> Result<Verdict, Fault> {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&login.user)
        .dbname(&login.database)
        .application_name(NOBODY);
    if let Some(password) = &login.password {
        config.password(password.expose());
    }
    let (client, connection) = config
        .connect_raw(stream, NoTls)
        .await
        .map_err(|error| fault(&error, login.password.is_some()))?;
    let question = async {
        client.simple_query("SELECT 1").await?;
        if !login.require_primary {
            return Ok(false);
        }
        let rows = client.simple_query("SELECT pg_is_in_recovery()").await?;
        let is_primary = rows.iter().any(|row| match row {
            SimpleQueryMessage::Row(row) => matches!(row.try_get(0), Ok(Some("f"))),
            _ => false,
        });
        Ok::<bool, tokio_postgres::Error>(!is_primary)
    };
    let answer = {
        let (mut question, mut connection) = (pin!(question), pin!(connection));
        tokio::select! {
            biased;
            answer = &mut question => answer,
            // The connection is at its end: when it says why, that is why the question has no answer.
            ended = &mut connection => match ended {
                Err(why) => Err(why),
                Ok(()) => question.await,
            },
        }
    };
    match answer {
        Ok(false) => Ok(Verdict::Ready),
        Ok(true) => Ok(Verdict::NotReady(Cause::Standby)),
        Err(error) => Err(fault(&error, login.password.is_some())),
    }
}

/// What an error of the library means, to somebody who has a password or not.
pub(super) fn fault(error: &tokio_postgres::Error, has_password: bool) -> Fault {
    if let Some(error) = error.as_db_error() {
        let reply = ErrorReply {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            routine: error.routine().unwrap_or_default().to_owned(),
        };
        return Fault::Said(reply.classify());
    }
    let Some(why) = std::error::Error::source(error) else {
        return Fault::Stream;
    };
    // The library has no kinds that can be matched on. Its own refusals are neither errors of the stream nor
    // of what was sent over it; io::Error is both.
    if why.is::<io::Error>() {
        return match why.to_string() {
            // CVE-2026-42198: a server can make its clients count for hours.
            why if why.contains("SCRAM") => {
                Fault::Said(Cause::ErrorReply(quoted(&format!("{error}: {why}"))))
            }
            _ => Fault::Stream,
        };
    }
    if !has_password && why.to_string() == "password missing" {
        return Fault::Said(Cause::PasswordNeeded(Kind::Postgres));
    }
    Fault::Said(Cause::ErrorReply(quoted(&format!("{error}: {why}"))))
}

/// The fields of an error that tell its cause.
#[derive(Debug, Default)]
struct ErrorReply {
    code: String,
    message: String,
    detail: String,
    /// The C function that raised it: not translated, unlike the message.
    routine: String,
}

impl ErrorReply {
    fn read(body: &backend::ErrorResponseBody) -> io::Result<Self> {
        let mut error = Self::default();
        let mut fields = body.fields();
        while let Some(field) = fields.next()? {
            let place = match field.type_() {
                b'C' => &mut error.code,
                b'M' => &mut error.message,
                b'D' => &mut error.detail,
                b'R' => &mut error.routine,
                _ => continue,
            };
            *place = String::from_utf8_lossy(field.value_bytes()).into_owned();
        }
        Ok(error)
    }

    /// The cause, for a role that should be let in. Codes: appendix A of PostgreSQL's documentation.
    fn classify(&self) -> Cause {
        let Self {
            code,
            message,
            detail,
            routine,
        } = self;
        let said = || quoted(message);
        match code.as_str() {
            // cannot_connect_now; the states have no codes of their own (ProcessStartupPacket in postmaster.c).
            "57P03" if message.contains("is starting up") => Cause::Starting,
            "57P03" if message.contains("is shutting down") => Cause::ShuttingDown,
            "57P03" if message.contains("in recovery mode") || message.contains("not yet accepting") => {
                Cause::Recovery
            }
            "57P03" if detail.is_empty() => Cause::NotAccepting(said()),
            "57P03" => Cause::NotAccepting(quoted(&format!("{message} ({detail})"))),
            // admin_shutdown and crash_shutdown: it went while we were connected.
            "57P01" => Cause::ShuttingDown,
            "57P02" => Cause::Recovery,
            "53300" => Cause::TooManyConnections(said()),
            "3D000" => Cause::NoSuchDatabase(said()),
            "28P01" => Cause::BadPassword(said()),
            "28000" if routine == "InitializeSessionUserId" || message.starts_with("role \"") => {
                Cause::NoSuchRole(said())
            }
            // PostgreSQL 14 and later, and before. "pg_hba.conf rejects connection" ends like this too, but means it.
            "28000"
                if message.starts_with("no pg_hba.conf entry")
                    && (message.contains("no encryption") || message.contains("SSL off")) =>
            {
                Cause::NotAllowedWithoutTls(said())
            }
            // pg_hba.conf refuses us; or the role may not connect to this database.
            "28000" | "42501" => Cause::NotAllowed(said()),
            _ => Cause::ErrorReply(quoted(&format!("{message} ({code})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, message: &str) -> Cause {
        ErrorReply {
            code: code.to_owned(),
            message: message.to_owned(),
            ..ErrorReply::default()
        }
        .classify()
    }

    #[test]
    fn what_postgres_says_is_told_apart() {
        let said = |text: &str| text.to_owned();
        for (code, message, cause) in [
            ("57P03", "the database system is starting up", Cause::Starting),
            (
                "57P03",
                "the database system is shutting down",
                Cause::ShuttingDown,
            ),
            (
                "57P03",
                "the database system is in recovery mode",
                Cause::Recovery,
            ),
            (
                "57P03",
                "the database system is not yet accepting connections",
                Cause::Recovery,
            ),
            (
                "57P03",
                "das Datenbanksystem startet",
                Cause::NotAccepting(said("das Datenbanksystem startet")),
            ),
            (
                "57P01",
                "terminating connection due to administrator command",
                Cause::ShuttingDown,
            ),
            (
                "57P02",
                "terminating connection because of crash",
                Cause::Recovery,
            ),
            (
                "53300",
                "sorry, too many clients already",
                Cause::TooManyConnections(said("sorry, too many clients already")),
            ),
            (
                "3D000",
                "database \"x\" does not exist",
                Cause::NoSuchDatabase(said("database \"x\" does not exist")),
            ),
            (
                "28P01",
                "password authentication failed",
                Cause::BadPassword(said("password authentication failed")),
            ),
            (
                "28000",
                "role \"x\" does not exist",
                Cause::NoSuchRole(said("role \"x\" does not exist")),
            ),
            (
                "28000",
                "no pg_hba.conf entry for host \"::1\", user \"x\", database \"x\", no encryption",
                Cause::NotAllowedWithoutTls(said(
                    "no pg_hba.conf entry for host \"::1\", user \"x\", database \"x\", no encryption",
                )),
            ),
            (
                "28000",
                "pg_hba.conf rejects connection for host \"::1\", no encryption",
                Cause::NotAllowed(said(
                    "pg_hba.conf rejects connection for host \"::1\", no encryption",
                )),
            ),
            (
                "42501",
                "permission denied for database",
                Cause::NotAllowed(said("permission denied for database")),
            ),
            ("XX000", "odd", Cause::ErrorReply(said("odd (XX000)"))),
            ("", "", Cause::ErrorReply(said("()"))),
        ] {
            assert_eq!(of(code, message), cause, "{code} {message}");
        }
    }

    #[test]
    fn a_translated_message_is_told_by_the_function_that_raised_it() {
        let error = ErrorReply {
            code: "28000".to_owned(),
            message: "Rolle »x« existiert nicht".to_owned(),
            routine: "InitializeSessionUserId".to_owned(),
            ..ErrorReply::default()
        };
        assert!(matches!(error.classify(), Cause::NoSuchRole(_)));
    }

    #[test]
    fn a_standby_that_takes_no_sessions_says_why() {
        let error = ErrorReply {
            code: "57P03".to_owned(),
            message: "the database system is not accepting connections".to_owned(),
            detail: "Hot standby mode is disabled.".to_owned(),
            ..ErrorReply::default()
        };
        let cause = error.classify();
        assert!(
            cause.to_string().contains("Hot standby mode is disabled."),
            "{cause}"
        );
    }
}
