//! `io-fence` as units and people run it: real disks that stall, a real client on another host (both in namespaces of their own).

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid, gettid};

const HERE: [&str; 2] = ["10.9.0.1", "fd09::1"];
/// One that is fenced, one that is allowed, and one of the other family.
const THERE: [&str; 3] = ["10.9.0.2", "10.9.0.3", "fd09::2"];
/// A disk has room beyond it.
const MIB_OF_EXT4: u64 = 16;
/// Long enough for any machine; nothing is measured.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a host of its own, beside another one. Where that cannot be, the test says so.
fn on_two_hosts(test: fn(&Host)) {
    if !geteuid().is_root() {
        println!("SKIP fence: needs root, for namespaces, nftables and mounts");
        return;
    }
    for tool in ["ip", "nft", "fsfreeze", "mkfs.ext4", "mount", "findmnt"] {
        let found = Command::new(tool)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            println!("SKIP fence: no {tool}");
            return;
        }
    }
    // A thread of its own: its namespaces, and those of all that it starts.
    let host = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        test(&Host::new());
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

fn sh(command: &str) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&stderr)
    );
    String::from_utf8(stdout).unwrap()
}

/// What the other host does.
enum Deed {
    /// Connects from the first to the second, and says how that ended.
    Connect(IpAddr, SocketAddr),
    /// Connects, and keeps the connection.
    Hold(IpAddr, SocketAddr),
    /// What becomes of the connection that was kept first: how its next read ends.
    Read,
}

struct Host {
    place: PathBuf,
    port: u16,
    deeds: Sender<Deed>,
    came_of_it: Receiver<String>,
}

impl Host {
    fn new() -> Self {
        let place = PathBuf::from(format!("/dev/shm/io-fence-test-{}", gettid()));
        std::fs::create_dir(&place).unwrap();
        let (deeds, wanted) = channel();
        let (tell, came_of_it) = channel();
        std::thread::spawn(move || other_host(&wanted, &tell));
        let other = came_of_it.recv().unwrap();
        sh("ip link set lo up; ip link add veth0 type veth peer name veth1");
        sh(&format!("ip link set veth1 netns {other}"));
        sh("ip link set veth0 up");
        for address in HERE {
            let plain = if address.contains(':') { "/64 nodad" } else { "/24" };
            sh(&format!("ip addr add {address}{plain} dev veth0"));
        }
        deeds.send(Deed::Read).unwrap();
        assert_eq!(came_of_it.recv().unwrap(), "there");
        Self {
            place,
            port: serve(),
            deeds,
            came_of_it,
        }
    }

    fn path(&self, name: &str) -> String {
        self.place.join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_io-fence"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1");
        command
    }

    /// `io-fence run` on `folder`, with the test's own places.
    fn run(&self, folder: &str, more: &[&str]) -> Fence {
        let port = self.port.to_string();
        let (socket, state) = (self.path("socket"), self.path("state.json"));
        let mut arguments = vec![
            "run",
            "--monitor",
            folder,
            "--ports",
            &port,
            "--heartbeat",
            "1s",
            "--unfence-after",
            "300ms",
        ];
        arguments.extend(["--socket", &socket, "--state", &state, "--allow", THERE[1]]);
        arguments.extend(more);
        Fence::start(self.command(&arguments))
    }

    fn says(&self, arguments: &[&str]) -> (bool, String) {
        let socket = self.path("socket");
        let Output {
            status,
            stdout,
            stderr,
        } = self
            .command(arguments)
            .args(["--socket", &socket])
            .output()
            .unwrap();
        (
            status.success(),
            String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap(),
        )
    }

    /// An ext4 of its own on a loop device.
    fn disk(&self, name: &str) -> Disk {
        let (image, folder) = (self.path(&format!("{name}.img")), self.path(name));
        std::fs::create_dir(&folder).unwrap();
        sh(&format!(
            "truncate -s 18M {image}; mkfs.ext4 -q {image} {MIB_OF_EXT4}M; mount -o loop {image} {folder}"
        ));
        Disk {
            folder,
            frozen: false,
        }
    }

    fn deed(&self, deed: Deed) -> String {
        self.deeds.send(deed).unwrap();
        self.came_of_it.recv_timeout(PATIENCE).unwrap()
    }

    /// How connections from everywhere end: fenced, allowed, IPv6, and from this host itself.
    fn connects(&self) -> String {
        let there = [(0, 0), (1, 0), (2, 1)].map(|(from, to)| {
            let to = SocketAddr::new(HERE[to].parse().unwrap(), self.port);
            self.deed(Deed::Connect(THERE[from].parse().unwrap(), to))
        });
        let local = ["127.0.0.1", HERE[0]].map(|address| {
            talk(connect(
                None,
                (address.parse::<IpAddr>().unwrap(), self.port).into(),
            ))
        });
        format!("{} {}", there.join(" "), local.join(" "))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

/// Echoes on a port of both families.
fn serve() -> u16 {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut byte = [0];
                while let Ok(1) = stream.read(&mut byte) {
                    let _ = stream.write_all(&byte);
                }
            });
        }
    });
    port
}

fn connect(from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket_from(from, to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The standard library binds no client; the runtime does.
fn socket_from(from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stream = runtime.block_on(async {
        let socket = match to {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }?;
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        tokio::time::timeout(PATIENCE, socket.connect(to)).await?
    })?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn talk(stream: std::io::Result<TcpStream>) -> String {
    let mut byte = [b'x'];
    let talked = stream.and_then(|mut stream| {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)
    });
    match talked {
        Ok(()) => "open".to_owned(),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A host with three addresses, which does what it is told.
fn other_host(wanted: &Receiver<Deed>, tell: &Sender<String>) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    tell.send(gettid().to_string()).unwrap();
    // Its interface has come.
    wanted.recv().unwrap();
    sh("ip link set lo up; ip link set veth1 up");
    for address in THERE {
        let plain = if address.contains(':') { "/64 nodad" } else { "/24" };
        sh(&format!("ip addr add {address}{plain} dev veth1"));
    }
    tell.send("there".to_owned()).unwrap();
    let mut held = Vec::new();
    while let Ok(deed) = wanted.recv() {
        let said = match deed {
            Deed::Connect(from, to) => talk(connect(Some(from), to)),
            Deed::Hold(from, to) => {
                let mut stream = connect(Some(from), to).unwrap();
                let mut byte = [b'x'];
                stream.write_all(&byte).unwrap();
                stream.read_exact(&mut byte).unwrap();
                held.push(stream);
                "held".to_owned()
            }
            Deed::Read => match held.remove(0).read(&mut [0]) {
                Ok(read) => format!("read {read}"),
                Err(error) => format!("{:?}", error.kind()),
            },
        };
        if tell.send(said).is_err() {
            return;
        }
    }
}

/// A disk that stalls on command; it goes on when it is dropped.
struct Disk {
    folder: String,
    frozen: bool,
}

impl Disk {
    fn stall(&mut self) {
        sh(&format!("fsfreeze -f {}", self.folder));
        self.frozen = true;
    }

    fn go_on(&mut self) {
        sh(&format!("fsfreeze -u {}", self.folder));
        self.frozen = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.frozen {
            let _ = Command::new("fsfreeze").args(["-u", &self.folder]).status();
        }
        let _ = umount2(Path::new(&self.folder), MntFlags::MNT_DETACH);
    }
}

/// One that runs; killed when dropped.
struct Fence {
    child: Child,
    lines: Receiver<String>,
}

impl Fence {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let fence = Self { child, lines };
        fence.hears(&["guarding", "reporting"]);
        fence
    }

    /// The next line that has one of these texts.
    fn hears(&self, texts: &[&str]) -> String {
        let mut heard = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if texts.iter().any(|text| line.contains(text)) => return line,
                Ok(line) => heard.push(line),
                Err(_) => panic!("no {texts:?} in {heard:#?}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn ends(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const OPEN: &str = "open open open open open";
const FENCED: &str = "refused open refused open open";

#[test]
fn a_stall_refuses_and_resets_remote_clients_and_nobody_else_and_it_outlives_the_monitor() {
    on_two_hosts(|host| {
        let foreign = "add table inet other; add chain inet other in { type filter hook input priority 0; policy accept; }; \
                       add rule inet other in tcp dport 9 counter drop; add table ip t; add set ip t s { type ipv4_addr; }";
        sh(&format!("nft '{foreign}'"));
        let before = sh("nft list ruleset");
        let mut disk = host.disk("data");
        let fence = host.run(&disk.folder, &[]);
        assert_eq!(host.connects(), OPEN);
        for (from, to) in [(0, 0), (2, 1), (1, 0)] {
            let to = SocketAddr::new(HERE[to].parse().unwrap(), host.port);
            assert_eq!(host.deed(Deed::Hold(THERE[from].parse().unwrap(), to)), "held");
        }
        disk.stall();
        let line = fence.hears(&["ERROR fenced"]);
        assert!(line.contains("no write came back"), "{line}");
        assert_eq!(host.connects(), FENCED);
        // Those who only wait learn of it, too.
        assert_eq!(host.deed(Deed::Read), "ConnectionReset");
        assert_eq!(host.deed(Deed::Read), "ConnectionReset");
        let status = host.says(&["status"]).1;
        assert!(
            status.contains(": fenced since") && status.contains("last beat"),
            "{status}"
        );

        // Killed: the kernel still fences. The disk holds a thread of it, which keeps nothing from the next one.
        fence.signal(Signal::SIGKILL);
        assert_eq!(host.connects(), FENCED);
        let mut next = host.run(&disk.folder, &[]);
        assert_eq!(host.connects(), FENCED);
        let mut foreign_now = sh("nft list ruleset");
        let start = foreign_now.find("table inet io_fence").unwrap();
        foreign_now.truncate(start);
        assert_eq!(foreign_now, before);
        disk.go_on();
        next.hears(&["unfenced"]);
        assert_eq!(host.connects(), OPEN);
        assert_eq!(next.ends(), Some(0));
        assert_eq!(sh("nft list ruleset"), before);
        drop(fence);
    });
}

/// Writes to the disk beside its filesystem, as others on a busy one do, until it is dropped.
struct Others {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Others {
    fn of(disk: &Disk) -> Self {
        let device = sh(&format!("findmnt -no SOURCE {}", disk.folder));
        let device = std::fs::File::options().write(true).open(device.trim()).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                device.write_all_at(&[7; 4_096], MIB_OF_EXT4 << 20).unwrap();
                device.sync_data().unwrap();
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_disk_that_completes_what_others_write_is_busy_and_one_that_completes_nothing_is_fenced() {
    on_two_hosts(|host| {
        let mut disk = host.disk("data");
        // Far beyond what this test can take: no fence here is the limit's.
        let fence = host.run(&disk.folder, &["--busy-limit", "1h"]);
        for _ in 0..2 {
            let others = Others::of(&disk);
            disk.stall();
            let line = fence.hears(&["WARN the disk is busy", "ERROR fenced"]);
            assert!(line.contains("the disk is busy"), "{line}");
            let status = host.says(&["status"]).1;
            assert!(
                status.contains(": open since") && status.contains("nothing is fenced yet"),
                "{status}"
            );
            assert_eq!(host.connects(), OPEN);
            disk.go_on();
            let line = fence.hears(&["came back from the busy disk", "ERROR fenced"]);
            assert!(line.contains("came back"), "{line}");
            drop(others);
        }
        // And one that hangs while it is busy.
        let others = Others::of(&disk);
        disk.stall();
        fence.hears(&["WARN the disk is busy"]);
        drop(others);
        let line = fence.hears(&["ERROR fenced"]);
        assert!(
            line.contains("no write came back") && line.contains("disk_worked"),
            "{line}"
        );
        assert_eq!(host.connects(), FENCED);
        disk.go_on();
        fence.hears(&["unfenced"]);
        drop(fence);

        // As busy as before, and for too long.
        let fence = host.run(&disk.folder, &["--busy-limit", "2s"]);
        let others = Others::of(&disk);
        disk.stall();
        let line = fence.hears(&["ERROR fenced"]);
        assert!(line.contains("disk_worked"), "{line}");
        disk.go_on();
        drop(others);
    });
}

#[test]
fn each_error_of_a_disk_is_told_from_the_others_and_its_end_is_noticed() {
    on_two_hosts(|host| {
        let disk = host.disk("data");
        let config = host.path("config.toml");
        let text = format!(
            "heartbeat = '1s'\nunfence-after = '300ms'\nsocket = '{}'\nstate = '{}'\n[[folder]]\npath = '{}'\nports = [{}]\non-error = {{ enospc = 'fence' }}\n",
            host.path("socket"),
            host.path("state.json"),
            disk.folder,
            host.port
        );
        std::fs::write(&config, text).unwrap();
        let fence = Fence::start(host.command(&["run", "--config", &config]));
        let folder = &disk.folder;
        let episodes = [
            (
                "erofs",
                // Not in the moment of a write.
                format!("until mount -o remount,ro {folder} 2>/dev/null; do :; done"),
                format!("mount -o remount,rw {folder}"),
            ),
            // Beyond what is kept for root, too; that it fails is the end of it.
            (
                "enospc",
                format!("dd if=/dev/zero of={folder}/all bs=64k status=none || true"),
                format!("rm {folder}/all"),
            ),
            (
                "vanished",
                format!("mount -t tmpfs none {folder}"),
                format!("umount -l {folder}"),
            ),
        ];
        for (kind, begin, end) in episodes {
            sh(&begin);
            let line = fence.hears(&["ERROR fenced"]);
            assert!(line.contains(kind), "{kind}: {line}");
            assert_eq!(host.connects().split(' ').next(), Some("refused"));
            sh(&end);
            fence.hears(&["unfenced"]);
            assert_eq!(host.connects(), OPEN);
        }
    });
}

#[test]
fn a_fence_by_hand_stays_over_a_restart_and_udp_is_refused_too() {
    on_two_hosts(|host| {
        let folder = host.path("data");
        std::fs::create_dir(&folder).unwrap();
        let fence = host.run(&folder, &[]);
        let port = host.port.to_string();
        let (done, said) = host.says(&["fence", "--folder", &folder, "--reason", "new disk"]);
        assert!(done && said.contains("until `io-fence unfence`"), "{said}");
        assert!(host.says(&["fence", "--udp-ports", "5353"]).0);
        assert_eq!(host.connects(), FENCED);
        fence.signal(Signal::SIGKILL);
        drop(fence);
        let mut fence = host.run(&folder, &[]);
        let status = host.says(&["status"]).1;
        for part in [": fenced by hand since", "new disk", "udp 5353"] {
            assert!(status.contains(part), "{status}");
        }
        assert_eq!(host.connects(), FENCED);
        let (done, said) = host.says(&["unfence", "--ports", &port]);
        assert!(!done && said.contains("not fenced by hand as ports"), "{said}");
        assert!(host.says(&["unfence", "--folder", &folder]).0);
        assert_eq!(host.connects(), OPEN);

        // A stranger may ask, and nothing else.
        let socket = host.path("socket");
        let program = host.path("io-fence");
        std::fs::copy(env!("CARGO_BIN_EXE_io-fence"), &program).unwrap();
        let stranger = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            let output = command
                .args(arguments)
                .args(["--socket", &socket])
                .uid(65_534)
                .gid(65_534)
                .output()
                .unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(stranger(&["status"]).0, Some(0));
        let (code, said) = stranger(&["fence", "--ports", "22"]);
        assert!(
            code == Some(1) && said.contains("uid 65534 may not fence"),
            "{said}"
        );
        // It ends, and what a person has fenced stays.
        assert_eq!(fence.ends(), Some(0));
        assert!(sh("nft list table inet io_fence").contains("5353"));
    });
}

#[test]
fn reporters_apart_are_heard_and_one_that_is_killed_is_a_stall() {
    on_two_hosts(|host| {
        let folder = host.path("data");
        std::fs::create_dir(&folder).unwrap();
        let (socket, state, port) = (
            host.path("socket"),
            host.path("state.json"),
            host.port.to_string(),
        );
        let monitor = [
            "monitor",
            "--heartbeat",
            "1s",
            "--unfence-after",
            "300ms",
            "--socket",
            &socket,
            "--state",
            &state,
        ];
        let monitor = Fence::start(host.command(&monitor));
        let reporter = [
            "reporter",
            "--monitor",
            &folder,
            "--ports",
            &port,
            "--sleep",
            "100ms",
            "--socket",
            &socket,
        ];
        let mut first = Fence::start(host.command(&reporter));
        monitor.hears(&["watching"]);
        // One that ends because it is told to says so.
        assert_eq!(first.ends(), Some(0));
        monitor.hears(&["not watched any more"]);
        assert_eq!(host.connects(), OPEN);
        let second = Fence::start(host.command(&reporter));
        monitor.hears(&["watching"]);
        second.signal(Signal::SIGKILL);
        monitor.hears(&["ERROR fenced"]);
        assert_eq!(host.connects().split(' ').next(), Some("refused"));
        let third = Fence::start(host.command(&reporter));
        monitor.hears(&["unfenced"]);
        assert_eq!(host.connects(), OPEN);
        // One more, of somebody who tries it: when it ends, the folder is watched as before.
        let mut fourth = Fence::start(host.command(&reporter));
        monitor.hears(&["another reporter"]);
        assert_eq!(fourth.ends(), Some(0));
        third.signal(Signal::SIGSTOP);
        monitor.hears(&["ERROR fenced"]);
        third.signal(Signal::SIGCONT);

        // A sleep that is too long for this monitor is refused with both figures.
        let wrong = Fence::start(host.command(&[
            "reporter",
            "--monitor",
            "/dev/shm",
            "--ports",
            "9",
            "--sleep",
            "900ms",
            "--socket",
            &socket,
        ]));
        let line = wrong.hears(&["cannot report"]);
        assert!(
            line.contains("sleep (900ms)") && line.contains("heartbeat (1s)"),
            "{line}"
        );
        drop(third);
    });
}

#[test]
fn a_log_that_nobody_reads_does_not_hold_the_monitor() {
    on_two_hosts(|host| {
        let mut disk = host.disk("data");
        let (socket, state, port) = (
            host.path("socket"),
            host.path("state.json"),
            host.port.to_string(),
        );
        let mut command = host.command(&[
            "run",
            "--monitor",
            &disk.folder,
            "--ports",
            &port,
            "--heartbeat",
            "1s",
            "--socket",
            &socket,
            "--state",
            &state,
        ]);
        // All that is to be known of it is known over the socket.
        command.env("RUST_LOG", "trace");
        let (reader, writer) = std::io::pipe().unwrap();
        let fill = "yes full | head -c 65536 >&2; exec \"$@\"";
        let program = command.get_program().to_owned();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut child = Command::new("sh")
            .args(["-c", fill, "sh"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(writer)
            .spawn()
            .unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "its log is stopped up; only asking again tells"
        )]
        let wait_for = |text: &str| {
            for _ in 0..600 {
                let (_, said) = host.says(&["status"]);
                if said.contains(text) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            panic!("no {text:?}");
        };
        wait_for("last beat");
        disk.stall();
        wait_for(": fenced since");
        assert_eq!(host.connects().split(' ').next(), Some("refused"));
        disk.go_on();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(reader);
    });
}

#[test]
fn what_the_seed_had_and_this_has_not_is_refused_with_what_to_do() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_io-fence"))
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&[
        "monitor",
        "--daemonize",
        "--pidfile=/run/x.pid",
        "--logfile=/var/log/x",
        "--fifo=/run/x.fifo",
    ]);
    assert_eq!(code, Some(64));
    for part in [
        "--daemonize",
        "--pidfile",
        "--logfile",
        "--fifo",
        "--socket PATH",
        "journal",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let (code, said) = run(&["run"]);
    assert!(
        code == Some(64) && said.contains("--monitor DIR --ports 5432"),
        "{said}"
    );
    let (code, said) = run(&[
        "run",
        "--monitor",
        "/data",
        "--ports",
        "5432",
        "--state",
        "/proc/x/state.json",
    ]);
    assert_ne!(code, Some(0), "{said}");
    let (code, said) = run(&["status", "--socket", "/nowhere"]);
    assert!(code == Some(1) && said.contains("is io-fence running?"), "{said}");
}
