//! The guardian's own eyes: looks at the databases at a steady pace, closer while something hangs on the answer, and tells the
//! manager each verdict.
//!
//! A look at a PostgreSQL that was ready, with no login to try, is a glance: a real question would leave a line in the log of the
//! database each time, from each host, for years.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::core::{Attention, Health};
use crate::probe::{Cause, Probe, Stage, Verdict};

/// From the start of one attempt to the start of the next while something hangs on it.
const CLOSE: Duration = Duration::from_secs(1);

/// One database's verdict: which, and what.
pub(super) type Seen = (usize, Verdict);

/// How the databases are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From the start of one attempt to the start of the next.
    pub interval: Duration,
    /// Deadline of one attempt, the lookup of the name included.
    pub timeout: Duration,
}

/// Asks the database number `at` until nobody listens any more, as closely as `attention` says.
pub(super) async fn watch(
    at: usize,
    mut probe: Probe,
    pace: Pace,
    mut attention: watch::Receiver<Attention>,
    seen: mpsc::Sender<Seen>,
) {
    // What it is begins with a real question.
    let mut ready = false;
    loop {
        let began = Instant::now();
        let deadline = began + pace.timeout;
        let glance = ready && *attention.borrow_and_update() != Attention::Full;
        let verdict = if glance {
            probe.glance(deadline).await
        } else {
            probe.attempt(deadline).await
        };
        ready = verdict.is_ready();
        if seen.send((at, verdict)).await.is_err() {
            return;
        }
        loop {
            let calm = ready && *attention.borrow_and_update() == Attention::Calm;
            let interval = if calm {
                pace.interval
            } else {
                CLOSE.min(pace.interval)
            };
            tokio::select! {
                () = sleep_until(began + interval) => break,
                changed = attention.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// What a verdict says of the database's health.
pub(super) fn health(verdict: &Verdict) -> Health {
    let Verdict::NotReady(cause) = verdict else {
        return Health::Ready;
    };
    match cause {
        Cause::Starting
        | Cause::ShuttingDown
        | Cause::Recovery
        | Cause::NotAccepting(_)
        | Cause::Loading
        | Cause::MasterDown
        | Cause::Refused
        | Cause::ClosedWithoutAnswer => Health::Down,
        Cause::Unreachable(_) | Cause::TimedOut(Stage::Connect | Stage::Answer) => Health::Silent,
        // They may serve others well: what is wrong may be the probe, or a resolver.
        Cause::TimedOut(Stage::Lookup)
        | Cause::NameNotFound(_)
        | Cause::Standby
        | Cause::TooManyConnections(_)
        | Cause::NoSuchRole(_)
        | Cause::NoSuchDatabase(_)
        | Cause::BadPassword(_)
        | Cause::PasswordNeeded(_)
        | Cause::PasswordNotWanted
        | Cause::NotAllowed(_)
        | Cause::NotAllowedWithoutTls(_)
        | Cause::Busy
        | Cause::CannotPersist
        | Cause::ErrorReply(_)
        | Cause::NotThisProtocol { .. } => Health::Unclear,
    }
}
