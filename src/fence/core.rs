//! What the monitor decides: which ports are fenced, and why. No clock, no socket, no process: time is an argument, `monitor` is the shell.
//!
//! Invariants, checked by property tests:
//! - While a watched folder has not beaten for its heartbeat, and its disk was not seen to complete a write in that time, its ports are fenced,
//!   whoever shares them; at the busy limit, whatever the disk does.
//! - Ports that somebody has fenced by hand are fenced until somebody undoes it by hand.
//! - A folder's fence ends only when the folder has beaten for `unfence_after`, with no gap of a heartbeat in it.
//! - A monitor that starts fences all that it finds fenced, and what its memory says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

pub(super) use super::events::{
    ByHand, Effect, Event, Kept, Kind, Memo, Target, Tell, Verdict, Verdicts, Watch, Why,
};
use super::latency::Latency;
use super::patience::Patience;
use crate::host::Ports;

/// A monitor that is told the time this much after it asked to be was held itself (a frozen virtual machine, a processor that others had): what
/// beat meanwhile could not be heard.
const LATE: Duration = Duration::from_millis(150);
/// How often at most a folder's latency is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A folder, and all that is known of it.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) ports: Ports,
    /// None when no reporter has told of it since the start, or it has said goodbye.
    pub(super) watch: Option<Watch>,
    registered: Instant,
    /// Since when it is open, while it is.
    pub(super) opened: Instant,
    pub(super) last_beat: Option<Instant>,
    pub(super) fenced: Option<Fenced>,
    pub(super) trouble: Option<(Kind, String)>,
    /// Since the last beat, while it is open.
    pub(super) patience: Patience,
    /// The monitor itself was held: until then no silence counts. Once for each silence.
    excuse: Option<Instant>,
    pub(super) latency: Latency,
    looked: Option<Instant>,
    slow: bool,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) ok: u64,
    pub(super) failed: BTreeMap<Kind, u64>,
    pub(super) fences: u64,
    /// How often it was not fenced because its disk was seen to work.
    pub(super) spared: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Fenced {
    pub(super) since: Instant,
    pub(super) why: Why,
    /// Since when it beats again.
    pub(super) proving: Option<Instant>,
}

impl Folder {
    fn new(now: Instant, ports: Ports) -> Self {
        Self {
            ports,
            watch: None,
            registered: now,
            opened: now,
            last_beat: None,
            fenced: None,
            trouble: None,
            patience: Patience::default(),
            excuse: None,
            latency: Latency::default(),
            looked: None,
            slow: false,
            counts: Counts::default(),
        }
    }

    /// When silence becomes a stall.
    fn deadline(&self, started: Instant) -> Option<Instant> {
        let watch = self.watch.as_ref()?;
        let silent = match self.last_beat {
            Some(beat) => self.patience.until(beat, watch),
            None => (self.registered + watch.heartbeat).max(started + watch.wait),
        };
        Some(self.excuse.map_or(silent, |until| silent.max(until)))
    }

    /// When its disk is to be looked at, and what its last beat was. One that is fenced has to beat.
    fn look_at(&self) -> Option<(Instant, Instant)> {
        let (watch, beat) = (self.watch.as_ref()?, self.last_beat?);
        let look = self.patience.look_at(beat, watch)?;
        self.fenced.is_none().then_some((look, beat))
    }

    /// How long ago its last beat was, where it would be fenced if its disk were not seen to work.
    pub(super) fn spared(&self, now: Instant) -> Option<(Duration, &Watch)> {
        let (watch, beat) = (self.watch.as_ref()?, self.last_beat?);
        let age = now.saturating_duration_since(beat);
        let is = self.fenced.is_none() && age >= watch.heartbeat && now < self.patience.until(beat, watch);
        is.then_some((age, watch))
    }

    /// When its fence ends, as far as is known now.
    fn healed(&self) -> Option<Instant> {
        Some(self.fenced.as_ref()?.proving? + self.watch.as_ref()?.unfence_after)
    }

    fn fence(&mut self, now: Instant, why: Why) {
        self.counts.fences += 1;
        self.fenced = Some(Fenced {
            since: now,
            why,
            proving: None,
        });
        self.patience = Patience::default();
    }
}

/// The state of all that. See the module for its invariants.
pub(super) struct Core {
    started: Instant,
    pub(super) folders: BTreeMap<String, Folder>,
    pub(super) by_hand: Vec<ByHand>,
    /// Fenced at the start, and nobody knows why.
    pub(super) unknown: Ports,
    enforced: Ports,
    /// What those who are to be told are being told; None when the monitor before this one was in the middle of it, and nobody knows
    /// what has reached them. ...
    announced: Option<bool>,
    /// ... And what they have been told: over a restart, too, so that nobody is left drained.
    told: bool,
    /// They are being told now.
    telling: bool,
    expected: Option<Instant>,
}

impl Core {
    /// A monitor that starts, with what it remembers and what the kernel's sets hold. All of that is fenced.
    pub(super) fn start(now: Instant, memo: Memo, found: &Ports) -> (Self, Vec<Effect>) {
        let mut core = Self {
            started: now,
            folders: BTreeMap::new(),
            by_hand: memo.by_hand,
            unknown: Ports::default(),
            enforced: found.clone(),
            announced: (!memo.telling).then_some(memo.told),
            told: memo.told,
            telling: memo.telling,
            expected: None,
        };
        for (path, kept) in memo.folders {
            let mut folder = Folder::new(now, kept.ports);
            folder.fenced = Some(Fenced {
                since: kept.since,
                why: kept.why,
                proving: None,
            });
            core.folders.insert(path, folder);
        }
        core.unknown = found.without(&core.fenced());
        let mut tells = Vec::new();
        let all = core.fenced();
        if !all.is_empty() {
            tells.push(Tell::Kept { ports: all });
        }
        if !core.unknown.is_empty() {
            tells.push(Tell::Unknown {
                ports: core.unknown.clone(),
            });
        }
        let effects = core.finish(&Memo::default(), tells, None);
        (core, effects)
    }

    /// All that is fenced.
    pub(super) fn fenced(&self) -> Ports {
        let mut all = self.unknown.clone();
        for folder in self.folders.values().filter(|folder| folder.fenced.is_some()) {
            all.add(&folder.ports);
        }
        for hand in &self.by_hand {
            all.add(&hand.ports);
        }
        all
    }

    /// How many folders are known.
    pub(super) fn count(&self) -> usize {
        self.folders.len()
    }

    /// Whether this one is.
    pub(super) fn knows(&self, path: &str) -> bool {
        self.folders.contains_key(path)
    }

    /// What must outlive this monitor.
    pub(super) fn memo(&self) -> Memo {
        let folders = self.folders.iter().filter_map(|(path, folder)| {
            let fenced = folder.fenced.as_ref()?;
            let kept = Kept {
                ports: folder.ports.clone(),
                why: fenced.why.clone(),
                since: fenced.since,
            };
            Some((path.clone(), kept))
        });
        Memo {
            folders: folders.collect(),
            by_hand: self.by_hand.clone(),
            told: self.told,
            telling: self.telling,
        }
    }

    /// When something is to be looked at or decided although nothing happens: then [`Event::Looked`] is due, where [`Core::to_look_at`] names
    /// any, and then [`Event::Time`].
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let looks = self.folders.values().filter_map(Folder::look_at);
        looks.map(|(at, _)| at).chain(self.decides_at()).min()
    }

    /// Folders whose disks are to be looked at now, with the time of their last beat. Before anything else is decided.
    pub(super) fn to_look_at(&self, now: Instant) -> Vec<(String, Instant)> {
        let due = self.folders.iter().filter_map(|(path, folder)| {
            let (at, beat) = folder.look_at()?;
            (at <= now).then(|| (path.clone(), beat))
        });
        due.collect()
    }

    fn decides_at(&self) -> Option<Instant> {
        let of = |folder: &Folder| match &folder.fenced {
            None => folder.deadline(self.started),
            Some(fenced) => {
                let stalls = folder.deadline(self.started).filter(|_| fenced.proving.is_some());
                folder.healed().into_iter().chain(stalls).min()
            }
        };
        self.folders.values().filter_map(of).min()
    }

    /// Decides.
    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let before = self.memo();
        if self
            .expected
            .is_some_and(|at| now.saturating_duration_since(at) > LATE)
        {
            self.excuse_all(now);
        }
        let mut tells = Vec::new();
        let mut answer = None;
        match event {
            Event::Registered { folder, watch } => self.registered(now, folder, *watch, &mut tells),
            Event::Beat { folder, took } => self.beat(now, &folder, took, &mut tells),
            Event::Failed { folder, kind, text } => self.failed(now, &folder, kind, text, &mut tells),
            Event::Goodbye { folder } => self.goodbye(&folder, &mut tells),
            Event::Fence { target, reason } => {
                answer = Some(self.fence_by_hand(now, target, reason, &mut tells));
            }
            Event::Unfence { target } => answer = Some(self.unfence_by_hand(now, target, &mut tells)),
            Event::Looked(seen) => self.looked(now, seen),
            Event::Announced(fenced) => {
                self.told = fenced;
                self.telling = self.announced != Some(fenced);
            }
            Event::Time => {}
        }
        self.settle(now, &mut tells);
        self.finish(&before, tells, answer)
    }

    /// Nobody could be heard: once, a silence is given the time in which a reporter that lives beats.
    fn excuse_all(&mut self, now: Instant) {
        for folder in self.folders.values_mut() {
            if let (Some(watch), None) = (&folder.watch, folder.excuse) {
                folder.excuse = Some(now + watch.heartbeat / 2);
            }
        }
    }

    fn registered(&mut self, now: Instant, path: String, watch: Watch, tells: &mut Vec<Tell>) {
        let claimed = self.unknown.shared_with(&watch.ports);
        let folder = self
            .folders
            .entry(path.clone())
            .or_insert_with(|| Folder::new(now, watch.ports.clone()));
        if folder.watch.is_none() {
            // One that registers again while it is watched gains no time by it.
            folder.registered = now;
            folder.last_beat = None;
            folder.patience = Patience::default();
        }
        if folder.watch.as_ref() != Some(&watch) {
            tells.push(Tell::Watching {
                folder: path.clone(),
                ports: watch.ports.clone(),
                heartbeat: watch.heartbeat,
            });
        }
        folder.ports = watch.ports.clone();
        folder.watch = Some(watch);
        if !claimed.is_empty() && folder.fenced.is_none() {
            folder.fence(now, Why::Found);
        }
        self.unknown = self.unknown.without(&claimed);
        for hand in &mut self.by_hand {
            if matches!(&hand.target, Target::Folder(of) if *of == path) {
                hand.ports = folder.ports.clone();
            }
        }
    }

    fn beat(&mut self, now: Instant, path: &str, took: Duration, tells: &mut Vec<Tell>) {
        let Some(folder) = self.folders.get_mut(path).filter(|folder| folder.watch.is_some()) else {
            return;
        };
        folder.counts.ok += 1;
        folder.latency.add(now, took);
        if let Some((kind, _)) = folder.trouble.take() {
            tells.push(Tell::TroubleOver {
                folder: path.to_owned(),
                kind,
            });
        }
        Self::alive(now, path, folder, tells);
        let due = folder
            .looked
            .is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY);
        let (Some(watch), Some(p99), true) = (&folder.watch, folder.latency.p99(now), due) else {
            return;
        };
        folder.looked = Some(now);
        let slow = p99 > watch.warn_latency;
        if slow != folder.slow {
            folder.slow = slow;
            let folder = path.to_owned();
            tells.push(if slow {
                Tell::Slow {
                    folder,
                    p99,
                    limit: watch.warn_latency,
                }
            } else {
                Tell::SlowOver { folder, p99 }
            });
        }
    }

    fn alive(now: Instant, path: &str, folder: &mut Folder, tells: &mut Vec<Tell>) {
        let before = folder.last_beat.replace(now);
        let patience = std::mem::take(&mut folder.patience);
        if let (Some(before), true) = (before, patience.said) {
            tells.push(Tell::BusyOver {
                folder: path.to_owned(),
                after: now.saturating_duration_since(before),
            });
        }
        folder.excuse = None;
        if let Some(fenced) = &mut folder.fenced {
            fenced.proving.get_or_insert(now);
        }
    }

    fn looked(&mut self, now: Instant, seen: Vec<(String, bool)>) {
        for (path, works) in seen {
            if let Some(folder) = self.folders.get_mut(&path)
                && folder.look_at().is_some()
                && let Some(watch) = &folder.watch
            {
                folder.patience.looked(now, watch, works);
            }
        }
    }

    fn failed(&mut self, now: Instant, path: &str, kind: Kind, text: String, tells: &mut Vec<Tell>) {
        let started = self.started;
        let Some(folder) = self.folders.get_mut(path) else {
            return;
        };
        let Some(watch) = folder.watch.clone() else {
            return;
        };
        *folder.counts.failed.entry(kind).or_default() += 1;
        let verdict = watch.on_error.of(kind);
        let is_new = folder.trouble.as_ref().is_none_or(|(known, _)| *known != kind);
        // At a boot a folder may come late. Then its deadline decides.
        let may_come = folder.fenced.is_none() && folder.last_beat.is_none() && now < started + watch.wait;
        if is_new && verdict != Verdict::Ignore {
            tells.push(Tell::Trouble {
                folder: path.to_owned(),
                kind,
                text: text.clone(),
                verdict: if may_come { Verdict::Warn } else { verdict },
            });
        }
        if verdict != Verdict::Ignore {
            folder.trouble = Some((kind, text.clone()));
        }
        if verdict != Verdict::Fence {
            // It came back, so the disk answers.
            Self::alive(now, path, folder, tells);
            return;
        }
        let why = Why::Failed { kind, text };
        match &mut folder.fenced {
            Some(fenced) => {
                fenced.proving = None;
                if is_new {
                    fenced.why = why;
                }
            }
            None if may_come => {}
            None => self.fence_folder(now, path, why, tells),
        }
    }

    fn fence_folder(&mut self, now: Instant, path: &str, why: Why, tells: &mut Vec<Tell>) {
        if let Some(folder) = self.folders.get_mut(path) {
            let worked = folder.patience.worked;
            folder.fence(now, why.clone());
            tells.push(Tell::Fenced {
                folder: path.to_owned(),
                ports: folder.ports.clone(),
                why,
                last_beat: folder.last_beat.map(|at| now.saturating_duration_since(at)),
                worked: worked.map(|at| now.saturating_duration_since(at)),
            });
        }
    }

    fn goodbye(&mut self, path: &str, tells: &mut Vec<Tell>) {
        let Some(folder) = self.folders.get_mut(path).filter(|folder| folder.watch.is_some()) else {
            return;
        };
        // A fence that is on stays: that nobody looks is no proof that the disk is back.
        let fenced = folder.fenced.is_some();
        folder.watch = None;
        folder.trouble = None;
        folder.patience = Patience::default();
        folder.excuse = None;
        if let Some(fenced) = &mut folder.fenced {
            fenced.proving = None;
        } else {
            self.folders.remove(path);
        }
        tells.push(Tell::NotWatching {
            folder: path.to_owned(),
            fenced,
        });
    }

    fn fence_by_hand(
        &mut self,
        now: Instant,
        target: Target,
        reason: String,
        tells: &mut Vec<Tell>,
    ) -> Result<String, String> {
        let ports = match &target {
            Target::Ports(ports) => ports.clone(),
            Target::Folder(path) => match self.folders.get(path) {
                Some(folder) => folder.ports.clone(),
                None => return Err(self.no_such_folder(path)),
            },
        };
        self.by_hand.retain(|hand| hand.target != target);
        self.by_hand.push(ByHand {
            target,
            ports: ports.clone(),
            reason: reason.clone(),
            since: now,
        });
        let answer = format!("fenced by hand: {ports}; they stay so until `io-fence unfence`");
        tells.push(Tell::FencedByHand { ports, reason });
        Ok(answer)
    }

    fn unfence_by_hand(
        &mut self,
        now: Instant,
        target: Target,
        tells: &mut Vec<Tell>,
    ) -> Result<String, String> {
        let undone = match &target {
            Target::Folder(path) => self.unfence_folder(now, path)?,
            Target::Ports(ports) => self.unfence_ports(ports)?,
        };
        let still = undone.shared_with(&self.fenced());
        let mut answer = format!("undone: {undone}");
        if !still.is_empty() {
            answer.push_str(&format!("; still fenced: {still}: {}", self.holders(now, &still)));
        }
        tells.push(Tell::UnfencedByHand { ports: undone, still });
        Ok(answer)
    }

    fn unfence_folder(&mut self, now: Instant, path: &str) -> Result<Ports, String> {
        let is_it = |hand: &ByHand| matches!(&hand.target, Target::Folder(of) if of == path);
        let mut undone = Ports::default();
        for hand in self.by_hand.iter().filter(|hand| is_it(hand)) {
            undone.add(&hand.ports);
        }
        self.by_hand.retain(|hand| !is_it(hand));
        match self.folders.get(path) {
            // Nobody watches it: a person must know better.
            Some(folder) if folder.watch.is_none() && folder.fenced.is_some() => {
                undone.add(&folder.ports);
                self.folders.remove(path);
            }
            Some(folder) if undone.is_empty() && folder.fenced.is_some() => {
                return Err(format!(
                    "{path} is not fenced by hand, but because of its disk ({}): it opens when it has beaten for {}",
                    self.holders(now, &folder.ports),
                    humantime::format_duration(
                        folder.watch.as_ref().map_or(Duration::ZERO, |w| w.unfence_after)
                    )
                ));
            }
            None if undone.is_empty() => return Err(self.no_such_folder(path)),
            _ if undone.is_empty() => return Err(format!("{path} is not fenced by hand")),
            _ => {}
        }
        Ok(undone)
    }

    fn unfence_ports(&mut self, ports: &Ports) -> Result<Ports, String> {
        let mut undone = self.unknown.shared_with(ports);
        for hand in self
            .by_hand
            .iter()
            .filter(|hand| matches!(hand.target, Target::Ports(_)))
        {
            undone.add(&hand.ports.shared_with(ports));
        }
        let others = ports.without(&undone);
        if !others.is_empty() {
            return Err(format!(
                "{others}: not fenced by hand as ports; nothing was undone; `io-fence status` shows what is, and how"
            ));
        }
        self.unknown = self.unknown.without(ports);
        for hand in &mut self.by_hand {
            if let Target::Ports(of) = &mut hand.target {
                *of = of.without(ports);
                hand.ports = of.clone();
            }
        }
        self.by_hand
            .retain(|hand| !matches!(&hand.target, Target::Ports(of) if of.is_empty()));
        Ok(undone)
    }

    fn no_such_folder(&self, path: &str) -> String {
        let known: Vec<_> = self.folders.keys().map(String::as_str).collect();
        let known = if known.is_empty() {
            "no folder".to_owned()
        } else {
            known.join(", ")
        };
        format!("{path:?} is not watched; there is {known}; or name ports with --ports")
    }

    /// What fences these ports, in words.
    pub(super) fn holders(&self, now: Instant, ports: &Ports) -> String {
        let mut all = Vec::new();
        for (path, folder) in &self.folders {
            if let Some(fenced) = &folder.fenced
                && !folder.ports.shared_with(ports).is_empty()
            {
                let long = now.saturating_duration_since(fenced.since).as_secs();
                all.push(format!("{path}, {}, for {long}s", fenced.why));
            }
        }
        for hand in &self.by_hand {
            if !hand.ports.shared_with(ports).is_empty() {
                all.push(format!("by hand: {}", hand.reason));
            }
        }
        if !self.unknown.shared_with(ports).is_empty() {
            all.push("found at the start, nobody knows why".to_owned());
        }
        all.join("; ")
    }

    /// What follows from the time alone.
    fn settle(&mut self, now: Instant, tells: &mut Vec<Tell>) {
        let paths: BTreeSet<_> = self.folders.keys().cloned().collect();
        let mut over = Vec::new();
        for path in paths {
            let started = self.started;
            let Some(folder) = self.folders.get_mut(&path) else {
                continue;
            };
            let spared = folder.spared(now).filter(|_| !folder.patience.said);
            if let Some((last_beat, watch)) = spared {
                tells.push(Tell::Busy {
                    folder: path.clone(),
                    last_beat,
                    limit: watch.busy_limit,
                });
                folder.patience.said = true;
                folder.counts.spared += 1;
            }
            let stalls = folder.deadline(started).is_some_and(|at| now >= at);
            let healed = folder.healed().is_some_and(|at| now >= at);
            match &mut folder.fenced {
                None if stalls => {
                    let why = match &folder.trouble {
                        Some((kind, text)) if folder.last_beat.is_none() => Why::Failed {
                            kind: *kind,
                            text: text.clone(),
                        },
                        _ => Why::Silent,
                    };
                    self.fence_folder(now, &path, why, tells);
                }
                Some(fenced) if stalls => fenced.proving = None,
                Some(fenced) if healed => {
                    over.push((
                        path,
                        folder.ports.clone(),
                        now.saturating_duration_since(fenced.since),
                    ));
                    folder.fenced = None;
                    folder.opened = now;
                }
                _ => {}
            }
        }
        let fenced = self.fenced();
        for (folder, ports, after) in over {
            let still = ports.shared_with(&fenced);
            tells.push(Tell::Unfenced {
                folder,
                ports,
                after,
                still,
            });
        }
    }

    fn finish(
        &mut self,
        before: &Memo,
        tells: Vec<Tell>,
        answer: Option<Result<String, String>>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let fenced = self.fenced();
        if fenced != self.enforced {
            let new = fenced.without(&self.enforced);
            effects.push(Effect::Enforce(fenced.clone()));
            if !new.is_empty() {
                effects.push(Effect::Cut(new));
            }
        }
        let news = Some(!fenced.is_empty()).filter(|now| self.announced != Some(*now));
        if news.is_some() {
            self.announced = news;
            self.telling = true;
        }
        let memo = self.memo();
        if memo != *before {
            effects.push(Effect::Remember(memo.into()));
        }
        effects.extend(answer.map(Effect::Answer));
        effects.extend(news.map(Effect::Announce));
        effects.extend(tells.into_iter().map(Effect::Tell));
        self.enforced = fenced;
        self.expected = self.decides_at();
        effects
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
