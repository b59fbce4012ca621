//! Figures over HTTP. Names and meanings: docs/FENCE.md.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::monitor::{Message, Sender};
use super::status::Status;
use crate::cli::unix_milliseconds;
use crate::telemetry::http::{self, Method, StatusCode};
use crate::telemetry::metrics::Figures;

/// How long the monitor may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers requests.
#[derive(Clone)]
pub(super) struct Metrics {
    monitor: Sender,
    started_ms: u64,
}

impl Metrics {
    pub(super) fn new(monitor: Sender) -> Self {
        Self {
            monitor,
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
        let Some(status) = self.status().await else {
            return http::text(StatusCode::SERVICE_UNAVAILABLE, "the monitor makes no progress");
        };
        if path == "/healthz" {
            return http::text(StatusCode::OK, "ok");
        }
        let mut figures = Figures::new("io_fence", self.started_ms);
        add(&mut figures, &status);
        figures.answer(&request)
    }

    async fn status(&self) -> Option<Status> {
        let (reply, answer) = oneshot::channel();
        timeout(PATIENCE, async {
            self.monitor.send(Message::Status { reply }).await.ok()?;
            answer.await.ok()
        })
        .await
        .ok()?
    }
}

fn add(figures: &mut Figures, status: &Status) {
    let folders = || status.folders.iter();
    let label = |folder: &str| [("folder", folder.to_owned())];
    let truth = |is: bool| f64::from(u8::from(is));
    figures.labelled(
        "io_fence_fenced",
        "Whether the folder's ports are fenced, because of its disk or by hand",
        folders().map(|folder| (label(&folder.folder), truth(folder.state != "open"))),
    );
    figures.labelled(
        "io_fence_fenced_by_disk",
        "Whether they are fenced because of its disk, and not by hand alone",
        folders().map(|folder| (label(&folder.folder), truth(folder.state == "fenced"))),
    );
    figures.labelled(
        "io_fence_heartbeat_seconds",
        "How long no write of the folder may come back until its ports are fenced",
        folders().filter_map(|folder| Some((label(&folder.folder), folder.heartbeat_ms? as f64 / 1_000.0))),
    );
    figures.labelled(
        "io_fence_beat_age_seconds",
        "How long ago a write of the folder came back last",
        folders().filter_map(|folder| Some((label(&folder.folder), folder.last_beat_ms? as f64 / 1_000.0))),
    );
    figures.labelled(
        "io_fence_write_latency_p99_seconds",
        "The time that 99 of 100 of the last minute's writes did not exceed",
        folders().filter_map(|folder| Some((label(&folder.folder), folder.p99_us? as f64 / 1_000_000.0))),
    );
    let writes = folders().flat_map(|folder| {
        folder.writes.iter().map(|(result, count)| {
            let labels = [("folder", folder.folder.clone()), ("result", result.clone())];
            (labels, *count)
        })
    });
    figures.counters("io_fence_writes", "Writes, by what came of them", writes);
    figures.counters(
        "io_fence_fences",
        "How often the folder's ports were fenced because of its disk",
        folders().map(|folder| (label(&folder.folder), folder.fences)),
    );
    figures.labelled(
        "io_fence_busy",
        "Whether no write of the folder came back for a heartbeat, and its ports are open because its disk completes others",
        folders().map(|folder| (label(&folder.folder), truth(folder.busy))),
    );
    figures.counters(
        "io_fence_spared",
        "How often the folder's ports stayed open for that",
        folders().map(|folder| (label(&folder.folder), folder.spared)),
    );
    let mut by_hand = crate::host::Ports::default();
    for hand in &status.by_hand {
        by_hand.add(&hand.ports);
    }
    figures.gauge(
        "io_fence_by_hand",
        "Ports that are fenced by hand",
        by_hand.len() as f64,
    );
    figures.gauge(
        "io_fence_ports",
        "Ports that are fenced, for whatever reason",
        status.fenced.len() as f64,
    );
    figures.gauge(
        "io_fence_pending",
        "Whether the kernel has refused the last change, and it is tried again",
        truth(status.pending),
    );
    figures.gauge(
        "io_fence_memory_locked",
        "Whether the monitor cannot be paged out",
        truth(status.memory_locked),
    );
}
