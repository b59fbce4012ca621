//! What the states of units mean: at rest, up, still moving, failed. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tokio::time::Instant;
use zbus::OwnedObjectPath;

use super::bus::Listed;
use super::graph::Graph;

/// What an operation has learned so far; it outlives attempts and the deadline.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) graph: Graph,
    /// Dependents of dependents that a stop dragged along.
    pub(super) dragged: BTreeSet<String>,
    /// When each unit's job ended, and how.
    pub(super) jobs: HashMap<String, (Instant, String)>,
    /// The last states seen.
    pub(super) listed: BTreeMap<String, Listed>,
}

impl Progress {
    /// All that must rest before the drain is done: the dependents, and what depends on them.
    pub(super) fn concerned<'a>(&'a self, target: &'a str) -> impl Iterator<Item = &'a Listed> + 'a {
        self.listed
            .values()
            .filter(move |u| u.name != target)
            .filter(|u| self.graph.dependents.contains(&u.name) || self.dragged.contains(&u.name))
    }

    /// All that must rest, and the target with it.
    pub(super) fn concerned_and_target<'a>(
        &'a self,
        target: &'a str,
    ) -> impl Iterator<Item = &'a Listed> + 'a {
        self.concerned(target).chain(self.listed.get(target))
    }

    /// The target and what starting it starts.
    pub(super) fn pulled<'a>(&'a self, target: &'a str) -> impl Iterator<Item = &'a Listed> + 'a {
        self.listed
            .values()
            .filter(move |u| u.name == target || self.graph.pulled.contains(&u.name))
    }
}

impl Progress {
    /// Whether something that the target upholds is down although this operation has not started it: it died while the target
    /// had a job, and systemd does not look at it again when that is over.
    ///
    /// Not when something has failed to start: to start the target again would start that again, too.
    pub(super) fn has_missed_one(&self) -> bool {
        let mut started = self
            .jobs
            .iter()
            .filter(|(unit, _)| self.graph.pulled.contains(*unit));
        let all_started = started.all(|(_, (_, result))| matches!(result.as_str(), "done" | "skipped"));
        all_started
            && self.listed.values().any(|unit| {
                self.graph.upheld.contains(&unit.name)
                    && unit.load_state == "loaded"
                    && is_at_rest(unit)
                    && !self.jobs.contains_key(&unit.name)
            })
    }
}

/// What tells that `units` have moved on: the ends of their jobs, and for those without one a change of their own.
pub(super) fn to_wait_for(units: &[&Listed]) -> (HashSet<u32>, HashSet<OwnedObjectPath>) {
    let jobs = units
        .iter()
        .map(|unit| unit.job)
        .filter(|job| *job != 0)
        .collect();
    let jobless = units
        .iter()
        .filter(|unit| unit.job == 0)
        .map(|unit| unit.path.clone())
        .collect();
    (jobs, jobless)
}

/// Nothing of it runs, and nothing is about to.
pub(super) fn is_at_rest(unit: &Listed) -> bool {
    let stopped = matches!(unit.active_state.as_str(), "inactive" | "failed");
    // A unit that does not exist (any more) has nothing that could run.
    stopped && (unit.job == 0 || unit.load_state == "not-found")
}

/// What became of a unit that should start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Started {
    Up,
    Pending(String),
    Failed(String),
    /// Inactive, and no job of ours says why.
    Unknown,
}

/// Reads that from its state, and from how its start job ended, if it had one.
pub(super) fn started(unit: &Listed, job: Option<&str>) -> Started {
    let state = || {
        let job = if unit.job == 0 {
            String::new()
        } else {
            format!(", {} job queued", unit.job_type)
        };
        format!("{} ({}{job})", unit.active_state, unit.sub_state)
    };
    match unit.active_state.as_str() {
        _ if unit.job != 0 => Started::Pending(state()),
        "active" | "reloading" | "refreshing" => Started::Up,
        "failed" => Started::Failed("failed".to_owned()),
        "inactive" => match job {
            // A oneshot that has run, a service that ended well by itself, or a condition that said no.
            Some("done" | "skipped") => Started::Up,
            Some(result) => Started::Failed(match result {
                "dependency" => "a unit that it depends on did not start".to_owned(),
                other => format!("its start job ended as {other}"),
            }),
            // systemd knows no file for it: Wants= and Upholds= allow that.
            None if unit.load_state == "not-found" => Started::Failed("not found".to_owned()),
            None => Started::Unknown,
        },
        _ => Started::Pending(state()),
    }
}

/// The D-Bus interface of a unit's own kind.
pub(super) fn interface(unit: &str) -> String {
    let kind = unit.rsplit('.').next().unwrap_or_default();
    let mut letters = kind.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase()).into_iter();
    format!(
        "org.freedesktop.systemd1.{}",
        first.chain(letters).collect::<String>()
    )
}

/// A unit in a state, for tests.
#[cfg(test)]
pub(super) fn unit(active: &str, job: u32) -> Listed {
    Listed {
        name: "app.service".to_owned(),
        _description: String::new(),
        load_state: "loaded".to_owned(),
        active_state: active.to_owned(),
        sub_state: "sub".to_owned(),
        _following: String::new(),
        path: zbus::OwnedObjectPath::default(),
        job,
        job_type: "start".to_owned(),
        _job_path: zbus::OwnedObjectPath::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_died_in_an_undrain_is_started_once_more_and_what_did_not_start_is_not() {
        let mut progress = Progress::default();
        let mut is_missed = |state, job: Option<&str>, upheld| {
            let unit = unit(state, 0);
            let name = unit.name.clone();
            progress.graph.upheld = upheld;
            progress.jobs = job
                .map(|result| (name.clone(), (Instant::now(), result.to_owned())))
                .into_iter()
                .collect();
            progress.listed = BTreeMap::from([(name, unit)]);
            progress.has_missed_one()
        };
        let upheld = || BTreeSet::from(["app.service".to_owned()]);
        assert!(is_missed("failed", None, upheld()) && is_missed("inactive", None, upheld()));
        assert!(!is_missed("active", None, upheld()));
        assert!(!is_missed("failed", Some("failed"), upheld()));
        assert!(!is_missed("inactive", Some("done"), upheld()));
        assert!(!is_missed("failed", None, BTreeSet::new()));
        progress.graph.upheld = upheld();
        progress.graph.pulled = BTreeSet::from(["other.service".to_owned()]);
        let other =
            |result: &str| HashMap::from([("other.service".to_owned(), (Instant::now(), result.to_owned()))]);
        progress.jobs = other("done");
        assert!(progress.has_missed_one());
        progress.jobs = other("failed");
        assert!(!progress.has_missed_one(), "it would be started again");
    }

    #[test]
    fn at_rest_is_stopped_with_nothing_queued() {
        assert!(is_at_rest(&unit("inactive", 0)) && is_at_rest(&unit("failed", 0)));
        for (state, job) in [
            ("active", 0),
            ("deactivating", 0),
            ("activating", 0),
            ("inactive", 5),
            ("failed", 5),
        ] {
            assert!(!is_at_rest(&unit(state, job)), "{state} {job}");
        }
    }

    #[test]
    fn a_oneshot_that_has_run_is_up_and_an_unmet_dependency_is_not() {
        assert_eq!(started(&unit("active", 0), None), Started::Up);
        assert_eq!(started(&unit("inactive", 0), Some("done")), Started::Up);
        assert_eq!(started(&unit("inactive", 0), None), Started::Unknown);
        assert!(
            matches!(started(&unit("inactive", 0), Some("dependency")), Started::Failed(why) if why.contains("depends on"))
        );
        assert!(matches!(
            started(&unit("failed", 0), Some("failed")),
            Started::Failed(_)
        ));
        assert_eq!(
            started(&unit("inactive", 5), None),
            Started::Pending("inactive (sub, start job queued)".to_owned())
        );
        assert_eq!(
            started(&unit("activating", 0), None),
            Started::Pending("activating (sub)".to_owned())
        );
    }

    #[test]
    fn the_kind_of_a_unit_names_its_interface() {
        assert_eq!(interface("a.b.service"), "org.freedesktop.systemd1.Service");
        assert_eq!(interface("x.timer"), "org.freedesktop.systemd1.Timer");
    }
}
