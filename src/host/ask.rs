//! Asks the neighbours whether somebody has an address already: ARP probes (RFC 5227), neighbour solicitations.
//!
//! **Promise.** Who answers three questions within a third of a second is told by its hardware address. Nobody learns of a claim by being asked: an ARP probe
//! is from 0.0.0.0, a solicitation from this host's own address.
//!
//! **Not promised.** That whoever has it answers: it may be off, filtered, or slow. What is said without a question (gratuitous ARP, unsolicited advertisements) is
//! no answer: a node that takes an address says such things, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::announce::everybody;
use super::clock::boottime;
use super::route::Link;

const ETH_P_ARP: u16 = 0x0806;
const ROUNDS: u32 = 3;
/// How long answers are waited for after each.
const ROUND: Duration = Duration::from_millis(100);
const SHORTEST: Duration = Duration::from_millis(1);
/// With less a question is not answered, and an answer is none (RFC 4861, 7.1.1 and 7.1.2): it has come through a router, from anybody.
const HOPS: u8 = 255;
const ARP_REPLY: [u8; 2] = [0, 2];
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const SOLICITED: u8 = 0x40;
const PACKET_MAX_BYTES: usize = 2_048;

fn arp_probe(address: Ipv4Addr, hardware: [u8; 6]) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4, 0, 1];
    out.extend(hardware);
    // From nobody: no neighbour puts it down as ours.
    out.extend([0; 4]);
    out.extend([0; 6]);
    out.extend(address.octets());
    out
}

/// Who says that it has which address, in an answer to a probe of ours.
fn arp_answer(packet: &[u8], hardware: [u8; 6]) -> Option<(IpAddr, [u8; 6])> {
    let reply = packet.get(6..8)? == ARP_REPLY && packet.get(18..24)? == hardware;
    let by: [u8; 6] = packet.get(8..14)?.try_into().ok()?;
    let address: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    (reply && by != hardware).then_some((IpAddr::from(address), by))
}

fn solicitation(address: Ipv6Addr, hardware: [u8; 6]) -> (Vec<u8>, Ipv6Addr) {
    let mut out = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    out.extend(address.octets());
    out.extend([1, 1]);
    out.extend(hardware);
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    (out, group)
}

/// The same of an advertisement that was asked for. One need not say its hardware address.
fn advertised(packet: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let asked_for = *packet.first()? == NEIGHBOUR_ADVERTISEMENT && packet.get(4)? & SOLICITED != 0;
    let address: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let by = packet.get(26..32).and_then(|by| by.try_into().ok());
    asked_for.then_some((IpAddr::from(address), by.unwrap_or_default()))
}

fn icmp6_socket(link: &Link) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_hops_v6(HOPS.into())?;
    socket.set_recv_hoplimit_v6(true)?;
    socket.set_multicast_if_v6(link.index)?;
    socket.bind_device(Some(link.name.as_bytes()))?;
    socket.set_multicast_loop_v6(false)?;
    Ok(socket)
}

fn colons(hardware: [u8; 6]) -> String {
    let pairs: Vec<String> = hardware.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

/// Who on `link` has which of these: its hardware address. It waits for answers: to be called where that keeps nobody.
///
/// # Errors
/// When nobody can be asked.
pub fn ask_neighbours(link: &Link, addresses: &BTreeSet<IpAddr>) -> io::Result<BTreeMap<IpAddr, String>> {
    let mut found = BTreeMap::new();
    let Some(hardware) = link.hardware else {
        return Ok(found);
    };
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    let everybody = everybody(link.index)?;
    let arp = if v4.is_empty() {
        None
    } else {
        let protocol = Protocol::from(i32::from(ETH_P_ARP.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.bind(&everybody)?;
        Some(socket)
    };
    let icmp6 = if v6.is_empty() {
        None
    } else {
        Some(icmp6_socket(link)?)
    };
    for _ in 0..ROUNDS {
        for address in addresses {
            match (address, &arp, &icmp6) {
                (IpAddr::V4(address), Some(arp), _) => {
                    arp.send_to(&arp_probe(*address, hardware), &everybody)?;
                }
                (IpAddr::V6(address), _, Some(icmp6)) => {
                    let (packet, group) = solicitation(*address, hardware);
                    icmp6.send_to(&packet, &SocketAddrV6::new(group, 0, 0, link.index).into())?;
                }
                _ => {}
            }
        }
        let by = boottime().saturating_add(ROUND);
        if let Some(arp) = &arp {
            hear(arp, by, |packet| arp_answer(packet, hardware), &mut found)?;
        }
        // What has come meanwhile is there.
        if let Some(icmp6) = &icmp6 {
            hear(icmp6, by, advertised, &mut found)?;
        }
    }
    found.retain(|address, _| addresses.contains(address));
    Ok(found)
}

fn hear(
    socket: &Socket,
    by: Duration,
    read: impl Fn(&[u8]) -> Option<(IpAddr, [u8; 6])>,
    found: &mut BTreeMap<IpAddr, String>,
) -> io::Result<()> {
    let mut buffer = [0; PACKET_MAX_BYTES];
    // Whoever talks without end is not listened to without end.
    while boottime() < by.saturating_add(ROUND) {
        // What came while somebody else was listened to is there.
        let left = by.saturating_sub(boottime()).max(SHORTEST);
        socket.set_read_timeout(Some(left))?;
        match receive(socket, &mut buffer) {
            Ok(packet) => {
                if let Some((address, hardware)) = packet.and_then(&read) {
                    found.entry(address).or_insert_with(|| colons(hardware));
                }
            }
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The next packet, unless it has come through a router. ARP does not, and has no hops to tell of.
fn receive<'a>(socket: &Socket, buffer: &'a mut [u8]) -> nix::Result<Option<&'a [u8]>> {
    let mut room = cmsg_space!(libc::c_int);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty())?;
    let is_near = message.cmsgs()?.all(|told| match told {
        ControlMessageOwned::Ipv6HopLimit(hops) => hops == i32::from(HOPS),
        _ => true,
    });
    let length = message.bytes;
    Ok(buffer.get(..length).filter(|_| is_near))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Addresses;
    use crate::host::lab::{CABLE, HERE, on_two_hosts, settings, sh};

    fn ours() -> [IpAddr; 2] {
        [[10, 9, 0, 7].into(), IpAddr::V6("fd09::7".parse().unwrap())]
    }

    fn link() -> Link {
        Addresses::open(settings()).unwrap().link().unwrap()
    }

    #[test]
    fn whoever_has_an_address_answers_and_nobody_does_for_what_nobody_has() {
        on_two_hosts(|peer| {
            let link = link();
            let addresses: BTreeSet<IpAddr> = ours().into_iter().collect();
            assert_eq!(ask_neighbours(&link, &addresses).unwrap(), BTreeMap::new());
            for address in ours() {
                let plain = if address.is_ipv4() { "" } else { " nodad" };
                peer.sh(&format!("ip addr add {address} dev {}{plain}", CABLE[1]));
            }
            let there = |address| (address, "02:00:00:00:00:02".to_owned());
            assert_eq!(
                ask_neighbours(&link, &addresses).unwrap(),
                ours().map(there).into_iter().collect()
            );
        });
    }

    #[test]
    fn without_ipv6_nobody_can_be_asked_by_it_and_that_is_told() {
        on_two_hosts(|peer| {
            peer.sh(&format!("ip addr add 10.9.0.7 dev {}", CABLE[1]));
            sh(&format!("ip -6 addr flush dev {}", CABLE[0]));
            let [four, six] = ours().map(|address| ask_neighbours(&link(), &BTreeSet::from([address])));
            assert!(four.unwrap().contains_key(&ours()[0]));
            assert!(six.is_err());
        });
    }

    #[test]
    fn an_answer_through_a_router_is_none() {
        on_two_hosts(|peer| {
            let socket = icmp6_socket(&link()).unwrap();
            let [far, near] = ["fd09::7", "fd09::8"].map(|text| text.parse::<Ipv6Addr>().unwrap());
            for (address, hops) in [(far, u32::from(HOPS) - 1), (near, HOPS.into())] {
                let mut answer = crate::host::announce::advertisement(address, [2, 0, 0, 0, 0, 2], false);
                answer[4] |= SOLICITED;
                peer.does(move || {
                    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
                    socket.set_unicast_hops_v6(hops).unwrap();
                    let IpAddr::V6(here) = HERE[1] else { unreachable!() };
                    socket
                        .send_to(&answer, &SocketAddrV6::new(here, 0, 0, 0).into())
                        .unwrap();
                });
            }
            let mut found = BTreeMap::new();
            // They come in order.
            while found.is_empty() {
                hear(&socket, boottime() + ROUND, advertised, &mut found).unwrap();
            }
            assert_eq!(found.into_keys().collect::<Vec<_>>(), [IpAddr::from(near)]);
        });
    }

    #[test]
    fn what_was_not_asked_for_is_no_answer() {
        const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
        const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
        let four = Ipv4Addr::new(10, 9, 0, 7);
        let reply = |to: [u8; 6]| {
            let mut out = vec![0, 1, 8, 0, 6, 4, 0, 2];
            out.extend(THERE);
            out.extend(four.octets());
            out.extend(to);
            out.extend([0; 4]);
            out
        };
        assert_eq!(arp_answer(&reply(HERE), HERE), Some((four.into(), THERE)));
        // Gratuitous ones are to their sender.
        assert_eq!(arp_answer(&reply(THERE), HERE), None);
        assert_eq!(arp_answer(&arp_probe(four, THERE), HERE), None);
        assert_eq!(arp_answer(&reply(HERE)[..20], HERE), None);
        let six: Ipv6Addr = "fd09::7".parse().unwrap();
        let mut advertisement = crate::host::announce::advertisement(six, THERE, false);
        assert_eq!(advertised(&advertisement), None);
        advertisement[4] |= SOLICITED;
        assert_eq!(advertised(&advertisement), Some((six.into(), THERE)));
        assert_eq!(advertised(&[]), None);
    }
}
