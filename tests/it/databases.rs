//! Real databases for tests: each in a temporary folder on a free loopback port, ended by its process id when dropped.
//!
//! A database that is not installed is no failure and no success either: `start` prints
//! `SKIP <test>: postgres is not installed` on standard output and returns `None`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use tempfile::TempDir;

/// How long a database may take to say what a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A port on which nobody listens. Another process may take it before a database does: `start` tries again then.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A process whose output is kept, line by line.
pub(crate) struct Logged {
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Logged {
    /// Starts `command`. Its standard error is read, with its standard output where `both`.
    pub(crate) fn spawn(command: &mut Command, both: bool) -> Self {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command.stdout(if both { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut outputs: Vec<Box<dyn std::io::Read + Send>> = vec![Box::new(child.stderr.take().unwrap())];
        if let Some(stdout) = child.stdout.take() {
            outputs.push(Box::new(stdout));
        }
        for output in outputs {
            let (sender, log) = (sender.clone(), log.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    log.lock().unwrap().push(line.clone());
                    let _ = sender.send(line);
                }
            });
        }
        Self { child, lines, log }
    }

    /// Waits for a line that holds one of `texts`. `Err` is everything it said, when it ended or said no such thing.
    pub(crate) fn wait_for(&self, texts: &[&str]) -> Result<String, String> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if texts.iter().any(|text| line.contains(text)) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(self.log()),
            }
        }
    }

    /// All that it said so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// Waits for its end: exit code, and all that it said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        while self.lines.recv_timeout(PATIENCE).is_ok() {}
        (code, self.log())
    }

    /// Ends it: `first`, and SIGKILL when that does not help.
    fn stop(&mut self, first: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(first);
            for _ in 0..100 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                // The end of a process cannot be awaited with a deadline by the standard library.
                let _ = self.lines.recv_timeout(Duration::from_millis(50));
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the output may be closed before the process is gone"
                )]
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.stop(Signal::SIGTERM);
    }
}

/// Prints why a test did not run; `checks/run` counts these lines.
pub(crate) fn skip<T>(test: &str, why: &str) -> Option<T> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "SKIP {test}: {why}").unwrap();
    None
}

/// Starts until a port was free: `start` gives `None` when the port was taken.
fn on_a_free_port<T>(start: impl Fn(u16) -> Result<T, String>) -> T {
    let mut said = String::new();
    for _ in 0..5 {
        match start(free_port()) {
            Ok(database) => return database,
            Err(log) => said = log,
        }
    }
    panic!("the database does not start: {said}");
}

/// A PostgreSQL server. The superuser is `postgres`, with no password; `Cluster::hba` says who may log in, and how.
pub(crate) struct Postgres {
    process: Logged,
    pub(crate) port: u16,
}

/// The files of a PostgreSQL server that is not running.
pub(crate) struct Cluster {
    folder: TempDir,
    programs: PathBuf,
    /// PostgreSQL refuses to run as root.
    user: Option<User>,
}

impl Cluster {
    /// A new cluster whose pg_hba.conf lets everybody on loopback in without a password.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let Some(programs) = postgres_programs() else {
            return skip(test, "postgres is not installed");
        };
        let user = if Uid::effective().is_root() {
            let known = ["postgres", "nobody"].map(|name| User::from_name(name).ok().flatten());
            let Some(user) = known.into_iter().flatten().next() else {
                return skip(
                    test,
                    "postgres does not run as root, and there is no user postgres or nobody",
                );
            };
            Some(user)
        } else {
            None
        };
        let folder = tempfile::Builder::new()
            .prefix("io-guardian-test-")
            .tempdir()
            .unwrap();
        if let Some(user) = &user {
            std::os::unix::fs::chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .unwrap();
        }
        let cluster = Self {
            folder,
            programs,
            user,
        };
        let output = cluster
            .command("initdb")
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--no-locale",
            ])
            .arg("--pgdata")
            .arg(cluster.data())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(cluster)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir("/").env_remove("PGDATA").env("LC_ALL", "C");
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Replaces pg_hba.conf.
    pub(crate) fn hba(&self, lines: &str) {
        std::fs::write(self.data().join("pg_hba.conf"), lines).unwrap();
    }

    /// Puts a file beside its data, which nobody else can read.
    #[cfg(feature = "tls")]
    pub(crate) fn put(&self, name: &str, content: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.data().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
    }

    /// A folder that it may write into.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the next start one of a standby, which has no primary to follow.
    pub(crate) fn standby(&self) {
        std::fs::write(self.data().join("standby.signal"), "").unwrap();
    }

    /// Starts it on a free port, with settings such as `max_connections=5`, and waits until its log holds one of
    /// the `until` texts.
    pub(crate) fn start(&self, settings: &[&str], until: &[&str]) -> Postgres {
        on_a_free_port(|port| self.start_on(port, settings, until))
    }

    /// The same on `port`; `Err` is its log when it did not come up.
    pub(crate) fn start_on(&self, port: u16, settings: &[&str], until: &[&str]) -> Result<Postgres, String> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        let port_setting = format!("port={port}");
        let fixed = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "shared_buffers=4MB",
        ];
        for setting in fixed.iter().chain(settings).chain([&port_setting.as_str()]) {
            command.args(["-c", setting]);
        }
        let process = Logged::spawn(&mut command, false);
        process.wait_for(until)?;
        Ok(Postgres { process, port })
    }
}

/// What a PostgreSQL logs when it serves queries, standby or not.
pub(crate) const POSTGRES_IS_UP: &[&str] = &["ready to accept"];

impl Postgres {
    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// All that it logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Runs `statements`, one after the other, as the superuser.
    pub(crate) fn execute(&self, statements: &[&str]) {
        let (client, runtime) = self.connect();
        for statement in statements {
            runtime.block_on(client.batch_execute(statement)).unwrap();
        }
    }

    /// An open connection as superuser. It is open as long as both parts live.
    pub(crate) fn connect(&self) -> (tokio_postgres::Client, tokio::runtime::Runtime) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut config = tokio_postgres::Config::new();
        config
            .user("postgres")
            .dbname("postgres")
            .host("127.0.0.1")
            .port(self.port);
        let client = runtime.block_on(async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        (client, runtime)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Fast shutdown: sessions are ended, not awaited.
        self.process.stop(Signal::SIGINT);
    }
}

/// The folder of the newest PostgreSQL that is installed.
fn postgres_programs() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| {
            versions
                .flatten()
                .map(|version| version.path().join("bin"))
                .collect()
        })
        .unwrap_or_default();
    let version = |folder: &PathBuf| {
        let name = folder.parent()?.file_name()?.to_str()?.to_owned();
        name.parse::<u32>().ok()
    };
    folders.sort_by_key(version);
    folders.reverse();
    folders.extend(path_folders());
    folders
        .into_iter()
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
}

fn path_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).collect()
}

/// A Redis server, without persistence unless its options say so.
pub(crate) struct Redis {
    process: Logged,
    _folder: Arc<TempDir>,
    pub(crate) port: u16,
}

impl Redis {
    /// Starts it on a free port, with options such as `["--requirepass", "x"]`, and waits until its log holds one of
    /// the `until` texts.
    pub(crate) fn start(test: &str, options: &[&str], until: &[&str]) -> Option<Self> {
        let folder = Arc::new(
            tempfile::Builder::new()
                .prefix("io-guardian-test-")
                .tempdir()
                .unwrap(),
        );
        Self::start_in(test, &folder, options, until)
    }

    /// The same in `folder`, where an earlier one may have left its data.
    pub(crate) fn start_in(
        test: &str,
        folder: &Arc<TempDir>,
        options: &[&str],
        until: &[&str],
    ) -> Option<Self> {
        if !path_folders()
            .iter()
            .any(|path| path.join("redis-server").exists())
        {
            return skip(test, "redis-server is not installed");
        }
        Some(on_a_free_port(|port| {
            Self::start_on(folder, port, options, until)
        }))
    }

    fn start_on(folder: &Arc<TempDir>, port: u16, options: &[&str], until: &[&str]) -> Result<Self, String> {
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ]);
        command
            .args(["--port", &port.to_string(), "--dir"])
            .arg(Path::new(folder.path()))
            .args(options);
        let process = Logged::spawn(&mut command, true);
        process.wait_for(until)?;
        Ok(Self {
            process,
            _folder: folder.clone(),
            port,
        })
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs one command over a connection of its own, which is given back open.
    pub(crate) fn command(&self, words: &[&str]) -> std::net::TcpStream {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        writeln!(stream, "{}\r", words.join(" ")).unwrap();
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(!answer.starts_with('-'), "{words:?}: {answer}");
        stream
    }
}

/// What a Redis logs when it serves queries.
pub(crate) const REDIS_IS_UP: &[&str] = &["Ready to accept connections"];

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.stop(Signal::SIGKILL);
    }
}
