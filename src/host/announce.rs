//! Tells the neighbours which hardware address an address is at now: gratuitous ARP, and unsolicited neighbour advertisements.
//!
//! **Promise.** Each is sent in the forms that neighbours listen to. Nothing waits here. Where neighbours find nobody by a hardware address of six bytes
//! (loopback, tunnels), nothing is sent.
//!
//! **Not promised.** That anybody hears it: nobody answers, so it should be said more than once. A neighbour that has missed it asks again when its own entry is old, after a
//! minute or so. Whether we hold the address is not looked at here: [`super::Door`] lets no claim out of what is not live, and then this is an error.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::route::Link;

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IP: u16 = 0x0800;
const ARPHRD_ETHER: u16 = 1;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// Of a neighbour advertisement: what is known otherwise is wrong.
const OVERRIDE: u8 = 0x20;
/// The same: it forwards packets.
const ROUTER: u8 = 0x80;
/// From further away they are not taken (RFC 4861, 7.1.2).
const HOPS: u32 = 255;

/// ARP for an address that has moved to `hardware`: as a request, which most listen to, and as a reply, which the others do (RFC 5227, 3).
fn arp(address: Ipv4Addr, hardware: [u8; 6]) -> [Vec<u8>; 2] {
    // The field has no meaning in a request; in a reply it is the one to remember (RFC 5944, 4.6).
    [(REQUEST, [0; 6]), (REPLY, hardware)].map(|(operation, target)| {
        let mut out = Vec::with_capacity(28);
        out.extend(ARPHRD_ETHER.to_be_bytes());
        out.extend(ETH_P_IP.to_be_bytes());
        out.extend([6, 4]);
        out.extend(operation.to_be_bytes());
        out.extend(hardware);
        out.extend(address.octets());
        out.extend(target);
        out.extend(address.octets());
        out
    })
}

/// A neighbour advertisement for an address that has moved to `hardware` (RFC 4861, 4.4 and 7.2.6). The kernel fills in the checksum.
pub(super) fn advertisement(address: Ipv6Addr, hardware: [u8; 6], is_router: bool) -> Vec<u8> {
    let flags = OVERRIDE | if is_router { ROUTER } else { 0 };
    let mut out = Vec::with_capacity(32);
    out.extend([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    out.extend(address.octets());
    // Its length is counted in units of eight bytes.
    out.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    out.extend(hardware);
    out
}

/// Tells neighbours. It has one packet socket for all its life: the kernel takes ten milliseconds and more to close one.
pub struct Announcer {
    arp: Socket,
}

impl Announcer {
    /// Opens the way to them; nothing is sent.
    ///
    /// # Errors
    /// When we may not (CAP_NET_RAW).
    pub fn open() -> io::Result<Self> {
        // With no protocol it receives nothing.
        let arp = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)?;
        Ok(Self { arp })
    }

    /// Tells the neighbours on `link` that these are here. All are told, whatever happens to one of them.
    ///
    /// # Errors
    /// The first one: the interface is down, the address is on none, or the door is shut.
    pub fn announce(&self, link: &Link, addresses: impl IntoIterator<Item = IpAddr>) -> io::Result<()> {
        let Some(hardware) = link.hardware else {
            return Ok(());
        };
        let mut result = Ok(());
        for address in addresses {
            let told = match address.to_canonical() {
                IpAddr::V4(address) => self.announce_v4(link, address, hardware),
                IpAddr::V6(address) => announce_v6(link, address, hardware),
            };
            result = result.and(told);
        }
        result
    }

    fn announce_v4(&self, link: &Link, address: Ipv4Addr, hardware: [u8; 6]) -> io::Result<()> {
        let everybody = everybody(link.index)?;
        for packet in arp(address, hardware) {
            self.arp.send_to(&packet, &everybody)?;
        }
        Ok(())
    }
}

/// All neighbours on an interface, for ARP. For the tests as well.
pub(super) fn everybody(index: u32) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    #[expect(unsafe_code, reason = "no crate makes one of these safely")]
    // SAFETY: `sockaddr_ll` is plain numbers, for which zeroes are a value, and it fits into the storage, which is made for all addresses.
    let to = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    to.sll_protocol = ETH_P_ARP.to_be();
    to.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    to.sll_halen = 6;
    if let Some(room) = to.sll_addr.get_mut(..BROADCAST.len()) {
        room.copy_from_slice(&BROADCAST);
    }
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "see above")]
    // SAFETY: the first `length` bytes have just been written as a `sockaddr_ll`.
    Ok(unsafe { SockAddr::new(storage, length) })
}

fn announce_v6(link: &Link, address: Ipv6Addr, hardware: [u8; 6]) -> io::Result<()> {
    // Bound to the address, so it is one for each.
    let socket = Socket::new(Domain::IPV6, Type::RAW.nonblocking(), Some(Protocol::ICMPV6))?;
    socket.set_multicast_hops_v6(HOPS)?;
    socket.set_multicast_if_v6(link.index)?;
    socket.set_multicast_loop_v6(false)?;
    // From the address itself: from another one the kernel would let it out when it is not ours any more.
    socket.bind(&SocketAddrV6::new(address, 0, 0, link.index).into())?;
    let packet = advertisement(address, hardware, forwards(&link.name));
    socket.send_to(&packet, &SocketAddrV6::new(ALL_NODES, 0, 0, link.index).into())?;
    Ok(())
}

/// Whether this host is a router there: neighbours that have it for one take it out of their list when it says that it is none.
fn forwards(interface: &str) -> bool {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/forwarding"))
        .is_ok_and(|text| text.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARDWARE: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];

    #[test]
    fn packets_are_as_the_standards_have_them() {
        let [request, reply] = arp(Ipv4Addr::new(10, 9, 0, 7), HARDWARE);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&request),
            "0001080006040001\
             0211223344550a090007\
             0000000000000a090007"
        );
        assert_eq!(
            data_encoding::HEXLOWER.encode(&reply),
            "0001080006040002\
             0211223344550a090007\
             0211223344550a090007"
        );
        let address = "fd09::7".parse().unwrap();
        assert_eq!(
            data_encoding::HEXLOWER.encode(&advertisement(address, HARDWARE, false)),
            "8800000020000000\
             fd090000000000000000000000000007\
             0201021122334455"
        );
        assert_eq!(advertisement(address, HARDWARE, true)[4], 0xa0);
    }
}
