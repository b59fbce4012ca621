//! Is this database ready? PostgreSQL and Redis, each asked in its own protocol.
//!
//! **Promise.** [`Verdict::Ready`] means that a query would have been served at that moment: never that a port is
//! open, never that an error came back. Whatever is not understood is not ready. An attempt ends at its deadline, the
//! lookup of the name included; a peer cannot make it take in more than 64 KiB, and rubbish cannot end the program.
//!
//! **What it does not guarantee.** A moment later all may be different. Without a login PostgreSQL is only known to
//! accept connections: that the last slots are left for superusers, that one database is broken or that it is a
//! standby shows with a login only. A login sends the password as the server asks for it, without TLS.
//!
//! A name with several addresses is ready when one of them is. They are tried in the resolver's order; the next one is
//! asked when the one before gave its answer or had its share of the time, and none is given up before the deadline.

mod password;
mod postgres;
mod redis;
mod stream;
mod verdict;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::cli::HostPort;

pub use password::{Password, PasswordError};
pub use postgres::PostgresLogin;
pub use redis::RedisLogin;
pub use verdict::{Cause, Stage, Verdict};

/// Port of PostgreSQL when none is named.
pub const POSTGRES_PORT: u16 = 5432;
/// Port of Redis when none is named.
pub const REDIS_PORT: u16 = 6379;

/// The most addresses of one name that are asked in one attempt.
const ADDRESSES_MAX: usize = 8;

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

/// How a name becomes addresses. Blocks, as getaddrinfo(3) does.
type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// One database to ask, as often as needed. `Display` is `postgres db:5432`.
pub struct Probe {
    question: Question,
    host: String,
    port: u16,
    shown: String,
    lookup: Lookup,
    /// A lookup that an earlier attempt did not see the end of. It cannot be cancelled: the next attempt
    /// waits for it again instead of tying up one more thread.
    pending: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
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
            port: address.port.unwrap_or(default_port),
            host: address.host,
            lookup: Arc::new(|host, port| (host, port).to_socket_addrs().map(Iterator::collect)),
            pending: None,
            glancing: false,
        }
    }

    /// One attempt, which is over at `deadline`.
    pub async fn attempt(&mut self, deadline: Instant) -> Verdict {
        let addresses = match timeout_at(deadline, self.addresses()).await {
            Err(_) => return Verdict::NotReady(Cause::TimedOut(Stage::Lookup)),
            Ok(Err(error)) => return Verdict::NotReady(lookup_cause(&error)),
            Ok(Ok(addresses)) if addresses.is_empty() => {
                return Verdict::NotReady(Cause::NameNotFound("the answer is empty".to_owned()));
            }
            Ok(Ok(addresses)) => addresses,
        };
        self.ask_all(&addresses, deadline).await
    }

    /// One attempt that leaves no trace in the database's log. Of a PostgreSQL without a login it tells only that the server is
    /// there and serves new connections, not that a query would be answered; of all others the same as [`Self::attempt`].
    pub async fn glance(&mut self, deadline: Instant) -> Verdict {
        self.glancing = true;
        let verdict = self.attempt(deadline).await;
        self.glancing = false;
        verdict
    }

    async fn addresses(&mut self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = self.host.parse() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let pending = self.pending.get_or_insert_with(|| {
            let (lookup, host, port) = (self.lookup.clone(), self.host.clone(), self.port);
            tokio::task::spawn_blocking(move || lookup(&host, port))
        });
        let found = pending.await;
        self.pending = None;
        let mut addresses = found.map_err(io::Error::other)??;
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        Ok(addresses)
    }

    /// Ready when one address is; otherwise the cause that tells most.
    async fn ask_all(&self, addresses: &[SocketAddr], deadline: Instant) -> Verdict {
        let share = deadline.saturating_duration_since(Instant::now())
            / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut waiting = addresses.iter();
        let mut running = FuturesUnordered::new();
        let mut telling: Option<Cause> = None;
        let mut start_next = Instant::now();
        loop {
            if Instant::now() >= start_next
                && let Some(&address) = waiting.next()
            {
                running.push(self.ask_one(address, deadline));
                start_next = Instant::now() + share;
            }
            tokio::select! {
                verdict = running.next(), if !running.is_empty() => match verdict {
                    Some(Verdict::Ready) => return Verdict::Ready,
                    Some(Verdict::NotReady(cause)) => {
                        if telling.as_ref().is_none_or(|known| known.weight() < cause.weight()) {
                            telling = Some(cause);
                        }
                        start_next = Instant::now();
                    }
                    None => {}
                },
                () = sleep_until(start_next), if waiting.len() > 0 => {}
                else => break,
            }
        }
        Verdict::NotReady(telling.unwrap_or(Cause::TimedOut(Stage::Connect)))
    }

    async fn ask_one(&self, address: SocketAddr, deadline: Instant) -> Verdict {
        let stream = match timeout_at(deadline, TcpStream::connect(address)).await {
            Err(_) => return Verdict::NotReady(Cause::TimedOut(Stage::Connect)),
            Ok(Err(error)) => return Verdict::NotReady(connect_cause(&error)),
            Ok(Ok(stream)) => stream::Bounded::new(stream),
        };
        let heard = stream.heard();
        let (expected, question) = match &self.question {
            Question::Postgres(None) if self.glancing => (Kind::Postgres, postgres::greet(stream).boxed()),
            Question::Postgres(login) => (Kind::Postgres, postgres::ask(stream, login.as_ref()).boxed()),
            Question::Redis(login) => (Kind::Redis, redis::ask(stream, login.as_ref()).boxed()),
        };
        // The decoders are other people's and read what anybody may send: one that panics has not understood.
        match timeout_at(deadline, AssertUnwindSafe(question).catch_unwind()).await {
            Err(_) => Verdict::NotReady(Cause::TimedOut(Stage::Answer)),
            Ok(Err(_)) => Verdict::NotReady(heard.cause(expected)),
            Ok(Ok(verdict)) => verdict,
        }
    }
}

fn lookup_cause(error: &io::Error) -> Cause {
    let said = error.to_string();
    // What getaddrinfo(3) says comes after the standard library's own words.
    let why = said
        .strip_prefix("failed to lookup address information: ")
        .unwrap_or(&said);
    Cause::NameNotFound(verdict::quoted(why))
}

fn connect_cause(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Cause::Refused,
        // The kernel gave up before our deadline (tcp_syn_retries).
        io::ErrorKind::TimedOut => Cause::TimedOut(Stage::Connect),
        _ => Cause::Unreachable(verdict::quoted(&error.to_string())),
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}
