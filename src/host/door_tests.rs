//! The door on a real interface, with a neighbour that asks.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netlink_packet_netfilter::nftables::TableFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::addresses::{AddressSettings, Addresses};
use super::announce::{Announcer, advertisement};
use super::clock::boottime;
use super::door::{DOOR_TABLE, Door, DoorError};
use super::lab::{CABLE, HERE, PATIENCE, Peer, is_silent, on_two_hosts, receive, sh};

/// Longer than any test lasts.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(400);

fn ours() -> [IpAddr; 2] {
    ["10.9.0.7".parse().unwrap(), "fd09::7".parse().unwrap()]
}

fn door() -> Door {
    let mut door = Door::open(DOOR_TABLE, CABLE[0]).unwrap();
    door.install().unwrap();
    door
}

fn addresses() -> Addresses {
    Addresses::open(AddressSettings {
        interface: CABLE[0].to_owned(),
        label: "vip".to_owned(),
        protocol: AddressSettings::PROTOCOL,
        prefix4: 32,
        prefix6: 128,
    })
    .unwrap()
}

/// Puts ours on the interface, for long: what is seen is the door's doing.
fn put() -> Addresses {
    let mut addresses = addresses();
    for address in ours() {
        addresses.add(address, LONG).unwrap();
    }
    addresses
}

/// Echoes, in a thread of this host.
fn serve() -> u16 {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut byte = [0];
                while let Ok(1) = stream.read(&mut byte) {
                    let _ = stream.write_all(&byte);
                }
            });
        }
    });
    port
}

/// In each direction: asked who has it; who asks for it is heard; connected to; a datagram for it is taken; connected to from this host; sent from.
/// Where one direction is shut no connection is made, so that the others show more.
fn answers(peer: &Peer, port: u16) -> [[bool; 6]; 2] {
    ours().map(|address| {
        let v6 = usize::from(address.is_ipv6());
        let local = Socket::new(Domain::for_address((address, port).into()), Type::STREAM, None).unwrap();
        local.set_nonblocking(true).unwrap();
        let _ = local.connect(&SocketAddr::new(address, port).into());
        let sends = UdpSocket::bind((address, 0))
            .unwrap()
            .send_to(b"x", (["10.9.0.2", "fd09::2"][v6], 9));
        let takes = {
            let socket = UdpSocket::bind("[::]:0").unwrap();
            let port = socket.local_addr().unwrap().port();
            peer.sends(address, port, 1);
            peer.sends(HERE[v6], port, 2);
            let mut byte = [0];
            socket.recv(&mut byte).unwrap();
            byte == [1]
        };
        [
            peer.finds(address),
            peer.is_heard_when_asking_for(address),
            peer.reaches(address, port),
            takes,
            local.peer_addr().is_ok(),
            sends.is_ok(),
        ]
    })
}

const OPEN: [[bool; 6]; 2] = [[true; 6]; 2];
const SHUT: [[bool; 6]; 2] = [[false; 6]; 2];

/// Waits until the kernel has shut it by itself.
fn await_the_end(door: &mut Door, address: IpAddr) {
    let begun = boottime();
    while door.found().unwrap().contains_key(&address) {
        assert!(boottime() < begun + PATIENCE);
        std::thread::yield_now();
    }
}

#[test]
fn an_address_answers_while_it_is_live_and_not_without_anybody_doing_anything() {
    on_two_hosts(|peer| {
        let port = serve();
        sh(
            "nft 'table inet foreign { chain input { type filter hook input priority 0; policy accept; tcp dport 9 drop; }; }'",
        );
        let before = (sh("nft list ruleset"), sh("ip -j addr show"));
        let mut door = door();
        assert!(door.is_owned() && door.holds_claims());
        door.admit(ours(), boottime() + LONG).unwrap();
        let mut addresses = put();
        assert_eq!(answers(peer, port), OPEN);
        // Other addresses of the host are no matter of the door's: `finds` and `reaches` ask for them each time.
        let until = boottime() + SHORT;
        door.admit(ours(), until).unwrap();
        // What was to last for long is replaced. The end is found by asking, as a neighbour does.
        let begun = boottime();
        for address in ours() {
            loop {
                let asked = boottime();
                if !peer.finds(address) {
                    break;
                }
                assert!(asked < until, "nobody who asks after the end is answered");
                assert!(boottime() < begun + PATIENCE);
            }
        }
        assert_eq!(answers(peer, port), SHUT);
        assert_eq!(
            addresses.ours().unwrap(),
            ours().into(),
            "they are on the interface"
        );
        door.admit(ours(), boottime() + LONG).unwrap();
        assert_eq!(answers(peer, port), OPEN);
        door.close([ours()[0]]).unwrap();
        assert_eq!(answers(peer, port), [SHUT[0], OPEN[1]]);
        door.close(ours()).unwrap();
        assert_eq!(answers(peer, port), SHUT);
        // What the door has nothing to do with is the kernel's alone.
        door.forget(ours()).unwrap();
        assert_eq!(answers(peer, port), OPEN);
        for address in ours() {
            addresses.remove(address).unwrap();
        }
        door.remove().unwrap();
        assert_eq!((sh("nft list ruleset"), sh("ip -j addr show")), before);
    });
}

#[test]
fn what_others_translate_is_shut_all_the_same() {
    on_two_hosts(|peer| {
        let port = serve();
        // A published port, and a source that is translated.
        sh("nft 'table ip foreign {
            chain to { type nat hook prerouting priority -100; policy accept; ip daddr 10.9.0.7 dnat to 10.9.0.1; }
            chain from { type nat hook postrouting priority 100; policy accept; udp dport 99 snat to 10.9.0.7; }
        }'");
        let sends = || {
            let socket = UdpSocket::bind((HERE[0], 0)).unwrap();
            socket.send_to(b"x", ("10.9.0.2", 99)).is_ok()
        };
        let mut door = door();
        let [v4, _] = ours();
        door.admit([v4], boottime() + LONG).unwrap();
        assert!(peer.reaches(v4, port) && sends());
        door.close([v4]).unwrap();
        assert!(!peer.reaches(v4, port) && !sends());
    });
}

#[test]
fn a_connection_stands_still_while_its_address_is_shut() {
    on_two_hosts(|peer| {
        let port = serve();
        let mut door = door();
        for address in ours() {
            door.admit([address], boottime() + LONG).unwrap();
            addresses().add(address, LONG).unwrap();
            let mut stream = peer.does(move || TcpStream::connect((address, port)).unwrap());
            let mut byte = [b'x'];
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&byte).unwrap();
            stream.read_exact(&mut byte).unwrap();
            door.admit([address], boottime() + SHORT).unwrap();
            await_the_end(&mut door, address);
            stream.write_all(&byte).unwrap();
            assert!(peer.reaches(HERE[0], port), "another address is served");
            stream.set_nonblocking(true).unwrap();
            assert!(stream.read(&mut byte).is_err());
            stream.set_nonblocking(false).unwrap();
            door.admit([address], boottime() + LONG).unwrap();
            stream.read_exact(&mut byte).unwrap();
        }
    });
}

#[test]
fn claims_go_out_while_the_address_is_live_and_never_else() {
    on_two_hosts(|peer| {
        let mut door = door();
        let mut addresses = addresses();
        let [v4, v6] = ours();
        door.admit(ours(), boottime() + LONG).unwrap();
        for address in ours() {
            addresses.add(address, LONG).unwrap();
        }
        let link = addresses.link().unwrap();
        let announcer = Announcer::open().unwrap();
        let (arp, icmp6) = (peer.listen(true), peer.listen(false));
        announcer.announce(&link, ours()).unwrap();
        let hex = |packet: Vec<u8>| data_encoding::HEXLOWER.encode(&packet);
        assert_eq!(
            hex(receive(&arp)),
            "00010800060400010200000000010a0900070000000000000a090007"
        );
        assert_eq!(
            hex(receive(&arp)),
            "00010800060400020200000000010a0900070200000000010a090007"
        );
        let advertised = loop {
            let packet = receive(&icmp6);
            // A host's first words on a cable are there as well.
            if packet[0] == 136 {
                break packet;
            }
        };
        // But for the checksum, which the kernel makes and has checked.
        assert_eq!(hex(advertised[..2].to_vec()), "8800");
        assert_eq!(
            hex(advertised[4..].to_vec()),
            "20000000fd0900000000000000000000000000070201020000000001"
        );
        door.close(ours()).unwrap();
        for address in [v4, v6] {
            assert!(announcer.announce(&link, [address]).is_err(), "{address}");
        }
        // What is sent after it arrives after it.
        door.admit(ours(), boottime() + LONG).unwrap();
        announcer.announce(&link, ours()).unwrap();
        assert_eq!(receive(&arp).len(), 28);
        assert_eq!(receive(&arp).len(), 28);
        assert!(is_silent(&arp));
        while receive(&icmp6)[0] != 136 {}
        assert!(is_silent(&icmp6));
        door.close(ours()).unwrap();
        // In another one's name.
        let other = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        other.bind(&SocketAddr::new(HERE[1], 0).into()).unwrap();
        for (target, is_sent) in [
            ("fd09::7".parse().unwrap(), false),
            ("fd09::8".parse().unwrap(), true),
        ] {
            let claim = advertisement(target, [2, 0, 0, 0, 0, 1], false);
            let sent = other.send_to(&claim, &SocketAddr::new("fd09::2".parse().unwrap(), 0).into());
            assert_eq!(sent.is_ok(), is_sent, "{target}");
        }
    });
}

#[test]
fn the_kernels_own_claims_are_held_by_any_kernel() {
    on_two_hosts(|peer| {
        // As before Linux 5.16: with an interface that is not there, what packet sockets send is not held.
        let mut door = Door::open(DOOR_TABLE, "none0").unwrap();
        door.install().unwrap();
        assert!(!door.holds_claims());
        let _addresses = put();
        door.close(ours()).unwrap();
        let arp = peer.listen(true);
        // Claims of all addresses of an interface that comes up.
        sh("echo 1 > /proc/sys/net/ipv4/conf/veth0/arp_notify; ip link set veth0 down; ip link set veth0 up");
        let [shut, control] = [ours()[0], HERE[0]].map(|address| match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(_) => unreachable!(),
        });
        loop {
            let packet = receive(&arp);
            assert_ne!(packet[14..18], shut);
            if packet[14..18] == control {
                break;
            }
        }
        assert!(is_silent(&arp));
    });
}

#[test]
fn it_outlives_its_process_and_nobody_takes_it_away() {
    on_two_hosts(|peer| {
        let port = serve();
        let until = boottime() + LONG;
        let mut before = door();
        let [v4, v6] = ours();
        before.admit(ours(), until).unwrap();
        let _addresses = put();
        sh("nft flush ruleset");
        assert_eq!(answers(peer, port), OPEN);
        let another = Door::open(DOOR_TABLE, CABLE[0]).unwrap().install();
        assert!(matches!(another, Err(DoorError::Owned(_))), "{another:?}");
        assert_eq!(before.found().unwrap().len(), 2);
        before.admit([v6], boottime() + SHORT).unwrap();
        drop(before);
        // Nobody is there, and time goes on.
        let begun = boottime();
        while peer.finds(v6) {
            assert!(boottime() < begun + PATIENCE);
        }
        assert!(peer.finds(v4));
        let mut after = door();
        let found = after.found().unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [v4]);
        assert!(
            found[&v4] <= until - boottime() && found[&v4] > LONG / 2,
            "{found:?}"
        );
        assert_eq!(after.managed(), &ours().into());
        assert!(after.verify().unwrap());
        assert_eq!(answers(peer, port), [OPEN[0], SHUT[1]]);
        // Once more, with a table of its own for a second pool.
        let mut other = Door::open("io_vip_other", CABLE[0]).unwrap();
        other.install().unwrap();
        other.admit([HERE[0]], boottime() + LONG).unwrap();
        other.remove().unwrap();
        assert!(after.verify().unwrap());
    });
}

#[test]
fn whoever_was_stopped_on_the_way_opens_nothing() {
    on_two_hosts(|_| {
        let mut door = door();
        let [v4, _] = ours();
        // The lease is over.
        for until in [Duration::ZERO, boottime(), boottime() + Duration::from_millis(30)] {
            let late = door.admit(ours(), until);
            assert!(matches!(late, Err(DoorError::Over(_))), "{late:?}");
        }
        // The fuse has burnt down before the kernel was told: as after a stop between the look at the clock and the message.
        door.admit([v4], boottime() + LONG / 2).unwrap();
        let mark = door.arm(Duration::from_millis(20)).unwrap();
        let armed = boottime();
        while boottime() < armed + Duration::from_millis(60) {
            std::thread::yield_now();
        }
        let mut late = vec![door.frame.defuse(mark)];
        late.extend(door.frame.admit(&ours().into(), LONG));
        let error = door.nftables.commit(late).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        // What is open stays open until it was to end.
        let found = door.found().unwrap();
        assert!(found.len() == 1 && found[&v4] <= LONG / 2, "{found:?}");
        // In time, the same fuse is put out, and for once only.
        let mark = door.arm(LONG).unwrap();
        door.nftables.commit(vec![door.frame.defuse(mark)]).unwrap();
        assert!(door.nftables.commit(vec![door.frame.defuse(mark)]).is_err());
        // A little early, never late.
        let until = boottime() + SHORT;
        door.admit(ours(), until).unwrap();
        let found = door.found().unwrap();
        let left = until.saturating_sub(boottime());
        assert!(found.values().all(|found| *found <= left), "{found:?} {left:?}");
    });
}

#[test]
fn an_extension_leaves_no_gap() {
    on_two_hosts(|peer| {
        let port = serve();
        let mut door = door();
        door.admit(ours(), boottime() + LONG).unwrap();
        let _addresses = put();
        let talking = ours().map(|address| {
            let mut stream = peer.does(move || TcpStream::connect((address, port)).unwrap());
            std::thread::spawn(move || {
                let mut byte = [b'x'];
                for _ in 0..10_000 {
                    stream.write_all(&byte).unwrap();
                    stream.read_exact(&mut byte).unwrap();
                }
            })
        });
        let mut extended = 0;
        while !talking.iter().all(std::thread::JoinHandle::is_finished) {
            door.admit(ours(), boottime() + LONG).unwrap();
            extended += 1;
        }
        for talk in talking {
            talk.join().unwrap();
        }
        assert!(extended > 10);
        let rules = sh("nft list table inet io_vip");
        let drops = rules.matches("counter packets 0 bytes 0 drop").count();
        assert_eq!(drops, 6, "{rules}");
    });
}

#[test]
fn what_others_did_to_tables_that_are_not_owned_is_found_and_repaired() {
    on_two_hosts(|peer| {
        let port = serve();
        let mut door = door();
        let _addresses = put();
        door.admit(ours(), boottime() + LONG).unwrap();
        // As before Linux 6.9.
        let kept = door.frame.clone();
        door.rebuild(&kept, TableFlags::empty()).unwrap();
        door.owned = false;
        for damage in [
            "nft flush ruleset",
            "nft delete table arp io_vip",
            "nft delete element inet io_vip live4 { 10.9.0.7 }",
            "nft add element inet io_vip managed4 { 10.9.0.9 }",
            "nft add element arp io_vip live4 { 10.9.0.9 timeout 1h }",
        ] {
            sh(&damage.replace('{', "'{").replace('}', "}'"));
            assert!(!door.verify().unwrap(), "{damage}");
            assert_eq!(answers(peer, port), OPEN, "{damage}");
            assert_eq!(door.managed(), &ours().into(), "{damage}");
            // Until now, nobody had taken ownership.
            let frame = door.frame.clone();
            door.rebuild(&frame, TableFlags::empty()).unwrap();
            door.owned = false;
        }
        // Rules alone: made anew each time, where others can change them.
        sh("nft flush chain inet io_vip prerouting");
        assert!(door.verify().unwrap());
        door.close(ours()).unwrap();
        assert_eq!(answers(peer, port), SHUT);
        // What is opened after somebody took the tables away is opened in new ones.
        let frame = door.frame.clone();
        door.rebuild(&frame, TableFlags::empty()).unwrap();
        sh("nft flush ruleset");
        door.admit([ours()[0]], boottime() + LONG).unwrap();
        assert_eq!(answers(peer, port), [OPEN[0], SHUT[1]]);
        let frame = door.frame.clone();
        door.rebuild(&frame, TableFlags::empty()).unwrap();
        sh("nft flush ruleset");
        door.close(ours()).unwrap();
        assert_eq!(answers(peer, port), SHUT);
    });
}

#[test]
fn an_interface_that_is_made_anew_has_its_claims_held_again() {
    on_two_hosts(|peer| {
        let mut door = door();
        sh("ip link del veth0");
        let verified = door.verify().unwrap();
        assert!(verified && !door.holds_claims());
        peer.plug_again();
        assert!(door.verify().unwrap() && door.holds_claims());
        let mut addresses = addresses();
        addresses.add(ours()[0], LONG).unwrap();
        door.close(ours()).unwrap();
        assert!(
            Announcer::open()
                .unwrap()
                .announce(&addresses.link().unwrap(), [ours()[0]])
                .is_err()
        );
    });
}

#[test]
fn so_many_that_one_message_does_not_hold_them_are_no_matter() {
    on_two_hosts(|_| {
        let mut door = door();
        let many: Vec<IpAddr> = (0..2_000u16)
            .map(|n| IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 1, n]))
            .collect();
        door.admit(many.iter().copied(), boottime() + LONG).unwrap();
        assert_eq!(door.found().unwrap().len(), many.len());
        door.close(many.iter().copied()).unwrap();
        assert!(door.found().unwrap().is_empty());
    });
}
