//! The shell around the core: turns messages and time into events, and effects into actions. It waits for no disk, no log and no bus:
//! what may hang is on threads of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::config::{Defaults, FolderConfig, check_sleep};
use super::core::{Core, Effect, Event, Kind, Target, Tell, Verdict};
use super::cutter::Cutter;
use super::device::{Device, Looks};
use super::memo::MemoFile;
use super::starter::Starter;
use super::status::{FolderStatus, HandStatus, Status};
use super::teller::Teller;
use super::wire::{How, Registration, millis};
use crate::host::{Ports, Table};

/// When a change that the kernel refused is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// How often the kernel's table is compared with what it should be.
const VERIFY_EVERY: Duration = Duration::from_secs(5);
/// Folders at once.
const FOLDERS: usize = 256;
/// Longest path of a folder that a reporter names.
const PATH_MAX_BYTES: usize = 1_024;

pub(super) type Sender = mpsc::Sender<Message>;
type Reply = oneshot::Sender<Result<String, String>>;

/// What a monitor hears.
pub(super) enum Message {
    Register {
        registration: Registration,
        uid: u32,
        /// Whether that connection reports on the folder already.
        again: bool,
        reply: Reply,
    },
    /// A reporter has gone without a word.
    Lost {
        folder: String,
    },
    /// The unit for what is fenced now (true), or for what is not any more, has been started.
    Announced(bool),
    Beat {
        folder: String,
        took: Duration,
        how: How,
        device: Option<Device>,
    },
    Failed {
        folder: String,
        kind: Kind,
        text: String,
        device: Option<Device>,
    },
    Goodbye {
        folder: String,
    },
    Fence {
        target: Target,
        reason: String,
        reply: Reply,
    },
    Unfence {
        target: Target,
        reply: Reply,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
}

/// Its parts.
pub(super) struct Monitor {
    pub(super) core: Core,
    pub(super) table: Table,
    pub(super) memo: MemoFile,
    pub(super) cutter: Option<Cutter>,
    pub(super) starter: Option<Starter>,
    pub(super) teller: Teller,
    pub(super) defaults: Defaults,
    pub(super) folders: Vec<FolderConfig>,
    /// Whether its own threads watch its folders.
    pub(super) watches: bool,
    pub(super) memory_locked: bool,
    pub(super) clockwork: Clockwork,
}

/// What the shell itself must do at some time, and remembers.
pub(super) struct Clockwork {
    /// What the kernel has refused.
    pending: Option<(Ports, Instant)>,
    verify_at: Instant,
    watchdog: Option<(Duration, Instant)>,
    owners: BTreeMap<String, u32>,
    /// How many connections report on a folder: it is watched until the last of them has said goodbye.
    reporters: BTreeMap<String, usize>,
    how: BTreeMap<String, How>,
    looks: Looks,
    memo_failed: bool,
    shown: String,
}

impl Clockwork {
    pub(super) fn new(now: Instant, watchdog: Option<Duration>) -> Self {
        Self {
            pending: None,
            verify_at: now + VERIFY_EVERY,
            watchdog: watchdog.map(|every| (every, now)),
            owners: BTreeMap::new(),
            reporters: BTreeMap::new(),
            how: BTreeMap::new(),
            looks: Looks::default(),
            memo_failed: false,
            shown: String::new(),
        }
    }
}

impl Clockwork {
    /// One that reports on this folder has gone; how many are left.
    fn left(&mut self, folder: &str) -> usize {
        let Some(reporters) = self.reporters.get_mut(folder) else {
            return 0;
        };
        *reporters = reporters.saturating_sub(1);
        let left = *reporters;
        if left == 0 {
            self.reporters.remove(folder);
        }
        left
    }
}

/// Whose a folder is once this user reports on it. Root may report on anything, and does not take it from who does.
///
/// # Errors
/// Whose it is instead.
fn owner(before: Option<u32>, uid: u32) -> Result<u32, u32> {
    match before {
        Some(owner) if uid == 0 || uid == owner => Ok(owner),
        Some(owner) => Err(owner),
        None => Ok(uid),
    }
}

impl Monitor {
    /// Runs until a signal ends it.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>, mut ends: [Signal; 2]) -> Self {
        let [first, second] = &mut ends;
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                _ = first.recv() => return self,
                _ = second.recv() => return self,
                // Before the time: what has beaten has beaten.
                message = messages.recv() => match message {
                    Some(message) => self.hear(message),
                    None => return self,
                },
                () = sleep_until(wake) => self.act(Event::Time),
            }
            self.tick();
        }
    }

    fn wake_at(&self) -> Instant {
        let pending = self.clockwork.pending.as_ref().map(|(_, at)| *at);
        let watchdog = self.clockwork.watchdog.map(|(_, at)| at);
        let others = [self.core.wake_at(), pending, watchdog];
        let others = others.into_iter().flatten();
        others.fold(self.clockwork.verify_at, Instant::min)
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Register {
                registration,
                uid,
                again,
                reply,
            } => {
                let registered = self.register(&registration, uid);
                if registered.is_ok() && !again {
                    let folder = registration.folder;
                    let reporters = self.clockwork.reporters.entry(folder.clone()).or_default();
                    *reporters += 1;
                    if *reporters > 1 {
                        tracing::info!(
                            folder,
                            reporters = *reporters,
                            "another reporter beats for this folder, too"
                        );
                    }
                }
                let _ = reply.send(registered);
            }
            Message::Lost { folder } => drop(self.clockwork.left(&folder)),
            Message::Announced(fenced) => self.act(Event::Announced(fenced)),
            Message::Beat {
                folder,
                took,
                how,
                device,
            } => {
                self.clockwork.looks.on(&folder, device);
                if self.clockwork.how.get(&folder) != Some(&how) {
                    self.clockwork.how.insert(folder.clone(), how);
                }
                self.act(Event::Beat { folder, took });
            }
            Message::Failed {
                folder,
                kind,
                text,
                device,
            } => {
                self.clockwork.looks.on(&folder, device);
                self.act(Event::Failed { folder, kind, text });
            }
            Message::Goodbye { folder } => {
                if self.clockwork.left(&folder) == 0 {
                    self.clockwork.owners.remove(&folder);
                    self.clockwork.looks.forget(&folder);
                    self.act(Event::Goodbye { folder });
                }
            }
            Message::Fence {
                target,
                reason,
                reply,
            } => self.obey(Event::Fence { target, reason }, reply),
            Message::Unfence { target, reply } => self.obey(Event::Unfence { target }, reply),
            Message::Status { reply } => {
                let _ = reply.send(self.status());
            }
        }
    }

    /// The folders of this monitor's own file.
    pub(super) fn register_own(&mut self) {
        for folder in self.folders.clone() {
            let watch = self.defaults.watch(Some(&folder), None).into();
            let folder = folder.path;
            self.act(Event::Registered { folder, watch });
        }
    }

    fn register(&mut self, said: &Registration, uid: u32) -> Result<String, String> {
        let path = &said.folder;
        let is_path =
            path.starts_with('/') && path.len() <= PATH_MAX_BYTES && !path.contains(char::is_control);
        if !is_path {
            return Err(format!(
                "{path:?} is no path of a folder; write the whole path, beginning with /"
            ));
        }
        let own = self.folders.iter().find(|folder| folder.path == *path);
        if own.is_some() && self.watches {
            return Err(format!(
                "{path} is watched by the monitor itself; remove it from one of the two configurations"
            ));
        }
        let owner = owner(self.clockwork.owners.get(path).copied(), uid).map_err(|owner| {
            format!(
                "{path} is reported on by uid {owner}, not by uid {uid}; end the other reporter with SIGTERM, or, if it has died, restart the monitor"
            )
        })?;
        if self.core.count() >= FOLDERS && !self.core.knows(path) {
            return Err(format!("there are {FOLDERS} folders already"));
        }
        let watch = self.defaults.watch(own, Some(said));
        if watch.ports.is_empty() {
            return Err(format!(
                "{path}: no ports: nothing would be fenced; name them with --ports"
            ));
        }
        check_sleep(path, Duration::from_millis(said.sleep_ms), watch.heartbeat)?;
        self.clockwork.owners.insert(path.clone(), owner);
        let answer = format!("watching {path}");
        self.act(Event::Registered {
            folder: path.clone(),
            watch: watch.into(),
        });
        Ok(answer)
    }

    fn act(&mut self, event: Event) {
        self.decide(event, None);
    }

    fn obey(&mut self, event: Event, reply: Reply) {
        self.decide(event, Some(reply));
    }

    fn decide(&mut self, event: Event, reply: Option<Reply>) {
        let now = Instant::now();
        let due = self.core.to_look_at(now);
        if !due.is_empty() {
            let looks = &mut self.clockwork.looks;
            let seen = due.into_iter().map(|(folder, beat)| {
                let works = looks.works(&folder, beat, now);
                (folder, works)
            });
            let seen = Event::Looked(seen.collect());
            let effects = self.core.on(now, seen);
            self.perform(effects, None);
        }
        let effects = self.core.on(now, event);
        self.perform(effects, reply);
    }

    pub(super) fn perform(&mut self, effects: Vec<Effect>, mut reply: Option<Reply>) {
        let mut fault = None;
        for effect in effects {
            match effect {
                Effect::Enforce(ports) => fault = self.enforce(ports),
                Effect::Cut(ports) => {
                    if let Some(cutter) = &self.cutter {
                        cutter.cut(ports);
                    }
                }
                Effect::Remember(mut memo) => {
                    // Where nobody is to be told, nobody can have heard half of it.
                    memo.telling &= self.starter.is_some();
                    let failed = self.memo.write(&memo);
                    if let (Err(error), false) = (&failed, self.clockwork.memo_failed) {
                        tracing::error!(%error, "cannot write down whose fence is whose; after a restart it stays fenced all the same");
                    }
                    self.clockwork.memo_failed = failed.is_err();
                }
                Effect::Answer(answer) => {
                    let answer = match &fault {
                        Some(fault) => Err(format!("the kernel refused it, it is tried again: {fault}")),
                        None => answer,
                    };
                    if let Some(reply) = reply.take() {
                        let _ = reply.send(answer);
                    }
                }
                Effect::Announce(fenced) => {
                    if let Some(starter) = &self.starter {
                        starter.announce(fenced);
                    }
                }
                Effect::Tell(tell) => say(&tell),
            }
        }
        self.show();
    }

    /// What went wrong.
    fn enforce(&mut self, ports: Ports) -> Option<String> {
        match self.table.set(&ports) {
            Ok(()) => {
                if self.clockwork.pending.take().is_some() {
                    tracing::info!(ports = ports.to_string(), "the kernel has taken the change");
                }
                None
            }
            Err(error) => {
                if self.clockwork.pending.is_none() {
                    tracing::error!(ports = ports.to_string(), %error, "the kernel does not take the change; trying again");
                }
                self.clockwork.pending = Some((ports, Instant::now() + AGAIN));
                Some(error.to_string())
            }
        }
    }

    /// What is due by the clock, besides what the core decides.
    fn tick(&mut self) {
        let now = Instant::now();
        if let Some((every, at)) = self.clockwork.watchdog
            && now >= at
        {
            self.teller.alive();
            self.clockwork.watchdog = Some((every, now + every));
        }
        if let Some((ports, _)) = self.clockwork.pending.clone().filter(|(_, at)| now >= *at) {
            self.enforce(ports);
        }
        if now >= self.clockwork.verify_at {
            self.clockwork.verify_at = now + VERIFY_EVERY;
            match self.table.verify() {
                Ok(true) => {}
                Ok(false) => tracing::warn!(
                    "somebody has changed our nftables table, or flushed all rules; it was made again"
                ),
                Err(error) => tracing::error!(%error, "our nftables table is not what it should be"),
            }
        }
    }

    /// One line for `systemctl status`.
    fn show(&mut self) {
        let shown = self.shown();
        if shown != self.clockwork.shown {
            self.teller.status(shown.clone());
            self.clockwork.shown = shown;
        }
    }

    pub(super) fn shown(&self) -> String {
        let fenced = self.core.fenced();
        let folders = self.core.count();
        if fenced.is_empty() {
            format!("{folders} folders, none fenced")
        } else {
            format!("fenced: {fenced}")
        }
    }

    fn status(&self) -> Status {
        let now = Instant::now();
        let age = |at: Instant| millis(now.saturating_duration_since(at));
        let folders = self.core.folders.iter().map(|(path, folder)| {
            let by_hand = self
                .core
                .by_hand
                .iter()
                .find(|hand| !hand.ports.shared_with(&folder.ports).is_empty());
            let (state, since, why) = match (&folder.fenced, by_hand) {
                (Some(fenced), _) => ("fenced", fenced.since, Some(fenced.why.to_string())),
                (None, Some(hand)) => ("fenced by hand", hand.since, Some(hand.reason.clone())),
                (None, None) => {
                    let others = self.core.holders(now, &folder.ports);
                    let why =
                        (!others.is_empty()).then(|| format!("its ports are fenced all the same: {others}"));
                    ("open", folder.opened, why)
                }
            };
            let mut writes = BTreeMap::from([("ok".to_owned(), folder.counts.ok)]);
            for kind in Kind::ALL {
                let count = folder.counts.failed.get(&kind).copied().unwrap_or_default();
                writes.insert(kind.name().to_owned(), count);
            }
            FolderStatus {
                folder: path.clone(),
                state: state.to_owned(),
                since_ms: age(since),
                why,
                ports: folder.ports.clone(),
                watched: folder.watch.is_some(),
                heartbeat_ms: folder.watch.as_ref().map(|watch| millis(watch.heartbeat)),
                last_beat_ms: folder.last_beat.map(age),
                p99_us: folder
                    .latency
                    .p99(now)
                    .map(|p99| u64::try_from(p99.as_micros()).unwrap_or(u64::MAX)),
                how: self.clockwork.how.get(path).copied(),
                device: self.clockwork.looks.device(path),
                busy: folder.spared(now).is_some(),
                spared: folder.counts.spared,
                fences: folder.counts.fences,
                writes,
            }
        });
        let by_hand = self.core.by_hand.iter().map(|hand| HandStatus {
            target: hand.target.clone(),
            ports: hand.ports.clone(),
            reason: hand.reason.clone(),
            since_ms: age(hand.since),
        });
        Status {
            version: 1,
            fenced: self.core.fenced(),
            folders: folders.collect(),
            by_hand: by_hand.collect(),
            unknown: self.core.unknown.clone(),
            table_owned: self.table.is_owned(),
            pending: self.clockwork.pending.is_some(),
            memory_locked: self.memory_locked,
        }
    }
}

/// Seconds, for people: a stall is no matter of microseconds.
fn shown(duration: Duration) -> String {
    format!("{:.3}s", duration.as_secs_f64())
}

fn say(tell: &Tell) {
    match tell {
        Tell::Fenced {
            folder,
            ports,
            why,
            last_beat,
            worked,
        } => {
            let ago = |ago: &Duration| format!("{} ago", shown(*ago));
            let last_beat = last_beat.as_ref().map_or_else(|| "never".to_owned(), ago);
            tracing::error!(
                folder,
                ports = ports.to_string(),
                why = why.to_string(),
                last_beat,
                disk_worked = worked.as_ref().map(ago),
                "fenced"
            );
        }
        Tell::Busy {
            folder,
            last_beat,
            limit,
        } => tracing::warn!(
            folder,
            last_beat = format!("{} ago", shown(*last_beat)),
            limit = shown(*limit),
            "the disk is busy: no write of ours came back in time, others' did; not fenced"
        ),
        Tell::BusyOver { folder, after } => {
            tracing::info!(
                folder,
                after = shown(*after),
                "a write of ours came back from the busy disk"
            );
        }
        Tell::Unfenced {
            folder,
            ports,
            after,
            still,
        } => {
            if still.is_empty() {
                tracing::info!(
                    folder,
                    ports = ports.to_string(),
                    after = shown(*after),
                    "unfenced"
                );
            } else {
                tracing::info!(
                    folder,
                    ports = ports.to_string(),
                    after = shown(*after),
                    still = still.to_string(),
                    "the folder is back, but ports of it stay fenced"
                );
            }
        }
        Tell::Trouble {
            folder,
            kind,
            text,
            verdict,
        } => {
            let kind = kind.name();
            match verdict {
                Verdict::Fence => {
                    tracing::error!(folder, kind, error = text, verdict = "fence", "a write failed")
                }
                _ => tracing::warn!(folder, kind, error = text, verdict = "warn", "a write failed"),
            }
        }
        Tell::TroubleOver { folder, kind } => {
            tracing::info!(folder, kind = kind.name(), "writes do not fail any more");
        }
        Tell::Slow { folder, p99, limit } => {
            tracing::warn!(
                folder,
                p99 = shown(*p99),
                limit = shown(*limit),
                "writes are slow"
            );
        }
        Tell::SlowOver { folder, p99 } => {
            tracing::info!(folder, p99 = shown(*p99), "writes are not slow any more");
        }
        Tell::Watching {
            folder,
            ports,
            heartbeat,
        } => tracing::info!(
            folder,
            ports = ports.to_string(),
            heartbeat = shown(*heartbeat),
            "watching"
        ),
        Tell::NotWatching {
            folder,
            fenced: false,
        } => tracing::info!(folder, "not watched any more"),
        Tell::NotWatching { folder, fenced: true } => tracing::warn!(
            folder,
            "not watched any more; its ports stay fenced until it beats again, or `io-fence unfence --folder`"
        ),
        Tell::FencedByHand { ports, reason } => {
            tracing::warn!(ports = ports.to_string(), reason, "fenced by hand")
        }
        Tell::UnfencedByHand { ports, still } => {
            tracing::warn!(
                ports = ports.to_string(),
                still = still.to_string(),
                "a fence by hand was undone"
            );
        }
        Tell::Unknown { ports } => tracing::warn!(
            ports = ports.to_string(),
            "these ports were fenced already, and nobody knows why; they stay so until `io-fence unfence --ports`, or until their folder beats"
        ),
        Tell::Kept { ports } => tracing::warn!(ports = ports.to_string(), "a fence is kept over the restart"),
    }
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn root_may_report_on_what_is_another_ones_and_it_stays_that_ones() {
        assert_eq!(owner(None, 1000), Ok(1000));
        assert_eq!(owner(Some(1000), 0), Ok(1000));
        assert_eq!(owner(Some(1000), 1000), Ok(1000));
        assert_eq!(owner(Some(1000), 1001), Err(1000));
        assert_eq!(owner(Some(0), 1000), Err(0));
    }
}
