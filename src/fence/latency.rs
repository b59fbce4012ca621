//! How long writes took in the last minute.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(60);
/// More than the shortest pause between two beats gives in that time.
const MOST: usize = 1_500;

#[derive(Debug, Default)]
pub(super) struct Latency(VecDeque<(Instant, Duration)>);

impl Latency {
    pub(super) fn add(&mut self, now: Instant, took: Duration) {
        while self
            .0
            .front()
            .is_some_and(|(at, _)| self.0.len() >= MOST || now.saturating_duration_since(*at) > WINDOW)
        {
            self.0.pop_front();
        }
        self.0.push_back((now, took));
    }

    /// The time that 99 of 100 writes did not exceed. With fewer than a hundred it is that of the slowest one.
    pub(super) fn p99(&self, now: Instant) -> Option<Duration> {
        let recent = self
            .0
            .iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) <= WINDOW);
        let mut all: Vec<_> = recent.map(|(_, took)| *took).collect();
        let at = (all.len() * 99).div_ceil(100).checked_sub(1)?;
        Some(*all.select_nth_unstable(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_p99_is_of_the_last_minute() {
        let start = Instant::now();
        let mut latency = Latency::default();
        assert_eq!(latency.p99(start), None);
        latency.add(start, Duration::from_secs(9));
        assert_eq!(latency.p99(start), Some(Duration::from_secs(9)));
        for ms in 1..=200 {
            latency.add(
                start + Duration::from_millis(60_000 + ms),
                Duration::from_millis(ms),
            );
        }
        let now = start + Duration::from_millis(60_200);
        assert_eq!(latency.p99(now), Some(Duration::from_millis(198)));
        assert_eq!(latency.p99(now + Duration::from_secs(120)), None);
        for _ in 0..10_000 {
            latency.add(now, Duration::ZERO);
        }
        assert!(latency.0.len() <= MOST);
    }
}
