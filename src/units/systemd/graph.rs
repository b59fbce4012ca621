//! Who depends on the target, read from the target's own dependencies. Pure.

use std::collections::{BTreeSet, HashMap};

/// What hangs on the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Graph {
    /// What must rest when the target is drained: all that requires it, binds to it, is part of it, or is wanted
    /// or upheld by it.
    pub(super) dependents: BTreeSet<String>,
    /// What starting the target starts.
    pub(super) pulled: BTreeSet<String>,
    /// Of that, what systemd starts again whenever it ends while the target is active.
    pub(super) upheld: BTreeSet<String>,
}

impl Graph {
    /// Reads the graph from the target's `properties`, the lists of names that systemd gives for it.
    ///
    /// What the target itself requires or is bound to is a prerequisite (the wait for the databases, say) and no
    /// dependent. Of what it merely wants, only units that can run something or start it count: a target that
    /// wants `network-online.target` must not take the network down with it.
    pub(super) fn read(target: &str, properties: &HashMap<String, Vec<String>>) -> Self {
        let all = |kinds: &[&str]| -> BTreeSet<String> {
            kinds
                .iter()
                .filter_map(|kind| properties.get(*kind))
                .flatten()
                .cloned()
                .collect()
        };
        let prerequisites = all(&["Requires", "Requisite", "BindsTo"]);
        let wanted = all(&["Wants", "Upholds"]);
        let mut dependents = all(&["RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf"]);
        dependents.extend(wanted.iter().filter(|unit| runs_or_starts(unit)).cloned());
        dependents.retain(|unit| unit != target && !prerequisites.contains(unit));
        let mut pulled = prerequisites;
        pulled.extend(wanted);
        Self {
            dependents,
            pulled,
            upheld: all(&["Upholds"]),
        }
    }
}

impl Graph {
    /// Whether `unit` comes up by itself once the target is up: it is started with it, or by a socket, timer or path of its
    /// name that is.
    pub(super) fn brings_up(&self, unit: &str) -> bool {
        let starts = |kind: &str| {
            let name = unit.strip_suffix(".service")?;
            let name = name.split_once('@').map_or(name, |(template, _)| template);
            Some(self.pulled.contains(&format!("{name}.{kind}")))
        };
        self.pulled.contains(unit)
            || ["socket", "timer", "path"]
                .iter()
                .any(|kind| starts(kind) == Some(true))
    }
}

/// Whether stopping one of `stopped` stops a unit with these `properties` too.
pub(super) fn stops_with(properties: &HashMap<String, Vec<String>>, stopped: &dyn Fn(&str) -> bool) -> bool {
    ["Requires", "Requisite", "BindsTo", "PartOf"]
        .iter()
        .filter_map(|kind| properties.get(*kind))
        .flatten()
        .any(|unit| stopped(unit))
}

/// Whether a unit has processes of its own, or starts units that have.
fn runs_or_starts(unit: &str) -> bool {
    matches!(
        unit.rsplit('.').next(),
        Some("service" | "scope" | "socket" | "timer" | "path")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_timer_or_a_socket_of_its_name_starts_comes_up_by_itself() {
        let graph = Graph {
            pulled: BTreeSet::from(["report.timer".to_owned(), "chat.socket".to_owned()]),
            ..Graph::default()
        };
        for unit in [
            "report.service",
            "chat.service",
            "chat@4-1.service",
            "report.timer",
        ] {
            assert!(graph.brings_up(unit), "{unit}");
        }
        for unit in ["other.service", "report.target", "reports.service"] {
            assert!(!graph.brings_up(unit), "{unit}");
        }
    }

    #[test]
    fn dependents_are_all_that_hang_on_the_target_and_prerequisites_are_not() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let properties = HashMap::from([
            ("RequiredBy".to_owned(), names(&["a.service", "both.service"])),
            ("BoundBy".to_owned(), names(&["b.service"])),
            ("ConsistsOf".to_owned(), names(&["part.service", "part.timer"])),
            ("Upholds".to_owned(), names(&["a.service", "up.service"])),
            (
                "Wants".to_owned(),
                names(&["want.service", "network-online.target", "both.service"]),
            ),
            ("BindsTo".to_owned(), names(&["wait-for-io-databases.service"])),
            ("After".to_owned(), names(&["other.service"])),
        ]);
        let graph = Graph::read("io.target", &properties);
        let dependents: Vec<_> = graph.dependents.iter().map(String::as_str).collect();
        assert_eq!(
            dependents,
            [
                "a.service",
                "b.service",
                "both.service",
                "part.service",
                "part.timer",
                "up.service",
                "want.service"
            ]
        );
        assert!(graph.pulled.contains("wait-for-io-databases.service"));
        assert!(!graph.pulled.contains("b.service"));
        assert!(graph.brings_up("up.service") && !graph.brings_up("b.service"));
        assert_eq!(
            graph.upheld.iter().collect::<Vec<_>>(),
            ["a.service", "up.service"]
        );
    }
}
