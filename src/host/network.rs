//! Networks as people write them, as ranges of addresses, and the addresses of this host.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no network; `Display` says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no network: {why}; write for example 10.0.0.9, 10.0.0.0/24 or fd00::/8")]
pub struct NetworkError {
    text: String,
    why: String,
}

/// The bits of `address`, at the low end.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Network {
    /// First and last address, as bits at the low end.
    fn range(self) -> (u128, u128) {
        let free = width(self.address) - self.prefix;
        let mask = 1u128
            .checked_shl(u32::from(free))
            .map_or(u128::MAX, |one| one - 1);
        (bits(self.address) & !mask, bits(self.address) | mask)
    }

    /// Whether `address` is one of it. An IPv4 address in IPv6's clothes is an IPv4 address.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let (first, last) = self.range();
        address.is_ipv4() == self.address.is_ipv4() && (first..=last).contains(&bits(address))
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let fault = |why: String| NetworkError {
            text: text.to_owned(),
            why,
        };
        let (address, prefix) = text.trim().split_once('/').unwrap_or((text.trim(), ""));
        let address: IpAddr = address
            .parse()
            .map_err(|_| fault(format!("{address:?} is no address")))?;
        let width = width(address);
        let prefix = match prefix {
            "" if !text.contains('/') => width,
            prefix => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= width)
                .ok_or_else(|| fault(format!("its prefix is none from 0 to {width}")))?,
        };
        let network = Self { address, prefix };
        let (first, _) = network.range();
        if first != bits(address) {
            // Whoever writes 10.0.0.9/8 means one of two things, and they differ by sixteen million hosts.
            return Err(fault("it has bits that its prefix does not cover".to_owned()));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// First and last address of each range, of one family, in order, with no two that touch: what an interval set of nftables takes.
pub(super) fn ranges(networks: &[Network], v4: bool) -> Vec<(u128, u128)> {
    let mut all: Vec<_> = networks
        .iter()
        .filter(|network| network.address.is_ipv4() == v4)
        .map(|network| network.range())
        .collect();
    all.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in all {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The bytes of an address, in the order of the network.
pub(super) fn bytes(bits: u128, v4: bool) -> Vec<u8> {
    if v4 {
        let low = u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(u32::MAX);
        Ipv4Addr::from(low).octets().to_vec()
    } else {
        Ipv6Addr::from(bits).octets().to_vec()
    }
}

/// The addresses that this host has now: what comes from them has not left it. Asked of the kernel.
pub fn local_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let address = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    interfaces
        .filter_map(|interface| address(interface.address?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_as_people_write_them() {
        for (text, shown, inside, outside) in [
            ("10.0.0.9", "10.0.0.9/32", "10.0.0.9", "10.0.0.8"),
            ("10.0.0.0/24", "10.0.0.0/24", "::ffff:10.0.0.255", "10.0.1.0"),
            ("0.0.0.0/0", "0.0.0.0/0", "255.255.255.255", "::1"),
            ("fd00::/8", "fd00::/8", "fdff::1", "fe00::"),
            ("::/0", "::/0", "ffff::1", "1.2.3.4"),
        ] {
            assert_eq!(network(text).to_string(), shown);
            assert!(network(text).contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(
                !network(text).contains(outside.parse().unwrap()),
                "{text} {outside}"
            );
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.9/8", "db/8", "fd00::/129"] {
            let error = wrong.parse::<Network>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{wrong:?}")) && error.contains("write for example"),
                "{error}"
            );
        }
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let all = [
            "10.0.0.0/25",
            "10.0.0.128/25",
            "10.0.0.9",
            "10.0.2.0/24",
            "fd00::1",
        ]
        .map(network);
        assert_eq!(
            ranges(&all, true),
            [(0x0a00_0000, 0x0a00_00ff), (0x0a00_0200, 0x0a00_02ff)]
        );
        assert_eq!(ranges(&all, false).len(), 1);
        assert_eq!(ranges(&[network("::/0")], false), [(0, u128::MAX)]);
    }

    #[test]
    fn this_host_knows_its_own_loopback() {
        assert!(local_addresses().iter().any(IpAddr::is_loopback));
    }
}
