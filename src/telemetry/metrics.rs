//! Figures in the text that Prometheus reads (the OpenMetrics format). They are made anew each time that somebody asks: a family that
//! belongs to something that is gone is gone with it.

use std::fmt::Debug;
use std::time::Duration;

use hyper::header::ACCEPT;
use nix::sys::resource::{UsageWho, getrusage};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use super::http::{self, Request, Response, StatusCode};
use crate::cli::unix_milliseconds;

/// The media type of what [`Figures::answer`] answers.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
/// See [`PLAIN`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One answer that is being made.
#[derive(Debug)]
pub struct Figures {
    registry: Registry,
}

impl Figures {
    /// The figures of a program whose names begin with `prefix`, its version and its process, which has `started_ms` after 1970,
    /// among them.
    pub fn new(prefix: &'static str, started_ms: u64) -> Self {
        let mut figures = Self {
            registry: Registry::default(),
        };
        figures.labelled(
            &format!("{prefix}_build_info"),
            "The version that runs",
            [([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
        );
        figures.process(started_ms);
        figures
    }

    /// One value that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.registry.register(name, help, ConstGauge::new(value));
    }

    /// Values that go up and down, told apart by labels.
    pub fn labelled<L, V>(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (L, V)>)
    where
        L: EncodeLabelSet + Clone + Debug + Eq + std::hash::Hash + Send + Sync + 'static,
        V: Into<f64>,
    {
        let family = Family::<L, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value.into());
        }
        self.registry.register(name, help, family);
    }

    /// One count that only grows. The format adds `_total` to the name.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.registry.register(name, help, ConstCounter::new(value));
    }

    /// Counts that only grow, told apart by labels. The format adds `_total` to the name.
    pub fn counters<L>(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (L, u64)>)
    where
        L: EncodeLabelSet + Clone + Debug + Eq + std::hash::Hash + Send + Sync + 'static,
    {
        let family = Family::<L, prometheus_client::metrics::counter::Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }

    /// What Prometheus' own clients tell of their process, under the same names.
    fn process(&mut self, started_ms: u64) {
        if let Some(pages) = resident_pages() {
            let bytes = pages * page_size();
            self.registry.register_with_unit(
                "process_resident_memory",
                "Memory that the process has in RAM",
                Unit::Bytes,
                ConstGauge::new(bytes),
            );
        }
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let seconds =
                |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1_000_000.0;
            self.registry.register_with_unit(
                "process_cpu",
                "Processor time that the process has used",
                Unit::Seconds,
                ConstCounter::new(seconds(usage.user_time()) + seconds(usage.system_time())),
            );
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the folder itself.
            self.gauge(
                "process_open_fds",
                "Descriptors that are open",
                open.count().saturating_sub(1) as f64,
            );
        }
        self.registry.register_with_unit(
            "process_start_time",
            "When the process has started, in seconds since 1970",
            Unit::Seconds,
            ConstGauge::new(started_ms as f64 / 1_000.0),
        );
    }

    /// All of them, in OpenMetrics for who asks for it, and in the older format of Prometheus for others.
    pub fn answer(&self, request: &Request) -> Response {
        let mut accepted = request
            .headers()
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let is_modern = accepted.any(|value| value.contains("application/openmetrics-text"));
        match self.text() {
            Ok(text) if is_modern => http::respond(StatusCode::OK, OPEN_METRICS, text),
            Ok(text) => http::respond(StatusCode::OK, PLAIN, older(&text)),
            Err(error) => http::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// All of them in OpenMetrics.
    ///
    /// # Errors
    /// A figure cannot be written.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(8 << 10);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The same figures in the older format: there a counter is named with its ending, and units and ends are not told.
fn older(text: &str) -> String {
    let is_counter = |name: &str| text.contains(&format!("# TYPE {name} counter\n"));
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "UNIT" | "EOF", ..] => continue,
            ["#", kind, name, rest] if is_counter(name) => {
                out.push_str(&format!("# {kind} {name}_total {rest}"));
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// The time `ago` in seconds since 1970: figures of different hosts are compared by the calendar.
pub fn unix_seconds(ago: Duration) -> f64 {
    unix_milliseconds() as f64 / 1_000.0 - ago.as_secs_f64()
}

/// proc_pid_statm(5).
fn resident_pages() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse().ok()
}

fn page_size() -> i64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .unwrap_or(4_096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_with_their_ending() {
        let modern = "# HELP a Things.\n# TYPE a counter\n# UNIT a seconds\na_total{b=\"c d\"} 1\n# TYPE e gauge\ne 2.0\n# EOF\n";
        let expected =
            "# HELP a_total Things.\n# TYPE a_total counter\na_total{b=\"c d\"} 1\n# TYPE e gauge\ne 2.0\n";
        assert_eq!(older(modern), expected);
    }

    #[test]
    fn no_label_can_forge_a_figure() {
        let mut figures = Figures::new("x", 0);
        figures.labelled(
            "x_host",
            "Hosts",
            [([("host", "a\"} 1\nforged 1\n# EOF".to_owned())], 1.0)],
        );
        let text = figures.text().unwrap();
        assert!(
            text.contains(r#"x_host{host="a\"} 1\nforged 1\n# EOF"} 1.0"#),
            "{text}"
        );
    }
}
