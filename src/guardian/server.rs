//! The listening socket, and what all connections share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, ConnectionId, Crowded};
use super::connection::{Connection, ToManager, origin};
use super::log_budget::LogBudget;
use crate::protocol::PresharedKey;

/// Pause after the kernel would not give us a connection (no descriptors left, no memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What strangers can make us say; each kind has a budget of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Noise {
    Handshake,
    Silent,
    WrongKey,
    Crowded,
    Evicted,
    Stuck,
    Peer,
    Accept,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) key: PresharedKey,
    pub(super) manager: ToManager,
    /// Cancelled when the guardian ends: what is in flight is answered, nothing new is begun.
    pub(super) closing: CancellationToken,
    door: Mutex<Door>,
}

#[derive(Default)]
struct Door {
    admission: Admission,
    evictions: HashMap<ConnectionId, CancellationToken>,
    budgets: HashMap<Noise, LogBudget>,
}

impl Shared {
    pub(super) fn new(key: PresharedKey, manager: ToManager, closing: CancellationToken) -> Self {
        Self {
            key,
            manager,
            closing,
            door: Mutex::default(),
        }
    }

    /// Nobody holds this lock across an await, and nothing under it can panic half-way.
    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, peer: SocketAddr) -> (ConnectionId, CancellationToken) {
        let evicted_one = {
            let mut door = self.door();
            let (id, evicted) = door.admission.admit(origin(peer));
            let token = CancellationToken::new();
            door.evictions.insert(id, token.clone());
            let evicted = evicted.and_then(|old| door.evictions.remove(&old));
            if let Some(evicted) = &evicted {
                evicted.cancel();
            }
            (id, token, evicted.is_some())
        };
        let (id, token, crowded) = evicted_one;
        if crowded {
            self.noise(
                Noise::Evicted,
                peer,
                "too many connections without a key: the oldest one made room",
            );
        }
        (id, token)
    }

    pub(super) fn promote(&self, id: ConnectionId, peer: SocketAddr) -> Result<(), Crowded> {
        self.door().admission.promote(id, origin(peer))
    }

    pub(super) fn release(&self, id: ConnectionId) {
        let mut door = self.door();
        door.admission.release(id);
        door.evictions.remove(&id);
    }

    pub(super) fn wrong_key(&self, peer: SocketAddr) -> Duration {
        self.door().admission.wrong_key(Instant::now(), origin(peer))
    }

    /// One line about a stranger, if the budget of its kind allows it.
    pub(super) fn noise(&self, kind: Noise, peer: SocketAddr, why: &str) {
        let spent = self.door().budgets.entry(kind).or_default().spend(Instant::now());
        match spent {
            Some(0) => tracing::warn!(%peer, why, "connection refused"),
            Some(suppressed) => {
                tracing::warn!(%peer, why, suppressed, "connection refused, like others before it")
            }
            None => {}
        }
    }
}

/// Accepts until `shared.closing`. `alive` is answered as proof of progress.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: TaskTracker,
    mut alive: mpsc::Receiver<oneshot::Sender<()>>,
) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    let (id, evicted) = shared.admit(peer);
                    let connection = Connection { id, peer, shared: shared.clone(), evicted };
                    connections.spawn(connection.run(stream));
                }
                Err(error) => {
                    let local = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
                    shared.noise(Noise::Accept, local, &error.to_string());
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(reply) = alive.recv() => drop(reply.send(())),
            () = shared.closing.cancelled() => return,
        }
    }
}
