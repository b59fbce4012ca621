//! For tests: two hosts, in network namespaces of their own, with a cable between them.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::{Pid, geteuid, gettid};
use socket2::{Domain, Protocol, Socket, Type};

use super::addresses::AddressSettings;
use super::announce::everybody;

/// The addresses of the first host, which are nobody's to move.
pub(super) const HERE: [IpAddr; 2] = [IpAddr::V4(HERE4), IpAddr::V6(HERE6)];
const HERE4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const HERE6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
const THERE4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const THERE6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2);
/// Interfaces of the first host and of the second.
pub(crate) const CABLE: [&str; 2] = ["veth0", "veth1"];
const HARDWARE: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Long enough for any machine; nothing is measured.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

type Deed = Box<dyn FnOnce() + Send>;

/// For the first host's end of it.
pub(crate) fn settings() -> AddressSettings {
    AddressSettings {
        interface: CABLE[0].to_owned(),
        label: "vip".to_owned(),
        protocol: AddressSettings::PROTOCOL,
        prefix4: 32,
        prefix6: 128,
    }
}

/// The second host. A socket that was opened there works there, whoever uses it.
pub(crate) struct Peer {
    deeds: Sender<Deed>,
}

impl Peer {
    /// Does it there.
    pub(super) fn does<T: Send + 'static>(&self, deed: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let deed = move || {
            let _ = tell.send(deed());
        };
        self.deeds.send(Box::new(deed)).unwrap();
        told.recv().unwrap()
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.does(move || sh(&command))
    }

    /// Whether the first host answers for `address` when it is asked who has it. It answers in order, so nothing is waited for that does not come.
    pub(crate) fn finds(&self, address: IpAddr) -> bool {
        self.does(move || match address {
            IpAddr::V4(address) => arp_finds(address),
            IpAddr::V6(address) => discovery_finds(address),
        })
    }

    /// Whether the first host so much as reads who asks for `address`: it remembers where the asker is.
    pub(super) fn is_heard_when_asking_for(&self, address: IpAddr) -> bool {
        let asker = match address {
            IpAddr::V4(_) => IpAddr::from([10, 9, 0, 99]),
            IpAddr::V6(_) => "fd09::99".parse().unwrap(),
        };
        let there = CABLE[1];
        let plain = if asker.is_ipv4() { "" } else { " nodad" };
        self.sh(&format!("ip addr add {asker} dev {there}{plain}"));
        self.does(move || match (address, asker) {
            (IpAddr::V4(address), IpAddr::V4(asker)) => arp_asks(address, asker),
            (IpAddr::V6(address), IpAddr::V6(asker)) => discovery_asks(address, asker),
            _ => unreachable!(),
        });
        // What is asked after it is answered after it.
        assert!(self.finds(HERE[usize::from(address.is_ipv6())]));
        self.sh(&format!("ip addr del {asker} dev {there}"));
        let here = CABLE[0];
        let heard = !sh(&format!("ip neigh show to {asker} dev {here}")).is_empty();
        if heard {
            sh(&format!("ip neigh del {asker} dev {here}"));
        }
        heard
    }

    /// Sends a datagram, when it is known where `address` is.
    pub(super) fn sends(&self, address: IpAddr, port: u16, byte: u8) {
        self.does(move || {
            knowing(address, || {
                let any: IpAddr = if address.is_ipv4() {
                    THERE4.into()
                } else {
                    THERE6.into()
                };
                let socket = UdpSocket::bind((any, 0)).unwrap();
                socket.send_to(&[byte], (address, port)).unwrap();
            });
        });
    }

    /// Whether the first host accepts a connection, when it is known where it is. It answers in order, see [`Self::finds`].
    pub(super) fn reaches(&self, address: IpAddr, port: u16) -> bool {
        self.does(move || {
            let tcp =
                || Socket::new(Domain::for_address((address, port).into()), Type::STREAM, None).unwrap();
            knowing(address, || {
                let concerned = tcp();
                concerned.set_nonblocking(true).unwrap();
                let _ = concerned.connect(&SocketAddr::new(address, port).into());
                let control = SocketAddr::new(HERE[usize::from(address.is_ipv6())], port);
                tcp().connect_timeout(&control.into(), PATIENCE).unwrap();
                concerned.peer_addr().is_ok()
            })
        })
    }

    /// All ARP, or all ICMPv6, that arrives there from now on.
    pub(super) fn listen(&self, v4: bool) -> Socket {
        self.does(move || if v4 { arp_socket() } else { icmp6_socket() })
    }
}

/// Does it with `address` known to be at the first host, whoever answers for it.
fn knowing<T>(address: IpAddr, deed: impl FnOnce() -> T) -> T {
    let ([hardware, _], [_, there]) = (HARDWARE.map(colons), CABLE);
    sh(&format!(
        "ip neigh replace {address} lladdr {hardware} nud permanent dev {there}"
    ));
    let result = deed();
    sh(&format!("ip neigh del {address} dev {there}"));
    result
}

fn colons(hardware: [u8; 6]) -> String {
    hardware.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs `test` on the first host. Where that cannot be, the test says so.
pub(crate) fn on_two_hosts(test: impl FnOnce(&Peer) + Send + 'static) {
    if !geteuid().is_root() {
        println!("SKIP host: needs root, for network namespaces");
        return;
    }
    for (tool, argument) in [("ip", "-V"), ("nft", "--version")] {
        let mut command = Command::new(tool);
        let quiet = command.arg(argument).stdout(Stdio::null()).stderr(Stdio::null());
        if quiet.status().is_err() {
            println!("SKIP host: no {tool}");
            return;
        }
    }
    // A thread of its own: its namespace, and that of all that it starts.
    let host = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let (deeds, wanted) = channel();
        std::thread::spawn(move || other_host(&wanted));
        let peer = Peer { deeds };
        let other = peer.does(gettid);
        sh("ip link set lo up");
        plug(&peer, other);
        test(&peer);
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Makes the cable between the two.
fn plug(peer: &Peer, other: Pid) {
    let ([here, there], [mine, its]) = (CABLE, HARDWARE.map(colons));
    // Without addresses of the kernel's own, which would still be changing when a test looks.
    let made = format!(
        "ip link add {here} address {mine} type veth peer name {there} address {its} netns {other}; ip link set {here} addrgenmode none"
    );
    sh(&made);
    peer.sh(&format!(
        "ip link set lo up; ip link set {there} addrgenmode none; ip link set {there} up; ip addr add {THERE4}/24 dev {there}; ip addr add {THERE6}/64 nodad dev {there}"
    ));
    let [v4, v6] = HERE;
    sh(&format!(
        "ip link set {here} up; ip addr add {v4}/24 dev {here}; ip addr add {v6}/64 nodad dev {here}"
    ));
}

impl Peer {
    /// Makes the cable anew, where the first host has taken it away.
    pub(super) fn plug_again(&self) {
        plug(self, self.does(gettid));
    }
}

fn other_host(wanted: &Receiver<Deed>) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    // What it sends arrives in order, and so does what comes of it.
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| {
        one.set(*cpu).unwrap();
        let can = sched_setaffinity(Pid::from_raw(0), &one).is_ok();
        one.unset(*cpu).unwrap();
        can
    });
    assert!(first.is_some());
    while let Ok(deed) = wanted.recv() {
        deed();
    }
}

pub(crate) fn sh(command: &str) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&stderr)
    );
    String::from_utf8(stdout).unwrap()
}

fn arp_socket() -> Socket {
    let arp = Protocol::from(i32::from(0x0806_u16.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(arp)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn icmp6_socket() -> Socket {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_multicast_hops_v6(255).unwrap();
    socket
}

/// The next packet.
pub(super) fn receive(socket: &Socket) -> Vec<u8> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let length = socket.recv(&mut buffer).unwrap();
    let mut packet = vec![0; length];
    for (to, from) in packet.iter_mut().zip(&buffer) {
        #[expect(unsafe_code, reason = "socket2 gives uninitialized bytes")]
        // SAFETY: the kernel has written the first `length`.
        let byte = unsafe { from.assume_init() };
        *to = byte;
    }
    packet
}

/// Whether there is nothing.
pub(super) fn is_silent(socket: &Socket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let read = socket.recv(&mut buffer);
    socket.set_nonblocking(false).unwrap();
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn arp_asks(wanted: Ipv4Addr, asker: Ipv4Addr) -> Socket {
    let socket = arp_socket();
    let mut ask = vec![0, 1, 8, 0, 6, 4, 0, 1];
    ask.extend(HARDWARE[1]);
    ask.extend(asker.octets());
    ask.extend([0; 6]);
    ask.extend(wanted.octets());
    let everybody = everybody(if_nametoindex(CABLE[1]).unwrap()).unwrap();
    socket.send_to(&ask, &everybody).unwrap();
    socket
}

fn arp_finds(address: Ipv4Addr) -> bool {
    let answers = arp_asks(address, THERE4);
    arp_asks(HERE4, THERE4);
    let mut found = false;
    loop {
        let packet = receive(&answers);
        if packet[6..8] != [0, 2] {
            continue;
        }
        found |= packet[14..18] == address.octets();
        if packet[14..18] == HERE4.octets() {
            return found;
        }
    }
}

fn discovery_asks(wanted: Ipv6Addr, asker: Ipv6Addr) -> Socket {
    let socket = icmp6_socket();
    let index = if_nametoindex(CABLE[1]).unwrap();
    socket.set_multicast_if_v6(index).unwrap();
    socket.bind(&SocketAddrV6::new(asker, 0, 0, 0).into()).unwrap();
    let mut ask = vec![135, 0, 0, 0, 0, 0, 0, 0];
    ask.extend(wanted.octets());
    ask.extend([1, 1]);
    ask.extend(HARDWARE[1]);
    let [.., a, b, c] = wanted.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    socket
        .send_to(&ask, &SocketAddrV6::new(group, 0, 0, index).into())
        .unwrap();
    socket
}

fn discovery_finds(address: Ipv6Addr) -> bool {
    let answers = discovery_asks(address, THERE6);
    discovery_asks(HERE6, THERE6);
    let mut found = false;
    loop {
        let packet = receive(&answers);
        if packet[0] != 136 {
            continue;
        }
        found |= packet[8..24] == address.octets();
        if packet[8..24] == HERE6.octets() {
            return found;
        }
    }
}
