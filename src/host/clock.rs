//! The clock that leases go by: CLOCK_BOOTTIME, which nobody sets and which counts the time that a host is suspended.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::clock_gettime;
use tokio::io::unix::AsyncFd;

use super::readable::{Steady, readable};

/// Time since this host booted, time in suspend included. If ever the kernel did not say, it would be later than any lease lasts.
pub fn boottime() -> Duration {
    clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

/// Wakes at a moment of [`boottime`]. Timers of tokio do not count suspend: a lease that ended in the host's sleep would seem alive for
/// as long as it slept. One that is due fires as soon as the host is awake; it wakes no host.
pub struct BootTimer {
    timer: AsyncFd<Steady<TimerFd>>,
    due: Option<Duration>,
}

impl BootTimer {
    /// One that is not armed. To be called within a runtime of tokio.
    ///
    /// # Errors
    /// When the kernel has no more timers for us.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            timer: readable(TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?)?,
            due: None,
        })
    }

    /// Lets it fire once at `at`, instead of what it was armed for. What is past is due at once.
    ///
    /// # Errors
    /// When the kernel does not take it; then it is armed as before.
    pub fn arm(&mut self, at: Duration) -> io::Result<()> {
        if self.due == Some(at) {
            return Ok(());
        }
        // At zero a timer is not armed, as the kernel reads it.
        let moment = at.max(Duration::from_nanos(1)).into();
        let timer = self.timer.get_ref().get();
        timer.set(Expiration::OneShot(moment), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        self.due = Some(at);
        Ok(())
    }

    /// Waits until it fires, and for ever while it is not armed. May be dropped before it is done, and asked again: nothing is lost.
    ///
    /// # Errors
    /// When the runtime or the kernel cannot wait.
    pub async fn wait(&mut self) -> io::Result<()> {
        let Some(due) = self.due else {
            return std::future::pending().await;
        };
        while boottime() < due {
            let mut ready = self.timer.readable().await?;
            match ready.get_inner().get().wait() {
                // To arm it takes back what it was armed for before: this is what it is armed for now.
                Ok(()) => break,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        self.due = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn it_fires_once_at_its_moment_and_never_before() {
        let mut timer = BootTimer::new().unwrap();
        assert!(timer.wait().now_or_never().is_none(), "nothing is armed");
        let due = boottime() + SOON;
        timer.arm(due).unwrap();
        timer.wait().await.unwrap();
        assert!(boottime() >= due);
        assert!(timer.wait().now_or_never().is_none(), "it fires once");
        timer.arm(Duration::ZERO).unwrap();
        timer.wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_or_armed_anew_loses_nothing() {
        let mut timer = BootTimer::new().unwrap();
        let first = boottime() + SOON;
        timer.arm(first).unwrap();
        {
            let waiting = pin!(timer.wait());
            assert!(waiting.now_or_never().is_none());
        }
        let second = first + SOON;
        timer.arm(second).unwrap();
        timer.wait().await.unwrap();
        assert!(boottime() >= second, "what it was armed for last counts");
        // Due, and not waited for yet.
        let third = boottime() + SOON;
        timer.arm(third).unwrap();
        tokio::time::sleep(2 * SOON).await;
        timer.wait().await.unwrap();
        let fourth = boottime() + SOON;
        timer.arm(fourth).unwrap();
        timer.wait().await.unwrap();
        assert!(boottime() >= fourth, "what had fired before is not taken for it");
    }
}
