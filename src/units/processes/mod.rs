//! Child processes as dependents: for containers, and for machines without systemd.
//!
//! **Promise.** An `ok` to a drain means that no process of any dependent runs: none in the process groups that we
//! started, and none that left its group and whose parent ended (a daemon). An `ok` to an undrain means that every
//! process was started: its program runs, as for systemd's `Type=exec`. What ends after that is seen by `status`
//! and by the restart policy. When the guardian ends, all of it ends: in order when it can, and by the
//! [`keeper`] when the guardian is killed.
//!
//! **Not guaranteed.** A process that left its group is known to us only when its parent ends; one whose parent
//! lives is that parent's business until then. After `kill -9` of the guardian, processes that left their group
//! go on; those of an orderly end do not.
//!
//! **The guardian has no other children.** It is a subreaper (PR_SET_CHILD_SUBREAPER), reaps every child, and a
//! drain ends every child that belongs to none of its groups.

pub mod config;
mod core;
pub mod keeper;
mod spawn;
mod supervisor;

use std::io;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

pub use config::{ProcessSpec, RawProcess, validate};
pub use core::{KILL_GRACE, Policy, Restart};
pub use spawn::{adopt_orphans, children_left, in_own_group, signal_group};

use self::core::Snapshot;
use self::supervisor::{Options, Order, Supervisor};
use super::settled::SEE;
use super::{Settled, Survey, Units, UnitsError};
use crate::protocol::Status;

/// What an answer says instead of systemd's "see `systemctl status`".
const SEE_LOG: &str = "the guardian's log has each of their steps";

/// Child processes that depend on the databases. They start stopped.
#[derive(Debug)]
pub struct Processes {
    target: String,
    orders: mpsc::Sender<Order>,
    snapshots: watch::Receiver<Snapshot>,
}

impl Processes {
    /// Takes charge of the processes. To be called once in a program, inside its runtime, on its main thread:
    /// children die with the thread that started them.
    ///
    /// # Errors
    /// When the kernel refuses what this rests on, or the keeper cannot be started.
    pub fn start(target: String, specs: Vec<ProcessSpec>) -> io::Result<Self> {
        Self::start_with(target, specs, Options::default())
    }

    fn start_with(target: String, specs: Vec<ProcessSpec>, options: Options) -> io::Result<Self> {
        // Commands are few and answered at once; more than these wait for their turn.
        let (orders, orders_in) = mpsc::channel(16);
        let (supervisor, snapshots) = Supervisor::new(specs, options, orders_in)?;
        tokio::spawn(supervisor.run());
        Ok(Self {
            target,
            orders,
            snapshots,
        })
    }

    /// Gives an order; returns the epoch that it belongs to.
    async fn order(&self, order: impl FnOnce(oneshot::Sender<u64>) -> Order) -> Result<u64, UnitsError> {
        let (reply, answer) = oneshot::channel();
        self.orders
            .send(order(reply))
            .await
            .map_err(|_| UnitsError::Ending)?;
        answer.await.map_err(|_| UnitsError::Ending)
    }

    /// Gives an order and waits until `done`, another order came, or the deadline passed; returns what there is
    /// then, and whether the order still holds.
    async fn settle(
        &self,
        order: impl FnOnce(oneshot::Sender<u64>) -> Order,
        deadline: Instant,
        done: impl Fn(&Snapshot) -> bool,
    ) -> Result<(Snapshot, bool), UnitsError> {
        let epoch = self.order(order).await?;
        let mut snapshots = self.snapshots.clone();
        let wait = snapshots.wait_for(|s| s.epoch != epoch || done(s));
        if let Ok(Err(_)) = timeout_at(deadline, wait).await {
            return Err(UnitsError::Ending);
        }
        let snapshot = self.snapshots.borrow().clone();
        let holds = snapshot.epoch == epoch;
        Ok((snapshot, holds))
    }

    fn overtaken(&self, snapshot: Snapshot, by: &str) -> Settled {
        Settled {
            status: Status::Error,
            message: format!("{}: {by} came before this was done", self.target),
            units: snapshot.units,
        }
    }
}

/// Says where child processes leave their traces, which is not systemd.
fn see_log(mut settled: Settled) -> Settled {
    settled.message = settled.message.replace(SEE, SEE_LOG);
    settled
}

fn since(began: Instant) -> Duration {
    Instant::now().saturating_duration_since(began)
}

impl Units for Processes {
    fn target(&self) -> &str {
        &self.target
    }

    fn drain(&self, deadline: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
        Box::pin(async move {
            let began = Instant::now();
            let (snapshot, holds) = self.settle(Order::Drain, deadline, |s| s.at_rest).await?;
            if !holds {
                return Ok(self.overtaken(snapshot, "an undrain"));
            }
            if !snapshot.at_rest && snapshot.units.iter().all(crate::protocol::UnitReport::is_stopped) {
                // All groups rest, and the last look for strays is not made.
                return Ok(Settled {
                    status: Status::Error,
                    message: format!(
                        "{}: not known yet whether anything is left; drain again",
                        self.target
                    ),
                    units: snapshot.units,
                });
            }
            Ok(see_log(Settled::drained(
                &self.target,
                snapshot.units,
                &[],
                since(began),
            )))
        })
    }

    fn undrain(&self, deadline: Instant) -> BoxFuture<'_, Result<Settled, UnitsError>> {
        Box::pin(async move {
            let began = Instant::now();
            let done = |s: &Snapshot| s.pending.is_empty() || !s.failed.is_empty();
            let (snapshot, holds) = self.settle(Order::Undrain, deadline, done).await?;
            if !holds {
                return Ok(self.overtaken(snapshot, "a drain"));
            }
            let Snapshot {
                units,
                pending,
                failed,
                ..
            } = snapshot;
            Ok(see_log(Settled::undrained(
                &self.target,
                units,
                &pending,
                &failed,
                &[],
                since(began),
            )))
        })
    }

    fn survey(&self) -> BoxFuture<'_, Result<Survey, UnitsError>> {
        Box::pin(async move {
            if self.orders.is_closed() {
                return Err(UnitsError::Ending);
            }
            let snapshot = self.snapshots.borrow().clone();
            let target_state = match (snapshot.up, snapshot.at_rest) {
                (true, _) => "active",
                (false, true) => "inactive",
                (false, false) => "deactivating",
            };
            Ok(Survey {
                target_state: target_state.to_owned(),
                units: snapshot.units,
            })
        })
    }

    fn watch<'a>(&'a self, changed: &'a Notify) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut snapshots = self.snapshots.clone();
            while snapshots.changed().await.is_ok() {
                changed.notify_one();
            }
            std::future::pending().await
        })
    }

    /// Stops everything and waits for it: at most the longest stop timeout, and [`KILL_GRACE`].
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // When it cannot be sent, the supervisor has ended already.
            let _ = self.orders.send(Order::Close).await;
            let mut snapshots = self.snapshots.clone();
            while snapshots.changed().await.is_ok() {}
        })
    }
}

#[cfg(test)]
mod tests;
