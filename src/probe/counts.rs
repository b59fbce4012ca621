//! Rise and fall: one attempt says little, several in a row are a verdict. Pure.
//!
//! **Promise.** Nothing is known at first. From then on: healthy after `rise` successes in a row, unhealthy after `fall`
//! failures in a row, and each change is said once.
//!
//! **The first verdict.** Who starts has to show `rise` successes before it is healthy: an address must not go to a node
//! that was lucky once. The first failure, while nothing is known yet, is a verdict at once: nothing is lost by it, for
//! unknown is treated like unhealthy, and the operator reads why without waiting for `fall` attempts.

use std::num::NonZeroU32;

/// What the attempts say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No verdict yet. To be treated like unhealthy.
    Unknown,
    /// `rise` successes in a row, and since then never `fall` failures in a row.
    Healthy,
    /// A failure before any verdict, or `fall` failures in a row; and since then never `rise` successes in a row.
    Unhealthy,
}

/// Counts the attempts of one check.
#[derive(Clone, Debug)]
pub struct Counts {
    rise: NonZeroU32,
    fall: NonZeroU32,
    health: Health,
    /// Attempts in a row that speak against `health`.
    against: u32,
}

impl Counts {
    /// Healthy after `rise` successes in a row, unhealthy after `fall` failures in a row.
    pub fn new(rise: NonZeroU32, fall: NonZeroU32) -> Self {
        Self {
            rise,
            fall,
            health: Health::Unknown,
            against: 0,
        }
    }

    /// The same with nothing counted yet.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self::new(self.rise, self.fall)
    }

    /// Counts one attempt. The verdict, where it is another one than before: a failure is the last one's.
    pub fn note(&mut self, seen: Result<(), String>) -> Option<Result<(), String>> {
        let (now, needed) = match (&seen, self.health) {
            (Ok(()), Health::Healthy) | (Err(_), Health::Unhealthy) => {
                self.against = 0;
                return None;
            }
            (Ok(()), _) => (Health::Healthy, self.rise.get()),
            (Err(_), Health::Unknown) => (Health::Unhealthy, 1),
            (Err(_), Health::Healthy) => (Health::Unhealthy, self.fall.get()),
        };
        self.against += 1;
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.health = now;
        Some(seen)
    }

    /// The verdict as it stands.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Whether the last attempt spoke against the verdict, or there is none: then the next attempt is worth making sooner.
    pub fn is_in_doubt(&self) -> bool {
        self.against > 0 || self.health == Health::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rise: u32, fall: u32) -> Counts {
        Counts::new(NonZeroU32::new(rise).unwrap(), NonZeroU32::new(fall).unwrap())
    }

    /// `+` is a success and `-` a failure; the answers are `+` healthy, `-` unhealthy, `.` nothing new.
    fn said(counts: &mut Counts, attempts: &str) -> String {
        let one = |attempt| match counts.note(if attempt == '+' {
            Ok(())
        } else {
            Err("why".to_owned())
        }) {
            None => '.',
            Some(Ok(())) => '+',
            Some(Err(why)) => {
                assert_eq!(why, "why");
                '-'
            }
        };
        attempts.chars().map(one).collect()
    }

    #[test]
    fn rise_and_fall_are_counted_in_a_row_and_each_change_is_said_once() {
        for (rise, fall, attempts, answers) in [
            (1, 1, "++--+-", "+.-.+-"),
            (2, 3, "++---++---", ".+..-.+..-"),
            // Not in a row.
            (2, 3, "++--+--+---", ".+........-"),
            (3, 1, "-++-+++", "-.....+"),
            // While nothing is known: `rise` successes, or one failure.
            (3, 3, "+++", "..+"),
            (3, 3, "++-", "..-"),
            (1, 3, "-+", "-+"),
        ] {
            assert_eq!(said(&mut counts(rise, fall), attempts), answers, "{attempts}");
        }
    }

    #[test]
    fn nothing_is_known_at_first_and_doubt_is_told() {
        let mut counts = counts(2, 2);
        assert_eq!((counts.health(), counts.is_in_doubt()), (Health::Unknown, true));
        for (attempt, health, doubt) in [
            ("+", Health::Unknown, true),
            ("+", Health::Healthy, false),
            ("-", Health::Healthy, true),
            ("+", Health::Healthy, false),
            ("--", Health::Unhealthy, false),
            ("+", Health::Unhealthy, true),
            ("-", Health::Unhealthy, false),
        ] {
            said(&mut counts, attempt);
            assert_eq!((counts.health(), counts.is_in_doubt()), (health, doubt));
        }
    }
}
