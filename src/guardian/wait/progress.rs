//! What is known of each database while `wait` runs, and when that is enough. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::probe::{Cause, Verdict};

/// What is known of all databases.
#[derive(Debug)]
pub(super) struct Progress {
    attempts: u32,
    /// How old an answer may be and still count.
    fresh: Duration,
    databases: Vec<Database>,
}

#[derive(Debug, Default)]
struct Database {
    /// Attempts that did not find it ready: only these are limited.
    failed: u32,
    /// Attempts that found it ready.
    ready: u32,
    /// What the last one found, and when.
    last: Option<(Instant, Verdict)>,
}

impl Database {
    fn is_ready(&self) -> bool {
        self.last.as_ref().is_some_and(|(_, verdict)| verdict.is_ready())
    }
}

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// At least one database is not ready and has attempts left, or was ready too long ago and is asked again.
    Waiting,
    /// Every database was ready when it was asked last, a short time ago.
    AllReady,
    /// At least one database is not ready, and none of those has attempts left.
    GaveUp,
}

impl Progress {
    /// Nothing is known yet of `count` databases, each of which may be found not ready `attempts` times. An answer
    /// counts for as long as `fresh`.
    pub(super) fn new(count: usize, attempts: u32, fresh: Duration) -> Self {
        Self {
            attempts,
            fresh,
            databases: std::iter::repeat_with(Database::default).take(count).collect(),
        }
    }

    /// An attempt on database `index` found `verdict` at `when`. Returns whether that is news.
    pub(super) fn record(&mut self, index: usize, when: Instant, verdict: Verdict) -> bool {
        let Some(database) = self.databases.get_mut(index) else {
            return false;
        };
        if verdict.is_ready() {
            database.ready += 1;
        } else {
            database.failed += 1;
        }
        let news = database.last.as_ref().is_none_or(|(_, last)| *last != verdict);
        database.last = Some((when, verdict));
        news
    }

    /// Attempts on database `index` that did not find it ready.
    pub(super) fn failed(&self, index: usize) -> u32 {
        self.databases.get(index).map_or(0, |database| database.failed)
    }

    /// Attempts on database `index` that found it ready.
    pub(super) fn found_ready(&self, index: usize) -> u32 {
        self.databases.get(index).map_or(0, |database| database.ready)
    }

    /// How things stand at `now`.
    pub(super) fn state(&self, now: Instant) -> State {
        let missing = || self.databases.iter().filter(|d| !d.is_ready());
        let fresh = |d: &Database| {
            let when = d.last.as_ref().map(|(when, _)| *when);
            when.is_some_and(|when| now.saturating_duration_since(when) <= self.fresh)
        };
        if missing().any(|d| d.failed < self.attempts) {
            State::Waiting
        } else if missing().next().is_some() {
            State::GaveUp
        } else if self.databases.iter().all(fresh) {
            State::AllReady
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
                Some((_, Verdict::NotReady(cause))) => Some((index, Some(cause))),
                Some((_, Verdict::Ready)) => None,
            })
    }
}

/// One line on why the wait for `database` ended without success: `failed` attempts, and `ready` others that found it
/// ready.
pub(super) fn explain(
    database: &str,
    failed: u32,
    ready: u32,
    elapsed: Duration,
    cause: Option<&Cause>,
) -> String {
    let elapsed = shown(elapsed);
    let Some(cause) = cause else {
        return format!("{database} is not ready: no attempt was finished in {elapsed}");
    };
    let attempts = if failed == 1 { "attempt" } else { "attempts" };
    let before = match ready {
        0 => String::new(),
        1 => " (1 other found it ready)".to_owned(),
        _ => format!(" ({ready} others found it ready)"),
    };
    format!("{database} is not ready after {failed} {attempts} in {elapsed}{before}: {cause}")
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

    const FRESH: Duration = Duration::from_secs(10);

    #[test]
    fn all_must_be_ready_and_only_changes_are_news() {
        let now = Instant::now();
        let mut progress = Progress::new(2, 3, FRESH);
        assert_eq!(progress.state(now), State::Waiting);
        assert!(progress.record(0, now, refused()));
        assert!(!progress.record(0, now, refused()));
        assert!(progress.record(0, now, Verdict::Ready));
        assert_eq!(progress.state(now), State::Waiting);
        assert!(progress.record(1, now, Verdict::Ready));
        assert_eq!(progress.state(now), State::AllReady);
        assert_eq!(progress.not_ready().count(), 0);
    }

    #[test]
    fn a_database_that_goes_away_while_another_is_awaited_is_awaited_again() {
        let now = Instant::now();
        let mut progress = Progress::new(2, 3, FRESH);
        for _ in 0..5 {
            progress.record(0, now, Verdict::Ready);
        }
        assert!(progress.record(0, now, refused()));
        progress.record(1, now, Verdict::Ready);
        assert_eq!(progress.state(now), State::Waiting, "found ready does not count");
        assert!(progress.record(0, now, Verdict::Ready));
        assert_eq!(progress.state(now), State::AllReady);
    }

    #[test]
    fn one_that_comes_and_goes_has_no_more_attempts_than_others() {
        let now = Instant::now();
        let mut progress = Progress::new(2, 2, FRESH);
        progress.record(1, now, Verdict::Ready);
        for _ in 0..2 {
            assert_eq!(progress.state(now), State::Waiting);
            progress.record(0, now, refused());
            progress.record(1, now, refused());
            progress.record(0, now, Verdict::Ready);
        }
        assert_eq!(progress.state(now), State::GaveUp);
    }

    #[test]
    fn an_answer_of_long_ago_does_not_count() {
        let long_ago = Instant::now();
        let mut progress = Progress::new(2, 3, FRESH);
        progress.record(0, long_ago, Verdict::Ready);
        let now = long_ago + FRESH + Duration::from_millis(1);
        progress.record(1, now, Verdict::Ready);
        assert_eq!(progress.state(now), State::Waiting);
        progress.record(0, now, Verdict::Ready);
        assert_eq!(progress.state(now), State::AllReady);
    }

    #[test]
    fn it_gives_up_when_no_missing_one_has_attempts_left_and_names_who_is_missing() {
        let now = Instant::now();
        let mut progress = Progress::new(3, 2, FRESH);
        for _ in 0..2 {
            progress.record(0, now, Verdict::Ready);
            progress.record(1, now, refused());
        }
        assert_eq!(progress.state(now), State::Waiting, "the third has attempts left");
        progress.record(2, now, Verdict::NotReady(Cause::Loading));
        progress.record(2, now, Verdict::Ready);
        assert_eq!(progress.state(now), State::GaveUp);
        let missing: Vec<_> = progress.not_ready().collect();
        assert_eq!(missing, [(1, Some(&Cause::Refused))]);
        assert_eq!((progress.failed(1), progress.found_ready(1)), (2, 0));
    }

    #[test]
    fn the_end_is_explained() {
        let line = explain(
            "redis db:6379",
            60,
            0,
            Duration::from_secs(300),
            Some(&Cause::Refused),
        );
        assert!(
            line.starts_with("redis db:6379 is not ready after 60 attempts in 5m: connection refused"),
            "{line}"
        );
        let line = explain("redis db:6379", 0, 0, Duration::from_millis(1234), None);
        assert_eq!(
            line,
            "redis db:6379 is not ready: no attempt was finished in 1.2s"
        );
        let line = explain("x", 3, 4, Duration::from_secs(3), Some(&Cause::Refused));
        assert!(
            line.starts_with("x is not ready after 3 attempts in 3.0s (4 others found it ready): "),
            "{line}"
        );
    }
}
