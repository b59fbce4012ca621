//! What becomes of addresses on a real interface, as a neighbour sees it: one that asks by ARP who has them.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::core::At;
use super::hands::Hands;
use crate::host::lab::{CABLE, Peer, on_two_hosts, settings, sh};
use crate::host::{IS_OLD, boottime};

const ADDRESS: &str = "10.9.0.7";

fn address() -> IpAddr {
    ADDRESS.parse().unwrap()
}

fn minute() -> At {
    At(boottime() + Duration::from_secs(60))
}

fn open() -> Hands {
    Hands::open(settings()).unwrap()
}

/// With a host that it is done on, and one that looks at it.
fn on_a_host(test: impl FnOnce(&Peer) + Send + 'static) {
    on_two_hosts(|peer| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async { test(peer) });
    });
}

fn has_tables() -> bool {
    sh("nft list tables").contains("io_vip")
}

#[test]
fn what_an_administrator_has_put_there_answers_whatever_is_decided() {
    on_a_host(|peer| {
        sh(&format!("ip addr add {ADDRESS} dev lo"));
        let mut hands = open();
        let refused = hands.take(address(), minute()).unwrap_err();
        assert!(refused.contains("is not ours"), "{refused}");
        // So the core says when it could not be taken.
        hands.drop(address()).unwrap();
        hands.verify();
        assert!(peer.finds(address()));
        drop(hands);
        assert!(peer.finds(address()) && !has_tables());
    });
}

#[test]
fn what_an_administrator_has_put_beside_ours_stays_and_is_shut_while_others_may_take_it() {
    on_a_host(|peer| {
        let mut hands = open();
        hands.take(address(), minute()).unwrap();
        sh(&format!("ip addr add {ADDRESS}/24 dev {}", CABLE[0]));
        hands.drop(address()).unwrap();
        let left = sh(&format!("ip addr show dev {}", CABLE[0]));
        assert!(
            left.contains("10.9.0.7/24") && !left.contains("10.9.0.7/32"),
            "{left}"
        );
        // Another host may take it now.
        assert!(!peer.finds(address()));
        hands.verify();
        hands.give_back(Duration::ZERO, |_| true);
        assert!(!peer.finds(address()));
        // One that does not hear that it is out of the pool, for a while.
        hands.give_back(Duration::from_secs(60), |_| false);
        assert!(!peer.finds(address()));
        // And then nobody.
        hands.give_back(Duration::ZERO, |_| false);
        assert!(peer.finds(address()));
        assert!(hands.stuck().is_empty());
    });
}

#[test]
fn what_an_administrator_has_put_beside_ours_stays_shut_over_a_restart() {
    on_a_host(|peer| {
        let mut before = open();
        before.take(address(), minute()).unwrap();
        sh(&format!("ip addr add {ADDRESS}/24 dev {}", CABLE[0]));
        drop(before);
        assert!(!peer.finds(address()));
        let mut hands = open();
        let (found, until) = hands.found().unwrap();
        hands.adopt(&found, until);
        assert!(!peer.finds(address()));
        sh(&format!("ip addr del {ADDRESS}/24 dev {}", CABLE[0]));
        hands.verify();
        drop(hands);
        assert!(!has_tables());
    });
}

#[test]
fn what_an_old_kernel_cannot_tell_apart_stays_shut() {
    on_a_host(|peer| {
        IS_OLD.set(true);
        let address: IpAddr = "fd09::7".parse().unwrap();
        let mut before = open();
        before.take(address, minute()).unwrap();
        assert!(peer.finds(address));
        before.leave();
        let mut hands = open();
        let (found, until) = hands.found().unwrap();
        assert!(found.is_empty());
        hands.adopt(&found, until);
        assert!(!peer.finds(address));
        // As the core does with its own mark in the store: it cannot be taken, and another host may have it.
        hands.take(address, minute()).unwrap_err();
        hands.drop(address).unwrap();
        assert!(!peer.finds(address));
        drop(hands);
        assert!(!peer.finds(address));
    });
}

#[test]
fn all_that_others_have_taken_off_is_missing_at_once() {
    on_a_host(|_| {
        let mut hands = open();
        let all = ["10.9.0.7", "10.9.0.8", "fd09::7"].map(|text| text.parse::<IpAddr>().unwrap());
        for address in all {
            hands.take(address, minute()).unwrap();
        }
        assert!(hands.missing().is_empty());
        sh(&format!(
            "ip addr del 10.9.0.8 dev {here}; ip addr del fd09::7 dev {here}",
            here = CABLE[0]
        ));
        assert_eq!(hands.missing(), all[1..]);
    });
}

#[test]
fn what_was_stuck_and_is_held_again_stays() {
    on_a_host(|peer| {
        let [here, elsewhere] = [CABLE[0], "elsewhere"];
        let rename = |from, to| {
            sh(&format!(
                "ip link set {from} down; ip link set {from} name {to}; ip link set {to} up"
            ))
        };
        let mut hands = open();
        hands.take(address(), minute()).unwrap();
        rename(here, elsewhere);
        hands.drop(address()).unwrap();
        // It cannot be taken off there, and it is shut.
        assert!(sh("ip addr").contains(ADDRESS));
        assert!(!peer.finds(address()));
        rename(elsewhere, here);
        hands.take(address(), minute()).unwrap();
        hands.verify();
        assert!(sh("ip addr").contains(ADDRESS));
        assert!(peer.finds(address()));
    });
}

#[test]
fn a_panic_lets_go_of_everything() {
    on_a_host(|peer| {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut hands = open();
            hands.take(address(), minute()).unwrap();
            assert!(peer.finds(address()));
            panic!("as a daemon would");
        }));
        assert!(panicked.is_err());
        assert!(!peer.finds(address()));
        assert!(!sh("ip addr").contains(ADDRESS) && !has_tables());
    });
}
