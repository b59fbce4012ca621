//! Who may be connected, and who is shown the door: limits on connections and on wrong keys. Pure: the time is
//! an argument.
//!
//! The aim is that strangers can never use up what authenticated peers need. So a new connection is always let
//! in; when that is one too many, the oldest stranger of the address that holds the most goes. A peer that
//! authenticates moves out of the strangers' reach.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::limits::{
    MAX_PEERS, MAX_PEERS_PER_ADDRESS, MAX_STRANGERS, MAX_STRANGERS_PER_ADDRESS, MAX_TRACKED_ADDRESSES,
    WRONG_KEY_BURST, WRONG_KEY_INTERVAL,
};

/// A connection. Numbers grow, so that a lower one is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Where a connection comes from, as far as limits care: an IPv4 address, or the /64 network of an IPv6
/// address, because whoever has one of its addresses has them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(u128);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            // Inside ::ffff:0:0/96, which no /64 of a true IPv6 address is equal to.
            IpAddr::V4(v4) => Self(u128::from(v4.to_ipv6_mapped())),
            IpAddr::V6(v6) => Self(u128::from(v6) & (u128::MAX << 64)),
        }
    }
}

/// Why a peer with the right key cannot stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// [`MAX_PEERS`] are connected.
    #[error("Too many connections: {MAX_PEERS} are open; close some, or try again later")]
    InAll,
    /// [`MAX_PEERS_PER_ADDRESS`] are connected from this address.
    #[error(
        "Too many connections: {MAX_PEERS_PER_ADDRESS} are open from this address; close some, or try again later"
    )]
    FromAddress,
}

#[derive(Default)]
struct Guests {
    strangers: u32,
    peers: u32,
}

/// The guest list. See the module for what it is for.
#[derive(Default)]
pub struct Admission {
    next: u64,
    strangers: std::collections::BTreeMap<ConnectionId, Origin>,
    peers: HashMap<ConnectionId, Origin>,
    guests: HashMap<Origin, Guests>,
    /// When each address will have earned back all its wrong keys.
    wrong_keys: HashMap<Origin, Instant>,
}

impl Admission {
    /// How many are connected without a key.
    pub fn strangers(&self) -> usize {
        self.strangers.len()
    }

    /// Lets a new connection in, and names the one that has to go for it.
    pub fn admit(&mut self, origin: Origin) -> (ConnectionId, Option<ConnectionId>) {
        let here = self.guests.get(&origin).map_or(0, |g| g.strangers) as usize;
        let evicted = if here >= MAX_STRANGERS_PER_ADDRESS {
            self.oldest_stranger(origin)
        } else if self.strangers.len() >= MAX_STRANGERS {
            let fullest = self
                .guests
                .iter()
                .max_by_key(|(origin, g)| (g.strangers, **origin))
                .map(|(o, _)| *o);
            fullest.and_then(|origin| self.oldest_stranger(origin))
        } else {
            None
        };
        if let Some(id) = evicted {
            self.release(id);
        }
        self.next += 1;
        let id = ConnectionId(self.next);
        self.strangers.insert(id, origin);
        self.guests.entry(origin).or_default().strangers += 1;
        (id, evicted)
    }

    fn oldest_stranger(&self, origin: Origin) -> Option<ConnectionId> {
        self.strangers
            .iter()
            .find(|(_, o)| **o == origin)
            .map(|(id, _)| *id)
    }

    /// A stranger from `origin` has shown the key. One that is a peer already stays one; one that was just evicted
    /// is taken back.
    ///
    /// # Errors
    /// When there are too many peers already. The connection stays what it was.
    pub fn promote(&mut self, id: ConnectionId, origin: Origin) -> Result<(), Crowded> {
        if self.peers.contains_key(&id) {
            return Ok(());
        }
        if self.peers.len() >= MAX_PEERS {
            return Err(Crowded::InAll);
        }
        let guests = self.guests.entry(origin).or_default();
        if guests.peers as usize >= MAX_PEERS_PER_ADDRESS {
            return Err(Crowded::FromAddress);
        }
        guests.peers += 1;
        if self.strangers.remove(&id).is_some() {
            guests.strangers -= 1;
        }
        self.peers.insert(id, origin);
        Ok(())
    }

    /// A connection has ended. One that is not known any more (it was evicted) is no mistake.
    pub fn release(&mut self, id: ConnectionId) {
        let origin = if let Some(origin) = self.strangers.remove(&id) {
            self.guests.entry(origin).or_default().strangers -= 1;
            origin
        } else if let Some(origin) = self.peers.remove(&id) {
            self.guests.entry(origin).or_default().peers -= 1;
            origin
        } else {
            return;
        };
        if self
            .guests
            .get(&origin)
            .is_some_and(|g| g.strangers == 0 && g.peers == 0)
        {
            self.guests.remove(&origin);
        }
    }

    /// How many authenticated connections are open.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// `origin` has tried a wrong key: how long its answer is held back. Zero for the first
    /// [`WRONG_KEY_BURST`], and [`WRONG_KEY_INTERVAL`] more for each one after them.
    pub fn wrong_key(&mut self, now: Instant, origin: Origin) -> Duration {
        if self.wrong_keys.len() >= MAX_TRACKED_ADDRESSES && !self.wrong_keys.contains_key(&origin) {
            self.wrong_keys.retain(|_, clean| *clean > now);
            if self.wrong_keys.len() >= MAX_TRACKED_ADDRESSES {
                let least = self
                    .wrong_keys
                    .iter()
                    .min_by_key(|(origin, clean)| (**clean, **origin))
                    .map(|(o, _)| *o);
                least.map(|origin| self.wrong_keys.remove(&origin));
            }
        }
        let clean = self.wrong_keys.entry(origin).or_insert(now);
        *clean = (*clean).max(now) + WRONG_KEY_INTERVAL;
        let debt = clean.saturating_duration_since(now);
        // A debt that grows for ever would punish the address of an attacker for days.
        let most = WRONG_KEY_INTERVAL * WRONG_KEY_BURST * 6;
        if debt > most {
            *clean = now + most;
        }
        debt.min(most)
            .saturating_sub(WRONG_KEY_INTERVAL * WRONG_KEY_BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(last: u8) -> Origin {
        Origin::from(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn a_flood_crowds_out_itself_and_not_a_newcomer_from_elsewhere() {
        let mut door = Admission::default();
        let (newcomer, _) = door.admit(origin(1));
        for flood in 0..2_000u64 {
            // 50 addresses: the limit in all is reached, not the one for each address.
            let (_, evicted) = door.admit(origin(2 + (flood % 50) as u8));
            assert_ne!(evicted, Some(newcomer));
        }
        assert_eq!(door.strangers.len(), MAX_STRANGERS);
        assert_eq!(door.promote(newcomer, origin(1)), Ok(()));
        assert_eq!(door.peers(), 1);
    }

    #[test]
    fn one_address_evicts_its_own_oldest() {
        let mut door = Admission::default();
        let first = door.admit(origin(1)).0;
        for _ in 1..MAX_STRANGERS_PER_ADDRESS {
            assert_eq!(door.admit(origin(1)).1, None);
        }
        assert_eq!(door.admit(origin(1)).1, Some(first));
        // It shows the key before it learns of its eviction: it is a peer, and counted as one.
        assert_eq!(door.promote(first, origin(1)), Ok(()));
        assert_eq!(door.peers(), 1);
        door.release(first);
        door.release(first);
        assert_eq!(door.peers(), 0);
        assert_eq!(door.strangers.len(), MAX_STRANGERS_PER_ADDRESS);
    }

    #[test]
    fn peers_are_limited_and_nothing_leaks() {
        let mut door = Admission::default();
        let mut open = Vec::new();
        for _ in 0..MAX_PEERS_PER_ADDRESS {
            let id = door.admit(origin(1)).0;
            assert_eq!(door.promote(id, origin(1)), Ok(()));
            open.push(id);
        }
        let id = door.admit(origin(1)).0;
        assert_eq!(door.promote(id, origin(1)), Err(Crowded::FromAddress));
        open.push(id);
        for _ in MAX_PEERS_PER_ADDRESS..MAX_PEERS {
            let id = door.admit(origin(2)).0;
            assert_eq!(door.promote(id, origin(2)), Ok(()));
            open.push(id);
        }
        let id = door.admit(origin(3)).0;
        assert_eq!(door.promote(id, origin(3)), Err(Crowded::InAll));
        open.push(id);
        open.iter().for_each(|id| door.release(*id));
        assert!(door.strangers.is_empty() && door.peers.is_empty() && door.guests.is_empty());
    }

    #[test]
    fn wrong_keys_cost_more_and_more_and_are_forgiven_in_time() {
        let mut door = Admission::default();
        let now = Instant::now();
        for _ in 0..WRONG_KEY_BURST {
            assert_eq!(door.wrong_key(now, origin(1)), Duration::ZERO);
        }
        assert_eq!(door.wrong_key(now, origin(1)), WRONG_KEY_INTERVAL);
        assert_eq!(door.wrong_key(now, origin(1)), WRONG_KEY_INTERVAL * 2);
        assert_eq!(door.wrong_key(now, origin(2)), Duration::ZERO);
        assert_eq!(
            door.wrong_key(now + WRONG_KEY_INTERVAL * 100, origin(1)),
            Duration::ZERO
        );
        for _ in 0..100_000 {
            assert!(door.wrong_key(now, origin(3)) <= WRONG_KEY_INTERVAL * WRONG_KEY_BURST * 5);
        }
    }

    #[test]
    fn addresses_that_one_stranger_owns_count_as_one() {
        let v6 = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:1"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:192.0.2.1"), origin(1));
        assert_ne!(v6("::1"), origin(1));
        let mut door = Admission::default();
        for i in 0..(2 * MAX_TRACKED_ADDRESSES as u32) {
            door.wrong_key(Instant::now(), Origin::from(IpAddr::from(i.to_be_bytes())));
        }
        assert!(door.wrong_keys.len() <= MAX_TRACKED_ADDRESSES);
    }
}
