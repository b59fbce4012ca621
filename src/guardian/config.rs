//! What `io-guardian serve` is told: flags over environment over file over defaults, and every mistake of a file
//! at once, with its line.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::core::Repairs;
use super::databases::DatabaseArgs;
use super::memory::Folders;
use super::watch::Pace;
use crate::cli::{ConfigDuration, Failure, HostPort, parse_duration};
use crate::protocol::{DEFAULT_PORT, KeyError, Keyring, Wire};
use crate::units::processes::{ProcessSpec, RawProcess, validate};

/// Longest configuration file that is read, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

const SERVE_HELP: &str = "\
A flag beats the environment, the environment beats the file, and the file beats the default. A DURATION is \
500ms, 5s or 1m 30s; a bare number is seconds, but not in the file. Sockets that systemd hands over \
(ListenStream=) replace --host and --port.

Exit codes: 0 ended by a signal, or the check found nothing; 1 failed at run time; 64 wrong command line, or no \
key named; 78 wrong configuration.";

/// Arguments of `io-guardian serve`.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(after_help = SERVE_HELP)]
pub struct ServeArgs {
    /// Address to listen on, IPv4 or IPv6 [default: 0.0.0.0]
    #[arg(long, env = "GUARDIAN_HOST", value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 9876]
    #[arg(long, env = "GUARDIAN_PORT")]
    pub port: Option<u16>,
    /// File with the pre-shared key, at least 32 characters. Several keys are accepted while they change: one on each
    /// line, or in files of their own (give the flag again). Changed files are picked up, at SIGHUP at once
    #[arg(long, env = "GUARDIAN_PSK_FILE", value_name = "FILE")]
    pub psk_file: Vec<PathBuf>,
    /// Which versions of the wire to speak [default: auto]
    #[arg(long, env = "GUARDIAN_WIRE", value_enum, value_name = "VERSIONS")]
    pub wire: Option<Wire>,
    /// The target that everything depends on [default: io-databases.target]
    #[arg(long, value_name = "UNIT")]
    pub target: Option<String>,
    /// What the dependents are [default: systemd]
    #[arg(long, value_enum, value_name = "KIND")]
    pub units: Option<UnitsKind>,
    /// How long a drain or undrain may take before it is answered with an error that names what still moves
    /// [default: 45s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub command_timeout: Option<Duration>,
    /// Folder for what must outlive a boot: the highest generation seen, and a hold. It must exist. Without this setting
    /// both are forgotten
    #[arg(long, env = "STATE_DIRECTORY", value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    /// Folder for what must outlive a restart, but no boot: whether this host is drained, and by whom. It must exist
    #[arg(long, env = "RUNTIME_DIRECTORY", value_name = "FOLDER")]
    pub runtime_dir: Option<PathBuf>,
    /// The databases that this guardian asks itself: with them it drains and undrains when no coordinator does
    #[command(flatten, next_help_heading = "Databases to watch")]
    pub databases: DatabaseArgs,
    /// Databases that are lost for this long, with no drain: drain. Or `off` [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_patience, help_heading = "Databases to watch")]
    pub drain_after: Option<Patience>,
    /// Databases that are healthy for this long after an outage, with no undrain: undrain. Or `off` [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_patience, help_heading = "Databases to watch")]
    pub undrain_after: Option<Patience>,
    /// From the start of one look at a database to the start of the next; a second while something hangs on it
    /// [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Databases to watch")]
    pub probe_interval: Option<Duration>,
    /// Deadline of one look at a database [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help_heading = "Databases to watch")]
    pub probe_timeout: Option<Duration>,
    /// Address and port of an HTTP server with /metrics (for Prometheus) and /healthz [default: none]
    #[arg(long, env = "GUARDIAN_METRICS", value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Configuration file (TOML) with the same settings, and the processes of `--units processes`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration, say what is wrong with it, and end. A key file or a state folder that is not there
    /// yet is no mistake
    #[arg(long)]
    pub check_config: bool,
}

/// How long to wait before something is done; none is `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(pub Option<Duration>);

/// Longest [`Patience`].
const PATIENCE_MAX: Duration = Duration::from_secs(24 * 3_600);

impl Patience {
    fn of(duration: Duration) -> Result<Self, String> {
        if duration > PATIENCE_MAX {
            return Err("expected at most 24h, or `off`".to_owned());
        }
        Ok(Self(Some(duration)))
    }
}

fn parse_patience(text: &str) -> Result<Patience, String> {
    match text {
        "off" => Ok(Patience(None)),
        _ => parse_duration(text)
            .map_err(|error| format!("{error}; or write `off`"))
            .and_then(Patience::of),
    }
}

impl<'de> Deserialize<'de> for Patience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Self(None));
        }
        let duration = ConfigDuration::deserialize(text.as_str().into_deserializer())?;
        Self::of(duration.0).map_err(D::Error::custom)
    }
}

/// What the dependents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitsKind {
    /// Units of systemd, controlled over D-Bus
    Systemd,
    /// Child processes of the guardian, listed in the configuration file
    Processes,
}

/// The dependents, as configured.
#[derive(Clone, Debug)]
pub enum UnitsConfig {
    /// Units of systemd that hang on the target.
    Systemd,
    /// Child processes.
    Processes(Vec<ProcessSpec>),
}

/// A configuration without mistakes.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// The keys. Absent only when a configuration is checked on a machine that does not have a file.
    pub keys: Option<Keyring>,
    /// Where they came from.
    pub psk_files: Vec<PathBuf>,
    /// Which versions of the wire are spoken.
    pub wire: Wire,
    /// The target.
    pub target: String,
    /// The dependents.
    pub units: UnitsConfig,
    /// How long a command may take.
    pub command_timeout: Duration,
    /// Where things are remembered. The folders are there and can be written, unless a configuration is
    /// checked on a machine that does not have them.
    pub folders: Folders,
    /// The databases that are watched.
    pub databases: DatabaseArgs,
    /// How they are.
    pub pace: Pace,
    /// What follows from it.
    pub repairs: Repairs,
    /// Where figures are to be had.
    pub metrics: Option<SocketAddr>,
}

/// The file, each setting still optional.
#[derive(Debug, Default)]
struct File {
    host: Option<String>,
    port: Option<u16>,
    psk_file: Option<Paths>,
    wire: Option<Wire>,
    target: Option<String>,
    units: Option<UnitsKind>,
    command_timeout: Option<ConfigDuration>,
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    databases: DatabaseArgs,
    drain_after: Option<Patience>,
    undrain_after: Option<Patience>,
    probe_interval: Option<ConfigDuration>,
    probe_timeout: Option<ConfigDuration>,
    metrics: Option<SocketAddr>,
    process: Vec<RawProcess>,
}

const KEYS: &str = "host, port, psk-file, wire, target, units, command-timeout, state-dir, runtime-dir, postgres, redis, \
                    require-primary, user, password-file, database, redis-password-file, redis-user, drain-after, \
                    undrain-after, probe-interval, probe-timeout, metrics, process";

/// One path, or a list of them.
#[derive(Debug, Default)]
struct Paths(Vec<PathBuf>);

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Paths;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a path, or a list of paths")
            }
            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Paths, E> {
                Ok(Paths(vec![path.into()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Paths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                if paths.is_empty() {
                    return Err(A::Error::custom("the list of paths is empty"));
                }
                Ok(Paths(paths))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl Config {
    /// Reads the configuration file and the key, and checks all of it.
    ///
    /// # Errors
    /// Exit code 64 for a missing or wrong flag, 78 for everything that a file holds; all mistakes of a file.
    pub fn read(args: &ServeArgs) -> Result<Self, Failure> {
        let mut mistakes = Vec::new();
        let file = match &args.config {
            Some(path) => read_file(path, &mut mistakes)?,
            None => File::default(),
        };
        let place = args
            .config
            .as_deref()
            .map(|p| format!("{}: ", p.display()))
            .unwrap_or_default();

        let host = args
            .host
            .clone()
            .or(file.host)
            .unwrap_or_else(|| "0.0.0.0".to_owned());
        let host = host
            .trim()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() || host.contains(char::is_whitespace) {
            mistakes.push(format!(
                "host: {host:?} is no address to listen on; write for example 0.0.0.0, :: or 127.0.0.1"
            ));
        }
        let target = args
            .target
            .clone()
            .or(file.target)
            .unwrap_or_else(|| "io-databases.target".to_owned());
        let command_timeout = args
            .command_timeout
            .or(file.command_timeout.map(|d| d.0))
            .unwrap_or(Duration::from_secs(45));
        let kind = args.units.or(file.units).unwrap_or(UnitsKind::Systemd);
        if kind == UnitsKind::Systemd && !is_unit_name(&target) {
            mistakes.push(format!(
                "target: {target:?} is no unit name; write it with its suffix, for example io-databases.target"
            ));
        }
        let units = match kind {
            UnitsKind::Systemd => {
                if !file.process.is_empty() {
                    mistakes.push(format!(
                        "{place}process: there are processes, but units is systemd, which never starts them; \
                         set units = \"processes\", or remove them"
                    ));
                }
                UnitsConfig::Systemd
            }
            UnitsKind::Processes => match validate(file.process, command_timeout) {
                Ok(specs) => UnitsConfig::Processes(specs),
                Err(found) => {
                    mistakes.extend(found.into_iter().map(|m| format!("{place}{m}")));
                    UnitsConfig::Processes(Vec::new())
                }
            },
        };
        // systemd separates several state directories by colons; ours is the first.
        let first = |path: PathBuf| match path.to_str().and_then(|text| text.split_once(':')) {
            Some((first, _)) => PathBuf::from(first),
            None => path,
        };
        let folders = Folders {
            state: args.state_dir.clone().or(file.state_dir).map(first),
            runtime: args.runtime_dir.clone().or(file.runtime_dir).map(first),
        };
        for (setting, unit, folder) in [
            ("state-dir", "StateDirectory=", &folders.state),
            ("runtime-dir", "RuntimeDirectory=", &folders.runtime),
        ] {
            if let Some(folder) = folder
                && let Err(error) = usable_folder(folder)
                && !(args.check_config && error.kind() == std::io::ErrorKind::NotFound)
            {
                mistakes.push(format!(
                    "{setting}: cannot use {}: {error}; create the folder for this user, or set {unit} in the unit",
                    folder.display()
                ));
            }
        }
        // Named on the command line they are others, not more.
        let databases = if args.databases.is_empty() {
            file.databases
        } else {
            args.databases.clone()
        };
        if let Err(failure) = databases.check("serve") {
            mistakes.extend(failure.messages);
        }
        let seconds = |flag: Option<Duration>, file: Option<ConfigDuration>, default| {
            flag.or(file.map(|d| d.0)).unwrap_or(Duration::from_secs(default))
        };
        let pace = Pace {
            interval: seconds(args.probe_interval, file.probe_interval, 5),
            timeout: seconds(args.probe_timeout, file.probe_timeout, 2),
        };
        let patience = |flag: Option<Patience>, file: Option<Patience>, default| {
            let told = flag.or(file);
            told.map_or(Some(Duration::from_secs(default)), |patience| patience.0)
        };
        let repairs = if databases.is_empty() {
            Repairs::NONE
        } else {
            Repairs {
                drain_after: patience(args.drain_after, file.drain_after, 30),
                undrain_after: patience(args.undrain_after, file.undrain_after, 5),
            }
        };
        let psk_files = if args.psk_file.is_empty() {
            file.psk_file.unwrap_or_default().0
        } else {
            args.psk_file.clone()
        };
        if psk_files.is_empty() {
            if mistakes.is_empty() {
                return Err(Failure::usage(
                    "no key: name its file with --psk-file, GUARDIAN_PSK_FILE, or psk-file in the configuration file; \
                     make a key with `openssl rand -base64 32`",
                ));
            }
            mistakes.push(format!(
                "{place}psk-file is missing; name the file with the pre-shared key"
            ));
            return Err(Failure::configs(mistakes));
        }
        let keys = match Keyring::read(&psk_files) {
            Ok(keys) => Some(keys),
            Err(KeyError::Read { source, .. })
                if args.check_config && source.kind() == std::io::ErrorKind::NotFound =>
            {
                None
            }
            // It may only be late: whoever starts us tries again.
            Err(error) if error.may_pass() && mistakes.is_empty() && !args.check_config => {
                return Err(Failure::failed(error.to_string()));
            }
            Err(error) => {
                mistakes.push(error.to_string());
                None
            }
        };
        if mistakes.is_empty() {
            Ok(Self {
                host,
                port: args.port.or(file.port).unwrap_or(DEFAULT_PORT),
                keys,
                psk_files,
                wire: args.wire.or(file.wire).unwrap_or_default(),
                target,
                units,
                command_timeout,
                folders,
                databases,
                pace,
                repairs,
                metrics: args.metrics.or(file.metrics),
            })
        } else {
            Err(Failure::configs(mistakes))
        }
    }
}

/// Whether files can be made in `folder`, as far as can be told without making one.
fn usable_folder(folder: &Path) -> std::io::Result<()> {
    if !std::fs::metadata(folder)?.is_dir() {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    match access(folder, AccessFlags::W_OK | AccessFlags::X_OK) {
        // A disk that went read-only is no mistake of the configuration: this host must still be drained from it.
        Ok(()) | Err(Errno::EROFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// systemd.unit(5): letters, digits, and `:-_.\@`, a dot and a known suffix, at most 255 bytes.
fn is_unit_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let known = [
        "target", "service", "socket", "timer", "path", "slice", "scope", "mount",
    ];
    name.len() <= 255
        && name.chars().all(allowed)
        && name
            .rsplit_once('.')
            .is_some_and(|(stem, suffix)| !stem.is_empty() && known.contains(&suffix))
}

fn read_file(path: &Path, mistakes: &mut Vec<String>) -> Result<File, Failure> {
    let fault = |why: String| {
        Failure::config(format!(
            "cannot read the configuration file {}: {why}",
            path.display()
        ))
    };
    let size = std::fs::metadata(path)
        .map_err(|error| fault(error.to_string()))?
        .len();
    if size > FILE_MAX_BYTES {
        return Err(fault(format!(
            "it has {size} bytes, more than {FILE_MAX_BYTES}: is it the right file?"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
    parse_file(&text, &path.display().to_string(), mistakes)
}

/// Reads every setting by itself, so that one mistake does not hide the next.
fn parse_file(text: &str, path: &str, mistakes: &mut Vec<String>) -> Result<File, Failure> {
    type Table = std::collections::BTreeMap<Spanned<String>, Spanned<toml::Value>>;
    let table: Table = toml::from_str(text)
        .map_err(|error| Failure::config(format!("{path}: {}", one_line(&error.to_string()))))?;
    let mut file = File::default();
    let mut settings: Vec<_> = table.into_iter().collect();
    settings.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in settings {
        let place = format!("{path}:{}: {}", line(text, &key.span()), key.get_ref());
        let value = value.into_inner();
        let mut take = Taking {
            place: &place,
            mistakes,
        };
        match key.get_ref().as_str() {
            "host" => file.host = take.one(value),
            "port" => file.port = take.one(value),
            "psk-file" => file.psk_file = take.one(value),
            "wire" => file.wire = take.one(value),
            "target" => file.target = take.one(value),
            "units" => file.units = take.one(value),
            "command-timeout" => file.command_timeout = take.one(value),
            "state-dir" => file.state_dir = take.one(value),
            "runtime-dir" => file.runtime_dir = take.one(value),
            "postgres" => file.databases.postgres = take.addresses(value),
            "redis" => file.databases.redis = take.addresses(value),
            "require-primary" => file.databases.require_primary = take.one(value).unwrap_or_default(),
            "user" => file.databases.user = take.one(value),
            "password-file" => file.databases.password_file = take.one(value),
            "database" => file.databases.database = take.one(value),
            "redis-password-file" => file.databases.redis_password_file = take.one(value),
            "redis-user" => file.databases.redis_user = take.one(value),
            "drain-after" => file.drain_after = take.one(value),
            "undrain-after" => file.undrain_after = take.one(value),
            "probe-interval" => file.probe_interval = take.one(value),
            "probe-timeout" => file.probe_timeout = take.one(value),
            "metrics" => file.metrics = take.one(value),
            "process" => file.process = take.list(value),
            _ => mistakes.push(format!("{place} is no setting; there are {KEYS}")),
        }
    }
    Ok(file)
}

struct Taking<'a> {
    place: &'a str,
    mistakes: &'a mut Vec<String>,
}

impl Taking<'_> {
    fn one<T: DeserializeOwned>(&mut self, value: toml::Value) -> Option<T> {
        value
            .try_into()
            .map_err(|error| {
                self.mistakes
                    .push(format!("{}: {}", self.place, one_line(&error.to_string())))
            })
            .ok()
    }

    /// One `HOST[:PORT]`, or a list of them.
    fn addresses(&mut self, value: toml::Value) -> Vec<HostPort> {
        let texts: Vec<String> = match value {
            toml::Value::String(one) => vec![one],
            value => self.one(value).unwrap_or_default(),
        };
        let parsed = texts.iter().filter_map(|text| {
            let address = text.parse();
            address
                .map_err(|error| self.mistakes.push(format!("{}: {text:?}: {error}", self.place)))
                .ok()
        });
        parsed.collect()
    }

    fn list<T: DeserializeOwned>(&mut self, value: toml::Value) -> Vec<T> {
        let toml::Value::Array(items) = value else {
            self.mistakes.push(format!(
                "{} must be a list; begin each of its members with a line [[process]]",
                self.place
            ));
            return Vec::new();
        };
        let mut taken = Vec::new();
        for (at, item) in items.into_iter().enumerate() {
            let name = item
                .get("name")
                .and_then(|n| n.as_str())
                .map(|n| format!(" ({n:?})"))
                .unwrap_or_default();
            match item.try_into() {
                Ok(item) => taken.push(item),
                Err(error) => self.mistakes.push(format!(
                    "{} number {}{name}: {}",
                    self.place,
                    at + 1,
                    one_line(&error.to_string())
                )),
            }
        }
        taken
    }
}

fn line(text: &str, span: &Range<usize>) -> usize {
    text.get(..span.start)
        .map_or(1, |before| before.matches('\n').count() + 1)
}

/// toml draws the place with a caret over several lines; a message is one line, and names the place itself.
fn one_line(error: &str) -> String {
    let drawing = |line: &str| {
        line.trim_start().starts_with('|')
            || line
                .trim_start()
                .split(" |")
                .next()
                .is_some_and(|n| n.trim().parse::<u32>().is_ok())
    };
    let words: Vec<_> = error
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !drawing(line))
        .collect();
    words.join(": ")
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
