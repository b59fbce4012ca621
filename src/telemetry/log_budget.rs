//! How often strangers may make us write a line. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Lines of one kind in one [`WINDOW`].
const LINES: u32 = 5;
/// See [`LINES`].
const WINDOW: Duration = Duration::from_secs(10);

/// A budget for one kind of line.
#[derive(Debug, Default)]
pub struct LogBudget {
    window: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogBudget {
    /// Whether a line may be written now; if so, how many were left out since the last one.
    pub fn spend(&mut self, now: Instant) -> Option<u64> {
        if self
            .window
            .is_none_or(|began| now.saturating_duration_since(began) >= WINDOW)
        {
            self.window = Some(now);
            self.lines = 0;
        }
        if self.lines < LINES {
            self.lines += 1;
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_count() {
        let mut budget = LogBudget::default();
        let now = Instant::now();
        let written = (0..1_000).filter(|_| budget.spend(now).is_some()).count();
        assert_eq!(written, 5);
        assert_eq!(budget.spend(now + WINDOW), Some(995));
        assert_eq!(budget.spend(now + WINDOW), Some(0));
    }
}
