use super::*;

/// A core with processes `a`, `b`, … of these policies, and a world that spawns whatever it is asked to.
struct World {
    core: Core,
    now: Instant,
    next_group: i32,
    effects: Vec<Effect>,
}

const POLICY: Policy = Policy {
    stop_signal: SIGTERM,
    stop_timeout: Duration::from_secs(10),
    restart: Restart::OnFailure,
};

impl World {
    fn new(policies: &[Policy]) -> Self {
        let names = ["a", "b", "c"].map(str::to_owned);
        let now = Instant::now();
        Self {
            core: Core::new(now, names.into_iter().zip(policies.iter().copied())),
            now,
            next_group: 100,
            effects: Vec::new(),
        }
    }

    /// Lets an event happen. Spawns succeed and no stray is ever found; all other effects are returned.
    fn on(&mut self, event: Event) -> Vec<Effect> {
        let mut todo = self.core.on(self.now, event);
        let mut seen = Vec::new();
        while !todo.is_empty() {
            for effect in std::mem::take(&mut todo) {
                seen.push(effect.clone());
                let answer = match effect {
                    Effect::Spawn { index } => {
                        let group = self.next_group;
                        self.next_group += 1;
                        Event::Spawned { index, group }
                    }
                    Effect::LookForStrays => Event::Strays(Vec::new()),
                    _ => continue,
                };
                todo.extend(self.core.on(self.now, answer));
            }
        }
        self.effects.clone_from(&seen);
        seen
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.on(Event::Tick)
    }

    fn ends(&mut self, index: usize, ending: Ending) -> Vec<Effect> {
        self.on(Event::LeaderEnded {
            index,
            ending,
            alone: true,
        })
    }

    fn states(&self) -> Vec<(String, Option<String>)> {
        let units = self.core.snapshot().units;
        units.into_iter().map(|u| (u.state, u.result)).collect()
    }

    fn state(&self) -> (String, Option<String>) {
        self.states().remove(0)
    }
}

fn is(state: &str, result: Option<&str>) -> (String, Option<String>) {
    (state.to_owned(), result.map(str::to_owned))
}

fn stop(group: i32) -> [Effect; 2] {
    [SIGTERM, SIGCONT].map(|signal| Effect::Signal { group, signal })
}

#[test]
fn undrain_starts_all_and_drain_stops_all() {
    let mut world = World::new(&[POLICY, POLICY]);
    assert_eq!(world.states(), [is("inactive", None), is("inactive", None)]);
    assert_eq!(
        world.on(Event::Undrain),
        [Effect::Spawn { index: 0 }, Effect::Spawn { index: 1 }]
    );
    assert_eq!(world.states(), [is("active", None), is("active", None)]);
    assert!(world.core.snapshot().pending.is_empty());

    assert_eq!(world.on(Event::Drain), [stop(100), stop(101)].concat());
    assert_eq!(
        world.states(),
        [is("deactivating", None), is("deactivating", None)]
    );
    world.now += Duration::from_millis(300);
    world.ends(0, Ending::Exited(0));
    assert!(!world.core.snapshot().at_rest);
    let effects = world.ends(
        1,
        Ending::Killed {
            signal: SIGTERM,
            dumped: false,
        },
    );
    assert_eq!(effects, [Effect::Forget { group: 101 }, Effect::LookForStrays]);
    let snapshot = world.core.snapshot();
    assert!(snapshot.at_rest && !snapshot.up);
    assert_eq!(world.states(), [is("inactive", None), is("inactive", None)]);
    assert_eq!(snapshot.units[0].elapsed_ms, Some(300));
    assert_eq!(world.core.wake(world.now), None, "a drained guardian sleeps");
}

#[test]
fn a_leader_that_ends_does_not_end_its_group() {
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    world.on(Event::Drain);
    let ended = Event::LeaderEnded {
        index: 0,
        ending: Ending::Exited(0),
        alone: false,
    };
    assert_eq!(world.on(ended), []);
    assert_eq!(world.state(), is("deactivating", None));
    assert_eq!(world.core.groups(), [(0, 100, true)]);
    assert!(
        world.core.wake(world.now).is_some(),
        "the group is looked at again"
    );
    let kill = Effect::Signal {
        group: 100,
        signal: SIGKILL,
    };
    assert_eq!(world.pass(POLICY.stop_timeout), [kill]);
    assert_eq!(world.pass(POLICY.stop_timeout), [], "killed once");
    assert!(!world.core.snapshot().at_rest);
    world.on(Event::GroupEmpty { index: 0 });
    assert_eq!(world.state(), is("failed", Some("timeout")));
    assert!(world.core.snapshot().at_rest);
}

#[test]
fn what_went_wrong_while_stopping_is_said_in_the_words_of_systemd() {
    let killed = |signal, dumped| Ending::Killed { signal, dumped };
    for (ending, state, result) in [
        (Ending::Exited(0), "inactive", None),
        (killed(SIGTERM, false), "inactive", None),
        (Ending::Exited(1), "failed", Some("exit-code")),
        (killed(nix::libc::SIGHUP, false), "failed", Some("signal")),
        (killed(nix::libc::SIGSEGV, true), "failed", Some("core-dump")),
    ] {
        let mut world = World::new(&[POLICY]);
        world.on(Event::Undrain);
        world.on(Event::Drain);
        world.ends(0, ending);
        assert_eq!(world.state(), is(state, result), "{ending:?}");
        assert!(world.core.snapshot().at_rest);
    }
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    world.on(Event::Drain);
    world.pass(POLICY.stop_timeout);
    world.ends(
        0,
        Ending::Killed {
            signal: SIGKILL,
            dumped: false,
        },
    );
    assert_eq!(world.state(), is("failed", Some("timeout")));
}

#[test]
fn a_crash_is_followed_by_restarts_with_growing_pauses() {
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        world.ends(0, Ending::Exited(1));
        assert_eq!(world.state(), is("activating", Some("exit-code")));
        assert_eq!(
            world.core.wake(world.now),
            Some(world.now + Duration::from_secs(pause))
        );
        assert_eq!(
            world.pass(Duration::from_secs(pause) - Duration::from_millis(1)),
            []
        );
        assert_eq!(world.pass(Duration::from_millis(1)), [Effect::Spawn { index: 0 }]);
        assert_eq!(world.state(), is("active", None));
    }
    world.pass(GOOD_RUN);
    world.ends(0, Ending::Exited(1));
    assert_eq!(
        world.core.wake(world.now),
        Some(world.now + FIRST_PAUSE),
        "a good run is rewarded"
    );
}

#[test]
fn each_policy_of_restarts_does_what_it_says() {
    for (restart, ending, state) in [
        (Restart::OnFailure, Ending::Exited(0), "inactive"),
        (Restart::OnFailure, Ending::Exited(3), "activating"),
        (Restart::Always, Ending::Exited(0), "activating"),
        (Restart::Always, Ending::Exited(3), "activating"),
        (Restart::Never, Ending::Exited(0), "inactive"),
        (Restart::Never, Ending::Exited(3), "failed"),
    ] {
        let mut world = World::new(&[Policy { restart, ..POLICY }]);
        world.on(Event::Undrain);
        world.ends(0, ending);
        assert_eq!(world.state().0, state, "{restart:?} {ending:?}");
    }
}

#[test]
fn what_a_crash_leaves_behind_ends_before_the_successor_starts() {
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    let crash = Event::LeaderEnded {
        index: 0,
        ending: Ending::Exited(1),
        alone: false,
    };
    assert_eq!(world.on(crash), stop(100));
    assert_eq!(world.state(), is("deactivating", Some("exit-code")));
    world.on(Event::GroupEmpty { index: 0 });
    assert_eq!(world.state(), is("activating", Some("exit-code")));
}

#[test]
fn a_drain_ends_the_wait_for_a_restart() {
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    world.ends(0, Ending::Exited(1));
    world.on(Event::Drain);
    assert_eq!(world.state(), is("failed", Some("exit-code")));
    assert!(world.core.snapshot().at_rest);
    assert_eq!(world.pass(LONGEST_PAUSE), [], "nothing starts in a drain");
}

#[test]
fn an_undrain_in_a_drain_starts_again_what_has_stopped() {
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    let before = world.core.snapshot().epoch;
    world.on(Event::Drain);
    world.on(Event::Undrain);
    assert_eq!(
        world.core.snapshot().pending,
        [("a".to_owned(), "deactivating".to_owned())]
    );
    assert_eq!(
        world.core.snapshot().epoch,
        before + 2,
        "whoever waits for the drain can tell"
    );
    let effects = world.ends(0, Ending::Exited(1));
    assert_eq!(
        effects,
        [Effect::Forget { group: 100 }, Effect::Spawn { index: 0 }]
    );
    assert_eq!(world.state(), is("active", None));
    assert_eq!(world.core.groups(), [(0, 101, false)]);
}

#[test]
fn a_drain_in_an_undrain_in_a_drain_ends_at_rest() {
    let mut world = World::new(&[POLICY]);
    for event in [Event::Undrain, Event::Drain, Event::Undrain, Event::Drain] {
        world.on(event);
    }
    world.ends(0, Ending::Exited(0));
    assert!(world.core.snapshot().at_rest);
    assert_eq!(world.core.groups(), []);
}

#[test]
fn a_second_drain_joins_the_first() {
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    world.on(Event::Drain);
    let epoch = world.core.snapshot().epoch;
    world.pass(Duration::from_secs(6));
    assert_eq!(world.on(Event::Drain), [], "no second signal");
    assert_eq!(world.core.snapshot().epoch, epoch);
    world.pass(Duration::from_secs(4));
    assert!(
        world
            .effects
            .iter()
            .any(|e| matches!(e, Effect::Signal { signal: SIGKILL, .. })),
        "and no second stop timeout"
    );
}

#[test]
fn what_cannot_be_started_is_named_and_tried_again() {
    let mut world = World::new(&[POLICY]);
    world.core.on(world.now, Event::Undrain);
    let failed = |why: &str| Event::SpawnFailed {
        index: 0,
        why: why.to_owned(),
    };
    world.core.on(world.now, failed("no such file"));
    assert_eq!(world.state(), is("activating", Some("no such file")));
    assert_eq!(
        world.core.snapshot().failed,
        [("a".to_owned(), "no such file".to_owned())]
    );
    world.pass(FIRST_PAUSE);
    assert_eq!(world.state(), is("active", None));
    assert!(world.core.snapshot().failed.is_empty());
}

#[test]
fn a_drain_is_over_only_when_a_look_found_no_strays() {
    let mut world = World::new(&[POLICY]);
    world.on(Event::Undrain);
    world.on(Event::Drain);
    let stray = Stray {
        pid: 7,
        name: "daemon".to_owned(),
    };
    let now = world.now;
    let effects = world.core.on(
        now,
        Event::LeaderEnded {
            index: 0,
            ending: Ending::Exited(0),
            alone: true,
        },
    );
    assert_eq!(effects.last(), Some(&Effect::LookForStrays));
    let effects = world.core.on(now, Event::Strays(vec![stray.clone()]));
    let signal = |signal| Effect::SignalStray { pid: 7, signal };
    assert_eq!(effects, [signal(SIGTERM), signal(SIGCONT)]);
    assert!(!world.core.snapshot().at_rest);
    assert_eq!(world.core.snapshot().units[1].name, "daemon (pid 7)");

    assert_eq!(world.core.wake(now), Some(now + LOOK_AGAIN));
    let later = now + LOOK_AGAIN;
    assert_eq!(world.core.on(later, Event::Tick), [Effect::LookForStrays]);
    assert_eq!(
        world.core.on(later, Event::Strays(vec![stray.clone()])),
        [],
        "told once"
    );
    let late = now + POLICY.stop_timeout;
    assert_eq!(
        world.core.on(late, Event::Tick),
        [signal(SIGKILL), Effect::LookForStrays]
    );
    assert_eq!(world.core.on(late, Event::Strays(Vec::new())), []);
    assert!(world.core.snapshot().at_rest);
}

#[test]
fn each_drain_looks_for_strays_anew() {
    let mut world = World::new(&[]);
    assert!(world.core.snapshot().at_rest);
    assert_eq!(world.on(Event::Drain), [Effect::LookForStrays]);
    assert!(world.core.snapshot().at_rest);
}

/// Whatever happens in whatever order: nothing is started in a drain, no group is forgotten twice or signalled
/// after it was forgotten, and when the world plays along, the drain at the end comes to rest.
#[test]
fn no_order_of_events_breaks_the_invariants() {
    use proptest::prelude::*;
    let ending = prop_oneof![
        Just(Ending::Exited(0)),
        Just(Ending::Exited(1)),
        Just(Ending::Killed {
            signal: SIGTERM,
            dumped: false
        }),
    ];
    let policy = prop_oneof![
        Just(Restart::OnFailure),
        Just(Restart::Always),
        Just(Restart::Never)
    ]
    .prop_map(|restart| Policy { restart, ..POLICY });
    let step = prop_oneof![
        Just(Event::Drain),
        Just(Event::Undrain),
        (0usize..3, ending, any::<bool>()).prop_map(|(index, ending, alone)| Event::LeaderEnded {
            index,
            ending,
            alone
        }),
        (0usize..3).prop_map(|index| Event::GroupEmpty { index }),
        Just(Event::Tick),
    ];
    let steps = proptest::collection::vec((step, 0u64..12_000), 0..60);
    proptest!(|(policies in proptest::collection::vec(policy, 3), steps in steps)| {
        let mut world = World::new(&policies);
        let mut gone = std::collections::BTreeSet::new();
        let mut check = |world: &mut World, event: Event| {
            for effect in world.on(event) {
                match effect {
                    Effect::Spawn { .. } => prop_assert!(world.core.up),
                    Effect::Signal { group, .. } => prop_assert!(!gone.contains(&group)),
                    Effect::Forget { group } => prop_assert!(gone.insert(group)),
                    _ => {}
                }
            }
            Ok(())
        };
        for (event, wait) in steps {
            // The shell reports the end of a leader once, and an empty group only after that.
            let groups = world.core.groups();
            let fits = match event {
                Event::LeaderEnded { index, .. } => groups.iter().any(|g| g.0 == index && !g.2),
                Event::GroupEmpty { index } => groups.iter().any(|g| g.0 == index && g.2),
                _ => true,
            };
            if fits {
                check(&mut world, event)?;
            }
            world.now += Duration::from_millis(wait);
        }
        check(&mut world, Event::Drain)?;
        for (index, _, leader_ended) in world.core.groups() {
            if !leader_ended {
                check(&mut world, Event::LeaderEnded { index, ending: Ending::Exited(0), alone: false })?;
            }
            check(&mut world, Event::GroupEmpty { index })?;
        }
        prop_assert!(world.core.snapshot().at_rest);
    });
}
