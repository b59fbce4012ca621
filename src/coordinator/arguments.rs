//! The command line: what can be said. [`super::command`] does it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::apart;
use super::damping::Damping;
use super::rollout::Waves;
use super::serve::ServeArgs;
use super::waves::TierRule;
use crate::cli::{PageCommand, parse_duration};
use crate::protocol::{Action, DEFAULT_PORT, Wire, is_reason};

/// Tells the guardians of many hosts to drain or undrain, and waits until each has done it.
///
/// The exit code is 0 even if hosts failed, unless --fail-fast is given. 1: failed at run time, or interrupted.
/// 2: a wave failed, and the ones after it were not begun. 64: the command line is wrong. 78: a file that it names is wrong.
#[derive(Parser, Debug)]
#[command(name = "io-coordinator", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Stop everything that depends on the databases; `ok` means that nothing of it runs any more.
    Drain(Drain),
    /// Start it again; `ok` means that all that the target pulls in runs.
    Undrain(Undrain),
    /// Stop it and keep it stopped, whatever the databases and other coordinators do, until the time is over or it is released.
    Hold(Hold),
    /// End a hold: the hosts go where the rest of the fleet is.
    Release(Change),
    /// Ask whether the guardians are there and know the key.
    Ping(Options),
    /// Ask what the guardians guard, in which state it is, and what they were last told.
    Status(Options),
    /// Follow the fleet for as long as this runs, and show it over HTTP: a page, figures for Prometheus, /healthz.
    Serve(Serve),
    /// Follow the fleet on this terminal.
    Top(Top),
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
pub(super) enum KeyCommand {
    /// Print a new key: 256 random bits.
    New,
    /// Ask each host which of the keys of --psk-file it accepts, by their fingerprints. The exit code is 0 only if every
    /// host answers and accepts the first key, the one that is spoken.
    Check(Options),
}

#[derive(Args, Debug)]
pub(super) struct Drain {
    #[command(flatten)]
    pub(super) change: Change,

    #[command(flatten)]
    pub(super) waves: WaveArgs,

    /// Do it in a process of its own, and again when that is killed: for the stop of a unit, in which systemd would go on. It
    /// needs a generation.
    #[arg(long)]
    pub(super) supervised: bool,
}

#[derive(Args, Debug)]
pub(super) struct Serve {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,

    #[command(flatten)]
    pub(super) serve: ServeArgs,
}

#[derive(Args, Debug)]
pub(super) struct Top {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,

    /// Print a table when each host was heard, or --connect-timeout is over, and end; so does a standard output that is no
    /// terminal.
    #[arg(long)]
    pub(super) once: bool,
}

#[derive(Args, Debug)]
pub(super) struct Undrain {
    #[command(flatten)]
    pub(super) change: Change,

    #[command(flatten)]
    pub(super) waves: WaveArgs,

    /// How long each wave must stay well before the next one begins: its targets active, nothing failed, the databases there.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration, help_heading = WAVES)]
    pub(super) settle: Duration,

    /// Remember in this file, below /run, when the fleet was undrained. From the fifth undrain within 10 minutes on, wait before it:
    /// 10 s, then 20 s, 40 s, 60 s. For a unit that undrains whenever the databases come: those that crash again and again must not
    /// drag the fleet with them
    #[arg(long, value_name = "FILE", value_parser = Damping::parse)]
    pub(super) damping_file: Option<Damping>,
}

const WAVES: &str = "Waves";

/// Without tiers and without --wave-size all hosts are one wave.
#[derive(Args, Debug)]
#[command(next_help_heading = WAVES)]
pub(super) struct WaveArgs {
    /// Tell at most so many hosts, and the next ones when they are done. Hosts of another tier are another wave. An undrain begins
    /// with the lowest tier (`HOST tier=N` in the hosts file; hosts without one come last); a drain goes the same way back
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(super) wave_size: Option<usize>,

    /// Hosts that have a dependent of this name (`*` and `?` stand for others) are of tier N, unless the hosts file says
    /// otherwise. May be given again; the lowest counts. Each host is asked for its units first
    #[arg(long, value_name = "N=UNIT")]
    pub(super) tier: Vec<TierRule>,

    /// Tell each host at a moment of its own within this time from the start of its wave on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) jitter: Option<Duration>,

    /// How many hosts may fail, in all, before the next wave is not begun
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "go_on")]
    pub(super) tolerate: usize,

    /// Begin each wave, whatever failed in the one before: for databases that go whether all is drained or not
    #[arg(long)]
    pub(super) go_on: bool,

    /// Leave out the waves before this one: to go on with a run that was stopped. The hosts must be the same
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(super) from_wave: usize,

    /// Ask each host what it is in, say what would happen, and change nothing. No generation is taken
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl WaveArgs {
    pub(super) fn how(self, settle: Duration) -> (Duration, bool, Waves) {
        let waves = Waves {
            size: self.wave_size,
            rules: self.tier,
            settle,
            tolerate: self.tolerate,
            go_on: self.go_on,
            from: self.from_wave,
        };
        (self.jitter.unwrap_or_default(), self.dry_run, waves)
    }
}

#[derive(Args, Debug)]
pub(super) struct Hold {
    #[command(flatten)]
    pub(super) change: Change,

    /// Why, for those who wonder: it is in the guardians' answers, their journals and their status.
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    pub(super) reason: String,

    /// Release it by itself after this time, over reboots, too. Without it a hold lasts until it is released.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub(super) length: Option<Duration>,
}

fn parse_reason(text: &str) -> Result<String, String> {
    if is_reason(text) {
        Ok(text.to_owned())
    } else {
        Err("expected a sentence of at most 200 characters on one line, for example --reason 'migration of the orders'".to_owned())
    }
}

#[derive(Args, Debug)]
pub(super) struct Change {
    #[command(flatten)]
    pub(super) options: Options,

    /// Send this number as the age of the command: a guardian refuses one that is lower than the last it saw.
    /// Without it, and without --generation-file, the command that a guardian receives last wins.
    #[arg(long, value_name = "N", conflicts_with = "generation_file")]
    pub(super) generation: Option<u64>,

    /// Take the number from this file: one more than the last, and at least the time in milliseconds since 1970.
    /// It is on disk before anything is sent; coordinators that use the file at the same time take different ones.
    #[arg(long, value_name = "FILE")]
    pub(super) generation_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct FleetArgs {
    /// The guardians, with commas between them: HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.
    #[arg(long, value_name = "HOSTS", conflicts_with = "hosts_file")]
    pub(super) hosts: Option<String>,

    /// A file that names the guardians, one on each line; `#` starts a comment.
    #[arg(long, value_name = "FILE")]
    pub(super) hosts_file: Option<PathBuf>,

    /// The port of guardians that are named without one.
    #[arg(long, env = "GUARDIAN_PORT", default_value_t = DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: u16,

    /// The file that holds the pre-shared key. Of several, one on each line or in files of their own (give the flag
    /// again), the first is spoken.
    #[arg(long, env = "GUARDIAN_PSK_FILE", value_name = "FILE")]
    pub(super) psk_file: Vec<PathBuf>,

    /// Which versions of the wire to speak [default: auto; of `key check`, which shows all keys: v2].
    #[arg(long, env = "GUARDIAN_WIRE", value_enum, value_name = "VERSIONS")]
    pub(super) wire: Option<Wire>,

    /// For each host and attempt: name lookup, connection, handshake, authentication and answer together. Give
    /// more than the guardians' --command-timeout.
    #[arg(long, env = "GUARDIAN_TIMEOUT", value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub(super) timeout: Duration,

    /// Of that, for name lookup, connection and handshake together: a host that is frozen or cut off is given up, and
    /// tried again with --retry-for, after this time.
    #[arg(long, env = "GUARDIAN_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub(super) connect_timeout: Duration,
}

#[derive(Args, Debug)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) fleet: FleetArgs,

    /// How many hosts may be at work at once, at most; the limit on open files can lower it. The others wait for
    /// their turn, so a drain of more hosts than this takes as long as several.
    #[arg(long, value_name = "N", default_value_t = 4_096, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(super) max_parallel: usize,

    /// Try hosts that are not up yet again, with growing delays, until this time has passed since the start. A
    /// drain or undrain that may have arrived is repeated only if it carries a generation.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) retry_for: Option<Duration>,

    /// Exit with 1 if any host failed. It does not stop early: every host is told. Without it the exit code is 0
    /// even if hosts failed.
    #[arg(long)]
    pub(super) fail_fast: bool,

    /// What to print on standard output.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// A table for people.
    Text,
    /// One JSON document (docs/COORDINATOR-OUTPUT.md).
    Json,
}

/// Where a command's age comes from.
pub(super) enum Generation {
    None,
    Given(u64),
    File(PathBuf),
}

impl Change {
    /// What is to be done, where, and with which generation.
    pub(super) fn of(self, action: Action) -> (Action, Options, Generation) {
        let generation = match (self.generation, self.generation_file) {
            (Some(number), _) => Generation::Given(number),
            (None, Some(file)) => Generation::File(file),
            (None, None) => Generation::None,
        };
        (action, self.options, generation)
    }
}
