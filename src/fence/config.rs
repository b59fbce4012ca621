//! What `io-fence` is told: flags over file over defaults, and every mistake at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;

use super::core::{Verdicts, Watch};
use super::starter::UnitNames;
use super::wire::{Registration, millis};
use crate::cli::{ConfigDuration, Failure, parse_duration};
use crate::host::{Network, Ports, Rules};

/// Where the monitor listens.
pub(super) const SOCKET: &str = "/run/io-fence/io-fence.sock";
/// Where it keeps whose fence is whose.
pub(super) const STATE: &str = "/run/io-fence/state.json";
/// Longest configuration file that is read, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Below that a busy processor looks like a stalled disk.
const HEARTBEAT_LEAST: Duration = Duration::from_millis(250);
/// So many heartbeats may a beat be late on a disk that works.
const BUSY_LIMIT: u32 = 3;
const UNFENCE_AFTER: Duration = Duration::from_secs(5);
const WARN_LATENCY: Duration = Duration::from_millis(500);
const SLEEP_LEAST: Duration = Duration::from_millis(50);
const SLEEP_MOST: Duration = Duration::from_secs(1);
const TOUCHFILE: &str = ".io-fence";

/// What is done to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CutKind {
    /// New ones are refused
    New,
    /// Those that exist are ended
    Established,
}

/// Which file.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct FileArgs {
    /// Configuration file (TOML), for many folders. What is a flag, too, is taken from the flag
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, say what is wrong with it, and end
    #[arg(long)]
    pub(super) check_config: bool,
    /// The Unix socket of the monitor [default: /run/io-fence/io-fence.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// The reporter's part.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct FolderArgs {
    /// Folder to watch: a file in it is written to and read back, past the page cache where that is possible
    #[arg(long = "monitor", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Its TCP ports, such as 5432,6379: closed when it stalls
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..), requires = "folder")]
    ports: Vec<u16>,
    /// Its UDP ports
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..), requires = "folder")]
    udp_ports: Vec<u16>,
    /// Between two writes [default: a fifth of the heartbeat, at least 50ms and at most 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    sleep: Option<Duration>,
    /// Name of the file that is written to [default: .io-fence]
    #[arg(long, value_name = "NAME")]
    touchfile: Option<String>,
}

/// How long what may take.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct TimeArgs {
    /// No write that came back for this long is a stall: the ports are closed [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    heartbeat: Option<Duration>,
    /// The same on a disk that is busy: one that completes others' writes meanwhile. The heartbeat itself: busy or not is not asked [default: 3 heartbeats]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    busy_limit: Option<Duration>,
    /// A p99 of the last minute's writes above this is a warning [default: 500ms]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    warn_latency: Option<Duration>,
}

/// The monitor's part.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct MonitorArgs {
    /// After its start, how long a folder that has never beaten is not fenced for; 0s is the heartbeat [default: the heartbeat]
    #[arg(long, value_name = "DURATION", value_parser = parse_wait)]
    wait: Option<Duration>,
    /// How long a folder must beat again until its ports are opened [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    unfence_after: Option<Duration>,
    /// What is done to connections [default: new,established]
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    cut: Vec<CutKind>,
    /// A source that is never fenced, such as 10.0.0.9 or fd00::/8; may be given again. Loopback never is
    #[arg(long, value_name = "CIDR")]
    allow: Vec<Network>,
    /// Address and port of an HTTP server with /metrics (for Prometheus) and /healthz [default: none]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Unit that is started, over D-Bus, when something is fenced
    #[arg(long, value_name = "UNIT")]
    on_fence_unit: Option<String>,
    /// Unit that is started when nothing is fenced any more
    #[arg(long, value_name = "UNIT")]
    on_unfence_unit: Option<String>,
    /// File that keeps whose fence is whose over a restart; on a tmpfs [default: /run/io-fence/state.json]
    #[arg(long, value_name = "PATH")]
    state: Option<PathBuf>,
    /// Users, by name or number, who may report: they can close ports
    #[arg(long, value_name = "USER", value_delimiter = ',')]
    reporter_users: Vec<String>,
}

/// What the program that this one follows had, and this one has not.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct SeedArgs {
    #[arg(long, hide = true, num_args = 0..=1, value_name = "FILE")]
    pidfile: Option<Option<String>>,
    #[arg(long, hide = true, num_args = 0..=1, value_name = "FILE")]
    logfile: Option<Option<String>>,
    #[arg(long, hide = true)]
    daemonize: bool,
    #[arg(long, hide = true, num_args = 0..=1, value_name = "FILE")]
    fifo: Option<Option<String>>,
}

impl SeedArgs {
    /// # Errors
    /// When one of them is used.
    pub(super) fn refuse(&self) -> Result<(), Failure> {
        let used = [
            (
                self.pidfile.is_some(),
                "--pidfile",
                "systemd knows the process: remove it, and see docs/FENCE.md for a unit",
            ),
            (
                self.daemonize,
                "--daemonize",
                "systemd runs it in the background: remove it, and see docs/FENCE.md for a unit",
            ),
            (
                self.logfile.is_some(),
                "--logfile",
                "the log goes to standard error, which under systemd is the journal: remove it",
            ),
            (
                self.fifo.is_some(),
                "--fifo",
                "monitor and reporters meet on a Unix socket: write --socket PATH, or leave it at /run/io-fence/io-fence.sock",
            ),
        ];
        let messages: Vec<_> = used
            .into_iter()
            .filter(|(is_used, ..)| *is_used)
            .map(|(_, flag, remedy)| format!("{flag} is not known here: {remedy}"))
            .collect();
        if messages.is_empty() {
            return Ok(());
        }
        Err(Failure {
            code: crate::cli::EXIT_USAGE,
            messages,
        })
    }
}

/// `0` and `0s` are allowed here, as the seed has them.
fn parse_wait(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "0" | "0s" => Ok(Duration::ZERO),
        text => parse_duration(text),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    socket: Option<PathBuf>,
    state: Option<PathBuf>,
    heartbeat: Option<ConfigDuration>,
    busy_limit: Option<ConfigDuration>,
    unfence_after: Option<ConfigDuration>,
    wait: Option<Wait>,
    warn_latency: Option<ConfigDuration>,
    cut: Option<Vec<CutKind>>,
    allow: Vec<String>,
    on_fence_unit: Option<String>,
    on_unfence_unit: Option<String>,
    metrics: Option<SocketAddr>,
    reporter_users: Vec<User>,
    folder: Vec<RawFolder>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum User {
    Uid(u32),
    Name(String),
}

/// A duration that may be zero.
#[derive(Clone, Copy, Debug)]
struct Wait(Duration);

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if matches!(text.trim(), "0" | "0s") {
            return Ok(Self(Duration::ZERO));
        }
        let text = serde::de::value::StrDeserializer::new(&text);
        ConfigDuration::deserialize(text).map(|duration| Self(duration.0))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawFolder {
    path: PathBuf,
    #[serde(default)]
    ports: BTreeSet<u16>,
    #[serde(default)]
    udp_ports: BTreeSet<u16>,
    sleep: Option<ConfigDuration>,
    heartbeat: Option<ConfigDuration>,
    busy_limit: Option<ConfigDuration>,
    unfence_after: Option<ConfigDuration>,
    touchfile: Option<String>,
    on_error: Option<Verdicts>,
    warn_latency: Option<ConfigDuration>,
}

/// A folder, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FolderConfig {
    pub(super) path: String,
    pub(super) ports: Ports,
    pub(super) sleep: Duration,
    pub(super) touchfile: String,
    heartbeat: Option<Duration>,
    busy_limit: Option<Duration>,
    unfence_after: Option<Duration>,
    warn_latency: Option<Duration>,
    on_error: Option<Verdicts>,
}

/// What holds for folders that say nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Defaults {
    pub(super) heartbeat: Duration,
    /// None: some heartbeats.
    busy_limit: Option<Duration>,
    unfence_after: Duration,
    wait: Option<Duration>,
    warn_latency: Duration,
}

impl Defaults {
    /// How a folder is watched, by what is configured of it here, then by what its reporter says, then by what holds for all.
    pub(super) fn watch(&self, own: Option<&FolderConfig>, said: Option<&Registration>) -> Watch {
        let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
        let own_or = |of: fn(&FolderConfig) -> Option<Duration>| own.and_then(of);
        let heartbeat = own_or(|own| own.heartbeat)
            .or(ms(said.and_then(|said| said.heartbeat_ms)))
            .unwrap_or(self.heartbeat);
        let busy_limit = own_or(|own| own.busy_limit)
            .or(ms(said.and_then(|said| said.busy_limit_ms)))
            .or(self.busy_limit)
            .unwrap_or(heartbeat * BUSY_LIMIT);
        let ports = match (own, said) {
            (Some(own), _) => own.ports.clone(),
            (None, Some(said)) => said.ports.clone(),
            (None, None) => Ports::default(),
        };
        Watch {
            ports,
            heartbeat,
            // A reporter may have a longer heartbeat than the monitor's file knows of.
            busy_limit: busy_limit.max(heartbeat),
            unfence_after: own_or(|own| own.unfence_after).unwrap_or(self.unfence_after),
            wait: self.wait.filter(|wait| !wait.is_zero()).unwrap_or(heartbeat),
            warn_latency: own_or(|own| own.warn_latency)
                .or(ms(said.and_then(|said| said.warn_latency_ms)))
                .unwrap_or(self.warn_latency),
            on_error: own
                .and_then(|own| own.on_error)
                .or(said.and_then(|said| said.on_error))
                .unwrap_or_default(),
        }
    }
}

/// Everything, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) socket: PathBuf,
    pub(super) state: PathBuf,
    pub(super) defaults: Defaults,
    pub(super) rules: Rules,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) units: UnitNames,
    pub(super) reporter_users: BTreeSet<u32>,
    pub(super) folders: Vec<FolderConfig>,
}

impl FolderConfig {
    /// What its reporter tells the monitor.
    pub(super) fn registration(&self) -> Registration {
        Registration {
            folder: self.path.clone(),
            ports: self.ports.clone(),
            sleep_ms: millis(self.sleep),
            heartbeat_ms: self.heartbeat.map(millis),
            busy_limit_ms: self.busy_limit.map(millis),
            warn_latency_ms: self.warn_latency.map(millis),
            on_error: self.on_error,
        }
    }
}

/// Whether `sleep` is short enough for `heartbeat`; if not, a message that names both.
pub(super) fn check_sleep(folder: &str, sleep: Duration, heartbeat: Duration) -> Result<(), String> {
    if sleep < heartbeat / 2 {
        return Ok(());
    }
    Err(format!(
        "{folder}: sleep ({}) must be less than half of heartbeat ({}), or one slow write is a stall; lower sleep, or raise heartbeat",
        humantime::format_duration(sleep),
        humantime::format_duration(heartbeat)
    ))
}

impl Config {
    /// # Errors
    /// Exit code 64 for a wrong flag, 78 for what a file holds; all mistakes.
    pub(super) fn read(
        file: &FileArgs,
        folder: &FolderArgs,
        times: &TimeArgs,
        monitor: &MonitorArgs,
    ) -> Result<Self, Failure> {
        let place = file.config.as_deref().map(|path| path.display().to_string());
        let read = match &file.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let mut mistakes = Vec::new();
        let config = resolve(file, folder, times, monitor, read, &mut mistakes);
        if mistakes.is_empty() {
            return Ok(config);
        }
        Err(match place {
            Some(place) => Failure::configs(mistakes.into_iter().map(|m| format!("{place}: {m}")).collect()),
            None => Failure {
                code: crate::cli::EXIT_USAGE,
                messages: mistakes,
            },
        })
    }
}

fn resolve(
    args: &FileArgs,
    folder: &FolderArgs,
    times: &TimeArgs,
    monitor: &MonitorArgs,
    file: File,
    mistakes: &mut Vec<String>,
) -> Config {
    let duration = |flag: Option<Duration>, file: Option<ConfigDuration>, default| {
        flag.or(file.map(|d| d.0)).unwrap_or(default)
    };
    let defaults = Defaults {
        heartbeat: duration(times.heartbeat, file.heartbeat, HEARTBEAT),
        busy_limit: times.busy_limit.or(file.busy_limit.map(|d| d.0)),
        unfence_after: duration(monitor.unfence_after, file.unfence_after, UNFENCE_AFTER),
        wait: monitor.wait.or(file.wait.map(|wait| wait.0)),
        warn_latency: duration(times.warn_latency, file.warn_latency, WARN_LATENCY),
    };
    let cut = if monitor.cut.is_empty() {
        file.cut
            .unwrap_or_else(|| vec![CutKind::New, CutKind::Established])
    } else {
        monitor.cut.clone()
    };
    if cut.is_empty() {
        mistakes.push(
            "cut is empty: a fence that does nothing; write [\"new\", \"established\"], or one of them"
                .to_owned(),
        );
    }
    let mut allowed = monitor.allow.clone();
    if allowed.is_empty() {
        for text in &file.allow {
            match text.parse() {
                Ok(network) => allowed.push(network),
                Err(error) => mistakes.push(format!("allow: {error}")),
            }
        }
    }
    let units = UnitNames {
        on_fence: monitor.on_fence_unit.clone().or(file.on_fence_unit),
        on_unfence: monitor.on_unfence_unit.clone().or(file.on_unfence_unit),
    };
    for (setting, unit) in [
        ("on-fence-unit", &units.on_fence),
        ("on-unfence-unit", &units.on_unfence),
    ] {
        if let Some(unit) = unit.as_ref().filter(|unit| !is_unit_name(unit)) {
            mistakes.push(format!(
                "{setting}: {unit:?} is no unit name; write it with its suffix, for example io-fence-drain.service"
            ));
        }
    }
    let mut names = file.reporter_users;
    if !monitor.reporter_users.is_empty() {
        names = monitor.reporter_users.iter().cloned().map(User::Name).collect();
    }
    Config {
        socket: args
            .socket
            .clone()
            .or(file.socket)
            .unwrap_or_else(|| SOCKET.into()),
        state: monitor
            .state
            .clone()
            .or(file.state)
            .unwrap_or_else(|| STATE.into()),
        rules: Rules {
            new: cut.contains(&CutKind::New),
            established: cut.contains(&CutKind::Established),
            allowed,
        },
        metrics: monitor.metrics.or(file.metrics),
        units,
        reporter_users: names.iter().filter_map(|name| uid(name, mistakes)).collect(),
        folders: folders(folder, times, &defaults, file.folder, mistakes),
        defaults,
    }
}

fn folders(
    args: &FolderArgs,
    times: &TimeArgs,
    defaults: &Defaults,
    mut raw: Vec<RawFolder>,
    mistakes: &mut Vec<String>,
) -> Vec<FolderConfig> {
    if let Some(path) = &args.folder {
        // Named on the command line it is another one, not one more.
        raw = vec![RawFolder {
            path: path.clone(),
            ports: args.ports.iter().copied().collect(),
            udp_ports: args.udp_ports.iter().copied().collect(),
            sleep: args.sleep.map(ConfigDuration),
            heartbeat: times.heartbeat.map(ConfigDuration),
            busy_limit: times.busy_limit.map(ConfigDuration),
            unfence_after: None,
            touchfile: args.touchfile.clone(),
            on_error: None,
            warn_latency: times.warn_latency.map(ConfigDuration),
        }];
    }
    let mut known = BTreeSet::new();
    let mut all = Vec::new();
    for folder in raw {
        let shown = folder.path.display().to_string();
        if let Some(folder) = check_folder(folder, defaults, mistakes) {
            if !known.insert(folder.path.clone()) {
                mistakes.push(format!("folder {shown}: it is named twice; keep one of them"));
            }
            all.push(folder);
        }
    }
    all
}

fn check_folder(raw: RawFolder, defaults: &Defaults, mistakes: &mut Vec<String>) -> Option<FolderConfig> {
    let Some(path) = raw
        .path
        .to_str()
        .filter(|path| path.starts_with('/') && !path.contains(char::is_control))
    else {
        mistakes.push(format!(
            "folder {:?}: write the whole path, beginning with /, in UTF-8",
            raw.path
        ));
        return None;
    };
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let ports = Ports {
        tcp: raw.ports,
        udp: raw.udp_ports,
    };
    if ports.is_empty() {
        mistakes.push(format!(
            "folder {path}: no ports: nothing would be fenced; write for example ports = [5432]"
        ));
    }
    if ports.tcp.contains(&0) || ports.udp.contains(&0) {
        mistakes.push(format!("folder {path}: 0 is no port; write one from 1 to 65535"));
    }
    let heartbeat = raw.heartbeat.map(|d| d.0);
    let beat = heartbeat.unwrap_or(defaults.heartbeat);
    if beat < HEARTBEAT_LEAST {
        mistakes.push(format!(
            "folder {path}: heartbeat ({}) is shorter than {}: a busy processor would look like a stalled disk; raise it",
            humantime::format_duration(beat),
            humantime::format_duration(HEARTBEAT_LEAST)
        ));
    }
    let busy_limit = raw.busy_limit.map(|d| d.0);
    if let Some(limit) = busy_limit.or(defaults.busy_limit).filter(|limit| *limit < beat) {
        mistakes.push(format!(
            "folder {path}: busy-limit ({}) is shorter than heartbeat ({}); raise it, or write the heartbeat: then a busy disk is given no more time",
            humantime::format_duration(limit),
            humantime::format_duration(beat)
        ));
    }
    let sleep = raw
        .sleep
        .map_or_else(|| (beat / 5).clamp(SLEEP_LEAST, SLEEP_MOST), |sleep| sleep.0);
    if let Err(mistake) = check_sleep(&format!("folder {path}"), sleep, beat) {
        mistakes.push(mistake);
    }
    let touchfile = raw.touchfile.unwrap_or_else(|| TOUCHFILE.to_owned());
    if touchfile.is_empty() || touchfile.contains(['/', '\0']) || touchfile == "." || touchfile == ".." {
        mistakes.push(format!(
            "folder {path}: touchfile {touchfile:?} is no name of a file in the folder; write for example {TOUCHFILE:?}"
        ));
    }
    Some(FolderConfig {
        path: path.to_owned(),
        ports,
        sleep,
        touchfile,
        heartbeat,
        busy_limit,
        unfence_after: raw.unfence_after.map(|d| d.0),
        warn_latency: raw.warn_latency.map(|d| d.0),
        on_error: raw.on_error,
    })
}

fn uid(user: &User, mistakes: &mut Vec<String>) -> Option<u32> {
    let name = match user {
        User::Uid(uid) => return Some(*uid),
        User::Name(name) => name,
    };
    if let Ok(uid) = name.parse() {
        return Some(uid);
    }
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Some(user.uid.as_raw()),
        Ok(None) => {
            mistakes.push(format!(
                "reporter-users: there is no user {name:?} on this host; create it, or write its number"
            ));
            None
        }
        Err(error) => {
            mistakes.push(format!("reporter-users: cannot look up {name:?}: {error}"));
            None
        }
    }
}

/// systemd.unit(5), as far as a mistake can be told.
fn is_unit_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    name.len() <= 255
        && name.chars().all(allowed)
        && name
            .rsplit_once('.')
            .is_some_and(|(stem, suffix)| !stem.is_empty() && matches!(suffix, "service" | "target"))
}

fn read_file(path: &Path) -> Result<File, Failure> {
    let fault = |why: String| Failure::config(format!("{}: {why}", path.display()));
    let size = std::fs::metadata(path)
        .map_err(|error| fault(format!("cannot read the configuration file: {error}")))?
        .len();
    if size > FILE_MAX_BYTES {
        return Err(fault(format!(
            "it has {size} bytes, more than {FILE_MAX_BYTES}: is it the right file?"
        )));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| fault(format!("cannot read the configuration file: {error}")))?;
    toml::from_str(&text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| before.matches('\n').count() + 1);
        Failure::config(format!("{}:{line}: {}", path.display(), error.message()))
    })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
