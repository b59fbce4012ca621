use super::*;
use crate::store::{Act, Change, Memory, Outcome, StoreError};
use crate::vip::shown::State;

const TTL: Duration = Duration::from_secs(2);
const MARGIN: Duration = Duration::from_millis(200);
const INTERVAL: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_millis(400);
const PREFIX: &str = "/service/lab/";

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn settings(node: &str) -> Settings {
    Settings {
        node: node.to_owned(),
        prefix: PREFIX.to_owned(),
        ttl: TTL,
        margin: MARGIN,
        interval: INTERVAL,
        patience: PATIENCE,
    }
}

/// A node, its store and its kernel. Everything is answered at once, but for what a test holds back.
struct Node {
    core: Core,
    now: At,
    memory: Memory,
    told: Revision,
    /// What it asked of the store and of the kernel since the test looked last.
    done: Vec<Effect>,
    /// The store answers.
    store: bool,
    /// It can be listed and watched.
    seen: bool,
    /// The kernel does what it is told, and says so.
    kernel: Result<(), String>,
    /// Who else has what on the network, and whether anybody hears the answers.
    strangers: BTreeMap<IpAddr, String>,
    asks: bool,
    /// Answers are kept here instead, in their order.
    held_back: Option<Vec<Event>>,
}

impl Node {
    fn new(inheritance: Option<Inheritance>) -> Self {
        Self::on(Memory::default(), inheritance)
    }

    fn on(memory: Memory, inheritance: Option<Inheritance>) -> Self {
        Self {
            core: Core::new(settings("me"), inheritance),
            now: At(ms(100_000)),
            told: memory.revision(),
            memory,
            done: Vec::new(),
            store: true,
            seen: true,
            kernel: Ok(()),
            strangers: BTreeMap::new(),
            asks: true,
            held_back: None,
        }
    }

    /// One that takes part, with so many addresses in the pool.
    fn with(addresses: u8) -> Self {
        let mut node = Self::new(None);
        for n in 1..=addresses {
            node.put(&format!("ips/{}", ip(n)), "", None);
        }
        node.happen(Event::Time);
        node.happen(Event::Health(Ok(())));
        node.done.clear();
        node
    }

    fn put(&mut self, key: &str, value: &str, lease: Option<LeaseId>) {
        let put = Transaction::default().put(format!("{PREFIX}{key}"), value, lease);
        self.memory.commit(&put).unwrap();
    }

    fn delete(&mut self, key: &str) {
        let delete = Transaction::default().delete(format!("{PREFIX}{key}"));
        self.memory.commit(&delete).unwrap();
    }

    /// Another node shows a sign of life.
    fn other(&mut self, name: &str) -> LeaseId {
        let (lease, _) = self.memory.grant(self.now.0, TTL * 10);
        self.put(&format!("nodes/{name}"), "healthy", Some(lease));
        self.put(&format!("ttl/{lease}"), &TTL.as_millis().to_string(), Some(lease));
        lease
    }

    fn value(&self, key: &str) -> Option<&str> {
        let entry = self.memory.get(&format!("{PREFIX}{key}"))?;
        Some(entry.value.as_str())
    }

    fn mark(&self, n: u8) -> Option<&str> {
        self.value(&format!("ips/{}/marked", ip(n)))
    }

    fn happen(&mut self, event: Event) {
        let effects = self.core.on(self.now, event);
        let mut answers: Vec<Event> = effects.iter().filter_map(|effect| self.answer(effect)).collect();
        self.done.extend(effects);
        // What the neighbours say is held back by nobody.
        let said = answers.extract_if(.., |answer| matches!(answer, Event::Answered { .. }));
        for answer in said.collect::<Vec<_>>() {
            self.happen(answer);
        }
        match &mut self.held_back {
            Some(held_back) => held_back.extend(answers),
            None => answers.into_iter().for_each(|answer| self.happen(answer)),
        }
        self.watch();
    }

    fn watch(&mut self) {
        let hears = self.store && self.seen && self.core.watching;
        if hears && self.held_back.is_none() && self.memory.revision() > self.told {
            let changes = self.memory.changes(PREFIX, self.told).unwrap();
            self.told = changes.revision;
            self.happen(Event::Changes(changes));
        }
    }

    fn answer(&mut self, effect: &Effect) -> Option<Event> {
        let (sent, now) = (self.now, self.now.0);
        let result = self.kernel.clone();
        match effect {
            Effect::Take { address, .. } => Some(Event::Taken {
                address: *address,
                result,
            }),
            Effect::Drop { address } => Some(Event::Dropped {
                address: *address,
                result,
            }),
            Effect::Ask { addresses } if self.asks => Some(Event::Answered {
                addresses: addresses.clone(),
                found: self.strangers.clone(),
            }),
            _ if !self.store => None,
            Effect::Grant { ttl } => {
                let result = Ok(self.memory.grant(now, *ttl));
                Some(Event::Granted { sent, result })
            }
            Effect::KeepAlive { lease } => {
                let (lease, result) = (*lease, self.memory.keep_alive(now, *lease));
                Some(Event::KeptAlive { lease, sent, result })
            }
            Effect::Revoke { lease } => {
                self.memory.revoke(*lease);
                None
            }
            Effect::Commit { ticket, transaction } => {
                let (ticket, result) = (*ticket, self.memory.commit(transaction));
                Some(Event::Committed { ticket, sent, result })
            }
            Effect::Look if !self.seen => {
                let error = StoreError::Unavailable("no leader".to_owned());
                Some(Event::Looked(Err(error)))
            }
            Effect::Look => {
                let snapshot = self.memory.list(PREFIX);
                if self.held_back.is_none() {
                    self.told = snapshot.revision;
                }
                Some(Event::Looked(Ok(snapshot)))
            }
            _ => None,
        }
    }

    /// Time goes on, and the node is asked whenever it wants to be.
    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        let mut turns = 0;
        while let Some(wake) = self.core.wake().filter(|wake| *wake <= end) {
            turns += 1;
            assert!(turns < 10_000, "it wants to be asked all the time");
            self.now = self.now.max(wake);
            self.memory.expire(self.now.0);
            self.happen(Event::Time);
        }
        self.now = end;
        self.memory.expire(self.now.0);
        self.watch();
    }

    /// Time goes on, and nobody asks.
    fn freeze(&mut self, span: Duration) {
        self.now = self.now + span;
        self.memory.expire(self.now.0);
    }

    fn done(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.done)
    }

    fn taken(&mut self) -> Vec<IpAddr> {
        let take = |effect: &Effect| match effect {
            Effect::Take { address, .. } => Some(*address),
            _ => None,
        };
        self.done.iter().filter_map(take).collect()
    }

    fn dropped(&mut self) -> Vec<IpAddr> {
        let dropped = |effect: &Effect| match effect {
            Effect::Drop { address } => Some(*address),
            _ => None,
        };
        self.done.iter().filter_map(dropped).collect()
    }

    fn said(&self, is: impl Fn(&Said) -> bool) -> bool {
        self.done
            .iter()
            .any(|effect| matches!(effect, Effect::Say(said) if is(said)))
    }

    fn session(&self) -> (LeaseId, At) {
        self.core.session().unwrap()
    }
}

fn commits(effects: &[Effect]) -> Vec<&Transaction> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Commit { transaction, .. } => Some(transaction),
            _ => None,
        })
        .collect()
}

fn about_marks(effects: &[Effect]) -> usize {
    let is = |act: &Act| match act {
        Act::Put { key, .. } | Act::Delete { key } => key.ends_with("/marked"),
    };
    let commits = commits(effects).into_iter();
    commits
        .filter(|transaction| transaction.then.iter().any(is))
        .count()
}

#[test]
fn alone_it_holds_all_and_says_so_in_the_seeds_layout() {
    let mut node = Node::with(3);
    node.pass(ms(10));
    assert_eq!(node.value("nodes/me"), Some("healthy"));
    for n in 1..=3 {
        assert_eq!(node.mark(n), Some("me"));
    }
    let (lease, _) = node.session();
    assert_eq!(node.value(&format!("ttl/{lease}")), Some("2000"));
    let status = node.core.status(node.now);
    assert_eq!(status.state, State::TakesPart);
    assert_eq!(status.held.len(), 3);
    let token = node
        .memory
        .get(&format!("{PREFIX}ips/{}/marked", ip(2)))
        .unwrap()
        .modified
        .0;
    assert_eq!(status.held[1].token, Some(token));
    assert_eq!(status.pool[1].owner.as_deref(), Some("me"));
    assert!(serde_json::to_string(&status).unwrap().contains("takes_part"));
}

#[test]
fn nothing_is_taken_before_the_store_has_said_so() {
    let mut node = Node::new(None);
    node.put("ips/10.0.0.1", "", None);
    node.happen(Event::Time);
    node.happen(Event::Health(Ok(())));
    assert_eq!(node.taken(), [ip(1)]);
    let effects = node.done();
    let claim = effects.iter().position(|effect| matches!(effect, Effect::Commit { transaction, .. } if format!("{transaction:?}").contains("marked")));
    let take = effects
        .iter()
        .position(|effect| matches!(effect, Effect::Take { .. }));
    assert!(claim < take);
}

#[test]
fn until_counts_from_when_the_sign_of_life_was_sent() {
    let mut node = Node::with(1);
    node.held_back = Some(Vec::new());
    node.pass(INTERVAL);
    let sent = node.now;
    let answers = node.held_back.take().unwrap();
    assert_eq!(answers.len(), 2, "a sign of life and a lease: {answers:?}");
    node.now = node.now + ms(300);
    node.done.clear();
    for answer in answers {
        node.happen(answer);
    }
    let until = sent + TTL.saturating_sub(MARGIN);
    assert_eq!(node.session().1, until);
    assert!(node.done.contains(&Effect::Extend { until }));
}

#[test]
fn whoever_was_stopped_for_too_long_drops_all_before_it_looks_at_anything() {
    let mut node = Node::with(2);
    node.freeze(TTL);
    node.store = false;
    let effects = node.core.on(node.now, Event::Heal);
    assert_eq!(effects[0], Effect::Drop { address: ip(1) });
    assert_eq!(effects[1], Effect::Drop { address: ip(2) });
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Announce { .. } | Effect::Extend { .. }))
    );
}

#[test]
fn a_claim_of_before_a_stop_takes_nothing_though_the_store_says_done() {
    let mut node = Node::with(1);
    node.put("ips/10.0.0.2", "", None);
    node.store = false;
    let changes = node.memory.changes(PREFIX, node.told).unwrap();
    node.happen(Event::Changes(changes));
    let sent = node.now;
    let effects = node.done();
    let claim = effects.iter().find_map(|effect| match effect {
        Effect::Commit { ticket, transaction } => Some((*ticket, transaction.clone())),
        _ => None,
    });
    let (ticket, transaction) = claim.unwrap();
    let result = node.memory.commit(&transaction);
    assert!(matches!(result, Ok(Outcome::Done(_))));
    // It stands still; a sign of life of its own was late, and lets it hold things again before it gets to the old answer.
    node.freeze(ms(300));
    node.happen(Event::Time);
    let beat = node.done().into_iter().find_map(|effect| match effect {
        Effect::Commit { ticket, .. } => Some(ticket),
        _ => None,
    });
    assert_eq!(beat, None, "the interval is not over");
    node.freeze(TTL);
    let late = Event::Committed { ticket, sent, result };
    node.happen(late);
    assert!(node.taken().is_empty());
    assert_eq!(node.dropped(), [ip(1)]);
    // When the store answers again it claims what is marked for it, by the mark's revision.
    node.store = true;
    node.done.clear();
    node.pass(TTL * 2);
    assert_eq!(node.taken(), [ip(1), ip(2)]);
}

#[test]
fn what_a_lost_answer_has_done_is_seen_and_claimed_again() {
    let mut node = Node::with(0);
    node.held_back = Some(Vec::new());
    node.put("ips/10.0.0.1", "", None);
    let changes = node.memory.changes(PREFIX, node.told).unwrap();
    node.told = changes.revision;
    node.happen(Event::Changes(changes));
    let answer = node.held_back.take().unwrap().pop().unwrap();
    let Event::Committed { ticket, sent, .. } = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(node.mark(1), Some("me"));
    let first = node.memory.revision();
    let result = Err(StoreError::Unknown("no answer".to_owned()));
    node.happen(Event::Committed { ticket, sent, result });
    node.pass(INTERVAL);
    assert_eq!(node.taken(), [ip(1)]);
    assert!(
        node.memory
            .get(&format!("{PREFIX}ips/10.0.0.1/marked"))
            .unwrap()
            .modified
            > first
    );
}

#[test]
fn a_mark_goes_only_when_the_kernel_says_that_the_address_is_down() {
    let mut node = Node::with(2);
    node.kernel = Err("it hangs".to_owned());
    node.delete("ips/10.0.0.2");
    node.watch();
    assert_eq!(node.dropped(), [ip(2)]);
    node.pass(ms(1_000));
    assert_eq!(node.mark(2), Some("me"));
    assert!(node.dropped().len() > 2, "it is told again");
    assert!(node.said(|said| matches!(said, Said::DropFailed { .. })));
    node.kernel = Ok(());
    node.pass(ms(1_000));
    assert_eq!(node.mark(2), None);
    assert_eq!(node.mark(1), Some("me"));
}

#[test]
fn or_when_it_must_be_since_nothing_makes_it_last_any_longer() {
    let mut node = Node::with(2);
    node.kernel = Err("it hangs".to_owned());
    let (_, until) = node.session();
    node.delete("ips/10.0.0.2");
    node.watch();
    node.pass(until.since(node.now) - ms(1));
    assert_eq!(node.mark(2), Some("me"));
    node.pass(ms(2));
    assert_eq!(node.mark(2), None);
    // It is not taken again before the kernel has let go of it.
    node.done.clear();
    node.put("ips/10.0.0.2", "", None);
    node.watch();
    node.pass(ms(1_000));
    assert!(node.taken().is_empty());
}

#[test]
fn that_an_address_is_taken_is_said_when_the_kernel_has_said_so_and_once() {
    let took = |said: &Said| matches!(said, Said::Took { .. });
    let mut node = Node::with(0);
    node.kernel = Err("no such device".to_owned());
    node.put("ips/10.0.0.1", "", None);
    node.watch();
    assert_eq!(node.taken(), [ip(1)]);
    assert!(!node.said(took) && node.said(|said| matches!(said, Said::TakeFailed { .. })));
    node.kernel = Ok(());
    node.pass(TROUBLE_FIRST * 2);
    assert!(node.said(took));
    // Put back, it is not taken again.
    node.done.clear();
    node.happen(Event::Lost { address: ip(1) });
    assert_eq!(node.taken(), [ip(1)]);
    assert!(!node.said(took));
}

#[test]
fn what_cannot_be_held_here_is_left_to_others_and_told_to_them() {
    let mut node = Node::with(1);
    node.other("other");
    node.kernel = Err("no such device".to_owned());
    node.put("ips/10.0.0.2", "", None);
    node.put("ips/10.0.0.2/preferred", "me", None);
    let before = node.memory.revision();
    node.watch();
    assert_eq!(node.taken(), [ip(2)]);
    node.kernel = Ok(());
    node.pass(ms(500));
    assert_eq!(node.mark(2), None);
    assert_eq!(node.value("cannot/me/10.0.0.2"), Some("no such device"));
    // At the same revision: nobody ever thinks that it is still to be this node's.
    let changes = node.memory.changes(PREFIX, before).unwrap();
    let gone = changes.changes.iter().find_map(|change| match change {
        Change::Gone { at, .. } => Some(*at),
        Change::Put(_) => None,
    });
    let cannot = node.memory.get(&format!("{PREFIX}cannot/me/10.0.0.2")).unwrap();
    assert_eq!(gone, Some(cannot.modified));
    assert_eq!(node.mark(1), Some("me"), "what works is held on");
    // Then it tries again.
    node.done.clear();
    node.other("other");
    node.pass(TROUBLE_FIRST);
    assert_eq!(node.taken(), [ip(2)]);
    assert_eq!(node.value("cannot/me/10.0.0.2"), None);
}

#[test]
fn what_works_is_not_given_up_for_a_node_that_could_not_hold_it_and_might_by_now() {
    let mut node = Node::with(2);
    let other = node.other("other");
    for n in [1, 2] {
        node.put(&format!("cannot/other/{}", ip(n)), "no such device", Some(other));
    }
    node.watch();
    node.put("ips/10.0.0.1/preferred", "other", None);
    for n in [1, 2] {
        let says = crate::vip::keys::untried("no such device");
        node.put(&format!("cannot/other/{}", ip(n)), &says, Some(other));
        node.watch();
    }
    assert!(node.dropped().is_empty());
    // An operator who wants it there now knows better.
    node.put("ips/10.0.0.1/preferred", "other", None);
    node.watch();
    assert_eq!(node.dropped(), [ip(1)]);
}

/// A node that could not hold the second of its two addresses, which another one holds by now; and that one's lease.
fn one_that_could_not() -> (Node, LeaseId) {
    let mut node = Node::with(1);
    let other = node.other("other");
    node.kernel = Err("no such device".to_owned());
    node.put("ips/10.0.0.2", "", None);
    node.put("ips/10.0.0.2/preferred", "me", None);
    node.watch();
    node.kernel = Ok(());
    node.pass(ms(500));
    assert_eq!(node.value("cannot/me/10.0.0.2"), Some("no such device"));
    node.put("ips/10.0.0.2/marked", "other", Some(other));
    node.watch();
    node.done.clear();
    (node, other)
}

impl Node {
    /// Time goes on, and another node shows signs of life.
    fn pass_with(&mut self, name: &str, lease: LeaseId, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.memory.keep_alive(self.now.0, lease).unwrap();
            self.put(&format!("nodes/{name}"), "healthy", Some(lease));
            self.watch();
            self.pass(INTERVAL.min(end.since(self.now)));
        }
    }
}

#[test]
fn a_node_that_could_not_hold_what_another_one_holds_says_that_it_would_try_again_and_in_the_end_nothing() {
    let (mut node, other) = one_that_could_not();
    node.pass_with("other", other, TROUBLE_FIRST + INTERVAL);
    assert_eq!(
        node.value("cannot/me/10.0.0.2"),
        Some("not tried since: no such device")
    );
    node.pass_with("other", other, UNTRIED_FIRST - INTERVAL * 4);
    assert!(node.value("cannot/me/10.0.0.2").is_some());
    assert!(node.taken().is_empty() && node.dropped().is_empty());
    node.pass_with("other", other, INTERVAL * 4);
    assert_eq!(node.value("cannot/me/10.0.0.2"), None);
}

#[test]
fn it_tries_again_at_once_when_nobody_else_holds_it_or_an_operator_wants_it() {
    let (mut node, other) = one_that_could_not();
    node.pass_with("other", other, TROUBLE_FIRST + INTERVAL);
    // All others are gone.
    node.memory.revoke(other);
    node.watch();
    node.pass(TTL);
    assert_eq!(node.taken(), [ip(2)]);
    assert_eq!(node.value("cannot/me/10.0.0.2"), None, "it is held");
    let (mut node, other) = one_that_could_not();
    // Before that is over, or after.
    node.put("ips/10.0.0.2/preferred", "me", None);
    node.pass_with("other", other, TROUBLE_FIRST + INTERVAL);
    assert_eq!(node.value("cannot/me/10.0.0.2"), None);
}

#[test]
fn what_was_said_of_an_address_and_comes_late_is_taken_back_while_it_is_held() {
    for says in [
        "no such device".to_owned(),
        crate::vip::keys::untried("no such device"),
    ] {
        let mut node = Node::with(1);
        node.other("other");
        node.watch();
        let (lease, _) = node.session();
        node.done.clear();
        node.put("cannot/me/10.0.0.1", &says, Some(lease));
        node.watch();
        assert_eq!(node.value("cannot/me/10.0.0.1"), None);
        assert!(node.dropped().is_empty(), "it works");
    }
}

#[test]
fn what_a_stranger_has_is_left_alone_until_nobody_answers_for_it() {
    let asked = |effects: &[Effect]| {
        let asks = |effect: &&Effect| matches!(effect, Effect::Ask { .. });
        effects.iter().filter(asks).count()
    };
    let mut node = Node::with(1);
    node.strangers.insert(ip(2), "02:00:00:00:00:09".to_owned());
    node.put("ips/10.0.0.2", "", None);
    node.watch();
    assert!(node.taken().is_empty() && about_marks(&node.done) == 0);
    let why = "02:00:00:00:00:09 has it already, and holds it for no node";
    assert_eq!(node.value("cannot/me/10.0.0.2"), Some(why));
    let shown = node.core.status(node.now);
    assert_eq!(shown.pool[1].cannot.get("me").map(String::as_str), Some(why));
    node.pass(TROUBLE_FIRST - ms(1));
    assert_eq!(asked(&node.done()), 1);
    let written = node
        .memory
        .get(&format!("{PREFIX}cannot/me/10.0.0.2"))
        .unwrap()
        .modified;
    node.pass(TROUBLE_LONGEST * 10);
    let effects = node.done();
    assert!((10..=14).contains(&asked(&effects)), "{}", asked(&effects));
    let said = |effect: &Effect| matches!(effect, Effect::Say(Said::Stranger { .. }));
    assert!(!effects.iter().any(said), "once");
    let still = node
        .memory
        .get(&format!("{PREFIX}cannot/me/10.0.0.2"))
        .unwrap()
        .modified;
    assert_eq!(written, still);
    node.strangers.clear();
    node.pass(TROUBLE_LONGEST);
    assert_eq!(node.taken(), [ip(2)]);
    assert_eq!(node.value("cannot/me/10.0.0.2"), None);
    // Out of the pool, it is nothing to anybody; back in it is asked for again.
    node.delete("ips/10.0.0.2");
    node.watch();
    node.strangers.insert(ip(2), "02:00:00:00:00:09".to_owned());
    node.done.clear();
    node.put("ips/10.0.0.2", "", None);
    node.watch();
    assert!(node.taken().is_empty() && node.value("cannot/me/10.0.0.2").is_some());
    node.delete("ips/10.0.0.2");
    node.watch();
    assert_eq!(node.value("cannot/me/10.0.0.2"), None);
}

#[test]
fn nobody_is_asked_for_what_a_node_has_held() {
    let asks = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Ask { .. }));
    let mut node = Node::new(None);
    node.put("ips/10.0.0.1", "", None);
    let other = node.other("other");
    node.put("ips/10.0.0.1/marked", "other", Some(other));
    // Even its holder's own answer means nothing.
    node.strangers.insert(ip(1), "02:00:00:00:00:02".to_owned());
    node.happen(Event::Time);
    node.happen(Event::Health(Ok(())));
    node.delete("nodes/other");
    node.delete("ips/10.0.0.1/marked");
    node.watch();
    assert_eq!(node.taken(), [ip(1)]);
    assert!(!asks(&node.done()));
    // Nor does it wait for an answer that does not come.
    let mut node = Node::with(1);
    node.asks = false;
    node.put("ips/10.0.0.2", "", None);
    node.watch();
    assert!(asks(&node.done()));
    node.pass(ASKED_FOR * ASKED_TIMES - ms(1));
    assert!(node.taken().is_empty() && asks(&node.done()), "once more");
    node.pass(ms(1));
    assert_eq!(node.taken(), [ip(2)]);
}

#[test]
fn what_somebody_takes_off_is_put_there_again_but_not_for_ever() {
    let mut node = Node::with(1);
    for _ in 0..LOSSES {
        node.happen(Event::Lost { address: ip(1) });
    }
    assert_eq!(node.taken().len(), LOSSES as usize);
    assert!(node.dropped().is_empty());
    node.happen(Event::Lost { address: ip(1) });
    assert_eq!(node.dropped(), [ip(1)]);
    assert!(node.said(|said| matches!(said, Said::TakeFailed { .. })));
}

#[test]
fn the_neighbours_are_told_again_and_again() {
    let mut node = Node::with(1);
    let began = node.now;
    let mut told = Vec::new();
    while node.now < began + ms(130_000) {
        node.pass(ms(50));
        let times = node
            .done()
            .into_iter()
            .filter(|effect| matches!(effect, Effect::Announce { .. }));
        told.extend(times.map(|_| node.now.since(began).as_millis()));
    }
    assert_eq!(told, [100, 500, 1_000, 2_000, 5_000, 65_000, 125_000]);
    node.happen(Event::Heal);
    let announced = |effect: &&Effect| matches!(effect, Effect::Announce { .. });
    assert_eq!(node.done().iter().filter(announced).count(), 1);
    node.pass(ms(100));
    assert_eq!(node.done().iter().filter(announced).count(), 1);
}

#[test]
fn a_node_that_is_not_well_gives_up_everything_and_tells_the_others_first() {
    for event in [Event::Health(Err("503".to_owned())), Event::Stop { keep: false }] {
        let mut node = Node::with(2);
        node.happen(event);
        assert_eq!(node.dropped(), [ip(1), ip(2)]);
        assert_eq!(
            (node.mark(1), node.mark(2), node.value("nodes/me")),
            (None, None, None)
        );
        let effects = node.done();
        let first = format!("{:?}", commits(&effects)[0]);
        assert!(first.contains("nodes/me") && first.contains("Delete"), "{first}");
    }
}

#[test]
fn a_pause_is_heeded_and_a_resume_too() {
    let mut node = Node::with(1);
    node.put("paused/me", "maintenance", None);
    node.watch();
    assert_eq!(node.dropped(), [ip(1)]);
    assert_eq!(node.mark(1), None);
    assert_eq!(
        node.core.status(node.now).because.as_deref(),
        Some("it is paused: maintenance")
    );
    node.pass(TTL * 3);
    assert_eq!(node.value("nodes/me"), None);
    node.delete("paused/me");
    node.watch();
    node.pass(ms(500));
    assert_eq!(node.mark(1), Some("me"));
}

#[test]
fn an_address_goes_where_an_operator_wants_it_and_no_other_moves() {
    let mut node = Node::with(2);
    node.other("other");
    node.watch();
    assert_eq!(node.dropped().len(), 1, "its share");
    let kept = if node.mark(1).is_some() { 1 } else { 2 };
    let given = 3 - kept;
    let other = node.other("other");
    node.put(&format!("ips/{}/marked", ip(given)), "other", Some(other));
    node.watch();
    node.done.clear();
    node.put(&format!("ips/{}/preferred", ip(kept)), "other", None);
    node.watch();
    assert_eq!(node.dropped(), [ip(kept)]);
    assert_eq!(node.mark(kept), None);
}

#[test]
fn addresses_move_one_after_the_other() {
    let mut node = Node::with(6);
    let other = node.other("other");
    node.watch();
    let mut given = 0;
    while given < 3 {
        assert_eq!(node.dropped().len(), 1);
        node.pass(ms(300));
        assert_eq!(node.dropped().len(), 1, "the other has not claimed the first");
        node.put("nodes/other", "healthy", Some(other));
        let free = (1..=6).find(|n| node.mark(*n).is_none()).unwrap();
        node.done.clear();
        node.put(&format!("ips/{}/marked", ip(free)), "other", Some(other));
        node.watch();
        given += 1;
    }
    assert!(node.dropped().is_empty());
}

#[test]
fn a_mark_that_is_another_hands_is_heeded_at_once() {
    let mut node = Node::with(2);
    node.delete("ips/10.0.0.1/marked");
    node.watch();
    assert_eq!(node.dropped(), [ip(1)]);
    assert_eq!(node.taken(), [ip(1)], "it is free, and this node's share");
    node.done.clear();
    let other = node.other("other");
    node.put("ips/10.0.0.2/marked", "other", Some(other));
    node.watch();
    assert_eq!(node.dropped(), [ip(2)]);
    assert_eq!(node.mark(2), Some("other"));
}

#[test]
fn whoever_is_silent_is_succeeded_when_its_time_is_over() {
    let mut node = Node::new(None);
    node.put("ips/10.0.0.1", "", None);
    let other = node.other("other");
    node.put("ips/10.0.0.1/marked", "other", Some(other));
    node.happen(Event::Time);
    let seen = node.now;
    node.happen(Event::Health(Ok(())));
    node.pass(TTL - ms(1));
    assert!(node.taken().is_empty());
    node.pass(ms(1));
    assert_eq!(node.taken(), [ip(1)]);
    assert!(node.said(|said| matches!(said, Said::Took { from: Some(from), .. } if from == "other")));
    assert_eq!(node.now.since(seen), TTL);
}

#[test]
fn a_sign_of_life_that_is_not_seen_here_yet_saves_its_node() {
    let mut node = Node::new(None);
    node.put("ips/10.0.0.1", "", None);
    let other = node.other("other");
    node.put("ips/10.0.0.1/marked", "other", Some(other));
    node.happen(Event::Time);
    node.happen(Event::Health(Ok(())));
    // The watch is late.
    let told = node.told;
    node.told = Revision(u64::MAX);
    node.pass(TTL - ms(1));
    node.put("nodes/other", "healthy", Some(other));
    node.happen(Event::Time);
    node.pass(ms(1));
    assert!(node.taken().is_empty());
    assert_eq!(node.mark(1), Some("other"));
    node.told = told;
}

#[test]
fn a_watch_that_is_stuck_is_noticed_by_what_the_store_answers() {
    let mut node = Node::with(1);
    node.told = Revision(u64::MAX);
    node.pass(INTERVAL + ms(1));
    node.done.clear();
    node.pass(PATIENCE);
    assert!(node.done.contains(&Effect::Look));
}

#[test]
fn a_watch_that_says_nothing_is_not_believed_by_a_node_outside_either() {
    let mut node = Node::with(1);
    node.happen(Event::Health(Err("503".to_owned())));
    node.pass(ms(100));
    node.done.clear();
    node.told = Revision(u64::MAX);
    node.pass(TTL);
    assert!(node.done.contains(&Effect::Look));
}

#[test]
fn a_store_that_does_not_answer_is_asked_again_and_told_of_once() {
    let mut node = Node::with(1);
    node.store = false;
    node.pass(ms(60_000));
    let effects = node.done();
    let lost = |effect: &&Effect| matches!(effect, Effect::Say(Said::StoreLost { .. }));
    assert_eq!(effects.iter().filter(lost).count(), 1);
    assert!(effects.contains(&Effect::Drop { address: ip(1) }));
    // Whoever hears nothing shows no more than one sign of life: it might get through.
    assert_eq!(commits(&effects).len(), 1, "{effects:?}");
    node.store = true;
    node.pass(ms(5_000));
    assert_eq!(node.taken(), [ip(1)]);
    assert!(node.said(|said| matches!(said, Said::StoreBack { .. })));
}

#[test]
fn whoever_does_not_see_the_store_for_a_ttl_takes_no_part_though_its_signs_of_life_get_through() {
    let cannot = || StoreError::Unavailable("cancelled".to_owned());
    // Its watch ends and no other one can be had; or it tells nothing, and it cannot be listed either.
    for ends in [true, false] {
        let mut node = Node::with(2);
        node.other("other");
        node.watch();
        node.seen = false;
        if ends {
            node.happen(Event::WatchEnded(cannot()));
        }
        node.done.clear();
        node.pass(TTL - MARGIN);
        assert!(node.dropped().is_empty(), "that may be over soon");
        assert_eq!(node.value("nodes/me"), Some("healthy"));
        node.pass(MARGIN + PATIENCE * 4);
        assert_eq!(node.dropped().len(), 1);
        assert_eq!(node.value("nodes/me"), None);
        assert_eq!(
            (node.mark(1), node.mark(2)),
            (None, None),
            "orderly: nobody waits"
        );
        let effects = node.done();
        let unseen = |effect: &&Effect| matches!(effect, Effect::Say(Said::StoreUnseen { .. }));
        assert_eq!(effects.iter().filter(unseen).count(), 1);
        let lost =
            |effect: &Effect| matches!(effect, Effect::Say(Said::StoreLost { .. } | Said::Lapsed { .. }));
        assert!(!effects.iter().any(lost), "what it says is done: {effects:?}");
        let because = node.core.status(node.now).because;
        assert_eq!(because.as_deref(), Some("what is in the store cannot be seen"));
        node.pass(TTL * 3);
        let effects = node.done();
        let lists = effects.iter().filter(|effect| **effect == Effect::Look).count();
        assert!(
            lists < 10,
            "what fails at once is not asked for all the time: {lists}"
        );
        assert_eq!(node.value("nodes/me"), None);
        node.seen = true;
        node.pass(TTL);
        assert_eq!(node.value("nodes/me"), Some("healthy"));
        assert!(node.said(|said| matches!(said, Said::StoreSeen { .. })));
        assert!(!node.taken().is_empty());
    }
}

#[test]
fn which_of_the_two_fails_is_said_and_the_one_does_not_hide_the_other() {
    let mut node = Node::with(1);
    node.seen = false;
    node.happen(Event::WatchEnded(StoreError::Unavailable("cancelled".to_owned())));
    node.pass(INTERVAL);
    assert!(node.said(|said| matches!(said, Said::StoreUnseen { error } if error.contains("no leader"))));
    assert!(!node.said(|said| matches!(said, Said::StoreLost { .. })));
    node.seen = true;
    node.pass(PAUSE_LONGEST);
    assert!(node.said(|said| matches!(said, Said::StoreSeen { .. })));
    assert!(!node.said(|said| matches!(said, Said::StoreBack { .. })));
}

#[test]
fn a_lease_that_the_store_has_ended_is_followed_by_another_at_once() {
    let mut node = Node::with(2);
    let (first, _) = node.session();
    node.memory.revoke(first);
    node.watch();
    assert_eq!(node.dropped(), [ip(1), ip(2)]);
    node.done.clear();
    node.pass(INTERVAL * 2);
    assert_ne!(node.session().0, first);
    // What was held by it is known to be down: nobody is waited for.
    assert_eq!(node.taken(), [ip(1), ip(2)]);
}

#[test]
fn a_key_that_was_deleted_by_hand_is_put_again_after_all_was_dropped() {
    for key in ["nodes/me", "ttl"] {
        let mut node = Node::with(1);
        let key = if key == "ttl" {
            format!("ttl/{}", node.session().0)
        } else {
            key.to_owned()
        };
        node.delete(&key);
        node.watch();
        node.pass(INTERVAL * 2);
        assert_eq!(node.dropped(), [ip(1)]);
        assert_eq!(node.taken(), [ip(1)]);
        assert!(node.value(&key).is_some());
        assert_eq!(node.mark(1), Some("me"));
    }
}

#[test]
fn another_instance_of_its_name_is_waited_for_and_told_of_once() {
    let mut node = Node::new(None);
    node.put("ips/10.0.0.1", "", None);
    let rival = node.other("me");
    node.happen(Event::Time);
    node.happen(Event::Health(Ok(())));
    for _ in 0..10 {
        node.pass(TTL / 2);
        node.put("nodes/me", "healthy", Some(rival));
        node.watch();
    }
    assert!(node.taken().is_empty());
    assert_eq!(node.core.status(node.now).state, State::NameInUse);
    let effects = node.done();
    let in_use = |effect: &&Effect| matches!(effect, Effect::Say(Said::NameInUse { .. }));
    assert_eq!(effects.iter().filter(in_use).count(), 1);
    // It is silent.
    node.pass(TTL + ms(1));
    assert_eq!(node.taken(), [ip(1)]);
}

#[test]
fn told_to_end_it_ends_when_all_is_given_up() {
    let mut node = Node::with(2);
    let (lease, _) = node.session();
    node.happen(Event::Stop { keep: false });
    let effects = node.done();
    let at = |wanted: &Effect| effects.iter().position(|effect| effect == wanted);
    assert!(at(&Effect::Drop { address: ip(2) }) < at(&Effect::Revoke { lease }));
    assert!(at(&Effect::Revoke { lease }).is_some() && at(&Effect::Revoke { lease }) < at(&Effect::Finished));
    assert_eq!(node.core.session(), None);
    assert_eq!(node.core.wake(), None);
    assert!(node.core.on(node.now, Event::Time).is_empty());
}

#[test]
fn told_to_end_it_does_not_wait_for_a_store_that_is_gone_for_longer_than_others_wait_for_it() {
    let mut node = Node::with(1);
    node.store = false;
    let (_, until) = node.session();
    node.happen(Event::Stop { keep: false });
    assert_eq!(node.dropped(), [ip(1)]);
    node.pass(until.since(node.now) - ms(1));
    assert!(!node.done.contains(&Effect::Finished));
    node.pass(ms(1));
    assert!(node.done.contains(&Effect::Finished));
}

#[test]
fn told_to_keep_all_it_shows_one_more_sign_of_life_and_the_next_one_goes_on() {
    let mut node = Node::with(2);
    node.pass(INTERVAL - ms(1));
    node.done.clear();
    node.happen(Event::Stop { keep: true });
    let effects = node.done();
    let (lease, until) = node.session();
    assert_eq!(until, node.now + TTL.saturating_sub(MARGIN), "a whole ttl");
    let end = [Effect::Extend { until }, Effect::Finished];
    assert_eq!(effects[effects.len() - 2..], end);
    assert_eq!(commits(&effects).len(), 1);
    assert!(effects.contains(&Effect::KeepAlive { lease }));
    let addresses = BTreeSet::from([ip(1), ip(2)]);
    let inheritance = Inheritance {
        lease,
        until,
        addresses,
    };
    let mut next = Node::on(node.memory, Some(inheritance));
    next.now = node.now + ms(200);
    next.happen(Event::Time);
    next.happen(Event::Health(Ok(())));
    assert!(next.taken().is_empty() && next.dropped().is_empty());
    assert!(next.session().1 > until);
    assert_eq!(next.core.status(next.now).held.len(), 2);
    next.pass(TTL * 3);
    assert!(next.taken().is_empty() && next.dropped().is_empty());
}

#[test]
fn told_to_keep_all_it_does_not_wait_for_a_store_that_does_not_answer() {
    let mut node = Node::with(1);
    node.store = false;
    node.happen(Event::Stop { keep: true });
    assert!(!node.done.contains(&Effect::Finished));
    node.pass(PATIENCE);
    assert!(node.done.contains(&Effect::Finished));
    assert!(node.dropped().is_empty());
    // Nor for one of which that is known, nor where there is nothing to keep.
    let mut node = Node::with(1);
    node.store = false;
    node.pass(INTERVAL + PATIENCE * 2);
    node.done.clear();
    node.happen(Event::Stop { keep: true });
    assert_eq!(node.done(), [Effect::Finished]);
    let mut node = Node::with(0);
    node.happen(Event::Stop { keep: true });
    assert_eq!(node.done(), [Effect::Finished]);
}

#[test]
fn what_is_inherited_and_is_another_nodes_by_now_is_dropped() {
    let mut node = Node::with(2);
    let (lease, until) = node.session();
    let other = node.other("other");
    node.put("ips/10.0.0.2/marked", "other", Some(other));
    let addresses = BTreeSet::from([ip(1), ip(2)]);
    let inheritance = Inheritance {
        lease,
        until,
        addresses,
    };
    let mut next = Node::on(node.memory, Some(inheritance));
    next.happen(Event::Time);
    assert_eq!(next.dropped(), [ip(2)]);
}

#[test]
fn what_is_inherited_is_held_no_longer_than_others_wait_for_it_now() {
    let node = Node::with(1);
    let (lease, _) = node.session();
    let until = node.now + TTL * 10;
    let addresses = BTreeSet::from([ip(1)]);
    let mut next = Node::on(
        node.memory,
        Some(Inheritance {
            lease,
            until,
            addresses,
        }),
    );
    next.store = false;
    next.happen(Event::Time);
    assert_eq!(next.session().1, next.now + TTL.saturating_sub(MARGIN));
}

#[test]
fn requests_are_bounded() {
    let mut node = Node::new(None);
    for n in 0..=255 {
        node.put(&format!("ips/10.0.1.{n}"), "", None);
    }
    node.happen(Event::Time);
    node.held_back = Some(Vec::new());
    node.happen(Event::Health(Ok(())));
    let granted = node.held_back.take().unwrap();
    for answer in granted {
        node.happen(answer);
    }
    assert_eq!(
        node.core.status(node.now).held.len(),
        256,
        "but all come in the end"
    );
    let mut node = Node::with(0);
    node.store = false;
    for n in 0..=255 {
        node.put(&format!("ips/10.0.1.{n}"), "", None);
    }
    let changes = node.memory.changes(PREFIX, node.told).unwrap();
    node.happen(Event::Changes(changes));
    assert_eq!(about_marks(&node.done()), REQUESTS);
}

#[test]
fn a_text_that_is_no_address_is_told_of() {
    let mut node = Node::with(0);
    node.put("ips/app1", "", None);
    node.watch();
    assert!(node.said(|said| matches!(said, Said::Rubbish { key, .. } if key == "/service/lab/ips/app1")));
}

#[test]
fn told_to_end_it_does_not_end_its_lease_while_the_kernel_may_answer() {
    let mut node = Node::with(1);
    let (lease, until) = node.session();
    node.kernel = Err("it hangs".to_owned());
    node.happen(Event::Health(Err("503".to_owned())));
    node.happen(Event::Stop { keep: false });
    node.pass(until.since(node.now) - ms(1));
    assert!(!node.done.contains(&Effect::Finished));
    assert_eq!(node.mark(1), Some("me"));
    node.pass(ms(1));
    assert!(node.done.contains(&Effect::Revoke { lease }) && node.done.contains(&Effect::Finished));
}

#[test]
fn an_old_answer_about_a_lease_of_before_ends_nothing() {
    let mut node = Node::with(0);
    node.held_back = Some(Vec::new());
    node.put("ips/10.0.0.1", "", None);
    let changes = node.memory.changes(PREFIX, node.told).unwrap();
    node.told = changes.revision;
    node.happen(Event::Changes(changes));
    let claim = node.held_back.take().unwrap().pop().unwrap();
    let Event::Committed { ticket, sent, .. } = claim else {
        panic!("{claim:?}");
    };
    let (first, _) = node.session();
    node.memory.revoke(first);
    node.pass(PATIENCE);
    let (second, _) = node.session();
    assert_ne!(first, second);
    let result = Err(StoreError::LeaseGone);
    node.happen(Event::Committed { ticket, sent, result });
    assert_eq!(node.session().0, second);
}

#[test]
fn a_kernel_that_does_not_say_whether_it_has_done_it_is_told_again() {
    let mut node = Node::with(0);
    node.held_back = Some(Vec::new());
    node.put("ips/10.0.0.1", "", None);
    let changes = node.memory.changes(PREFIX, node.told).unwrap();
    node.told = changes.revision;
    node.happen(Event::Changes(changes));
    let claimed = node.held_back.replace(Vec::new()).unwrap().pop().unwrap();
    node.happen(claimed);
    assert_eq!(node.taken(), [ip(1)]);
    node.held_back = Some(Vec::new());
    node.pass(PATIENCE * 2);
    assert_eq!(node.taken(), [ip(1), ip(1)]);
    node.held_back = None;
    node.happen(Event::Taken {
        address: ip(1),
        result: Ok(()),
    });
    node.done.clear();
    node.pass(ms(1_000));
    assert!(node.taken().is_empty());
}

#[test]
fn a_view_that_cannot_be_right_is_looked_at_again_and_nothing_is_asked_all_the_time() {
    let mut node = Node::with(0);
    node.put("ips/10.0.0.1", "", None);
    let other = node.other("other");
    node.put("ips/10.0.0.1/marked", "other", Some(other));
    // A store that forgets to tell something.
    let mut changes = node.memory.changes(PREFIX, node.told).unwrap();
    node.told = changes.revision;
    changes
        .changes
        .retain(|change| !matches!(change, Change::Put(entry) if entry.key.ends_with("marked")));
    node.put("ips/10.0.0.1/preferred", "me", None);
    node.happen(Event::Changes(changes));
    node.pass(INTERVAL);
    assert!(about_marks(&node.done()) <= 4);
    assert_eq!(node.core.status(node.now).pool[0].owner.as_deref(), Some("other"));
}

#[test]
fn a_moment_that_a_late_answer_leaves_is_not_worth_a_claim() {
    let mut node = Node::with(1);
    node.held_back = Some(Vec::new());
    node.pass(INTERVAL);
    let answers = node.held_back.take().unwrap();
    node.store = false;
    node.freeze(TTL - MARGIN - ms(20));
    node.done.clear();
    for answer in answers {
        node.happen(answer);
    }
    assert_eq!(node.dropped(), [ip(1)]);
    assert_eq!(node.session().1.since(node.now), ms(20));
    assert!(node.taken().is_empty() && about_marks(&node.done()) == 0);
    node.store = true;
    node.pass(TTL);
    assert_eq!(node.taken(), [ip(1)]);
}

#[test]
fn what_is_claimed_and_not_answered_yet_is_counted() {
    // Four of a node that is gone, two held here and two by another: two and two of the four.
    for order in [[0, 1], [1, 0]] {
        let mut node = Node::new(None);
        for n in 1..=8 {
            node.put(&format!("ips/{}", ip(n)), "", None);
        }
        let (gone, other) = (node.other("gone"), node.other("other"));
        for (n, name, lease) in [
            (1, "gone", gone),
            (2, "gone", gone),
            (3, "gone", gone),
            (4, "gone", gone),
            (5, "other", other),
            (6, "other", other),
        ] {
            node.put(&format!("ips/{}/marked", ip(n)), name, Some(lease));
        }
        node.happen(Event::Time);
        node.happen(Event::Health(Ok(())));
        assert_eq!(node.taken(), [ip(7), ip(8)]);
        node.pass(TTL - ms(1));
        node.put("nodes/other", "healthy", Some(other));
        node.watch();
        node.done.clear();
        node.held_back = Some(Vec::new());
        node.pass(ms(2));
        let effects = node.done();
        assert_eq!(about_marks(&effects), 2);
        let answers: Vec<Event> = node.held_back.take().unwrap();
        let claims: Vec<Event> = answers
            .into_iter()
            .filter(|answer| matches!(answer, Event::Committed { .. }))
            .collect();
        let claims = &claims[claims.len() - 2..];
        for n in order {
            node.happen(claims[n].clone());
        }
        assert_eq!(node.taken().len(), 2);
        assert!(node.dropped().is_empty());
        assert_eq!(node.core.status(node.now).held.len(), 4);
    }
}

#[test]
fn when_the_store_ends_all_leases_at_once_everybody_gets_back_what_it_held() {
    let mut node = Node::with(2);
    let other = node.other("other");
    node.watch();
    let kept = if node.mark(1).is_some() { 1 } else { 2 };
    node.put(&format!("ips/{}/marked", ip(3 - kept)), "other", Some(other));
    node.watch();
    node.done.clear();
    let (mine, _) = node.session();
    node.memory.revoke(mine);
    node.memory.revoke(other);
    node.watch();
    node.other("other");
    node.watch();
    node.pass(INTERVAL);
    assert_eq!(node.taken(), [ip(kept)]);
    node.pass(TTL / 2);
    assert_eq!(node.taken(), [ip(kept)], "the other one's is left to it");
}

#[test]
fn what_was_taken_out_of_the_pool_and_put_in_again_is_asked_for_again() {
    let asks = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Ask { .. }));
    // Seen at once, in one answer of the watch.
    let mut node = Node::with(1);
    let other = node.other("other");
    node.put("ips/10.0.0.2/marked", "other", Some(other));
    node.put("ips/10.0.0.2", "", None);
    node.watch();
    node.done.clear();
    node.delete("ips/10.0.0.2/marked");
    node.delete("ips/10.0.0.2");
    node.strangers.insert(ip(2), "02:00:00:00:00:09".to_owned());
    node.put("ips/10.0.0.2", "", None);
    node.delete("nodes/other");
    node.watch();
    assert!(asks(&node.done) && node.taken().is_empty());
    // Not seen at all, by one that had held it.
    let mut node = Node::with(2);
    assert_eq!((node.mark(1), node.mark(2)), (Some("me"), Some("me")));
    node.store = false;
    node.pass(TTL * 20);
    node.delete("ips/10.0.0.2");
    node.strangers.insert(ip(2), "02:00:00:00:00:09".to_owned());
    node.put("ips/10.0.0.2", "", None);
    node.done.clear();
    node.store = true;
    node.happen(Event::WatchEnded(StoreError::Unavailable("cut".to_owned())));
    node.pass(TTL * 2);
    assert!(asks(&node.done));
    assert_eq!(node.taken(), [ip(1)]);
}

#[test]
fn what_nobody_could_be_asked_for_is_asked_for_again() {
    let mut node = Node::with(1);
    node.asks = false;
    node.put("ips/10.0.0.2", "", None);
    node.put("ips/10.0.0.3", "", None);
    node.watch();
    // Of one of them there is an answer.
    node.happen(Event::Answered {
        addresses: [ip(3)].into(),
        found: BTreeMap::new(),
    });
    assert_eq!(node.taken(), [ip(3)]);
    node.asks = true;
    node.strangers.insert(ip(2), "02:00:00:00:00:09".to_owned());
    node.pass(ASKED_FOR);
    assert!(node.taken().iter().all(|address| *address != ip(2)));
    assert!(node.value("cannot/me/10.0.0.2").is_some());
}

#[test]
fn trouble_is_forgotten_when_the_address_was_held_well() {
    let pause = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Say(Said::TakeFailed { again_in, .. }) => Some(*again_in),
            _ => None,
        })
    };
    let mut node = Node::with(1);
    for _ in 0..3 {
        // Somebody takes it off, again and again.
        node.done.clear();
        for _ in 0..=LOSSES {
            node.happen(Event::Lost { address: ip(1) });
        }
        assert_eq!(pause(&node.done), Some(TROUBLE_FIRST));
        node.pass(TROUBLE_FIRST + TROUBLE_FORGOTTEN);
        assert_eq!(node.mark(1), Some("me"));
        // The kernel says no.
        node.done.clear();
        node.kernel = Err("no such device".to_owned());
        node.happen(Event::Lost { address: ip(1) });
        assert_eq!(pause(&node.done), Some(TROUBLE_FIRST));
        node.kernel = Ok(());
        node.pass(TTL + TROUBLE_FIRST * 2 + TROUBLE_FORGOTTEN);
        assert_eq!(node.mark(1), Some("me"));
    }
    // Not before.
    let twice = [TROUBLE_FIRST, TROUBLE_FIRST * 2].map(|expected| {
        node.done.clear();
        for _ in 0..=LOSSES {
            node.happen(Event::Lost { address: ip(1) });
        }
        assert_eq!(pause(&node.done), Some(expected));
        node.pass(expected + INTERVAL);
        node.mark(1).map(str::to_owned)
    });
    assert_eq!(twice, [Some("me".to_owned()), Some("me".to_owned())]);
}

#[test]
fn keep_waits_for_its_own_answers() {
    let mut node = Node::with(1);
    node.pass(INTERVAL - ms(1));
    node.held_back = Some(Vec::new());
    node.pass(ms(1));
    let old = node.held_back.replace(Vec::new()).unwrap();
    node.now = node.now + ms(300);
    node.happen(Event::Stop { keep: true });
    let new = node.held_back.take().unwrap();
    let is_sign = |event: &&Event| matches!(event, Event::Committed { .. });
    let is_alive = |event: &&Event| matches!(event, Event::KeptAlive { .. });
    let of = |events: &[Event], which: &dyn Fn(&&Event) -> bool| {
        events.iter().find(|event| which(event)).cloned().unwrap()
    };
    node.done.clear();
    node.happen(of(&new, &is_sign));
    node.happen(of(&old, &is_alive));
    assert!(
        !node.done.contains(&Effect::Finished),
        "that was the answer of before"
    );
    node.happen(of(&new, &is_alive));
    assert!(node.done.contains(&Effect::Finished));
}

#[test]
fn one_list_that_is_lost_after_a_dead_watch_costs_nothing() {
    let mut node = Node::with(1);
    node.pass(INTERVAL * 4);
    node.done.clear();
    node.seen = false;
    let began = node.now;
    let mut looks = 0;
    // The first list is not answered, and the next one is.
    while looks < 2 {
        node.now = node.now.max(node.core.wake().unwrap());
        node.memory.expire(node.now.0);
        let effects = node.core.on(node.now, Event::Time);
        looks += effects
            .iter()
            .filter(|effect| matches!(effect, Effect::Look))
            .count();
        node.seen = looks > 1;
        for effect in &effects {
            if let Some(answer) = node.answer(effect) {
                node.happen(answer);
            }
        }
        node.done.extend(effects);
        assert!(node.now.since(began) < TTL * 2);
    }
    node.pass(TTL);
    assert!(node.dropped().is_empty());
}
