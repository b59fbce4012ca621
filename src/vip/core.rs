//! Decides who holds which address: a plain state machine, with no clock, no socket and no kernel.
//!
//! **Promise.** While no clock is faster or slower than others by more than the margin allows (docs/TIMING.md), no two hosts hold an address at
//! the same time, whatever is lost, late, doubled, frozen or killed.
//!
//! Why that is so:
//! - A holder may hold `until`: its `ttl` after it has *sent* the last sign of life that the store has acknowledged, less its margin; and no longer
//!   than its lease lives, counted in the same way. It says in the store how long its `ttl` is (`ttl/<lease>`).
//! - Whoever takes an address from it has *seen* the store's last sign of life of it at least that `ttl` ago, and takes it by a transaction that
//!   fails if there is a newer one. All signs of life that were acknowledged before were sent before that one was seen: `until` is past.
//! - A sign of life that the store gets after the address was taken is acknowledged to a holder whose `until` was past in between. It notices
//!   that before it looks at any answer, has dropped everything, and begins a new *term*: a claim of an earlier term is nothing, whatever its answer says.
//! - What is held again is claimed again, by a transaction that names the mark's revision. So no request that is late can take a mark away
//!   from under an address that is held.
//! - A mark is taken away only when the kernel has said that the address is down, or when it must be, since its own `until` is past.
//!
//! `event` has what happens and what is done about it, `session` the lease and the signs of life, `answers` what the store says, `slots` what is on the
//! interface, `neighbours` what else is on the network, `marks` whose each address should be and what is written about it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Add;
use std::time::Duration;

use super::keys::Keys;
use super::said::Said;
use super::view::View;
use crate::store::{LeaseId, Revision, Transaction};

mod answers;
mod event;
mod marks;
mod neighbours;
mod session;
mod show;
mod slots;

pub use event::{Effect, Event};
use slots::{Slot, What};

/// A moment of this host's CLOCK_BOOTTIME: monotonic, and it counts suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At(pub Duration);

impl Add<Duration> for At {
    type Output = Self;

    fn add(self, more: Duration) -> Self {
        Self(self.0.saturating_add(more))
    }
}

impl At {
    /// How long it is since `earlier`; nothing when that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// A moment before; not before the clock began.
    #[must_use]
    pub fn less(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

/// What a node goes by. Validated: `interval * 3 + margin <= ttl`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name in the store: the host's name.
    pub node: String,
    /// `/<namespace>/<cluster>/`, with both slashes.
    pub prefix: String,
    /// How long a node that is not heard of is waited for.
    pub ttl: Duration,
    /// How long before the end of that it gives up what it holds.
    pub margin: Duration,
    /// Between two signs of life.
    pub interval: Duration,
    /// How long an answer of the store is waited for; the shell ends each request by then.
    pub patience: Duration,
}

/// Marks a request, so that its answer is known. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a node that was here before this one has left for it (`--on-stop keep`, or killed): the lease goes on, and so may the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inheritance {
    /// Its lease.
    pub lease: LeaseId,
    /// Until when its addresses may be held without another sign of life.
    pub until: At,
    /// What is on the interface and alive in the kernel.
    pub addresses: BTreeSet<IpAddr>,
}

/// How long after a take the neighbours are told again: some are not ready to hear it at once, and some do not hear it the first time.
const ANNOUNCED_AFTER: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// And then again and again, for those who forget.
const ANNOUNCED_EVERY: Duration = Duration::from_secs(60);
/// How long an address that could not be taken is left to others; that doubles each time.
const TROUBLE_FIRST: Duration = Duration::from_secs(5);
/// And is no longer than this.
const TROUBLE_LONGEST: Duration = Duration::from_secs(60);
/// An address that could not be taken stays with whoever can hold it for so long after that, and each time for longer.
const UNTRIED_FIRST: Duration = Duration::from_secs(10 * 60);
/// But no longer than this.
const UNTRIED_LONGEST: Duration = Duration::from_secs(60 * 60);
/// An address that is held for so long is no trouble any more.
const TROUBLE_FORGOTTEN: Duration = Duration::from_secs(60);
/// So often within [`TROUBLE_FORGOTTEN`] an address that somebody takes off the interface is put there again.
const LOSSES: u32 = 3;
/// How long the neighbours' answers are waited for, each time. The shell needs a third of a second.
const ASKED_FOR: Duration = Duration::from_secs(2);
/// So often they are asked. That the answers do not come must not keep an address from everybody.
/// An interface that has just come up cannot ask by IPv6 for two seconds (duplicate address detection).
const ASKED_TIMES: u32 = 3;
/// Requests about addresses that wait for an answer at the same time.
const REQUESTS: usize = 64;
/// The longest pause after something that the store did not do.
const PAUSE_LONGEST: Duration = Duration::from_secs(2);
/// Own leases of before that are remembered.
const FORMER: usize = 8;

/// A request of which there is one at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// When, while its answer is waited for.
    sent: Option<At>,
    /// When to ask next.
    due: At,
    /// How often it has failed since it did not.
    failed: u32,
}

impl Asked {
    fn is_due(&self, now: At) -> bool {
        self.sent.is_none() && now >= self.due
    }

    fn failed(&mut self, now: At, pause: Duration) {
        self.sent = None;
        let pause = pause.saturating_mul(1 << self.failed.min(8)).min(PAUSE_LONGEST);
        self.due = now + pause;
        self.failed = self.failed.saturating_add(1);
    }

    fn next(&self, gives_up: Duration) -> At {
        self.sent.map_or(self.due, |sent| sent + gives_up)
    }
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: LeaseId,
    /// It lives at least until then. None: nobody has said so to this process.
    ends: Option<At>,
}

/// Where this node's key in the store stands. It is believed of the view only from the revision on that is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advert {
    Out(Revision),
    In(Revision),
    /// It is to be taken away.
    Leaving(Revision),
}

#[derive(Clone, Debug)]
enum Purpose {
    Join,
    Beat,
    Leave,
    Slot { address: IpAddr, what: What },
}

#[derive(Clone, Debug)]
struct Request {
    sent: At,
    /// By which lease.
    lease: Option<LeaseId>,
    purpose: Purpose,
}

#[derive(Clone, Debug)]
struct Stop {
    by: At,
}

/// It ends, and keeps all: what one more sign of life is still waited for, so that the next instance has a whole `ttl`.
#[derive(Clone, Debug)]
struct Keep {
    /// None: it is not worth while.
    sign: Option<Ticket>,
    by: At,
}

/// What went wrong with the store.
#[derive(Clone, Debug)]
struct StoreFault {
    error: String,
    at: At,
}

/// Something that the store does not do, again and again.
#[derive(Clone, Copy, Debug)]
struct Failing {
    since: At,
    times: u32,
    /// That it fails was said.
    told: bool,
}

/// What is to be done: on the host first, in the order in which it was decided.
#[derive(Clone, Debug, Default)]
struct Todo {
    host: Vec<Effect>,
    store: Vec<Effect>,
    rest: Vec<Effect>,
    last: Vec<Effect>,
}

impl Todo {
    fn say(&mut self, said: Said) {
        self.rest.push(Effect::Say(said));
    }

    fn all(&mut self) -> Vec<Effect> {
        let Self {
            mut host,
            store,
            rest,
            last,
        } = std::mem::take(self);
        host.extend(store);
        host.extend(rest);
        host.extend(last);
        host
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Core {
    settings: Settings,
    keys: Keys,
    view: View,
    now: At,
    /// None: the check has not said anything yet.
    health: Option<Result<(), String>>,
    /// What was inherited is held until something speaks against it.
    inherits: bool,
    stop: Option<Stop>,
    keep: Option<Keep>,
    finished: bool,

    lease: Option<Lease>,
    /// Those that this process had. What was held by them is down.
    former: VecDeque<LeaseId>,
    /// Whether the store knows how long this lease's holder is to be waited for.
    has_told_ttl: bool,
    advert: Advert,
    /// When the last sign of life was sent that the store has acknowledged, in this term.
    beat: Option<At>,
    /// Until when what is held may be held. None: nothing may.
    until: Option<At>,
    /// What the kernel was told of that.
    extended: Option<At>,
    /// Each time that `until` passes, or the key is lost, a new one begins.
    term: u64,
    /// The other instance that has this node's name, once that was said.
    rival: Option<LeaseId>,
    /// Why this node takes no part, once that was said.
    told_why_not: Option<String>,
    takes_part: bool,

    grant: Asked,
    keep_alive: Asked,
    look: Asked,
    /// Joining, signs of life, leaving.
    sign: Asked,
    sign_ticket: Option<Ticket>,
    /// The last one was not answered, and nothing else was since. Whoever cannot hear the store shows no signs of life: they might get through, and
    /// others would wait for a node that cannot hold anything.
    is_deaf: bool,
    /// Whether a watch tells what happens.
    watching: bool,
    /// When it began to, and when it has told something last.
    watching_since: At,
    watch_heard: At,
    /// What it has told cannot be all.
    doubts: bool,
    /// The highest revision that an answer has named.
    heard: Revision,
    /// Since when which revision is missed that an answer has named.
    behind: Option<(Revision, At)>,

    requests: BTreeMap<Ticket, Request>,
    last_ticket: u64,
    slots: BTreeMap<IpAddr, Slot>,
    /// What is known to be the pool's own: a node has held it since it came into the pool, or nobody has answered for it.
    /// Since when: of what was taken out and put in again, nothing is known.
    cleared: BTreeMap<IpAddr, Revision>,
    /// The pool of which all is cleared, as [`View::pool_changes`] counts them.
    all_cleared: Option<u64>,
    /// What the neighbours were asked for: when last, and how often.
    asked: BTreeMap<IpAddr, (At, u32)>,
    /// Whose each address should be, as last worked out.
    shares: BTreeMap<IpAddr, String>,
    /// Something has changed that may matter to addresses.
    stirred: bool,
    /// When something is to be done about addresses, if nothing changes.
    slots_due: Option<At>,

    /// The last thing that went wrong with the store.
    fault: Option<StoreFault>,
    /// It does nothing that it is told to do.
    failing: Option<Failing>,
    /// It tells nothing: it cannot be listed, or not be watched. What it is told to do it may do nevertheless.
    unseen: Option<Failing>,
    /// That went on for a `ttl`, while signs of life got through. Whoever cannot see the pool, and is counted on, lets its share of it lie idle.
    is_blind: bool,
    todo: Todo,
}
impl Core {
    /// One that has not begun: the first [`Core::on`] does that.
    #[must_use]
    pub fn new(settings: Settings, inheritance: Option<Inheritance>) -> Self {
        let mut core = Self {
            keys: Keys::new(&settings.prefix),
            view: View::new(&settings.prefix, settings.ttl),
            now: At::default(),
            health: None,
            inherits: false,
            stop: None,
            keep: None,
            finished: false,
            lease: None,
            former: VecDeque::new(),
            has_told_ttl: false,
            advert: Advert::Out(Revision(0)),
            beat: None,
            until: None,
            extended: None,
            term: 0,
            rival: None,
            told_why_not: None,
            takes_part: false,
            grant: Asked::default(),
            keep_alive: Asked::default(),
            look: Asked::default(),
            sign: Asked::default(),
            sign_ticket: None,
            is_deaf: false,
            watching: false,
            watching_since: At::default(),
            watch_heard: At::default(),
            doubts: false,
            heard: Revision(0),
            behind: None,
            requests: BTreeMap::new(),
            last_ticket: 0,
            slots: BTreeMap::new(),
            cleared: BTreeMap::new(),
            all_cleared: None,
            asked: BTreeMap::new(),
            shares: BTreeMap::new(),
            stirred: true,
            slots_due: None,
            fault: None,
            failing: None,
            unseen: None,
            is_blind: false,
            todo: Todo::default(),
            settings,
        };
        if let Some(inheritance) = inheritance {
            core.inherit(inheritance);
        }
        core
    }

    fn inherit(&mut self, inheritance: Inheritance) {
        let lease = inheritance.lease;
        self.lease = Some(Lease {
            id: lease,
            ends: None,
        });
        // As far as is known. If not, the first sign of life is refused.
        self.advert = Advert::In(Revision(0));
        self.inherits = !inheritance.addresses.is_empty();
        if self.inherits {
            self.until = Some(inheritance.until);
            self.extended = self.until;
            let held = inheritance.addresses.len();
            let lease = lease.to_string();
            self.todo.say(Said::Inherited { lease, held });
        }
        for address in inheritance.addresses {
            self.slots.insert(address, Slot::inherited());
        }
    }

    /// What the next instance needs to go on where this one is: the lease, and until when its addresses may be held. What is left may be older than this;
    /// None must not be left older.
    #[must_use]
    pub fn session(&self) -> Option<(LeaseId, At)> {
        Some((self.lease?.id, self.until.unwrap_or_default()))
    }

    /// When it wants to be asked again, at the latest; at once when that is past.
    #[must_use]
    pub fn wake(&self) -> Option<At> {
        if self.finished {
            return None;
        }
        let gives_up = self.gives_up();
        let asked = [
            (self.wants_lease(), self.grant),
            (self.lease.is_some(), self.keep_alive),
            (!self.watching || self.look.sent.is_some(), self.look),
            (self.wants_sign(), self.sign),
        ];
        let asked = asked.iter().filter(|(wanted, _)| *wanted);
        let asked = asked.map(|(_, asked)| asked.next(gives_up));
        let requests = self.requests.values().map(|request| request.sent + gives_up);
        let behind = self.behind.map(|(_, since)| since + self.settings.patience);
        let rest = [
            self.until,
            self.slots_due,
            behind.filter(|_| self.watching && self.look.sent.is_none()),
            Some(self.silent_at()).filter(|_| self.watching && self.look.sent.is_none()),
            self.blind_at().filter(|_| !self.is_blind),
            self.stop.as_ref().map(|stop| stop.by),
            self.keep.as_ref().map(|keep| keep.by),
            self.rival.map(|rival| self.view.waited_for(rival)),
        ];
        let stirred = self.stirred.then_some(self.now);
        asked
            .chain(requests)
            .chain(rest.into_iter().flatten())
            .chain(stirred)
            .min()
    }

    /// Decides.
    pub fn on(&mut self, now: At, event: Event) -> Vec<Effect> {
        let began = self.now == At::default();
        self.now = self.now.max(now);
        if self.finished {
            return Vec::new();
        }
        if began && let Some(until) = self.until {
            // What an earlier life was promised by a longer `ttl` does not count: others wait for what this one asks for.
            let most = self.now + self.settings.ttl.saturating_sub(self.settings.margin);
            self.until = Some(until.min(most));
        }
        // Before anything else is looked at: whoever was stopped, or suspended, has lost everything meanwhile.
        self.lapse();
        self.happen(event);
        if !self.finished {
            self.give_up_on_answers();
            self.settle();
        }
        self.todo.all()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Time => {}
            Event::Health(health) => {
                self.stirred = true;
                self.health = Some(health);
            }
            Event::Granted { sent, result } => self.granted(sent, result),
            Event::KeptAlive { lease, sent, result } => self.kept_alive(lease, sent, result),
            Event::Committed { ticket, sent, result } => self.committed(ticket, sent, result),
            Event::Looked(result) => self.looked(result),
            Event::Changes(changes) => {
                self.watch_heard = self.now;
                let news = self.view.learn(self.now, &changes);
                self.heard = self.heard.max(changes.revision);
                self.take_news(news);
            }
            Event::WatchEnded(error) => self.watch_ended(&error),
            Event::Taken { address, result } => self.taken(address, result),
            Event::Dropped { address, result } => self.dropped(address, result),
            Event::Lost { address } => self.lost(address),
            Event::Answered { addresses, found } => self.answered(&addresses, &found),
            Event::Heal => self.announce_all(),
            Event::Stop { keep } => self.stop(keep),
        }
    }

    fn settle(&mut self) {
        self.heed_view();
        self.heed_rival();
        self.is_blind |= self.blind_at().is_some_and(|at| self.now >= at);
        let why_not = self.why_not();
        if let Some(because) = &why_not {
            self.take_no_part(because);
        }
        self.sign(why_not.is_none());
        let may_hold = self.has_time() || (self.takes_part && self.until.is_some());
        let takes_part = why_not.is_none() && matches!(self.advert, Advert::In(_)) && may_hold;
        self.tell_part(takes_part, why_not);
        if self.wants_lease() && self.grant.is_due(self.now) {
            self.grant.sent = Some(self.now);
            let ttl = self.settings.ttl;
            self.todo.store.push(Effect::Grant { ttl });
        }
        if let Some(lease) = self.lease
            && self.keep_alive.is_due(self.now)
        {
            self.keep_alive.sent = Some(self.now);
            self.keep_alive.due = self.now + self.settings.interval;
            let lease = lease.id;
            self.todo.store.push(Effect::KeepAlive { lease });
        }
        // What fails at once is not asked for again at once, however long ago anything was heard.
        let is_due = match self.watching {
            true => self.is_behind(),
            false => self.now >= self.look.due,
        };
        if self.look.sent.is_none() && is_due {
            self.look.sent = Some(self.now);
            self.behind = None;
            self.todo.store.push(Effect::Look);
        }
        if self.stirred || self.slots_due.is_some_and(|due| self.now >= due) {
            self.settle_slots();
        }
        if let Some(until) = self.until.filter(|until| Some(*until) > self.extended)
            && self.up().next().is_some()
        {
            self.extended = Some(until);
            self.extend_all(until);
        }
        self.end();
    }

    /// How long an answer is waited for here. The shell gives up sooner.
    fn gives_up(&self) -> Duration {
        self.settings.patience * 2
    }

    /// Between two tries of something that the store did not do.
    fn pause(&self) -> Duration {
        (self.settings.interval / 4).max(Duration::from_millis(10))
    }

    fn request(&mut self, purpose: Purpose, transaction: Transaction) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let (sent, lease) = (self.now, self.lease.map(|lease| lease.id));
        self.requests.insert(ticket, Request { sent, lease, purpose });
        self.todo.store.push(Effect::Commit { ticket, transaction });
        ticket
    }

    fn stop(&mut self, keep: bool) {
        self.stirred = true;
        if keep {
            self.keep_all();
        } else if self.stop.is_none() {
            let by = self.down_by().max(self.until.unwrap_or(self.now));
            self.stop = Some(Stop { by });
        }
    }

    /// When all is kept: the last sign of life and the lease's are answered, or not in time.
    fn end_kept(&mut self) {
        let Some(keep) = &self.keep else { return };
        if let Some(sign) = keep.sign
            && (self.sign_ticket == Some(sign) || self.keep_alive.sent.is_some())
            && self.now < keep.by
        {
            return;
        }
        self.todo.last.push(Effect::Finished);
        self.finished = true;
    }

    /// When all is given up, or must be.
    fn end(&mut self) {
        self.end_kept();
        let Some(stop) = &self.stop else { return };
        let is_out = matches!(self.advert, Advert::Out(_)) && self.sign.sent.is_none();
        if self.now < stop.by && !(is_out && self.is_empty_handed()) {
            return;
        }
        // While the kernel may answer for something, its mark keeps others off for as long as the lease lives.
        if self.down_by() <= self.now
            && let Some(lease) = self.lease.take()
        {
            self.todo.last.push(Effect::Revoke { lease: lease.id });
        }
        self.todo.last.push(Effect::Finished);
        self.finished = true;
    }
}

#[cfg(test)]
mod tests;
