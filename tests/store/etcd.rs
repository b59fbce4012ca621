//! etcd when nothing is wrong with it.

use std::time::Duration;

use etcd_client::CompactionOptions;
use io_guardian::store::{Is, Outcome, Revision, Store, StoreError, Transaction, Watch};
use tokio::time::timeout;

use crate::cluster::{Cluster, Options};
use crate::conformance::{self, PATIENCE, done, list, next, told, watch};

/// The shortest lease of an etcd with its own settings.
const TTL: Duration = Duration::from_secs(2);

#[tokio::test]
async fn etcd_does_what_every_store_does() {
    let Some(cluster) = Cluster::start("etcd_does_what_every_store_does", 3) else {
        return;
    };
    conformance::all(&cluster.store(), TTL).await;
}

#[tokio::test]
async fn leases_are_granted_in_whole_seconds_and_never_for_less_than_asked() {
    let Some(cluster) = Cluster::start("leases_are_granted_in_whole_seconds", 1) else {
        return;
    };
    let store = cluster.store();
    for (wanted, granted) in [(1, 2), (1_999, 2), (2_000, 2), (2_001, 3), (10_000, 10)] {
        let (_, ttl) = store
            .grant(Duration::from_millis(wanted), PATIENCE)
            .await
            .unwrap();
        assert_eq!(ttl, Duration::from_secs(granted), "of {wanted} ms");
    }
    let (lease, _) = store.grant(Duration::MAX, PATIENCE).await.unwrap();
    store.revoke(lease, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_watch_from_what_is_compacted_says_so() {
    let Some(cluster) = Cluster::start("a_watch_from_what_is_compacted_says_so", 1) else {
        return;
    };
    let store = cluster.store();
    let first = done(&store, Transaction::default().put("/a", "1", None)).await;
    let mut live = watch(&store, "/", first).await;
    let mut last = first;
    for round in 0..10 {
        last = done(&store, Transaction::default().put("/a", round.to_string(), None)).await;
    }
    let options = CompactionOptions::new().with_physical();
    let at = i64::try_from(last.0).unwrap();
    cluster.client(0).await.compact(at, Some(options)).await.unwrap();

    let mut late = watch(&store, "/", first).await;
    assert_eq!(
        timeout(PATIENCE, late.next()).await.unwrap(),
        Err(StoreError::Compacted)
    );
    // And says it again.
    assert_eq!(
        timeout(PATIENCE, late.next()).await.unwrap(),
        Err(StoreError::Compacted)
    );
    // One that was there before has missed nothing, and one from the last revision on may begin.
    assert_eq!(told(&mut live, first, last).await.len(), 10);
    let mut fresh = watch(&store, "/", last).await;
    let more = done(&store, Transaction::default().delete("/a")).await;
    assert_eq!(next(&mut fresh).await.revision, more);
}

/// More than etcd sends at once to who has fallen behind: what it says of the revision that it has reached itself is not what it has told.
#[tokio::test]
async fn a_watch_that_starts_long_ago_is_told_everything_in_order() {
    const COUNT: usize = 2_500;
    let Some(cluster) = Cluster::start("a_watch_that_starts_long_ago", 1) else {
        return;
    };
    let store = cluster.store();
    let start = list(&store, "/").await.revision;
    let mut client = cluster.client(0).await;
    for round in 0..COUNT {
        client.put("/a", round.to_string(), None).await.unwrap();
    }
    let end = list(&store, "/").await.revision;
    let mut late = watch(&store, "/", start).await;
    let all = told(&mut late, start, end).await;
    assert_eq!(all.len(), COUNT);
    // From the middle, as one goes on where the watch before has ended.
    let middle = Revision(start.0 + 1_234);
    assert_eq!(
        told(&mut watch(&store, "/", middle).await, middle, end).await,
        all[1_234..]
    );
}

/// It is silent as long as nothing happens, and lives longer than a silence may last.
#[tokio::test]
async fn a_watch_of_what_does_not_change_lives_on() {
    let Some(cluster) = Cluster::start("a_watch_of_what_does_not_change_lives_on", 1) else {
        return;
    };
    let store = cluster.store().with_silence(Duration::from_secs(1));
    let mut watch = watch(&store, "/quiet/", list(&store, "/").await.revision).await;
    // There is nothing to await: that nothing comes is what is shown.
    let silence = timeout(Duration::from_secs(4), watch.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    let put = done(&store, Transaction::default().put("/quiet/a", "", None)).await;
    assert_eq!(next(&mut watch).await.revision, put);
}

#[tokio::test]
async fn requests_at_the_same_time_share_one_connection_and_do_not_mix() {
    let Some(cluster) = Cluster::start("requests_at_the_same_time", 1) else {
        return;
    };
    let store = cluster.store();
    let lease = conformance::grant(&store, TTL * 30).await;
    let commits = (0..50).map(|number| {
        let key = format!("/many/{number}");
        let transaction = Transaction::default()
            .only_if(&key, Is::Absent)
            .put(key.clone(), "", Some(lease));
        let store = store.clone();
        async move { done(&store, transaction).await }
    });
    let kept = (0..50).map(|_| async { store.keep_alive(lease, PATIENCE).await.unwrap() });
    let (mut revisions, ttls) = tokio::join!(
        futures_util::future::join_all(commits),
        futures_util::future::join_all(kept)
    );
    revisions.sort();
    revisions.dedup();
    assert_eq!(revisions.len(), 50);
    assert!(ttls.iter().all(|&ttl| ttl == TTL * 30));
    assert_eq!(list(&store, "/many/").await.entries.len(), 50);
}

#[tokio::test]
async fn a_store_that_is_full_says_what_to_do() {
    let arguments = vec!["--quota-backend-bytes=65536".to_owned()];
    let options = Options {
        arguments,
        tls: false,
    };
    let Some(cluster) = Cluster::start_with("a_store_that_is_full_says_what_to_do", 1, &options) else {
        return;
    };
    let store = cluster.store();
    let lease = conformance::grant(&store, TTL * 30).await;
    let put = || Transaction::default().put("/a", "x".repeat(4096), Some(lease));
    let error = loop {
        match store.commit(put(), PATIENCE).await {
            Ok(outcome) => assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}"),
            Err(error) => break error,
        }
    };
    let StoreError::Unavailable(said) = error else {
        panic!("{error:?}")
    };
    assert!(
        said.contains(&cluster.endpoints()[0]) && said.contains("etcdctl alarm disarm"),
        "{said}"
    );
    // What is there can be read, kept, and taken away.
    assert_eq!(store.keep_alive(lease, PATIENCE).await, Ok(TTL * 30));
    assert_eq!(list(&store, "/").await.entries.len(), 1);
    done(&store, Transaction::default().delete("/a")).await;
}
