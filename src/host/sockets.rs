//! Ends the established connections of ports (`SOCK_DESTROY`, sock_diag(7)): their clients get a reset, also those that only wait.
//!
//! **Not promised.** The kernel takes a socket's lock for it. A process that a disk holds in the middle of a send, because what it sends is a page of a
//! file, holds that lock: so whoever calls this must be able to hang, and be a thread that nobody waits for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{NLM_F_ACK, NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, Netlink, error_of, messages, request};
use super::network::Network;
use super::ports::Ports;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const IPPROTO_TCP: u8 = 6;
/// `struct inet_diag_sockid`
const ID_BYTES: usize = 48;
/// ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING: a client may wait for something on it.
const STATES: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cutting {
    /// Connections that were ended.
    pub ended: usize,
    /// Those that could not be: the kernel does not do it (CONFIG_INET_DIAG_DESTROY), or we may not.
    pub refused: usize,
    /// Why, the last time: an errno.
    pub errno: Option<i32>,
}

/// A connection, as the kernel tells of it.
struct Connection {
    family: u8,
    id: [u8; ID_BYTES],
}

impl Connection {
    fn read(body: &[u8]) -> Option<Self> {
        Some(Self {
            family: *body.first()?,
            id: *body.get(4..)?.first_chunk()?,
        })
    }

    fn local_port(&self) -> u16 {
        u16::from_be_bytes([self.id[0], self.id[1]])
    }

    fn local(&self) -> IpAddr {
        self.address(4)
    }

    fn peer(&self) -> IpAddr {
        self.address(20)
    }

    fn address(&self, at: usize) -> IpAddr {
        let bytes = self.id.get(at..at + 16).and_then(|b| b.first_chunk::<16>());
        let bytes = bytes.copied().unwrap_or_default();
        if i32::from(self.family) == libc::AF_INET {
            Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
        } else {
            // A socket of both families has IPv4 peers in IPv6's clothes.
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
    }
}

/// `struct inet_diag_req_v2`
fn about(family: u8, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let mut out = vec![family, IPPROTO_TCP, 0, 0];
    out.extend(STATES.to_ne_bytes());
    out.extend(id);
    out
}

/// Ends all connections to the TCP ports of `ports` whose peer is neither on this host nor `allowed`. With no ports it only makes the kernel load
/// what it needs for it, which it would otherwise read from a disk when it is too late.
///
/// # Errors
/// When the kernel does not tell which there are.
pub fn cut_established(ports: &Ports, allowed: &[Network], own: &[IpAddr]) -> io::Result<Cutting> {
    let mut netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
    let mut cutting = Cutting::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or_default();
        let sequence = netlink.next();
        netlink.send(&request(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_DUMP,
            sequence,
            &about(family, &[0; ID_BYTES]),
        ))?;
        let spared = |peer: IpAddr| {
            peer.is_loopback() || own.contains(&peer) || allowed.iter().any(|network| network.contains(peer))
        };
        let concerned = |connection: &Connection| {
            ports.tcp.contains(&connection.local_port())
                && connection.local() != connection.peer()
                && !spared(connection.peer())
        };
        for connection in list(&mut netlink, concerned)? {
            match destroy(&mut netlink, &connection)? {
                None => cutting.ended += 1,
                // It has ended by itself.
                Some(libc::ENOENT) => {}
                Some(errno) => {
                    cutting.refused += 1;
                    cutting.errno = Some(errno);
                }
            }
        }
    }
    Ok(cutting)
}

fn list(netlink: &mut Netlink, concerned: impl Fn(&Connection) -> bool) -> io::Result<Vec<Connection>> {
    let mut all = Vec::new();
    while let Some(answer) = netlink.receive()? {
        for (kind, _, body, _) in messages(answer) {
            match kind {
                NLMSG_DONE => return Ok(all),
                NLMSG_ERROR => {
                    return Err(io::Error::from_raw_os_error(error_of(body).unwrap_or_default()));
                }
                _ => all.extend(Connection::read(body).filter(&concerned)),
            }
        }
    }
    Ok(all)
}

/// None when it is gone, or why it is not.
fn destroy(netlink: &mut Netlink, connection: &Connection) -> io::Result<Option<i32>> {
    let sequence = netlink.next();
    netlink.send(&request(
        SOCK_DESTROY,
        NLM_F_ACK,
        sequence,
        &about(connection.family, &connection.id),
    ))?;
    let mut errno = None;
    while let Some(answer) = netlink.receive()? {
        for (kind, _, body, _) in messages(answer) {
            if kind == NLMSG_ERROR {
                let code = error_of(body).unwrap_or_default();
                errno = (code != 0).then_some(code);
            }
        }
    }
    Ok(errno)
}
