use super::*;
use crate::store::{Memory, Transaction};

const TTL: Duration = Duration::from_secs(2);
const PREFIX: &str = "/service/lab/";

const fn at(seconds: u64) -> At {
    At(Duration::from_secs(seconds))
}

/// A store and a view of it.
struct Seen {
    memory: Memory,
    view: View,
    told: Revision,
}

impl Seen {
    fn new() -> Self {
        let memory = Memory::default();
        let told = memory.revision();
        let mut view = View::new(PREFIX, TTL);
        view.look(at(0), &memory.list(PREFIX));
        Self { memory, view, told }
    }

    fn put(&mut self, key: &str, value: &str, lease: Option<LeaseId>) {
        let key = format!("{PREFIX}{key}");
        self.memory
            .commit(&Transaction::default().put(key, value, lease))
            .unwrap();
    }

    fn delete(&mut self, key: &str) {
        let key = format!("{PREFIX}{key}");
        self.memory.commit(&Transaction::default().delete(key)).unwrap();
    }

    /// A node that takes part and asks to be waited for so long.
    fn node(&mut self, name: &str, ttl: Duration) -> LeaseId {
        let (lease, _) = self.memory.grant(Duration::ZERO, Duration::from_secs(100));
        self.put(&format!("nodes/{name}"), "healthy", Some(lease));
        self.put(&format!("ttl/{lease}"), &ttl.as_millis().to_string(), Some(lease));
        lease
    }

    fn watch(&mut self, now: At) -> News {
        let changes = self.memory.changes(PREFIX, self.told).unwrap();
        self.told = changes.revision;
        self.view.learn(now, &changes)
    }

    fn look(&mut self, now: At) -> News {
        let snapshot = self.memory.list(PREFIX);
        self.told = snapshot.revision;
        self.view.look(now, &snapshot)
    }

    fn alive(&self, now: At) -> Vec<&str> {
        self.view.taking_part(now, None).into_iter().collect()
    }
}

fn ip() -> IpAddr {
    IpAddr::from([10, 0, 0, 1])
}

#[test]
fn a_node_is_waited_for_as_long_as_it_asks_from_when_it_was_seen() {
    let mut seen = Seen::new();
    let quick = seen.node("quick", TTL);
    seen.node("slow", TTL * 5);
    seen.watch(at(10));
    assert_eq!(seen.alive(at(11)), ["quick", "slow"]);
    assert_eq!(seen.alive(at(12)), ["slow"]);
    assert_eq!(seen.view.next(at(12)), Some(at(20)));
    seen.put("nodes/quick", "healthy", Some(quick));
    // It is long ago that it was put; that is not known here.
    assert!(!seen.watch(at(15)).changed);
    assert_eq!(seen.alive(at(16)), ["quick", "slow"]);
    assert_eq!(seen.view.waited_for(quick), at(17));
}

#[test]
fn to_see_the_same_sign_of_life_again_is_no_sign_of_life() {
    let mut seen = Seen::new();
    let lease = seen.node("a", TTL);
    seen.watch(at(10));
    seen.look(at(11));
    assert_eq!(seen.view.waited_for(lease), at(12));
    seen.put("nodes/a", "healthy", Some(lease));
    seen.look(at(13));
    assert_eq!(seen.view.waited_for(lease), at(15));
}

#[test]
fn a_paused_node_and_one_with_no_lease_take_no_part() {
    let mut seen = Seen::new();
    seen.node("a", TTL);
    seen.node("b", TTL);
    seen.put("nodes/c", "healthy", None);
    seen.put("paused/a", "maintenance", None);
    seen.watch(at(1));
    assert_eq!(seen.alive(at(1)), ["b"]);
}

#[test]
fn a_mark_that_its_holder_takes_away_frees_the_address_at_once() {
    let mut seen = Seen::new();
    let lease = seen.node("a", TTL);
    seen.put("ips/10.0.0.1", "", None);
    seen.put("ips/10.0.0.1/marked", "a", Some(lease));
    seen.watch(at(10));
    assert_eq!(seen.view.free_from(ip()), at(12));
    // One that leaves takes its key away first.
    seen.delete("nodes/a");
    seen.delete("ips/10.0.0.1/marked");
    seen.watch(at(10));
    assert_eq!(seen.view.free_from(ip()), At::default());
}

#[test]
fn a_mark_that_goes_with_its_lease_frees_the_address_no_sooner() {
    for by_watch in [true, false] {
        let mut seen = Seen::new();
        let lease = seen.node("a", TTL);
        seen.put("ips/10.0.0.1", "", None);
        seen.put("ips/10.0.0.1/marked", "a", Some(lease));
        seen.watch(at(10));
        seen.put("nodes/a", "healthy", Some(lease));
        // A store that ends a lease too soon: an operator, or a leader that should not be one.
        seen.memory.revoke(lease);
        if by_watch {
            seen.watch(at(11));
        } else {
            seen.look(at(11));
        }
        assert_eq!(seen.view.free_from(ip()), at(13));
        assert_eq!(seen.view.haunted_by(ip()), Some(lease));
        assert_eq!(seen.view.next(at(11)), Some(at(13)));
        seen.node("b", TTL);
        seen.watch(at(13));
        assert_eq!(seen.view.free_from(ip()), At::default());
    }
}

#[test]
fn a_look_does_not_tell_what_signs_of_life_were_taken_away_again() {
    let mut seen = Seen::new();
    let lease = seen.node("a", TTL);
    seen.put("ips/10.0.0.1/marked", "a", Some(lease));
    seen.watch(at(10));
    // It shows more of them, and leaves; its mark stays, since the kernel does not let go.
    seen.put("nodes/a", "healthy", Some(lease));
    seen.delete("nodes/a");
    let mut watched = seen.view.clone();
    watched.learn(at(20), &seen.memory.changes(PREFIX, seen.told).unwrap());
    assert_eq!(watched.free_from(ip()), at(22));
    seen.look(at(30));
    assert_eq!(seen.view.free_from(ip()), at(32));
}

#[test]
fn a_mark_of_an_unknown_hand_is_waited_for_as_long_as_anybodys() {
    let mut seen = Seen::new();
    seen.node("a", TTL * 3);
    seen.put("ips/10.0.0.1/marked", "somebody", None);
    seen.watch(at(10));
    assert_eq!(seen.view.free_from(ip()), at(16));
    let (lease, _) = seen.memory.grant(Duration::ZERO, TTL);
    seen.put("ips/10.0.0.1/marked", "b", Some(lease));
    seen.watch(at(11));
    assert_eq!(seen.view.free_from(ip()), at(17));
}

#[test]
fn another_instance_of_a_name_does_not_answer_for_the_first() {
    let mut seen = Seen::new();
    let first = seen.node("a", TTL);
    seen.put("ips/10.0.0.1/marked", "a", Some(first));
    seen.watch(at(10));
    seen.node("a", TTL);
    seen.watch(at(11));
    // The first shows no sign of life any more, whatever the second does.
    assert_eq!(seen.view.free_from(ip()), at(12));
    assert_eq!(seen.alive(at(12)), ["a"]);
}

#[test]
fn a_longer_time_counts_from_when_it_is_seen() {
    let mut seen = Seen::new();
    let lease = seen.node("a", TTL);
    seen.watch(at(10));
    seen.put(&format!("ttl/{lease}"), "5000", Some(lease));
    seen.watch(at(11));
    assert_eq!(seen.view.waited_for(lease), at(16));
}

#[test]
fn an_address_is_of_the_pool_while_one_key_says_so() {
    let mut seen = Seen::new();
    for key in ["ips/2001:db8::1", "ips/2001:DB8:0::1/"] {
        seen.put(key, "", None);
    }
    seen.watch(at(1));
    assert_eq!(seen.view.pool().count(), 1);
    seen.delete("ips/2001:db8::1");
    seen.watch(at(1));
    let six = "2001:db8::1".parse().unwrap();
    assert_eq!(seen.view.pool_key(six), Some("/service/lab/ips/2001:DB8:0::1/"));
    seen.delete("ips/2001:DB8:0::1/");
    assert!(seen.watch(at(1)).changed);
    assert_eq!(seen.view.pool().count(), 0);
}

#[test]
fn what_is_no_address_is_named_once() {
    let mut seen = Seen::new();
    seen.put("ips/app1", "", None);
    assert_eq!(seen.watch(at(1)).rubbish.len(), 1);
    seen.put("ips/app1", "again", None);
    assert_eq!(seen.watch(at(2)).rubbish.len(), 0);
    assert_eq!(seen.look(at(3)).rubbish.len(), 0);
    seen.delete("ips/app1");
    seen.put("ips/app1", "", None);
    assert_eq!(seen.watch(at(4)).rubbish.len(), 1);
}

#[test]
fn what_is_told_twice_or_late_is_no_news() {
    let mut seen = Seen::new();
    let lease = seen.node("a", TTL);
    let changes = seen.memory.changes(PREFIX, Revision(1)).unwrap();
    assert!(seen.view.learn(at(10), &changes).changed);
    assert_eq!(seen.view.learn(at(11), &changes), News::default());
    assert_eq!(seen.view.waited_for(lease), at(12));
    assert_eq!(seen.view.revision(), Some(changes.revision));
}

#[test]
fn a_store_that_was_set_back_is_the_one_that_there_is() {
    let mut seen = Seen::new();
    let copy = seen.memory.clone();
    seen.put("ips/10.0.0.1", "", None);
    seen.watch(at(1));
    seen.memory = copy;
    seen.look(at(2));
    assert_eq!(seen.view.pool().count(), 0);
    assert!(!seen.view.has(Revision(2)));
    seen.put("ips/10.0.0.1", "", None);
    seen.watch(at(3));
    assert_eq!(seen.view.pool().count(), 1);
}
