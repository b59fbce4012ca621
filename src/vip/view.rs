//! What a node knows of the store: the pool, who has marked what, which nodes are alive, what operators want.
//!
//! **Promise.** Whoever holds an address has shown a sign of life before it may be taken from them, and the time that they asked to be waited for
//! has passed since that sign was *seen* here. That a node's key, its lease or its mark is gone makes nobody wait for less, unless the mark was
//! taken away while its lease lived: only its holder does that, and only when the address is down.
//!
//! **Not promised.** That it is new. What is decided by it is decided by a transaction that names the revisions it was decided by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::core::At;
use super::keys::{Key, Keys};
use crate::store::{Change, Changes, Entry, LeaseId, Revision, Snapshot};

/// Nobody can ask to be waited for longer than this.
pub const LONGEST: Duration = Duration::from_secs(3_600);

/// Who has marked an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The node.
    pub node: String,
    /// Under which lease. None: somebody has written it by hand.
    pub lease: Option<LeaseId>,
    /// The fencing token.
    pub modified: Revision,
    /// When it was seen.
    seen: At,
}

/// A node's sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Under which lease. None: somebody has written it by hand.
    pub lease: Option<LeaseId>,
    /// The last one.
    pub modified: Revision,
}

/// Whoever has a lease, or had it.
#[derive(Clone, Debug)]
struct Session {
    /// When its last sign of life was seen; or when it was first heard of.
    seen: At,
    /// How long it must be waited for, as it says.
    ttl: Option<Duration>,
    /// Whether its lease lives: what says how long to wait goes with it.
    lives: bool,
}

/// An address whose holder may still answer for it, though its mark is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Haunted {
    by: LeaseId,
    node: String,
    /// When the mark was made that is gone.
    marked: Revision,
    until: At,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct View {
    keys: Keys,
    /// How long we ask to be waited for ourselves.
    ttl: Duration,
    revision: Option<Revision>,
    /// Every key, and when it was put last.
    known: BTreeMap<String, Revision>,
    /// The keys that say so: more than one spelling may.
    pool: BTreeMap<IpAddr, BTreeSet<String>>,
    /// How often a key of the pool was put or taken away.
    pool_changes: u64,
    marks: BTreeMap<IpAddr, Mark>,
    preferred: BTreeMap<IpAddr, String>,
    adverts: BTreeMap<String, Advert>,
    cannot: BTreeMap<(String, IpAddr), String>,
    paused: BTreeMap<String, String>,
    sessions: BTreeMap<LeaseId, Session>,
    haunted: BTreeMap<IpAddr, Haunted>,
}

/// What is new in a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Keys that should be about an address, and why they are not. Each is told once.
    pub rubbish: Vec<(String, String)>,
    /// Something is other than it was; a sign of life alone is nothing new.
    pub changed: bool,
}

/// What happened at one revision.
#[derive(Default)]
struct Step {
    gone: Vec<(IpAddr, Mark)>,
    news: News,
}

impl View {
    /// Nothing is known yet. `ttl` is how long this node asks to be waited for.
    #[must_use]
    pub fn new(prefix: &str, ttl: Duration) -> Self {
        Self {
            keys: Keys::new(prefix),
            ttl,
            revision: None,
            known: BTreeMap::new(),
            pool: BTreeMap::new(),
            pool_changes: 0,
            marks: BTreeMap::new(),
            preferred: BTreeMap::new(),
            adverts: BTreeMap::new(),
            cannot: BTreeMap::new(),
            paused: BTreeMap::new(),
            sessions: BTreeMap::new(),
            haunted: BTreeMap::new(),
        }
    }

    /// Everything that happened up to here is known. None: nothing is.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// Whether everything up to `revision` is known.
    #[must_use]
    pub fn has(&self, revision: Revision) -> bool {
        self.revision.is_some_and(|known| known >= revision)
    }

    /// All that there is, as a list tells it.
    pub fn look(&mut self, now: At, snapshot: &Snapshot) -> News {
        self.haunted.retain(|_, haunted| now < haunted.until);
        let mut step = Step::default();
        let there: BTreeSet<&str> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
        let gone: Vec<String> = self
            .known
            .keys()
            .filter(|key| !there.contains(key.as_str()))
            .cloned()
            .collect();
        for key in gone {
            self.take_away(&key, &mut step);
        }
        for entry in &snapshot.entries {
            if self.known.get(&entry.key) != Some(&entry.modified) {
                self.put(now, entry, &mut step);
            }
        }
        // Whoever has no sign of life there may have shown some since it was seen last, and then have taken it away: only a watch misses none.
        let shown: BTreeSet<LeaseId> = self.adverts.values().filter_map(|advert| advert.lease).collect();
        for (lease, session) in &mut self.sessions {
            if !shown.contains(lease) {
                session.seen = now;
            }
        }
        self.end(step.gone);
        self.revision = Some(snapshot.revision);
        step.news
    }

    /// What a watch tells. What is known already is no news.
    pub fn learn(&mut self, now: At, changes: &Changes) -> News {
        let mut step = Step::default();
        let Some(known) = self.revision else {
            return step.news;
        };
        self.haunted.retain(|_, haunted| now < haunted.until);
        let mut at = known;
        for change in &changes.changes {
            let happened = match change {
                Change::Put(entry) => entry.modified,
                Change::Gone { at, .. } => *at,
            };
            if happened <= known {
                continue;
            }
            if happened != at {
                // A lease takes everything away at one revision, in any order.
                let gone = std::mem::take(&mut step.gone);
                self.end(gone);
                at = happened;
            }
            match change {
                Change::Put(entry) => self.put(now, entry, &mut step),
                Change::Gone { key, .. } => self.take_away(key, &mut step),
            }
        }
        self.end(step.gone);
        self.revision = Some(known.max(changes.revision));
        step.news
    }

    fn put(&mut self, now: At, entry: &Entry, step: &mut Step) {
        let is_new = self.known.insert(entry.key.clone(), entry.modified).is_none();
        let (value, modified, lease) = (&entry.value, entry.modified, entry.lease);
        if let Some(lease) = lease {
            self.meet(now, lease);
        }
        match self.keys.read(&entry.key) {
            Ok(Some(Key::Pool(address))) => {
                self.pool.entry(address).or_default().insert(entry.key.clone());
                self.pool_changes += 1;
            }
            Ok(Some(Key::Marked(address))) => {
                self.haunted.remove(&address);
                let mark = Mark {
                    node: value.clone(),
                    lease,
                    modified,
                    seen: now,
                };
                self.marks.insert(address, mark);
            }
            Ok(Some(Key::Preferred(address))) => {
                self.preferred.insert(address, value.clone());
            }
            Ok(Some(Key::Node(node))) => {
                if let Some(session) = lease.and_then(|lease| self.sessions.get_mut(&lease)) {
                    session.seen = now;
                }
                let before = self.adverts.insert(node, Advert { lease, modified });
                // The same node, once more alive. Whether it had passed for dead is for the clock to say.
                step.news.changed |= before.is_none_or(|before| before.lease != lease);
                return;
            }
            Ok(Some(Key::Ttl(lease))) => {
                let ttl = value
                    .parse()
                    .ok()
                    .map(|ms| Duration::from_millis(ms).min(LONGEST));
                let session = self.meet(now, lease);
                // One that was changed in between may have been the longer one.
                if session.ttl.is_some_and(|before| Some(before) != ttl) {
                    session.seen = now;
                }
                session.ttl = ttl;
                session.lives = entry.lease == Some(lease);
            }
            Ok(Some(Key::Cannot(node, address))) => {
                self.cannot.insert((node, address), value.clone());
            }
            Ok(Some(Key::Paused(node))) => {
                self.paused.insert(node, value.clone());
            }
            Ok(None) => return,
            Err(why) => {
                if is_new {
                    step.news.rubbish.push((entry.key.clone(), why));
                }
                return;
            }
        }
        step.news.changed = true;
    }

    fn take_away(&mut self, key: &str, step: &mut Step) {
        if self.known.remove(key).is_none() {
            return;
        }
        match self.keys.read(key) {
            Ok(Some(Key::Pool(address))) => {
                self.pool_changes += 1;
                if let Some(keys) = self.pool.get_mut(&address) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.pool.remove(&address);
                    }
                }
            }
            Ok(Some(Key::Marked(address))) => {
                if let Some(mark) = self.marks.remove(&address) {
                    step.gone.push((address, mark));
                }
            }
            Ok(Some(Key::Preferred(address))) => {
                self.preferred.remove(&address);
            }
            Ok(Some(Key::Node(node))) => {
                self.adverts.remove(&node);
            }
            Ok(Some(Key::Ttl(lease))) => {
                if let Some(session) = self.sessions.get_mut(&lease) {
                    session.lives = false;
                }
            }
            Ok(Some(Key::Cannot(node, address))) => {
                self.cannot.remove(&(node, address));
            }
            Ok(Some(Key::Paused(node))) => {
                self.paused.remove(&node);
            }
            Ok(None) | Err(_) => return,
        }
        step.news.changed = true;
    }

    fn meet(&mut self, now: At, lease: LeaseId) -> &mut Session {
        self.sessions.entry(lease).or_insert(Session {
            seen: now,
            ttl: None,
            lives: false,
        })
    }

    /// All that happened at one revision is known.
    fn end(&mut self, gone: Vec<(IpAddr, Mark)>) {
        for (address, mark) in gone {
            // One that was written by hand is taken away by hand.
            let Some(lease) = mark.lease else { continue };
            let lives = self.sessions.get(&lease).is_some_and(|session| session.lives);
            if !lives && !self.marks.contains_key(&address) {
                let until = self.waited_for(lease);
                let haunted = Haunted {
                    by: lease,
                    node: mark.node,
                    marked: mark.modified,
                    until,
                };
                self.haunted.insert(address, haunted);
            }
        }
        let of_marks = self.marks.values().filter_map(|mark| mark.lease);
        let of_adverts = self.adverts.values().filter_map(|advert| advert.lease);
        let of_ghosts = self.haunted.values().map(|haunted| haunted.by);
        let needed: BTreeSet<LeaseId> = of_marks.chain(of_adverts).chain(of_ghosts).collect();
        self.sessions
            .retain(|lease, session| session.lives || needed.contains(lease));
    }

    /// The longest that anybody asks to be waited for.
    fn longest(&self) -> Duration {
        let asked = self.sessions.values().filter_map(|session| session.ttl);
        asked.max().unwrap_or_default().max(self.ttl)
    }

    /// From when on nobody can hold anything by this lease, as far as is known here: when it shows no other sign of life.
    #[must_use]
    pub fn waited_for(&self, lease: LeaseId) -> At {
        match self.sessions.get(&lease) {
            Some(session) => session.seen + session.ttl.unwrap_or_else(|| self.longest()),
            // Never heard of: there is nothing to know when it was.
            None => At(Duration::MAX),
        }
    }

    /// From when on an address may be taken, whoever holds it, or has held it and vanished. Long past when nobody does.
    #[must_use]
    pub fn free_from(&self, address: IpAddr) -> At {
        match (self.marks.get(&address), self.haunted.get(&address)) {
            (Some(mark), _) => match mark.lease {
                Some(lease) => self.waited_for(lease),
                // Written by hand, perhaps over the mark of somebody who has not seen it yet.
                None => mark.seen + self.longest(),
            },
            (None, Some(haunted)) => haunted.until,
            (None, None) => At::default(),
        }
    }

    /// Under which lease an address was held whose mark went with that lease.
    #[must_use]
    pub fn haunted_by(&self, address: IpAddr) -> Option<LeaseId> {
        self.haunted.get(&address).map(|haunted| haunted.by)
    }

    /// Whether that was since the address came into the pool.
    #[must_use]
    pub fn is_haunted_since(&self, address: IpAddr, since: Revision) -> bool {
        self.haunted
            .get(&address)
            .is_some_and(|haunted| haunted.marked > since)
    }

    /// Addresses that nobody may take yet, though no mark says so, and who has held them.
    pub fn haunted(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.haunted
            .iter()
            .map(|(address, haunted)| (*address, haunted.node.as_str()))
    }

    /// The pool, in numeric order, and a key that says so of each.
    pub fn pool(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.pool
            .iter()
            .filter_map(|(address, keys)| Some((*address, keys.first()?.as_str())))
    }

    /// Another number whenever the pool may be another one.
    #[must_use]
    pub fn pool_changes(&self) -> u64 {
        self.pool_changes
    }

    /// When each address of the pool was put into it last.
    pub fn pool_since(&self) -> impl Iterator<Item = (IpAddr, Revision)> {
        self.pool.iter().filter_map(|(address, keys)| {
            let since = keys.iter().filter_map(|key| self.known.get(key)).max()?;
            Some((*address, *since))
        })
    }

    /// A key that says that an address is of the pool.
    #[must_use]
    pub fn pool_key(&self, address: IpAddr) -> Option<&str> {
        self.pool.get(&address)?.first().map(String::as_str)
    }

    /// All marks.
    #[must_use]
    pub fn marks(&self) -> &BTreeMap<IpAddr, Mark> {
        &self.marks
    }

    /// All signs of life.
    #[must_use]
    pub fn adverts(&self) -> &BTreeMap<String, Advert> {
        &self.adverts
    }

    /// Where operators want addresses.
    #[must_use]
    pub fn preferred(&self) -> &BTreeMap<IpAddr, String> {
        &self.preferred
    }

    /// What could not be put on which node's interface, and why.
    #[must_use]
    pub fn cannot(&self) -> &BTreeMap<(String, IpAddr), String> {
        &self.cannot
    }

    /// Whether an operator has said that he wants an address there since the node said something of what it cannot hold.
    #[must_use]
    pub fn is_wanted_since(&self, node: &str, address: IpAddr) -> bool {
        let at = |key: &Key| self.known.get(&self.keys.of(key));
        self.preferred.get(&address).is_some_and(|wanted| wanted == node)
            && at(&Key::Preferred(address)) > at(&Key::Cannot(node.to_owned(), address))
    }

    /// Nodes that are to hold nothing, and why.
    #[must_use]
    pub fn paused(&self) -> &BTreeMap<String, String> {
        &self.paused
    }

    /// How long a lease's holder asks to be waited for.
    #[must_use]
    pub fn ttl_of(&self, lease: LeaseId) -> Option<Duration> {
        self.sessions.get(&lease)?.ttl
    }

    /// When a lease's holder has last shown a sign of life.
    #[must_use]
    pub fn seen(&self, lease: LeaseId) -> Option<At> {
        self.sessions.get(&lease).map(|session| session.seen)
    }

    /// The nodes that take part: not paused, and alive; `me` is, if this is my lease.
    #[must_use]
    pub fn taking_part(&self, now: At, me: Option<LeaseId>) -> BTreeSet<&str> {
        let alive = |lease: LeaseId| me == Some(lease) || now < self.waited_for(lease);
        self.adverts
            .iter()
            .filter(|(node, advert)| !self.paused.contains_key(*node) && advert.lease.is_some_and(alive))
            .map(|(node, _)| node.as_str())
            .collect()
    }

    /// When next a node passes for dead, or an address becomes free, after `now`, if nothing is heard until then.
    #[must_use]
    pub fn next(&self, now: At) -> Option<At> {
        let nodes = self.adverts.values().filter_map(|advert| advert.lease);
        let nodes = nodes.map(|lease| self.waited_for(lease));
        let held = self.marks.keys().chain(self.haunted.keys());
        let addresses = held.map(|address| self.free_from(*address));
        nodes.chain(addresses).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
