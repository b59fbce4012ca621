//! etcd with members that are killed, stand still, or have no leader.
//!
//! How long an election takes is etcd's matter: what is awaited is that it is over. What is held is that no request takes longer than it may, and
//! that what is said of it is true.

use std::future::Future;
use std::time::Duration;

use io_guardian::store::{
    Change, Etcd, EtcdSettings, Is, LeaseId, Outcome, Revision, Store, StoreError, Transaction, Watch,
};
use tokio::time::{Instant, timeout};

use crate::cluster::{Cluster, free_port, store};
use crate::conformance::{PATIENCE, done, grant, list, next, watch};

/// What a request may take in these tests: more than an election does.
const SHORT: Duration = Duration::from_secs(3);

/// A request ends when its time is over, and a busy machine may be late by this much to see it.
const SLACK: Duration = Duration::from_secs(10);

async fn ends<T>(request: impl Future<Output = T>) -> T {
    timeout(SHORT + SLACK, request)
        .await
        .expect("it does not end with its time")
}

fn is_of_a_fault(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable(said) | StoreError::Unknown(said) => {
            assert!(said.contains("127.0.0.1:"), "it does not say where: {said}");
            true
        }
        _ => false,
    }
}

/// Asks again until it is done. All that goes wrong before is of a fault, and takes no longer than it may.
async fn until_done<T, F: Future<Output = Result<T, StoreError>>>(request: impl Fn() -> F) -> T {
    let began = Instant::now();
    loop {
        match ends(request()).await {
            Ok(answer) => return answer,
            Err(error) => assert!(is_of_a_fault(&error), "{error:?}"),
        }
        assert!(began.elapsed() < PATIENCE * 2, "it does not come back");
        // One that is refused at once is not to be asked a thousand times a second.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A count in the store, of which only we know: each step is done once, whatever is said of it.
struct Count {
    at: Revision,
    steps: u32,
    unknown: bool,
}

impl Count {
    const KEY: &str = "/count";

    async fn new(store: &Etcd) -> Self {
        let at = done(store, Transaction::default().put(Self::KEY, "0", None)).await;
        Self {
            at,
            steps: 0,
            unknown: false,
        }
    }

    /// One step, whatever it takes.
    async fn step(&mut self, store: &Etcd) {
        let next = (self.steps + 1).to_string();
        let began = Instant::now();
        loop {
            let transaction =
                Transaction::default()
                    .only_if(Self::KEY, Is::At(self.at))
                    .put(Self::KEY, &*next, None);
            match ends(store.commit(transaction, SHORT)).await {
                Ok(Outcome::Done(at)) => {
                    self.at = at;
                    break;
                }
                // Only by what was unknown before, and came late.
                Ok(Outcome::Refused(_)) => assert!(self.unknown, "refused, and nobody else is there"),
                Err(StoreError::Unavailable(_)) => continue,
                Err(StoreError::Unknown(_)) => self.unknown = true,
                Err(error) => panic!("{error:?}"),
            }
            assert!(began.elapsed() < PATIENCE * 2, "it does not come back");
            let seen = until_done(|| store.list(Self::KEY, SHORT)).await;
            let entry = &seen.entries[0];
            if entry.modified > self.at {
                assert_eq!(entry.value, next);
                self.at = entry.modified;
                break;
            }
        }
        self.steps += 1;
        self.unknown = false;
    }
}

#[tokio::test]
async fn a_leader_that_is_killed_costs_an_election_and_nothing_is_done_twice() {
    let Some(mut cluster) = Cluster::start("a_leader_that_is_killed", 3) else {
        return;
    };
    let store = cluster.store();
    let lease = grant(&store, Duration::from_secs(60)).await;
    let mut count = Count::new(&store).await;
    let mut watch = watch(&store, "/", count.at).await;
    for round in 0..2 {
        count.step(&store).await;
        let leader = cluster.leader(round).await;
        cluster.kill(leader);
        for _ in 0..5 {
            count.step(&store).await;
            let ttl = until_done(|| store.keep_alive(lease, SHORT)).await;
            assert_eq!(ttl, Duration::from_secs(60));
        }
        cluster.restart(leader);
        cluster.await_up(leader);
        count.step(&store).await;
    }
    // The watch has told all of it up to its end, in order, and one from there tells the rest.
    let (mut told, mut reached) = (Vec::new(), Revision::default());
    while told.len() < 14 {
        match timeout(PATIENCE, watch.next())
            .await
            .expect("the watch says nothing, and does not end")
        {
            Ok(changes) => {
                reached = changes.revision;
                told.extend(changes.changes.into_iter().filter_map(|change| match change {
                    Change::Put(entry) => Some(entry.value),
                    Change::Gone { .. } => None,
                }));
            }
            Err(error) => {
                assert!(is_of_a_fault(&error), "{error:?}");
                watch = until_done(|| store.watch("/", reached, SHORT)).await;
            }
        }
    }
    assert_eq!(
        told,
        (1..=14).map(|step: u32| step.to_string()).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn without_a_majority_nothing_is_done_and_watches_end() {
    let Some(mut cluster) = Cluster::start("without_a_majority", 3) else {
        return;
    };
    let (all, last) = (cluster.store(), cluster.store_of(&[2]));
    let lease = grant(&all, Duration::from_secs(300)).await;
    let put = done(&all, Transaction::default().put("/a", "before", Some(lease))).await;
    let mut watches = [watch(&all, "/", put).await, watch(&last, "/", put).await];
    cluster.kill(0);
    cluster.kill(1);

    for watch in &mut watches {
        let error = timeout(PATIENCE, watch.next())
            .await
            .expect("the watch does not end")
            .unwrap_err();
        assert!(is_of_a_fault(&error), "{error:?}");
    }
    for store in [&all, &last] {
        // It was refused: nothing has happened, and nothing will.
        let after = || Transaction::default().put("/a", "after", None);
        let error = ends(store.commit(after(), SHORT)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        let errors = [
            ends(store.list("/", SHORT)).await.err(),
            ends(store.keep_alive(lease, SHORT)).await.err(),
            ends(store.grant(SHORT, SHORT)).await.err(),
            ends(store.revoke(lease, SHORT)).await.err(),
            ends(store.watch("/", put, SHORT)).await.err(),
        ];
        for error in errors {
            assert!(
                is_of_a_fault(error.as_ref().expect("done without a majority")),
                "{error:?}"
            );
        }
    }
    cluster.restart(0);
    cluster.restart(1);
    let snapshot = until_done(|| all.list("/", SHORT)).await;
    // A revocation whose answer did not come may have been done since; the refused commit was not.
    assert!(
        snapshot.entries.iter().all(|entry| entry.value == "before"),
        "{snapshot:?}"
    );
    let revision = until_done(|| async {
        match last
            .commit(Transaction::default().put("/a", "again", None), SHORT)
            .await?
        {
            Outcome::Done(revision) => Ok(revision),
            Outcome::Refused(_) => panic!("it had no condition"),
        }
    })
    .await;
    let mut fresh = until_done(|| last.watch("/a", Revision(revision.0 - 1), SHORT)).await;
    assert_eq!(next(&mut fresh).await.revision, revision);
}

#[tokio::test]
async fn a_member_that_stands_still_costs_a_part_of_the_time() {
    let Some(cluster) = Cluster::start("a_member_that_stands_still", 3) else {
        return;
    };
    // Not the leader: that would cost an election as well.
    let leader = cluster.leader(0).await;
    let [still, other] = [(leader + 1) % 3, (leader + 2) % 3];
    let store = cluster.store_of(&[still, leader, other]);
    let lease = grant(&store, Duration::from_secs(300)).await;
    let put = done(&store, Transaction::default().put("/a", "", None)).await;
    let mut there = watch(&store, "/", put).await;
    assert_eq!(
        store.keep_alive(lease, PATIENCE).await,
        Ok(Duration::from_secs(300))
    );
    assert_eq!(store.endpoint(), cluster.endpoints()[still]);

    cluster.freeze(still);
    // One request each: another member has answered before its time was over.
    assert_eq!(
        ends(store.keep_alive(lease, SHORT)).await,
        Ok(Duration::from_secs(300))
    );
    assert_ne!(store.endpoint(), cluster.endpoints()[still]);
    ends(store.list("/", SHORT)).await.unwrap();
    let put = ends(store.commit(Transaction::default().put("/a", "", None), SHORT))
        .await
        .unwrap();
    // The connection is there, and the kernel acknowledges what is sent on it.
    let error = timeout(PATIENCE, there.next())
        .await
        .expect("the watch does not end")
        .unwrap_err();
    assert!(error.to_string().contains(&cluster.endpoints()[still]), "{error}");
    let Outcome::Done(put) = put else {
        panic!("{put:?}")
    };
    let mut here = ends(store.watch("/", Revision(put.0 - 1), SHORT)).await.unwrap();
    assert_eq!(next(&mut here).await.revision, put);

    // It is good for something again when the others are not.
    cluster.thaw(still);
    cluster.freeze(other);
    for _ in 0..3 {
        until_done(|| store.list("/", SHORT)).await;
    }
    cluster.thaw(other);
    let only = cluster.store_of(&[still]);
    until_done(|| only.list("/", SHORT)).await;
}

/// A connection to one that stands still is made by the kernel alone: nothing of a commit goes there.
#[tokio::test]
async fn a_commit_is_not_given_to_a_member_that_stands_still() {
    let Some(cluster) = Cluster::start("a_commit_is_not_given_to_a_member", 3) else {
        return;
    };
    let leader = cluster.leader(0).await;
    let still = (leader + 1) % 3;
    cluster.freeze(still);
    for members in [vec![still, leader, (leader + 2) % 3], vec![still]] {
        let store = cluster.store_of(&members);
        let outcome = ends(store.commit(Transaction::default().put("/a", "", None), SHORT)).await;
        if members.len() > 1 {
            assert!(matches!(outcome, Ok(Outcome::Done(_))), "{outcome:?}");
        } else {
            assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
        }
    }
    cluster.thaw(still);
}

/// One that was there a moment ago is given the commit; then nobody knows.
#[tokio::test]
async fn a_commit_that_is_not_answered_is_unknown_and_the_next_one_goes_elsewhere() {
    let Some(cluster) = Cluster::start("a_commit_that_is_not_answered", 3) else {
        return;
    };
    let leader = cluster.leader(0).await;
    let still = (leader + 1) % 3;
    let store = cluster.store_of(&[still, leader, (leader + 2) % 3]);
    let mut count = Count::new(&store).await;
    for _ in 0..3 {
        count.step(&store).await;
        cluster.freeze(still);
        count.step(&store).await;
        count.step(&store).await;
        assert_ne!(store.endpoint(), cluster.endpoints()[still]);
        cluster.thaw(still);
        let back = cluster.store_of(&[still]);
        until_done(|| back.list("/", SHORT)).await;
    }
}

#[tokio::test]
async fn a_member_that_was_left_behind_tells_nothing_old() {
    let Some(cluster) = Cluster::start("a_member_that_was_left_behind", 3) else {
        return;
    };
    let leader = cluster.leader(0).await;
    let behind = (leader + 1) % 3;
    let (ahead, late) = (
        cluster.store_of(&[leader, (leader + 2) % 3]),
        cluster.store_of(&[behind]),
    );
    let mut last = done(&ahead, Transaction::default().put("/a", "0", None)).await;
    for round in 1..=5_u32 {
        list(&late, "/").await;
        cluster.freeze(behind);
        for step in 0..50 {
            let before = last;
            last = done(
                &ahead,
                Transaction::default().put("/a", format!("{round}.{step}"), None),
            )
            .await;
            assert!(last > before);
        }
        // Both are on their way while it stands still.
        let look = Transaction::default().only_if("/a", Is::At(last));
        let (seen, is_true, ()) = tokio::join!(
            until(|| late.list("/a", SHORT)),
            until(|| late.commit(look.clone(), SHORT)),
            async { cluster.thaw(behind) },
        );
        assert!(seen.revision >= last, "{} is older than {last}", seen.revision);
        assert_eq!(seen.entries[0].modified, last);
        assert!(matches!(is_true, Outcome::Done(at) if at >= last), "{is_true:?}");
    }
}

/// Like `until_done`, of what need not end in time: one thread stands still for all of it.
async fn until<T, F: Future<Output = Result<T, StoreError>>>(request: impl Fn() -> F) -> T {
    until_done(request).await
}

#[tokio::test]
async fn all_members_stand_still_and_go_on() {
    let Some(cluster) = Cluster::start("all_members_stand_still", 3) else {
        return;
    };
    let store = cluster.store();
    let mut count = Count::new(&store).await;
    let mut watch = watch(&store, "/", count.at).await;
    (0..3).for_each(|at| cluster.freeze(at));
    let errors = [
        ends(store.list("/", SHORT)).await.err(),
        ends(store.keep_alive(LeaseId(1), SHORT)).await.err(),
        ends(store.watch("/", count.at, SHORT)).await.err(),
        ends(store.commit(Transaction::default().put("/b", "", None), SHORT))
            .await
            .err(),
    ];
    for error in errors {
        assert!(
            is_of_a_fault(error.as_ref().expect("done by nobody")),
            "{error:?}"
        );
    }
    let error = timeout(PATIENCE, watch.next())
        .await
        .expect("the watch does not end")
        .unwrap_err();
    assert!(is_of_a_fault(&error), "{error:?}");
    (0..3).for_each(|at| cluster.thaw(at));
    count.step(&store).await;
}

#[tokio::test]
async fn endpoints_where_nobody_listens_are_passed_over_and_named() {
    let nobody = || format!("127.0.0.1:{}", free_port());
    let (first, second) = (nobody(), nobody());
    let none = store(&EtcdSettings {
        endpoints: vec![first.clone(), second.clone()],
        ..EtcdSettings::default()
    });
    let errors = [
        ends(none.list("/", SHORT)).await.err(),
        ends(none.commit(Transaction::default().put("/a", "", None), SHORT))
            .await
            .err(),
        ends(none.keep_alive(LeaseId(1), SHORT)).await.err(),
        ends(none.watch("/", Revision(1), SHORT)).await.err(),
    ];
    for error in errors {
        let Some(StoreError::Unavailable(said)) = error else {
            panic!("{error:?}")
        };
        for part in [&*first, &*second, "refused"] {
            assert!(said.contains(part), "{said}");
        }
    }
    let Some(cluster) = Cluster::start("endpoints_where_nobody_listens", 1) else {
        return;
    };
    let mut endpoints = vec![first, "no-such-name.invalid".to_owned()];
    endpoints.extend(cluster.endpoints());
    let some = store(&EtcdSettings {
        endpoints,
        ..EtcdSettings::default()
    });
    let put = ends(some.commit(Transaction::default().put("/a", "", None), SHORT))
        .await
        .unwrap();
    assert!(matches!(put, Outcome::Done(_)));
    assert_eq!(some.endpoint(), cluster.endpoints()[0]);
}

/// It leads on for as long as it takes it to see that nobody follows.
#[tokio::test]
async fn a_leader_that_nobody_hears_does_nothing_and_ends_its_watches() {
    let Some(cluster) = Cluster::start("a_leader_that_nobody_hears", 3) else {
        return;
    };
    let leader = cluster.leader(0).await;
    let (alone, all) = (cluster.store_of(&[leader]), cluster.store());
    let lease = grant(&alone, Duration::from_secs(300)).await;
    let put = done(&alone, Transaction::default().put("/a", "before", None)).await;
    let mut watch = watch(&alone, "/", put).await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    others.iter().for_each(|&at| cluster.freeze(at));

    let condition = |is| Transaction::default().only_if("/a", is);
    let commit = ends(alone.commit(condition(Is::Present).put("/a", "after", None), SHORT)).await;
    assert!(is_of_a_fault(&commit.unwrap_err()));
    // What is read, and what is only asked, needs the others as well.
    assert!(is_of_a_fault(&ends(alone.list("/", SHORT)).await.unwrap_err()));
    assert!(is_of_a_fault(
        &ends(alone.commit(condition(Is::Present), SHORT))
            .await
            .unwrap_err()
    ));
    let error = timeout(PATIENCE, watch.next())
        .await
        .expect("the watch does not end")
        .unwrap_err();
    assert!(is_of_a_fault(&error), "{error:?}");
    assert!(is_of_a_fault(
        &ends(alone.keep_alive(lease, SHORT)).await.unwrap_err()
    ));
    others.iter().for_each(|&at| cluster.thaw(at));
    let ttl = until_done(|| all.keep_alive(lease, SHORT)).await;
    assert_eq!(ttl, Duration::from_secs(300));
}

/// Nobody has looked at the connection since, and there is no other member to go to.
#[tokio::test]
async fn a_member_that_was_restarted_is_asked_again_at_once() {
    let Some(mut cluster) = Cluster::start("a_member_that_was_restarted", 1) else {
        return;
    };
    let store = cluster.store();
    let lease = grant(&store, Duration::from_secs(300)).await;
    let mut put = done(&store, Transaction::default().put("/a", "", Some(lease))).await;
    for _ in 0..2 {
        let mut there = watch(&store, "/", put).await;
        store.keep_alive(lease, PATIENCE).await.unwrap();
        cluster.kill(0);
        cluster.restart(0);
        cluster.await_up(0);
        let error = timeout(PATIENCE, there.next())
            .await
            .expect("the watch does not end")
            .unwrap_err();
        assert!(is_of_a_fault(&error), "{error:?}");
        assert_eq!(
            store.keep_alive(lease, PATIENCE).await,
            Ok(Duration::from_secs(300))
        );
        assert_eq!(list(&store, "/").await.revision, put);
        put = done(&store, Transaction::default().put("/a", "", Some(lease))).await;
    }
}
