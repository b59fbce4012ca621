//! A connection to each guardian, for as long as somebody looks: opened again whenever it is lost, with growing pauses.
//!
//! A guardian of ours tells by itself when something changes. One that does not know how is asked.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::dial::{Line, Pings, Words, talk};
use super::super::fault::{Fault, is_too_old_for_it};
use super::super::hosts::Target;
use super::super::run::{DIALLING, Plan, in_turn};
use super::super::schedule::retry_at;
use super::view::Event;
use crate::protocol::{Action, Keyring};

/// A guardian that is silent for this long is pinged, and is lost when that goes on: a host that has lost its power is shown as
/// lost half a minute later.
const PINGS: Pings = Pings {
    after: Duration::from_secs(10),
    give_up: Duration::from_secs(30),
};
/// How often one that tells nothing by itself is asked.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// A connection that has lasted this long was no failed attempt: the pauses begin anew.
const WORTH_IT: Duration = Duration::from_secs(30);
/// Longer than the longest pause is all that this must be.
const FOR_EVER: Duration = Duration::from_secs(3_600);
/// Events that wait for whoever looks.
const EVENTS: usize = 256;

/// How a guardian can be followed, the best way first.
#[derive(Clone, Copy)]
enum Way {
    /// It tells.
    Watch,
    /// It is asked what it guards.
    Status,
    /// It is asked whether it is there.
    Ping,
}

/// What all links have in common.
struct Common {
    plan: Plan,
    files: Vec<PathBuf>,
    words: Mutex<Arc<[Words; 3]>>,
    dialling: Arc<Semaphore>,
    chance: RandomState,
}

impl Common {
    fn words(&self) -> Arc<[Words; 3]> {
        Arc::clone(&self.words.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key may have been changed since: the next attempt speaks what is in the file now.
    async fn read_key_again(&self) {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || Keyring::read(&files)).await;
        if let Ok(Ok(keys)) = read {
            let plan = Plan {
                key: keys.first().clone(),
                ..self.plan.clone()
            };
            *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words(&plan);
        }
    }
}

fn words(plan: &Plan) -> Arc<[Words; 3]> {
    let of = |action| {
        let plan = Plan {
            action,
            ..plan.clone()
        };
        Words::of(&plan, plan.timeout)
    };
    Arc::new([of(Action::Watch), of(Action::Status), of(Action::Ping)])
}

/// Links to all hosts of a plan. Dropped, all of them are closed.
pub struct Followed {
    /// What is learned of which host, by its number in the plan.
    pub events: mpsc::Receiver<(usize, Event)>,
    /// For those who know something of a host that it does not tell itself.
    pub told: mpsc::Sender<(usize, Event)>,
    /// The links themselves.
    pub links: JoinSet<()>,
}

/// Follows all targets of `plan`, whose key came from `files`. What else the plan says of an action is not looked at.
pub fn follow(plan: &Plan, files: &[PathBuf]) -> Followed {
    let common = Arc::new(Common {
        words: Mutex::new(words(plan)),
        plan: plan.clone(),
        files: files.to_owned(),
        dialling: Arc::new(Semaphore::new(DIALLING)),
        chance: RandomState::new(),
    });
    let (told, events) = mpsc::channel(EVENTS);
    let mut links = JoinSet::new();
    for (at, target) in plan.targets.iter().cloned().enumerate() {
        let link = Link {
            at,
            target,
            common: Arc::clone(&common),
            told: told.clone(),
        };
        links.spawn(link.keep());
    }
    Followed { events, told, links }
}

struct Link {
    at: usize,
    target: Target,
    common: Arc<Common>,
    told: mpsc::Sender<(usize, Event)>,
}

impl Link {
    async fn keep(self) {
        let mut attempts = 0;
        loop {
            let began = Instant::now();
            attempts += 1;
            let fault = self.hold().await;
            if matches!(
                fault,
                Fault::BadKey { .. } | Fault::Closed { .. } | Fault::Answered { .. }
            ) {
                self.common.read_key_again().await;
            }
            self.tell(Event::Lost(fault)).await;
            if began.elapsed() >= WORTH_IT {
                attempts = 1;
            }
            let now = Instant::now();
            let chance = self.common.chance.hash_one((self.at, attempts));
            // Without an end: somebody looks.
            let again = retry_at(now, now.checked_add(FOR_EVER), attempts, chance);
            sleep_until(again.unwrap_or(now + ASK_EVERY)).await;
        }
    }

    async fn tell(&self, event: Event) {
        // When nobody listens any more, this task is about to end, too.
        let _ = self.told.send((self.at, event)).await;
    }

    /// Until the connection is lost; why.
    async fn hold(&self) -> Fault {
        let words = self.common.words();
        let [watch, ..] = &*words;
        let attempt = in_turn(Arc::clone(&self.common.dialling), |dialled| {
            talk(watch, &self.target, dialled)
        })
        .await;
        let Some(mut line) = attempt.line else {
            return attempt.result.err().unwrap_or(Fault::Internal);
        };
        let opened = Event::Opened {
            address: attempt.address,
            wire: Some(line.wire()),
        };
        let way = match attempt.result {
            Ok(response) => {
                self.tell(opened).await;
                self.tell(Event::Told(response)).await;
                Way::Watch
            }
            Err(fault) if is_too_new(&fault) => {
                self.tell(opened).await;
                Way::Status
            }
            Err(fault) => return fault,
        };
        self.listen(&mut line, &words, way).await
    }

    async fn listen(&self, line: &mut Line, [_, status, ping]: &[Words; 3], mut way: Way) -> Fault {
        loop {
            let heard = match way {
                Way::Watch => line.event(PINGS).await,
                Way::Status => line.ask(status).await,
                Way::Ping => line.ask(ping).await,
            };
            match (way, heard) {
                (Way::Watch | Way::Status, Ok(response)) => self.tell(Event::Told(response)).await,
                (Way::Ping, Ok(_)) => self.tell(Event::Alive).await,
                (Way::Status, Err(fault)) if is_too_new(&fault) => {
                    way = Way::Ping;
                    continue;
                }
                (_, Err(fault)) => return fault,
            }
            if !matches!(way, Way::Watch) {
                sleep(ASK_EVERY).await;
            }
        }
    }
}

/// Whether the guardian does not know what it was asked.
fn is_too_new(fault: &Fault) -> bool {
    matches!(fault, Fault::Answered { message } if is_too_old_for_it(message))
}
