//! The listening socket, and what all connections share.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, ConnectionId, Crowded};
use super::connection::{Connection, ToManager, origin};
use super::keys::Keys;
use super::publish::Publisher;
use crate::protocol::{Wire, hex};
use crate::telemetry::LogBudget;

/// Pause after the kernel would not give us a connection (no descriptors left, no memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Commands of two addresses that come closer together than this are of two coordinators that work against each other, or beside.
const BESIDE: Duration = Duration::from_secs(60);

/// What others can make us say; each kind has a budget of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Noise {
    Handshake,
    Silent,
    WrongKey,
    Plain,
    Crowded,
    TwoCoordinators,
    Spoken,
    Refused,
    Evicted,
    Stuck,
    Peer,
    Accept,
}

impl Noise {
    /// Those that are about something that was refused.
    const REFUSALS: [Self; 10] = [
        Self::Handshake,
        Self::Silent,
        Self::WrongKey,
        Self::Plain,
        Self::Crowded,
        Self::Refused,
        Self::Evicted,
        Self::Stuck,
        Self::Peer,
        Self::Accept,
    ];

    /// Its name among the figures.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Silent => "silent",
            Self::WrongKey => "wrong_key",
            Self::Plain => "plain",
            Self::Crowded => "crowded",
            Self::TwoCoordinators => "two_coordinators",
            Self::Spoken => "spoken_in_clear",
            Self::Refused => "command",
            Self::Evicted => "evicted",
            Self::Stuck => "stuck",
            Self::Peer => "peer",
            Self::Accept => "accept",
        }
    }
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) keys: Arc<Keys>,
    pub(super) wire: Wire,
    /// Random, made at the start: in all answers, so that a coordinator knows one guardian from another.
    pub(super) instance: Option<String>,
    pub(super) manager: ToManager,
    pub(super) publisher: Publisher,
    /// Cancelled when the guardian ends: what is in flight is answered, nothing new is begun.
    pub(super) closing: CancellationToken,
    door: Mutex<Door>,
}

#[derive(Default)]
struct Door {
    admission: Admission,
    evictions: HashMap<ConnectionId, CancellationToken>,
    budgets: HashMap<Noise, LogBudget>,
    /// How often there was each kind.
    noises: HashMap<Noise, u64>,
    commander: Option<Commander>,
}

/// Who has commanded last.
struct Commander {
    address: IpAddr,
    at: Instant,
}

impl Door {
    /// Somebody commands: who else has, a moment ago.
    fn commands(&mut self, now: Instant, address: IpAddr) -> Option<IpAddr> {
        let last = self.commander.replace(Commander { address, at: now })?;
        let beside = last.address != address && now.saturating_duration_since(last.at) < BESIDE;
        beside.then_some(last.address)
    }
}

impl Shared {
    pub(super) fn new(
        keys: Arc<Keys>,
        wire: Wire,
        manager: ToManager,
        publisher: Publisher,
        closing: CancellationToken,
    ) -> Self {
        Self {
            keys,
            wire,
            instance: instance(),
            manager,
            publisher,
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

    /// A drain or an undrain comes: two coordinators for one host are told of.
    pub(super) fn commands(&self, peer: SocketAddr) {
        let beside = self.door().commands(Instant::now(), peer.ip());
        if let Some(other) = beside
            && let Some(suppressed) = self.may_say(Noise::TwoCoordinators)
        {
            tracing::warn!(
                peer = %peer.ip(),
                %other,
                suppressed,
                "two coordinators command this host: the newer generation wins, and without generations the last one; end one of them"
            );
        }
    }

    /// Whether one more line of this kind may be written, and how many were not since the last one.
    pub(super) fn may_say(&self, kind: Noise) -> Option<u64> {
        let mut door = self.door();
        *door.noises.entry(kind).or_default() += 1;
        door.budgets.entry(kind).or_default().spend(Instant::now())
    }

    /// How many connections there are of peers and of strangers, and how much was refused, by the reason.
    pub(super) fn counts(&self) -> (usize, usize, Vec<(&'static str, u64)>) {
        let door = self.door();
        // Those of which there was none, too: the first one must be seen to be one more.
        let of = |kind| door.noises.get(&kind).copied().unwrap_or_default();
        let refused = Noise::REFUSALS.map(|kind| (kind.as_str(), of(kind)));
        (door.admission.peers(), door.admission.strangers(), refused.into())
    }

    /// One line about a stranger, if the budget of its kind allows it.
    pub(super) fn noise(&self, kind: Noise, peer: SocketAddr, why: &str) {
        match self.may_say(kind) {
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

/// 64 random bits. They are no secret, and a guardian without them is one that cannot be told from others.
fn instance() -> Option<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).ok()?;
    Some(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_coordinators_are_noticed_and_one_that_moves_is_not() {
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let mut door = Door::default();
        let now = Instant::now();
        assert_eq!(door.commands(now, one), None);
        assert_eq!(door.commands(now, one), None);
        assert_eq!(
            door.commands(now + BESIDE, other),
            None,
            "it has moved, a while ago"
        );
        assert_eq!(
            door.commands(now + BESIDE * 2 - Duration::from_secs(1), one),
            Some(other)
        );
    }
}
