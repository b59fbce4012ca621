//! Our table as messages: pure, no socket.
//!
//! ```text
//! table inet io_fence {
//!     flags owner,persist
//!     set fenced_tcp { type inet_service; }          set allowed4 { type ipv4_addr; flags interval; }
//!     set fenced_udp { type inet_service; }          set allowed6 { type ipv6_addr; flags interval; }
//!     chain input {
//!         type filter hook input priority -310; policy accept;
//!         iifname "lo" accept
//!         ip saddr @allowed4 accept
//!         ip6 saddr @allowed6 accept
//!         tcp dport @fenced_tcp counter reject with tcp reset      # with `new` alone: of those that begin a connection
//!         udp dport @fenced_udp counter reject                     # port unreachable
//!     }
//!     chain output {                                               # with both `new` and `established`
//!         type filter hook output priority -310; policy accept;
//!         oifname "lo" accept
//!         ip daddr @allowed4 accept
//!         ip6 daddr @allowed6 accept
//!         tcp sport @fenced_tcp tcp flags & rst == 0 counter drop
//!         udp sport @fenced_udp counter drop
//!     }
//! }
//! ```
//!
//! `accept` ends our chains only: other tables decide on, as if ours were not there.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Bitwise, DataAttribute, Expressions, InetHookNumber, MetaKey, Register, SetElementAttribute,
    SetElementFlags, SetFlags, TableFlags,
};

use super::network::{bytes, ranges};
use super::nft::{Rules, TABLE};
use super::nft_messages::{
    Element, INET_SERVICE, IPV4_ADDR, IPV6_ADDR, Message, NF_ACCEPT, NF_DROP, NFPROTO_IPV4, NFPROTO_IPV6,
    NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, Place, compare, counter, element, lookup, meta,
    payload, verdict,
};
use super::ports::Ports;

/// Before connection tracking (-200) and all that others may have: what is rejected here is seen by nobody.
const PRIORITY: i32 = -310;

// What the crate has no names for (linux/netfilter/nf_tables.h).
const NFT_REJECT_TCP_RST: u32 = 1;
const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
const NFT_REJECT_ICMPX_PORT_UNREACH: u8 = 1;
const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_REJECT_ICMP_CODE: u16 = 2;
const IFNAMSIZ: usize = 16;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const TCP_RST: u8 = 0x04;
/// Of fin, syn, rst and ack, a packet that begins a connection has syn.
const TCP_KIND: u8 = 0x17;
const TCP_SYN: u8 = 0x02;

/// The sets that hold ports.
pub(super) const FENCED_TCP: &str = "fenced_tcp";
/// See [`FENCED_TCP`].
pub(super) const FENCED_UDP: &str = "fenced_udp";

/// Where all of it is.
pub(super) const HERE: Place<'static> = Place {
    family: NetfilterProtoFamily::Inet,
    table: TABLE,
};

/// The whole table; where there is one already, it goes in the same transaction.
pub(super) fn table(rules: &Rules, ports: &Ports, flags: TableFlags, replaces: bool) -> Vec<Message> {
    let mut all = Vec::new();
    if replaces {
        all.push(HERE.delete());
    }
    all.push(HERE.create(Some(flags)));
    all.push(HERE.set(1, FENCED_TCP, INET_SERVICE, SetFlags::empty()));
    all.push(HERE.set(2, FENCED_UDP, INET_SERVICE, SetFlags::empty()));
    all.push(HERE.set(3, "allowed4", IPV4_ADDR, SetFlags::Interval));
    all.push(HERE.set(4, "allowed6", IPV6_ADDR, SetFlags::Interval));
    all.extend(change(&Ports::default(), ports));
    for (name, v4) in [("allowed4", true), ("allowed6", false)] {
        let members = interval_elements(&ranges(&rules.allowed, v4), v4);
        if !members.is_empty() {
            all.push(HERE.put(name, members));
        }
    }
    let mut chains = vec![("input", InetHookNumber::LocalIn)];
    // Where new ones are let in, they are to be answered.
    if rules.new && rules.established {
        chains.push(("output", InetHookNumber::LocalOut));
    }
    for (name, hook) in chains {
        all.push(HERE.chain(name, hook, PRIORITY, None));
        let of_chain = if name == "input" { input(rules) } else { output() };
        all.extend(
            of_chain
                .into_iter()
                .map(|expressions| HERE.rule(name, expressions)),
        );
    }
    all
}

/// What makes the sets hold `to`, when they hold `from`.
pub(super) fn change(from: &Ports, to: &Ports) -> Vec<Message> {
    let (gone, new) = (from.without(to), to.without(from));
    let parts = [
        (FENCED_TCP, gone.tcp, false),
        (FENCED_UDP, gone.udp, false),
        (FENCED_TCP, new.tcp, true),
        (FENCED_UDP, new.udp, true),
    ];
    let parts = parts.into_iter().filter(|(_, ports, _)| !ports.is_empty());
    parts
        .map(|(set, ports, add)| {
            let members = ports
                .into_iter()
                .map(|port| element(port.to_be_bytes().to_vec(), None))
                .collect();
            if add {
                HERE.put(set, members)
            } else {
                HERE.take(set, members)
            }
        })
        .collect()
}

/// An interval set has the first address of each range, and the first one after it, as its end.
fn interval_elements(ranges: &[(u128, u128)], v4: bool) -> Vec<Element> {
    let most = if v4 { u128::from(u32::MAX) } else { u128::MAX };
    let mut members = Vec::new();
    for (first, last) in ranges {
        members.push(element(bytes(*first, v4), None));
        if *last < most {
            let end = SetElementAttribute::Flags(SetElementFlags::IntervalEnd);
            members.push(element(bytes(last + 1, v4), Some(end)));
        }
    }
    members
}

fn input(rules: &Rules) -> Vec<Vec<Expressions>> {
    let mut all = exempt(MetaKey::Iifname, 12, 8);
    if rules.new {
        let mut tcp = port_in(IPPROTO_TCP, 2, FENCED_TCP);
        if !rules.established {
            tcp.extend(tcp_flags(TCP_KIND, TCP_SYN));
        }
        tcp.extend([counter(), reject(NFT_REJECT_TCP_RST)]);
        all.push(tcp);
        let mut udp = port_in(IPPROTO_UDP, 2, FENCED_UDP);
        udp.extend([counter(), reject(NFT_REJECT_ICMPX_UNREACH)]);
        all.push(udp);
    }
    all
}

fn output() -> Vec<Vec<Expressions>> {
    let mut all = exempt(MetaKey::Oifname, 16, 24);
    // What ends a connection must get out; what acknowledges something on it must not.
    let mut tcp = port_in(IPPROTO_TCP, 0, FENCED_TCP);
    tcp.extend(tcp_flags(TCP_RST, 0));
    tcp.extend([counter(), verdict(NF_DROP)]);
    all.push(tcp);
    let mut udp = port_in(IPPROTO_UDP, 0, FENCED_UDP);
    udp.extend([counter(), verdict(NF_DROP)]);
    all.push(udp);
    all
}

/// Loopback, and the sources that are allowed, whose address is at `v4` or `v6` of the header.
fn exempt(interface: MetaKey, v4: u32, v6: u32) -> Vec<Vec<Expressions>> {
    let mut lo = b"lo".to_vec();
    lo.resize(IFNAMSIZ, 0);
    let allowed = |family: u8, offset, length, set: &str| {
        let mut all = vec![meta(MetaKey::Nfproto), compare(vec![family])];
        all.extend([
            payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length),
            lookup(set),
            verdict(NF_ACCEPT),
        ]);
        all
    };
    vec![
        vec![meta(interface), compare(lo), verdict(NF_ACCEPT)],
        allowed(NFPROTO_IPV4, v4, 4, "allowed4"),
        allowed(NFPROTO_IPV6, v6, 16, "allowed6"),
    ]
}

/// The port at `offset` of the header is one of `set`.
fn port_in(protocol: u8, offset: u32, set: &str) -> Vec<Expressions> {
    vec![
        meta(MetaKey::L4Proto),
        compare(vec![protocol]),
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2),
        lookup(set),
    ]
}

fn tcp_flags(mask: u8, value: u8) -> [Expressions; 3] {
    let bitwise = Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(1),
        Bitwise::Mask(DataAttribute::Value(vec![mask])),
        Bitwise::Xor(DataAttribute::Value(vec![0])),
    ]);
    [
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1),
        bitwise,
        compare(vec![value]),
    ]
}

fn reject(kind: u32) -> Expressions {
    let mut attributes = vec![DefaultNla::new(NFTA_REJECT_TYPE, kind.to_be_bytes().to_vec())];
    if kind == NFT_REJECT_ICMPX_UNREACH {
        attributes.push(DefaultNla::new(
            NFTA_REJECT_ICMP_CODE,
            vec![NFT_REJECT_ICMPX_PORT_UNREACH],
        ));
    }
    Expressions::Other {
        expression_type: "reject".to_owned(),
        attributes,
    }
}
