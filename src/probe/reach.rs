//! A place in the network: its name becomes addresses, and one after the other is asked.
//!
//! **Promise.** An attempt ends at its deadline, the lookup of the name included. A name with several addresses is as good as
//! the best of them: they are tried in the resolver's order; the next one is asked when the one before gave its answer or had
//! its share of the time, and none is given up before the deadline.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::verdict::{Cause, Stage, quoted};

/// The most addresses of one name that are asked in one attempt.
const ADDRESSES_MAX: usize = 8;

/// How a name becomes addresses. Blocks, as getaddrinfo(3) does.
pub(super) type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Why one address is not good.
pub(super) trait Telling: From<Cause> {
    /// How much it tells, to choose one among several addresses.
    fn weight(&self) -> u8;
}

impl Telling for Cause {
    fn weight(&self) -> u8 {
        self.weight()
    }
}

/// A host and a port that are asked as often as needed.
pub(super) struct Place {
    host: String,
    port: u16,
    pub(super) lookup: Lookup,
    /// A lookup that an earlier attempt did not see the end of. It cannot be cancelled: the next attempt
    /// waits for it again instead of tying up one more thread.
    pending: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
}

impl Place {
    pub(super) fn new(host: String, port: u16) -> Self {
        Self {
            host,
            port,
            lookup: Arc::new(|host, port| (host, port).to_socket_addrs().map(Iterator::collect)),
            pending: None,
        }
    }

    /// Asks by `ask`, which has a connection and is over at `deadline`, too: good when one address is, otherwise the
    /// fault that tells most.
    pub(super) async fn ask<E, F>(&mut self, deadline: Instant, ask: impl Fn(TcpStream) -> F) -> Result<(), E>
    where
        E: Telling,
        F: Future<Output = Result<(), E>>,
    {
        let addresses = match timeout_at(deadline, self.addresses()).await {
            Err(_) => return Err(Cause::TimedOut(Stage::Lookup).into()),
            Ok(Err(error)) => return Err(lookup_cause(&error).into()),
            Ok(Ok(addresses)) if addresses.is_empty() => {
                return Err(Cause::NameNotFound("the answer is empty".to_owned()).into());
            }
            Ok(Ok(addresses)) => addresses,
        };
        let one = async |address| match timeout_at(deadline, TcpStream::connect(address)).await {
            Err(_) => Err(Cause::TimedOut(Stage::Connect).into()),
            Ok(Err(error)) => Err(connect_cause(&error).into()),
            Ok(Ok(stream)) => ask(stream).await,
        };
        ask_all(&addresses, deadline, one).await
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
}

async fn ask_all<E, F>(
    addresses: &[SocketAddr],
    deadline: Instant,
    one: impl Fn(SocketAddr) -> F,
) -> Result<(), E>
where
    E: Telling,
    F: Future<Output = Result<(), E>>,
{
    let share = deadline.saturating_duration_since(Instant::now())
        / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut waiting = addresses.iter();
    let mut running = FuturesUnordered::new();
    let mut telling: Option<E> = None;
    let mut start_next = Instant::now();
    loop {
        if Instant::now() >= start_next
            && let Some(&address) = waiting.next()
        {
            running.push(one(address));
            start_next = Instant::now() + share;
        }
        tokio::select! {
            found = running.next(), if !running.is_empty() => match found {
                Some(Ok(())) => return Ok(()),
                Some(Err(fault)) => {
                    if telling.as_ref().is_none_or(|known| known.weight() < fault.weight()) {
                        telling = Some(fault);
                    }
                    start_next = Instant::now();
                }
                None => {}
            },
            () = sleep_until(start_next), if waiting.len() > 0 => {}
            else => break,
        }
    }
    Err(telling.unwrap_or_else(|| Cause::TimedOut(Stage::Connect).into()))
}

fn lookup_cause(error: &io::Error) -> Cause {
    let said = error.to_string();
    // What getaddrinfo(3) says comes after the standard library's own words.
    let why = said
        .strip_prefix("failed to lookup address information: ")
        .unwrap_or(&said);
    Cause::NameNotFound(quoted(why))
}

fn connect_cause(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Cause::Refused,
        // The kernel gave up before our deadline (tcp_syn_retries).
        io::ErrorKind::TimedOut => Cause::TimedOut(Stage::Connect),
        _ => Cause::Unreachable(quoted(&error.to_string())),
    }
}
