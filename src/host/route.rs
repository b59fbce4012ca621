//! Addresses and interfaces as messages of rtnetlink(7): pure, no socket.
//!
//! By the attributes of netlink-packet-core alone. The crates for routes decode every attribute of an interface, and refuse it whole for one that
//! they know differently than the kernel at hand; of all those we need three.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NlasIterator};

use super::netlink::{HEADER, NLM_F_ACK, NLM_F_DUMP, number, request};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
/// Nobody is asked whether somebody has it already.
pub(super) const IFA_F_NODAD: u32 = 0x02;
/// It makes no route to its network.
pub(super) const IFA_F_NOPREFIXROUTE: u32 = 0x200;
// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_EVENT: u16 = 44;
const IFLA_EVENT_BONDING_FAILOVER: u32 = 3;
const IFLA_EVENT_NOTIFY_PEERS: u32 = 4;
const ARPHRD_ETHER: u16 = 1;

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
    pub(super) flags: u32,
    /// IPv4 only.
    pub(super) label: Option<String>,
    /// Who put it there; none before Linux 5.18, and where nobody said.
    pub(super) protocol: Option<u8>,
    /// Seconds that it is there for.
    pub(super) valid: u32,
    /// Seconds that it is chosen as a source for.
    pub(super) preferred: u32,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number: another one, when it was made anew.
    pub index: u32,
    /// Whether it is up, and has a carrier.
    pub is_up: bool,
    /// Its hardware address, where neighbours find it by one of six bytes.
    pub hardware: Option<[u8; 6]>,
    pub(super) name: String,
    pub(super) peers_changed: bool,
}

impl Link {
    /// What the kernel calls it. An interface can be found by other names, too (`ip link property`).
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What a message tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Address(Address),
    AddressGone(Address),
    Link(Link),
    LinkGone(Link),
}

fn message(kind: u16, flags: u16, sequence: u32, header: &[u8], attributes: &[DefaultNla]) -> Vec<u8> {
    let mut body = header.to_vec();
    body.resize(header.len() + attributes.buffer_len(), 0);
    if let Some(room) = body.get_mut(header.len()..) {
        attributes.emit(room);
    }
    request(kind, flags, sequence, &body)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

impl Address {
    /// `struct ifaddrmsg`
    fn header(&self) -> Vec<u8> {
        let family = if self.address.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let mut out = vec![u8::try_from(family).unwrap_or_default(), self.prefix, 0, 0];
        out.extend(self.index.to_ne_bytes());
        out
    }

    fn identity(&self) -> Vec<DefaultNla> {
        let mut all = vec![
            DefaultNla::new(IFA_LOCAL, octets(self.address)),
            DefaultNla::new(IFA_ADDRESS, octets(self.address)),
        ];
        all.extend(
            self.label
                .as_deref()
                .map(|label| DefaultNla::new(IFA_LABEL, text(label))),
        );
        all
    }

    fn put(&self, how: u16, sequence: u32) -> Vec<u8> {
        let mut all = self.identity();
        all.push(DefaultNla::new(IFA_FLAGS, self.flags.to_ne_bytes().to_vec()));
        // `struct ifa_cacheinfo`; the kernel fills in when it was made and changed.
        let times = [self.preferred, self.valid, 0, 0].map(u32::to_ne_bytes);
        all.push(DefaultNla::new(IFA_CACHEINFO, times.concat()));
        all.extend(
            self.protocol
                .map(|protocol| DefaultNla::new(IFA_PROTO, vec![protocol])),
        );
        message(
            RTM_NEWADDR,
            NLM_F_ACK | NLM_F_CREATE | how,
            sequence,
            &self.header(),
            &all,
        )
    }

    /// Puts it there, unless it is there already (EEXIST).
    pub(super) fn add(&self, sequence: u32) -> Vec<u8> {
        self.put(NLM_F_EXCL, sequence)
    }

    /// Gives it these times, and puts it there where it is not.
    pub(super) fn replace(&self, sequence: u32) -> Vec<u8> {
        self.put(NLM_F_REPLACE, sequence)
    }

    /// Takes it away: the one with this label and prefix, and no other.
    pub(super) fn delete(&self, sequence: u32) -> Vec<u8> {
        message(RTM_DELADDR, NLM_F_ACK, sequence, &self.header(), &self.identity())
    }

    fn read(body: &[u8]) -> Option<Self> {
        let mut found = Self {
            index: number(body, 4)?,
            address: IpAddr::from([0; 4]),
            prefix: *body.get(1)?,
            flags: u32::from(*body.get(2)?),
            label: None,
            protocol: None,
            valid: u32::MAX,
            preferred: u32::MAX,
        };
        let (mut local, mut peer) = (None, None);
        for attribute in attributes(body.get(8..)?) {
            let value = attribute.value.as_slice();
            match attribute.kind {
                IFA_ADDRESS => peer = address(value),
                IFA_LOCAL => local = address(value),
                IFA_LABEL => found.label = Some(read_text(value)),
                IFA_FLAGS => found.flags = number(value, 0)?,
                IFA_CACHEINFO => (found.preferred, found.valid) = (number(value, 0)?, number(value, 4)?),
                IFA_PROTO => found.protocol = value.first().copied(),
                _ => {}
            }
        }
        // With a peer, as a point-to-point interface has, the other one is the peer's.
        found.address = local.or(peer)?;
        Some(found)
    }
}

impl Link {
    fn read(body: &[u8]) -> Option<Self> {
        const UP: u32 = (libc::IFF_UP | libc::IFF_RUNNING).cast_unsigned();
        const NO_NEIGHBOURS: u32 = (libc::IFF_LOOPBACK | libc::IFF_NOARP).cast_unsigned();
        let kind = u16::from_ne_bytes(*body.get(2..)?.first_chunk()?);
        let flags = number(body, 8)?;
        let mut found = Self {
            index: number(body, 4)?,
            is_up: flags & UP == UP,
            hardware: None,
            name: String::new(),
            peers_changed: false,
        };
        for attribute in attributes(body.get(16..)?) {
            let value = attribute.value.as_slice();
            match attribute.kind {
                IFLA_ADDRESS if kind == ARPHRD_ETHER && flags & NO_NEIGHBOURS == 0 => {
                    found.hardware = value.try_into().ok();
                }
                IFLA_IFNAME => found.name = read_text(value),
                IFLA_EVENT => {
                    found.peers_changed = matches!(
                        number(value, 0),
                        Some(IFLA_EVENT_BONDING_FAILOVER | IFLA_EVENT_NOTIFY_PEERS)
                    );
                }
                _ => {}
            }
        }
        Some(found)
    }
}

struct Attribute {
    kind: u16,
    value: Vec<u8>,
}

/// Those that can be read, up to the first one that cannot.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = Attribute> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|found| Attribute {
            kind: found.kind(),
            value: found.value().to_vec(),
        })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn read_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// All addresses of all interfaces are in the answer.
pub(super) fn list_addresses(sequence: u32) -> Vec<u8> {
    // AF_UNSPEC: of both families.
    message(RTM_GETADDR, NLM_F_DUMP, sequence, &[0; 8], &[])
}

/// The interface of that name is in the answer.
pub(super) fn get_link(name: &str, sequence: u32) -> Vec<u8> {
    let attributes = [DefaultNla::new(IFLA_IFNAME, text(name))];
    message(RTM_GETLINK, 0, sequence, &[0; 16], &attributes)
}

/// What a whole message tells of, if it is of that.
pub(super) fn told(whole: &[u8]) -> Option<Told> {
    let kind = u16::from_ne_bytes(*whole.get(4..)?.first_chunk()?);
    let body = whole.get(HEADER..)?;
    match kind {
        RTM_NEWADDR => Address::read(body).map(Told::Address),
        RTM_DELADDR => Address::read(body).map(Told::AddressGone),
        RTM_NEWLINK => Link::read(body).map(Told::Link),
        RTM_DELLINK => Link::read(body).map(Told::LinkGone),
        _ => None,
    }
}
