//! Figures over HTTP. Names and meanings: docs/VIP.md.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::keys;
use super::run::Question;
use super::shown::{Held, Pooled, Shown, State};
use crate::cli::unix_milliseconds;
use crate::telemetry::http::{self, Method, StatusCode};
use crate::telemetry::metrics::Figures;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers requests.
#[derive(Clone)]
pub(super) struct Metrics {
    daemon: mpsc::Sender<Question>,
    started_ms: u64,
}

impl Metrics {
    pub(super) fn new(daemon: mpsc::Sender<Question>) -> Self {
        Self {
            daemon,
            started_ms: unix_milliseconds(),
        }
    }

    pub(super) async fn answer(self, request: http::Request) -> http::Response {
        if request.method() != Method::GET {
            return http::not_allowed();
        }
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/healthz") {
            return http::not_found("/metrics and /healthz");
        }
        let Some((shown, counts)) = self.ask().await else {
            return http::text(StatusCode::SERVICE_UNAVAILABLE, "the daemon makes no progress");
        };
        if path == "/healthz" {
            return http::text(StatusCode::OK, "ok");
        }
        figures(&shown, &counts, self.started_ms).answer(&request)
    }

    async fn ask(&self) -> Option<(Shown, super::run::Counts)> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.daemon.send(reply).await.ok()?;
            answer.await.ok()
        };
        timeout(PATIENCE, asked).await.ok()?
    }
}

/// Whether the kernel may answer for it: one that it was told to drop it answers for until then at the latest, whatever has failed.
fn is_held(held: &Held) -> bool {
    held.up || !held.dropping
}

fn figures(shown: &Shown, counts: &super::run::Counts, started_ms: u64) -> Figures {
    let flag = |is: bool| if is { 1.0 } else { 0.0 };
    let held = || shown.held.iter().filter(|held| is_held(held));
    // Its own mark outlives what it has dropped, as long as the store does not answer.
    let is_owned = |pooled: &Pooled| {
        pooled.owner_alive
            && (pooled.owner.as_ref() != Some(&shown.node)
                || held().any(|held| held.address == pooled.address))
    };
    let mut figures = Figures::new("io_vip", started_ms);
    figures.gauge(
        "io_vip_takes_part",
        "Whether this node takes part: it is healthy, and the store knows",
        flag(shown.state == State::TakesPart),
    );
    figures.gauge(
        "io_vip_held",
        "Addresses that this node holds",
        held().count() as f64,
    );
    figures.gauge("io_vip_pool", "Addresses of the pool", shown.pool.len() as f64);
    figures.gauge(
        "io_vip_pool_unowned",
        "Addresses of the pool that no node that is alive holds",
        shown.pool.iter().filter(|pooled| !is_owned(pooled)).count() as f64,
    );
    figures.gauge(
        "io_vip_nodes_alive",
        "Nodes that have shown a sign of life in time",
        shown.nodes.iter().filter(|node| node.alive).count() as f64,
    );
    figures.gauge(
        "io_vip_lease_left_seconds",
        "How long this node may hold what it holds without another sign of life",
        shown.until_ms.unwrap_or(0) as f64 / 1_000.0,
    );
    figures.gauge(
        "io_vip_store_watched",
        "Whether the store tells what happens, as it happens",
        flag(shown.watching),
    );
    figures.labelled(
        "io_vip_holds",
        "The addresses that this node holds",
        held().map(|held| ([("address", held.address.to_string())], 1.0)),
    );
    figures.gauge(
        "io_vip_shut",
        "Addresses that are on this host, and that it does not answer for, because another one may have them",
        counts.shut.len() as f64,
    );
    let cannot = shown.pool.iter().filter(|pooled| {
        pooled
            .cannot
            .get(&shown.node)
            .is_some_and(|why| !keys::is_untried(why))
    });
    figures.labelled(
        "io_vip_cannot",
        "Addresses of the pool that this node could not hold, and leaves to others for now",
        cannot.map(|pooled| ([("address", pooled.address.to_string())], 1.0)),
    );
    // Before the store was looked at nobody knows, and a pause outlives restarts.
    if shown.revision.is_some() {
        figures.gauge(
            "io_vip_paused",
            "Whether somebody has paused this node",
            flag(shown.paused.contains_key(&shown.node)),
        );
    }
    figures.counter(
        "io_vip_taken",
        "Addresses that this node has taken since its start",
        counts.taken,
    );
    figures.counter("io_vip_dropped", "Addresses that it has dropped", counts.dropped);
    figures.counter(
        "io_vip_lapses",
        "How often it had to drop all because no sign of life got through to the store",
        counts.lapses,
    );
    figures
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::super::run::Counts;
    use super::*;

    const HERE: &str = "a";

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn held(last: u8, up: bool, dropping: bool) -> Held {
        Held {
            address: address(last),
            token: None,
            since_ms: None,
            up,
            dropping,
        }
    }

    fn pooled(last: u8, owner: Option<&str>, owner_alive: bool) -> Pooled {
        Pooled {
            address: address(last),
            owner: owner.map(str::to_owned),
            token: None,
            owner_alive,
            preferred: None,
            share_of: None,
            free_in_ms: None,
            cannot: BTreeMap::new(),
        }
    }

    fn shown() -> Shown {
        Shown {
            node: HERE.to_owned(),
            state: State::TakesPart,
            because: None,
            lease: None,
            until_ms: None,
            held: Vec::new(),
            pool: Vec::new(),
            nodes: Vec::new(),
            paused: BTreeMap::new(),
            revision: Some(1),
            watching: true,
            last_fault: None,
        }
    }

    /// The samples whose names begin so, in their order.
    fn samples(shown: &Shown, name: &str) -> Vec<String> {
        let text = figures(shown, &Counts::default(), 0).text().unwrap();
        let is_it = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        };
        let mut found: Vec<_> = text.lines().filter(is_it).map(str::to_owned).collect();
        found.sort();
        found
    }

    #[test]
    fn an_address_is_unowned_that_nobody_alive_has_or_that_this_node_has_marked_and_dropped() {
        let mut node = shown();
        node.pool = vec![
            pooled(1, Some(HERE), true),
            pooled(2, Some("b"), true),
            pooled(3, Some("b"), false),
            pooled(4, None, false),
        ];
        assert_eq!(samples(&node, "io_vip_pool_unowned"), ["io_vip_pool_unowned 3.0"]);
        node.held = vec![held(1, true, false)];
        assert_eq!(samples(&node, "io_vip_pool_unowned"), ["io_vip_pool_unowned 2.0"]);
    }

    #[test]
    fn what_the_kernel_answers_for_no_more_is_not_held() {
        let mut node = shown();
        node.held = vec![
            held(1, true, false),
            held(2, false, false),
            held(3, true, true),
            held(4, false, true),
        ];
        assert_eq!(samples(&node, "io_vip_held"), ["io_vip_held 3.0"]);
        let holds = [1, 2, 3].map(|last| format!("io_vip_holds{{address=\"192.0.2.{last}\"}} 1.0"));
        assert_eq!(samples(&node, "io_vip_holds"), holds);
    }

    #[test]
    fn what_another_node_cannot_hold_is_not_ours_to_tell() {
        let mut node = shown();
        node.pool = vec![pooled(1, None, false), pooled(2, None, false)];
        node.pool[0].cannot.insert(HERE.to_owned(), "no".to_owned());
        node.pool[1].cannot.insert("b".to_owned(), "no".to_owned());
        assert_eq!(
            samples(&node, "io_vip_cannot"),
            ["io_vip_cannot{address=\"192.0.2.1\"} 1.0"]
        );
        // It might by now; and another node has it.
        node.pool[0].cannot.insert(HERE.to_owned(), keys::untried("no"));
        assert_eq!(samples(&node, "io_vip_cannot"), [""; 0]);
    }

    #[test]
    fn whether_it_is_paused_is_told_when_the_store_has_said_so() {
        let mut node = shown();
        node.paused.insert("b".to_owned(), String::new());
        assert_eq!(samples(&node, "io_vip_paused"), ["io_vip_paused 0.0"]);
        node.paused.insert(HERE.to_owned(), String::new());
        assert_eq!(samples(&node, "io_vip_paused"), ["io_vip_paused 1.0"]);
        node.revision = None;
        assert!(samples(&node, "io_vip_paused").is_empty());
    }
}
