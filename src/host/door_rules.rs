//! The door as messages: pure, no socket.
//!
//! ```text
//! table inet io_vip {
//!     flags owner,persist
//!     set managed4 { type ipv4_addr; }     set live4 { type ipv4_addr; flags timeout; }
//!     set managed6 { type ipv6_addr; }     set live6 { type ipv6_addr; flags timeout; }
//!     set fuse { type mark; flags timeout; }
//!     chain prerouting {
//!         type filter hook prerouting priority -310; policy accept;
//!         ip daddr @managed4 ip daddr != @live4 counter drop
//!         ip6 daddr @managed6 ip6 daddr != @live6 counter drop
//!         icmpv6 type nd-neighbor-solicit icmpv6 taddr @managed6 icmpv6 taddr != @live6 counter drop
//!     }
//!     chain postrouting {
//!         type filter hook postrouting priority 310; policy accept;
//!         ip saddr @managed4 ip saddr != @live4 counter drop
//!         ip6 saddr @managed6 ip6 saddr != @live6 counter drop
//!         icmpv6 type nd-neighbor-advert icmpv6 taddr @managed6 icmpv6 taddr != @live6 counter drop
//!     }
//! }
//! table arp io_vip {                       # the same flags, managed4 and live4
//!     chain input  { type filter hook input priority -310;  arp daddr ip @managed4 arp daddr ip != @live4 counter drop }
//!     chain output { type filter hook output priority -310; arp saddr ip @managed4 arp saddr ip != @live4 counter drop }
//! }
//! table netdev io_vip {                    # the same flags, managed4 and live4; what packet sockets send passes here only
//!     chain egress { type filter hook egress device eth0 priority -310; arp saddr ip @managed4 arp saddr ip != @live4 counter drop }
//! }
//! ```
//!
//! Before all others on the way in, so that nobody translates the destination first (a container's published port would be served on);
//! after all others on the way out, so that a source that somebody translates is seen as it leaves. A packet that is forwarded passes both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_netfilter::NetfilterProtoFamily as Family;
use netlink_packet_netfilter::nftables::{
    DevHookNumber, Expressions, HookNumber, InetHookNumber, MetaKey, SetElementAttribute, SetFlags,
    TableFlags,
};

use super::nft_messages::{
    Element, IPV4_ADDR, IPV6_ADDR, MARK, Message, NF_DROP, NFPROTO_IPV4, NFPROTO_IPV6,
    NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, Place, compare, counter, element, lookup,
    lookup_not, meta, payload, verdict,
};

/// Before connection tracking (-200) and translation of destinations (-100).
const FIRST: i32 = -310;
/// After translation of sources (100).
const LAST: i32 = 310;
const FUSE: &str = "fuse";
/// Elements of one message: what a message says is at most 64 KB long.
pub(super) const AT_ONCE: usize = 128;
const NF_ARP_IN: u32 = 0;
const NF_ARP_OUT: u32 = 1;
const ETH_P_ARP: u16 = 0x0806;
const IPPROTO_ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// How long an element lives that is taken away in the transaction that puts it there.
const STEP: Duration = Duration::from_secs(1);

/// What the kernel's sets hold, or shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holds {
    /// What is ours to open and to shut.
    pub(super) managed: BTreeSet<IpAddr>,
    /// What is open, and for how long.
    pub(super) live: BTreeMap<IpAddr, Duration>,
}

/// The tables of a door.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) table: String,
    /// Where claims by packet sockets are held, too.
    pub(super) egress_of: Option<String>,
}

/// The sets of one family of addresses.
pub(super) fn sets(v4: bool) -> (&'static str, &'static str) {
    if v4 {
        ("managed4", "live4")
    } else {
        ("managed6", "live6")
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// One whose time is over when the kernel's is; kernels before 6.12 take less than a tick of theirs for no timeout at all.
fn mortal(key: Vec<u8>, left: Duration) -> Element {
    let milliseconds = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    element(key, Some(SetElementAttribute::Timeout(milliseconds)))
}

impl Frame {
    /// The table that the others go along with.
    pub(super) fn main(&self) -> Place<'_> {
        self.place(Family::Inet)
    }

    /// The one for ARP.
    pub(super) fn arp(&self) -> Place<'_> {
        self.place(Family::ARP)
    }

    /// The one for what packet sockets send.
    pub(super) fn egress(&self) -> Place<'_> {
        self.place(Family::NetDev)
    }

    fn place(&self, family: Family) -> Place<'_> {
        Place {
            family,
            table: &self.table,
        }
    }

    /// All of the tables, and whether they hold IPv6 addresses.
    pub(super) fn places(&self) -> Vec<(Place<'_>, bool)> {
        let mut all = vec![(self.main(), true), (self.arp(), false)];
        if self.egress_of.is_some() {
            all.push((self.egress(), false));
        }
        all
    }

    /// The whole, instead of what there is.
    pub(super) fn build(&self, flags: TableFlags, holds: &Holds) -> Vec<Message> {
        let mut all = Vec::new();
        for (place, v6) in self.places() {
            all.extend([place.create(None), place.delete(), place.create(Some(flags))]);
            all.push(place.set(1, "managed4", IPV4_ADDR, SetFlags::empty()));
            all.push(place.set(2, "live4", IPV4_ADDR, SetFlags::Timeout));
            if v6 {
                all.push(place.set(3, "managed6", IPV6_ADDR, SetFlags::empty()));
                all.push(place.set(4, "live6", IPV6_ADDR, SetFlags::Timeout));
                all.push(place.set(5, FUSE, MARK, SetFlags::Timeout));
            }
        }
        all.extend(self.manage(&holds.managed));
        all.extend(self.each(holds.live.keys(), |place, v4, keys| {
            let element = |address: &IpAddr| {
                let left = holds.live.get(address).copied().unwrap_or_default();
                mortal(octets(*address), left)
            };
            vec![place.put(sets(v4).1, keys.iter().map(element).collect())]
        }));
        let mut chain = |place: Place<'_>, name, hook, priority, device, rules: Vec<Vec<Expressions>>| {
            all.push(place.chain(name, hook, priority, device));
            all.extend(rules.into_iter().map(|rule| place.rule(name, rule)));
        };
        let (main, arp) = (self.main(), self.arp());
        let hook = |hook: InetHookNumber| HookNumber::from(hook);
        let before = ip(16, 24, NEIGHBOUR_SOLICITATION);
        chain(
            main,
            "prerouting",
            hook(InetHookNumber::PreRouting),
            FIRST,
            None,
            before,
        );
        let after = ip(12, 8, NEIGHBOUR_ADVERTISEMENT);
        chain(
            main,
            "postrouting",
            hook(InetHookNumber::PostRouting),
            LAST,
            None,
            after,
        );
        // Of an ARP packet whose hardware addresses have six bytes.
        let (target, sender) = (|| network(24, 4), || network(14, 4));
        let asked = vec![shut(Vec::new(), target(), true)];
        chain(arp, "input", HookNumber::Other(NF_ARP_IN), FIRST, None, asked);
        let said = vec![shut(Vec::new(), sender(), true)];
        chain(arp, "output", HookNumber::Other(NF_ARP_OUT), FIRST, None, said);
        if let Some(device) = self.egress_of.as_deref() {
            let is_arp = vec![
                meta(MetaKey::EtherTypeProtocol),
                compare(ETH_P_ARP.to_be_bytes().to_vec()),
            ];
            let claimed = vec![shut(is_arp, sender(), true)];
            let egress = DevHookNumber::Egress.into();
            chain(self.egress(), "egress", egress, FIRST, Some(device), claimed);
        }
        all
    }

    /// Takes tables away, be they there or not.
    pub(super) fn delete(&self, places: &[Place<'_>]) -> Vec<Message> {
        let gone = places.iter().map(|place| [place.create(None), place.delete()]);
        gone.flatten().collect()
    }

    /// Messages for the sets of each family and table that `addresses` are in.
    fn each<'a>(
        &self,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
        messages: impl Fn(Place<'_>, bool, &[IpAddr]) -> Vec<Message>,
    ) -> Vec<Message> {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(|a| a.is_ipv4());
        let mut all = Vec::new();
        for (place, has_v6) in self.places() {
            for some in v4.chunks(AT_ONCE) {
                all.extend(messages(place, true, some));
            }
            for some in v6.chunks(AT_ONCE).filter(|_| has_v6) {
                all.extend(messages(place, false, some));
            }
        }
        all
    }

    fn manage(&self, addresses: &BTreeSet<IpAddr>) -> Vec<Message> {
        self.each(addresses, |place, v4, keys| {
            let members = keys.iter().map(|key| element(octets(*key), None)).collect();
            vec![place.put(sets(v4).0, members)]
        })
    }

    /// Opens for `left`, whatever was open for how long. To put, take and put is what all kernels understand: to put an element that is there
    /// changes its timeout from 6.12 on only, and to take one that is not there is an error.
    pub(super) fn admit(&self, addresses: &BTreeSet<IpAddr>, left: Duration) -> Vec<Message> {
        let mut all = self.manage(addresses);
        all.extend(self.each(addresses, |place, v4, keys| {
            let live = sets(v4).1;
            let members = || keys.iter().map(|key| mortal(octets(*key), left)).collect();
            let gone = keys.iter().map(|key| element(octets(*key), None)).collect();
            vec![
                place.put(live, members()),
                place.take(live, gone),
                place.put(live, members()),
            ]
        }));
        all
    }

    /// Shuts; the addresses stay ours.
    pub(super) fn close(&self, addresses: &BTreeSet<IpAddr>) -> Vec<Message> {
        let mut all = self.manage(addresses);
        all.extend(self.each(addresses, |place, v4, keys| shorten(place, sets(v4).1, keys)));
        all
    }

    /// Has nothing to do with them any more.
    pub(super) fn forget(&self, addresses: &BTreeSet<IpAddr>) -> Vec<Message> {
        self.each(addresses, |place, v4, keys| {
            let (managed, live) = sets(v4);
            let members = || keys.iter().map(|key| element(octets(*key), None)).collect();
            let mut all = vec![place.put(managed, members()), place.take(managed, members())];
            all.extend(shorten(place, live, keys));
            all
        })
    }

    /// Lights a fuse.
    pub(super) fn arm(&self, mark: u32, left: Duration) -> Message {
        self.main()
            .put(FUSE, vec![mortal(mark.to_ne_bytes().to_vec(), left)])
    }

    /// Puts a fuse out: a transaction that begins with it fails as a whole when it has burnt down.
    pub(super) fn defuse(&self, mark: u32) -> Message {
        self.main()
            .take(FUSE, vec![element(mark.to_ne_bytes().to_vec(), None)])
    }
}

/// Nothing of `keys` is in the set afterwards, be it there or not.
fn shorten(place: Place<'_>, set: &str, keys: &[IpAddr]) -> Vec<Message> {
    let put = keys.iter().map(|key| mortal(octets(*key), STEP)).collect();
    let take = keys.iter().map(|key| element(octets(*key), None)).collect();
    vec![place.put(set, put), place.take(set, take)]
}

fn network(offset: u32, length: u32) -> Expressions {
    payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length)
}

/// Drops what has an address of ours there that is not alive, where `only` is true.
fn shut(mut only: Vec<Expressions>, address: Expressions, v4: bool) -> Vec<Expressions> {
    let (managed, live) = sets(v4);
    only.extend([
        address,
        lookup(managed),
        lookup_not(live),
        counter(),
        verdict(NF_DROP),
    ]);
    only
}

/// What is dropped of IP: by the address at `v4` or `v6` of its header, and by the target of this message of neighbour discovery.
fn ip(v4: u32, v6: u32, neighbour: u8) -> Vec<Vec<Expressions>> {
    let family = |number: u8| vec![meta(MetaKey::Nfproto), compare(vec![number])];
    let mut discovery = family(NFPROTO_IPV6);
    discovery.extend([
        meta(MetaKey::L4Proto),
        compare(vec![IPPROTO_ICMPV6]),
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1),
        compare(vec![neighbour]),
    ]);
    vec![
        shut(family(NFPROTO_IPV4), network(v4, 4), true),
        shut(family(NFPROTO_IPV6), network(v6, 16), false),
        shut(discovery, payload(NFT_PAYLOAD_TRANSPORT_HEADER, 8, 16), false),
    ]
}
