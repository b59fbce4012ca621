//! In which order hosts are told: tiers, waves within them, and whether a wave is well. Pure.

use std::str::FromStr;

use super::fault::{Verdict, is_too_old_for_it};
use super::report::HostReport;
use crate::protocol::Action;

/// A tier: those of a lower number are undrained first, and drained last. Hosts without one come after all others.
pub type Tier = u8;
/// Highest tier.
pub const TIER_MAX: Tier = 99;
/// Most units that one line names.
const MAX_NAMED: usize = 8;

/// Hosts that are told together, by their numbers in the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wave {
    /// Of all of them.
    pub tier: Option<Tier>,
    /// In the order of the plan.
    pub hosts: Vec<usize>,
}

/// The waves of hosts with these `tiers`, each of at most `size`, in the order in which `action` goes through them: an undrain
/// begins with the lowest tier; a drain goes the same way back.
pub fn waves(tiers: &[Option<Tier>], action: Action, size: Option<usize>) -> Vec<Wave> {
    let mut order: Vec<(u16, usize)> = tiers
        .iter()
        .enumerate()
        .map(|(at, tier)| (tier.map_or(u16::MAX, u16::from), at))
        .collect();
    order.sort_unstable();
    let mut waves: Vec<Wave> = order
        .chunk_by(|(one, _), (other, _)| one == other)
        .flat_map(|tier| tier.chunks(size.unwrap_or(usize::MAX).max(1)))
        .map(|some| Wave {
            tier: some.first().and_then(|(tier, _)| Tier::try_from(*tier).ok()),
            hosts: some.iter().map(|(_, at)| *at).collect(),
        })
        .collect();
    if action == Action::Drain {
        waves.reverse();
    }
    waves
}

/// `N=PATTERN`: hosts that have a dependent of such a name are of tier N.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierRule {
    /// The tier.
    pub tier: Tier,
    /// A unit's name, in which `*` stands for any text and `?` for any letter.
    pub pattern: String,
}

impl FromStr for TierRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write for example 1=queue.service or 2=worker-*.service";
        let (number, pattern) = text
            .split_once('=')
            .ok_or_else(|| format!("expected N=UNIT; {example}"))?;
        let pattern = pattern.trim();
        if pattern.is_empty() {
            return Err(format!("no unit is named; {example}"));
        }
        Ok(Self {
            tier: parse_tier(number.trim())?,
            pattern: pattern.to_owned(),
        })
    }
}

/// Reads the number of a tier.
///
/// # Errors
/// What would be right.
pub fn parse_tier(text: &str) -> Result<Tier, String> {
    let number = text.parse().ok().filter(|tier| *tier <= TIER_MAX);
    number.ok_or_else(|| format!("{text:?} is no tier; expected a whole number from 0 to {TIER_MAX}"))
}

/// The lowest tier of the `rules` that one of `units` meets.
pub fn tier_of<'a>(rules: &[TierRule], units: impl Iterator<Item = &'a str> + Clone) -> Option<Tier> {
    let met = rules.iter().filter(|rule| {
        units
            .clone()
            .any(|unit| matches(rule.pattern.as_bytes(), unit.as_bytes()))
    });
    met.map(|rule| rule.tier).min()
}

/// Whether `text` is what `pattern` describes. Linear in both, but for the last `*`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how far its text goes.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&letter) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == letter => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|letter| *letter == b'*'))
}

/// Whether a host failed: one that somebody holds down has refused, and that is as it should be.
pub fn has_failed(report: &HostReport) -> bool {
    report.result != Verdict::Ok && report.held != Some(true)
}

/// What is wrong with a host that was undrained a while ago, by its answer to `status`, and by what it was `then`.
pub fn ails(report: &HostReport, then: &HostReport) -> Option<String> {
    if is_too_old_for_it(&report.message) {
        // It cannot be looked at. It has answered `ok`.
        return None;
    }
    if report.result != Verdict::Ok {
        return Some(report.message.clone());
    }
    if report.held == Some(true) {
        return None;
    }
    let ran = |name: &str| {
        then.units
            .iter()
            .any(|unit| unit.name == name && unit.state == "active")
    };
    // One that ran, and starts again, has died in between; one that did not may be a job that is at work.
    let died = report.units.iter().filter(|unit| match unit.state.as_str() {
        "failed" => true,
        "activating" | "deactivating" => ran(&unit.name),
        _ => false,
    });
    let failed: Vec<&str> = died.map(|unit| unit.name.as_str()).collect();
    if !failed.is_empty() {
        return Some(format!("not running any more: {}", list(&failed)));
    }
    if let Some(state) = report.target_state.as_deref().filter(|state| *state != "active") {
        let target = report.target.as_deref().unwrap_or("its target");
        return Some(format!("{target} is {state}"));
    }
    let lost = report
        .databases
        .iter()
        .flatten()
        .find(|database| !database.ready)?;
    let why = lost.why.as_deref().unwrap_or("not ready");
    Some(format!("it sees {}: {why}", lost.name))
}

/// What `action` would do to a host, by its answer to `status`: whether it would come about, and the words for it.
pub fn would(report: &HostReport, action: Action, generation: Option<u64>) -> (bool, String) {
    if is_too_old_for_it(&report.message) {
        return (
            true,
            "would be told; its guardian is too old to say more".to_owned(),
        );
    }
    if report.result != Verdict::Ok {
        return (false, format!("would fail: {}", report.message));
    }
    if let (Some(new), Some(seen)) = (generation, report.last_generation)
        && new < seen
    {
        return (
            false,
            format!("would refuse: generation {new} is older than {seen}"),
        );
    }
    let standing = report.standing.as_deref().unwrap_or_default();
    match action {
        Action::Undrain if report.held == Some(true) => (true, format!("would refuse: {standing}")),
        Action::Undrain => match named(report, |state| matches!(state, "inactive" | "failed")).as_slice() {
            [] => (true, "nothing to start: all runs".to_owned()),
            units => (true, format!("would start {}", list(units))),
        },
        _ => match named(report, |state| !matches!(state, "inactive" | "failed")).as_slice() {
            [] => (true, "nothing to stop: nothing runs".to_owned()),
            units => (true, format!("would stop {}", list(units))),
        },
    }
}

fn named(report: &HostReport, wanted: impl Fn(&str) -> bool) -> Vec<&str> {
    let units = report.units.iter().filter(|unit| wanted(&unit.state));
    units.map(|unit| unit.name.as_str()).collect()
}

fn list(names: &[&str]) -> String {
    let more = match names.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("{}{more}", names[..names.len().min(MAX_NAMED)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DatabaseReport, Response, Status, UnitReport};
    use proptest::prelude::*;

    fn report(target: &str, units: &[(&str, &str)]) -> HostReport {
        let mut response = Response::new(Action::Status, Status::Ok, "m");
        response.target = Some("io-databases.target".into());
        response.target_state = Some(target.into());
        response.units = Some(
            units
                .iter()
                .map(|(name, state)| UnitReport::new(*name, *state))
                .collect(),
        );
        HostReport::answered("app1".into(), None, response, 1, 0)
    }

    #[test]
    fn an_undrain_goes_up_the_tiers_in_waves_and_a_drain_the_same_way_back() {
        let tiers = [None, Some(2), Some(0), Some(2), Some(2), None];
        let hosts = |action, size| {
            let waves = waves(&tiers, action, size);
            waves
                .into_iter()
                .map(|wave| (wave.tier, wave.hosts))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            hosts(Action::Undrain, Some(2)),
            [
                (Some(0), vec![2]),
                (Some(2), vec![1, 3]),
                (Some(2), vec![4]),
                (None, vec![0, 5])
            ]
        );
        let mut back = hosts(Action::Undrain, Some(2));
        back.reverse();
        assert_eq!(hosts(Action::Drain, Some(2)), back);
        assert_eq!(hosts(Action::Undrain, None).len(), 3);
        assert_eq!(waves(&[], Action::Drain, None), []);
    }

    proptest! {
        #[test]
        fn every_host_is_in_exactly_one_wave(tiers in proptest::collection::vec(proptest::option::of(0..5u8), 0..60), size in 1..9usize) {
            let waves = waves(&tiers, Action::Undrain, Some(size));
            let mut all: Vec<usize> = waves.iter().flat_map(|wave| wave.hosts.clone()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..tiers.len()).collect::<Vec<_>>());
            let whole = waves.iter().all(|wave| {
                (1..=size).contains(&wave.hosts.len()) && wave.hosts.iter().all(|at| tiers[*at] == wave.tier)
            });
            prop_assert!(whole);
        }
    }

    #[test]
    fn units_choose_the_tier_by_patterns() {
        let rules: Vec<TierRule> = ["3=*.service", "1=queue.service", "2=worker-?.service"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let tier = |units: &[&'static str]| tier_of(&rules, units.iter().copied());
        assert_eq!(tier(&["web.service", "queue.service"]), Some(1));
        assert_eq!(tier(&["worker-1.service"]), Some(2));
        assert_eq!(tier(&["worker-10.service"]), Some(3));
        assert_eq!((tier(&["a.timer"]), tier(&[])), (None, None));
        assert!(matches(b"a*b*c", b"aXbbYc") && !matches(b"a*b*c", b"aXbbYd") && matches(b"*", b""));
        for (wrong, says) in [
            ("1", "N=UNIT"),
            ("x=a", "no tier"),
            ("100=a", "0 to 99"),
            ("1= ", "no unit"),
        ] {
            assert!(wrong.parse::<TierRule>().unwrap_err().contains(says), "{wrong}");
        }
    }

    #[test]
    fn a_wave_ails_when_what_was_started_has_failed_since() {
        let then = report("active", &[("a", "active"), ("once", "inactive")]);
        let ails = |report: &HostReport| super::ails(report, &then);
        assert_eq!(ails(&then), None);
        assert_eq!(
            ails(&report("active", &[("a", "failed")])).unwrap(),
            "not running any more: a"
        );
        assert!(
            ails(&report("active", &[("a", "activating")])).is_some(),
            "it has died, and comes again"
        );
        assert_eq!(
            ails(&report("active", &[("a", "active"), ("once", "activating")])),
            None,
            "a job that is at work"
        );
        assert!(
            ails(&report("inactive", &[]))
                .unwrap()
                .contains("io-databases.target is inactive")
        );
        let mut blind = report("active", &[]);
        blind.databases = Some(vec![DatabaseReport {
            name: "redis db:6379".into(),
            ready: false,
            why: Some("refused".into()),
            age_ms: 0,
        }]);
        assert_eq!(ails(&blind).unwrap(), "it sees redis db:6379: refused");
        let mut held = report("inactive", &[]);
        held.held = Some(true);
        assert_eq!(ails(&held), None);
    }

    #[test]
    fn a_dry_run_says_what_would_happen() {
        let both = [("a", "active"), ("b", "inactive")];
        let says = |report: &HostReport, action, generation| would(report, action, generation);
        let is = |ok, words: &str| (ok, words.to_owned());
        assert_eq!(
            says(&report("active", &both), Action::Drain, None),
            is(true, "would stop a")
        );
        assert_eq!(
            says(&report("active", &both), Action::Undrain, None),
            is(true, "would start b")
        );
        assert_eq!(
            says(&report("inactive", &[]), Action::Drain, None),
            is(true, "nothing to stop: nothing runs")
        );
        let mut newer = report("active", &both);
        newer.last_generation = Some(7);
        assert!(!says(&newer, Action::Drain, Some(6)).0 && says(&newer, Action::Drain, Some(7)).0);
        let mut held = report("inactive", &both);
        (held.held, held.standing) = (Some(true), Some("held until it is released: a move".into()));
        assert!(
            says(&held, Action::Undrain, None)
                .1
                .contains("would refuse: held until")
        );
        assert!(!has_failed(&HostReport {
            result: Verdict::Failed,
            ..held
        }));
    }
}
