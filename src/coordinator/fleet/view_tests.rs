use super::*;
use crate::protocol::{DatabaseReport, LastCommand};

const HOST: usize = 0;

fn fleet() -> Fleet {
    Fleet::new(["app1".to_owned(), "app2".to_owned()], 0)
}

fn opened() -> Event {
    Event::Opened {
        address: None,
        wire: Some(SpokenWire::V2),
    }
}

fn lost() -> Event {
    Event::Lost(Fault::Refused {
        addresses: "192.0.2.1:9876".into(),
    })
}

/// What a guardian says whose last command came `age_ms` ago.
fn told(last: Option<(Action, Option<Status>, u64)>, target: &str, units: &[(&str, &str)]) -> Response {
    let mut response = Response::new(Action::Status, Status::Ok, "m");
    response.target = Some("io-databases.target".into());
    response.target_state = Some(target.into());
    response.last_command = last.map(|(action, status, age_ms)| LastCommand {
        action,
        by: Some("192.0.2.9 v2:00".into()),
        status,
        message: "words".into(),
        elapsed_ms: 1,
        age_ms,
    });
    response.units = Some(
        units
            .iter()
            .map(|(name, state)| UnitReport::new(*name, *state))
            .collect(),
    );
    response
}

fn happened(learned: Learned) -> Vec<String> {
    learned.entries.into_iter().map(|entry| entry.what).collect()
}

#[test]
fn a_drain_is_told_when_it_begins_and_when_it_ends_and_never_twice() {
    let mut fleet = fleet();
    let mut say = |now, last, target, units: &[(&str, &str)]| {
        let learned = fleet.on(now, HOST, Event::Told(told(last, target, units).into()));
        (happened(learned), fleet.hosts()[HOST].state)
    };
    let old = Some((Action::Undrain, Some(Status::Ok), 50_000));
    assert_eq!(
        say(60_000, old, "active", &[("a", "active")]),
        (vec![], State::Undrained),
        "what was over is no news"
    );
    let drain = |status, age| Some((Action::Drain, status, age));
    let moving = [("a", "deactivating")];
    assert_eq!(
        say(70_000, drain(None, 0), "inactive", &moving),
        (vec!["drain begun".to_owned()], State::Draining)
    );
    assert_eq!(
        say(71_000, drain(None, 1_100), "inactive", &moving).0,
        Vec::<String>::new()
    );
    let ok = Some(Status::Ok);
    assert_eq!(
        say(72_000, drain(ok, 2_000), "inactive", &[("a", "inactive")]),
        (vec!["drain done".to_owned()], State::Drained)
    );
    assert_eq!(
        say(99_000, drain(ok, 29_300), "inactive", &[]).0,
        Vec::<String>::new()
    );
    assert_eq!(
        say(130_000, drain(Some(Status::Error), 100), "inactive", &[]),
        (vec!["drain failed".to_owned()], State::Failed),
        "another one, so fast that nobody saw it begin"
    );
}

#[test]
fn the_state_is_what_runs_and_not_what_was_said() {
    let mut fleet = fleet();
    let mut state = |target, units: &[(&str, &str)], held: Option<bool>| {
        let mut told = told(None, target, units);
        told.held = held;
        fleet.on(0, HOST, Event::Told(told.into()));
        fleet.hosts()[HOST].state
    };
    assert_eq!(
        state("active", &[("a", "active"), ("once", "inactive")], None),
        State::Undrained
    );
    assert_eq!(state("active", &[("a", "failed")], None), State::Degraded);
    assert_eq!(
        state("inactive", &[("a", "failed")], None),
        State::Drained,
        "failed is stopped"
    );
    assert_eq!(state("inactive", &[("a", "active")], None), State::Degraded);
    assert_eq!(state("inactive", &[("a", "inactive")], Some(true)), State::Held);
    assert_eq!(
        state("inactive", &[("a", "active")], Some(true)),
        State::Degraded,
        "it should not run"
    );
}

#[test]
fn a_host_that_is_lost_is_counted_as_that_and_keeps_what_was_known_of_it() {
    let mut fleet = fleet();
    let lost_first = fleet.on(1, HOST, lost());
    assert_eq!(happened(lost_first), ["lost"]);
    assert_eq!(fleet.links_lost, 0, "it was never there");
    let again = fleet.on(2, HOST, lost());
    assert!(
        !again.changed && again.entries.is_empty(),
        "nothing is new about it"
    );
    assert_eq!(happened(fleet.on(3, HOST, opened())), ["reached again"]);
    fleet.on(
        4,
        HOST,
        Event::Told(told(None, "active", &[("a", "active")]).into()),
    );
    assert_eq!(fleet.counts().1, 1, "the other one was never reached");
    assert_eq!(happened(fleet.on(5, HOST, lost())), ["lost"]);
    assert_eq!((fleet.links_lost, fleet.counts().1), (1, 2));
    let host = &fleet.hosts()[HOST];
    assert_eq!(
        (host.link, host.state, host.units.len()),
        (LinkState::Lost, State::Undrained, 1)
    );
    assert!(
        host.remedy
            .as_deref()
            .is_some_and(|remedy| remedy.contains("systemctl status"))
    );
}

#[test]
fn databases_units_and_holds_are_news_when_they_change() {
    let mut fleet = fleet();
    let database = |ready| DatabaseReport {
        name: "postgres db:5432".into(),
        ready,
        why: (!ready).then(|| "connection refused".into()),
        age_ms: 0,
    };
    let mut say = |ready, unit: &str, held| {
        let mut told = told(None, "active", &[("a", unit)]);
        told.databases = Some(vec![database(ready)]);
        told.held = held;
        happened(fleet.on(0, HOST, Event::Told(told.into())))
    };
    assert_eq!(
        say(true, "failed", None),
        Vec::<String>::new(),
        "it was so when we came"
    );
    assert_eq!(say(true, "active", None), Vec::<String>::new());
    assert_eq!(say(false, "failed", None), ["database lost", "unit failed"]);
    assert_eq!(say(true, "failed", Some(true)), ["database answers"]);
    assert_eq!(say(true, "failed", None), ["hold is over"]);
    assert_eq!(say(true, "active", None), Vec::<String>::new());
    assert_eq!(say(true, "activating", None), ["unit starts again"]);
}

#[test]
fn units_that_cannot_be_read_are_not_known_any_more() {
    let mut fleet = fleet();
    fleet.on(
        0,
        HOST,
        Event::Told(told(None, "active", &[("a", "active")]).into()),
    );
    let mut deaf = told(None, "active", &[]);
    deaf.status = Status::Error;
    deaf.target_state = None;
    deaf.message = "cannot reach systemd".into();
    fleet.on(1, HOST, Event::Told(deaf.into()));
    let host = &fleet.hosts()[HOST];
    assert_eq!((host.state, host.units.len()), (State::Unknown, 0));
    assert_eq!(host.fault.as_deref(), Some("cannot reach systemd"));
}

#[test]
fn the_history_keeps_the_newest() {
    let mut fleet = fleet();
    for at in 0..HISTORY_MAX as u64 + 10 {
        let by = format!("{at}");
        fleet.on(
            at,
            HOST,
            Event::Asked {
                action: Action::Drain,
                by,
            },
        );
    }
    assert_eq!(fleet.history().count(), HISTORY_MAX);
    assert_eq!(fleet.history().next().unwrap().at_ms, HISTORY_MAX as u64 + 9);
}

#[test]
fn a_drain_that_is_told_once_more_is_no_news_unless_it_has_something_to_do() {
    let mut fleet = fleet();
    let mut say = |now, status, age, units: &[(&str, &str)]| {
        let mut told = told(Some((Action::Drain, status, age)), "inactive", units);
        told.generation = Some(7);
        let learned = fleet.on(now, HOST, Event::Told(told.into()));
        (happened(learned), fleet.hosts()[HOST].state)
    };
    let ok = Some(Status::Ok);
    let (stopped, runs) = ([("a", "inactive")], [("a", "deactivating")]);
    say(0, None, 0, &runs);
    assert_eq!(
        say(2_000, ok, 2_000, &stopped),
        (vec!["drain done".to_owned()], State::Drained)
    );
    assert_eq!(say(9_000, None, 0, &stopped), (vec![], State::Drained));
    assert_eq!(say(9_001, ok, 1, &stopped), (vec![], State::Drained));
    assert_eq!(
        say(20_000, None, 0, &runs),
        (vec![], State::Draining),
        "it had been started since"
    );
    let failed = say(21_000, Some(Status::Error), 1_000, &runs);
    assert_eq!(failed, (vec!["drain failed".to_owned()], State::Failed));
}

#[test]
fn a_hold_is_told_with_its_reason_and_with_who_gave_it() {
    let mut fleet = fleet();
    fleet.on(0, HOST, Event::Told(told(None, "active", &[]).into()));
    let mut held = told(Some((Action::Hold, Some(Status::Ok), 0)), "inactive", &[]);
    (held.held, held.standing) = (Some(true), Some("held until it is released: a move".into()));
    let entries = fleet.on(9_000, HOST, Event::Told(held.into())).entries;
    let [entry] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert_eq!(
        (entry.what.as_str(), entry.by.as_deref()),
        ("hold done", Some("192.0.2.9 v2:00"))
    );
    assert!(entry.message.contains("a move"));
    let released = told(Some((Action::Release, Some(Status::Ok), 0)), "active", &[]);
    assert_eq!(
        happened(fleet.on(30_000, HOST, Event::Told(released.into()))),
        ["release done"]
    );
}
