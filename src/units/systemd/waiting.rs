//! Waiting for units by systemd's signals.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};
use tokio::time::Instant;
use zbus::{MessageStream, OwnedObjectPath};

use super::bus::{Link, Signal};

/// A place in the stream of signals. Made before a job is queued, so that no end of a job can be missed.
pub(super) struct Waiting<'a> {
    link: &'a Link,
    signals: broadcast::Receiver<Signal>,
    /// Jobs that have ended since this was made.
    ended: HashSet<u32>,
    /// Changes of units that have no job to wait for; asked for when the first such unit is met.
    changes: Option<MessageStream>,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self {
            link,
            signals: link.signals(),
            ended: HashSet::new(),
            changes: None,
        }
    }

    /// Writes the ends of jobs that were told already into `results`, without waiting for more.
    pub(super) fn collect(&mut self, results: &mut HashMap<String, (Instant, String)>) {
        loop {
            match self.signals.try_recv() {
                Ok(Signal::JobRemoved { job, unit, result }) => {
                    results.insert(unit, (Instant::now(), result));
                    self.ended.insert(job);
                }
                Ok(Signal::Restarted) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Returns when the states are worth reading again: all `jobs` have ended, one of the units in `jobless` has
    /// changed, or signals were missed. Ends of jobs are written into `results`.
    ///
    /// # Errors
    /// The bus is gone; why.
    pub(super) async fn for_change(
        &mut self,
        mut jobs: HashSet<u32>,
        jobless: HashSet<OwnedObjectPath>,
        results: &mut HashMap<String, (Instant, String)>,
    ) -> Result<(), String> {
        if !jobless.is_empty() && self.changes.is_none() {
            // Asked for first and looked at second: a change in between would be missed the other way round.
            self.changes = Some(
                self.link
                    .unit_changes()
                    .await
                    .map_err(|error| format!("{error:?}"))?,
            );
            return Ok(());
        }
        jobs.retain(|job| !self.ended.contains(job));
        // A unit without a job can only be seen to change; with none of those, the end of all jobs is awaited.
        while !jobs.is_empty() || !jobless.is_empty() {
            let changed = async {
                match &mut self.changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                signal = self.signals.recv() => match signal {
                    Ok(Signal::JobRemoved { job, unit, result }) => {
                        results.insert(unit, (Instant::now(), result));
                        self.ended.insert(job);
                        if jobs.remove(&job) && jobs.is_empty() {
                            return Ok(());
                        }
                    }
                    Ok(Signal::Restarted) | Err(RecvError::Lagged(_)) => return Ok(()),
                    Err(RecvError::Closed) => return Err("the connection to the system bus ended".to_owned()),
                },
                message = changed => match message {
                    Some(Ok(message)) => {
                        let header = message.header();
                        if header.path().is_some_and(|path| jobless.iter().any(|unit| unit.as_str() == path.as_str())) {
                            return Ok(());
                        }
                    }
                    _ => return Err("the connection to the system bus ended".to_owned()),
                },
            }
        }
        Ok(())
    }
}
