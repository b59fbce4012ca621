//! Addresses on a real interface, beside those of an administrator.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::address_watch::{AddressEvent, AddressWatch, LinkState};
use super::addresses::{AddressError, AddressSettings, Addresses, Holder};
use super::lab::{HERE, PATIENCE, on_two_hosts, settings, sh};

const MINUTE: Duration = Duration::from_secs(60);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn open() -> Addresses {
    Addresses::open(settings()).unwrap()
}

fn shown() -> String {
    sh("ip -j addr show")
}

#[test]
fn what_others_put_there_stays_as_it_is_and_ours_comes_and_goes() {
    on_two_hosts(|_| {
        // With our label, and no mark.
        sh("ip addr add 10.9.0.66/32 dev veth0 label veth0:vip; ip addr add fd09::66/128 dev veth0 nodad");
        let before = shown();
        let mut addresses = open();
        assert_eq!(addresses.ours().unwrap(), BTreeSet::new());
        let ours = [ip("10.9.0.7"), ip("192.0.2.7"), ip("fd09::7")];
        for address in ours {
            assert_eq!(addresses.holder(address).unwrap(), Holder::Nobody);
            addresses.add(address, MINUTE).unwrap();
            assert_eq!(addresses.holder(address).unwrap(), Holder::Us);
        }
        // Twice is no error.
        addresses.add(ours[0], MINUTE).unwrap();
        assert_eq!(addresses.ours().unwrap(), ours.into());
        addresses.extend(ours, 2 * MINUTE).unwrap();
        // Another process finds them.
        assert_eq!(open().ours().unwrap(), ours.into());
        for address in [ip("10.9.0.66"), ip("fd09::66"), HERE[0], HERE[1]] {
            let error = addresses.add(address, MINUTE).unwrap_err();
            assert!(matches!(error, AddressError::NotOurs { .. }), "{error}");
            assert!(matches!(addresses.holder(address).unwrap(), Holder::Other(_)));
            let error = addresses.extend([address], MINUTE).unwrap_err();
            assert!(matches!(error, AddressError::Gone { .. }), "{error}");
            addresses.remove(address).unwrap();
        }
        for address in ours {
            addresses.remove(address).unwrap();
            addresses.remove(address).unwrap();
        }
        assert_eq!(shown(), before);
        assert_eq!(addresses.ours().unwrap(), BTreeSet::new());
    });
}

#[test]
fn an_address_of_another_interface_is_somebody_elses() {
    on_two_hosts(|_| {
        sh("ip link add spare0 type veth peer name spare1; ip addr add 10.9.0.7/32 dev spare0");
        let error = open().add(ip("10.9.0.7"), MINUTE).unwrap_err();
        assert!(matches!(error, AddressError::NotOurs { .. }), "{error}");
        assert!(error.to_string().contains("take it out of the pool"), "{error}");
    });
}

#[test]
fn an_address_is_as_its_settings_say_and_is_no_source_of_its_hosts() {
    on_two_hosts(|_| {
        let mut addresses = open();
        addresses
            .add(ip("10.9.0.7"), Duration::from_millis(9_200))
            .unwrap();
        addresses.add(ip("fd09::7"), Duration::from_secs(9)).unwrap();
        let v4 = sh("ip -j addr show to 10.9.0.7");
        assert!(
            v4.contains(r#""prefixlen":32"#) && v4.contains(r#""label":"veth0:vip""#),
            "{v4}"
        );
        let is_soon =
            |text: &str| (9..=11).any(|left| text.contains(&format!(r#""valid_life_time":{left},"#)));
        assert!(is_soon(&v4), "{v4}");
        let v6 = sh("ip -j addr show to fd09::7");
        assert!(
            v6.contains(r#""prefixlen":128"#) && v6.contains(r#""deprecated":true"#),
            "{v6}"
        );
        assert!(is_soon(&v6) && !v6.contains("tentative"), "{v6}");
        assert!(sh("ip -6 route get fd09::2").contains("src fd09::1 "));
        assert!(sh("ip route get 10.9.0.2").contains("src 10.9.0.1 "));
        assert!(!sh("ip -6 route").contains("fd09::7"), "no route of its own");
        // What it was made with stays, whatever the settings say now.
        let wider = AddressSettings {
            prefix6: 64,
            ..settings()
        };
        let mut wider = Addresses::open(wider).unwrap();
        wider.extend([ip("fd09::7")], MINUTE).unwrap();
        assert!(sh("ip -j addr show to fd09::7").contains(r#""prefixlen":128"#));
        wider.remove(ip("fd09::7")).unwrap();
        wider.add(ip("fd09::7"), MINUTE).unwrap();
        assert!(sh("ip -j addr show to fd09::7").contains(r#""prefixlen":64"#));
    });
}

#[test]
fn a_prefix_that_would_take_others_along_is_refused() {
    on_two_hosts(|_| {
        let wide = AddressSettings {
            prefix4: 24,
            ..settings()
        };
        let mut addresses = Addresses::open(wide).unwrap();
        sh("echo 0 > /proc/sys/net/ipv4/conf/all/promote_secondaries");
        sh("echo 0 > /proc/sys/net/ipv4/conf/veth0/promote_secondaries");
        let error = addresses.add(ip("10.8.0.7"), MINUTE).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("promote_secondaries=1, or use 32 bits"),
            "{error}"
        );
        sh("echo 1 > /proc/sys/net/ipv4/conf/veth0/promote_secondaries");
        addresses.add(ip("10.8.0.7"), MINUTE).unwrap();
        // An administrator's, of the same network, after ours.
        sh("ip addr add 10.8.0.9/24 dev veth0");
        addresses.remove(ip("10.8.0.7")).unwrap();
        assert!(shown().contains("10.8.0.9"));
    });
}

#[test]
fn what_cannot_be_is_said_with_what_to_do() {
    let with = |change: fn(&mut AddressSettings)| {
        let mut settings = settings();
        change(&mut settings);
        Addresses::open(settings).map(drop).unwrap_err().to_string()
    };
    let long = with(|settings| settings.label = "addresses-of-ours".to_owned());
    assert!(long.contains("\"veth0:addresses-of-ours\" has 23 characters") && long.contains("shorter"));
    assert!(with(|settings| settings.label = "a b".to_owned()).contains("letters"));
    assert!(with(|settings| settings.label = String::new()).contains("letters"));
    assert!(with(|settings| settings.prefix4 = 33).contains("33 bits"));
    assert!(with(|settings| settings.prefix6 = 0).contains("0 bits"));
    assert!(with(|settings| settings.protocol = 3).contains("4 to 255"));
}

#[test]
fn an_interface_that_is_down_gone_or_another_is_noticed() {
    on_two_hosts(|peer| {
        let mut addresses = open();
        let before = addresses.link().unwrap();
        assert!(before.is_up && before.hardware == Some([2, 0, 0, 0, 0, 1]));
        addresses.add(ip("10.9.0.7"), MINUTE).unwrap();
        peer.sh("ip link set veth1 down");
        let error = addresses.add(ip("10.9.0.8"), MINUTE).unwrap_err();
        assert!(
            error.to_string().contains("veth0 is down, or has no carrier"),
            "{error}"
        );
        sh("ip link del veth0");
        let error = addresses.add(ip("10.9.0.8"), MINUTE).unwrap_err();
        assert!(
            error.to_string().contains("there is no interface veth0"),
            "{error}"
        );
        assert_eq!(addresses.ours().unwrap(), BTreeSet::new());
        addresses.remove(ip("10.9.0.7")).unwrap();
        assert!(addresses.extend([ip("10.9.0.7")], MINUTE).is_err());
        peer.plug_again();
        assert_ne!(addresses.link().unwrap().index, before.index);
        addresses.add(ip("10.9.0.7"), MINUTE).unwrap();
        assert_eq!(addresses.ours().unwrap(), [ip("10.9.0.7")].into());
    });
}

#[test]
fn without_ipv6_it_is_said_why() {
    on_two_hosts(|_| {
        sh("echo 1 > /proc/sys/net/ipv6/conf/veth0/disable_ipv6");
        let error = open().add(ip("fd09::7"), MINUTE).unwrap_err();
        assert!(error.to_string().contains("disable_ipv6"), "{error}");
    });
}

/// Waits for the events on a runtime of this thread, and no longer than anybody is patient.
fn told(watch: &mut AddressWatch, runtime: &tokio::runtime::Runtime) -> AddressEvent {
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, watch.next())
            .await
            .unwrap()
            .unwrap()
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn what_nobody_extends_the_kernel_takes_away_and_tells() {
    on_two_hosts(|_| {
        let runtime = runtime();
        let mut watch = runtime.block_on(async { AddressWatch::open(&settings()).unwrap() });
        let mut addresses = open();
        let ours = [ip("10.9.0.7"), ip("fd09::7")];
        for address in ours {
            addresses.add(address, Duration::from_millis(1)).unwrap();
        }
        let gone: BTreeSet<_> = ours
            .iter()
            .map(|_| told(&mut watch, &runtime))
            .map(|event| {
                let AddressEvent::Removed(address) = event else {
                    panic!("{event:?}")
                };
                address
            })
            .collect();
        assert_eq!(gone, ours.into());
        assert_eq!(addresses.ours().unwrap(), BTreeSet::new());
        assert!(matches!(
            addresses.extend(ours, MINUTE),
            Err(AddressError::Gone { .. })
        ));
    });
}

#[test]
fn what_others_do_to_the_interface_is_told() {
    on_two_hosts(|peer| {
        let runtime = runtime();
        let mut watch = runtime.block_on(async { AddressWatch::open(&settings()).unwrap() });
        assert_eq!(watch.state(), LinkState::Up);
        let mut addresses = open();
        let mut told = || told(&mut watch, &runtime);
        addresses.add(ip("10.9.0.7"), MINUTE).unwrap();
        // Not ours: of no interest.
        sh("ip addr add 10.9.0.66/32 dev veth0; ip addr del 10.9.0.66/32 dev veth0");
        sh("ip addr del 10.9.0.7/32 dev veth0");
        assert_eq!(told(), AddressEvent::Removed(ip("10.9.0.7")));
        peer.sh("ip link set veth1 down");
        assert_eq!(told(), AddressEvent::Link(LinkState::Down));
        peer.sh("ip link set veth1 up");
        assert_eq!(told(), AddressEvent::Link(LinkState::Up));
        sh("ip link set veth0 address 02:00:00:00:00:77");
        assert_eq!(told(), AddressEvent::PeersChanged);
        sh("ip link set veth0 down; ip link set veth0 name other0");
        assert_eq!(told(), AddressEvent::Link(LinkState::Down));
        assert_eq!(told(), AddressEvent::Link(LinkState::Gone));
        sh("ip link set other0 name veth0; ip link set veth0 up");
        assert_eq!(told(), AddressEvent::Link(LinkState::Down));
        assert_eq!(told(), AddressEvent::Link(LinkState::Up));
        sh("ip link del veth0");
        assert_eq!(told(), AddressEvent::Link(LinkState::Down));
        assert_eq!(told(), AddressEvent::Link(LinkState::Gone));
        peer.plug_again();
        assert_eq!(told(), AddressEvent::Link(LinkState::Down));
        assert_eq!(told(), AddressEvent::Link(LinkState::Up));
    });
}

#[test]
fn more_than_can_be_told_is_told_as_such() {
    on_two_hosts(|_| {
        let runtime = runtime();
        let mut watch = runtime.block_on(async { AddressWatch::open(&settings()).unwrap() });
        let many: String = (0..4000)
            .map(|n| format!("addr add 10.7.{}.{}/32 dev veth0\n", n / 250, n % 250))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), many).unwrap();
        sh(&format!("ip -batch {}", file.path().display()));
        sh("ip link set veth0 down");
        let mut all = vec![told(&mut watch, &runtime)];
        while all.last() != Some(&AddressEvent::LookAgain) {
            all.push(told(&mut watch, &runtime));
        }
        assert_eq!(watch.state(), LinkState::Down, "{all:?}");
    });
}
