//! How long a beat may be late. A disk that is busy completes writes, one that hangs completes none: it is one that hangs when for a heartbeat neither
//! a beat came nor a write of anybody's was completed. So a disk that stalls is fenced within a heartbeat, as if nobody looked, whatever it did before.
//!
//! Less than that would not do: a flush may hold up all of a disk, such as a virtual one's, for a second and more. Where no disk can be seen
//! to work, silence decides alone; and one that works without a beat is fenced at the busy limit.

use std::time::Duration;

use tokio::time::Instant;

use super::events::Watch;

/// How often a disk is looked at while a beat is late, at most and at least.
const LOOK: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(250)];

/// What is known of a folder's disk since the folder's last beat.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// It has completed a write after that.
    pub(super) worked: Option<Instant>,
    last_look: Option<Instant>,
    next_look: Option<Instant>,
    /// That it is busy has been said.
    pub(super) said: bool,
}

impl Patience {
    /// When the disk is to be looked at: from a quarter of a heartbeat on, which is later than beats of one that is not busy.
    pub(super) fn look_at(&self, beat: Instant, watch: &Watch) -> Option<Instant> {
        let first = beat + watch.heartbeat / 4;
        (watch.busy_limit > watch.heartbeat).then(|| self.next_look.unwrap_or(first))
    }

    /// It was looked at.
    pub(super) fn looked(&mut self, now: Instant, watch: &Watch, works: bool) {
        let [least, most] = LOOK;
        self.next_look = Some(now + (watch.heartbeat / 16).clamp(least, most));
        let before = self.last_look.replace(now);
        if works {
            // It may have been just after that look: a stall that began then is not to be seen late.
            self.worked = before;
        }
    }

    /// Until when silence is no stall.
    pub(super) fn until(&self, beat: Instant, watch: &Watch) -> Instant {
        let silent = beat + watch.heartbeat;
        let busy = self
            .worked
            .map(|at| (at + watch.heartbeat).min(beat + watch.busy_limit));
        busy.map_or(silent, |until| silent.max(until))
    }
}
