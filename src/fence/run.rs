//! From arguments to a running monitor or reporter, and back.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::{Config, FolderConfig};
use super::core::Core;
use super::cutter::Cutter;
use super::disk::Disk;
use super::memo::MemoFile;
use super::metrics::Metrics;
use super::monitor::{Clockwork, Monitor};
use super::peers::{self, Trust, Users};
use super::reporter::{self, Line};
use super::starter::Starter;
use super::teller::Teller;
use super::wire::{Request, line};
use crate::cli::{Failure, block_on, listen_at};
use crate::host::{Table, TableError, lock_memory, spawn_apart};
use crate::telemetry::{self, Lossy, http, notify};

/// Stack of a reporter.
const STACK: usize = 64 << 10;
/// How long the log may take to be written at the end.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long another monitor may take to show that it lives.
const PATIENCE: Duration = Duration::from_secs(1);

fn failed(what: &str) -> impl Fn(std::io::Error) -> Failure {
    let what = what.to_owned();
    move |error| Failure::failed(format!("cannot {what}: {error}"))
}

fn logging() -> Result<Lossy, Failure> {
    telemetry::start_lossy(telemetry::stderr_is_journal()).map_err(failed("start the log"))
}

/// The monitor; with reporters of its own when `watches`.
pub(super) fn monitor(config: Config, watches: bool) -> Result<u8, Failure> {
    let log = logging()?;
    let ended = block_on(serve(config, watches));
    log.flush(FAREWELL);
    ended?
}

async fn serve(config: Config, watches: bool) -> Result<u8, Failure> {
    let fault = failed("listen to signals");
    let ends = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(terminate), Ok(interrupt)] = ends else {
        return Err(fault(std::io::ErrorKind::Other.into()));
    };
    if let Some(owner) = alive(&config.socket) {
        return Err(Failure::failed(format!(
            "another monitor answers on {}: {owner}; stop it first, or choose another --socket",
            config.socket.display()
        )));
    }
    let memo = MemoFile::at(&config.state).map_err(Failure::config)?;
    let table_fault = |error: TableError| match error {
        // No restart helps.
        TableError::NotAllowed => Failure::config(error),
        error => Failure::failed(error),
    };
    let mut table = Table::open(config.rules.clone()).map_err(table_fault)?;
    let found = table.found().map_err(table_fault)?.unwrap_or_default();
    let now = Instant::now();
    let (core, effects) = Core::start(now, memo.read(), &found);
    table.install(&core.fenced()).map_err(table_fault)?;
    if !table.is_owned() {
        tracing::warn!(
            "this kernel does not keep others from changing our nftables table (owner, persist: since 6.9); what a flush takes is made again within 5 s"
        );
    }
    let listener = listen_at(&config.socket, "io-fence")?;
    let thread = failed("start a thread");
    let teller = Teller::start().map_err(&thread)?;
    let cutter = match config.rules.established {
        true => Some(Cutter::start(config.rules.allowed.clone()).map_err(&thread)?),
        false => None,
    };
    let (to_monitor, messages) = mpsc::channel(256);
    let starter = match config.units.is_empty() {
        true => None,
        false => Some(Starter::start(config.units.clone(), to_monitor.clone()).map_err(&thread)?),
    };
    let own_uid = nix::unistd::geteuid().as_raw();
    if watches {
        for folder in &config.folders {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(&thread)?;
            ours.set_nonblocking(true).map_err(&thread)?;
            let ours = UnixStream::from_std(ours).map_err(&thread)?;
            let reports = BTreeSet::from([folder.path.clone()]);
            tokio::spawn(peers::serve(
                ours,
                Trust::Own,
                own_uid,
                reports,
                to_monitor.clone(),
                peers::Refusals::default(),
            ));
            let folder = folder.clone();
            spawn_apart("report", STACK, Some(theirs.into()), move |stream| {
                // It ends with the process; nobody ever says that it is over.
                let (_never, over) = channel();
                if let Some(stream) = stream {
                    let disk = Disk::new(Path::new(&folder.path), &folder.touchfile);
                    reporter::report(
                        &folder.path,
                        disk,
                        folder.sleep,
                        Line::Inside(stream.into()),
                        &over,
                    );
                }
            })
            .map_err(&thread)?;
        }
    }
    let users = Users {
        own: own_uid,
        reporters: config.reporter_users.clone(),
    };
    tokio::spawn(peers::accept(listener, users, to_monitor.clone()));
    let closing = CancellationToken::new();
    let metrics = Metrics::new(to_monitor.clone());
    http::offer_figures(config.metrics, closing.clone(), move |request| {
        metrics.clone().answer(request)
    })
    .await;
    let locked = lock_memory();
    if let Err(why) = &locked {
        tracing::warn!(%why, "memory is not locked: a stall of the disk that has this program could stop the monitor");
    }
    let mut monitor = Monitor {
        core,
        table,
        memo,
        cutter,
        starter,
        teller: teller.clone(),
        defaults: config.defaults,
        folders: config.folders,
        watches,
        memory_locked: locked.is_ok(),
        clockwork: Clockwork::new(now, notify::watchdog_interval()),
    };
    monitor.perform(effects, None);
    monitor.register_own();
    tracing::info!(socket = %config.socket.display(), version = env!("CARGO_PKG_VERSION"), "guarding");
    teller.ready(monitor.shown());
    let mut monitor = monitor.run(messages, [terminate, interrupt]).await;
    let fenced = monitor.core.fenced();
    if fenced.is_empty() {
        if let Err(error) = monitor.table.remove() {
            tracing::warn!(%error, "an empty table stays");
        }
        tracing::info!("ended");
    } else {
        tracing::warn!(
            fenced = fenced.to_string(),
            "ended; the fence stays: start again to have it undone when the disk is back, or `nft delete table inet io_fence`"
        );
    }
    Ok(0)
}

/// What another monitor says of itself, where there is one.
fn alive(socket: &Path) -> Option<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(&line(&Request::Status {})).ok()?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).ok()?;
    let status: super::status::Status = serde_json::from_str(&answer).ok()?;
    Some(format!("it watches {} folders", status.folders.len()))
}

/// Reporters alone, for a monitor elsewhere on this host.
pub(super) fn report(config: Config) -> Result<u8, Failure> {
    let log = logging()?;
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()
        .map_err(|error| Failure::failed(format!("cannot block signals: {error}")))?;
    tracing::info!(folders = config.folders.len(), socket = %config.socket.display(), "reporting");
    let (ended, all_ended) = channel();
    let mut over = Vec::new();
    for folder in config.folders.clone() {
        let (end, ends) = channel();
        over.push(end);
        let ended = ended.clone();
        let socket = config.socket.clone();
        spawn_apart("report", 2 * STACK, None, move |_| {
            let FolderConfig {
                path,
                touchfile,
                sleep,
                ..
            } = &folder;
            let line = Line::outside(socket, folder.registration());
            reporter::report(path, Disk::new(Path::new(path), touchfile), *sleep, line, &ends);
            let _ = ended.send(());
        })
        .map_err(failed("start a thread"))?;
    }
    drop(ended);
    notify::ready("reporting");
    let _ = ends.wait();
    notify::stopping("ending");
    // Those that beat say goodbye. One that hangs does not: what it watches is fenced.
    let expected = over.len();
    drop(over);
    let deadline = Instant::now() + PATIENCE;
    let mut gone = 0;
    while gone < expected {
        let left = deadline.saturating_duration_since(Instant::now());
        if all_ended.recv_timeout(left).is_err() {
            break;
        }
        gone += 1;
    }
    if gone < expected {
        tracing::warn!(
            folders = expected - gone,
            "ended, while folders hang; their ports are fenced"
        );
    }
    log.flush(FAREWELL);
    Ok(0)
}
