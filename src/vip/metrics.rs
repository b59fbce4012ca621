//! Figures over HTTP. Names and meanings: docs/VIP.md.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::run::Question;
use super::shown::{Shown, State};
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

fn figures(shown: &Shown, counts: &super::run::Counts, started_ms: u64) -> Figures {
    let flag = |is: bool| if is { 1.0 } else { 0.0 };
    let mut figures = Figures::new("io_vip", started_ms);
    figures.gauge(
        "io_vip_takes_part",
        "Whether this node takes part: it is healthy, and the store knows",
        flag(shown.state == State::TakesPart),
    );
    figures.gauge(
        "io_vip_held",
        "Addresses that this node holds",
        shown.held.len() as f64,
    );
    figures.gauge("io_vip_pool", "Addresses of the pool", shown.pool.len() as f64);
    figures.gauge(
        "io_vip_pool_unowned",
        "Addresses of the pool that no node that is alive holds",
        shown.pool.iter().filter(|pooled| !pooled.owner_alive).count() as f64,
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
        shown
            .held
            .iter()
            .map(|held| ([("address", held.address.to_string())], 1.0)),
    );
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
