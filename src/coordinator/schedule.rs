//! Who is contacted next, and when again. Pure: time and chance are arguments.
//!
//! Hosts that have not been tried yet come before those that are tried again, and a host that waits for its next
//! attempt takes no place from others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(15);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Contact this host.
    Start(usize),
    /// Nothing is due before this time.
    Wait(Instant),
    /// Nothing is left to start.
    Done,
}

/// The hosts by number, 0 to n-1.
#[derive(Debug)]
pub struct Schedule {
    fresh: std::ops::Range<usize>,
    again: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Schedule {
    /// All `hosts` are to be contacted, in their order.
    pub fn new(hosts: usize) -> Self {
        Self {
            fresh: 0..hosts,
            again: BinaryHeap::new(),
        }
    }

    /// The same, each at a moment of its own within `jitter` from `now` on: what starts on a thousand hosts at once asks its database
    /// a thousand things at once.
    pub fn spread(
        hosts: usize,
        now: Instant,
        jitter: Duration,
        mut chance: impl FnMut(usize) -> u64,
    ) -> Self {
        if jitter.is_zero() {
            return Self::new(hosts);
        }
        let mut schedule = Self::new(0);
        for host in 0..hosts {
            // 0 to 65535 of 65536: from none to almost all of it.
            let part = jitter * u32::from((chance(host) & 0xffff) as u16) / 65_536;
            schedule.again(host, now + part);
        }
        schedule
    }

    /// Contact `host` again at `at`.
    pub fn again(&mut self, host: usize, at: Instant) {
        self.again.push(Reverse((at, host)));
    }

    /// What is due at `now`. A host is handed out once.
    pub fn next(&mut self, now: Instant) -> Next {
        if let Some(host) = self.fresh.next() {
            return Next::Start(host);
        }
        match self.again.peek() {
            None => Next::Done,
            Some(Reverse((at, _))) if *at > now => Next::Wait(*at),
            Some(_) => self
                .again
                .pop()
                .map_or(Next::Done, |Reverse((_, host))| Next::Start(host)),
        }
    }
}

/// When to try again after attempt number `attempts` (1 is the first) failed at `now`; none once `until` has passed.
///
/// The delay doubles from a quarter of a second to 15 s, and `chance` shortens it by up to half, so that
/// coordinators and hosts that failed together do not come back together. The last attempt starts at `until`.
pub fn retry_at(now: Instant, until: Option<Instant>, attempts: u32, chance: u64) -> Option<Instant> {
    let until = until.filter(|until| now < *until)?;
    let doubled = FIRST_DELAY.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let full = doubled.min(LONGEST_DELAY);
    // 0 to 65535 of 131072: from none to half.
    let shorter = full * u32::from((chance & 0xffff) as u16) / 131_072;
    Some((now + full - shorter).min(until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_hosts_come_before_those_tried_again() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut schedule = Schedule::new(2);
        assert_eq!(schedule.next(now), Next::Start(0));
        schedule.again(0, later);
        assert_eq!(schedule.next(later), Next::Start(1));
        assert_eq!(schedule.next(now), Next::Wait(later));
        assert_eq!(schedule.next(later), Next::Start(0));
        assert_eq!(schedule.next(later), Next::Done);
    }

    #[test]
    fn hosts_are_spread_over_the_jitter_and_none_is_forgotten() {
        let now = Instant::now();
        let jitter = Duration::from_secs(10);
        let chances = [0, 0x8000, 0xffff];
        let mut schedule = Schedule::spread(3, now, jitter, |host| chances[host]);
        assert_eq!(schedule.next(now), Next::Start(0));
        assert_eq!(schedule.next(now), Next::Wait(now + jitter / 2));
        assert_eq!(schedule.next(now + jitter), Next::Start(1));
        assert_eq!(schedule.next(now + jitter), Next::Start(2));
        assert_eq!(schedule.next(now + jitter), Next::Done);
        assert_eq!(
            Schedule::spread(1, now, Duration::ZERO, |_| 7).next(now),
            Next::Start(0)
        );
    }

    #[test]
    fn delays_grow_are_jittered_and_end() {
        let now = Instant::now();
        let until = Some(now + Duration::from_secs(3600));
        let delay = |attempts, chance| retry_at(now, until, attempts, chance).unwrap() - now;
        assert_eq!(delay(1, 0), Duration::from_millis(250));
        assert_eq!(delay(3, 0), Duration::from_secs(1));
        assert_eq!(delay(1_000, 0), LONGEST_DELAY);
        for attempts in [1, 2, 5, 50, u32::MAX] {
            let (full, short) = (delay(attempts, 0), delay(attempts, u64::MAX));
            assert!(
                short < full && short >= full / 2,
                "{attempts}: {short:?} of {full:?}"
            );
        }
        assert_eq!(retry_at(now, None, 1, 0), None, "no --retry-for");
        assert_eq!(retry_at(now, Some(now), 1, 0), None, "it has passed");
        let soon = now + Duration::from_millis(10);
        assert_eq!(
            retry_at(now, Some(soon), 9, 0),
            Some(soon),
            "one last attempt at the end"
        );
    }
}
