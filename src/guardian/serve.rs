//! `io-guardian serve`: from arguments to a running guardian and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::{Config, ServeArgs, UnitsConfig};
use super::core::{Attention, Repairs};
use super::keys::Keys;
use super::manager::{Manager, Message, Sight};
use super::metrics::Metrics;
use super::publish::Publisher;
use super::server::{self, Shared};
use super::watch::watch as watch_database;
use crate::cli::{Failure, block_on, print};
use crate::probe::Probe;
use crate::protocol::Keyring;
use crate::telemetry::{self, http, notify};
use crate::units::Units;
use crate::units::processes::Processes;
use crate::units::systemd::Systemd;

/// Connections that the kernel holds for us until we accept them.
const BACKLOG: u32 = 1_024;
/// How much longer than a command may take the end of a guardian may take.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

/// Runs a guardian until a signal ends it.
pub fn run(args: ServeArgs) -> Result<u8, Failure> {
    // Taken before anything else: what systemd hands over must not leak into anything that we start.
    let mut handed = listenfd::ListenFd::from_env();
    let mut config = Config::read(&args)?;
    if args.check_config {
        let key = if config.keys.is_some() {
            "the key is fine"
        } else {
            "the key file is not there yet"
        };
        let folders = [
            ("state", &config.folders.state),
            ("runtime", &config.folders.runtime),
        ];
        let absent = folders.into_iter().filter_map(|(name, folder)| {
            let folder = folder.as_ref().filter(|folder| !folder.exists())?;
            Some(format!(
                "; the {name} folder {} is not there yet",
                folder.display()
            ))
        });
        print(&format!(
            "the configuration is fine; {key}{}\n",
            absent.collect::<String>()
        ))?;
        return Ok(0);
    }
    let Some(keys) = config.keys.clone() else {
        let files: Vec<_> = config
            .psk_files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        return Err(Failure::config(format!("no key in {}", files.join(", "))));
    };
    telemetry::start(telemetry::stderr_is_journal());
    let mut inherited = Vec::new();
    for at in 0..handed.len() {
        let socket = handed.take_tcp_listener(at).map_err(|error| {
            Failure::config(format!(
                "the socket that was handed over (LISTEN_FDS) is no TCP listener: {error}; use ListenStream="
            ))
        })?;
        inherited.extend(socket);
    }
    // A guardian with one eye shut still obeys: a drain must not fail because a database's password is not there.
    let probes = config.databases.probes("serve").unwrap_or_else(|failure| {
        for why in failure.messages {
            tracing::error!(
                why,
                "the databases are not watched: what messages miss is not repaired"
            );
        }
        Vec::new()
    });
    if probes.is_empty() {
        config.repairs = Repairs::NONE;
    }
    block_on(serve(config, keys, probes, inherited))?
}

async fn listen(config: &Config, inherited: Vec<std::net::TcpListener>) -> Result<Vec<TcpListener>, Failure> {
    let own = |error: std::io::Error| {
        Failure::failed(format!("cannot use the socket that was handed over: {error}"))
    };
    if !inherited.is_empty() {
        return inherited
            .into_iter()
            .map(|socket| {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket)
            })
            .collect::<Result<_, _>>()
            .map_err(own);
    }
    let place = format!("{}, port {}", config.host, config.port);
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((config.host.as_str(), config.port))
        .await
        .map_err(|error| {
            Failure::config(format!(
                "cannot listen on {place}: {error}; write an address of this host, or 0.0.0.0 or ::"
            ))
        })?
        .collect();
    let bind = |address: &SocketAddr| {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(*address)?;
        socket.listen(BACKLOG)
    };
    let mut listeners = Vec::new();
    let mut fault = None;
    for address in &addresses {
        match bind(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) => fault = Some(error),
        }
        // Port 0 twice would be two ports.
        if config.port == 0 && !listeners.is_empty() {
            break;
        }
    }
    match fault {
        Some(error) if listeners.is_empty() => Err(Failure::failed(format!(
            "cannot listen on {place}: {error}; is another guardian running, or is the address not on this host? \
             choose with --host and --port"
        ))),
        _ => Ok(listeners),
    }
}

async fn serve(
    config: Config,
    keys: Keyring,
    probes: Vec<Probe>,
    inherited: Vec<std::net::TcpListener>,
) -> Result<u8, Failure> {
    let fault = |error: std::io::Error| Failure::failed(format!("cannot listen to signals: {error}"));
    let hangup = signal(SignalKind::hangup()).map_err(fault)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    let listeners = listen(&config, inherited).await?;

    let units: Arc<dyn Units> = match &config.units {
        UnitsConfig::Systemd => {
            let systemd = Arc::new(Systemd::new(&config.target));
            tokio::spawn(warn_of_deadlines(systemd.clone(), config.command_timeout));
            systemd
        }
        UnitsConfig::Processes(specs) => Arc::new(
            Processes::start(config.target.clone(), specs.clone())
                .map_err(|error| Failure::failed(format!("cannot supervise processes: {error}")))?,
        ),
    };
    let (to_manager, messages) = mpsc::channel(64);
    let (to_attention, attention) = watch::channel(Attention::Calm);
    let (to_seen, seen) = mpsc::channel(16);
    let changed = Arc::new(Notify::new());
    let sight = Sight {
        names: probes.iter().map(ToString::to_string).collect(),
        attention: to_attention,
        changed: Arc::clone(&changed),
    };
    let manager = Manager::new(
        units.clone(),
        config.command_timeout,
        config.folders.clone(),
        config.repairs,
        sight,
    );
    let manager = tokio::spawn(manager.run(messages, seen));
    for (at, probe) in probes.into_iter().enumerate() {
        tracing::info!(database = %probe, drain_after = ?config.repairs.drain_after, undrain_after = ?config.repairs.undrain_after, "watching");
        tokio::spawn(watch_database(
            at,
            probe,
            config.pace,
            attention.clone(),
            to_seen.clone(),
        ));
    }
    drop(to_seen);
    let closing = CancellationToken::new();
    let keys = Arc::new(Keys::new(keys, config.psk_files.clone()));
    let watch = tokio::spawn(Arc::clone(&keys).watch(hangup));
    let (publisher, publishing) = Publisher::new(to_manager.clone(), units.clone(), changed);
    let publishing = tokio::spawn(publishing);
    let shared = Arc::new(Shared::new(
        keys,
        config.wire,
        to_manager.clone(),
        publisher,
        closing.clone(),
    ));
    let connections = TaskTracker::new();
    let mut acceptors = Vec::new();
    for listener in listeners {
        let address = listener
            .local_addr()
            .map_err(|error| Failure::failed(format!("no address to listen on: {error}")))?;
        let (alive, alive_requests) = mpsc::channel(1);
        connections.spawn(server::accept(
            listener,
            shared.clone(),
            connections.clone(),
            alive_requests,
        ));
        tracing::info!(%address, unit = config.target, version = env!("CARGO_PKG_VERSION"), "listening");
        acceptors.push(alive);
    }
    let metrics = Metrics::new(shared.clone());
    let measuring = http::offer_figures(config.metrics, closing.clone(), move |request| {
        metrics.clone().answer(request)
    })
    .await;
    drop(shared);
    notify::ready(&format!("guarding {}; no command yet", config.target));
    let watchdog = tokio::spawn(feed_watchdog(acceptors, to_manager));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending: answering what is in flight");
    notify::stopping("answering what is in flight");
    // The manager's own deadlines end what is in flight before this; systemd must not be faster.
    let limit = config.command_timeout + CLOSE_GRACE;
    notify::extend_timeout(limit * 2);
    closing.cancel();
    connections.close();
    watch.abort();
    publishing.abort();
    if let Some(measuring) = measuring {
        measuring.abort();
    }
    watchdog.abort();
    let _ = watchdog.await;
    let farewell = async {
        if timeout(limit, connections.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        // All senders are gone: the manager ends when the last operation has.
        let _ = timeout(CLOSE_GRACE, manager).await;
        units.close().await;
    };
    tokio::select! {
        () = farewell => tracing::info!("ended"),
        () = again(&mut terminate, &mut interrupt) => tracing::warn!("ended by a second signal, before all was answered"),
    }
    Ok(0)
}

async fn again(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Tells systemd's watchdog that we live, each time that all who do the work have shown it: the task that
/// decides, and the tasks that accept. One that hangs starves the watchdog, and systemd restarts us.
async fn feed_watchdog(acceptors: Vec<mpsc::Sender<oneshot::Sender<()>>>, manager: mpsc::Sender<Message>) {
    let Some(period) = notify::watchdog_interval() else {
        return;
    };
    let mut tick = interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (reply, alive) = oneshot::channel();
        if manager.send(Message::Alive(reply)).await.is_err() || alive.await.is_err() {
            return;
        }
        for acceptor in &acceptors {
            let (reply, alive) = oneshot::channel();
            if acceptor.send(reply).await.is_err() || alive.await.is_err() {
                return;
            }
        }
        notify::watchdog();
    }
}

/// The chain of deadlines: a unit's own stop, then the guardian's, then the coordinator's.
async fn warn_of_deadlines(systemd: Arc<Systemd>, command_timeout: Duration) {
    match systemd.slower_than(command_timeout).await {
        Ok(slower) => {
            let Some((unit, stop)) = slower.first() else {
                return;
            };
            let others = if slower.len() > 1 {
                format!(" and {} more", slower.len() - 1)
            } else {
                String::new()
            };
            tracing::warn!(
                why = format!(
                    "{unit} (TimeoutStopSec={}){others} may take longer to stop than a drain waits ({}): lower \
                     TimeoutStopSec=, or raise --command-timeout and, above it, the coordinator's --timeout",
                    seconds(*stop),
                    seconds(command_timeout)
                ),
                "deadlines do not form a chain"
            );
        }
        Err(error) => tracing::warn!(%error, "cannot check the dependents' deadlines"),
    }
}

fn seconds(duration: Duration) -> String {
    // systemd's `infinity` is the largest number of microseconds.
    if duration.as_secs() > u64::from(u32::MAX) {
        "infinity".to_owned()
    } else {
        format!("{}s", duration.as_secs())
    }
}
