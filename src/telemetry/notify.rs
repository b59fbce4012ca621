//! What the service manager is told (sd_notify(3)). Without one, every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Whether a service manager listens.
pub fn is_listened_to() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The service is ready to do its work.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line that `systemctl status` shows.
pub fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// The service has begun to end.
pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// The service makes progress. To be called with proof of it only.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// The start or stop under way may take `more` from now on, although its timeout would end it.
pub fn extend_timeout(more: Duration) {
    let microseconds = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// How often the watchdog wants to be fed, when it is on: half of `WatchdogSec=`, as sd_watchdog_enabled(3)
/// recommends.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|full| full / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}
