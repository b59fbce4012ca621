//! What a guardian tells a monitoring system over HTTP. Names and meanings: docs/MONITORING.md.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};

use super::manager::{self, Count, Message};
use super::operations::Direction;
use super::server::Shared;
use crate::cli::unix_milliseconds;
use crate::protocol::{Response, Status};
use crate::telemetry::http::{self, Method, StatusCode};
use crate::telemetry::metrics::{Figures, unix_seconds};

/// How long the manager may take to answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// How old what is told of units may be.
const FRESH: Duration = Duration::from_secs(1);
/// The states of units that are always among the figures: an absent one could not be told from none.
const STATES: [&str; 6] = [
    "active",
    "reloading",
    "inactive",
    "failed",
    "activating",
    "deactivating",
];

/// A status, and when it was read.
type Seen = (Instant, Box<Response>);

/// Answers requests.
#[derive(Clone)]
pub(super) struct Metrics {
    shared: Arc<Shared>,
    started_ms: u64,
    /// What the units were a moment ago: whoever asks for figures again and again must not keep systemd busy.
    seen: Arc<Mutex<Option<Seen>>>,
}

impl Metrics {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            started_ms: unix_milliseconds(),
            seen: Arc::default(),
        }
    }

    pub(super) async fn answer(self, request: http::Request) -> http::Response {
        if request.method() != Method::GET {
            return http::not_allowed();
        }
        match request.uri().path() {
            "/metrics" => self.metrics(&request).await,
            "/healthz" => match self.ask(|reply| Message::Figures { reply }).await {
                Some(_) => http::text(StatusCode::OK, "ok"),
                None => http::text(StatusCode::SERVICE_UNAVAILABLE, "the guardian makes no progress"),
            },
            _ => http::not_found("/metrics and /healthz"),
        }
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        timeout(PATIENCE, async {
            self.shared.manager.send(message(reply)).await.ok()?;
            answer.await.ok()
        })
        .await
        .ok()?
    }

    async fn status(&self) -> Option<Box<Response>> {
        let mut seen = self.seen.lock().await;
        if let Some((at, status)) = seen.as_ref()
            && at.elapsed() < FRESH
        {
            return Some(status.clone());
        }
        let status = self.ask(|reply| Message::Status { reply }).await?;
        *seen = Some((Instant::now(), status.clone()));
        Some(status)
    }

    async fn metrics(&self, request: &http::Request) -> http::Response {
        let wanted = self.ask(|reply| Message::Figures { reply }).await;
        let status = self.status().await;
        let mut figures = Figures::new("io_guardian", self.started_ms);
        if let Some(wanted) = wanted {
            add_wanted(&mut figures, &wanted);
        }
        if let Some(status) = status {
            add_seen(&mut figures, &status);
        }
        let (peers, strangers, refused) = self.shared.counts();
        figures.labelled(
            "io_guardian_connections",
            "Connections that are open: of peers, who have shown the key, and of strangers",
            [
                ([("kind", "peer")], peers as f64),
                ([("kind", "stranger")], strangers as f64),
            ],
        );
        figures.counters(
            "io_guardian_refused",
            "What was refused to those who connect, by the reason",
            refused
                .into_iter()
                .map(|(reason, count)| ([("reason", reason)], count)),
        );
        figures.answer(request)
    }
}

/// What the guardian wants, and has done.
fn add_wanted(figures: &mut Figures, wanted: &manager::Figures) {
    let truth = |is: bool| f64::from(u8::from(is));
    figures.gauge(
        "io_guardian_drained",
        "Whether the host is meant to be drained: by command, by its own probes or by a hold",
        truth(wanted.drained),
    );
    figures.gauge("io_guardian_held", "Whether a hold is on", truth(wanted.held));
    figures.gauge(
        "io_guardian_generation",
        "The highest generation seen, 0 before the first",
        wanted.generation.unwrap_or_default() as f64,
    );
    let under_way = |direction| truth(wanted.current == Some(direction));
    figures.labelled(
        "io_guardian_operation_in_progress",
        "Whether a drain or an undrain is under way",
        [
            ([("action", "drain")], under_way(Direction::Drain)),
            ([("action", "undrain")], under_way(Direction::Undrain)),
        ],
    );
    let both: [(&str, Count); 2] = [("drain", wanted.drains), ("undrain", wanted.undrains)];
    let counts = both.into_iter().flat_map(|(action, count)| {
        let labels = |result| [("action", action), ("result", result)];
        [(labels("ok"), count.ok), (labels("error"), count.failed)]
    });
    figures.counters(
        "io_guardian_operations",
        "Drains and undrains that have ended",
        counts,
    );
    let took = both
        .into_iter()
        .filter_map(|(action, count)| Some(([("action", action)], count.took?.as_secs_f64())));
    figures.labelled(
        "io_guardian_operation_duration_seconds",
        "How long the last drain and the last undrain took",
        took,
    );
}

/// What it sees of its units and databases. Without their states there are no figures of them.
fn add_seen(figures: &mut Figures, status: &Response) {
    let databases = || status.databases.iter().flatten();
    figures.labelled(
        "io_guardian_database_ready",
        "Whether the database would serve a query, as this host's own probes see it",
        databases().map(|database| ([("database", database.name.clone())], u8::from(database.ready))),
    );
    figures.labelled(
        "io_guardian_database_changed_timestamp_seconds",
        "Since when that is so, in seconds since 1970",
        databases().map(|database| {
            (
                [("database", database.name.clone())],
                unix_seconds(Duration::from_millis(database.age_ms)),
            )
        }),
    );
    if status.status == Status::Error {
        return;
    }
    let active = status.target_state.as_deref() == Some("active");
    figures.gauge(
        "io_guardian_target_active",
        "Whether the target is active",
        f64::from(u8::from(active)),
    );
    let units = || status.units.iter().flatten();
    let of = |state: &str| units().filter(|unit| unit.state == state).count() as f64;
    figures.labelled(
        "io_guardian_units",
        "What depends on the databases, by its state",
        STATES.map(|state| ([("state", state)], of(state))),
    );
}
