//! Decides what happens to the child processes. Pure: no clock, no signal, no process.
//!
//! **Invariants.**
//! - A process is at rest only when no member of its process group is left, whatever became of its leader.
//! - While a drain is wanted nothing is started.
//! - What was asked to stop is killed once its stop timeout has passed, and each group is killed once.
//! - [`Core::at_rest`] is true only after a look for strays, made when all groups had come to rest, found none.
//!
//! States carry systemd's words, results those of `Result=` in systemd.service(5).

mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use nix::libc::{SIGCONT, SIGKILL, SIGTERM};
use tokio::time::Instant;

pub(super) use words::{Effect, Ending, Event, Snapshot, Stray};
pub use words::{Policy, Restart};

use crate::protocol::UnitReport;

/// What a process may take, after its stop timeout, to be gone: killed, and its strays too.
pub const KILL_GRACE: Duration = Duration::from_secs(2);
/// The least time between the request to a stray to end and its death.
const STRAY_PATIENCE: Duration = Duration::from_secs(1);
/// How often what sends us no signal is looked at while something stops: members of a group whose parent is not
/// us, and strays.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The pause before the first restart; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A process that ran for so long starts again with [`FIRST_PAUSE`].
const GOOD_RUN: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing of it runs, and nothing will by itself.
    Resting,
    /// Nothing of it runs; it is started again at that time.
    Waiting {
        until: Instant,
    },
    /// [`Effect::Spawn`] is given and not answered.
    Starting,
    Running {
        group: i32,
        since: Instant,
    },
    /// The group is told to stop.
    Stopping {
        group: i32,
        since: Instant,
        leader_ended: bool,
        kill_at: Instant,
        killed: bool,
        /// Start it again as soon as it is down, whatever the policy says.
        again: bool,
    },
}

struct Process {
    name: String,
    policy: Policy,
    state: State,
    /// Why it last ended, when not well; cleared by a start.
    result: Option<String>,
    /// Restarts since the last good run.
    restarts: u32,
    elapsed: Option<Duration>,
}

struct Tracked {
    name: String,
    kill_at: Instant,
    killed: bool,
}

/// All processes, and what is wanted of them.
pub(super) struct Core {
    processes: Vec<Process>,
    up: bool,
    /// Counts the changes between drain and undrain.
    epoch: u64,
    /// When the present command came.
    began: Instant,
    strays: BTreeMap<i32, Tracked>,
    /// A look for strays found none since the groups came to rest.
    clean: bool,
    look_at: Option<Instant>,
}

impl Core {
    pub(super) fn new(now: Instant, processes: impl IntoIterator<Item = (String, Policy)>) -> Self {
        Self {
            processes: processes
                .into_iter()
                .map(|(name, policy)| Process {
                    name,
                    policy,
                    state: State::Resting,
                    result: None,
                    restarts: 0,
                    elapsed: None,
                })
                .collect(),
            up: false,
            epoch: 0,
            began: now,
            strays: BTreeMap::new(),
            clean: true,
            look_at: None,
        }
    }

    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Drain => self.drain(now, &mut effects),
            Event::Undrain => self.undrain(now, &mut effects),
            Event::Spawned { index, group } => {
                let (up, began) = (self.up, self.began);
                if let Some(process) = self.processes.get_mut(index) {
                    process.result = None;
                    process.state = State::Running { group, since: now };
                    process.elapsed =
                        Some(now.saturating_duration_since(began)).filter(|_| process.restarts == 0);
                    if !up {
                        process.stop(now, &mut effects);
                    }
                }
            }
            Event::SpawnFailed { index, why } => {
                let up = self.up;
                if let Some(process) = self.processes.get_mut(index) {
                    process.result = Some(why);
                    process.rest(now, up);
                }
            }
            Event::LeaderEnded { index, ending, alone } => {
                self.leader_ended(now, index, ending, alone, &mut effects)
            }
            Event::GroupEmpty { index } => self.group_empty(now, index, &mut effects),
            Event::Strays(found) => self.found(now, found, &mut effects),
            Event::Tick => {}
        }
        self.time(now, &mut effects);
        effects
    }

    fn drain(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.up || self.at_rest() {
            self.command(now, false);
        }
        // Also when a drain is under way: who asks again gets an answer that was found after the question.
        self.clean = false;
        self.look_at = None;
        for process in &mut self.processes {
            match &mut process.state {
                State::Running { .. } => process.stop(now, effects),
                State::Waiting { .. } => process.state = State::Resting,
                State::Stopping { again, .. } => *again = false,
                State::Resting | State::Starting => {}
            }
        }
    }

    fn undrain(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.command(now, true);
        self.strays.clear();
        for (index, process) in self.processes.iter_mut().enumerate() {
            process.restarts = 0;
            match &mut process.state {
                State::Resting | State::Waiting { .. } => {
                    process.state = State::Starting;
                    effects.push(Effect::Spawn { index });
                }
                State::Stopping { again, .. } => *again = true,
                State::Running { .. } | State::Starting => {}
            }
        }
    }

    fn command(&mut self, now: Instant, up: bool) {
        if self.up != up {
            self.up = up;
            self.epoch += 1;
        }
        self.began = now;
        for process in &mut self.processes {
            process.elapsed = None;
        }
    }

    fn leader_ended(
        &mut self,
        now: Instant,
        index: usize,
        ending: Ending,
        alone: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        let how = process.judge(ending);
        match &mut process.state {
            State::Running { .. } => {
                process.result = how;
                // What it leaves behind must not run beside its successor.
                process.stop(now, effects);
                if let State::Stopping { leader_ended, .. } = &mut process.state {
                    *leader_ended = true;
                }
                if alone {
                    // Nobody is there to hear the signals.
                    effects.retain(|effect| !matches!(effect, Effect::Signal { .. }));
                }
            }
            State::Stopping {
                leader_ended,
                killed: false,
                ..
            } => {
                *leader_ended = true;
                process.result = how;
            }
            State::Stopping { leader_ended, .. } => *leader_ended = true,
            _ => return,
        }
        if alone {
            self.group_empty(now, index, effects);
        }
    }

    fn group_empty(&mut self, now: Instant, index: usize, effects: &mut Vec<Effect>) {
        let (up, began) = (self.up, self.began);
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        let State::Stopping {
            group, since, again, ..
        } = process.state
        else {
            return;
        };
        effects.push(Effect::Forget { group });
        if now.saturating_duration_since(since) >= GOOD_RUN {
            process.restarts = 0;
        }
        process.elapsed = (!up).then(|| now.saturating_duration_since(began));
        if again && up {
            process.state = State::Starting;
            effects.push(Effect::Spawn { index });
        } else {
            process.rest(now, up);
        }
    }

    fn found(&mut self, now: Instant, found: Vec<Stray>, effects: &mut Vec<Effect>) {
        if self.up {
            return;
        }
        let longest = self.processes.iter().map(|p| p.policy.stop_timeout).max();
        let patience = self.began + longest.unwrap_or_default();
        // A look that was made while groups still stopped says nothing of what they leave behind.
        self.clean = found.is_empty() && self.groups_rest();
        self.strays
            .retain(|pid, _| found.iter().any(|stray| stray.pid == *pid));
        for Stray { pid, name } in found {
            self.strays.entry(pid).or_insert_with(|| {
                effects.extend([SIGTERM, SIGCONT].map(|signal| Effect::SignalStray { pid, signal }));
                Tracked {
                    name,
                    kill_at: patience.max(now + STRAY_PATIENCE),
                    killed: false,
                }
            });
        }
    }

    /// What is due.
    fn time(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for (index, process) in self.processes.iter_mut().enumerate() {
            match &mut process.state {
                State::Waiting { until } if *until <= now => {
                    process.state = State::Starting;
                    effects.push(Effect::Spawn { index });
                }
                State::Stopping {
                    group,
                    kill_at,
                    killed,
                    ..
                } if *kill_at <= now && !*killed => {
                    *killed = true;
                    process.result = Some("timeout".to_owned());
                    effects.push(Effect::Signal {
                        group: *group,
                        signal: SIGKILL,
                    });
                }
                _ => {}
            }
        }
        for (&pid, stray) in &mut self.strays {
            if stray.kill_at <= now && !stray.killed {
                stray.killed = true;
                effects.push(Effect::SignalStray { pid, signal: SIGKILL });
            }
        }
        if self.must_look() && self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + LOOK_AGAIN);
            effects.push(Effect::LookForStrays);
        }
    }

    fn must_look(&self) -> bool {
        !self.up && !self.clean && self.groups_rest()
    }

    fn groups_rest(&self) -> bool {
        self.processes
            .iter()
            .all(|process| process.state == State::Resting)
    }

    fn at_rest(&self) -> bool {
        !self.up && self.clean && self.groups_rest()
    }

    /// When [`Event::Tick`] is due although nothing happens.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let processes = self.processes.iter().filter_map(|process| match process.state {
            State::Waiting { until } => Some(until),
            State::Stopping {
                leader_ended: true, ..
            } => Some(now + LOOK_AGAIN),
            State::Stopping {
                kill_at,
                killed: false,
                ..
            } => Some(kill_at),
            _ => None,
        });
        let strays = self.strays.values().filter(|s| !s.killed).map(|s| s.kill_at);
        let look = self.look_at.filter(|_| self.must_look());
        processes.chain(strays).chain(look).min()
    }

    /// The groups that may have members: index, group, and whether the leader has ended.
    pub(super) fn groups(&self) -> Vec<(usize, i32, bool)> {
        let groups = self.processes.iter().enumerate();
        groups
            .filter_map(|(index, process)| match process.state {
                State::Running { group, .. } => Some((index, group, false)),
                State::Stopping {
                    group, leader_ended, ..
                } => Some((index, group, leader_ended)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut units: Vec<_> = self.processes.iter().map(Process::report).collect();
        units.extend(self.strays.iter().map(|(pid, stray)| UnitReport {
            result: Some("left its process group, and its parent ended".to_owned()),
            ..UnitReport::new(format!("{} (pid {pid})", stray.name), "deactivating")
        }));
        let mut pending = Vec::new();
        let mut failed = Vec::new();
        for process in &self.processes {
            let why = process.result.clone();
            match (&process.state, why) {
                (State::Starting | State::Stopping { .. }, _) => {
                    pending.push((process.name.clone(), process.word().to_owned()));
                }
                (State::Waiting { .. } | State::Resting, Some(why)) => {
                    failed.push((process.name.clone(), why))
                }
                _ => {}
            }
        }
        Snapshot {
            epoch: self.epoch,
            up: self.up,
            at_rest: self.at_rest(),
            units,
            pending,
            failed,
        }
    }
}

impl Process {
    /// Asks the group to stop. A group that is frozen must run in order to hear it.
    fn stop(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if let State::Running { group, since } = self.state {
            effects.extend([self.policy.stop_signal, SIGCONT].map(|signal| Effect::Signal { group, signal }));
            self.state = State::Stopping {
                group,
                since,
                leader_ended: false,
                kill_at: now + self.policy.stop_timeout,
                killed: false,
                again: false,
            };
        }
    }

    /// Nothing of it runs: wait for the next start, or for good.
    fn rest(&mut self, now: Instant, up: bool) {
        let restart = match self.policy.restart {
            Restart::Always => true,
            Restart::OnFailure => self.result.is_some(),
            Restart::Never => false,
        };
        self.state = if up && restart {
            let pause = FIRST_PAUSE
                .saturating_mul(1 << self.restarts.min(16))
                .min(LONGEST_PAUSE);
            self.restarts = self.restarts.saturating_add(1);
            State::Waiting { until: now + pause }
        } else {
            State::Resting
        };
    }

    fn judge(&self, ending: Ending) -> Option<String> {
        let word = match ending {
            Ending::Exited(0) => return None,
            Ending::Exited(_) => "exit-code",
            Ending::Killed { signal, .. } if signal == self.policy.stop_signal => return None,
            Ending::Killed { dumped: true, .. } => "core-dump",
            Ending::Killed { .. } => "signal",
        };
        Some(word.to_owned())
    }

    fn word(&self) -> &'static str {
        match self.state {
            State::Resting if self.result.is_some() => "failed",
            State::Resting => "inactive",
            State::Waiting { .. } | State::Starting => "activating",
            State::Running { .. } => "active",
            State::Stopping { .. } => "deactivating",
        }
    }

    fn report(&self) -> UnitReport {
        UnitReport {
            name: self.name.clone(),
            state: self.word().to_owned(),
            result: self.result.clone(),
            elapsed_ms: self
                .elapsed
                .map(|e| u64::try_from(e.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests;
