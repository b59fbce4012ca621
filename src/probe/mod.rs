//! Is this database ready, is this node healthy? Each is asked in its own protocol.
//!
//! Two things to ask with, over the same connections and with the same bounds:
//! - [`Probe`]: one database, PostgreSQL or Redis; for those who wait for it and for those who watch it. A [`Verdict`] says what is the
//!   matter, as a type.
//! - [`Check`]: whatever the setup of a node says: HTTP, PostgreSQL with a query, Redis with its role, a TCP connection, a program. A
//!   failure is a line for people; [`Counts`] makes a verdict of several.
//!
//! **Promise.** [`Verdict::Ready`] means that a query would have been served at that moment: never that a port is
//! open, never that an error came back. A check is healthy when what was asked for has come. Whatever is not understood is
//! neither. An attempt ends at its deadline, the lookup of the name included; a peer cannot make it take in more than 64 KiB (of HTTP,
//! 512 KiB with all that is around a body), and rubbish cannot end the program.
//!
//! **What it does not guarantee.** A moment later all may be different. Without a login PostgreSQL is only known to
//! accept connections: that the last slots are left for superusers, that one database is broken or that it is a
//! standby shows with a login only. A login of a probe sends the password as the server asks for it, without TLS; a check
//! speaks TLS, in a build with the feature `tls`.
//!
//! A name with several addresses is ready when one of them is. They are tried in the resolver's order; the next one is
//! asked when the one before gave its answer or had its share of the time, and none is given up before the deadline.

mod check;
mod command;
mod counts;
mod fault;
mod http;
mod password;
mod postgres;
mod query;
mod reach;
mod redis;
mod stream;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;
mod verdict;

#[cfg(test)]
mod command_tests;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::cli::HostPort;

pub use check::{Check, CheckError, CommandCheck, HttpCheck, PostgresCheck, RedisCheck, TlsFiles};
pub use counts::{Counts, Health};
pub use password::{Password, PasswordError};
pub use postgres::PostgresLogin;
pub use redis::{RedisLogin, RedisRole};
#[cfg(feature = "etcd")]
pub(crate) use verdict::quoted;
pub use verdict::{Cause, Stage, Verdict};

use self::reach::Place;
use self::stream::Bounded;

/// Port of PostgreSQL when none is named.
pub const POSTGRES_PORT: u16 = 5432;
/// Port of Redis when none is named.
pub const REDIS_PORT: u16 = 6379;

/// The kinds of databases that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
}

impl Kind {
    fn product(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
        }
    }
}

/// One database to ask, as often as needed. `Display` is `postgres db:5432`.
pub struct Probe {
    question: Question,
    place: Place,
    shown: String,
    /// Whether a sign of life is enough.
    glancing: bool,
}

enum Question {
    Postgres(Option<PostgresLogin>),
    Redis(Option<RedisLogin>),
}

impl Probe {
    /// Asks the PostgreSQL at `address`: with a login whether it answers a query, without one whether it accepts
    /// connections.
    pub fn postgres(address: HostPort, login: Option<PostgresLogin>) -> Self {
        Self::new(Question::Postgres(login), address, POSTGRES_PORT)
    }

    /// Asks the Redis at `address`.
    pub fn redis(address: HostPort, login: Option<RedisLogin>) -> Self {
        Self::new(Question::Redis(login), address, REDIS_PORT)
    }

    fn new(question: Question, address: HostPort, default_port: u16) -> Self {
        let address = address.with_default_port(default_port);
        let kind = match question {
            Question::Postgres(_) => "postgres",
            Question::Redis(_) => "redis",
        };
        Self {
            question,
            shown: format!("{kind} {address}"),
            place: Place::new(address.host, address.port.unwrap_or(default_port)),
            glancing: false,
        }
    }

    /// One attempt, which is over at `deadline`.
    pub async fn attempt(&mut self, deadline: Instant) -> Verdict {
        let (question, glancing) = (&self.question, self.glancing);
        let ask = |stream| question.ask(stream, glancing, deadline);
        match self.place.ask(deadline, ask).await {
            Ok(()) => Verdict::Ready,
            Err(cause) => Verdict::NotReady(cause),
        }
    }

    /// One attempt that leaves no trace in the database's log. Of a PostgreSQL without a login it tells only that the server is
    /// there and serves new connections, not that a query would be answered; of all others the same as [`Self::attempt`].
    pub async fn glance(&mut self, deadline: Instant) -> Verdict {
        self.glancing = true;
        let verdict = self.attempt(deadline).await;
        self.glancing = false;
        verdict
    }
}

impl Question {
    async fn ask(&self, stream: TcpStream, glancing: bool, deadline: Instant) -> Result<(), Cause> {
        let stream = Bounded::new(stream);
        let heard = stream.heard();
        let (expected, question) = match self {
            Self::Postgres(None) if glancing => (Kind::Postgres, postgres::greet(stream).boxed()),
            Self::Postgres(login) => (Kind::Postgres, postgres::ask(stream, login.as_ref()).boxed()),
            Self::Redis(login) => (Kind::Redis, redis::ask(stream, login.as_ref()).boxed()),
        };
        // The decoders are other people's and read what anybody may send: one that panics has not understood.
        match timeout_at(deadline, AssertUnwindSafe(question).catch_unwind()).await {
            Err(_) => Err(Cause::TimedOut(Stage::Answer)),
            Ok(Err(_)) => Err(heard.cause(expected)),
            Ok(Ok(Verdict::Ready)) => Ok(()),
            Ok(Ok(Verdict::NotReady(cause))) => Err(cause),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}
