//! Cores that are broken on purpose, at their edge: what they hear, or what they do, is not what it was. The invariants must tell.

use std::collections::{BTreeMap, VecDeque};

use io_guardian::store::{Act, Change, Entry, Transaction};
use io_guardian::vip::core::{At, Effect, Event};

use super::PREFIX;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Broken {
    /// What is held lasts from when a sign of life was answered, and not from when it was sent.
    CountsFromTheAnswer,
    /// Whoever is silent is waited for half as long as it asks for.
    WaitsForHalf,
    /// An address is taken though its holder may have shown a sign of life that is not seen here yet.
    TakesUnconditionally,
    /// A mark is taken away before the kernel has said that the address is down.
    ReleasesTooSoon,
    /// The kernel is told that it may answer for two margins longer than the core counts on.
    HoldsForLonger,
    /// What the neighbours say is not heeded.
    HeedsNoStranger,
}

impl Broken {
    pub(crate) const ALL: [Self; 6] = [
        Self::CountsFromTheAnswer,
        Self::WaitsForHalf,
        Self::TakesUnconditionally,
        Self::ReleasesTooSoon,
        Self::HoldsForLonger,
        Self::HeedsNoStranger,
    ];

    /// What the core hears.
    pub(super) fn hears(self, now: At, event: &mut Event) {
        match (self, event) {
            (
                Self::CountsFromTheAnswer,
                Event::Granted { sent, .. } | Event::KeptAlive { sent, .. } | Event::Committed { sent, .. },
            ) => *sent = now,
            (Self::WaitsForHalf, Event::Looked(Ok(snapshot))) => {
                snapshot.entries.iter_mut().for_each(halve);
            }
            (Self::WaitsForHalf, Event::Changes(changes)) => {
                for change in &mut changes.changes {
                    if let Change::Put(entry) = change {
                        halve(entry);
                    }
                }
            }
            (Self::HeedsNoStranger, Event::Answered { found, .. }) => *found = BTreeMap::new(),
            _ => {}
        }
    }

    /// What it does, and what it believes at once.
    pub(super) fn does(self, more: std::time::Duration, effects: &mut Vec<Effect>) -> VecDeque<Event> {
        let mut believed = VecDeque::new();
        for effect in effects {
            match (self, effect) {
                (Self::TakesUnconditionally, Effect::Commit { transaction, .. }) if is_claim(transaction) => {
                    // All but that this node takes part, and that the address is of the pool.
                    let mine = transaction.only_if.len() - 1;
                    let mut n = 0;
                    transaction.only_if.retain(|_| {
                        n += 1;
                        n == 1 || n == mine + 1
                    });
                }
                (Self::ReleasesTooSoon, Effect::Drop { address }) => believed.push_back(Event::Dropped {
                    address: *address,
                    result: Ok(()),
                }),
                (Self::HoldsForLonger, Effect::Take { until, .. } | Effect::Extend { until }) => {
                    *until = *until + more;
                }
                _ => {}
            }
        }
        believed
    }
}

fn is_claim(transaction: &Transaction) -> bool {
    let is = |act: &Act| matches!(act, Act::Put { key, .. } if key.ends_with("/marked"));
    transaction.then.iter().any(is)
}

fn halve(entry: &mut Entry) {
    if entry
        .key
        .strip_prefix(PREFIX)
        .is_some_and(|key| key.starts_with("ttl/"))
        && let Ok(ttl) = entry.value.parse::<u64>()
    {
        entry.value = (ttl / 2).to_string();
    }
}
