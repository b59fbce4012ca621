//! The network, as a run of the coordinator meets it: the other carrier of conversations. It keeps to what TCP does: what is said on a
//! connection is sent again until the link is there, long after whoever said it has gone; a host that was off knows of no connection.

use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use io_guardian::coordinator::carrier::{Attempt, Carrier, Words};
use io_guardian::coordinator::{Fault, Phase, Target};
use io_guardian::protocol::{Action, CLOSE_GOING_AWAY, Request, Response};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::{Fleet, Shared, Step};

/// How often a segment is sent again before the kernel gives it up; the pauses double from a fifth of a second.
const RESENT: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The coordinator's pings, in the second version of the wire.
const PING_AFTER: Duration = Duration::from_secs(3);
const GIVEN_UP: Duration = Duration::from_secs(21);

/// A command, as it crosses the network.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) action: Action,
    pub(crate) generation: Option<u64>,
    pub(crate) hold_for: Option<Duration>,
    /// The how-many-eth order it is: what the generation stands for.
    pub(crate) order: u64,
}

/// To the guardian.
#[derive(Clone, Debug)]
pub(crate) enum Out {
    Hello,
    Key,
    KeyAndCommand(Command),
    Command(Command),
}

/// From it, or from its kernel.
#[derive(Clone, Debug)]
pub(crate) enum Back {
    Welcome,
    Known,
    Answer(Box<Response>),
    /// It has ended, or knows nothing of the connection.
    Broken,
    /// It ends, and says so.
    GoingAway,
}

/// A conversation.
pub(crate) struct Talk {
    pub(crate) run: usize,
    pub(crate) host: usize,
    pub(crate) action: Action,
    pub(crate) begun: Instant,
    pub(crate) ended: Option<Instant>,
    /// Whether the command has left: it may arrive at any time.
    pub(crate) sent: bool,
    /// Whether anything came from the host.
    pub(crate) heard: bool,
    /// When its answer left the guardian.
    pub(crate) emitted: Option<Instant>,
    /// How it ended, when it was not broken off.
    pub(crate) result: Option<Result<Box<Response>, Fault>>,
    /// The boot and the life of the guardian that it is with.
    with: Option<(u64, u64)>,
    /// An answer is on its way, and nothing can overtake it.
    replied: bool,
    ear: mpsc::UnboundedSender<Back>,
}

impl Fleet {
    /// The conversations with the guardian of `host` that are open.
    pub(crate) fn talks_with(&self, host: usize) -> Vec<usize> {
        let open = self.open_talks.iter().copied();
        open.filter(|talk| self.talks[*talk].host == host && self.talks[*talk].with.is_some())
            .collect()
    }

    /// Sends `back`, from the guardian of `host`, or from its kernel.
    pub(crate) fn reply(&mut self, host: usize, talk: usize, back: Back) {
        self.talks[talk].replied = true;
        let boot = self.hosts[host].boot;
        let late = self.late();
        let step = Step::Reply {
            talk,
            boot,
            tries: 0,
            back,
        };
        self.after(late, step);
    }

    fn send(&mut self, talk: usize, out: Out) {
        if matches!(out, Out::Command(_) | Out::KeyAndCommand(_)) {
            self.talks[talk].sent = true;
        }
        let late = self.late();
        // What has no answer to wait for can come a second time, if somebody in between wants it to.
        if let Out::Command(command) | Out::KeyAndCommand(command) = &out
            && command.generation.is_some()
            && !self.peaceful
            && self.chance.one_in(20)
        {
            let (host, command) = (self.talks[talk].host, command.clone());
            let delay = self.chance.span(90_000);
            self.after(delay, Step::Again { host, command });
        }
        self.after(late, Step::Deliver { talk, tries: 0, out });
    }

    /// How long a message takes that is not lost.
    fn late(&mut self) -> Duration {
        let most = if self.chance.one_in(20) && !self.peaceful {
            2_000
        } else {
            20
        };
        self.chance.span(most)
    }

    fn lost(&mut self) -> bool {
        !self.peaceful && self.chance.one_in(30)
    }

    pub(crate) fn deliver(&mut self, talk: usize, tries: u32, out: Out) {
        let Some(with) = self.talks[talk].with else { return };
        let host = self.talks[talk].host;
        let at = &self.hosts[host];
        if !at.out || !at.on || self.lost() {
            if tries < RESENT {
                let step = Step::Deliver {
                    talk,
                    tries: tries + 1,
                    out,
                };
                self.after(FIRST_PAUSE * 2u32.pow(tries), step);
            }
        } else if (self.hosts[host].boot, self.hosts[host].life) != with {
            self.reply(host, talk, Back::Broken);
        } else {
            self.receive(host, talk, &out);
        }
    }

    pub(crate) fn come_back(&mut self, talk: usize, boot: u64, tries: u32, back: Back) {
        let host = self.talks[talk].host;
        let at = &self.hosts[host];
        // What a kernel has not sent when the power goes is gone.
        if at.boot != boot {
            return;
        }
        if !at.back || !at.on || self.lost() {
            if tries < RESENT {
                let step = Step::Reply {
                    talk,
                    boot,
                    tries: tries + 1,
                    back,
                };
                self.after(FIRST_PAUSE * 2u32.pow(tries), step);
            }
            return;
        }
        self.talks[talk].replied = false;
        if self.talks[talk].ended.is_none() {
            self.talks[talk].heard = true;
            let _ = self.talks[talk].ear.send(back);
        }
    }

    /// A ping: whether something comes back, and whether that is the end.
    fn ping(&mut self, talk: usize) -> Option<bool> {
        let at = &self.hosts[self.talks[talk].host];
        let there = at.out && at.back && at.on && !self.talks[talk].replied;
        there.then(|| self.talks[talk].with == Some((at.boot, at.life)))
    }
}

/// The network as one run meets it.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) fleet: Shared,
    pub(crate) run: usize,
    /// The first version of the wire: the command goes out with the key where that does no harm, and there are no pings.
    pub(crate) plain: bool,
    pub(crate) order: u64,
    pub(crate) seed: u64,
    pub(crate) rounds: Arc<AtomicU64>,
}

/// What a round of telling draws from.
struct Seeded(u64);

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

impl Carrier for Network {
    async fn converse(&self, words: &Words, target: &Target, dialled: oneshot::Sender<()>) -> Attempt {
        let (ear, back) = mpsc::unbounded_channel();
        let host = target.name.trim_start_matches("app").parse().unwrap_or_default();
        let Some(command) = self.command(words) else {
            return Attempt::new(Err(Fault::Internal));
        };
        let action = command.action;
        let talk = self.fleet.with(|fleet| {
            let begun = fleet.now();
            fleet.open_talks.push(fleet.talks.len());
            fleet.talks.push(Talk {
                run: self.run,
                host,
                action,
                begun,
                ended: None,
                sent: false,
                heard: false,
                emitted: None,
                result: None,
                with: None,
                replied: false,
                ear,
            });
            fleet.begins(fleet.talks.len() - 1);
            fleet.talks.len() - 1
        });
        // Also when it is broken off.
        let _end = End(&self.fleet, talk);
        let mut call = Call {
            network: self,
            talk,
            phase: Phase::LookingUp,
            back,
            early: None,
        };
        let result = match timeout(words.timeout(), call.hold(words, command, dialled)).await {
            Ok(result) => result,
            Err(_) => Err(Fault::TimedOut {
                phase: call.phase,
                after: words.timeout(),
            }),
        };
        self.fleet.with(|fleet| {
            fleet.say(|| match &result {
                Ok(answer) => format!(
                    "run {}: app{host} answers {:?} {}",
                    self.run, answer.status, answer.message
                ),
                Err(fault) => format!("run {}: app{host}: {fault}", self.run),
            });
            fleet.talks[talk].result = Some(result.clone());
        });
        Attempt::new(result)
    }

    fn chance(&self) -> impl BuildHasher + Send {
        Seeded(self.seed ^ self.rounds.fetch_add(1, Ordering::Relaxed))
    }
}

impl Network {
    /// What the guardian would read.
    fn command(&self, words: &Words) -> Option<Command> {
        match Request::parse(words.command()) {
            Ok(Request::Command {
                action,
                generation,
                terms,
                ..
            }) => Some(Command {
                action,
                generation,
                hold_for: terms.and_then(|terms| terms.for_ms).map(Duration::from_millis),
                order: self.order,
            }),
            _ => None,
        }
    }
}

struct End<'a>(&'a Shared, usize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.with(|fleet| {
            let now = fleet.now();
            fleet.open_talks.retain(|talk| *talk != self.1);
            fleet.talks[self.1].ended = Some(now);
        });
    }
}

/// One conversation, seen by who holds it.
struct Call<'a> {
    network: &'a Network,
    talk: usize,
    phase: Phase,
    back: mpsc::UnboundedReceiver<Back>,
    /// An answer that has overtaken what was waited for.
    early: Option<Back>,
}

impl Call<'_> {
    async fn hold(
        &mut self,
        words: &Words,
        command: Command,
        dialled: oneshot::Sender<()>,
    ) -> Result<Box<Response>, Fault> {
        match timeout(words.connect_timeout(), self.open()).await {
            Ok(opened) => opened?,
            Err(_) => {
                return Err(Fault::TimedOut {
                    phase: self.phase,
                    after: words.connect_timeout(),
                });
            }
        }
        self.phase = Phase::Authenticating;
        let together = self.network.plain && command.generation.is_some();
        let out = if together {
            Out::KeyAndCommand(command.clone())
        } else {
            Out::Key
        };
        self.send(out);
        let known = self.hear().await;
        let _ = dialled.send(());
        // The answer cannot overtake the greeting on a connection.
        if let Ok(answer @ Back::Answer(_)) = known {
            self.early = Some(answer);
        } else {
            known?;
        }
        self.phase = Phase::Answer(command.action);
        if !together {
            self.send(Out::Command(command));
        }
        self.answer().await
    }

    /// Looks up, connects, shakes hands.
    async fn open(&mut self) -> Result<(), Fault> {
        let unknown = self.with(|fleet| !fleet.peaceful && fleet.chance.one_in(60));
        if unknown {
            sleep(Duration::from_millis(30)).await;
            return Err(Fault::Lookup {
                reason: "no answer".to_owned(),
            });
        }
        self.phase = Phase::Connecting;
        let mut tries = 0;
        loop {
            let (trip, found) = self.with(|fleet| {
                let trip = fleet.late();
                (trip, fleet.connect(self.talk, tries))
            });
            sleep(trip).await;
            match found {
                Some(found) => {
                    let seen = !matches!(found, Err(Fault::Unreachable { .. }));
                    self.with(|fleet| fleet.talks[self.talk].heard = seen);
                    found?;
                    break;
                }
                None => sleep(Duration::from_secs(1 << tries.min(4))).await,
            }
            tries += 1;
        }
        self.phase = Phase::Handshake;
        let full = self.with(|fleet| !fleet.peaceful && fleet.chance.one_in(60));
        if full {
            return Err(Fault::NoUpgrade { status: 503 });
        }
        self.send(Out::Hello);
        self.hear().await.map(|_| ())
    }

    async fn answer(&mut self) -> Result<Box<Response>, Fault> {
        let mut silent = Duration::ZERO;
        loop {
            let heard = if self.network.plain {
                Some(self.hear().await)
            } else {
                timeout(PING_AFTER, self.hear()).await.ok()
            };
            match heard {
                Some(Ok(Back::Answer(response))) => return Ok(response),
                Some(Ok(_)) => {}
                Some(Err(fault)) => return Err(fault),
                None => match self.with(|fleet| fleet.ping(self.talk)) {
                    Some(true) => silent = Duration::ZERO,
                    Some(false) => return Err(self.broken("connection reset")),
                    None => {
                        silent += PING_AFTER;
                        if silent >= GIVEN_UP {
                            return Err(self.broken("it has not answered a ping"));
                        }
                    }
                },
            }
        }
    }

    /// The next thing that comes.
    async fn hear(&mut self) -> Result<Back, Fault> {
        let back = match self.early.take() {
            Some(back) => Some(back),
            None => self.back.recv().await,
        };
        match back {
            Some(Back::Broken) | None => Err(self.broken("the other side closed it without a word")),
            Some(Back::GoingAway) => Err(Fault::closed(self.phase, CLOSE_GOING_AWAY, String::new())),
            Some(back) => Ok(back),
        }
    }

    fn broken(&self, why: &str) -> Fault {
        Fault::Lost {
            phase: self.phase,
            reason: why.to_owned(),
        }
    }

    fn send(&self, out: Out) {
        self.with(|fleet| fleet.send(self.talk, out));
    }

    fn with<T>(&self, with: impl FnOnce(&mut Fleet) -> T) -> T {
        self.network.fleet.with(with)
    }
}

impl Fleet {
    /// A SYN: nothing, when nothing comes back.
    fn connect(&mut self, talk: usize, tries: u32) -> Option<Result<(), Fault>> {
        let host = self.talks[talk].host;
        let at = &self.hosts[host];
        if at.out && at.back && at.on {
            let with = at.core.is_some().then_some((at.boot, at.life));
            self.talks[talk].with = with;
            return Some(with.map(|_| ()).ok_or(Fault::Refused {
                addresses: "192.0.2.1:9876".to_owned(),
            }));
        }
        // A router says that it cannot find it.
        (tries >= 2 && !at.on && self.chance.one_in(2)).then(|| {
            Err(Fault::Unreachable {
                reason: "No route to host".to_owned(),
            })
        })
    }
}
