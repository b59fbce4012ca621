//! A real etcd of one or three members: each in a temporary folder on free loopback ports, ended by its process id when dropped, and by the kernel
//! when the test is killed.
//!
//! An etcd that is not installed is no failure and no success either: `start` prints `SKIP <test>: etcd is not installed` on standard output
//! and returns `None`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcd_client::Client;
use io_guardian::store::{Etcd, EtcdConfig, EtcdSettings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::Instant;

/// How long an etcd may take to say what a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an etcd says once it serves clients; it has found a leader by then.
const IS_UP: &str = "serving client traffic";

/// Prints why a test did not run; `checks/run` counts these lines.
pub(crate) fn skip(test: &str, why: &str) {
    writeln!(std::io::stdout().lock(), "SKIP {test}: {why}").unwrap();
}

pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// A port on which nobody listens. Another process may take it before an etcd does: `start` tries again then.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// How to start it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// What every member is started with.
    pub(crate) arguments: Vec<String>,
    /// Clients speak TLS to it.
    pub(crate) tls: bool,
}

pub(crate) struct Cluster {
    _folder: TempDir,
    members: Vec<Member>,
    tls: bool,
}

struct Member {
    arguments: Vec<String>,
    endpoint: String,
    /// None while it is dead.
    process: Option<Process>,
    log: Arc<Mutex<Vec<String>>>,
}

struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Cluster {
    pub(crate) fn start(test: &str, members: usize) -> Option<Self> {
        Self::start_with(test, members, &Options::default())
    }

    pub(crate) fn start_with(test: &str, members: usize, options: &Options) -> Option<Self> {
        if !has("etcd") {
            skip(test, "etcd is not installed");
            return None;
        }
        let mut said = String::new();
        for _ in 0..5 {
            match Self::try_start(members, options) {
                Ok(cluster) => return Some(cluster),
                Err(log) => said = log,
            }
        }
        panic!("etcd does not start: {said}");
    }

    fn try_start(count: usize, options: &Options) -> Result<Self, String> {
        let folder = tempfile::Builder::new()
            .prefix("io-guardian-test-")
            .tempdir()
            .unwrap();
        let ports: Vec<[u16; 2]> = (0..count).map(|_| [free_port(), free_port()]).collect();
        let scheme = if options.tls { "https" } else { "http" };
        let token = format!("io-guardian-test-{}", ports[0][1]);
        let peers: Vec<_> = ports
            .iter()
            .map(|[_, peer]| format!("n{peer}=http://127.0.0.1:{peer}"))
            .collect();
        let members = ports.iter().map(|[client, peer]| {
            let mut arguments: Vec<String> = [
                ("name", format!("n{peer}")),
                (
                    "data-dir",
                    folder
                        .path()
                        .join(format!("n{peer}"))
                        .to_str()
                        .unwrap()
                        .to_owned(),
                ),
                ("listen-client-urls", format!("{scheme}://127.0.0.1:{client}")),
                ("advertise-client-urls", format!("{scheme}://127.0.0.1:{client}")),
                ("listen-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("initial-advertise-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("initial-cluster", peers.join(",")),
                ("initial-cluster-token", token.clone()),
                ("logger", "zap".to_owned()),
                ("log-outputs", "stderr".to_owned()),
            ]
            .into_iter()
            .map(|(name, value)| format!("--{name}={value}"))
            .collect();
            arguments.extend(options.arguments.iter().cloned());
            let endpoint = format!("127.0.0.1:{client}");
            Member {
                arguments,
                endpoint,
                process: None,
                log: Arc::default(),
            }
        });
        let mut cluster = Self {
            members: members.collect(),
            _folder: folder,
            tls: options.tls,
        };
        for member in &mut cluster.members {
            member.spawn();
        }
        for member in &cluster.members {
            member.await_up()?;
        }
        Ok(cluster)
    }

    /// `HOST:PORT` of each member.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.endpoint.clone())
            .collect()
    }

    /// A store that knows these members, in this order.
    pub(crate) fn store_of(&self, members: &[usize]) -> Etcd {
        let endpoints = members
            .iter()
            .map(|&at| self.members[at].endpoint.clone())
            .collect();
        store(&EtcdSettings {
            endpoints,
            ..EtcdSettings::default()
        })
    }

    pub(crate) fn store(&self) -> Etcd {
        self.store_of(&(0..self.members.len()).collect::<Vec<_>>())
    }

    /// etcd's own client of one member.
    pub(crate) async fn client(&self, at: usize) -> Client {
        assert!(!self.tls);
        Client::connect([&self.members[at].endpoint], None).await.unwrap()
    }

    /// Who leads, by what `at` knows.
    pub(crate) async fn leader(&self, at: usize) -> usize {
        let leader = self.client(at).await.status().await.unwrap().leader();
        for (at, member) in self
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| member.process.is_some())
        {
            let status = Client::connect([&member.endpoint], None)
                .await
                .unwrap()
                .status()
                .await
                .unwrap();
            if status.header().unwrap().member_id() == leader {
                return at;
            }
        }
        panic!("nobody leads");
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, at: usize) {
        let mut process = self.members[at].process.take().unwrap();
        process.end();
    }

    /// It comes back with nothing, as a cluster of its own, at its own address.
    pub(crate) fn wipe(&mut self, at: usize) {
        self.kill(at);
        let member = &mut self.members[at];
        let value = |name: &str| {
            let begin = format!("--{name}=");
            let mut all = member.arguments.iter();
            all.find_map(|argument| argument.strip_prefix(&begin))
                .unwrap()
                .to_owned()
        };
        // The last one counts.
        let alone = [
            format!(
                "--initial-cluster={}={}",
                value("name"),
                value("initial-advertise-peer-urls")
            ),
            "--initial-cluster-token=alone".to_owned(),
            format!("--data-dir={}-wiped", value("data-dir")),
        ];
        member.arguments.extend(alone);
        member.spawn();
        member.await_up().unwrap();
    }

    /// Starts it again; it is not waited for, because alone it does not come up.
    pub(crate) fn restart(&mut self, at: usize) {
        self.members[at].spawn();
    }

    /// Until it serves clients.
    pub(crate) fn await_up(&self, at: usize) {
        self.members[at].await_up().unwrap();
    }

    /// It stands still, as a host does whose hypervisor has better things to do.
    pub(crate) fn freeze(&self, at: usize) {
        self.members[at].signal(Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self, at: usize) {
        self.members[at].signal(Signal::SIGCONT);
    }
}

/// A store of whatever is written.
pub(crate) fn store(settings: &EtcdSettings) -> Etcd {
    Etcd::new(&EtcdConfig::new(settings).unwrap()).unwrap()
}

impl Member {
    fn spawn(&mut self) {
        // By the kernel, because a test that is killed ends nothing.
        let mut command = if has("setpriv") {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", "etcd"]);
            command
        } else {
            Command::new("etcd")
        };
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // What a shell happens to be set up for is not this etcd's.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let (output, log) = (child.stderr.take().unwrap(), Arc::clone(&self.log));
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                log.lock().unwrap().push(line.clone());
                let _ = sender.send(line);
            }
        });
        self.process = Some(Process { child, lines });
    }

    fn await_up(&self) -> Result<(), String> {
        let process = self.process.as_ref().unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            // It has much to say while it looks for the others.
            match process
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line.contains(IS_UP) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(self.log.lock().unwrap().join("\n"));
                }
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let child = &self.process.as_ref().unwrap().child;
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }
}

impl Process {
    /// SIGKILL reaches what stands still, too.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A folder for what a test writes.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("io-guardian-test-")
        .tempdir()
        .unwrap()
}

/// Writes a file, and says where.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
