use super::*;
use crate::store::{Is, Transaction};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn put(key: &str, lease: Option<LeaseId>) -> Transaction {
    Transaction::default().put(key, "x", lease)
}

fn done(outcome: Result<Outcome, StoreError>) -> Revision {
    match outcome {
        Ok(Outcome::Done(revision)) => revision,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lease_is_whole_seconds_and_never_shorter_than_an_election() {
    let mut memory = Memory::default();
    assert_eq!(memory.grant(s(0), Duration::from_millis(100)).1, s(2));
    assert_eq!(memory.grant(s(0), Duration::from_millis(2_001)).1, s(3));
    assert_eq!(memory.grant(s(0), s(3)).1, s(3));
}

#[test]
fn a_lease_takes_all_that_is_under_it_away_at_one_revision() {
    let mut memory = Memory::default();
    let (lease, _) = memory.grant(s(0), s(2));
    done(memory.commit(&put("/a", Some(lease))));
    done(memory.commit(&put("/b", Some(lease))));
    done(memory.commit(&put("/c", Some(lease))));
    // Put again without it: no more under it.
    let before = done(memory.commit(&put("/c", None)));
    assert_eq!(memory.keep_alive(s(1), lease), Ok(s(2)));
    memory.expire(s(2));
    assert!(memory.get("/a").is_some());
    memory.expire(s(3));
    assert!(memory.get("/a").is_none() && memory.get("/b").is_none() && memory.get("/c").is_some());
    assert_eq!(memory.keep_alive(s(3), lease), Err(StoreError::LeaseGone));
    assert_eq!(memory.commit(&put("/a", Some(lease))), Err(StoreError::LeaseGone));
    let at = Revision(before.0 + 1);
    let gone = |key: &str| Change::Gone {
        key: key.to_owned(),
        at,
    };
    let changes = memory.changes("/", before).unwrap();
    assert_eq!(
        changes,
        Changes {
            revision: at,
            changes: vec![gone("/a"), gone("/b")]
        }
    );
}

#[test]
fn a_transaction_is_done_as_a_whole_or_not_at_all() {
    let mut memory = Memory::default();
    let (lease, _) = memory.grant(s(0), s(2));
    let (other, _) = memory.grant(s(0), s(2));
    let first = done(memory.commit(&put("/a", Some(lease)).only_if("/a", Is::Absent)));
    for is in [Is::Absent, Is::At(Revision(first.0 + 1)), Is::LeasedBy(other)] {
        let refused = memory.commit(&put("/b", None).only_if("/a", is));
        assert_eq!(refused, Ok(Outcome::Refused(first)), "{is:?}");
    }
    for is in [Is::Present, Is::At(first), Is::LeasedBy(lease)] {
        assert_eq!(
            memory.commit(&put("/b", None).only_if("/x", is)),
            Ok(Outcome::Refused(first))
        );
    }
    assert!(memory.get("/b").is_none());
    let both = put("/b", None).delete("/a").only_if("/a", Is::LeasedBy(lease));
    let second = done(memory.commit(&both));
    assert_eq!(second, Revision(first.0 + 1));
    assert!(memory.get("/a").is_none());
    assert!(
        memory.commit(&put("/b", None).delete("/b")).is_err(),
        "a key twice"
    );
    // Nothing has changed: no revision.
    assert_eq!(
        done(memory.commit(&Transaction::default().delete("/nothing"))),
        second
    );
}

#[test]
fn what_is_put_again_keeps_when_it_was_created() {
    let mut memory = Memory::default();
    let created = done(memory.commit(&put("/a", None)));
    let modified = done(memory.commit(&put("/a", None)));
    let entry = memory.get("/a").unwrap();
    assert_eq!((entry.created, entry.modified), (created, modified));
    done(memory.commit(&Transaction::default().delete("/a")));
    let again = done(memory.commit(&put("/a", None)));
    assert_eq!(memory.get("/a").unwrap().created, again);
}

#[test]
fn what_is_below_a_prefix_is_listed_and_told() {
    let mut memory = Memory::default();
    let before = memory.revision();
    for key in ["/a/1", "/a/2", "/ab", "/b/1"] {
        done(memory.commit(&put(key, None)));
    }
    let listed: Vec<_> = memory
        .list("/a/")
        .entries
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    assert_eq!(listed, ["/a/1", "/a/2"]);
    assert_eq!(memory.changes("/a/", before).unwrap().changes.len(), 2);
    let middle = Revision(before.0 + 2);
    memory.compact(middle);
    assert_eq!(memory.changes("/a/", before), Err(StoreError::Compacted));
    assert_eq!(memory.changes("/", middle).unwrap().changes.len(), 2);
    assert_eq!(memory.list("/").entries.len(), 4);
}

#[test]
fn a_new_leader_gives_every_lease_its_whole_time() {
    let mut memory = Memory::default();
    let (lease, _) = memory.grant(s(0), s(2));
    memory.renew_all(s(1));
    memory.expire(s(2));
    assert_eq!(memory.next_end(), Some(s(3)));
    memory.revoke(lease);
    assert_eq!(memory.next_end(), None);
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_watch_tells_what_happens_and_that_a_lease_has_ended() {
    let store = InMemory::new();
    let within = s(1);
    let snapshot = store.list("/", within).await.unwrap();
    let mut watch = store.watch("/", snapshot.revision, within).await.unwrap();
    let (lease, _) = store.grant(s(2), within).await.unwrap();
    let writer = store.clone();
    let put = writer.commit(put("/a", Some(lease)), within).await.unwrap();
    let Outcome::Done(revision) = put else {
        panic!("{put:?}")
    };
    let told = watch.next().await.unwrap();
    assert_eq!((told.revision, told.changes.len()), (revision, 1));
    // Nobody asks the store for anything: the clock alone ends the lease.
    let told = watch.next().await.unwrap();
    assert!(
        matches!(told.changes.as_slice(), [Change::Gone { key, .. }] if key == "/a"),
        "{told:?}"
    );
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_watch_that_is_too_far_behind_is_told_so() {
    let store = InMemory::new();
    let mut watch = store.watch("/", Revision(1), s(1)).await.unwrap();
    store.with(|memory, _| {
        let _ = memory.commit(&put("/a", None));
        let _ = memory.commit(&put("/b", None));
        memory.compact(memory.revision());
    });
    assert_eq!(watch.next().await, Err(StoreError::Compacted));
}
