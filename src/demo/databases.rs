//! The demo's databases: the real ones where they are installed, stand-ins where not.
//!
//! Each lives in a folder of its own inside the demo's, listens on 127.0.0.1 only, and is stopped, killed and started
//! again as the story wants it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::libc::{SIGINT, SIGKILL, SIGTERM};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};

use super::app::{POSTGRES_DATABASE, POSTGRES_USER};
use super::children::{Fate, Process, Shelter};
use crate::cli::{Failure, HostPort};
use crate::probe::{Kind, PostgresLogin, Probe};

/// The longest that making an empty PostgreSQL may take.
const INITDB_TIME: Duration = Duration::from_secs(60);
/// The longest that an orderly stop may take.
const STOP_TIME: Duration = Duration::from_secs(8);

enum Program {
    Real(PathBuf),
    StandIn,
}

/// One database.
pub(super) struct Database {
    kind: Kind,
    program: Program,
    /// What it is, for people.
    pub(super) what: String,
    folder: PathBuf,
    /// PostgreSQL refuses to run as root; then it runs as this user.
    user: Option<User>,
    port: u16,
    process: Option<Process>,
    /// It was killed, and may have left a shared memory segment.
    segment: bool,
}

impl Database {
    /// Finds the program, and makes the folder. `stand_in`: do not even look for the real one.
    pub(super) async fn prepare(
        kind: Kind,
        root: &Path,
        stand_in: bool,
        shelter: &Shelter,
    ) -> Result<Self, Failure> {
        let mut database = Self {
            kind,
            program: Program::StandIn,
            what: String::new(),
            folder: root.join(name(kind)),
            user: None,
            port: free_port()?,
            process: None,
            segment: false,
        };
        fs::create_dir(&database.folder).map_err(|error| fault("make a folder for", kind, &error))?;
        let found = match kind {
            _ if stand_in => Err("because you asked for it".to_owned()),
            Kind::Postgres => database.prepare_postgres(shelter).await,
            Kind::Redis => find("redis-server", path_folders())
                .ok_or_else(|| "because redis-server is not in PATH".to_owned()),
        };
        match found {
            Ok(program) => {
                database.what = format!("{} (the real one: {})", name(kind), program.display());
                database.program = Program::Real(program);
            }
            Err(why) => database.what = format!("{} (a built-in STAND-IN, {why})", name(kind)),
        }
        Ok(database)
    }

    /// Makes an empty PostgreSQL; returns the server's program.
    async fn prepare_postgres(&mut self, shelter: &Shelter) -> Result<PathBuf, String> {
        let server = find("postgres", path_folders().into_iter().chain(debian_folders()))
            .ok_or("because postgres is neither in PATH nor in /usr/lib/postgresql")?;
        // A link may stand alone; the program's real folder has its siblings.
        let real = fs::canonicalize(&server).unwrap_or_else(|_| server.clone());
        let beside = real.parent().map(Path::to_owned);
        let initdb = find("initdb", beside.into_iter().chain(path_folders()))
            .ok_or_else(|| format!("because there is no initdb beside {}", server.display()))?;
        if Uid::effective().is_root() {
            let user = ["postgres", "nobody"]
                .iter()
                .find_map(|name| User::from_name(name).ok().flatten())
                .ok_or("because we are root, and there is no user postgres or nobody to run it as")?;
            std::os::unix::fs::chown(&self.folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .map_err(|error| format!("because its folder cannot be given to {}: {error}", user.name))?;
            self.user = Some(user);
        }
        let mut command = self.command(&initdb);
        command
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
            ])
            .args(["--username", POSTGRES_USER, "--pgdata"])
            .arg(self.folder.join("data"));
        // Killed in the middle, it would leave a shared memory segment behind.
        let command = self.logged(command).map_err(|error| error.to_string())?;
        let made = match shelter.start(command, Fate::Finishes) {
            Ok(process) => shelter.wait(process, INITDB_TIME).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(status) if status.success() => Ok(server),
            Ok(status) => Err(format!(
                "because {} failed, {status}: {}",
                initdb.display(),
                self.last_words()
            )),
            Err(error) => Err(format!("because {} cannot be run: {error}", initdb.display())),
        }
    }

    pub(super) fn address(&self) -> HostPort {
        HostPort {
            host: "127.0.0.1".to_owned(),
            port: Some(self.port),
        }
    }

    /// Asks whether it would serve a query.
    pub(super) fn probe(&self) -> Probe {
        match (self.kind, &self.program) {
            (Kind::Redis, _) => Probe::redis(self.address(), None),
            (Kind::Postgres, Program::StandIn) => Probe::postgres(self.address(), None),
            (Kind::Postgres, Program::Real(_)) => Probe::postgres(
                self.address(),
                Some(PostgresLogin {
                    user: POSTGRES_USER.to_owned(),
                    password: None,
                    database: POSTGRES_DATABASE.to_owned(),
                    require_primary: true,
                }),
            ),
        }
    }

    /// Starts it. Whether it is up is the probe's business.
    pub(super) fn start(&mut self, shelter: &Shelter) -> Result<(), Failure> {
        let port = self.port.to_string();
        let command = match (&self.program, self.kind) {
            (Program::Real(server), Kind::Redis) => {
                let mut command = self.command(server);
                command.args([
                    "--port",
                    &port,
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ]);
                command.args(["--daemonize", "no", "--dir"]).arg(&self.folder);
                command
            }
            (Program::Real(server), Kind::Postgres) => {
                let mut command = self.command(server);
                command
                    .arg("-D")
                    .arg(self.folder.join("data"))
                    .args(["-p", &port]);
                for setting in [
                    "listen_addresses=127.0.0.1",
                    "unix_socket_directories=",
                    "fsync=off",
                    "shared_buffers=8MB",
                    "max_connections=30",
                    // Not in /dev/shm, where a kill would leave it.
                    "dynamic_shared_memory_type=mmap",
                ] {
                    command.args(["-c", setting]);
                }
                command
            }
            (Program::StandIn, kind) => {
                let mut command = self.command(Path::new("/proc/self/exe"));
                command.args([
                    "demo-app",
                    "--name",
                    "stand-in",
                    "--stand-in",
                    name(kind),
                    "--listen",
                    &port,
                ]);
                command
            }
        };
        let fate = match self.kind {
            // Its immediate shutdown, which removes its shared memory segment: a kill would not.
            Kind::Postgres => Fate::Asked(Signal::SIGQUIT),
            Kind::Redis => Fate::Killed,
        };
        let process = self
            .logged(command)
            .and_then(|command| shelter.start(command, fate))
            .map_err(|error| fault("start", self.kind, &error))?;
        self.process = Some(process);
        Ok(())
    }

    /// Whether it has ended although nobody asked it to; then what it said.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.process.as_mut()?.child.try_wait() {
            Ok(Some(status)) => Some(format!(
                "{} ended, {status}: {}",
                name(self.kind),
                self.last_words()
            )),
            _ => None,
        }
    }

    /// Stops it in order. PostgreSQL: fast shutdown, which waits for nobody.
    pub(super) async fn stop(&mut self, shelter: &Shelter) -> Result<(), Failure> {
        let signal = match self.kind {
            Kind::Postgres => SIGINT,
            Kind::Redis => SIGTERM,
        };
        // Left to do when the story was interrupted in the midst of a kill.
        self.remove_segment(shelter).await;
        let Some(process) = self.process.take() else {
            return Ok(());
        };
        shelter
            .stop(process, signal, STOP_TIME)
            .await
            .map(drop)
            .map_err(|error| fault("stop", self.kind, &error))
    }

    /// Lets it die: `kill -9`.
    pub(super) async fn kill(&mut self, shelter: &Shelter) -> Result<(), Failure> {
        let Some(process) = self.process.take() else {
            return Ok(());
        };
        self.segment = true;
        shelter
            .stop(process, SIGKILL, STOP_TIME)
            .await
            .map_err(|error| fault("kill", self.kind, &error))?;
        self.remove_segment(shelter).await;
        Ok(())
    }

    /// A PostgreSQL that was killed leaves a shared memory segment of 56 bytes, which only its next start removes; the
    /// story may end before that. Its number is the second one in line 7 of postmaster.pid.
    async fn remove_segment(&mut self, shelter: &Shelter) {
        if !std::mem::take(&mut self.segment) {
            return;
        }
        let lines = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
        let number = lines
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        if let Some(number) = number.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            let mut command = Command::new("ipcrm");
            command
                .args(["-m", number])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            // Where there is no ipcrm, 56 bytes may be left; that is no reason to fail.
            if let Ok(process) = shelter.start(command, Fate::Finishes) {
                let _ = shelter.wait(process, STOP_TIME).await;
            }
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        // What a person has set for a PostgreSQL of theirs is not for this one.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("PG")) {
            command.env_remove(key);
        }
        command.env("LC_ALL", "C");
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn log(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    fn logged(&self, mut command: Command) -> io::Result<Command> {
        let log = File::options().create(true).append(true).open(self.log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// The last line of its log.
    fn last_words(&self) -> String {
        let mut text = String::new();
        let read = File::open(self.log()).and_then(|log| log.take(1 << 20).read_to_string(&mut text));
        match (read, text.lines().rfind(|line| !line.trim().is_empty())) {
            (Ok(_), Some(line)) => line.to_owned(),
            _ => "it said nothing".to_owned(),
        }
    }
}

pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => "postgres",
        Kind::Redis => "redis",
    }
}

fn fault(verb: &str, kind: Kind, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {verb} {}: {error}", name(kind)))
}

fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map_or_else(Vec::new, |path| std::env::split_paths(&path).collect())
}

/// Debian keeps PostgreSQL's programs out of PATH; the newest version first.
fn debian_folders() -> Vec<PathBuf> {
    let Ok(versions) = fs::read_dir("/usr/lib/postgresql") else {
        return Vec::new();
    };
    let mut folders: Vec<_> = versions.flatten().map(|version| version.path()).collect();
    folders.sort_by_key(|path| {
        let version = path.file_name().and_then(OsStr::to_str);
        std::cmp::Reverse(version.and_then(|v| v.parse::<u32>().ok()))
    });
    folders.into_iter().map(|path| path.join("bin")).collect()
}

fn find(program: &str, folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|path| path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok())
}

/// A port of 127.0.0.1 that nobody uses now.
///
/// Under 32768, where Linux takes ports for outgoing connections from: a dependent that calls a database which is
/// down must not happen to be given the very port that it calls, and talk to itself.
fn free_port() -> Result<u16, Failure> {
    let none = |error: io::Error| Failure::failed(format!("cannot find a free port on 127.0.0.1: {error}"));
    let mut random = [0; 64];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .map_err(none)?;
    let mut last = io::Error::other("nothing was tried");
    for pair in random.chunks_exact(2) {
        let port = 20_000 + u16::from_be_bytes([pair[0], pair[1]]) % 12_000;
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(none(last))
}
