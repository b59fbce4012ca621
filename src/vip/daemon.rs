//! From a configuration to a running node, and back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
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
use crate::cli::{Failure, block_on, listen_at};
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
    let listener = listen_at(&config.socket, "io-vip")?;
    let (to_daemon, questions) = mpsc::channel(16);
    tokio::spawn(answer(listener, to_daemon.clone()));
    let (tell, told) = watch::channel(health::Told::default());
    tokio::spawn(health::watch(check, pace, !inherited.is_empty(), tell));
    let metrics = Metrics::new(to_daemon.clone());
    http::offer_figures(config.metrics, CancellationToken::new(), move |request| {
        metrics.clone().answer(request)
    })
    .await;
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
            "another io-vip answers on {}; stop it first: a host has one, with one interface and one pool",
            socket.display()
        )));
    }
    Ok(())
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
