//! Health checks: is this node fit to be asked? By HTTP, by a query to PostgreSQL, by Redis' own word, by a TCP connection or by a
//! program.
//!
//! **Promise.** An attempt ends at its deadline, whatever the other side does: never answers, dribbles, sends without end, speaks
//! rubbish. What is not understood is a failure. A failure is one line: what was seen and, where one is known, the
//! remedy; what the other side said in it is quoted and short. No secret is in it, nor in `Display`.
//!
//! **What it does not guarantee.** A moment later all may be different; [`Counts`](super::Counts) makes a verdict of
//! several attempts. Files (certificates, keys, passwords) are read once, when the check is made.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use futures_util::FutureExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::REDIS_PORT;
use super::command::Program;
use super::fault::Fault;
use super::http::Endpoint;
use super::password::Password;
use super::query::Server;
use super::reach::Place;
use super::redis::{self, RedisLogin, RedisRole};
use super::stream::Bounded;
use super::verdict::{Cause, Stage, Verdict, quoted};
use crate::cli::HostPort;

/// An HTTP endpoint that is asked with GET.
#[derive(Clone, Debug)]
pub struct HttpCheck {
    /// `http://` or `https://`, with no user in it.
    pub url: String,
    /// For basic authentication.
    pub user: Option<String>,
    /// The user's password. It is sent in clear where the URL is `http://`.
    pub password: Option<Password>,
    /// For `https://`: whom to trust, and who we are.
    pub tls: TlsFiles,
    /// The code that is healthy, usually 200. Redirects are not followed.
    pub expected_code: u16,
    /// The body that is healthy, all of it. Ends of lines at its end do not count.
    pub expected_response: Option<String>,
    /// What the body has to contain.
    pub expected_response_contains: Option<String>,
}

impl HttpCheck {
    /// Healthy is any answer with code 200.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            tls: TlsFiles::default(),
            expected_code: 200,
            expected_response: None,
            expected_response_contains: None,
        }
    }
}

/// A PostgreSQL that is asked a query. Whether it is the primary: [`PostgresCheck::IS_IN_RECOVERY`].
#[derive(Clone)]
pub struct PostgresCheck {
    /// As for libpq: `postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full`, or `host=… user=…`. One server only. Where
    /// the host is a folder, its Unix socket. Time limits in it do not count: the attempt has its own.
    pub url: String,
    /// Instead of the user in the URL.
    pub user: Option<String>,
    /// Instead of the password in the URL.
    pub password: Option<Password>,
    /// Whom to trust, and who we are, where `sslmode` has us speak TLS. `sslmode` is libpq's: `disable`; `prefer`, TLS where the
    /// server has it, unverified; `require`, TLS, unverified without a CA file and like `verify-ca` with one; `verify-ca`; `verify-full`.
    pub tls: TlsFiles,
    /// The query; `SELECT 1` without one. It runs in a transaction, and the server ends it before the attempt is over.
    pub query: Option<String>,
    /// What the first column of its first row has to be, as text (`t` and `f` for a boolean). Without it any answer is healthy.
    pub expected_response: Option<String>,
}

impl PostgresCheck {
    /// The query that tells a primary from a standby: `f` is a primary, `t` a standby.
    pub const IS_IN_RECOVERY: &str = "SELECT pg_is_in_recovery()";

    /// Healthy is any answer to `SELECT 1`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: None,
            tls: TlsFiles::default(),
            query: None,
            expected_response: None,
        }
    }
}

impl fmt::Debug for PostgresCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresCheck")
            .field("url", &"[redacted]")
            .field("user", &self.user)
            .field("password", &self.password)
            .field("tls", &self.tls)
            .field("query", &self.query)
            .field("expected_response", &self.expected_response)
            .finish()
    }
}

/// A Redis that answers PING.
#[derive(Clone, Debug)]
pub struct RedisCheck {
    /// Its address; port 6379 where none is named.
    pub address: HostPort,
    /// How to log in.
    pub login: Option<RedisLogin>,
    /// The role that is healthy. Without one, both are.
    pub expected_role: Option<RedisRole>,
}

/// A program; its exit code 0 is healthy.
#[derive(Clone)]
pub struct CommandCheck {
    /// The program and its arguments. No shell reads them.
    pub argv: Vec<String>,
    /// All of its environment: usually `PATH`, by which the program is found where its name has no slash.
    pub environment: Vec<(OsString, OsString)>,
}

impl fmt::Debug for CommandCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments and environment may hold secrets.
        f.debug_struct("CommandCheck")
            .field("program", &self.argv.first())
            .finish_non_exhaustive()
    }
}

/// The files of TLS, all PEM.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The authorities to trust; without it those of the system: the file that `SSL_CERT_FILE` names, or the distribution's. A
    /// server's own self-signed certificate will do, too.
    pub ca: Option<PathBuf>,
    /// Our certificate, with those between it and its authority.
    pub certificate: Option<PathBuf>,
    /// Its private key, without a passphrase; without it the key is in the certificate's file.
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    pub(super) fn is_empty(&self) -> bool {
        self.ca.is_none() && self.certificate.is_none() && self.key.is_none()
    }

    pub(super) fn check(&self) -> Result<(), CheckError> {
        match (&self.certificate, &self.key) {
            (None, Some(_)) => Err(CheckError::KeyWithoutCertificate),
            _ => Ok(()),
        }
    }
}

/// How a server's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verify {
    /// Signed by whom we trust, and for this name.
    Full,
    /// Signed by whom we trust.
    Chain,
    /// Not at all.
    Nothing,
}

/// Why a check cannot be made. Each message names the value and the remedy, and none holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The URL of an HTTP check is none.
    #[error(
        "{url:?} is no URL for a check: {why}; write http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH"
    )]
    Url {
        /// The URL, without secrets.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The URL of a PostgreSQL check cannot be used. It may hold a password, and is not repeated.
    #[error("the connection URL cannot be used: {0}")]
    Connection(String),
    /// Such a code is no answer.
    #[error("{0} is no HTTP code that is answered; expect one from 200 to 599")]
    Code(u16),
    /// No body is looked at so far.
    #[error(
        "the expected response is longer than 64 KiB, and no more of a body is looked at; expect a part of it"
    )]
    Expectation,
    /// Basic authentication has no way to say so.
    #[error(
        "the user {0:?} cannot be sent: a colon or a control character is in it; have the server know another"
    )]
    User(String),
    /// Nobody to use it.
    #[error("a password is given, but no user; give the user, or drop the password")]
    PasswordWithoutUser,
    /// Nothing to ask.
    #[error("the query is empty or has a NUL byte in it; write one, such as SELECT 1")]
    Query,
    /// A TCP check needs a port.
    #[error("{0:?} names no port; write HOST:PORT")]
    NoPort(String),
    /// There is no program to run.
    #[error("the command names no program; write the program and its arguments")]
    NoProgram,
    /// A command with a NUL byte cannot be started.
    #[error("the command has a NUL byte in it; write it without")]
    NulInCommand,
    /// TLS is needed and not there.
    #[error("this program was built without TLS; build it with the feature `tls`, or ask without TLS")]
    BuiltWithoutTls,
    /// Nobody would read them.
    #[error(
        "files for TLS are given, but nothing is asked with TLS; write https:// or sslmode=verify-full into the URL, or drop the files"
    )]
    TlsFilesWithoutTls,
    /// A key alone proves nothing.
    #[error("a key file is given, but no certificate file; give both or none")]
    KeyWithoutCertificate,
    /// The host can be in no certificate.
    #[error("{0:?} is no name that a certificate can be for; name the host as its certificate does")]
    ServerName(String),
    /// A file could not be read.
    #[error("cannot read {}: {source}; check the path, and that this user may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} cannot be used: {why}; it must hold {needed}, as PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What it should hold.
        needed: &'static str,
    },
    /// Certificate and key cannot be used together.
    #[error("the certificate {} and the key {} cannot be used: {why}; give the key that the certificate was made for", certificate.display(), key.display())]
    ClientKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There is nobody to trust.
    #[error(
        "no file with the authorities that this system trusts was found; give a CA file, or name one in SSL_CERT_FILE"
    )]
    NoSystemRoots,
    /// The TLS library refuses.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

impl CheckError {
    /// Whether it is only that a file cannot be read here: elsewhere it may be there.
    pub fn is_unread(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::NoSystemRoots)
    }
}

/// Something to ask, as often as needed. `Display` is one of `http http://db:8008/primary`, `postgres db:5432/app`, `redis db:6379`,
/// `tcp db:6379` and `command /usr/bin/check`.
pub struct Check {
    question: Question,
    shown: String,
}

enum Question {
    Http(Endpoint),
    Postgres(Server),
    Redis {
        place: Place,
        login: Option<RedisLogin>,
        role: Option<RedisRole>,
    },
    Tcp(Place),
    Command(Program),
}

impl Check {
    /// Healthy is the expected code, with the expected body.
    ///
    /// # Errors
    /// When the URL or an expectation is none, or a file cannot be used.
    pub fn http(check: HttpCheck) -> Result<Self, CheckError> {
        let (endpoint, shown) = Endpoint::new(check)?;
        Ok(Self {
            question: Question::Http(endpoint),
            shown,
        })
    }

    /// Healthy is the expected answer to a query.
    ///
    /// # Errors
    /// When the URL cannot be used, or a file.
    pub fn postgres(check: PostgresCheck) -> Result<Self, CheckError> {
        let (server, shown) = Server::new(check)?;
        Ok(Self {
            question: Question::Postgres(server),
            shown,
        })
    }

    /// Healthy is a PONG, and the expected role.
    pub fn redis(check: RedisCheck) -> Self {
        let address = check.address.with_default_port(REDIS_PORT);
        Self {
            shown: format!("redis {address}"),
            question: Question::Redis {
                place: Place::new(address.host, address.port.unwrap_or(REDIS_PORT)),
                login: check.login,
                role: check.expected_role,
            },
        }
    }

    /// Healthy is a connection.
    ///
    /// # Errors
    /// When no port is named.
    pub fn tcp(address: HostPort) -> Result<Self, CheckError> {
        let Some(port) = address.port else {
            return Err(CheckError::NoPort(address.to_string()));
        };
        Ok(Self {
            shown: format!("tcp {address}"),
            question: Question::Tcp(Place::new(address.host, port)),
        })
    }

    /// Healthy is exit code 0.
    ///
    /// # Errors
    /// When there is no program to run.
    pub fn command(check: CommandCheck) -> Result<Self, CheckError> {
        let Some(program) = check.argv.first().filter(|program| !program.is_empty()) else {
            return Err(CheckError::NoProgram);
        };
        if check.argv.iter().any(|word| word.contains('\0')) {
            return Err(CheckError::NulInCommand);
        }
        Ok(Self {
            shown: format!("command {}", quoted(program)),
            question: Question::Command(Program::new(check.argv, check.environment)),
        })
    }

    /// One attempt, which is over at `deadline`. It may be dropped before: then it leaves nothing behind that runs.
    ///
    /// # Errors
    /// When it is not healthy: one line with what was seen, and what to do about it.
    pub async fn attempt(&mut self, deadline: Instant) -> Result<(), String> {
        // The decoders are other people's and read what anybody may send: one that panics has not understood.
        match AssertUnwindSafe(self.question.ask(deadline)).catch_unwind().await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => Err(fault.to_string()),
            Err(_) => Err("its answer cannot be understood: see its log".to_owned()),
        }
    }
}

impl Question {
    async fn ask(&mut self, deadline: Instant) -> Result<(), Fault> {
        match self {
            Self::Http(endpoint) => endpoint.attempt(deadline).await,
            Self::Postgres(server) => server.attempt(deadline).await,
            Self::Command(program) => program.attempt(deadline).await,
            Self::Tcp(place) => place.ask(deadline, async |_| Ok(())).await,
            Self::Redis { place, login, role } => {
                let (login, role) = (login.as_ref(), *role);
                let ask = |stream: TcpStream| async move {
                    let answer = timeout_at(deadline, ask_redis(Bounded::new(stream), login, role)).await;
                    answer.unwrap_or(Err(Cause::TimedOut(Stage::Answer).into()))
                };
                place.ask(deadline, ask).await
            }
        }
    }
}

async fn ask_redis(
    stream: Bounded,
    login: Option<&RedisLogin>,
    role: Option<RedisRole>,
) -> Result<(), Fault> {
    match role {
        Some(role) => redis::ask_role(stream, login, role).await,
        None => match redis::ask(stream, login).await {
            Verdict::Ready => Ok(()),
            Verdict::NotReady(cause) => Err(cause.into()),
        },
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.shown).finish()
    }
}
