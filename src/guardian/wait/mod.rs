//! `io-guardian wait`: holds a boot until the databases really answer.
//!
//! **Promise.** Exit code 0 means that every database named was ready when it was asked last, and that this was at
//! most one interval and one timeout ago: a ready one is asked on, at the same pace, while another is awaited, and is
//! awaited again when it goes away. Attempts *start* one interval apart (or as soon as the one before is over, when
//! that took longer). Only those that do not find a database ready are limited, so the whole takes at most
//! attempts × max(interval, timeout) when none that was ready goes away: five minutes by default. However they come
//! and go, it takes no more than databases × attempts × (interval + timeout): at any time one is missing, and that
//! uses up its attempts.
//!
//! **What it does not guarantee.** It ends when the databases are ready and watches nothing afterwards.

mod progress;
mod report;

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::{FuturesUnordered, Stream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::databases::DatabaseArgs;
use crate::cli::{self, Failure};
use crate::probe::{Probe, Verdict};
use crate::telemetry::{self, notify};

use progress::{Progress, State, explain};
use report::{Attempt, Report};

/// What is added to the time that the next attempt may take, when the service manager is told how long we make sense.
const NOTIFY_MARGIN: Duration = Duration::from_secs(10);

const AFTER_HELP: &str = "\
Attempts on a database start one --interval apart, or as soon as the one before
is over: by default all is over after five minutes. Databases are asked in
parallel, and all must be ready at the same time: a ready one is asked on while
another is awaited. Attempts that find it ready do not count; one that goes away
again has the attempts that it has left, and may so make it take longer.

Ready means that a query would be served:
  PostgreSQL  With --user: SELECT 1 comes back from --database. Without: it
              accepts connections, and is not starting, stopping, recovering
              or full.
  Redis       PING is answered with PONG, not with an error such as LOADING,
              MASTERDOWN, NOAUTH or MISCONF.

Exit codes:
   0  all databases are ready
   1  one was not ready at its last attempt, or a signal came first; each that
      is not ready is named with its cause
  64  the command line is wrong
  78  a password file cannot be read, or is empty

In a unit: Type=oneshot with NotifyAccess=main, or Type=notify. This command
then prolongs TimeoutStartSec= for as long as it has attempts left.";

/// Wait until the databases really answer.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct WaitArgs {
    #[command(flatten)]
    databases: DatabaseArgs,
    /// How often a database may be found not ready before giving up on it, or `unlimited`.
    #[arg(long, value_name = "N", default_value = "60", value_parser = attempts_limit)]
    attempts: u32,
    /// Time from the start of one attempt to the start of the next.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = cli::parse_duration)]
    interval: Duration,
    /// Deadline of one attempt, the lookup of the name included.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = cli::parse_duration)]
    timeout: Duration,
}

/// A limit that is never reached: at ten attempts a second it would take 13 years.
const UNLIMITED: u32 = u32::MAX;

fn attempts_limit(text: &str) -> Result<u32, String> {
    match text.parse() {
        _ if text == "unlimited" => Ok(UNLIMITED),
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!(
            "expected a whole number from 1 to {UNLIMITED}, or `unlimited`"
        )),
    }
}

/// Runs `io-guardian wait`.
pub fn run(args: &WaitArgs) -> Result<u8, Failure> {
    let probes = probes(args)?;
    telemetry::start(telemetry::stderr_is_journal());
    let pace = Pace {
        attempts: args.attempts,
        interval: args.interval,
        timeout: args.timeout,
    };
    cli::block_on(wait(probes, pace))?
}

fn probes(args: &WaitArgs) -> Result<Vec<Probe>, Failure> {
    if args.databases.is_empty() {
        return Err(Failure::usage(
            "wait: there is nothing to wait for; name a database with --postgres HOST[:PORT] or --redis HOST[:PORT]",
        ));
    }
    args.databases.check("wait")?;
    args.databases.probes("wait")
}

#[derive(Clone, Copy)]
struct Pace {
    attempts: u32,
    interval: Duration,
    timeout: Duration,
}

impl Pace {
    /// How old an answer can be when the next one is there, and so how old one may be that counts.
    fn fresh(self) -> Duration {
        self.interval.saturating_add(self.timeout)
    }

    /// How long we may be silent and still make sense.
    fn patience(self) -> Duration {
        self.interval.max(self.timeout) + self.timeout + NOTIFY_MARGIN
    }
}

async fn wait(probes: Vec<Probe>, pace: Pace) -> Result<u8, Failure> {
    let cannot = |error| Failure::failed(format!("wait: cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let names: Vec<String> = probes.iter().map(Probe::to_string).collect();
    let report = Report::start(&names);
    let mut progress = Progress::new(probes.len(), pace.attempts, pace.fresh());
    let began = Instant::now();
    notify::extend_timeout(pace.patience());
    notify::status(&format!("waiting for {}", names.join(", ")));
    let mut verdicts = attempts(probes, pace);
    let mut signal = None;
    while progress.state(Instant::now()) == State::Waiting {
        let (index, when, verdict) = tokio::select! {
            biased;
            name = either(&mut terminate, &mut interrupt) => {
                signal = Some(name);
                break;
            }
            next = verdicts.next() => match next {
                Some(next) => next,
                None => break,
            },
        };
        let news = progress.record(index, when, verdict.clone());
        report.attempt(&Attempt {
            index,
            database: &names[index],
            failed: progress.failed(index),
            found_ready: progress.found_ready(index),
            of: pace.attempts,
            elapsed: began.elapsed(),
            verdict: &verdict,
            news,
        });
        notify::extend_timeout(pace.patience());
        if news {
            notify::status(&status(&names, &progress));
        }
    }
    drop(verdicts);
    let elapsed = began.elapsed();
    if signal.is_none() && progress.not_ready().next().is_none() {
        notify::ready("all databases are ready");
        return Ok(0);
    }
    let mut messages: Vec<String> = progress
        .not_ready()
        .map(|(index, cause)| {
            let (failed, ready) = (progress.failed(index), progress.found_ready(index));
            explain(&names[index], failed, ready, elapsed, cause)
        })
        .collect();
    if let Some(name) = signal {
        messages.insert(0, format!("ended by {name} before all databases were ready"));
    }
    notify::stopping(&messages.join("; "));
    Err(fail(&report, messages))
}

/// On a terminal the messages are printed; elsewhere they are logged, for a journal to show them as errors.
fn fail(report: &Report, messages: Vec<String>) -> Failure {
    let messages = match report {
        Report::Terminal(_) => messages,
        Report::Lines => {
            for message in messages {
                tracing::error!("{message}");
            }
            Vec::new()
        }
    };
    Failure {
        code: cli::EXIT_FAILED,
        messages,
    }
}

fn status(names: &[String], progress: &Progress) -> String {
    let missing: Vec<String> = progress
        .not_ready()
        .map(|(index, cause)| match cause {
            Some(cause) => format!("{}: {cause}", names[index]),
            None => names[index].clone(),
        })
        .collect();
    format!("waiting for {}", missing.join("; "))
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// What an attempt found: index of the database, when, and the verdict.
type Found = (usize, Instant, Verdict);

/// The verdicts on all databases as they come; each database has its own loop of attempts.
fn attempts(probes: Vec<Probe>, pace: Pace) -> impl Stream<Item = Found> + Unpin {
    let (found, mut verdicts) = mpsc::channel(probes.len().max(1));
    let loops: FuturesUnordered<_> = probes
        .into_iter()
        .enumerate()
        .map(|(index, probe)| one(index, probe, pace, found.clone()))
        .collect();
    drop(found);
    // The loops run inside the stream: who drops it ends every attempt at once.
    let mut loops = Box::pin(loops.collect::<()>());
    let mut running = true;
    futures_util::stream::poll_fn(move |cx| {
        if running && loops.as_mut().poll(cx).is_ready() {
            running = false;
        }
        verdicts.poll_recv(cx)
    })
}

/// Asks one database until it was not ready too often, and for as long as the verdicts are taken.
async fn one(index: usize, mut probe: Probe, pace: Pace, found: mpsc::Sender<Found>) {
    let mut start = Instant::now();
    let mut left = pace.attempts;
    while left > 0 {
        sleep_until(start).await;
        let verdict = probe.attempt(start + pace.timeout).await;
        if !verdict.is_ready() {
            left -= 1;
        }
        if found.send((index, Instant::now(), verdict)).await.is_err() {
            return;
        }
        start = Instant::now().max(start + pace.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::HostPort;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        wait: WaitArgs,
    }

    fn parse(args: &[&str]) -> WaitArgs {
        Cli::try_parse_from(std::iter::once("wait").chain(args.iter().copied()))
            .unwrap_or_else(|error| panic!("{error}"))
            .wait
    }

    fn failure(args: &[&str]) -> Failure {
        let args = parse(args);
        probes(&args).map(drop).unwrap_err()
    }

    #[test]
    fn the_defaults_are_five_minutes() {
        let args = parse(&["--redis", "db"]);
        assert_eq!(
            (args.attempts, args.interval, args.timeout),
            (60, Duration::from_secs(5), Duration::from_secs(5))
        );
    }

    #[test]
    fn databases_are_named_with_their_ports() {
        let args = parse(&[
            "--postgres",
            "db",
            "--postgres",
            "[::1]:5433",
            "--redis",
            "db",
            "--redis",
            "x:1",
        ]);
        let names: Vec<_> = probes(&args).unwrap().iter().map(Probe::to_string).collect();
        assert_eq!(
            names,
            [
                "postgres db:5432",
                "postgres [::1]:5433",
                "redis db:6379",
                "redis x:1"
            ]
        );
    }

    #[test]
    fn a_wrong_command_line_is_told_with_its_remedy() {
        for (args, remedy) in [
            (&[][..], "--postgres HOST[:PORT] or --redis HOST[:PORT]"),
            (&["--postgres", "db", "--require-primary"], "--user"),
            (&["--redis", "db", "--user", "x"], "add --postgres"),
            (
                &["--postgres", "db", "--redis-password-file", "/x"],
                "add --redis",
            ),
        ] {
            let failure = failure(args);
            assert_eq!(failure.code, cli::EXIT_USAGE);
            assert!(failure.messages[0].contains(remedy), "{failure:?}");
        }
        for args in [
            &["--redis", "db", "--attempts", "0"][..],
            &["--redis", "db", "--attempts", "forever"],
            &["--redis", "db", "--interval", "0s"],
            &["--redis", "a:b:c"],
            &["--postgres", "db", "--password-file", "/x"],
            &["--redis", "db", "--redis-user", "x"],
            &["--postgres", "db", "--user", ""],
        ] {
            assert!(
                Cli::try_parse_from(std::iter::once("wait").chain(args.iter().copied())).is_err(),
                "{args:?}"
            );
        }
    }

    #[test]
    fn all_wrong_password_files_are_named_at_once() {
        let failure = failure(&[
            "--postgres",
            "db",
            "--user",
            "x",
            "--password-file",
            "/no/such/a",
            "--redis",
            "db",
            "--redis-password-file",
            "/no/such/b",
        ]);
        assert_eq!(failure.code, cli::EXIT_CONFIG);
        assert!(failure.messages[0].contains("/no/such/a") && failure.messages[1].contains("/no/such/b"));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_start_one_interval_apart() {
        // A port of this machine on which nobody listens any more: refused at once.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = HostPort::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        drop(listener);
        let pace = Pace {
            attempts: 3,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
        };
        let began = Instant::now();
        let found: Vec<_> = attempts(vec![Probe::redis(address, None)], pace).collect().await;
        assert_eq!(found.len(), 3);
        assert!(began.elapsed() >= Duration::from_secs(10) && began.elapsed() < Duration::from_secs(15));
    }
}
