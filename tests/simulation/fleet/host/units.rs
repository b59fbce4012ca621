//! The units of a host, as systemd moves them: they take their time, hang, fail, and wait for the databases when they start.

use std::time::Duration;

use io_guardian::guardian::core::Health;
use io_guardian::guardian::operations::Direction;
use io_guardian::protocol::UnitReport;
use tokio::time::Instant;

use super::super::{Fleet, Step};
use super::Host;

/// Between two looks of the wait at the databases, and how often it looks.
const WAIT_EVERY: Duration = Duration::from_secs(5);
const WAIT_LOOKS: u32 = 60;
const NAMES: [&str; 3] = ["queue.service", "web.service", "worker.service"];

/// All that a host can have: they run.
pub(super) fn all(now: Instant) -> impl Iterator<Item = Unit> {
    NAMES.into_iter().map(move |name| Unit {
        name,
        state: State::Active,
        started: now,
        change: 0,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Inactive,
    Failed,
    Activating,
    Active,
    Deactivating,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Failed => "failed",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Deactivating => "deactivating",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    /// Since when something of it runs.
    pub(crate) started: Instant,
    /// Which change of its state is awaited.
    change: u64,
}

impl Unit {
    pub(crate) fn runs(&self) -> bool {
        !matches!(self.state, State::Inactive | State::Failed)
    }
}

impl Host {
    pub(super) fn reports(&self) -> Vec<UnitReport> {
        self.units
            .iter()
            .map(|unit| UnitReport::new(unit.name, unit.state.word()))
            .collect()
    }

    /// Whether what is under way is over, and well.
    pub(super) fn settled(&self, direction: Direction) -> Option<bool> {
        match direction {
            Direction::Drain => (!self.runs()).then_some(true),
            Direction::Undrain => {
                let moves = |unit: &Unit| matches!(unit.state, State::Activating | State::Deactivating);
                let at_rest = self.waits.is_none() && !self.units.iter().any(moves);
                at_rest.then(|| self.target && self.units.iter().all(|unit| unit.state == State::Active))
            }
        }
    }
}

impl Fleet {
    pub(super) fn look_whether_settled(&mut self, host: usize) {
        let at = &self.hosts[host];
        if let Some((operation, direction)) = at.under_way
            && at.settled(direction).is_some()
        {
            let life = at.life;
            let takes = self.chance.span(60);
            self.after(
                takes,
                Step::Settled {
                    host,
                    life,
                    operation,
                },
            );
        }
    }

    /// Its unit `unit` comes to `state` after a while.
    fn change(&mut self, host: usize, unit: usize, takes: Duration) {
        let at = &mut self.hosts[host];
        at.changes += 1;
        at.units[unit].change = at.changes;
        let (boot, change) = (at.boot, at.changes);
        let step = Step::Unit {
            host,
            boot,
            unit,
            change,
        };
        self.after(takes, step);
    }

    pub(crate) fn stop_units(&mut self, host: usize) {
        let at = &mut self.hosts[host];
        (at.job, at.starts, at.waits, at.target) = (at.job + 1, false, None, false);
        for unit in 0..at.units.len() {
            let state = &mut self.hosts[host].units[unit].state;
            if matches!(state, State::Active | State::Activating) {
                *state = State::Deactivating;
                // One that hangs outlives the guardian's patience, until systemd kills it.
                let takes = if !self.peaceful && self.chance.one_in(15) {
                    Duration::from_secs(40) + self.chance.span(50_000)
                } else {
                    self.chance.span(9_000)
                };
                self.change(host, unit, takes);
            }
        }
    }

    /// The target is started, by whomever: it waits for the databases.
    pub(crate) fn start_units(&mut self, host: usize) {
        let at = &mut self.hosts[host];
        (at.job, at.starts) = (at.job + 1, true);
        if at.target {
            return self.pull_in(host);
        }
        at.waits = Some(0);
        let (boot, job) = (at.boot, at.job);
        let takes = self.chance.span(200);
        self.after(takes, Step::Wait { host, boot, job });
    }

    pub(crate) fn wait(&mut self, host: usize, boot: u64, job: u64) {
        let ready = self.seen(host) == Health::Ready;
        let at = &mut self.hosts[host];
        let Some(looks) = at.waits.filter(|_| (at.boot, at.job) == (boot, job)) else {
            return;
        };
        if ready {
            (at.waits, at.target) = (None, true);
            self.pull_in(host);
        } else if looks >= WAIT_LOOKS {
            at.waits = None;
        } else {
            at.waits = Some(looks + 1);
            self.after(WAIT_EVERY, Step::Wait { host, boot, job });
        }
        self.look_whether_settled(host);
    }

    fn pull_in(&mut self, host: usize) {
        for unit in 0..self.hosts[host].units.len() {
            if !self.hosts[host].units[unit].runs() {
                self.start_unit(host, unit);
            }
        }
    }

    fn start_unit(&mut self, host: usize, unit: usize) {
        let now = self.now();
        let at = &mut self.hosts[host].units[unit];
        (at.state, at.started) = (State::Activating, now);
        let takes = self.chance.span(5_000);
        self.change(host, unit, takes);
    }

    /// What was awaited of a unit has come.
    pub(crate) fn unit(&mut self, host: usize, boot: u64, unit: usize, change: u64) {
        let fails = !self.peaceful && self.chance.one_in(25);
        let at = &mut self.hosts[host];
        if at.boot != boot || !at.on || at.units[unit].change != change {
            return;
        }
        let wanted = at.starts && at.target;
        let state = &mut at.units[unit].state;
        match *state {
            State::Activating if fails => {
                *state = State::Failed;
                // No guardian looks at it again, but for the one that waits for it.
                at.by_hand |= at.under_way.is_none();
            }
            State::Activating => *state = State::Active,
            State::Deactivating => {
                *state = State::Inactive;
                if wanted {
                    self.start_unit(host, unit);
                }
            }
            _ => {}
        }
        self.look_whether_settled(host);
    }

    /// A unit dies by itself; now and then systemd starts it again.
    pub(crate) fn fail(&mut self, host: usize, unit: usize) {
        let again = self.chance.one_in(2);
        let Some(at) = self.hosts[host].units.get_mut(unit) else {
            return;
        };
        if at.state == State::Active {
            at.state = if again { State::Activating } else { State::Failed };
            if again {
                let takes = self.chance.span(5_000);
                self.change(host, unit, takes);
            } else {
                // No guardian looks at it again, before the next undrain.
                self.hosts[host].by_hand = true;
            }
        }
    }

    pub(crate) fn by_hand(&mut self, host: usize, start: bool) {
        if !self.hosts[host].on || self.hosts[host].under_way.is_some() {
            return;
        }
        if start {
            self.start_units(host);
        } else {
            self.stop_units(host);
        }
        self.hosts[host].by_hand = true;
    }
}
