//! The store in etcd, 3.4 or later.
//!
//! **Promise.** A commit is given to a member that was there a moment ago and has a leader, once: one whose answer does not come is
//! [`StoreError::Unknown`] and is never sent again, because a second one could be refused for what the first has done. Everything else may be
//! asked of several members, and is: the next one is asked when the one before has refused, or has let its share of the time go by without an
//! answer, and the first answer counts. The member that answered last is asked first.
//!
//! **Not promised.** That a lease lasts as long as was said. A leader keeps leases alive by itself, asking nobody: one that does not know yet that
//! it leads no more may say yes. And etcd before 3.4.31 and 3.5.13 (Debian 12 has 3.4.23) ends leases that are kept alive, when the disk of
//! its leader has stalled for longer than they last and comes back (etcd's issue 15247; seen). That a key is gone with its lease is no proof that
//! whoever had it has stopped.

mod dial;
mod fault;
mod member;
mod membership;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout_at};

use self::fault::Fault;
use self::member::Member;
use self::membership::Membership;
use super::etcd_config::{EtcdConfig, EtcdConfigError};
use super::{
    Act, Condition, Entry, Is, LeaseId, Outcome, Revision, Snapshot, Store, StoreError, Transaction,
};

pub use watch::EtcdWatch;

/// Who waits for longer waits for ever; the clock can say when that is.
const TIMEOUT_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest list, in bytes. What somebody else has put below our prefix is listed, too.
const LIST_MAX_BYTES: usize = 64 << 20;

/// The longest that etcd lets a lease last, in seconds.
const TTL_MOST: i64 = 9_000_000_000;

/// Connections to all members, made when they are needed. A clone is the same.
#[derive(Clone)]
pub struct Etcd {
    cluster: Arc<Cluster>,
    silence: Duration,
}

struct Cluster {
    members: Vec<Arc<Member>>,
    /// The one that has answered last.
    current: AtomicUsize,
    /// Whether any has.
    answered: AtomicBool,
}

/// What is known when a request goes to nobody any more.
enum Ends {
    /// Nothing of it can have happened, or it would not matter.
    Harmless,
    /// It may have happened.
    Open,
}

impl Etcd {
    /// Takes up a configuration; nobody is asked yet.
    ///
    /// # Errors
    /// When TLS does not take the certificates.
    pub fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        let membership = Arc::new(Membership::new(config.endpoints.len()));
        let member = |(at, address)| {
            Member::new(
                (at, &membership),
                address,
                config.login.clone(),
                config.tls.as_ref(),
            )
            .map(Arc::new)
        };
        let members = config.endpoints.iter().enumerate();
        let members = members.map(member).collect::<Result<_, _>>()?;
        let cluster = Arc::new(Cluster {
            members,
            current: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
        });
        let silence = watch::SILENCE;
        Ok(Self { cluster, silence })
    }

    /// The same with watches that count as dead when they were silent for so long; 4 seconds if nobody says. A member is asked for a sign of
    /// life when a quarter of it is over.
    #[must_use]
    pub fn with_silence(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    /// The endpoint that has answered last: `HOST:PORT`.
    pub fn endpoint(&self) -> &str {
        let current = self.cluster.current.load(Ordering::Relaxed);
        self.cluster
            .members
            .get(current)
            .map_or("", |member| member.name.as_str())
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.cluster.members.iter().map(|member| &member.name))
            .finish()
    }
}

impl Cluster {
    /// Whom to ask: from the one that answered last around; those that were not well last, the longest ago first.
    fn order(&self) -> Vec<usize> {
        let (first, count) = (self.current.load(Ordering::Relaxed), self.members.len());
        let mut order: Vec<_> = (0..count).map(|step| (first + step) % count.max(1)).collect();
        order.sort_by_key(|&at| self.members.get(at).and_then(|member| member.ill_since()));
        order
    }

    fn is_well(&self, at: usize) {
        let Some(member) = self.members.get(at) else {
            return;
        };
        member.is_well();
        let before = self.current.swap(at, Ordering::Relaxed);
        // Who is asked first of all is no news.
        if self.answered.swap(true, Ordering::Relaxed)
            && before != at
            && let Some(left) = self.members.get(before)
        {
            let why = left.illness().unwrap_or_default();
            tracing::info!(endpoint = %member.name, from = %left.name, %why, "another member of etcd is asked from now on");
        }
    }

    /// Asks one member after the other without giving up on those before, until one has answered.
    async fn ask<T>(
        &self,
        timeout: Duration,
        ends: Ends,
        request: impl AsyncFn(&Arc<Member>, &Client) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let (began, timeout) = (Instant::now(), timeout.min(TIMEOUT_MOST));
        let deadline = began + timeout;
        let order = self.order();
        let share = timeout / u32::try_from(order.len()).unwrap_or(u32::MAX).max(1);
        let attempt = async |at: usize| {
            let member = self.members.get(at);
            match member {
                Some(member) => (at, member.ask(&request).await),
                None => (at, Err(Fault::NotDone(String::new()))),
            }
        };
        let (mut waiting, mut running) = (order.into_iter(), FuturesUnordered::new());
        let (mut asked, mut failures, mut open) = (Vec::new(), Failures::default(), false);
        let mut next = began;
        let answered = loop {
            if Instant::now() >= next
                && let Some(at) = waiting.next()
            {
                running.push(attempt(at));
                asked.push(at);
                next = Instant::now() + share;
            }
            tokio::select! {
                biased;
                result = running.next(), if !running.is_empty() => match result {
                    Some((at, Ok(answer))) => {
                        asked.retain(|&other| other != at);
                        self.is_well(at);
                        break Some(Ok(answer));
                    }
                    Some((at, Err(fault))) => {
                        asked.retain(|&other| other != at);
                        open |= matches!(fault, Fault::MaybeDone(_));
                        let Some(member) = self.members.get(at) else { continue };
                        if fault.is_final() {
                            break Some(Err(fault.at(&member.name)));
                        }
                        member.is_ill(fault.said());
                        failures.add(&member.name, fault.said());
                        next = Instant::now();
                    }
                    None => {}
                },
                () = sleep_until(next.min(deadline)), if waiting.len() > 0 && next < deadline => {}
                () = sleep_until(deadline) => break None,
                else => break None,
            }
            if running.is_empty() && waiting.len() == 0 {
                break None;
            }
        };
        // Those that were asked and have not said anything yet.
        for at in asked {
            let Some(member) = self.members.get(at) else {
                continue;
            };
            let said = format!("it has not answered in {}", shown(began.elapsed()));
            member.was_silent(&said);
            failures.add(&member.name, &said);
            open = true;
        }
        answered.unwrap_or_else(|| {
            Err(match ends {
                Ends::Open if open => StoreError::Unknown(failures.told()),
                _ => StoreError::Unavailable(failures.told()),
            })
        })
    }

    /// Gives it to one member, and to another one only while nothing of it was done.
    async fn commit(&self, txn: Txn, timeout: Duration) -> Result<Outcome, StoreError> {
        let (began, timeout) = (Instant::now(), timeout.min(TIMEOUT_MOST));
        let deadline = began + timeout;
        let order = self.order();
        let mut failures = Failures::default();
        let request = async |member: &Arc<Member>, client: &Client| {
            let answer = client
                .kv_client()
                .txn(txn.clone())
                .await
                .map_err(|error| member.fault(error))?;
            member.is_still(answer.header())?;
            let at = revision(answer.header().map_or(0, |header| header.revision()))?;
            Ok(if answer.succeeded() {
                Outcome::Done(at)
            } else {
                Outcome::Refused(at)
            })
        };
        for (done, &at) in order.iter().enumerate() {
            let Some(member) = self.members.get(at) else {
                continue;
            };
            let now = Instant::now();
            let left = u32::try_from(order.len() - done).unwrap_or(u32::MAX).max(1);
            let share = deadline.saturating_duration_since(now) / left;
            let ready = match timeout_at(now + share, member.ready()).await {
                Ok(ready) => ready,
                Err(_) => {
                    let said = format!("it has given no sign of life in {}", shown(share));
                    member.was_silent(&said);
                    Err(Fault::NotDone(said))
                }
            };
            let result = match ready {
                Err(fault) => Err(fault),
                Ok(client) => match timeout_at(deadline, member.ask_with(client, &request)).await {
                    Ok(result) => result,
                    Err(_) => {
                        let said = format!("it has not answered in {}", shown(began.elapsed()));
                        member.was_silent(&said);
                        Err(Fault::MaybeDone(said))
                    }
                },
            };
            match result {
                Ok(outcome) => {
                    self.is_well(at);
                    return Ok(outcome);
                }
                Err(Fault::NotDone(said)) => {
                    member.is_ill(&said);
                    failures.add(&member.name, &said);
                }
                Err(fault) => {
                    if !fault.is_final() {
                        member.is_ill(fault.said());
                    }
                    return Err(fault.at(&member.name));
                }
            }
        }
        Err(StoreError::Unavailable(failures.told()))
    }
}

impl Store for Etcd {
    type Watch = EtcdWatch;

    async fn grant(&self, ttl: Duration, timeout: Duration) -> Result<(LeaseId, Duration), StoreError> {
        let whole = i64::try_from(ttl.as_secs()).unwrap_or(TTL_MOST);
        let seconds = whole
            .saturating_add(i64::from(ttl.subsec_nanos() > 0))
            .clamp(1, TTL_MOST);
        // One that was granted and not heard of ends by itself.
        let grant = async |member: &Arc<Member>, client: &Client| {
            let granted = client.lease_client().grant(seconds, None).await;
            let granted = granted.map_err(|error| member.fault(error))?;
            member.is_still(granted.header())?;
            match u64::try_from(granted.ttl()) {
                Ok(seconds) if seconds > 0 && granted.id() != 0 => {
                    Ok((LeaseId(granted.id()), Duration::from_secs(seconds)))
                }
                _ => Err(Fault::MaybeDone("it has granted a lease that is none".to_owned())),
            }
        };
        self.cluster.ask(timeout, Ends::Open, grant).await
    }

    async fn keep_alive(&self, lease: LeaseId, timeout: Duration) -> Result<Duration, StoreError> {
        let keep = async |member: &Arc<Member>, client: &Client| member.keep_alive(client, lease).await;
        self.cluster.ask(timeout, Ends::Open, keep).await
    }

    async fn revoke(&self, lease: LeaseId, timeout: Duration) -> Result<(), StoreError> {
        let revoke = async |member: &Arc<Member>, client: &Client| {
            let answer = client.lease_client().revoke(lease.0).await;
            match answer.map_err(|error| member.fault(error)) {
                Ok(answer) => revision(answer.header().map_or(0, |header| header.revision())).map(|_| ()),
                Err(Fault::LeaseGone) => Ok(()),
                Err(fault) => Err(fault),
            }
        };
        self.cluster.ask(timeout, Ends::Open, revoke).await
    }

    async fn commit(&self, transaction: Transaction, timeout: Duration) -> Result<Outcome, StoreError> {
        self.cluster.commit(as_txn(&transaction), timeout).await
    }

    async fn list(&self, prefix: &str, timeout: Duration) -> Result<Snapshot, StoreError> {
        // Without `with_serializable` a read waits for what the majority has agreed on when it arrives.
        let list = async |member: &Arc<Member>, client: &Client| {
            let options = GetOptions::new().with_prefix();
            let mut keys = client.kv_client().max_decoding_message_size(LIST_MAX_BYTES);
            let answer = keys.get(prefix, Some(options)).await;
            let answer = answer.map_err(|error| member.fault(error))?;
            member.is_still(answer.header())?;
            let at = revision(answer.header().map_or(0, |header| header.revision()))?;
            let entries = answer.kvs().iter().map(entry).collect::<Result<_, _>>()?;
            Ok(Snapshot {
                revision: at,
                entries,
            })
        };
        self.cluster.ask(timeout, Ends::Harmless, list).await
    }

    async fn watch(&self, prefix: &str, after: Revision, timeout: Duration) -> Result<EtcdWatch, StoreError> {
        let open = async |member: &Arc<Member>, client: &Client| {
            let stream = watch::open(member, client, prefix, after).await?;
            let watch = EtcdWatch::new(Arc::clone(member), client.clone(), stream, after);
            Ok(watch.with_silence(self.silence))
        };
        self.cluster.ask(timeout, Ends::Harmless, open).await
    }
}

fn as_txn(transaction: &Transaction) -> Txn {
    let compares: Vec<_> = transaction.only_if.iter().flat_map(compares).collect();
    let mut acts: Vec<_> = transaction.then.iter().map(act).collect();
    if acts.is_empty() {
        // Conditions alone are answered from what one member knows, be it old; a read beside them makes them wait for the majority.
        let key = transaction
            .only_if
            .first()
            .map_or("\0", |condition| condition.key.as_str());
        acts.push(TxnOp::get(key, Some(GetOptions::new().with_count_only())));
    }
    Txn::new().when(compares).and_then(acts)
}

fn compares(Condition { key, is }: &Condition) -> Vec<Compare> {
    // A key that is not there has 0 for everything; a condition that names 0 is true of none.
    let there = || Compare::create_revision(key.as_str(), CompareOp::Greater, 0);
    match *is {
        Is::Absent => vec![Compare::create_revision(key.as_str(), CompareOp::Equal, 0)],
        Is::Present => vec![there()],
        Is::At(Revision(at)) => {
            let at = i64::try_from(at).unwrap_or(i64::MAX);
            vec![there(), Compare::mod_revision(key.as_str(), CompareOp::Equal, at)]
        }
        Is::LeasedBy(LeaseId(lease)) => {
            let mut all = vec![there(), Compare::lease(key.as_str(), CompareOp::Equal, lease)];
            if lease == 0 {
                all.push(Compare::create_revision(key.as_str(), CompareOp::Equal, 0));
            }
            all
        }
    }
}

fn act(act: &Act) -> TxnOp {
    match act {
        Act::Put { key, value, lease } => {
            let options = lease.map(|LeaseId(lease)| PutOptions::new().with_lease(lease));
            TxnOp::put(key.as_str(), value.as_str(), options)
        }
        Act::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

fn revision(number: i64) -> Result<Revision, Fault> {
    match u64::try_from(number) {
        Ok(number) if number > 0 => Ok(Revision(number)),
        _ => Err(Fault::MaybeDone(format!(
            "it has answered with a revision that is none: {number}"
        ))),
    }
}

fn entry(pair: &KeyValue) -> Result<Entry, Fault> {
    Ok(Entry {
        key: String::from_utf8_lossy(pair.key()).into_owned(),
        value: String::from_utf8_lossy(pair.value()).into_owned(),
        created: revision(pair.create_revision())?,
        modified: revision(pair.mod_revision())?,
        lease: Some(pair.lease()).filter(|&lease| lease != 0).map(LeaseId),
    })
}

/// What each member said, for one message.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn add(&mut self, endpoint: &str, said: &str) {
        self.0.push(format!("{endpoint}: {said}"));
    }

    fn told(self) -> String {
        format!("etcd {}", self.0.join("; "))
    }
}

fn shown(time: Duration) -> impl fmt::Display {
    // Neither 1s 999ms nor 2s 1ms.
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let step = if millis < 990 { 10 } else { 100 };
    humantime::format_duration(Duration::from_millis(
        millis.saturating_add(step / 2) / step * step,
    ))
}
