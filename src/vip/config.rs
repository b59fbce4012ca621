//! What `io-vip` is told: flags over environment over file over defaults, and every mistake at once.
//!
//! The keys of `yaim.yml` are here under their own names, in a TOML file, as flags, and in the environment as `YAIM_…`. Where that program has
//! a bare number it means milliseconds, and it does here.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer};

use super::core::Settings;
use super::health::try_check;
use crate::cli::{EXIT_USAGE, Failure, HostPort, parse_duration};
use crate::host::AddressSettings;
use crate::probe::Password;
use crate::store::{Etcd, EtcdConfig, EtcdConfigError, EtcdSettings};

/// Where the daemon listens.
pub(super) const SOCKET: &str = "/run/io-vip/io-vip.sock";
/// Where it keeps its lease.
pub(super) const STATE: &str = "/run/io-vip/state.json";
/// Longest configuration file that is read, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

const NAMESPACE: &str = "service";
const CLUSTER: &str = "yaim";
const TTL: Duration = Duration::from_secs(10);
const TTL_LEAST: Duration = Duration::from_secs(2);
const TTL_MOST: Duration = Duration::from_secs(600);
const INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_LEAST: Duration = Duration::from_millis(50);
const RETRY_AFTER: Duration = Duration::from_millis(250);
const RETRY_NUM: u32 = 3;
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// What the clocks of two hosts may differ in rate, and what a drop takes: docs/TIMING.md.
const MARGIN_PART: u32 = 10;
const MARGIN_LEAST: Duration = Duration::from_millis(150);
/// Longest name of an interface, by the kernel (IFNAMSIZ less its end).
const INTERFACE_MAX: usize = 15;
/// Longest name of a node, and of what else is a part of a key.
const NAME_MAX: usize = 128;

/// A duration that may be a bare number of milliseconds, as yaim has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Millis(pub(super) Duration);

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let number: u64 = text
                .parse()
                .map_err(|_| format!("{text} milliseconds are too many"))?;
            return Ok(Self(Duration::from_millis(number)));
        }
        parse_duration(text)
            .map(Self)
            .map_err(|error| format!("{error}; a bare number is milliseconds here"))
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Millis;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration, such as \"500ms\" or \"5s\", or a number of milliseconds")
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Millis, E> {
                u64::try_from(number)
                    .map(|number| Millis(Duration::from_millis(number)))
                    .map_err(|_| E::custom(format!("the duration {number} is below zero")))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Millis, E> {
                Ok(Millis(Duration::from_millis(number)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Millis, E> {
                text.parse()
                    .map_err(|why| E::custom(format!("the duration {text:?}: {why}")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How it is found out whether this node is healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Checker {
    /// GET of --http-url
    Http,
    /// A query over --postgres-conn-url
    Postgres,
    /// PING of the Redis at --redis-address
    Redis,
    /// A connection to --tcp-address
    Tcp,
    /// --command ends with 0
    Command,
    /// Nothing is asked: a node that runs is healthy
    None,
}

/// What becomes of the addresses when the daemon is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnStop {
    /// Another node takes them at once
    Release,
    /// They stay for the ttl, for the next start of this node
    Keep,
}

/// What is made of an address that no node has held since it came into the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Neighbours {
    /// They are asked first whether somebody has it
    Ask,
    /// It is taken. For networks where somebody answers for every address (proxy ARP)
    Trust,
}

/// Where the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StoreKind {
    /// etcd, version 3
    Etcd,
}

/// All settings, each as a flag, in the environment and in the file; what is given first holds.
macro_rules! settings {
    ($($(#[$outer:meta])* $name:ident { $($(#[doc = $help:literal])* #[arg($($arg:tt)*)] $(#[serde($($serde:tt)*)])? $field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$outer])*
            #[derive(clap::Args, Clone, Debug, Default)]
            pub(super) struct $name {
                $($(#[doc = $help])* #[arg($($arg)*)] pub(super) $field: Option<$kind>,)*
            }

            impl $name {
                /// These, and where they say nothing, those of the file.
                fn or(self, file: &File) -> Self {
                    Self { $($field: self.$field.or_else(|| file.$field.clone()),)* }
                }
            }
        )*

        /// The file holds all of them.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        struct File {
            $($($(#[serde($($serde)*)])? $field: Option<$kind>,)*)*
        }
    };
}

settings! {
    /// Which pool, and where it is kept.
    StoreArgs {
        /// What keeps the pool [default: etcd]
        #[arg(long, env = "YAIM_DCS_TYPE", value_enum, value_name = "KIND", help_heading = "Store")]
        dcs_type: StoreKind,
        /// Members of the store, such as http://192.0.2.1:2379; several with commas between them
        #[arg(long, env = "YAIM_DCS_ENDPOINTS", value_name = "URL", value_delimiter = ',', help_heading = "Store")]
        dcs_endpoints: Vec<String>,
        /// Where all pools are, below which key of the store [default: service]
        #[arg(long, env = "YAIM_DCS_NAMESPACE", value_name = "NAME", help_heading = "Store")]
        dcs_namespace: String,
        /// Which pool [default: yaim]
        #[arg(long, env = "YAIM_DCS_CLUSTERNAME", value_name = "NAME", help_heading = "Store")]
        #[serde(alias = "dcs-cluster-name")]
        dcs_clustername: String,
        /// User of the store [default: none]
        #[arg(long, env = "YAIM_ETCD_USER", value_name = "NAME", help_heading = "Store")]
        etcd_user: String,
        /// Its password; better a file, because everybody on this host can read a command line
        #[arg(long, env = "YAIM_ETCD_PASSWORD", value_name = "TEXT", hide_env_values = true, help_heading = "Store")]
        etcd_password: Secret,
        /// File with its password
        #[arg(long, value_name = "FILE", help_heading = "Store")]
        etcd_password_file: PathBuf,
        /// Certificates of those who vouch for the store (PEM)
        #[arg(long, env = "YAIM_ETCD_CA_FILE", value_name = "FILE", help_heading = "Store")]
        etcd_ca_file: PathBuf,
        /// Our own certificate for the store (PEM)
        #[arg(long, env = "YAIM_ETCD_CERT_FILE", value_name = "FILE", help_heading = "Store")]
        etcd_cert_file: PathBuf,
        /// Its private key (PEM)
        #[arg(long, env = "YAIM_ETCD_KEY_FILE", value_name = "FILE", help_heading = "Store")]
        etcd_key_file: PathBuf,
    }

    /// How the node takes part.
    NodeArgs {
        /// Interface that the addresses are put on
        #[arg(long, env = "YAIM_INTERFACE", value_name = "NAME")]
        interface: String,
        /// Bits of the netmask of IPv4 addresses [default: 32]
        #[arg(long, env = "YAIM_NETMASK", value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=32))]
        netmask: u8,
        /// The same of IPv6 addresses [default: 128]
        #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(1..=128))]
        netmask6: u8,
        /// What `ip address` shows behind the interface's name for an IPv4 address of ours [default: vip]
        #[arg(long, env = "YAIM_LABEL", value_name = "TEXT")]
        label: String,
        /// How addresses are put there: there is one way [default: basic]
        #[arg(long, env = "YAIM_MANAGER_TYPE", value_name = "KIND", hide = true)]
        manager_type: String,
        /// This node's name in the store; no two may have the same [default: the host's name]
        #[arg(long, env = "YAIM_NODENAME", value_name = "NAME")]
        nodename: String,
        /// How long a node that is not heard of is waited for before others take its addresses; the same on all nodes [default: 10s]
        #[arg(long, env = "YAIM_TTL", value_name = "DURATION")]
        ttl: Millis,
        /// How long before the end of that a node gives up its own [default: a tenth of the ttl, at least 150ms]
        #[arg(long, value_name = "DURATION")]
        margin: Millis,
        /// Between two signs of life, and between two checks [default: 1s, or less for a ttl below 5s]
        #[arg(long, env = "YAIM_INTERVAL", value_name = "DURATION")]
        interval: Millis,
        /// How the node's health is checked
        #[arg(long, env = "YAIM_CHECKER_TYPE", value_enum, value_name = "KIND", help_heading = "Health")]
        checker_type: Checker,
        /// After so many checks that fail, one after the other, the node is not healthy [default: 3]
        #[arg(long, env = "YAIM_RETRY_NUM", value_name = "COUNT", help_heading = "Health")]
        #[serde(alias = "retry_num", alias = "fall")]
        retry_num: u32,
        /// Between one that has failed and the next [default: 250ms]
        #[arg(long, env = "YAIM_RETRY_AFTER", value_name = "DURATION", help_heading = "Health")]
        #[serde(alias = "retry_after")]
        retry_after: Millis,
        /// After so many that do not, it is [default: 1]
        #[arg(long, value_name = "COUNT", help_heading = "Health")]
        rise: u32,
        /// How long one check may take [default: 2s]
        #[arg(long, value_name = "DURATION", help_heading = "Health")]
        check_timeout: Millis,
        /// What is asked for, such as http://127.0.0.1:8008/primary
        #[arg(long, env = "YAIM_HTTP_URL", value_name = "URL", help_heading = "Health")]
        http_url: String,
        /// User for it (basic authentication)
        #[arg(long, env = "YAIM_HTTP_USER", value_name = "NAME", help_heading = "Health")]
        http_user: String,
        /// Password for it; better a file
        #[arg(long, env = "YAIM_HTTP_PASSWORD", value_name = "TEXT", hide_env_values = true, help_heading = "Health")]
        http_password: Secret,
        /// File with the password for it
        #[arg(long, value_name = "FILE", help_heading = "Health")]
        http_password_file: PathBuf,
        /// Certificates of those who vouch for it (PEM) [default: the system's]
        #[arg(long, env = "YAIM_HTTP_CA_FILE", value_name = "FILE", help_heading = "Health")]
        http_ca_file: PathBuf,
        /// Our own certificate for it (PEM)
        #[arg(long, env = "YAIM_HTTP_CERT_FILE", value_name = "FILE", help_heading = "Health")]
        http_cert_file: PathBuf,
        /// Its private key (PEM)
        #[arg(long, env = "YAIM_HTTP_KEY_FILE", value_name = "FILE", help_heading = "Health")]
        http_key_file: PathBuf,
        /// The code of a healthy answer [default: 200]
        #[arg(long, env = "YAIM_HTTP_EXPECTED_CODE", value_name = "CODE", help_heading = "Health")]
        http_expected_code: u16,
        /// The whole of a healthy answer
        #[arg(long, env = "YAIM_HTTP_EXPECTED_RESPONSE", value_name = "TEXT", help_heading = "Health")]
        http_expected_response: String,
        /// What a healthy answer has in it, such as '"value":"foo"'
        #[arg(long, env = "YAIM_HTTP_EXPECTED_RESPONSE_CONTAINS", value_name = "TEXT", help_heading = "Health")]
        http_expected_response_contains: String,
        /// Where PostgreSQL is: postgres://user@host:port/database?sslmode=…
        #[arg(long, env = "YAIM_POSTGRES_CONN_URL", value_name = "URL", hide_env_values = true, help_heading = "Health")]
        postgres_conn_url: Secret,
        /// What it is asked [default: SELECT 1]
        #[arg(long, env = "YAIM_POSTGRES_QUERY", value_name = "SQL", help_heading = "Health")]
        postgres_query: String,
        /// As whom, where the URL does not say it
        #[arg(long, env = "YAIM_POSTGRES_USER", value_name = "NAME", help_heading = "Health")]
        postgres_user: String,
        /// With which password; better a file
        #[arg(long, env = "YAIM_POSTGRES_PASSWORD", value_name = "TEXT", hide_env_values = true, help_heading = "Health")]
        postgres_password: Secret,
        /// File with the password
        #[arg(long, value_name = "FILE", help_heading = "Health")]
        postgres_password_file: PathBuf,
        /// Certificates of those who vouch for PostgreSQL (PEM)
        #[arg(long, env = "YAIM_POSTGRES_CA_FILE", value_name = "FILE", help_heading = "Health")]
        postgres_ca_file: PathBuf,
        /// Our own certificate for it (PEM)
        #[arg(long, env = "YAIM_POSTGRES_CERT_FILE", value_name = "FILE", help_heading = "Health")]
        postgres_cert_file: PathBuf,
        /// Its private key (PEM)
        #[arg(long, env = "YAIM_POSTGRES_KEY_FILE", value_name = "FILE", help_heading = "Health")]
        postgres_key_file: PathBuf,
        /// The first column of the first row of a healthy answer, as text [default: anything]
        #[arg(long, env = "YAIM_POSTGRES_EXPECTED_RESPONSE", value_name = "TEXT", help_heading = "Health")]
        postgres_expected_response: String,
        /// Where Redis is [default: localhost:6379]
        #[arg(long, value_name = "HOST:PORT", help_heading = "Health")]
        redis_address: String,
        /// File with its password
        #[arg(long, value_name = "FILE", help_heading = "Health")]
        redis_password_file: PathBuf,
        /// What must accept a connection
        #[arg(long, value_name = "HOST:PORT", help_heading = "Health")]
        tcp_address: String,
        /// What must end with 0: a program and its arguments, with no shell. Arguments that begin with a dash can be written in the file only
        #[arg(long, value_name = "PROGRAM", num_args = 1.., help_heading = "Health")]
        command: Vec<String>,
        /// What becomes of the addresses when the daemon is told to end [default: release]
        #[arg(long, value_enum, value_name = "WHAT")]
        on_stop: OnStop,
        /// Whether neighbours are asked for an address before it is held for the first time since it came into the pool [default: ask]
        #[arg(long, value_enum, value_name = "WHAT")]
        neighbours: Neighbours,
        /// Address and port of an HTTP server with /metrics (for Prometheus) and /healthz [default: none]
        #[arg(long, value_name = "ADDRESS:PORT")]
        metrics: SocketAddr,
        /// The Unix socket that `io-vip status` asks [default: /run/io-vip/io-vip.sock]
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// File that keeps the lease over a restart; on a tmpfs [default: /run/io-vip/state.json]
        #[arg(long, value_name = "PATH")]
        state: PathBuf,
        /// Of the seed's; RUST_LOG chooses what is logged
        #[arg(long, env = "YAIM_LOG_LEVEL", value_name = "LEVEL", hide = true)]
        log_level: String,
        /// Of the seed's; there is no Consul here
        #[arg(long, env = "YAIM_CONSUL_TOKEN", value_name = "TEXT", hide = true, hide_env_values = true)]
        consul_token: Secret,
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Which file.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct FileArgs {
    /// Configuration file (TOML), with the same names [default: none]
    #[arg(long, env = "YAIM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Where the pool is, checked.
#[derive(Clone, Debug)]
pub(super) struct StoreConfig {
    /// `/<namespace>/<cluster>/`
    pub(super) prefix: String,
    /// The files that cannot be read here, and why.
    unread: Vec<String>,
    pub(super) args: StoreArgs,
}

/// Everything that the daemon goes by, checked.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) settings: Settings,
    pub(super) store: StoreConfig,
    pub(super) node: NodeArgs,
    pub(super) addresses: AddressSettings,
    pub(super) check: Pace,
    pub(super) on_stop: OnStop,
    pub(super) neighbours: Neighbours,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) socket: PathBuf,
    pub(super) state: PathBuf,
    /// The files that cannot be read here, and why.
    pub(super) unread: Vec<String>,
}

/// How often the node is checked, and what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) every: Duration,
    pub(super) retry_after: Duration,
    pub(super) timeout: Duration,
    pub(super) rise: u32,
    pub(super) fall: u32,
}

/// Mistakes, each with its place.
struct Mistakes {
    place: Option<String>,
    found: Vec<String>,
}

impl Mistakes {
    fn add(&mut self, text: impl fmt::Display) {
        self.found.push(match &self.place {
            Some(place) => format!("{text} (flags, environment, and {place})"),
            None => text.to_string(),
        });
    }

    fn done<T>(self, value: T) -> Result<T, Failure> {
        if self.found.is_empty() {
            return Ok(value);
        }
        Err(match self.place {
            Some(_) => Failure::configs(self.found),
            None => Failure {
                code: EXIT_USAGE,
                messages: self.found,
            },
        })
    }
}

fn open(file: &FileArgs) -> Result<(File, Mistakes), Failure> {
    let read = match &file.config {
        Some(path) => read_file(path)?,
        None => File::default(),
    };
    let mistakes = Mistakes {
        place: file.config.as_deref().map(|path| path.display().to_string()),
        found: Vec::new(),
    };
    Ok((read, mistakes))
}

fn read_file(path: &Path) -> Result<File, Failure> {
    use std::io::Read;
    let shown = path.display();
    let fault = |error: std::io::Error| {
        Failure::config(format!(
            "cannot read the configuration {shown}: {error}; check the path, and that this user may read it"
        ))
    };
    let mut text = String::new();
    let opened = std::fs::File::open(path).map_err(fault)?;
    opened
        .take(FILE_MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(fault)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(Failure::config(format!(
            "the configuration {shown} is longer than 1 MiB; is it the right file?"
        )));
    }
    toml::from_str(&text).map_err(|error| {
        let hint = match path.extension().and_then(|e| e.to_str()) {
            Some("yml" | "yaml") => " A yaim.yml becomes a TOML file by writing `key = value` for `key: value`, and texts in quotes.",
            _ => "",
        };
        Failure::config(format!("{shown}: {}{hint}", error.to_string().trim_end()))
    })
}

impl StoreConfig {
    /// # Errors
    /// Exit code 64 for a wrong flag, 78 for what a file holds; all mistakes.
    pub(super) fn read(file: &FileArgs, args: StoreArgs) -> Result<Self, Failure> {
        let (file, mut mistakes) = open(file)?;
        let config = Self::resolve(args, &file, &mut mistakes);
        mistakes.done(config)
    }

    fn resolve(args: StoreArgs, file: &File, mistakes: &mut Mistakes) -> Self {
        let args = args.or(file);
        let before = mistakes.found.len();
        let namespace = args
            .dcs_namespace
            .as_deref()
            .unwrap_or(NAMESPACE)
            .trim_matches('/');
        let cluster = args
            .dcs_clustername
            .as_deref()
            .unwrap_or(CLUSTER)
            .trim_matches('/');
        for (key, name, slashes) in [
            ("dcs-namespace", namespace, true),
            ("dcs-clustername", cluster, false),
        ] {
            if let Err(why) = check_name(name, slashes) {
                mistakes.add(format!("{key}: {name:?} {why}"));
            }
        }
        if args.dcs_endpoints.as_ref().is_none_or(Vec::is_empty) {
            mistakes.add("dcs-endpoints: none is given; name the members of the store, for example http://192.0.2.1:2379");
        }
        for endpoint in args.dcs_endpoints.iter().flatten() {
            if let Err(why) = check_endpoint(endpoint) {
                mistakes.add(format!("dcs-endpoints: {why}"));
            }
        }
        if args.etcd_password.is_some() && args.etcd_password_file.is_some() {
            mistakes.add("etcd-password and etcd-password-file: give one of them");
        }
        if args.etcd_password.is_some() && args.etcd_user.is_none() {
            mistakes.add("etcd-password: it is of no use without etcd-user; give both, or neither");
        }
        let mut unread = Vec::new();
        if before == mistakes.found.len()
            && let Err(errors) = open_store(&args)
        {
            for error in errors {
                match error.is_unread() {
                    true => unread.push(error.to_string()),
                    false => mistakes.add(error),
                }
            }
        }
        Self {
            unread,
            prefix: format!("/{namespace}/{cluster}/"),
            args,
        }
    }
}

impl StoreConfig {
    /// Opens the store. Nobody is asked yet.
    ///
    /// # Errors
    /// Exit code 78 with everything that is wrong.
    pub(super) fn open(&self) -> Result<Etcd, Failure> {
        open_store(&self.args)
            .map_err(|errors| Failure::configs(errors.iter().map(ToString::to_string).collect()))
    }
}

fn open_store(args: &StoreArgs) -> Result<Etcd, Vec<EtcdConfigError>> {
    let given = args.etcd_password.as_ref();
    let password = given.map(|secret| Password::given(secret.expose().to_owned()));
    let config = EtcdConfig::new(&EtcdSettings {
        endpoints: args.dcs_endpoints.clone().unwrap_or_default(),
        user: args.etcd_user.clone(),
        password: password.transpose().map_err(|error| vec![error.into()])?,
        password_file: args.etcd_password_file.clone(),
        ca_file: args.etcd_ca_file.clone(),
        cert_file: args.etcd_cert_file.clone(),
        key_file: args.etcd_key_file.clone(),
    })?;
    Etcd::new(&config).map_err(|error| vec![error])
}

/// What this node is called by the environment or the file; otherwise the host's name.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn nodename(file: &FileArgs, hostname: &str) -> Result<String, Failure> {
    if let Ok(name) = std::env::var("YAIM_NODENAME") {
        return Ok(name);
    }
    let (file, _) = open(file)?;
    Ok(file.nodename.unwrap_or_else(|| hostname.to_owned()))
}

/// Whether a name can be a part of a key.
pub(super) fn check_name(name: &str, slashes: bool) -> Result<(), String> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || slashes && c == '/';
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > NAME_MAX {
        return Err(format!("is longer than {NAME_MAX} characters"));
    }
    match name.chars().find(|c| !is_fine(*c)) {
        Some(wrong) => Err(format!(
            "has {wrong:?} in it; letters, digits, dots, dashes and underscores may be"
        )),
        None => Ok(()),
    }
}

impl Config {
    /// `hostname` is what the kernel calls this host.
    ///
    /// # Errors
    /// Exit code 64 for a wrong flag, 78 for what a file holds; all mistakes.
    pub(super) fn read(
        file: &FileArgs,
        store: StoreArgs,
        node: NodeArgs,
        hostname: &str,
    ) -> Result<Self, Failure> {
        let (file, mut mistakes) = open(file)?;
        let store = StoreConfig::resolve(store, &file, &mut mistakes);
        let node = node.or(&file);
        let ms = |setting: &Option<Millis>| setting.map(|ms| ms.0);
        let shown = humantime::format_duration;

        let ttl = ms(&node.ttl).unwrap_or(TTL);
        if !(TTL_LEAST..=TTL_MOST).contains(&ttl) {
            mistakes.add(format!(
                "ttl: {} is not from {} to {}",
                shown(ttl),
                shown(TTL_LEAST),
                shown(TTL_MOST)
            ));
        }
        let least = (ttl / MARGIN_PART).max(MARGIN_LEAST);
        let margin = ms(&node.margin).unwrap_or(least);
        if margin < least {
            mistakes.add(format!(
                "margin: {} is less than {}: a tenth of the ttl, and 150ms, pay for clocks that run at different rates and for the time that \
                 giving up an address takes; raise margin, or lower ttl",
                shown(margin),
                shown(least)
            ));
        }
        let room = ttl.saturating_sub(margin) / 3;
        let interval = ms(&node.interval).unwrap_or(INTERVAL.min(whole_millis(room)));
        if interval < INTERVAL_LEAST {
            mistakes.add(format!(
                "interval: {} is less than {}",
                shown(interval),
                shown(INTERVAL_LEAST)
            ));
        } else if interval > room {
            mistakes.add(format!(
                "interval: {} is more than a third of ttl less margin, {}: one sign of life that is lost could cost all addresses; lower interval, \
                 or raise ttl",
                shown(interval),
                shown(whole_millis(room))
            ));
        }

        let name = node.nodename.clone().unwrap_or_else(|| hostname.to_owned());
        if let Err(why) = check_name(&name, false) {
            mistakes.add(format!("nodename: {name:?} {why}"));
        }
        let interface = node.interface.clone().unwrap_or_default();
        if interface.is_empty() {
            mistakes.add(
                "interface: none is given; name the one that the addresses are put on, for example eth0",
            );
        } else if interface.len() > INTERFACE_MAX
            || interface.contains(['/', ':'])
            || interface.contains(char::is_whitespace)
        {
            mistakes.add(format!("interface: {interface:?} is no name of an interface"));
        }
        let label = node.label.clone().unwrap_or_else(|| "vip".to_owned());
        if label.is_empty()
            || !label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        {
            mistakes.add(format!(
                "label: {label:?} is not of letters, digits, dashes and underscores"
            ));
        } else if interface.len() + 1 + label.len() > INTERFACE_MAX {
            mistakes.add(format!(
                "label: {interface}:{label} is longer than {INTERFACE_MAX} characters, which is as much as the kernel takes; shorten label"
            ));
        }
        for (key, bits, most) in [("netmask", node.netmask, 32), ("netmask6", node.netmask6, 128)] {
            if let Some(bits) = bits.filter(|bits| !(1..=most).contains(bits)) {
                mistakes.add(format!("{key}: {bits} is not from 1 to {most}"));
            }
        }
        let pace = Pace {
            every: interval.max(Duration::from_millis(100)),
            retry_after: ms(&node.retry_after).unwrap_or(RETRY_AFTER),
            timeout: ms(&node.check_timeout).unwrap_or(CHECK_TIMEOUT),
            rise: node.rise.unwrap_or(1),
            fall: node.retry_num.unwrap_or(RETRY_NUM),
        };
        for (key, count) in [("retry-num", pace.fall), ("rise", pace.rise)] {
            if !(1..=1_000).contains(&count) {
                mistakes.add(format!("{key}: {count} is not from 1 to 1000"));
            }
        }
        for (key, time) in [("retry-after", pace.retry_after), ("check-timeout", pace.timeout)] {
            if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&time) {
                mistakes.add(format!("{key}: {} is not from 10ms to 60s", shown(time)));
            }
        }
        if let Some(kind) = node.manager_type.as_deref().filter(|kind| *kind != "basic") {
            mistakes.add(format!(
                "manager-type: {kind:?} is not known; there is \"basic\": leave it out"
            ));
        }
        let mut unread = store.unread.clone();
        let before = mistakes.found.len();
        check_health(&node, &mut mistakes);
        if before == mistakes.found.len() {
            let (_, faults) = try_check(&node);
            unread.extend(faults.unread);
            for wrong in faults.wrong {
                mistakes.add(wrong);
            }
        }
        let config = Self {
            settings: Settings {
                node: name,
                prefix: store.prefix.clone(),
                ttl,
                margin,
                interval,
                patience: interval.max(Duration::from_millis(200)),
            },
            addresses: AddressSettings {
                interface,
                label,
                protocol: AddressSettings::PROTOCOL,
                prefix4: node.netmask.unwrap_or(32),
                prefix6: node.netmask6.unwrap_or(128),
            },
            check: pace,
            on_stop: node.on_stop.unwrap_or(OnStop::Release),
            neighbours: node.neighbours.unwrap_or(Neighbours::Ask),
            metrics: node.metrics,
            socket: node.socket.clone().unwrap_or_else(|| SOCKET.into()),
            state: node.state.clone().unwrap_or_else(|| STATE.into()),
            store,
            node,
            unread,
        };
        mistakes.done(config)
    }
}

fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Whether a URL can be asked for: what it names need not be there yet.
fn check_url(text: &str) -> Result<(), String> {
    let url: hyper::Uri = text
        .parse()
        .map_err(|error| format!("{text:?} is no URL: {error}"))?;
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(()),
        _ => Err(format!(
            "{text:?} is no URL of a web server; write for example http://127.0.0.1:8008/primary"
        )),
    }
}

/// Whether this could be a member of the store.
fn check_endpoint(text: &str) -> Result<(), String> {
    let address = text
        .strip_prefix("http://")
        .or(text.strip_prefix("https://"))
        .unwrap_or(text);
    let address = address.strip_suffix('/').unwrap_or(address);
    if text.contains(char::is_whitespace) || address.contains(['/', '@', ',']) {
        return Err(format!(
            "{text:?} is not one member; write http://HOST:PORT, and more than one as a list (on the command line: with commas between them)"
        ));
    }
    HostPort::parse(address)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// What a health check needs, by its kind.
fn check_health(node: &NodeArgs, mistakes: &mut Mistakes) {
    let missing = match node.checker_type {
        None => Some("checker-type: none is given; write http, postgres, redis, tcp or command; or none, which takes a node that runs for healthy".to_owned()),
        Some(Checker::Http) if node.http_url.is_none() => {
            Some("http-url: none is given, and checker-type is http; for example http://127.0.0.1:8008/primary".to_owned())
        }
        Some(Checker::Postgres) if node.postgres_conn_url.is_none() => Some(
            "postgres-conn-url: none is given, and checker-type is postgres; for example postgres://monitor@127.0.0.1:5432/postgres".to_owned(),
        ),
        Some(Checker::Tcp) if node.tcp_address.is_none() => {
            Some("tcp-address: none is given, and checker-type is tcp; for example 127.0.0.1:5432".to_owned())
        }
        Some(Checker::Command) if node.command.as_ref().is_none_or(Vec::is_empty) => {
            Some("command: none is given, and checker-type is command; for example [\"/usr/local/bin/is-healthy\"]".to_owned())
        }
        Some(_) => None,
    };
    if let Some(missing) = missing {
        mistakes.add(missing);
    }
    if let Some(Err(why)) = node.http_url.as_deref().map(check_url) {
        mistakes.add(format!("http-url: {why}"));
    }
    for (key, address, needs_port) in [
        ("tcp-address", &node.tcp_address, true),
        ("redis-address", &node.redis_address, false),
    ] {
        match address.as_deref().map(HostPort::parse) {
            Some(Err(error)) => mistakes.add(format!("{key}: {error}")),
            Some(Ok(address)) if needs_port && address.port.is_none() => {
                mistakes.add(format!("{key}: {address} has no port; write {address}:PORT"));
            }
            _ => {}
        }
    }
    for (key, secret, file) in [
        ("http-password", &node.http_password, &node.http_password_file),
        (
            "postgres-password",
            &node.postgres_password,
            &node.postgres_password_file,
        ),
    ] {
        if secret.is_some() && file.is_some() {
            mistakes.add(format!("{key} and {key}-file: give one of them"));
        }
    }
    if let Some(code) = node.http_expected_code.filter(|code| !(200..=599).contains(code)) {
        mistakes.add(format!("http-expected-code: {code} is not from 200 to 599"));
    }
    if node.consul_token.is_some() {
        mistakes.add("consul-token: there is no Consul here, only etcd: leave it out");
    }
    if node.log_level.is_some() {
        mistakes.add("log-level: what is logged is chosen by RUST_LOG, for example RUST_LOG=io_guardian=debug: leave it out");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        file: FileArgs,
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        store: StoreArgs,
    }

    fn read(arguments: &str) -> Result<Config, Failure> {
        let line =
            Line::try_parse_from(std::iter::once("io-vip").chain(arguments.split_whitespace())).unwrap();
        Config::read(&line.file, line.store, line.node, "app1")
    }

    fn mistakes(arguments: &str) -> Vec<String> {
        read(arguments).unwrap_err().messages
    }

    const FINE: &str = "--interface eth0 --checker-type none --dcs-endpoints http://192.0.2.1:2379";

    #[test]
    fn what_is_left_out_has_the_defaults_of_yaim() {
        let config = read(FINE).unwrap();
        assert_eq!(config.settings.prefix, "/service/yaim/");
        assert_eq!(config.settings.node, "app1");
        assert_eq!(config.settings.ttl, Duration::from_secs(10));
        assert_eq!(config.settings.margin, Duration::from_secs(1));
        assert_eq!(config.settings.interval, Duration::from_secs(1));
        assert_eq!(config.check.retry_after, Duration::from_millis(250));
        assert_eq!(config.check.fall, 3);
    }

    #[test]
    fn a_short_ttl_has_an_interval_that_fits() {
        let config = read(&format!("{FINE} --ttl 2000")).unwrap();
        assert_eq!(config.settings.margin, Duration::from_millis(200));
        assert_eq!(config.settings.interval, Duration::from_millis(600));
    }

    #[test]
    fn the_file_has_the_keys_of_yaim_and_flags_come_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("yaim.toml");
        std::fs::write(
            &file,
            "interface = 'eth1'\nlabel = 'yaim'\nnetmask = 24\nnodename = 'b'\ndcs-type = 'etcd'\ndcs-endpoints = ['http://a:2379', 'http://b:2379']\n\
             dcs-namespace = 'prod'\ndcs-clustername = 'web'\nchecker-type = 'http'\nhttp-url = 'http://127.0.0.1/'\nttl = 5000\ninterval = '1s'\n\
             retry_num = 5\nretry-after = 100\n",
        )
        .unwrap();
        let config = read(&format!("--config {} --interface eth2", file.display())).unwrap();
        assert_eq!(config.addresses.interface, "eth2");
        assert_eq!(config.settings.prefix, "/prod/web/");
        assert_eq!(config.settings.node, "b");
        assert_eq!(config.settings.ttl, Duration::from_secs(5));
        assert_eq!(config.addresses.prefix4, 24);
        assert_eq!(
            (config.check.fall, config.check.retry_after),
            (5, Duration::from_millis(100))
        );
        std::fs::write(&file, "interfaces = 'eth1'\n").unwrap();
        let error = read(&format!("--config {}", file.display())).unwrap_err();
        assert_eq!(error.code, crate::cli::EXIT_CONFIG);
        assert!(error.messages[0].contains("interfaces"), "{error:?}");
    }

    #[test]
    fn every_mistake_is_named_with_its_remedy() {
        let all = mistakes("--ttl 1s --label much-too-long --nodename a/b --interface eth0123456789");
        for expected in [
            "ttl: 1s",
            "dcs-endpoints: none",
            "nodename: \"a/b\" has '/'",
            "label: eth0123456789:much",
            "checker-type: none is given",
        ] {
            assert!(
                all.iter().any(|m| m.starts_with(expected)),
                "{expected}: {all:#?}"
            );
        }
        let all = mistakes(&format!("{FINE} --ttl 3s --interval 1s"));
        assert!(all[0].contains("lower interval"), "{all:?}");
        let all = mistakes(&format!("{FINE} --margin 100ms"));
        assert!(all[0].contains("raise margin"), "{all:?}");
    }

    #[test]
    fn what_could_never_be_asked_is_a_mistake_before_anything_is_asked() {
        for (wrong, expected) in [
            ("--http-url foo", "http-url: \"foo\" is no URL"),
            ("--tcp-address localhost", "tcp-address: localhost has no port"),
            ("--redis-address a:b:c", "redis-address: "),
            ("--dcs-endpoints http://192.0.2.1:2379/v2", "dcs-endpoints: "),
        ] {
            let all = mistakes(&format!(
                "--interface eth0 --checker-type none --dcs-endpoints http://192.0.2.1:2379 {wrong}"
            ));
            assert!(all.iter().any(|m| m.starts_with(expected)), "{wrong}: {all:#?}");
        }
    }

    /// A configuration that is called fine must not be one that the daemon ends at with 78: systemd does not start it again.
    #[test]
    fn what_a_start_would_refuse_is_a_mistake_and_what_is_elsewhere_is_none() {
        let postgres = "--checker-type postgres --postgres-conn-url";
        for (wrong, expected) in [
            (&*format!("{postgres} postgres://127.0.0.1/x"), "names no user"),
            (&*format!("{postgres} postgres://u@a,b/x"), "several servers"),
            (
                &*format!("{postgres} postgres://u@127.0.0.1/x?sslmode=disable --postgres-ca-file /nowhere"),
                "files for TLS",
            ),
            (
                "--checker-type http --http-url http://127.0.0.1/ --http-password-file /nowhere",
                "no user",
            ),
            (
                "--checker-type http --http-url http://127.0.0.1/ --http-ca-file /nowhere",
                "files for TLS",
            ),
            (
                "--checker-type http --http-url http://u:p@127.0.0.1/",
                "do not belong into it",
            ),
            (
                "--checker-type http --http-url http://127.0.0.1/ --http-expected-code 199",
                "200 to 599",
            ),
            ("--checker-type none --etcd-user root", "needs a password"),
            ("--checker-type none --etcd-password x", "without etcd-user"),
            (
                "--checker-type none --etcd-ca-file /nowhere",
                "is http://, but there is",
            ),
            (
                "--checker-type none --dcs-endpoints https://a:1",
                "needs the certificate",
            ),
            ("--checker-type none --dcs-endpoints a:1,a:1", "named twice"),
        ] {
            let endpoint = if wrong.contains("endpoints") {
                ""
            } else {
                "--dcs-endpoints http://192.0.2.1:2379"
            };
            let all = mistakes(&format!("--interface eth0 {endpoint} {wrong}"));
            assert!(
                matches!(&all[..], [one] if one.contains(expected)),
                "{wrong}: {all:#?}"
            );
        }
        let config = read(
            "--interface eth0 --dcs-endpoints https://a:1 --etcd-ca-file /nowhere/ca --etcd-user root --etcd-password-file /nowhere/etcd \
             --checker-type http --http-url https://127.0.0.1/ --http-ca-file /nowhere/http --http-user u --http-password-file /nowhere/password",
        );
        let unread = config.unwrap().unread;
        for file in [
            "/nowhere/ca",
            "/nowhere/etcd",
            "/nowhere/http",
            "/nowhere/password",
        ] {
            assert!(
                unread.iter().any(|line| line.contains(file)),
                "{file}: {unread:#?}"
            );
        }
    }

    #[test]
    fn the_file_is_held_to_what_flags_are_held_to() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("io-vip.toml");
        std::fs::write(&file, "netmask = 0\nnetmask6 = 129\n").unwrap();
        let all = mistakes(&format!("{FINE} --config {}", file.display()));
        assert!(
            matches!(&all[..], [four, six] if four.starts_with("netmask: 0 is not from 1 to 32") && six.starts_with("netmask6: 129")),
            "{all:#?}"
        );
    }

    #[test]
    fn flags_after_a_command_are_flags() {
        let config = read("--checker-type command --command /bin/true --interface eth0 --dcs-endpoints http://192.0.2.1:2379").unwrap();
        assert_eq!(
            config.node.command.as_deref(),
            Some(&["/bin/true".to_owned()][..])
        );
    }

    #[test]
    fn no_secret_is_shown() {
        let config = read(&format!(
            "{FINE} --etcd-user root --etcd-password very-secret --http-password too-secret"
        ))
        .unwrap();
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("very-secret") && !shown.contains("too-secret"),
            "{shown}"
        );
    }
}
