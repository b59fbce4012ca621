//! What is done of the command line (`arguments.rs`): progress, printing, signals.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::apart::{self, Taken};
pub use super::arguments::Cli;
use super::arguments::{Command, FleetArgs, Generation, KeyCommand, Options, Output, Serve, Top};
use super::damping::{self, Damping};
use super::hosts::{Targets, parse_file, parse_list};
use super::keys;
use super::report::exit_code;
use super::rollout::{self, Waves};
use super::run::{Outcome, Plan, run as run_plan};
use super::serve;
use super::supervise::supervise;
use super::table;
use super::top;
use super::watcher::Watcher;
use crate::cli::{self, EXIT_FAILED, EXIT_USAGE, Failure, unix_milliseconds};
use crate::protocol::limits::HOLD_MAX_MS;
use crate::protocol::{Action, HoldTerms, Keyring, Wire};
use crate::telemetry::{self, notify};

/// Longest hosts file that is read, in bytes: 60,000 hosts with the longest of names.
const HOSTS_FILE_MAX: u64 = 16 << 20;
/// Descriptors for everything that is no conversation.
const SPARE_DESCRIPTORS: u64 = 32;

/// Runs the command of `cli`.
///
/// # Errors
/// When the command line or a file is wrong, or no generation could be taken; then nothing was sent.
pub fn run(cli: Cli) -> Result<u8, Failure> {
    let mut terms = None;
    let mut how = None;
    let mut damping = None;
    let (action, options, generation) = match cli.command {
        Command::Page(page) => return cli::print_page::<Cli>(&page),
        Command::TakeGeneration { file } => {
            let told = cli::block_on(apart::answer(&file, unix_milliseconds))?;
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
            how = Some(drain.waves.how(Duration::ZERO));
            drain.change.of(Action::Drain)
        }
        Command::Undrain(undrain) => {
            how = Some(undrain.waves.how(undrain.settle));
            damping = undrain.damping_file;
            undrain.change.of(Action::Undrain)
        }
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
        Command::Serve(Serve { fleet, serve }) => {
            telemetry::start(telemetry::stderr_is_journal());
            let plan = followed(&fleet)?;
            return cli::block_on(serve::serve(serve, plan, fleet.psk_file))?;
        }
        Command::Top(Top { fleet, once }) => {
            // No logs: they would be written across the screen.
            let plan = followed(&fleet)?;
            return cli::block_on(top::top(plan, fleet.psk_file, once))?;
        }
        Command::Key(KeyCommand::New) => return cli::print(&format!("{}\n", keys::new_key()?)).map(|()| 0),
        Command::Key(KeyCommand::Check(options)) => return check_keys(&options),
    };
    let (mut plan, _) = plan(action, &options, Wire::default())?;
    plan.terms = terms;
    let waves = match how {
        Some((_, true, waves)) => {
            if let Generation::Given(number) = generation {
                plan.generation = Some(number);
            }
            return show(&plan, &waves, &options);
        }
        Some((jitter, false, waves)) => {
            plan.jitter = jitter;
            (!waves.is_one(&plan)).then_some(waves)
        }
        None => None,
    };
    cli::block_on(execute(
        plan,
        waves,
        damping,
        generation,
        options.fail_fast,
        options.output,
    ))?
}

/// What `options` ask for, over `wire` where they do not say, and all keys that they name.
fn plan(action: Action, options: &Options, wire: Wire) -> Result<(Plan, Keyring), Failure> {
    telemetry::start(telemetry::stderr_is_journal());
    let (mut plan, keys) = told(action, &options.fleet, wire)?;
    plan.max_parallel = parallel(options.max_parallel, plan.targets.len(), descriptors());
    plan.retry_for = options.retry_for;
    Ok((plan, keys))
}

/// What it takes to look at a fleet for longer: a connection to each host.
fn followed(fleet: &FleetArgs) -> Result<Plan, Failure> {
    let (plan, _) = told(Action::Watch, fleet, Wire::default())?;
    let hosts = plan.targets.len() as u64;
    let descriptors = descriptors();
    if hosts + SPARE_DESCRIPTORS > descriptors {
        return Err(Failure::failed(format!(
            "{hosts} hosts need as many open files, and {descriptors} are allowed: raise LimitNOFILE= (`ulimit -Hn`)"
        )));
    }
    Ok(plan)
}

/// The same for all who speak to guardians; one at a time, once.
fn told(action: Action, options: &FleetArgs, wire: Wire) -> Result<(Plan, Keyring), Failure> {
    let targets = targets(options)?;
    let keys = read_keys(&options.psk_file)?;
    for name in &targets.duplicates {
        tracing::warn!(host = %name, "named more than once, contacted once");
    }
    let plan = Plan {
        action,
        max_parallel: 1,
        targets: targets.targets,
        key: keys.first().clone(),
        wire: options.wire.unwrap_or(wire),
        timeout: options.timeout,
        connect_timeout: options.connect_timeout,
        retry_for: None,
        generation: None,
        terms: None,
        jitter: Duration::ZERO,
    };
    Ok((plan, keys))
}

/// What `plan` would do.
fn show(plan: &Plan, waves: &Waves, options: &Options) -> Result<u8, Failure> {
    let found = cli::block_on(rollout::dry_run(plan, waves, &CancellationToken::new()))?;
    match options.output {
        Output::Text => cli::print(&found.render())?,
        Output::Json => print_json(&found)?,
    }
    Ok(exit_code(found.failing, options.fail_fast, false, false))
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

fn targets(options: &FleetArgs) -> Result<Targets, Failure> {
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
    waves: Option<Waves>,
    damping: Option<Damping>,
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
        // With its generation: whatever is commanded while this waits is newer, and wins.
        if let Some(damping) = damping {
            if !steady(damping.wait(), &stop).await {
                return Err(Failure::failed(
                    "told to end while it waited for the databases to be steady: nobody was undrained; nothing was sent",
                ));
            }
            damping.note();
        }
        notify::status(&format!("{}: telling {} hosts", plan.action, plan.targets.len()));
        let mut watcher = Watcher::new(&plan);
        let outcome = match &waves {
            Some(waves) => rollout::roll_out(&plan, waves, &mut watcher, &stop).await,
            None => run_plan(&plan, &mut watcher, &stop).await,
        };
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
        let stopped = outcome
            .report
            .rollout
            .as_ref()
            .and_then(|rollout| rollout.stopped.as_ref());
        if let Some(why) = stopped.filter(|_| !watcher.is_terminal) {
            tracing::error!(why, "the waves that are left were not begun");
        }
        let failed = outcome.report.summary.failed;
        let code = exit_code(failed, fail_fast, outcome.interrupted, stopped.is_some());
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

/// Waits for so long; whether it was not told to end.
async fn steady(wait: Duration, stop: &CancellationToken) -> bool {
    if wait.is_zero() {
        return true;
    }
    let seconds = wait.as_secs();
    tracing::warn!(
        "the fleet was undrained several times within the last {} minutes: waiting {seconds} s for the databases to be steady; \
         `io-coordinator undrain` without --damping-file does not wait",
        damping::WINDOW.as_secs() / 60
    );
    notify::status(&format!(
        "undrain: waiting {seconds} s for the databases to be steady"
    ));
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

async fn take_generation(action: Action, path: &Path) -> Result<u64, Failure> {
    let Taken { number, fault } = apart::take_apart(path, unix_milliseconds).await;
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
