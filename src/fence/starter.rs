//! Units that are started when something is fenced, and when nothing is any more: over D-Bus, on a thread of its own, again and again
//! until it has worked. The fence does not wait for it.

use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::monitor::{Message, Sender};
use crate::cli::block_on;
use crate::units::UnitsError;
use crate::units::systemd::start_unit;

/// Stack of the thread, all of which is locked.
const STACK: usize = 160 << 10;
/// Between two tries: from this on, doubling, to [`PAUSE_MOST`].
const PAUSE: Duration = Duration::from_millis(500);
/// See [`PAUSE`].
const PAUSE_MOST: Duration = Duration::from_secs(30);

/// Which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnitNames {
    pub(super) on_fence: Option<String>,
    pub(super) on_unfence: Option<String>,
}

impl UnitNames {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Takes what is true now; only the last matters.
pub(super) struct Starter(watch::Sender<Option<bool>>);

impl Starter {
    /// `monitor` is told when it has worked.
    pub(super) fn start(names: UnitNames, monitor: Sender) -> io::Result<Self> {
        let (sender, receiver) = watch::channel(None);
        std::thread::Builder::new()
            .name("units".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                if let Err(failure) = block_on(start_all(names, receiver, monitor, start_unit)) {
                    tracing::error!(why = failure.messages.join("; "), "no unit is started");
                }
            })?;
        Ok(Self(sender))
    }

    pub(super) fn announce(&self, fenced: bool) {
        self.0.send_replace(Some(fenced));
    }
}

async fn start_all(
    names: UnitNames,
    mut wanted: watch::Receiver<Option<bool>>,
    monitor: Sender,
    start: impl AsyncFn(&str) -> Result<(), UnitsError>,
) {
    while wanted.changed().await.is_ok() {
        let Some(fenced) = *wanted.borrow_and_update() else {
            continue;
        };
        let unit = if fenced {
            &names.on_fence
        } else {
            &names.on_unfence
        };
        if let Some(unit) = unit {
            tokio::select! {
                () = until_started(unit, &start) => {}
                // What was wanted is not any more.
                Ok(()) = changed(&mut wanted) => continue,
            }
        }
        let _ = monitor.send(Message::Announced(fenced)).await;
    }
}

/// Something else is wanted; it is left for the next look.
async fn changed(wanted: &mut watch::Receiver<Option<bool>>) -> Result<(), watch::error::RecvError> {
    wanted.changed().await?;
    wanted.mark_changed();
    Ok(())
}

async fn until_started(unit: &str, start: &impl AsyncFn(&str) -> Result<(), UnitsError>) {
    let mut pause = PAUSE;
    let mut said = None;
    loop {
        match start(unit).await {
            Ok(()) => return tracing::info!(unit, "started"),
            Err(error) => {
                let why = error.to_string();
                if said.as_ref() != Some(&why) {
                    tracing::error!(unit, why, "cannot start the unit; trying again");
                    said = Some(why);
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MOST);
    }
}

#[cfg(test)]
#[path = "starter_tests.rs"]
mod tests;
