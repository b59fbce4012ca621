//! The shell around the core: turns orders, signals and time into events, and effects into deeds.

use std::collections::{BTreeSet, VecDeque};
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::config::ProcessSpec;
use super::core::{Core, Effect, Event, KILL_GRACE, Snapshot};
use super::keeper::Keeper;
use super::spawn;

/// What the supervisor can be told. Answered with the epoch that the order belongs to.
#[derive(Debug)]
pub(super) enum Order {
    Drain(oneshot::Sender<u64>),
    Undrain(oneshot::Sender<u64>),
    /// Stop everything and end.
    Close,
}

/// What tests do differently: many of them share one process, and no keeper can be had from a test binary.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// Not to start a keeper, and to touch no child but those whose environment holds this text.
    pub(super) only: Option<String>,
}

pub(super) struct Supervisor {
    core: Core,
    specs: Vec<ProcessSpec>,
    options: Options,
    keeper: Option<Keeper>,
    /// Strays of the last look; with [`Options::only`], the children that are reaped apart from groups.
    strays: BTreeSet<i32>,
    children: Signal,
    orders: mpsc::Receiver<Order>,
    snapshots: watch::Sender<Snapshot>,
}

impl Supervisor {
    pub(super) fn new(
        specs: Vec<ProcessSpec>,
        options: Options,
        orders: mpsc::Receiver<Order>,
    ) -> io::Result<(Self, watch::Receiver<Snapshot>)> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let children = signal(SignalKind::child())?;
        let keeper = match options.only {
            None => Some(Keeper::start(&[])?),
            Some(_) => None,
        };
        let core = Core::new(Instant::now(), specs.iter().map(|s| (s.name.clone(), s.policy)));
        let (snapshots, receiver) = watch::channel(core.snapshot());
        let supervisor = Self {
            core,
            specs,
            options,
            keeper,
            strays: BTreeSet::new(),
            children,
            orders,
            snapshots,
        };
        Ok((supervisor, receiver))
    }

    /// Runs until it is told to close, or nobody is left who could tell it anything.
    pub(super) async fn run(mut self) {
        let mut close_by: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if let Some(by) = close_by {
                if self.snapshots.borrow().at_rest {
                    return;
                }
                if by <= now {
                    // What the kernel does not let die (a stuck disk) must not keep the guardian from ending.
                    tracing::error!("some processes did not end in time; left to the keeper");
                    return;
                }
            }
            let wake = self.core.wake(now).into_iter().chain(close_by).min();
            tokio::select! {
                order = self.orders.recv(), if close_by.is_none() => match order {
                    Some(Order::Drain(reply)) => self.obey(Event::Drain, reply),
                    Some(Order::Undrain(reply)) => self.obey(Event::Undrain, reply),
                    Some(Order::Close) | None => {
                        let longest = self.specs.iter().map(|s| s.policy.stop_timeout).max();
                        close_by = Some(Instant::now() + longest.unwrap_or_default() + KILL_GRACE);
                        self.feed(Event::Drain);
                    }
                },
                _ = self.children.recv() => {}
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
            self.observe();
            self.publish();
        }
    }

    fn obey(&mut self, event: Event, reply: oneshot::Sender<u64>) {
        self.feed(event);
        self.publish();
        // Whoever asked may have gone; the order holds all the same.
        let _ = reply.send(self.snapshots.borrow().epoch);
    }

    /// Sees who has ended, and what time it is.
    fn observe(&mut self) {
        let mut ended = Vec::new();
        for which in self.reapable() {
            ended.extend(std::iter::from_fn(|| spawn::reap(which)));
        }
        let strays_ended = ended.iter().any(|(pid, _)| self.strays.contains(pid));
        for (pid, ending) in ended {
            if self.keeper.as_ref().is_some_and(|keeper| keeper.pid() == pid) {
                self.replace_keeper();
            }
            let leads = |&&(_, group, leader_ended): &&(usize, i32, bool)| group == pid && !leader_ended;
            if let Some(&(index, group, _)) = self.core.groups().iter().find(leads) {
                let alone = spawn::group_is_empty(group);
                self.feed(Event::LeaderEnded { index, ending, alone });
            }
        }
        for (index, group, leader_ended) in self.core.groups() {
            if leader_ended && spawn::group_is_empty(group) {
                self.feed(Event::GroupEmpty { index });
            }
        }
        if strays_ended {
            let left = self.look_for_strays();
            self.feed(Event::Strays(left));
        }
        self.feed(Event::Tick);
    }

    fn reapable(&self) -> Vec<i32> {
        if self.options.only.is_none() {
            return vec![-1];
        }
        let groups = self.core.groups().into_iter().map(|(_, group, _)| -group);
        groups.chain(self.strays.iter().copied()).collect()
    }

    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.core.on(Instant::now(), event) {
                events.extend(self.execute(effect));
            }
        }
    }

    fn execute(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Spawn { index } => return self.spawn(index),
            Effect::LookForStrays => return Some(Event::Strays(self.look_for_strays())),
            Effect::Signal { group, signal } => {
                if let Err(error) = spawn::signal_group(group, signal) {
                    tracing::error!(group, signal, %error, "cannot signal a process group");
                }
            }
            Effect::SignalStray { pid, signal } => {
                tracing::debug!(pid, signal, "signalling a process that left its group");
                if let Err(error) = spawn::signal_stray(pid, signal) {
                    tracing::error!(pid, signal, %error, "cannot signal a process that left its group");
                }
            }
            Effect::Forget { group } => self.tell_keeper(|keeper| keeper.forget(group)),
        }
        None
    }

    fn spawn(&mut self, index: usize) -> Option<Event> {
        let spec = self.specs.get(index)?;
        match spawn::spawn(spec) {
            Ok(group) => {
                self.tell_keeper(|keeper| keeper.add(group));
                Some(Event::Spawned { index, group })
            }
            Err(error) => Some(Event::SpawnFailed {
                index,
                why: format!("cannot run {}: {error}", spec.program.display()),
            }),
        }
    }

    fn look_for_strays(&mut self) -> Vec<super::core::Stray> {
        let groups = self
            .core
            .groups()
            .into_iter()
            .map(|(_, group, _)| group)
            .collect();
        let keeper = self.keeper.iter().map(Keeper::pid).collect();
        let mut strays = spawn::strays(&groups, &keeper);
        if let Some(mark) = &self.options.only {
            strays.retain(|stray| spawn::environment_holds(stray.pid, mark));
        }
        self.strays = strays.iter().map(|stray| stray.pid).collect();
        strays
    }

    fn tell_keeper(&mut self, say: impl FnOnce(&mut Keeper) -> io::Result<()>) {
        if let Some(Err(error)) = self.keeper.as_mut().map(say) {
            tracing::warn!(%error, "the keeper does not hear; kill -9 of the guardian may leave processes behind");
        }
    }

    fn replace_keeper(&mut self) {
        tracing::warn!("the keeper ended; starting another one");
        match Keeper::start(&[]) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) => {
                self.keeper = None;
                tracing::error!(%error, "cannot start a keeper; kill -9 of the guardian may leave processes behind");
            }
        }
        for (_, group, _) in self.core.groups() {
            self.tell_keeper(|keeper| keeper.add(group));
        }
    }

    /// Publishes what there is now when it is news, and logs each step of each unit once.
    fn publish(&mut self) {
        let now = self.core.snapshot();
        self.snapshots.send_if_modified(|before| {
            if *before == now {
                return false;
            }
            for unit in &now.units {
                let was = before.units.iter().find(|was| was.name == unit.name);
                let from = was.map_or("inactive", |was| was.state.as_str());
                if from == unit.state {
                    continue;
                }
                let (name, to) = (unit.name.as_str(), unit.state.as_str());
                match unit.result.as_deref() {
                    Some(why) => tracing::warn!(unit = name, from, to, why, "unit changed"),
                    None => tracing::info!(unit = name, from, to, "unit changed"),
                }
            }
            *before = now;
            true
        });
    }
}
