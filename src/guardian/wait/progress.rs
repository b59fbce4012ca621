//! What is known of each database while `wait` runs, and when that is enough. Pure.

use std::time::Duration;

use crate::probe::{Cause, Verdict};

/// What is known of all databases.
#[derive(Debug)]
pub(super) struct Progress {
    attempts: u32,
    databases: Vec<Database>,
}

#[derive(Debug, Default)]
struct Database {
    /// Attempts made.
    made: u32,
    /// What the last one found.
    last: Option<Verdict>,
}

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// At least one database is not ready, and has attempts left.
    Waiting,
    /// Every database was ready when it was asked last.
    AllReady,
    /// No attempts are left, and at least one database is not ready.
    GaveUp,
}

impl Progress {
    /// Nothing is known yet of `count` databases, each of which is asked at most `attempts` times.
    pub(super) fn new(count: usize, attempts: u32) -> Self {
        Self {
            attempts,
            databases: std::iter::repeat_with(Database::default).take(count).collect(),
        }
    }

    /// An attempt on database `index` found `verdict`. Returns whether that is news.
    pub(super) fn record(&mut self, index: usize, verdict: Verdict) -> bool {
        let Some(database) = self.databases.get_mut(index) else {
            return false;
        };
        database.made += 1;
        let news = database.last.as_ref() != Some(&verdict);
        database.last = Some(verdict);
        news
    }

    /// Attempts made on database `index`.
    pub(super) fn made(&self, index: usize) -> u32 {
        self.databases.get(index).map_or(0, |database| database.made)
    }

    /// How things stand.
    pub(super) fn state(&self) -> State {
        let ready = |d: &Database| d.last.as_ref().is_some_and(Verdict::is_ready);
        if self.databases.iter().all(ready) {
            State::AllReady
        } else if self.databases.iter().all(|d| d.made >= self.attempts) {
            State::GaveUp
        } else {
            State::Waiting
        }
    }

    /// The databases that are not ready, and why where it is known.
    pub(super) fn not_ready(&self) -> impl Iterator<Item = (usize, Option<&Cause>)> {
        self.databases
            .iter()
            .enumerate()
            .filter_map(|(index, database)| match &database.last {
                None => Some((index, None)),
                Some(Verdict::NotReady(cause)) => Some((index, Some(cause))),
                Some(Verdict::Ready) => None,
            })
    }
}

/// One line on why the wait for `database` ended without success.
pub(super) fn explain(database: &str, made: u32, elapsed: Duration, cause: Option<&Cause>) -> String {
    let elapsed = shown(elapsed);
    let attempts = if made == 1 { "attempt" } else { "attempts" };
    match cause {
        Some(cause) => format!("{database} is not ready after {made} {attempts} in {elapsed}: {cause}"),
        None => format!("{database} is not ready: no attempt was finished in {elapsed}"),
    }
}

/// A duration as people read it: `3.2s`, `4m 10s`.
pub(super) fn shown(elapsed: Duration) -> String {
    if elapsed < Duration::from_secs(60) {
        format!("{:.1}s", elapsed.as_secs_f64())
    } else {
        humantime::format_duration(Duration::from_secs(elapsed.as_secs())).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Verdict {
        Verdict::NotReady(Cause::Refused)
    }

    #[test]
    fn all_must_be_ready_and_only_changes_are_news() {
        let mut progress = Progress::new(2, 3);
        assert_eq!(progress.state(), State::Waiting);
        assert!(progress.record(0, refused()));
        assert!(!progress.record(0, refused()));
        assert!(progress.record(0, Verdict::Ready));
        assert_eq!(progress.state(), State::Waiting);
        assert!(progress.record(1, Verdict::Ready));
        assert_eq!(progress.state(), State::AllReady);
        assert_eq!(progress.not_ready().count(), 0);
    }

    #[test]
    fn a_database_that_goes_away_while_another_is_awaited_is_awaited_again() {
        let mut progress = Progress::new(2, 3);
        progress.record(0, Verdict::Ready);
        assert!(progress.record(0, refused()));
        progress.record(1, Verdict::Ready);
        assert_eq!(progress.state(), State::Waiting);
        assert!(progress.record(0, Verdict::Ready));
        assert_eq!(progress.state(), State::AllReady);
    }

    #[test]
    fn it_gives_up_when_nobody_has_attempts_left_and_names_who_is_missing() {
        let mut progress = Progress::new(3, 2);
        for _ in 0..2 {
            progress.record(0, Verdict::Ready);
            progress.record(1, refused());
        }
        assert_eq!(progress.state(), State::Waiting, "the third has attempts left");
        progress.record(2, Verdict::NotReady(Cause::Loading));
        progress.record(2, Verdict::Ready);
        assert_eq!(progress.state(), State::GaveUp);
        let missing: Vec<_> = progress.not_ready().collect();
        assert_eq!(missing, [(1, Some(&Cause::Refused))]);
        assert_eq!(progress.made(1), 2);
    }

    #[test]
    fn the_end_is_explained() {
        let line = explain(
            "redis db:6379",
            60,
            Duration::from_secs(300),
            Some(&Cause::Refused),
        );
        assert!(
            line.starts_with("redis db:6379 is not ready after 60 attempts in 5m: connection refused"),
            "{line}"
        );
        let line = explain("redis db:6379", 0, Duration::from_millis(1234), None);
        assert_eq!(
            line,
            "redis db:6379 is not ready: no attempt was finished in 1.2s"
        );
    }
}
