//! From a configuration to a running node, and back.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::config::{Config, Neighbours, OnStop};
use super::core::{Core, Inheritance};
use super::hands::Hands;
use super::health;
use super::memo::MemoFile;
use super::metrics::Metrics;
use super::run::{Counts, Daemon, Ends, Question};
use crate::cli::{Failure, block_on};
use crate::host::BootTimer;
use crate::telemetry::{self, http, notify};

/// Connections to the socket at once.
const GUESTS: usize = 32;
/// How long somebody at the socket may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest question.
const QUESTION_MAX_BYTES: usize = 64;

pub(super) fn run(config: Config) -> Result<u8, Failure> {
    telemetry::start(telemetry::stderr_is_journal());
    block_on(serve(config))?
}

async fn serve(config: Config) -> Result<u8, Failure> {
    // SIGQUIT is what yaim's own unit sends.
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::quit(),
    ];
    let mut signals = Vec::new();
    for kind in kinds {
        signals.push(
            signal(kind).map_err(|error| Failure::failed(format!("cannot listen to signals: {error}")))?,
        );
    }
    let (check, pace) = (health::check(&config.node)?, config.check);
    let memo = MemoFile::at(&config.state, &config.settings)?;
    refuse_a_second(&config.socket).await?;
    let store = config.store.open()?;
    let mut hands = Hands::open(config.addresses.clone())?;
    let (found, until) = hands.found()?;
    let inheritance = memo.read().map(|lease| Inheritance {
        lease,
        until,
        addresses: found.clone(),
    });
    let inherited = inheritance
        .as_ref()
        .map(|i| i.addresses.clone())
        .unwrap_or_default();
    hands.adopt(&inherited, until);
    let listener = listen(&config.socket)?;
    let (to_daemon, questions) = mpsc::channel(16);
    tokio::spawn(answer(listener, to_daemon.clone()));
    let (tell, told) = watch::channel(None);
    tokio::spawn(health::watch(check, pace, tell));
    if let Some(address) = config.metrics {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::failed(format!(
                "metrics: cannot listen on {address}: {error}; choose another address or port"
            ))
        })?;
        let address = listener.local_addr().unwrap_or(address);
        tracing::info!(%address, "figures at /metrics");
        let metrics = Metrics::new(to_daemon.clone());
        let answer = move |request| metrics.clone().answer(request);
        tokio::spawn(http::serve(
            listener,
            http::Limits::FEW,
            CancellationToken::new(),
            answer,
        ));
    }
    tracing::info!(
        node = config.settings.node,
        pool = config.settings.prefix,
        interface = config.addresses.interface,
        ttl = ?config.settings.ttl,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    notify::ready("starting");
    let daemon = Daemon {
        core: Core::new(config.settings.clone(), inheritance),
        settings: config.settings,
        store,
        hands,
        memo,
        health: told,
        questions,
        ends: Ends { signals },
        keep: config.on_stop == OnStop::Keep,
        asks: config.neighbours == Neighbours::Ask,
        counts: Counts::default(),
        timer: BootTimer::new().map_err(|error| Failure::failed(format!("cannot have a timer: {error}")))?,
    };
    daemon.run().await.map_err(|error| {
        Failure::failed(format!(
            "cannot wait for the time: {error}; all addresses are dropped"
        ))
    })?;
    let _ = std::fs::remove_file(&config.socket);
    tracing::info!("ended");
    Ok(0)
}

/// Two on one host would fight over the interface.
async fn refuse_a_second(socket: &Path) -> Result<(), Failure> {
    if UnixStream::connect(socket).await.is_ok() {
        return Err(Failure::failed(format!(
            "another io-vip answers on {}; stop it first, or choose another --socket and --interface",
            socket.display()
        )));
    }
    Ok(())
}

fn listen(socket: &Path) -> Result<UnixListener, Failure> {
    let shown = socket.display();
    let fault = |error: std::io::Error| {
        Failure::failed(format!(
            "cannot listen on {shown}: {error}; set RuntimeDirectory=io-vip in the unit, or choose another --socket"
        ))
    };
    match std::fs::symlink_metadata(socket) {
        // Of one that has ended: a live one has answered above.
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            std::fs::remove_file(socket).map_err(fault)?;
        }
        Ok(_) => {
            return Err(Failure::config(format!(
                "{shown} is there already, and is no socket; choose another --socket"
            )));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(fault)?;
    // There is nothing to be had here but a look.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).map_err(fault)?;
    Ok(listener)
}

/// Answers each who connects with the status.
async fn answer(listener: UnixListener, daemon: mpsc::Sender<Question>) {
    let places = Arc::new(Semaphore::new(GUESTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let daemon = daemon.clone();
        tokio::spawn(async move {
            let _place = place;
            let _ = timeout(PATIENCE, tell(stream, daemon)).await;
        });
    }
}

async fn tell(mut stream: UnixStream, daemon: mpsc::Sender<Question>) -> std::io::Result<()> {
    let mut question = Vec::new();
    while !question.ends_with(b"\n") && question.len() < QUESTION_MAX_BYTES {
        if stream.read_buf(&mut question).await? == 0 {
            break;
        }
    }
    if question.trim_ascii() != b"status" {
        return stream.write_all(b"{\"error\":\"ask: status\"}\n").await;
    }
    let (reply, status) = oneshot::channel();
    if daemon.send(reply).await.is_err() {
        return Ok(());
    }
    let Ok(status) = status.await else { return Ok(()) };
    let mut line = serde_json::to_vec(&status).unwrap_or_default();
    line.push(b'\n');
    stream.write_all(&line).await
}
