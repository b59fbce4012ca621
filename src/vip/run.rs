//! The shell around the core: turns the store, the kernel, the check and time into events, and effects into actions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::core::{At, Core, Effect, Event, Settings};
use super::hands::{Hands, Seen, VERIFY_EVERY};
use super::health::Told;
use super::log::Lines;
use super::memo::MemoFile;
use super::said::Said;
use super::shown::Shown;
use super::status::line;
use crate::host::{BootTimer, Link, ask_neighbours, boottime};
use crate::store::{Store, StoreError, Watch};
use crate::telemetry::notify;

/// How often all of the store is looked at, whatever was told of it: some releases of etcd lose a change (docs/STORE.md).
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// How long the store may take to be told that a lease is not needed any more.
const FAREWELL: Duration = Duration::from_millis(500);

/// What has been counted since the start, and what the core does not know of.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Counts {
    pub(super) taken: u64,
    pub(super) dropped: u64,
    pub(super) lapses: u64,
    /// What is on this host and shut now, and why.
    #[serde(default)]
    pub(super) shut: BTreeMap<IpAddr, String>,
}

/// What the socket and the figures ask.
pub(super) type Question = oneshot::Sender<(Shown, Counts)>;

impl Counts {
    fn count(&mut self, said: &Said) {
        match said {
            Said::Took { .. } => self.taken += 1,
            Said::Dropped { .. } => self.dropped += 1,
            Said::Lapsed { .. } => self.lapses += 1,
            _ => {}
        }
    }
}

/// How a daemon is told to end.
pub(super) struct Ends {
    /// Each of them ends it.
    pub(super) signals: Vec<Signal>,
}

impl Ends {
    async fn any(&mut self) {
        if self.signals.is_empty() {
            return pending().await;
        }
        let signals = self.signals.iter_mut().map(|signal| signal.recv().boxed_local());
        futures_util::future::select_all(signals).await;
    }
}

/// A daemon's parts.
pub(super) struct Daemon<S: Store> {
    pub(super) core: Core,
    pub(super) settings: Settings,
    pub(super) store: S,
    pub(super) hands: Hands,
    pub(super) memo: MemoFile,
    /// What the check says.
    pub(super) health: watch::Receiver<Told>,
    pub(super) questions: mpsc::Receiver<Question>,
    pub(super) ends: Ends,
    pub(super) keep: bool,
    /// Whether neighbours are asked at all.
    pub(super) asks: bool,
    pub(super) timer: BootTimer,
    pub(super) counts: Counts,
}

type Looked<W> = (Event, Option<W>);
type Answers<W> = FuturesUnordered<LocalBoxFuture<'static, Looked<W>>>;

fn now() -> At {
    At(boottime())
}

impl<S> Daemon<S>
where
    S: Store + 'static,
    S::Watch: 'static,
{
    /// Runs until a signal has ended it and all is given up, or kept.
    pub(super) async fn run(mut self) -> std::io::Result<()> {
        let mut answers: Answers<S::Watch> = FuturesUnordered::new();
        let mut watching: Option<S::Watch> = None;
        let mut stopping = false;
        let mut last_health = None;
        let mut shown = String::new();
        let watchdog = notify::watchdog_interval();
        let mut feed_at = Instant::now();
        let mut verify_at = Instant::now() + VERIFY_EVERY;
        let mut look_at = Instant::now() + LOOK_EVERY;
        let mut lines = Lines::default();
        let mut waiting = VecDeque::from([Event::Time]);
        loop {
            while let Some(event) = waiting.pop_front() {
                let effects = self.core.on(now(), event);
                for effect in effects {
                    if effect == Effect::Finished {
                        self.farewell(&mut answers).await;
                        return Ok(());
                    }
                    if let Effect::Say(said) = effect {
                        self.counts.count(&said);
                        lines.write(Instant::now(), &said);
                    } else {
                        self.perform(effect, &mut answers, &mut watching, &mut waiting);
                    }
                }
            }
            self.tell(&mut shown);
            // Later than that is later.
            let latest = boottime().saturating_add(Duration::from_secs(24 * 3_600));
            let wake = self.core.wake().map_or(latest, |at| at.0.min(latest));
            self.timer.arm(wake)?;
            let feed = async {
                match watchdog {
                    Some(_) => sleep_until(feed_at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                // First: what may not be held any longer is dropped before anything else is looked at.
                woken = self.timer.wait() => {
                    woken?;
                    waiting.push_back(Event::Time);
                }
                () = self.ends.any(), if !stopping => {
                    stopping = true;
                    notify::stopping(if self.keep { "ending, and keeping the addresses" } else { "giving up the addresses" });
                    waiting.push_back(Event::Stop { keep: self.keep });
                }
                seen = self.hands.next() => match seen {
                    Seen::Lost(address) => waiting.push_back(Event::Lost { address }),
                    Seen::Up => {
                        self.judge(&mut last_health, &mut waiting);
                        waiting.push_back(Event::Heal);
                    }
                    Seen::Down => self.judge(&mut last_health, &mut waiting),
                    Seen::Missed => self.look(&mut last_health, &mut waiting),
                    Seen::Nothing => {}
                },
                Ok(()) = self.health.changed() => self.judge(&mut last_health, &mut waiting),
                Some((event, new)) = answers.next(), if !answers.is_empty() => {
                    if let Some(new) = new {
                        watching = Some(new);
                    }
                    waiting.push_back(event);
                }
                changes = next_of(&mut watching) => match changes {
                    Ok(changes) => waiting.push_back(Event::Changes(changes)),
                    Err(error) => {
                        watching = None;
                        waiting.push_back(Event::WatchEnded(error));
                    }
                },
                Some(question) = self.questions.recv() => {
                    // Who has gone meanwhile does not want to know.
                    let mut counts = self.counts.clone();
                    counts.shut.clone_from(self.hands.stuck());
                    let _ = question.send((self.shown(), counts));
                }
                () = sleep_until(verify_at) => {
                    self.hands.verify();
                    lines.look(Instant::now());
                    self.give_back();
                    self.look(&mut last_health, &mut waiting);
                    verify_at = Instant::now() + VERIFY_EVERY;
                }
                () = sleep_until(look_at), if watching.is_some() => {
                    watching = None;
                    look_at = Instant::now() + LOOK_EVERY;
                    // From where it was told last nothing can be had any more: so it is looked at.
                    waiting.push_back(Event::WatchEnded(StoreError::Compacted));
                }
                () = feed => {
                    notify::watchdog();
                    feed_at = Instant::now() + watchdog.unwrap_or(Duration::from_secs(1));
                }
            }
        }
    }

    /// What is left to do when the core has finished: requests that nobody waits for, for a moment.
    async fn farewell(mut self, answers: &mut Answers<S::Watch>) {
        if self.keep {
            self.hands.leave();
            return;
        }
        self.memo.keep(None);
        drop(self.hands);
        let all = async { while answers.next().await.is_some() {} };
        let _ = timeout(FAREWELL, all).await;
    }

    /// Tells the core of what the check and the interface say together, if that has changed.
    fn judge(&mut self, last: &mut Option<Result<(), String>>, waiting: &mut VecDeque<Event>) {
        let health = match (self.hands.interface(), &*self.health.borrow_and_update()) {
            (Err(why), _) => Some(Err(why)),
            (Ok(()), told) => told.verdict.clone(),
        };
        if let Some(health) = health.filter(|health| last.as_ref() != Some(health)) {
            *last = Some(health.clone());
            waiting.push_back(Event::Health(health));
        }
    }

    /// What the core shows, with the reason for which the check fails now in place of that of its verdict.
    fn shown(&self) -> Shown {
        let mut shown = self.core.status(now());
        let told = self.health.borrow();
        if let (Some(Err(of_verdict)), Some(latest)) = (&told.verdict, &told.latest)
            && shown.because.as_ref() == Some(of_verdict)
        {
            shown.because = Some(latest.clone());
        }
        shown
    }

    /// Leaves to others on this host what is of the pool no more, when no node can have it any longer.
    fn give_back(&mut self) {
        let status = self.core.status(now());
        if status.revision.is_none() {
            return;
        }
        let asked_for = status.nodes.iter().filter_map(|node| node.ttl_ms).max();
        let longest = Duration::from_millis(asked_for.unwrap_or_default()).max(self.settings.ttl);
        let is_pooled = |address: &IpAddr| status.pool.iter().any(|pooled| pooled.address == *address);
        self.hands.give_back(longest, is_pooled);
    }

    /// Tells the core of what is missing on the interface, whatever was told of it, and judges.
    fn look(&mut self, last: &mut Option<Result<(), String>>, waiting: &mut VecDeque<Event>) {
        let missing = self.hands.missing();
        waiting.extend(missing.into_iter().map(|address| Event::Lost { address }));
        self.judge(last, waiting);
    }

    fn perform(
        &mut self,
        effect: Effect,
        answers: &mut Answers<S::Watch>,
        watching: &mut Option<S::Watch>,
        waiting: &mut VecDeque<Event>,
    ) {
        let (store, patience, sent) = (self.store.clone(), self.settings.patience, now());
        match effect {
            Effect::Grant { ttl } => answers.push(
                async move {
                    let result = store.grant(ttl, patience).await;
                    (Event::Granted { sent, result }, None)
                }
                .boxed_local(),
            ),
            Effect::KeepAlive { lease } => answers.push(
                async move {
                    let result = store.keep_alive(lease, patience).await;
                    (Event::KeptAlive { lease, sent, result }, None)
                }
                .boxed_local(),
            ),
            Effect::Revoke { lease } => answers.push(
                async move {
                    if let Err(error) = store.revoke(lease, patience).await {
                        tracing::debug!(%lease, %error, "cannot revoke the lease; it ends by itself");
                    }
                    (Event::Time, None)
                }
                .boxed_local(),
            ),
            Effect::Commit { ticket, transaction } => answers.push(
                async move {
                    let result = store.commit(transaction, patience).await;
                    (Event::Committed { ticket, sent, result }, None)
                }
                .boxed_local(),
            ),
            Effect::Look => {
                *watching = None;
                let prefix = self.settings.prefix.clone();
                answers.push(
                    async move {
                        match look(&store, &prefix, patience).await {
                            Ok((snapshot, watch)) => (Event::Looked(Ok(snapshot)), Some(watch)),
                            Err(error) => (Event::Looked(Err(error)), None),
                        }
                    }
                    .boxed_local(),
                );
            }
            Effect::Take { address, until } => {
                let result = self.hands.take(address, until);
                waiting.push_back(Event::Taken { address, result });
            }
            Effect::Extend { until } => self.hands.extend(until),
            Effect::Drop { address } => {
                let result = self.hands.drop(address);
                waiting.push_back(Event::Dropped { address, result });
            }
            Effect::Announce { address } => self.hands.announce(address),
            Effect::Ask { addresses } if !self.asks => waiting.push_back(Event::Answered {
                addresses,
                found: BTreeMap::new(),
            }),
            Effect::Ask { addresses } => {
                let here = self.hands.strangers(&addresses);
                answers.push(ask(addresses, here).map(|event| (event, None)).boxed_local());
            }
            // Done by who calls this.
            Effect::Say(_) | Effect::Finished => {}
        }
    }

    /// Keeps what the next start must know, and shows what is.
    fn tell(&mut self, shown: &mut String) {
        let status = self.shown();
        self.memo.keep(status.lease.as_deref());
        let line = line(&status);
        if *shown != line {
            notify::status(&line);
            *shown = line;
        }
    }
}

/// Asks the neighbours, where that keeps nobody: it takes a third of a second, and to close a packet socket takes the kernel a while.
///
/// What nobody could be asked for is not told of: the core asks again.
async fn ask(addresses: BTreeSet<IpAddr>, here: (BTreeMap<IpAddr, String>, Result<Link, String>)) -> Event {
    let (mut found, link) = here;
    let mut told: BTreeSet<IpAddr> = found.keys().copied().collect();
    let others: BTreeSet<IpAddr> = addresses.difference(&told).copied().collect();
    let (v4, v6): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = others.into_iter().partition(IpAddr::is_ipv4);
    // Each family by itself: an interface may be without the other one, or have it in two seconds.
    let families = [v4, v6].map(|family| ask_one(link.clone(), family));
    for (family, asked) in join_all(families).await {
        match asked {
            Ok(asked) => {
                told.extend(family);
                found.extend(asked);
            }
            Err(error) => tracing::warn!(
                error,
                addresses = %family.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                "the neighbours cannot be asked whether somebody has an address of the pool already; trying again, and in the end it is taken as if nobody had"
            ),
        }
    }
    Event::Answered {
        addresses: told,
        found,
    }
}

type Asked = (BTreeSet<IpAddr>, Result<BTreeMap<IpAddr, String>, String>);

async fn ask_one(link: Result<Link, String>, family: BTreeSet<IpAddr>) -> Asked {
    if family.is_empty() {
        return (family, Ok(BTreeMap::new()));
    }
    let link = match link {
        Ok(link) => link,
        Err(error) => return (family, Err(error)),
    };
    let of = family.clone();
    let asked = tokio::task::spawn_blocking(move || ask_neighbours(&link, &of)).await;
    let asked = asked
        .map_err(|error| error.to_string())
        .and_then(|asked| asked.map_err(|error| error.to_string()));
    (family, asked)
}

async fn look<S: Store>(
    store: &S,
    prefix: &str,
    patience: Duration,
) -> Result<(crate::store::Snapshot, S::Watch), StoreError> {
    let snapshot = store.list(prefix, patience).await?;
    let watch = store.watch(prefix, snapshot.revision, patience).await?;
    Ok((snapshot, watch))
}

async fn next_of<W: Watch>(watching: &mut Option<W>) -> Result<crate::store::Changes, StoreError> {
    match watching {
        Some(watch) => watch.next().await,
        None => pending().await,
    }
}
