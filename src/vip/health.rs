//! Whether this node is healthy: the check, again and again, until it is sure.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::config::{Checker, NodeArgs, Pace, Secret};
use crate::cli::{Failure, HostPort};
use crate::probe::{
    Check, CheckError, CommandCheck, Counts, Health, HttpCheck, Password, PasswordError, PostgresCheck,
    RedisCheck, RedisLogin, TlsFiles,
};

/// How often another reason of a check that goes on failing is a line in the journal.
const REASON_EVERY: Duration = Duration::from_secs(600);

/// What is known of the check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// None: nothing yet.
    pub(super) verdict: Option<Result<(), String>>,
    /// Why it fails now: the verdict's reason may be an older one.
    pub(super) latest: Option<String>,
}

/// What stands in the way of a check.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// What is wrong wherever it is read.
    pub(super) wrong: Vec<String>,
    /// The files that cannot be read here.
    pub(super) unread: Vec<String>,
}

impl Faults {
    fn add(&mut self, is_unread: bool, why: String) {
        match is_unread {
            true => self.unread.push(why),
            false => self.wrong.push(why),
        }
    }

    fn take<T>(&mut self, kind: &str, made: Result<T, CheckError>) -> Option<T> {
        made.map_err(|error| self.add(error.is_unread(), format!("checker-type {kind}: {error}")))
            .ok()
    }

    /// Something that stands for a password which cannot be read here: that there is one is known.
    fn password(&mut self, key: &str, given: &Option<Secret>, file: Option<&Path>) -> Option<Password> {
        let read = match (given, file) {
            (Some(secret), _) => Password::given(secret.expose().to_owned()),
            (None, Some(file)) => Password::read(file),
            (None, None) => return None,
        };
        match read {
            Ok(password) => Some(password),
            Err(error) => {
                self.add(
                    matches!(error, PasswordError::Read { .. }),
                    format!("{key}: {error}"),
                );
                Password::given("unread".to_owned()).ok()
            }
        }
    }

    fn host_port(&mut self, key: &str, text: &str) -> Option<HostPort> {
        HostPort::parse(text)
            .map_err(|error| self.wrong.push(format!("{key}: {error}")))
            .ok()
    }
}

/// What the node is asked; none: a node that runs is healthy.
///
/// # Errors
/// Exit code 78: what was given cannot be asked.
pub(super) fn check(node: &NodeArgs) -> Result<Option<Check>, Failure> {
    let (check, faults) = try_check(node);
    let all: Vec<String> = faults.wrong.into_iter().chain(faults.unread).collect();
    match all.is_empty() {
        true => Ok(check),
        false => Err(Failure::configs(all)),
    }
}

/// The same, as far as it can be made here.
pub(super) fn try_check(node: &NodeArgs) -> (Option<Check>, Faults) {
    let mut faults = Faults::default();
    let check = match node.checker_type {
        None | Some(Checker::None) => None,
        Some(Checker::Http) => {
            let check = http(node, &mut faults);
            faults.take("http", Check::http(check))
        }
        Some(Checker::Postgres) => {
            let check = postgres(node, &mut faults);
            faults.take("postgres", Check::postgres(check))
        }
        Some(Checker::Redis) => redis(node, &mut faults).map(Check::redis),
        Some(Checker::Tcp) => {
            let address = node.tcp_address.as_deref().unwrap_or_default();
            let address = faults.host_port("tcp-address", address);
            address.and_then(|address| faults.take("tcp", Check::tcp(address)))
        }
        Some(Checker::Command) => {
            let path = std::env::var_os("PATH").map(|path| ("PATH".into(), path));
            let check = CommandCheck {
                argv: node.command.clone().unwrap_or_default(),
                environment: path.into_iter().collect(),
            };
            faults.take("command", Check::command(check))
        }
    };
    (check, faults)
}

fn http(node: &NodeArgs, faults: &mut Faults) -> HttpCheck {
    let mut check = HttpCheck::new(node.http_url.clone().unwrap_or_default());
    check.user = node.http_user.clone();
    check.password = faults.password(
        "http-password",
        &node.http_password,
        node.http_password_file.as_deref(),
    );
    check.tls = TlsFiles {
        ca: node.http_ca_file.clone(),
        certificate: node.http_cert_file.clone(),
        key: node.http_key_file.clone(),
    };
    if let Some(code) = node.http_expected_code {
        check.expected_code = code;
    }
    check.expected_response = node.http_expected_response.clone();
    check.expected_response_contains = node.http_expected_response_contains.clone();
    check
}

fn postgres(node: &NodeArgs, faults: &mut Faults) -> PostgresCheck {
    let url = node.postgres_conn_url.as_ref().map(|url| url.expose().to_owned());
    let mut check = PostgresCheck::new(url.unwrap_or_default());
    check.user = node.postgres_user.clone();
    check.password = faults.password(
        "postgres-password",
        &node.postgres_password,
        node.postgres_password_file.as_deref(),
    );
    check.tls = TlsFiles {
        ca: node.postgres_ca_file.clone(),
        certificate: node.postgres_cert_file.clone(),
        key: node.postgres_key_file.clone(),
    };
    check.query = node.postgres_query.clone();
    check.expected_response = node.postgres_expected_response.clone();
    check
}

fn redis(node: &NodeArgs, faults: &mut Faults) -> Option<RedisCheck> {
    let password = faults.password("redis-password", &None, node.redis_password_file.as_deref());
    let address = node.redis_address.as_deref().unwrap_or("localhost");
    Some(RedisCheck {
        address: faults.host_port("redis-address", address)?,
        login: password.map(|password| RedisLogin { user: None, password }),
        expected_role: None,
    })
}

/// What is told of a check.
struct Verdicts {
    counts: Counts,
    /// How many failures in a row are the first verdict, where that is a bad one: more than one where something is held since a start of before, which was healthy.
    first: u32,
    failures: u32,
    /// When the last failure was told, and which.
    told: Option<(Instant, String)>,
}

impl Verdicts {
    /// Each verdict that is another one than before. And of a check that goes on failing the reason as it is now, from time to time: the journal must not have
    /// that of an hour ago alone, and one that fails in another way each time must not fill it.
    fn note(&mut self, now: Instant, seen: Result<(), String>) -> Option<Result<(), String>> {
        if self.counts.health() == Health::Unknown {
            self.failures = if seen.is_ok() {
                0
            } else {
                self.failures.saturating_add(1)
            };
            if (1..self.first).contains(&self.failures) {
                self.counts = self.counts.afresh();
                return None;
            }
        }
        let is_news = |why: &String| {
            let told = self.told.as_ref();
            told.is_none_or(|(at, told)| told != why && now.duration_since(*at) >= REASON_EVERY)
        };
        let changed = self.counts.note(seen.clone());
        let goes_on = self.counts.health() == Health::Unhealthy;
        let told =
            changed.or_else(|| Some(seen).filter(|seen| goes_on && seen.as_ref().is_err_and(is_news)))?;
        self.told = told.as_ref().err().map(|why| (now, why.clone()));
        Some(told)
    }
}

/// Asks again and again, and tells each verdict that is another one than before.
///
/// A node that `inherits` is healthy until the check has failed as often as for one that runs.
pub(super) async fn watch(check: Option<Check>, pace: Pace, inherits: bool, tell: watch::Sender<Told>) {
    let Some(mut check) = check else {
        tell.send_modify(|told| told.verdict = Some(Ok(())));
        return tell.closed().await;
    };
    let count = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    let mut verdicts = Verdicts {
        counts: Counts::new(count(pace.rise), count(pace.fall)),
        first: if inherits { pace.fall } else { 1 },
        failures: 0,
        told: None,
    };
    while !tell.is_closed() {
        let begun = Instant::now();
        let seen = check.attempt(begun + pace.timeout).await;
        let seen = seen.map_err(|why| format!("{check}: {why}"));
        let failed = seen.is_err();
        let latest = seen.as_ref().err().cloned();
        let verdict = verdicts.note(begun, seen);
        // Whoever waits is woken for a verdict only.
        tell.send_if_modified(|told| {
            told.latest = latest;
            let is_news = verdict.is_some();
            told.verdict = verdict.or(told.verdict.take());
            is_news
        });
        // While it is not sure, and while it waits for the node to come back, it asks faster.
        let pause = if failed || verdicts.counts.is_in_doubt() {
            pace.retry_after
        } else {
            pace.every
        };
        sleep(
            pause
                .saturating_sub(begun.elapsed())
                .max(pace.retry_after.min(pause) / 4),
        )
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_goes_on_failing_says_why_it_does_now() {
        let begun = Instant::now();
        let three = NonZeroU32::new(3).unwrap();
        let mut verdicts = Verdicts {
            counts: Counts::new(three, three),
            first: 1,
            failures: 0,
            told: None,
        };
        for (second, seen, told) in [
            (0, Err("refused"), true),
            (1, Err("500"), false),
            (2, Err("refused"), false),
            (600, Err("refused"), false),
            (601, Err("500"), true),
            (602, Err("503"), false),
            (603, Ok(()), false),
            (1_201, Err("503"), true),
            (1_900, Ok(()), false),
            (1_901, Ok(()), false),
            (1_902, Ok(()), true),
            (1_903, Err("503"), false),
            (1_904, Err("503"), false),
            (1_905, Err("503"), true),
        ] {
            let seen = seen.map_err(str::to_owned);
            let now = begun + Duration::from_secs(second);
            assert_eq!(verdicts.note(now, seen.clone()), told.then_some(seen), "{second}");
        }
    }

    #[test]
    fn who_goes_on_with_what_a_start_of_before_held_is_not_judged_by_one_failure() {
        let begun = Instant::now();
        let three = NonZeroU32::new(3).unwrap();
        let told = |rise, attempts: &str| {
            let mut verdicts = Verdicts {
                counts: Counts::new(NonZeroU32::new(rise).unwrap(), three),
                first: 3,
                failures: 0,
                told: None,
            };
            let one = |attempt| match verdicts.note(
                begun,
                if attempt == '+' {
                    Ok(())
                } else {
                    Err("why".to_owned())
                },
            ) {
                None => '.',
                Some(Ok(())) => '+',
                Some(Err(_)) => '-',
            };
            attempts.chars().map(one).collect::<String>()
        };
        assert_eq!(told(1, "---"), "..-");
        assert_eq!(told(1, "--+---"), "..+..-");
        assert_eq!(told(1, "+---"), "+..-");
        assert_eq!(told(2, "--+---"), ".....-");
        assert_eq!(told(2, "-+-+-++"), "......+");
    }
}
