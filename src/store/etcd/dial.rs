//! A connection to one member: the name is looked up by one thread at most, and each address has its share of the time.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::transport::Uri;

use crate::cli::HostPort;
use crate::store::etcd_config::ETCD_PORT;

/// The longest that a connection may take to come up, TLS included. Who asks may give up before.
pub(super) const CONNECT_MOST: Duration = Duration::from_secs(3);

/// The most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

type Lookup = JoinHandle<io::Result<Vec<SocketAddr>>>;

#[derive(Clone)]
pub(super) struct Dial {
    host: String,
    port: u16,
    /// A lookup that an earlier attempt did not see the end of. It cannot be cancelled: the next attempt waits for it again instead of tying
    /// up one more thread.
    pending: Arc<Mutex<Option<Lookup>>>,
}

impl Dial {
    pub(super) fn new(address: &HostPort) -> Self {
        Self {
            host: address.host.clone(),
            port: address.port.unwrap_or(ETCD_PORT),
            pending: Arc::default(),
        }
    }

    async fn connect(self) -> io::Result<TcpStream> {
        let addresses = self.addresses().await?;
        let share = CONNECT_MOST / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host));
        for address in addresses {
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "it does not take the connection"),
            }
        }
        Err(last)
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = self.host.parse() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let mut pending = self.pending.lock().await;
        let lookup = pending.get_or_insert_with(|| {
            let (host, port) = (self.host.clone(), self.port);
            tokio::task::spawn_blocking(move || {
                (host.as_str(), port).to_socket_addrs().map(Iterator::collect)
            })
        });
        let found = lookup.await;
        *pending = None;
        let mut addresses = found.map_err(io::Error::other)??;
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        Ok(addresses)
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.connect().await.map(TokioIo::new) })
    }
}
