use super::*;
use crate::units::Settled;

const GRACE: Duration = Duration::from_secs(30);
const HEALTHY: Duration = Duration::from_secs(5);
const REPAIRS: Repairs = Repairs {
    drain_after: Some(GRACE),
    undrain_after: Some(HEALTHY),
};

/// A guardian, and a clock.
struct Guardian {
    core: Core,
    now: Instant,
    tickets: u64,
    begun: Vec<(Duration, Direction)>,
    answers: Vec<(u64, Action, Status, String)>,
    memo: Memo,
    began: Instant,
    under_way: Option<OperationId>,
}

impl Guardian {
    fn start(repairs: Repairs, memo: Memo) -> Self {
        let now = Instant::now();
        let (core, effects) = Core::start(now, repairs, memo.clone());
        let mut guardian = Self {
            core,
            now,
            tickets: 0,
            begun: Vec::new(),
            answers: Vec::new(),
            memo,
            began: now,
            under_way: None,
        };
        guardian.apply(effects);
        guardian
    }

    fn undrained(repairs: Repairs) -> Self {
        let mut guardian = Self::start(repairs, Memo::default());
        guardian.see(Health::Ready);
        guardian.command(Direction::Undrain, None);
        guardian.finish(Status::Ok);
        guardian.begun.clear();
        guardian
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Remember(memo) => self.memo = *memo,
                Effect::Abandon(id) => assert_eq!(self.under_way.take(), Some(id)),
                Effect::Begin(id, direction, why) => {
                    assert!(self.under_way.replace(id).is_none());
                    assert!(!why.is_empty());
                    self.begun.push((self.now - self.began, direction));
                }
                Effect::Look => {}
                Effect::Answer(ticket, response) => self.answers.push((
                    ticket.0,
                    response.action,
                    response.status,
                    response.message.clone(),
                )),
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let effects = self.core.on(self.now, event);
        self.apply(effects);
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn command(&mut self, direction: Direction, generation: Option<u64>) {
        let ticket = self.ticket();
        self.happen(Event::Command {
            ticket,
            direction,
            generation,
        });
    }

    fn hold(&mut self, length: Option<Duration>) {
        let ticket = self.ticket();
        let hold = Hold {
            reason: "a migration".to_owned(),
            until: length.map(|length| self.now + length),
            until_wall: None,
        };
        self.happen(Event::Hold {
            ticket,
            generation: None,
            hold,
        });
    }

    fn release(&mut self) {
        let ticket = self.ticket();
        self.happen(Event::Release {
            ticket,
            generation: None,
        });
    }

    fn finish(&mut self, status: Status) {
        let settled = Settled {
            status,
            message: "done".to_owned(),
            units: Vec::new(),
        };
        let operation = self.under_way.take().expect("an operation is under way");
        self.happen(Event::Finished {
            operation,
            outcome: Outcome {
                status: settled.status,
                message: settled.message,
                units: Some(settled.units),
            },
        });
    }

    fn see(&mut self, health: Health) {
        self.happen(Event::Health(health));
    }

    /// Time goes by, and the databases are seen to be like this each second.
    fn pass(&mut self, length: Duration, health: Option<Health>) {
        let end = self.now + length;
        while self.now < end {
            let next = self.now + Duration::from_secs(1);
            let mut turns = 0;
            while let Some(at) = self.core.wake_at().filter(|at| *at <= next.min(end)) {
                turns += 1;
                assert!(turns < 20, "it wakes again and again");
                self.now = self.now.max(at);
                self.happen(Event::Time);
            }
            self.now = next.min(end);
            if let Some(health) = health {
                self.see(health);
            }
        }
    }

    fn directions(&self) -> Vec<Direction> {
        self.begun.iter().map(|(_, direction)| *direction).collect()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_second_drain_joins_and_both_get_the_one_answer() {
    let mut guardian = Guardian::start(Repairs::NONE, Memo::default());
    guardian.command(Direction::Drain, None);
    guardian.command(Direction::Drain, None);
    guardian.now += seconds(3);
    guardian.finish(Status::Ok);
    assert_eq!(guardian.begun.len(), 1);
    let answered: Vec<_> = guardian.answers.iter().map(|a| (a.0, a.2)).collect();
    assert_eq!(answered, [(1, Status::Ok), (2, Status::Ok)]);
    let last = guardian.core.last_command(guardian.now + seconds(2)).unwrap();
    assert_eq!(
        (last.elapsed_ms, last.age_ms, last.status),
        (3_000, 5_000, Some(Status::Ok))
    );
}

#[test]
fn an_undrain_supersedes_a_drain_and_those_who_waited_are_told() {
    let mut guardian = Guardian::start(Repairs::NONE, Memo::default());
    guardian.command(Direction::Drain, None);
    let old = guardian.under_way.unwrap();
    guardian.command(Direction::Undrain, None);
    assert!(
        guardian.answers[0]
            .3
            .starts_with("superseded: undrain came while this drain")
    );
    assert_eq!(guardian.directions(), [Direction::Drain, Direction::Undrain]);
    // The abandoned one reports late: that changes nothing.
    guardian.happen(Event::Finished {
        operation: old,
        outcome: Outcome {
            status: Status::Ok,
            message: String::new(),
            units: None,
        },
    });
    assert_eq!(guardian.core.current(), Some(Direction::Undrain));
}

#[test]
fn a_stale_generation_is_refused_and_a_new_one_remembered() {
    let memo = Memo {
        generation: Some(7),
        ..Memo::default()
    };
    let mut guardian = Guardian::start(Repairs::NONE, memo);
    guardian.command(Direction::Undrain, Some(6));
    assert!(guardian.answers[0].3.contains("generation 6 is older than 7"));
    guardian.command(Direction::Drain, Some(7));
    guardian.command(Direction::Undrain, Some(8));
    assert_eq!(guardian.memo.generation, Some(8));
    // A command that says nothing of its age is taken: the last one received wins.
    guardian.command(Direction::Drain, None);
    assert_eq!(guardian.core.current(), Some(Direction::Drain));
    assert_eq!(guardian.core.generation(), Some(8));
}

#[test]
fn databases_that_are_lost_for_the_grace_are_drained_and_undrained_when_they_are_back() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.pass(seconds(60), Some(Health::Ready));
    assert_eq!(guardian.directions(), []);
    let lost_at = guardian.now - guardian.began;
    guardian.pass(seconds(40), Some(Health::Silent));
    assert_eq!(guardian.begun, [(lost_at + GRACE, Direction::Drain)]);
    guardian.finish(Status::Ok);
    guardian.pass(seconds(300), Some(Health::Silent));
    assert_eq!(guardian.begun.len(), 1);
    let back_at = guardian.now - guardian.began;
    guardian.pass(seconds(20), Some(Health::Ready));
    // The first look that finds them is a second later.
    assert_eq!(
        guardian.begun[1],
        (back_at + seconds(1) + HEALTHY, Direction::Undrain)
    );
}

#[test]
fn a_blip_is_ridden_out_and_what_is_unclear_changes_nothing() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.pass(seconds(20), Some(Health::Down));
    guardian.pass(seconds(60), Some(Health::Ready));
    guardian.pass(seconds(600), Some(Health::Unclear));
    assert_eq!(guardian.directions(), []);
    // After long with answers that tell nothing, one look that is lost is the beginning of a grace, not its end.
    guardian.pass(seconds(20), Some(Health::Silent));
    assert_eq!(guardian.directions(), []);
    guardian.pass(seconds(10), Some(Health::Unclear));
    guardian.pass(seconds(25), Some(Health::Silent));
    assert_eq!(guardian.directions(), []);
    guardian.pass(seconds(60), Some(Health::Ready));
    // Late in the grace, but there: only one that is lost now is drained.
    guardian.see(Health::Ready);
    guardian.pass(seconds(28), Some(Health::Down));
    guardian.pass(seconds(20), Some(Health::Ready));
    assert_eq!(guardian.directions(), []);
}

#[test]
fn databases_that_flap_between_two_looks_must_prove_themselves_for_longer() {
    let mut guardian = Guardian::undrained(REPAIRS);
    // Seen away, and back for three seconds: six times, before the grace is over and after it.
    for _ in 0..6 {
        guardian.pass(seconds(7), Some(Health::Down));
        if guardian.under_way.is_some() {
            guardian.finish(Status::Ok);
        }
        guardian.pass(seconds(3), Some(Health::Ready));
    }
    assert_eq!(guardian.directions(), [Direction::Drain]);
    // (The first time that they go again costs nothing: it may have been a cable.)
    // Away for a moment that no look falls into: it seems to be back for long enough.
    guardian.pass(seconds(12), Some(Health::Ready));
    guardian.pass(seconds(7), Some(Health::Down));
    guardian.pass(seconds(59), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Drain]);
    guardian.pass(seconds(3), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Drain, Direction::Undrain]);
    guardian.finish(Status::Ok);
    // That is over with it: the next outage is one like others.
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.pass(seconds(10), Some(Health::Down));
    guardian.begun.clear();
    guardian.pass(seconds(7), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Undrain]);
    // Cut off in the moment in which they were back: nor does that cost anything.
    guardian.finish(Status::Ok);
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.pass(seconds(10), Some(Health::Down));
    guardian.pass(seconds(2), Some(Health::Ready));
    guardian.pass(seconds(20), Some(Health::Silent));
    guardian.begun.clear();
    guardian.pass(seconds(7), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Undrain]);
}

#[test]
fn a_new_drain_in_the_middle_of_flapping_begins_a_new_story() {
    let mut guardian = Guardian::undrained(REPAIRS);
    for _ in 0..5 {
        guardian.pass(seconds(12), Some(Health::Down));
        if guardian.under_way.is_some() {
            guardian.finish(Status::Ok);
        }
        guardian.pass(seconds(3), Some(Health::Ready));
    }
    guardian.pass(seconds(3), Some(Health::Down));
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.begun.clear();
    guardian.pass(seconds(12), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Undrain]);
}

#[test]
fn a_database_that_flaps_for_ten_minutes_causes_one_drain_and_one_undrain() {
    for (down, up) in [(1, 1), (2, 3), (4, 4), (20, 2), (29, 4)] {
        let mut guardian = Guardian::undrained(REPAIRS);
        for _ in 0..600 / (down + up) {
            guardian.pass(seconds(down), Some(Health::Down));
            if guardian.under_way.is_some() {
                guardian.finish(Status::Ok);
            }
            guardian.pass(seconds(up), Some(Health::Ready));
        }
        guardian.pass(seconds(600), Some(Health::Ready));
        assert_eq!(
            guardian.directions(),
            [Direction::Drain, Direction::Undrain],
            "{down} s down, {up} s up"
        );
    }
    // One that is up for longer each time: each outage that follows makes it wait twice as long.
    let mut guardian = Guardian::undrained(REPAIRS);
    for _ in 0..20 {
        for (length, health) in [(40, Health::Down), (12, Health::Ready)] {
            guardian.pass(seconds(length), Some(health));
            if guardian.under_way.is_some() {
                guardian.finish(Status::Ok);
            }
        }
    }
    assert!(guardian.begun.len() <= 5, "{:?}", guardian.begun);
}

#[test]
fn a_drain_right_after_an_undrain_is_not_undone_for_the_outage_before_both() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.pass(seconds(3), Some(Health::Down));
    // They are back, which no look has seen yet, and go again, which they have not yet done.
    guardian.command(Direction::Undrain, None);
    guardian.finish(Status::Ok);
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.begun.clear();
    guardian.pass(seconds(600), Some(Health::Ready));
    assert_eq!(guardian.directions(), []);
    guardian.pass(seconds(3), Some(Health::Down));
    guardian.pass(seconds(6), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Undrain], "now they were gone");
}

/// Its coordinator waits 10, 20, 40 and 60 s then (`coordinator::damping`), and must not be overtaken.
#[test]
fn databases_that_crash_again_and_again_are_waited_for_longer_than_the_coordinator_does() {
    let mut guardian = Guardian::undrained(REPAIRS);
    let mut crash = |answers: u64| {
        guardian.command(Direction::Drain, None);
        guardian.finish(Status::Ok);
        guardian.pass(seconds(3), Some(Health::Down));
        guardian.begun.clear();
        guardian.pass(seconds(answers), Some(Health::Ready));
        let undrained = guardian.directions() == [Direction::Undrain];
        if undrained {
            guardian.finish(Status::Ok);
        }
        undrained
    };
    for first in 0..3 {
        assert!(crash(6), "{first}: as after any restart");
    }
    for (waits, longest) in [(20, 10), (40, 20), (80, 40), (160, 60)] {
        assert!(!crash(waits - 1), "{waits}");
        assert!(!crash(longest + 1), "{waits}: nor when they crash once more");
        assert!(crash(waits + 1), "{waits}");
    }
    let quiet = seconds(700);
    guardian.pass(quiet, Some(Health::Ready));
    guardian.command(Direction::Undrain, None);
    guardian.finish(Status::Ok);
    guardian.pass(quiet, Some(Health::Ready));
    guardian.begun.clear();
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.pass(seconds(3), Some(Health::Down));
    guardian.pass(seconds(6), Some(Health::Ready));
    assert_eq!(
        guardian.directions(),
        [Direction::Drain, Direction::Undrain],
        "that is over"
    );
}

#[test]
fn a_drain_by_command_is_not_undone_while_the_databases_are_merely_still_up() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.pass(seconds(600), Some(Health::Ready));
    // A lost packet is no outage.
    guardian.pass(seconds(2), Some(Health::Silent));
    guardian.pass(seconds(600), Some(Health::Ready));
    guardian.pass(seconds(600), Some(Health::Unclear));
    assert_eq!(guardian.directions(), [Direction::Drain]);
    // A closed port is one, and so is silence that lasts.
    guardian.pass(seconds(1), Some(Health::Down));
    guardian.pass(seconds(10), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Drain, Direction::Undrain]);
}

#[test]
fn what_is_off_is_not_done() {
    let mut guardian = Guardian::undrained(Repairs {
        drain_after: None,
        ..REPAIRS
    });
    guardian.pass(seconds(600), Some(Health::Down));
    assert_eq!(guardian.directions(), []);
    let mut guardian = Guardian::undrained(Repairs {
        undrain_after: None,
        ..REPAIRS
    });
    guardian.pass(seconds(60), Some(Health::Down));
    guardian.finish(Status::Ok);
    guardian.pass(seconds(600), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Drain]);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.command(Direction::Drain, Some(5));
    guardian.finish(Status::Ok);
    guardian.pass(seconds(10), Some(Health::Down));
    let mut guardian = Guardian::start(REPAIRS, guardian.memo);
    guardian.happen(Event::Looked { running: false });
    guardian.pass(seconds(10), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Undrain]);
    // One that was started by somebody meanwhile is left alone.
    let mut guardian = Guardian::start(
        REPAIRS,
        Memo {
            standing: Standing::Drained {
                by: By::Command,
                outage: true,
            },
            ..Memo::default()
        },
    );
    guardian.happen(Event::Looked { running: true });
    guardian.pass(seconds(600), Some(Health::Ready));
    assert_eq!(guardian.directions(), []);
    assert_eq!(guardian.core.standing(), Standing::Unknown);
}

#[test]
fn a_boot_that_waits_for_the_databases_is_left_to_wait() {
    let mut guardian = Guardian::start(REPAIRS, Memo::default());
    guardian.pass(seconds(40), Some(Health::Silent));
    guardian.happen(Event::Looked { running: false });
    assert_eq!(guardian.directions(), []);
    // But what runs although they are lost is drained, whoever has started it.
    guardian.happen(Event::Looked { running: true });
    assert_eq!(guardian.directions(), [Direction::Drain]);
}

#[test]
fn a_hold_keeps_the_host_down_and_says_why() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.hold(Some(seconds(3_600)));
    guardian.finish(Status::Ok);
    assert_eq!(
        (guardian.answers[1].1, guardian.answers[1].2),
        (Action::Hold, Status::Ok)
    );
    guardian.command(Direction::Undrain, None);
    let (_, action, status, message) = guardian.answers[2].clone();
    assert_eq!((action, status), (Action::Undrain, Status::Error));
    assert!(message.contains("a migration"), "{message}");
    guardian.pass(seconds(60), Some(Health::Down));
    guardian.pass(seconds(60), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Drain]);
    // It survives a boot, and ends by itself.
    let mut guardian = Guardian::start(
        REPAIRS,
        Memo {
            standing: Standing::Unknown,
            hold: Some(Hold {
                until: Some(Instant::now() + seconds(600)),
                ..guardian.memo.hold.unwrap()
            }),
            ..Memo::default()
        },
    );
    guardian.finish(Status::Ok);
    guardian.pass(seconds(599), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Drain]);
    guardian.pass(seconds(2), Some(Health::Ready));
    assert_eq!(guardian.directions(), [Direction::Drain, Direction::Undrain]);
    assert_eq!(guardian.memo.hold, None);
}

#[test]
fn a_release_goes_where_the_fleet_is() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.hold(None);
    guardian.finish(Status::Ok);
    guardian.command(Direction::Drain, None);
    guardian.finish(Status::Ok);
    guardian.release();
    let (_, action, status, message) = guardian.answers.last().cloned().unwrap();
    assert_eq!((action, status), (Action::Release, Status::Ok));
    assert!(message.contains("the fleet is drained"), "{message}");
    guardian.hold(None);
    guardian.finish(Status::Ok);
    guardian.command(Direction::Undrain, None);
    guardian.release();
    guardian.finish(Status::Ok);
    assert_eq!(guardian.answers.last().unwrap().1, Action::Release);
    assert_eq!(guardian.directions().last(), Some(&Direction::Undrain));
    // Not while the databases are away; it follows when they are back.
    guardian.hold(None);
    guardian.finish(Status::Ok);
    guardian.pass(seconds(5), Some(Health::Down));
    let before = guardian.begun.len();
    guardian.release();
    assert_eq!(guardian.begun.len(), before);
    guardian.pass(seconds(10), Some(Health::Ready));
    assert_eq!(guardian.directions().last(), Some(&Direction::Undrain));
    guardian.release();
    assert!(guardian.answers.last().unwrap().3.contains("there was no hold"));
}

#[test]
fn what_failed_is_tried_again_a_few_times() {
    let mut guardian = Guardian::undrained(REPAIRS);
    guardian.command(Direction::Undrain, None);
    guardian.finish(Status::Error);
    for _ in 0..20 {
        guardian.pass(seconds(500), Some(Health::Ready));
        if guardian.under_way.is_some() {
            guardian.finish(Status::Error);
        }
    }
    assert_eq!(guardian.begun.len(), 6, "{:?}", guardian.begun);
    // Without databases to ask nothing is done that nobody commands.
    let mut guardian = Guardian::undrained(Repairs::NONE);
    guardian.command(Direction::Undrain, None);
    guardian.finish(Status::Error);
    guardian.pass(seconds(5_000), None);
    assert_eq!(guardian.begun.len(), 1);
}
