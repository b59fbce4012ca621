//! Ports of this host.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Ports, by protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// TCP.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tcp: BTreeSet<u16>,
    /// UDP.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub udp: BTreeSet<u16>,
}

impl Ports {
    /// These.
    pub fn new(tcp: impl IntoIterator<Item = u16>, udp: impl IntoIterator<Item = u16>) -> Self {
        Self {
            tcp: tcp.into_iter().collect(),
            udp: udp.into_iter().collect(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    /// Adds those of `other`.
    pub fn add(&mut self, other: &Self) {
        self.tcp.extend(&other.tcp);
        self.udp.extend(&other.udp);
    }

    /// Those that `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            tcp: &self.tcp - &other.tcp,
            udp: &self.udp - &other.udp,
        }
    }

    /// Those that `other` has, too.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Self {
        Self {
            tcp: &self.tcp & &other.tcp,
            udp: &self.udp & &other.udp,
        }
    }

    /// Whether `other` has all of these.
    pub fn all_in(&self, other: &Self) -> bool {
        self.tcp.is_subset(&other.tcp) && self.udp.is_subset(&other.udp)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |ports: &BTreeSet<u16>| {
            let texts: Vec<_> = ports.iter().map(ToString::to_string).collect();
            texts.join(",")
        };
        match (self.tcp.is_empty(), self.udp.is_empty()) {
            (true, true) => f.write_str("none"),
            (false, true) => write!(f, "tcp {}", list(&self.tcp)),
            (true, false) => write!(f, "udp {}", list(&self.udp)),
            (false, false) => write!(f, "tcp {} udp {}", list(&self.tcp), list(&self.udp)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_sets_by_protocol() {
        let mut all = Ports::new([5432, 6379], []);
        all.add(&Ports::new([5432], [53]));
        assert_eq!(all.to_string(), "tcp 5432,6379 udp 53");
        assert_eq!(all.without(&Ports::new([53], [53])).to_string(), "tcp 5432,6379");
        assert_eq!(all.shared_with(&Ports::new([6379], [])).to_string(), "tcp 6379");
        assert!(Ports::new([], [53]).all_in(&all) && !Ports::new([53], []).all_in(&all));
    }
}
