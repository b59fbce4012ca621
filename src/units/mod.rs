//! Control of what depends on the databases.
//!
//! **Promise.** [`Units::drain`] returns an `ok` only when nothing of any dependent runs; [`Units::undrain`] only
//! when the target and what it pulls in has come up. Both give each dependent's state, and past the deadline they
//! name those that still move.
//!
//! Two implementations: systemd over D-Bus, for hosts; and child processes, for containers and machines
//! without systemd.

pub mod processes;
mod settled;
pub mod systemd;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::protocol::UnitReport;
pub use settled::Settled;

/// Whole milliseconds, as all times on the wire are.
pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What a guardian can do with everything that depends on the databases.
///
/// A future that is dropped stops waiting; what it set in motion goes on. The next call starts from what it
/// finds.
pub trait Units: Send + Sync {
    /// The name of the target that stands for "the databases are online".
    fn target(&self) -> &str;

    /// Stops everything that depends on the target, and returns when all of it has come to rest or `deadline`
    /// has passed, whichever is first. A unit that ends `failed` is stopped, and named.
    ///
    /// # Errors
    /// When the units could not be reached or controlled at all.
    fn drain(&self, deadline: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>>;

    /// Starts the target and what it pulls in, and returns when all of it is active (a oneshot that has run is
    /// at rest), something failed, or `deadline` has passed.
    ///
    /// # Errors
    /// When the units could not be reached or controlled at all.
    fn undrain(&self, deadline: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>>;

    /// What depends on the target, and in which state all of it is now.
    ///
    /// # Errors
    /// When the units could not be reached.
    fn survey(&self) -> BoxFuture<'_, Result<Survey, UnitsError>>;

    /// Tells `changed` each time that something of what [`Units::survey`] shows may have changed. Runs until it is dropped.
    fn watch<'a>(&'a self, changed: &'a Notify) -> BoxFuture<'a, ()>;

    /// The guardian ends: child processes are stopped, systemd's units are left alone.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// The target and its dependents at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The target's state, in systemd's words.
    pub target_state: String,
    /// The dependents, by name.
    pub units: Vec<UnitReport>,
}

/// Why units could not be controlled. `Display` names the unit and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum UnitsError {
    /// systemd knows no such target.
    #[error("{target} does not exist on this host: {reason}; define it, or name another one with --target")]
    NoTarget {
        /// The target.
        target: String,
        /// What systemd said.
        reason: String,
    },
    /// systemd or polkit refused.
    #[error(
        "not allowed to {verb} {unit}: {reason}; run the guardian as root, or let polkit allow its user to manage this unit"
    )]
    Refused {
        /// `start` or `stop`.
        verb: &'static str,
        /// The unit.
        unit: String,
        /// What was said.
        reason: String,
    },
    /// systemd accepted the call and then said no.
    #[error("systemd would not {verb} {unit}: {reason}; see `systemctl status {unit}`")]
    Job {
        /// `start` or `stop`.
        verb: &'static str,
        /// The unit.
        unit: String,
        /// What systemd said.
        reason: String,
    },
    /// systemd could not be reached before the deadline.
    #[error(
        "cannot reach systemd over the system bus: {reason}; check that dbus runs and that this user may use it"
    )]
    Unreachable {
        /// What the bus said last.
        reason: String,
    },
    /// The guardian ends: what it had in hand is stopped or about to be.
    #[error("the guardian is about to end, and stops its processes; ask again when it runs again")]
    Ending,
}
