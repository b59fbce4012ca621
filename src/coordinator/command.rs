//! The command line: arguments, progress, printing, signals.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::apart::{self, Taken};
use super::hosts::{Targets, parse_file, parse_list};
use super::keys;
use super::report::exit_code;
use super::run::{Outcome, Plan, run as run_plan};
use super::supervise::supervise;
use super::table;
use super::watcher::Watcher;
use crate::cli::{self, EXIT_FAILED, EXIT_USAGE, Failure, PageCommand, parse_duration};
use crate::protocol::limits::HOLD_MAX_MS;
use crate::protocol::{Action, DEFAULT_PORT, HoldTerms, Keyring, Wire, is_reason};
use crate::telemetry::{self, notify};

/// Longest hosts file that is read, in bytes: 60,000 hosts with the longest of names.
const HOSTS_FILE_MAX: u64 = 16 << 20;
/// Descriptors for everything that is no conversation.
const SPARE_DESCRIPTORS: u64 = 32;

/// Tells the guardians of many hosts to drain or undrain, and waits until each has done it.
///
/// The exit code is 0 even if hosts failed, unless --fail-fast is given. 1: failed at run time, or interrupted.
/// 64: the command line is wrong. 78: a file that it names is wrong.
#[derive(Parser, Debug)]
#[command(name = "io-coordinator", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Stop everything that depends on the databases; `ok` means that nothing of it runs any more.
    Drain(Drain),
    /// Start it again; `ok` means that all that the target pulls in runs.
    Undrain(Change),
    /// Stop it and keep it stopped, whatever the databases and other coordinators do, until the time is over or it is released.
    Hold(Hold),
    /// End a hold: the hosts go where the rest of the fleet is.
    Release(Change),
    /// Ask whether the guardians are there and know the key.
    Ping(Options),
    /// Ask what the guardians guard, in which state it is, and what they were last told.
    Status(Options),
    /// Make a pre-shared key, or ask which hosts know which keys: for changing the fleet's key without a gap.
    #[command(subcommand)]
    Key(KeyCommand),
    #[command(flatten)]
    Page(PageCommand),
    /// For ourselves: see `apart`.
    #[command(name = apart::SUBCOMMAND, hide = true)]
    TakeGeneration { file: PathBuf },
}

#[derive(Subcommand, Debug)]
enum KeyCommand {
    /// Print a new key: 256 random bits.
    New,
    /// Ask each host which of the keys of --psk-file it accepts, by their fingerprints. The exit code is 0 only if every
    /// host answers and accepts the first key, the one that is spoken.
    Check(Options),
}

#[derive(Args, Debug)]
struct Drain {
    #[command(flatten)]
    change: Change,

    /// Do it in a process of its own, and again when that is killed: for the stop of a unit, in which systemd would go on. It
    /// needs a generation.
    #[arg(long)]
    supervised: bool,
}

#[derive(Args, Debug)]
struct Hold {
    #[command(flatten)]
    change: Change,

    /// Why, for those who wonder: it is in the guardians' answers, their journals and their status.
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: String,

    /// Release it by itself after this time, over reboots, too. Without it a hold lasts until it is released.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    length: Option<Duration>,
}

fn parse_reason(text: &str) -> Result<String, String> {
    if is_reason(text) {
        Ok(text.to_owned())
    } else {
        Err("expected a sentence of at most 200 characters on one line, for example --reason 'migration of the orders'".to_owned())
    }
}

#[derive(Args, Debug)]
struct Change {
    #[command(flatten)]
    options: Options,

    /// Send this number as the age of the command: a guardian refuses one that is lower than the last it saw.
    /// Without it, and without --generation-file, the command that a guardian receives last wins.
    #[arg(long, value_name = "N", conflicts_with = "generation_file")]
    generation: Option<u64>,

    /// Take the number from this file: one more than the last, and at least the time in milliseconds since 1970.
    /// It is on disk before anything is sent; coordinators that use the file at the same time take different ones.
    #[arg(long, value_name = "FILE")]
    generation_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Options {
    /// The guardians, with commas between them: HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.
    #[arg(long, value_name = "HOSTS", conflicts_with = "hosts_file")]
    hosts: Option<String>,

    /// A file that names the guardians, one on each line; `#` starts a comment.
    #[arg(long, value_name = "FILE")]
    hosts_file: Option<PathBuf>,

    /// The port of guardians that are named without one.
    #[arg(long, env = "GUARDIAN_PORT", default_value_t = DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// The file that holds the pre-shared key. Of several, one on each line or in files of their own (give the flag
    /// again), the first is spoken.
    #[arg(long, env = "GUARDIAN_PSK_FILE", value_name = "FILE")]
    psk_file: Vec<PathBuf>,

    /// Which versions of the wire to speak [default: auto; of `key check`, which shows all keys: v2].
    #[arg(long, env = "GUARDIAN_WIRE", value_enum, value_name = "VERSIONS")]
    wire: Option<Wire>,

    /// For each host and attempt: name lookup, connection, handshake, authentication and answer together. Give
    /// more than the guardians' --command-timeout.
    #[arg(long, env = "GUARDIAN_TIMEOUT", value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,

    /// Of that, for name lookup, connection and handshake together: a host that is frozen or cut off is given up, and
    /// tried again with --retry-for, after this time.
    #[arg(long, env = "GUARDIAN_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    connect_timeout: Duration,

    /// How many hosts may be at work at once, at most; the limit on open files can lower it. The others wait for
    /// their turn, so a drain of more hosts than this takes as long as several.
    #[arg(long, value_name = "N", default_value_t = 4_096, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    max_parallel: usize,

    /// Try hosts that are not up yet again, with growing delays, until this time has passed since the start. A
    /// drain or undrain that may have arrived is repeated only if it carries a generation.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    retry_for: Option<Duration>,

    /// Exit with 1 if any host failed. It does not stop early: every host is told. Without it the exit code is 0
    /// even if hosts failed.
    #[arg(long)]
    fail_fast: bool,

    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people.
    Text,
    /// One JSON document (docs/COORDINATOR-OUTPUT.md).
    Json,
}

/// Runs the command of `cli`.
///
/// # Errors
/// When the command line or a file is wrong, or no generation could be taken; then nothing was sent.
pub fn run(cli: Cli) -> Result<u8, Failure> {
    let mut terms = None;
    let (action, options, generation) = match cli.command {
        Command::Page(page) => return cli::print_page::<Cli>(&page),
        Command::TakeGeneration { file } => {
            let told = cli::block_on(apart::answer(&file, milliseconds_since_1970))?;
            return told
                .map(|()| 0)
                .map_err(|error| Failure::failed(error.to_string()));
        }
        Command::Drain(drain) => {
            if drain.supervised {
                let change = &drain.change;
                if change.generation.is_none() && change.generation_file.is_none() {
                    return Err(Failure::usage(
                        "--supervised needs --generation-file FILE or --generation N: a drain that is begun again might otherwise override a newer command",
                    ));
                }
                telemetry::start(telemetry::stderr_is_journal());
                if let Some(code) = cli::block_on(supervise())? {
                    return Ok(code);
                }
            }
            drain.change.of(Action::Drain)
        }
        Command::Undrain(change) => change.of(Action::Undrain),
        Command::Hold(hold) => {
            terms = Some(HoldTerms {
                reason: hold.reason,
                for_ms: hold.length.map(|length| {
                    u64::try_from(length.as_millis())
                        .unwrap_or(u64::MAX)
                        .min(HOLD_MAX_MS)
                }),
            });
            hold.change.of(Action::Hold)
        }
        Command::Release(change) => change.of(Action::Release),
        Command::Ping(options) => (Action::Ping, options, Generation::None),
        Command::Status(options) => (Action::Status, options, Generation::None),
        Command::Key(KeyCommand::New) => return cli::print(&format!("{}\n", keys::new_key()?)).map(|()| 0),
        Command::Key(KeyCommand::Check(options)) => return check_keys(&options),
    };
    let (mut plan, _) = plan(action, &options, Wire::default())?;
    plan.terms = terms;
    cli::block_on(execute(plan, generation, options.fail_fast, options.output))?
}

/// What `options` ask for, over `wire` where they do not say, and all keys that they name.
fn plan(action: Action, options: &Options, wire: Wire) -> Result<(Plan, Keyring), Failure> {
    let targets = targets(options)?;
    let keys = read_keys(&options.psk_file)?;
    telemetry::start(telemetry::stderr_is_journal());
    for name in &targets.duplicates {
        tracing::warn!(host = %name, "named more than once, contacted once");
    }
    let plan = Plan {
        action,
        max_parallel: parallel(options.max_parallel, targets.targets.len(), descriptors()),
        targets: targets.targets,
        key: keys.first().clone(),
        wire: options.wire.unwrap_or(wire),
        timeout: options.timeout,
        connect_timeout: options.connect_timeout,
        retry_for: options.retry_for,
        generation: None,
        terms: None,
    };
    Ok((plan, keys))
}

fn check_keys(options: &Options) -> Result<u8, Failure> {
    let (plan, ring) = plan(Action::Status, options, Wire::V2)?;
    let found = cli::block_on(keys::check(plan, &ring))?;
    match options.output {
        Output::Text => cli::print(&keys::render(&found))?,
        Output::Json => print_json(&found)?,
    }
    Ok(if found.all_know_the_spoken_one() {
        0
    } else {
        EXIT_FAILED
    })
}

enum Generation {
    None,
    Given(u64),
    File(PathBuf),
}

impl Change {
    /// What is to be done, where, and with which generation.
    fn of(self, action: Action) -> (Action, Options, Generation) {
        let generation = match (self.generation, self.generation_file) {
            (Some(number), _) => Generation::Given(number),
            (None, Some(file)) => Generation::File(file),
            (None, None) => Generation::None,
        };
        (action, self.options, generation)
    }
}

fn targets(options: &Options) -> Result<Targets, Failure> {
    match (&options.hosts, &options.hosts_file) {
        (Some(list), _) => parse_list(list, options.port).map_err(|messages| Failure {
            code: EXIT_USAGE,
            messages,
        }),
        (None, Some(path)) => {
            let text = read_hosts(path).map_err(|why| {
                Failure::config(format!(
                    "cannot read the hosts file {}: {why}; name a text file with one host on each line",
                    path.display()
                ))
            })?;
            parse_file(&text, path, options.port).map_err(Failure::configs)
        }
        (None, None) => Err(Failure::usage(
            "no hosts: name the guardians with --hosts app1,app2:9999,[2001:db8::7] or with --hosts-file FILE",
        )),
    }
}

fn read_hosts(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let length = file
        .take(HOSTS_FILE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if length as u64 > HOSTS_FILE_MAX {
        return Err(format!("it is longer than {} MiB", HOSTS_FILE_MAX >> 20));
    }
    Ok(text)
}

fn read_keys(files: &[PathBuf]) -> Result<Keyring, Failure> {
    if files.is_empty() {
        return Err(Failure::usage(
            "no key: name the file of the pre-shared key with --psk-file FILE or GUARDIAN_PSK_FILE, for example /run/secrets/IO_GUARDIAN_PSK",
        ));
    }
    Keyring::read(files).map_err(Failure::config)
}

/// Raises the soft limit on descriptors to the hard one, and returns what then holds.
fn descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1_024;
    };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    }
}

/// How many conversations at once: what was asked for, no more than there are hosts, and no more than
/// descriptors allow. Each may need two: a name with two addresses that are both tried, or a conversation that
/// has its answer and says goodbye while the next one begins.
fn parallel(asked: usize, hosts: usize, descriptors: u64) -> usize {
    let allowed = descriptors.saturating_sub(SPARE_DESCRIPTORS) / 2;
    asked
        .min(hosts)
        .min(usize::try_from(allowed).unwrap_or(usize::MAX))
        .max(1)
}

async fn execute(
    mut plan: Plan,
    generation: Generation,
    fail_fast: bool,
    output: Output,
) -> Result<u8, Failure> {
    let stop = CancellationToken::new();
    let watch =
        |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot watch for signals: {error}")));
    let (mut interrupt, mut terminate) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    let work = async {
        plan.generation = match &generation {
            Generation::None => None,
            Generation::Given(number) => Some(*number),
            Generation::File(path) => Some(tokio::select! {
                taken = take_generation(plan.action, path) => taken?,
                () = stop.cancelled() => return Err(Failure::failed(format!(
                    "told to end before a generation was taken from {}; nothing was sent",
                    path.display()
                ))),
            }),
        };
        notify::status(&format!("{}: telling {} hosts", plan.action, plan.targets.len()));
        let mut watcher = Watcher::new(&plan);
        let outcome = run_plan(&plan, &mut watcher, &stop).await;
        watcher.end();
        let line = table::last_line(&outcome.report);
        notify::status(&line);
        if output == Output::Json && !watcher.is_terminal {
            tracing::info!(
                hosts = outcome.report.summary.hosts,
                ok = outcome.report.summary.ok,
                failed = outcome.report.summary.failed,
                elapsed_ms = outcome.report.elapsed_ms,
                "{} is done",
                outcome.report.action
            );
        }
        let code = exit_code(outcome.report.summary.failed, fail_fast, outcome.interrupted);
        // On a thread of its own: a reader that does not read must not keep a second signal waiting.
        tokio::task::spawn_blocking(move || print(&outcome, output))
            .await
            .map_err(|error| Failure::failed(format!("cannot print: {error}")))??;
        Ok(code)
    };
    tokio::pin!(work);
    for told in 1.. {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if told > 1 {
            break;
        }
        tracing::warn!("told to end: no longer waiting for answers");
        stop.cancel();
    }
    Err(Failure {
        code: EXIT_FAILED,
        messages: vec!["told to end twice: ended at once, without a summary".to_owned()],
    })
}

async fn take_generation(action: Action, path: &Path) -> Result<u64, Failure> {
    let Taken { number, fault } = apart::take_apart(path, milliseconds_since_1970).await;
    match fault {
        None => Ok(number),
        // The databases are about to go, perhaps because of this very disk.
        Some(fault) if action == Action::Drain && fault.is_the_disk => {
            let from = if fault.above_the_last {
                "above the last"
            } else {
                "from the clock"
            };
            tracing::error!(
                error = fault.why,
                generation = number,
                "cannot remember the generation: draining with one {from}"
            );
            Ok(number)
        }
        Some(fault) => Err(Failure {
            code: fault.exit_code,
            messages: vec![format!("{}; nothing was sent", fault.why)],
        }),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a generation must outgrow those of a lost file, and only the wall clock outlives it"
)]
fn milliseconds_since_1970() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0))
}

fn print(outcome: &Outcome, output: Output) -> Result<(), Failure> {
    match output {
        Output::Text => {
            let colors = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            cli::print(&table::render(&outcome.report, colors))
        }
        Output::Json => print_json(&outcome.report),
    }
}

fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(document)
        .map_err(|error| Failure::failed(format!("cannot write the report as JSON: {error}")))?;
    cli::print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_says_plainly_that_failed_hosts_do_not_fail_the_command() {
        let mut command = Cli::command();
        let help = command
            .find_subcommand_mut("drain")
            .map(|drain| drain.render_long_help().to_string())
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(
            help.contains("Without it the exit code is 0 even if hosts failed"),
            "{help}"
        );
        assert!(help.contains("It does not stop early"));
    }

    #[test]
    fn descriptors_bound_what_is_done_at_once() {
        assert_eq!(parallel(256, 5_000, 1 << 20), 256);
        assert_eq!(parallel(256, 4, 1 << 20), 4);
        assert_eq!(parallel(10_000, 5_000, 1_024), 496);
        assert_eq!(parallel(256, 5_000, 16), 1);
    }
}
