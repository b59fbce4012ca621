//! Who should hold which address: the same answer on every node that sees the same.
//!
//! **Promise.** An address whose preferred node takes part is that node's. The others are spread as evenly as preferences and what nodes cannot
//! hold allow (10 over 3 is 4, 3 and 3); of all the ways to do that, one that moves the fewest away from who holds them now, where no node is unable
//! to hold what another one can. Applied again to its own answer, it moves nothing.
//!
//! A node that could not put an address on its interface, though another one can, is *weak*: it keeps what works, but is given nothing new while
//! a node that is not weak can have it. When it would try again, it is *untried* with that address: it gets it when no other node can have it, and nobody
//! gives it up for that, whatever the spread and the operator's wishes of before. A broken host would otherwise be offered one address after the other, and each would be gone for a moment.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// What is to be shared, and among whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question<'a> {
    /// All addresses that somebody should hold.
    pub pool: BTreeSet<IpAddr>,
    /// The nodes that take part.
    pub nodes: BTreeSet<&'a str>,
    /// Who holds what now. A node that does not take part holds nothing.
    pub owners: BTreeMap<IpAddr, &'a str>,
    /// Where an operator wants an address.
    pub preferred: BTreeMap<IpAddr, &'a str>,
    /// What could not be put on whose interface.
    pub cannot: BTreeSet<(&'a str, IpAddr)>,
    /// What could not, and might by now.
    pub untried: BTreeSet<(&'a str, IpAddr)>,
}

/// An address, while it is decided whose it is.
struct Address {
    holder: Option<usize>,
    /// Who holds it now.
    owner: Option<usize>,
    /// Where it is because an operator wants that.
    pinned: bool,
    /// Who may get it.
    allowed: Vec<bool>,
}

/// Who should hold each address. One that no node can hold is not in it.
#[must_use]
pub fn share<'a>(question: &Question<'a>) -> BTreeMap<IpAddr, &'a str> {
    let names: Vec<&'a str> = question.nodes.iter().copied().collect();
    if names.is_empty() {
        return BTreeMap::new();
    }
    let mut spread = Spread::new(question, &names);
    spread.place_the_loose();
    while spread.improve() {}
    let of = |(address, decided): (&IpAddr, &Address)| Some((*address, *names.get(decided.holder?)?));
    question
        .pool
        .iter()
        .zip(&spread.addresses)
        .filter_map(of)
        .collect()
}

struct Spread {
    /// In numeric order.
    addresses: Vec<Address>,
    /// How many each node has.
    loads: Vec<usize>,
}

impl Spread {
    fn new(question: &Question<'_>, names: &[&str]) -> Self {
        let index: BTreeMap<&str, usize> = names.iter().enumerate().map(|(n, name)| (*name, n)).collect();
        let can = |node: &str, address: IpAddr| !question.cannot.contains(&(node, address));
        let somebody_can = |address| names.iter().any(|node| can(node, address));
        let weak: Vec<bool> = names
            .iter()
            .map(|node| {
                question
                    .pool
                    .iter()
                    .any(|address| !can(node, *address) && somebody_can(*address))
            })
            .collect();
        let mut loads = vec![0; names.len()];
        let addresses = question
            .pool
            .iter()
            .map(|address| {
                let able: Vec<bool> = names.iter().map(|node| can(node, *address)).collect();
                let able_of = |name: Option<&&str>| {
                    let node = *index.get(name?)?;
                    able.get(node)?.then_some(node)
                };
                let owner = able_of(question.owners.get(address));
                let untried: Vec<bool> = names
                    .iter()
                    .map(|node| question.untried.contains(&(*node, *address)))
                    .collect();
                // How good each is for it. Only the best get it, and who has it may keep it.
                let goods: Vec<u8> = weak
                    .iter()
                    .zip(&untried)
                    .map(|(weak, untried)| u8::from(!untried) * 2 + u8::from(!weak))
                    .collect();
                let best = goods.iter().zip(&able).filter(|(_, able)| **able);
                let best = best.map(|(good, _)| *good).max();
                let allowed: Vec<bool> = able
                    .iter()
                    .zip(&goods)
                    .enumerate()
                    .map(|(node, (able, good))| *able && (Some(*good) == best || owner == Some(node)))
                    .collect();
                let wanted = able_of(question.preferred.get(address))
                    .filter(|node| untried.get(*node) != Some(&true) || allowed.get(*node) == Some(&true));
                let holder = wanted.or(owner);
                if let Some(load) = holder.and_then(|node| loads.get_mut(node)) {
                    *load += 1;
                }
                Address {
                    holder,
                    owner,
                    pinned: wanted.is_some(),
                    allowed,
                }
            })
            .collect();
        Self { addresses, loads }
    }

    fn load(&self, node: usize) -> usize {
        self.loads.get(node).copied().unwrap_or(0)
    }

    fn give(&mut self, address: usize, to: usize) {
        let Some(address) = self.addresses.get_mut(address) else {
            return;
        };
        if let Some(load) = address.holder.and_then(|from| self.loads.get_mut(from)) {
            *load -= 1;
        }
        address.holder = Some(to);
        if let Some(load) = self.loads.get_mut(to) {
            *load += 1;
        }
    }

    /// Whoever has the least gets what nobody has. How many each gets is worked out first, and only then which: the first node the first of them, and so
    /// on. So what some have claimed already changes nothing for those who have not yet.
    fn place_the_loose(&mut self) {
        let loose: Vec<usize> = (0..self.addresses.len())
            .filter(|at| self.is_loose(*at))
            .collect();
        let mut loads = self.loads.clone();
        for at in &loose {
            if let Some(load) = self.least(&loads, *at).and_then(|node| loads.get_mut(node)) {
                *load += 1;
            }
        }
        for (node, wanted) in loads.into_iter().enumerate() {
            for at in &loose {
                if self.load(node) < wanted && self.is_loose(*at) && self.may(node, *at) {
                    self.give(*at, node);
                }
            }
        }
        // Where not all may have all, some are left.
        for at in loose {
            if self.is_loose(at)
                && let Some(node) = self.least(&self.loads, at)
            {
                self.give(at, node);
            }
        }
    }

    fn is_loose(&self, address: usize) -> bool {
        self.addresses
            .get(address)
            .is_some_and(|address| address.holder.is_none())
    }

    fn may(&self, node: usize, address: usize) -> bool {
        let address = self.addresses.get(address);
        address.and_then(|address| address.allowed.get(node)) == Some(&true)
    }

    /// Who may have it, and has the least.
    fn least(&self, loads: &[usize], address: usize) -> Option<usize> {
        let able = loads
            .iter()
            .enumerate()
            .filter(|(node, _)| self.may(*node, address));
        able.min_by_key(|(node, load)| (**load, *node))
            .map(|(node, _)| node)
    }

    /// Moves along one shortest path from a node that has at least two more than the node at its end, if there is one. When there is none
    /// the spread is as even as it can be (Harvey, Ladner, Lovász and Tamir, Semi-matchings for bipartite graphs, 2003). Each call makes the sum of
    /// squares smaller, so that they come to an end.
    fn improve(&mut self) -> bool {
        let mut sources: Vec<usize> = (0..self.loads.len()).collect();
        sources.sort_by_key(|node| (std::cmp::Reverse(self.load(*node)), *node));
        let least = self.loads.iter().copied().min().unwrap_or(0);
        for source in sources {
            if self.load(source) < least + 2 {
                return false;
            }
            if let Some(path) = self.path_from(source) {
                for (address, to) in path {
                    self.give(address, to);
                }
                return true;
            }
        }
        false
    }

    /// The moves that take one away from `source`: which address to which node.
    fn path_from(&self, source: usize) -> Option<Vec<(usize, usize)>> {
        // By which move a node is reached, and from where.
        let mut reached: Vec<Option<(usize, usize)>> = vec![None; self.loads.len()];
        let mut next = VecDeque::from([(source, 0u32)]);
        let mut best: Option<(usize, u32, usize)> = None;
        while let Some((from, far)) = next.pop_front() {
            for (to, at) in self.moves(from) {
                if to == source || reached.get(to).is_none_or(Option::is_some) {
                    continue;
                }
                if let Some(slot) = reached.get_mut(to) {
                    *slot = Some((from, at));
                }
                let candidate = (self.load(to), far + 1, to);
                if best.is_none_or(|best| candidate < best) {
                    best = Some(candidate);
                }
                next.push_back((to, far + 1));
            }
        }
        let (load, _, end) = best?;
        if load + 2 > self.load(source) {
            return None;
        }
        let mut path = Vec::new();
        let mut at = end;
        while at != source {
            let (from, address) = reached.get(at).copied().flatten()?;
            path.push((address, at));
            at = from;
        }
        Some(path)
    }

    /// Where something of `from` may go, and what is best sent there: what it does not hold yet, then what is last in numeric order.
    fn moves(&self, from: usize) -> Vec<(usize, usize)> {
        let mut sent: Vec<Option<(bool, usize)>> = vec![None; self.loads.len()];
        for (at, address) in self.addresses.iter().enumerate() {
            if address.pinned || address.holder != Some(from) {
                continue;
            }
            let candidate = Some((address.owner != Some(from), at));
            for (sent, allowed) in sent.iter_mut().zip(&address.allowed) {
                if *allowed && candidate > *sent {
                    *sent = candidate;
                }
            }
        }
        let known = |(to, sent): (usize, Option<(bool, usize)>)| Some((to, sent?.1));
        sent.into_iter()
            .enumerate()
            .filter(|(to, _)| *to != from)
            .filter_map(known)
            .collect()
    }
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
