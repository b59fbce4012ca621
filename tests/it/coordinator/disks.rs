//! The generation file on a disk that does not take it, or does not answer.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use super::*;

const OK: &[&str] = &[r#"{"type": "response", "action": "ACTION", "status": "ok"}"#];

/// Whoever opens the file waits, as on a disk that hangs: another process holds a lease on it.
const HANG: &str = "\
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, lambda *_: os.write(1, b'opened\\n'))
file = open(sys.argv[1], 'r+')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.write(1, b'hangs\\n')
while sys.stdin.read(): pass
";

struct Hung {
    lines: Lines<BufReader<ChildStdout>>,
    _holder: Child,
}

impl Hung {
    /// None where there is no python, or where the file system knows no leases.
    async fn file(path: &Path) -> Option<Self> {
        let holder = Command::new("/usr/bin/python3")
            .args(["-c", HANG, shown(path)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut holder) = holder else {
            println!("SKIP disks: no /usr/bin/python3");
            return None;
        };
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        if lines.next_line().await.unwrap().as_deref() != Some("hangs") {
            println!("SKIP disks: no lease on {}", path.display());
            return None;
        }
        Some(Self {
            lines,
            _holder: holder,
        })
    }
}

#[tokio::test]
async fn a_drain_that_cannot_be_written_down_is_above_the_last_all_the_same() {
    let place = Place::new();
    let server = Server::answering(OK).await;
    // The clock of this machine is far behind this number.
    let file = place.write("generation", "9000000000000000\n");
    std::fs::create_dir(place.path("generation.new")).unwrap();
    let arguments = ["--generation-file", shown(&file)];
    let drain = place.json("drain", &server.host(), &arguments).await;
    assert_eq!(
        drain.report().generation,
        Some(9_000_000_000_000_001),
        "{drain:?}"
    );
    assert!(
        drain.stderr.contains("draining with one above the last"),
        "{drain:?}"
    );
    let undrain = place.json("undrain", &server.host(), &arguments).await;
    assert_eq!(undrain.code, Some(1), "{undrain:?}");
    assert!(undrain.stderr.contains("nothing was sent"), "{undrain:?}");
}

#[tokio::test]
async fn a_generation_file_that_is_no_file_is_refused() {
    let place = Place::new();
    let server = Server::answering(OK).await;
    let file = place.path("generation");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let arguments = ["--generation-file", shown(&file)];
    let undrain = place.json("undrain", &server.host(), &arguments).await;
    assert_eq!(undrain.code, Some(78), "{undrain:?}");
    assert!(undrain.stderr.contains("it is no regular file"), "{undrain:?}");
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    let drain = place.json("drain", &server.host(), &arguments).await;
    assert_eq!(drain.only_host().result.as_str(), "ok", "{drain:?}");
}

#[tokio::test]
async fn a_disk_that_hangs_stops_an_undrain_and_not_a_drain() {
    let place = Place::new();
    let server = Server::answering(OK).await;
    let file = place.write("generation", "9000000000000000\n");
    let lock = place.write("generation.lock", "");
    let arguments = ["--generation-file", shown(&file)];
    let Some(hung) = Hung::file(&lock).await else {
        return;
    };
    let undrain = place.json("undrain", &server.host(), &arguments).await;
    assert_eq!(undrain.code, Some(1), "{undrain:?}");
    for part in ["generation.lock", "did not answer", "nothing was sent"] {
        assert!(undrain.stderr.contains(part), "{undrain:?}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    let drain = place.json("drain", &server.host(), &arguments).await;
    assert_eq!(
        drain.report().generation,
        Some(9_000_000_000_000_001),
        "{drain:?}"
    );
    drop(hung);

    let place = Place::new();
    let file = place.write("generation", "9000000000000000\n");
    let arguments = ["--generation-file", shown(&file)];
    let Some(_hung) = Hung::file(&file).await else {
        return;
    };
    let drain = place.json("drain", &server.host(), &arguments).await;
    assert!(
        drain.report().generation.unwrap() < 9_000_000_000_000_000,
        "the clock"
    );
    assert!(
        drain.stderr.contains("draining with one from the clock"),
        "{drain:?}"
    );
}

#[tokio::test]
async fn told_to_end_while_the_disk_hangs_it_ends() {
    let place = Place::new();
    let server = Server::answering(OK).await;
    let file = place.write("generation", "7\n");
    let Some(mut hung) = Hung::file(&file).await else {
        return;
    };
    let mut command = place.command(&[
        "drain",
        "--hosts",
        &server.host(),
        "--generation-file",
        shown(&file),
    ]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(hung.lines.next_line().await.unwrap().as_deref(), Some("opened"));
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nothing was sent"), "{said}");
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}
