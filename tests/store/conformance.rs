//! What every store does: [`all`] is run with each of them.

use std::time::Duration;

use io_guardian::store::{
    Change, Changes, Entry, Is, LeaseId, Outcome, Revision, Snapshot, Store, StoreError, Transaction, Watch,
};
use tokio::time::timeout;

/// Long enough for any machine; nothing is measured.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// All of it, with keys below `/conformance/`, of which there are none yet. `ttl` is the shortest that a lease of this store can have: some of it
/// waits until leases have ended.
pub(crate) async fn all<S: Store>(store: &S, ttl: Duration) {
    conditions(store).await;
    conditions_on_leases(store, ttl).await;
    transactions(store).await;
    lists(store).await;
    watches(store).await;
    a_watch_that_is_asked_in_vain_loses_nothing(store).await;
    leases(store, ttl).await;
    a_lease_that_ends(store, ttl).await;
}

/// A place that no other part uses.
fn place(part: &str) -> impl Fn(&str) -> String {
    let below = format!("/conformance/{part}/");
    move |name| format!("{below}{name}")
}

pub(crate) async fn commit<S: Store>(store: &S, transaction: Transaction) -> Outcome {
    store.commit(transaction, PATIENCE).await.unwrap()
}

pub(crate) async fn done<S: Store>(store: &S, transaction: Transaction) -> Revision {
    match commit(store, transaction.clone()).await {
        Outcome::Done(revision) => revision,
        Outcome::Refused(at) => panic!("refused at {at}: {transaction:?}"),
    }
}

/// Refused, and nothing has happened.
async fn refused<S: Store>(store: &S, prefix: &str, transaction: Transaction) -> Revision {
    let before = list(store, prefix).await;
    let at = match commit(store, transaction.clone()).await {
        Outcome::Refused(at) => at,
        Outcome::Done(at) => panic!("done at {at}: {transaction:?}"),
    };
    assert!(at >= before.revision, "{at} is before {}", before.revision);
    assert_eq!(
        list(store, prefix).await.entries,
        before.entries,
        "{transaction:?}"
    );
    at
}

pub(crate) async fn list<S: Store>(store: &S, prefix: &str) -> Snapshot {
    store.list(prefix, PATIENCE).await.unwrap()
}

pub(crate) async fn grant<S: Store>(store: &S, ttl: Duration) -> LeaseId {
    store.grant(ttl, PATIENCE).await.unwrap().0
}

pub(crate) async fn watch<S: Store>(store: &S, prefix: &str, after: Revision) -> S::Watch {
    store.watch(prefix, after, PATIENCE).await.unwrap()
}

pub(crate) async fn next<W: Watch>(watch: &mut W) -> Changes {
    timeout(PATIENCE, watch.next())
        .await
        .expect("the watch says nothing")
        .unwrap()
}

/// What a watch tells until it has told all up to `revision`. Each telling is held to its promise.
pub(crate) async fn told<W: Watch>(watch: &mut W, after: Revision, until: Revision) -> Vec<Change> {
    let (mut all, mut reached) = (Vec::new(), after);
    while reached < until {
        let Changes { revision, changes } = next(watch).await;
        assert!(revision >= reached, "{revision} is told after {reached}");
        let mut before = reached;
        for change in &changes {
            let at = when(change);
            assert!(
                at > reached,
                "{change:?} is of {reached} or before, and all of that had been told"
            );
            assert!(
                at >= before && at <= revision,
                "{change:?}: out of order, or after {revision}"
            );
            before = at;
        }
        all.extend(changes);
        reached = revision;
    }
    all
}

fn when(change: &Change) -> Revision {
    match change {
        Change::Put(entry) => entry.modified,
        Change::Gone { at, .. } => *at,
    }
}

/// `key` at `revision`, in few words.
fn shown(change: &Change) -> (String, Option<String>) {
    match change {
        Change::Put(entry) => (entry.key.clone(), Some(entry.value.clone())),
        Change::Gone { key, .. } => (key.clone(), None),
    }
}

async fn conditions<S: Store>(store: &S) {
    let key = place("conditions");
    let (below, a, b) = (key(""), key("a"), key("b"));
    let put = |is, value| Transaction::default().only_if(&a, is).put(&a, value, None);
    for is in [
        Is::Present,
        Is::At(Revision(0)),
        Is::At(Revision(1)),
        Is::LeasedBy(LeaseId(0)),
        Is::LeasedBy(LeaseId(1)),
    ] {
        refused(store, &below, put(is, "there is none")).await;
    }
    let created = done(store, put(Is::Absent, "one")).await;
    let expected = |value: &str, modified| Entry {
        key: a.clone(),
        value: value.to_owned(),
        created,
        modified,
        lease: None,
    };
    assert_eq!(list(store, &below).await.entries, [expected("one", created)]);

    refused(store, &below, put(Is::Absent, "there is one")).await;
    refused(store, &below, put(Is::At(Revision(created.0 + 1)), "not yet")).await;
    refused(store, &below, put(Is::At(Revision(u64::MAX)), "never")).await;
    refused(
        store,
        &below,
        put(Is::LeasedBy(LeaseId(0)), "no lease is not a lease"),
    )
    .await;
    let modified = done(store, put(Is::At(created), "two")).await;
    assert!(modified > created);
    refused(store, &below, put(Is::At(created), "not any more")).await;
    let again = done(store, put(Is::Present, "three")).await;
    assert!(again > modified);
    assert_eq!(list(store, &below).await.entries, [expected("three", again)]);

    // All of them, or nothing.
    let both = |is_b| {
        Transaction::default()
            .only_if(&a, Is::Present)
            .only_if(&b, is_b)
            .put(&b, "", None)
    };
    refused(store, &below, both(Is::Present)).await;
    done(store, both(Is::Absent)).await;
}

async fn conditions_on_leases<S: Store>(store: &S, ttl: Duration) {
    let key = place("leased");
    let (below, a) = (key(""), key("a"));
    let (mine, other) = (grant(store, ttl * 30).await, grant(store, ttl * 30).await);
    assert_ne!(mine, other);
    done(store, Transaction::default().put(&a, "x", Some(mine))).await;
    assert_eq!(list(store, &below).await.entries[0].lease, Some(mine));

    let put = |lease, under| {
        Transaction::default()
            .only_if(&a, Is::LeasedBy(lease))
            .put(&a, "y", under)
    };
    refused(store, &below, put(other, Some(other))).await;
    done(store, put(mine, Some(other))).await;
    refused(store, &below, put(mine, Some(mine))).await;
    // One that is put without a lease is under none, and outlives it.
    done(store, put(other, None)).await;
    assert_eq!(list(store, &below).await.entries[0].lease, None);
    refused(store, &below, put(other, None)).await;
    store.revoke(other, PATIENCE).await.unwrap();
    store.revoke(mine, PATIENCE).await.unwrap();
    assert_eq!(list(store, &below).await.entries.len(), 1);

    // What is to go with a lease that is not there is not done at all.
    let both = Transaction::default()
        .put(key("b"), "", None)
        .put(&a, "z", Some(mine));
    assert_eq!(store.commit(both, PATIENCE).await, Err(StoreError::LeaseGone));
    let entries = list(store, &below).await.entries;
    assert_eq!((entries.len(), entries[0].value.as_str()), (1, "y"));
}

async fn transactions<S: Store>(store: &S) {
    let key = place("transactions");
    let (below, a, b, c) = (key(""), key("a"), key("b"), key("c"));
    let first = done(
        store,
        Transaction::default().put(&a, "1", None).put(&b, "1", None),
    )
    .await;
    let entries = list(store, &below).await.entries;
    assert_eq!(
        entries.iter().map(|entry| entry.modified).collect::<Vec<_>>(),
        [first, first]
    );

    let second = done(
        store,
        Transaction::default().delete(&a).delete(&c).put(&b, "2", None),
    )
    .await;
    let entries = list(store, &below).await.entries;
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].created, entries[0].modified), (first, second));

    // A key that comes back is a new one.
    let third = done(
        store,
        Transaction::default().only_if(&a, Is::Absent).put(&a, "3", None),
    )
    .await;
    assert_eq!(list(store, &below).await.entries[0].created, third);

    // One that changes nothing tells whether its conditions are true, and when.
    let look = |is| Transaction::default().only_if(&a, is);
    assert_eq!(
        commit(store, look(Is::At(third))).await,
        Outcome::Done(list(store, &below).await.revision)
    );
    refused(store, &below, look(Is::At(first))).await;
    let nothing = commit(store, Transaction::default()).await;
    assert!(matches!(nothing, Outcome::Done(at) if at >= third), "{nothing:?}");
    let of_none = commit(store, Transaction::default().delete(&c)).await;
    assert!(matches!(of_none, Outcome::Done(at) if at >= third), "{of_none:?}");
}

async fn lists<S: Store>(store: &S) {
    let key = place("lists");
    let below = key("");
    let empty = list(store, &below).await;
    assert!(empty.entries.is_empty());
    let names = ["b", "a", "c/d", "c", "B", "ä"];
    for name in names {
        done(store, Transaction::default().put(key(name), name, None)).await;
    }
    let outside = done(store, Transaction::default().put("/conformance/lists0", "", None)).await;
    let snapshot = list(store, &below).await;
    assert_eq!(snapshot.revision, outside);
    let listed: Vec<_> = snapshot
        .entries
        .iter()
        .map(|entry| entry.value.as_str())
        .collect();
    assert_eq!(
        listed,
        ["B", "a", "b", "c", "c/d", "ä"],
        "in the order of their bytes"
    );
    assert_eq!(
        list(store, &key("c")).await.entries.len(),
        2,
        "a prefix need not end with a slash"
    );
    assert!(list(store, "/conformance/nowhere/").await.entries.is_empty());
}

async fn watches<S: Store>(store: &S) {
    let key = place("watches");
    let (below, a, b) = (key(""), key("a"), key("b"));
    let start = list(store, &below).await.revision;
    let mut live = watch(store, &below, start).await;

    let one = done(store, Transaction::default().put(&a, "1", None)).await;
    done(
        store,
        Transaction::default().put("/conformance/elsewhere", "", None),
    )
    .await;
    let two = done(store, Transaction::default().put(&b, "2", None).delete(&a)).await;
    let three = done(store, Transaction::default().put(&a, "3", None)).await;

    let expected = |from: usize| {
        let pair = |key: &String, value: Option<&str>| (key.clone(), value.map(str::to_owned));
        let mut all = vec![
            pair(&a, Some("1")),
            pair(&b, Some("2")),
            pair(&a, None),
            pair(&a, Some("3")),
        ];
        all.split_off(from)
    };
    // Within one revision the order is nobody's promise.
    let sorted = |changes: &[Change]| {
        let mut changes: Vec<_> = changes.to_vec();
        changes.sort_by_key(|change| (when(change), std::cmp::Reverse(shown(change).0)));
        changes.iter().map(shown).collect::<Vec<_>>()
    };
    let all = told(&mut live, start, three).await;
    assert_eq!(sorted(&all), expected(0));
    assert_eq!(all.iter().map(when).collect::<Vec<_>>(), [one, two, two, three]);
    let Some(Change::Put(last)) = all.last() else {
        panic!("{all:?}")
    };
    assert_eq!((last.created, last.modified), (three, three));

    // From any revision on: what happened since, and not what happened then.
    for (after, from) in [(start, 0), (one, 1), (two, 3)] {
        let mut late = watch(store, &below, after).await;
        assert_eq!(sorted(&told(&mut late, after, three).await), expected(from));
    }
    // And from one that is not there yet.
    let mut early = watch(store, &below, Revision(three.0 + 1)).await;
    done(store, Transaction::default().put(&a, "before", None)).await;
    let after = done(store, Transaction::default().put(&a, "after", None)).await;
    let told_early = told(&mut early, Revision(three.0 + 1), after).await;
    assert_eq!(sorted(&told_early), [(a.clone(), Some("after".to_owned()))]);

    // What does nothing is told to nobody.
    done(store, Transaction::default().delete(key("never was"))).await;
    let end = done(store, Transaction::default().delete(&b)).await;
    assert_eq!(
        told(&mut early, after, end).await,
        [Change::Gone { key: b, at: end }]
    );
}

async fn a_watch_that_is_asked_in_vain_loses_nothing<S: Store>(store: &S) {
    let key = place("impatient");
    let (below, a) = (key(""), key("a"));
    let start = list(store, &below).await.revision;
    let mut watch = watch(store, &below, start).await;
    let (mut end, mut reached, mut values) = (start, start, Vec::new());
    for round in 0..20_u32 {
        end = done(store, Transaction::default().put(&a, round.to_string(), None)).await;
        // Given up at once, at whatever point it has come to.
        if let Ok(changes) = timeout(Duration::ZERO, watch.next()).await {
            let changes = changes.unwrap();
            reached = changes.revision;
            values.extend(changes.changes.iter().map(shown));
        }
    }
    values.extend(told(&mut watch, reached, end).await.iter().map(shown));
    let expected: Vec<_> = (0..20_u32)
        .map(|round| (a.clone(), Some(round.to_string())))
        .collect();
    assert_eq!(values, expected);
}

async fn leases<S: Store>(store: &S, ttl: Duration) {
    let key = place("leases");
    let (below, a, b) = (key(""), key("a"), key("b"));
    for wanted in [Duration::from_millis(1), ttl, ttl * 3 + Duration::from_millis(1)] {
        let (lease, granted) = store.grant(wanted, PATIENCE).await.unwrap();
        assert!(granted >= wanted, "{granted:?} is less than {wanted:?}");
        assert_eq!(store.keep_alive(lease, PATIENCE).await, Ok(granted));
        assert_eq!(store.keep_alive(lease, PATIENCE).await, Ok(granted));
        store.revoke(lease, PATIENCE).await.unwrap();
        assert_eq!(
            store.keep_alive(lease, PATIENCE).await,
            Err(StoreError::LeaseGone)
        );
        store.revoke(lease, PATIENCE).await.unwrap();
    }
    // All that is under it goes with it.
    let lease = grant(store, ttl * 30).await;
    let put = done(
        store,
        Transaction::default()
            .put(&a, "", Some(lease))
            .put(&b, "", Some(lease)),
    )
    .await;
    let mut watch = watch(store, &below, put).await;
    store.revoke(lease, PATIENCE).await.unwrap();
    let mut gone = Vec::new();
    while gone.len() < 2 {
        gone.extend(next(&mut watch).await.changes.iter().map(shown));
    }
    gone.sort();
    assert_eq!(gone, [(a, None), (b, None)]);
    assert!(list(store, &below).await.entries.is_empty());
}

/// One that nobody keeps alive ends, and takes its key away; one that is kept alive is there for longer than it was granted for.
async fn a_lease_that_ends<S: Store>(store: &S, ttl: Duration) {
    let key = place("ends");
    let (below, kept, left) = (key(""), key("kept"), key("left"));
    let alive = grant(store, ttl).await;
    done(store, Transaction::default().put(&kept, "", Some(alive))).await;
    // Twice, one after the other: the one that is kept alive would have ended with the first.
    for _ in 0..2 {
        let doomed = grant(store, ttl).await;
        let put = done(store, Transaction::default().put(&left, "", Some(doomed))).await;
        let mut watch = watch(store, &below, put).await;
        let gone = async {
            loop {
                assert!(store.keep_alive(alive, PATIENCE).await.unwrap() >= ttl);
                if let Ok(changes) = timeout(ttl / 8, watch.next()).await {
                    break changes.unwrap();
                }
            }
        };
        let gone = timeout(PATIENCE, gone).await.expect("the lease does not end");
        assert_eq!(
            gone.changes.iter().map(shown).collect::<Vec<_>>(),
            [(left.clone(), None)]
        );
        assert_eq!(
            store.keep_alive(doomed, PATIENCE).await,
            Err(StoreError::LeaseGone)
        );
        let entries = list(store, &below).await.entries;
        assert_eq!(
            entries.iter().map(|entry| entry.lease).collect::<Vec<_>>(),
            [Some(alive)]
        );
    }
}
