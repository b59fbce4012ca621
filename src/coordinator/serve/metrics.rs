//! The figures of a fleet. Names and meanings: docs/MONITORING.md.

use super::Shared;
use crate::cli::unix_milliseconds;
use crate::coordinator::fleet::{Host, LinkState, State};
use crate::telemetry::metrics::Figures;

pub(super) fn figures(shared: &Shared) -> Figures {
    let mut figures = Figures::new("io_coordinator", shared.started_ms);
    let fleet = shared.fleet();
    let (counts, lost) = fleet.counts();
    let by_state = counts.into_iter().map(|(state, count)| (state.as_str(), count));
    figures.labelled(
        "io_coordinator_hosts",
        "Hosts by their state; those that cannot be heard are lost, whatever they were in",
        by_state
            .chain([("lost", lost)])
            .map(|(state, count)| ([("state", state)], count as f64)),
    );
    let each = |value: fn(&Host) -> bool| {
        fleet
            .hosts()
            .iter()
            .map(move |host| ([("host", host.name.clone())], u8::from(value(host))))
    };
    figures.labelled(
        "io_coordinator_host_up",
        "Whether the host's guardian can be heard",
        each(|host| host.link == LinkState::Open),
    );
    figures.labelled(
        "io_coordinator_host_drained",
        "Whether the host is drained, or held",
        each(|host| matches!(host.state, State::Drained | State::Held)),
    );
    figures.labelled(
        "io_coordinator_host_held",
        "Whether a hold is on",
        each(|host| host.held),
    );
    figures.labelled(
        "io_coordinator_host_failed",
        "Whether its last drain or undrain failed",
        each(|host| host.state == State::Failed),
    );
    let units = fleet.hosts().iter().flat_map(|host| {
        let mut states = host.unit_states();
        // Those of which there is none, too: the first one must be seen to be one more.
        for always in ["active", "inactive", "failed"] {
            if !states.iter().any(|(state, _)| *state == always) {
                states.push((always, 0));
            }
        }
        states
            .into_iter()
            .map(|(state, count)| ([("host", host.name.clone()), ("state", state.to_owned())], count))
            .collect::<Vec<_>>()
    });
    figures.labelled(
        "io_coordinator_host_units",
        "What depends on the databases there, by its state",
        units,
    );
    let databases = fleet.hosts().iter().flat_map(|host| {
        host.databases.iter().map(|database| {
            let labels = [("host", host.name.clone()), ("database", database.name.clone())];
            (labels, u8::from(database.ready))
        })
    });
    figures.labelled(
        "io_coordinator_host_database_ready",
        "Whether the database would serve a query, as that host's own probes see it",
        databases,
    );
    let seen = fleet.hosts().iter().filter_map(|host| {
        let heard = match host.link {
            LinkState::Open => unix_milliseconds(),
            LinkState::Connecting | LinkState::Lost => host.seen_ms?,
        };
        let seconds = heard as f64 / 1_000.0;
        Some(([("host", host.name.clone())], seconds))
    });
    figures.labelled(
        "io_coordinator_host_last_seen_timestamp_seconds",
        "When the host's guardian was last heard, in seconds since 1970",
        seen,
    );
    figures.counter(
        "io_coordinator_links_lost",
        "How often a guardian that was heard was lost",
        fleet.links_lost,
    );
    figures.counter(
        "io_coordinator_events",
        "How often a guardian has told of itself",
        fleet.told,
    );
    figures
}
