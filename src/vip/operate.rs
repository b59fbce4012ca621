//! What operators do to a pool, from any host that reaches the store: add, remove, move, pause, resume, list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::keys::{Key, Keys};
use crate::store::{Entry, Is, Outcome, Snapshot, Store, StoreError, Transaction};

/// How long the store may take for one request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often something that others change at the same time is tried.
const ATTEMPTS: usize = 5;
/// So many addresses a pool has at most: each node looks at all of them each time that something changes, and may have to hold all.
const POOL_MAX: usize = 256;
/// Longest reason that is kept.
const REASON_MAX_CHARS: usize = 200;

/// A pool in a store.
pub(super) struct Pool<S> {
    pub(super) store: S,
    pub(super) keys: Keys,
}

/// An address of the pool, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Listed {
    pub(super) address: IpAddr,
    /// Whose it is.
    pub(super) marked: Option<String>,
    /// The fencing token that goes with it.
    pub(super) token: Option<u64>,
    /// Where an operator wants it.
    pub(super) preferred: Option<String>,
}

/// Everything that `list` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Listing {
    pub(super) revision: u64,
    pub(super) ips: Vec<Listed>,
    /// Nodes that have shown a sign of life.
    pub(super) nodes: BTreeSet<String>,
    /// What could not be put on which node's interface, and why.
    pub(super) cannot: BTreeMap<IpAddr, BTreeMap<String, String>>,
    /// Nodes that are to hold nothing, and why.
    pub(super) paused: BTreeMap<String, String>,
    /// Keys that should be about an address, and are not; and why.
    pub(super) rubbish: BTreeMap<String, String>,
}

impl<S: Store> Pool<S> {
    pub(super) async fn list(&self) -> Result<Listing, StoreError> {
        let snapshot = self.look(self.keys.prefix()).await?;
        Ok(listing(&self.keys, snapshot.revision.0, &snapshot.entries))
    }

    /// Puts an address into the pool. Whether it was not there.
    pub(super) async fn add(&self, address: IpAddr) -> Result<bool, StoreError> {
        if self.list().await?.ips.len() >= POOL_MAX {
            return Err(StoreError::Unavailable(format!(
                "{address} is not added: a pool has at most {POOL_MAX} addresses; make a second one (--dcs-clustername) on other hosts"
            )));
        }
        if self.spellings(address).await?.is_empty() {
            let key = self.keys.of(&Key::Pool(address));
            let add = Transaction::default()
                .only_if(&key, Is::Absent)
                .put(&key, "", None);
            return Ok(matches!(
                self.store.commit(add, PATIENCE).await?,
                Outcome::Done(_)
            ));
        }
        Ok(false)
    }

    /// Takes an address out of the pool, and what was wished of it. Who holds it drops it. Whether it was there, and who holds it.
    pub(super) async fn remove(&self, address: IpAddr) -> Result<Option<Option<String>>, StoreError> {
        let spellings = self.spellings(address).await?;
        if spellings.is_empty() {
            return Ok(None);
        }
        let listing = self.list().await?;
        let holder = listing.ips.into_iter().find(|ip| ip.address == address);
        let mut remove = Transaction::default().delete(self.keys.of(&Key::Preferred(address)));
        for key in spellings {
            remove = remove.delete(key);
        }
        self.store.commit(remove, PATIENCE).await?;
        Ok(Some(holder.and_then(|ip| ip.marked)))
    }

    /// Says where an address is wanted; none: anywhere. Whether it is in the pool.
    pub(super) async fn prefer(&self, address: IpAddr, node: Option<&str>) -> Result<bool, StoreError> {
        let preferred = self.keys.of(&Key::Preferred(address));
        for _ in 0..ATTEMPTS {
            let Some(key) = self.spellings(address).await?.into_iter().next() else {
                return Ok(false);
            };
            let change = Transaction::default().only_if(key, Is::Present);
            let change = match node {
                Some(node) => change.put(&preferred, node, None),
                None => change.delete(&preferred),
            };
            if let Outcome::Done(_) = self.store.commit(change, PATIENCE).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A node is to hold nothing, until it is resumed.
    pub(super) async fn pause(&self, node: &str, reason: &str) -> Result<(), StoreError> {
        let visible = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
        let reason: String = visible.take(REASON_MAX_CHARS).collect();
        let key = self.keys.of(&Key::Paused(node.to_owned()));
        let pause = Transaction::default().put(key, reason, None);
        self.store.commit(pause, PATIENCE).await.map(drop)
    }

    /// It may again. Whether it was paused.
    pub(super) async fn resume(&self, node: &str) -> Result<bool, StoreError> {
        let key = self.keys.of(&Key::Paused(node.to_owned()));
        let resume = Transaction::default().only_if(&key, Is::Present).delete(&key);
        Ok(matches!(
            self.store.commit(resume, PATIENCE).await?,
            Outcome::Done(_)
        ))
    }

    /// No answer to a question is no doubt about anything that was done.
    async fn look(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let looked = self.store.list(prefix, PATIENCE).await;
        looked.map_err(|error| match error {
            StoreError::Unknown(_) => StoreError::Unavailable(error.to_string()),
            error => error,
        })
    }

    /// The keys that put an address into the pool: users may have written it in more than one way.
    async fn spellings(&self, address: IpAddr) -> Result<Vec<String>, StoreError> {
        let snapshot = self.look(&format!("{}ips/", self.keys.prefix())).await?;
        let keys = snapshot.entries.into_iter().map(|entry| entry.key);
        Ok(keys
            .filter(|key| self.keys.read(key) == Ok(Some(Key::Pool(address))))
            .collect())
    }
}

fn listing(keys: &Keys, revision: u64, entries: &[Entry]) -> Listing {
    let mut listing = Listing {
        revision,
        ..Listing::default()
    };
    let mut pool = BTreeSet::new();
    let mut marks = BTreeMap::new();
    let mut preferred = BTreeMap::new();
    for entry in entries {
        match keys.read(&entry.key) {
            Ok(Some(Key::Pool(address))) => {
                pool.insert(address);
            }
            Ok(Some(Key::Marked(address))) => {
                marks.insert(address, (entry.value.clone(), entry.modified.0));
            }
            Ok(Some(Key::Preferred(address))) => {
                preferred.insert(address, entry.value.clone());
            }
            Ok(Some(Key::Node(node))) => {
                listing.nodes.insert(node);
            }
            Ok(Some(Key::Cannot(node, address))) => {
                let of = listing.cannot.entry(address).or_default();
                of.insert(node, entry.value.clone());
            }
            Ok(Some(Key::Paused(node))) => {
                listing.paused.insert(node, entry.value.clone());
            }
            Ok(_) => {}
            Err(why) => {
                listing.rubbish.insert(entry.key.clone(), why);
            }
        }
    }
    listing.ips = pool
        .into_iter()
        .map(|address| {
            let mark = marks.remove(&address);
            Listed {
                address,
                marked: mark.as_ref().map(|(node, _)| node.clone()),
                token: mark.map(|(_, token)| token),
                preferred: preferred.remove(&address),
            }
        })
        .collect();
    listing
}

/// A table for people.
pub(super) fn table(listing: &Listing) -> String {
    let mut rows = vec![[
        "ADDRESS".to_owned(),
        "HELD BY".to_owned(),
        "TOKEN".to_owned(),
        "WANTED ON".to_owned(),
    ]];
    let dash = || "-".to_owned();
    rows.extend(listing.ips.iter().map(|ip| {
        [
            ip.address.to_string(),
            ip.marked.clone().unwrap_or_else(dash),
            ip.token.map_or_else(dash, |token| token.to_string()),
            ip.preferred.clone().unwrap_or_else(dash),
        ]
    }));
    let mut out = String::new();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    for [address, held, token, wanted] in &rows {
        out.push_str(&format!(
            "{address:0$}  {held:1$}  {token:2$}  {wanted}\n",
            widths[0], widths[1], widths[2]
        ));
    }
    if listing.ips.is_empty() {
        out.push_str("the pool is empty: `io-vip add ADDRESS`\n");
    }
    let nodes: Vec<_> = listing.nodes.iter().map(String::as_str).collect();
    match nodes.as_slice() {
        [] => out.push_str("no node is healthy\n"),
        nodes => out.push_str(&format!("nodes: {}\n", nodes.join(", "))),
    }
    for (address, nodes) in &listing.cannot {
        for (node, why) in nodes {
            out.push_str(&format!("{address} cannot be held by {node}: {why}\n"));
        }
    }
    for (node, why) in &listing.paused {
        out.push_str(&format!("paused: {node}: {why}\n"));
    }
    for (key, why) in &listing.rubbish {
        out.push_str(&format!("ignored: {key}: {why}\n"));
    }
    out
}
