//! `io-coordinator serve`: a long look at the fleet, over HTTP: a page for people, figures for a monitoring system, and, for who shows
//! a token, commands.
//!
//! **Promise.** Nobody who does not show the token changes anything. One who looks and is too slow misses nothing: it is given all again.

mod commands;
mod metrics;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::HeaderValue;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::commands::Commands;
use super::fleet::{Entry, Event, Fleet, Followed, Host, Level, follow};
use super::run::Plan;
use crate::cli::{Failure, unix_milliseconds};
use crate::telemetry::http::{self, Limits, Method, Pulse, Request, Response, StatusCode};
use crate::telemetry::notify;

/// A sign of life, when nothing happens: proxies cut what is silent, and a page that hears nothing must not look alive.
const STILL_HERE: Duration = Duration::from_secs(15);
/// Most that is handed on at once.
const PART_BYTES: usize = 64 << 10;
/// How many may listen at once.
const LISTENERS: usize = 100;
/// What a page may be behind; more, and it is given all of it again.
const BEHIND: usize = 1_024;

const JSON: &str = "application/json";
const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Nothing from elsewhere, nothing inside of others: texts of other hosts are shown here.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Arguments of `io-coordinator serve`, but for the fleet.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Where the page and the figures are to be had. Whoever reaches it may look: leave it on this host, and let a proxy with
    /// TLS and a login in front of it
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9877")]
    listen: SocketAddr,

    /// Take drain, undrain, hold and release from those who show what is in this file, at least 32 characters. Without it nobody
    /// can change anything here
    #[arg(long, value_name = "FILE", requires = "generation_file")]
    token_file: Option<PathBuf>,

    /// Where these commands take their generations from: the same file as that of the other coordinators on this host
    #[arg(long, value_name = "FILE", requires = "token_file")]
    generation_file: Option<PathBuf>,
}

/// What all requests share.
struct Shared {
    fleet: Mutex<Fleet>,
    /// What happens, as it is told to those who look.
    news: broadcast::Sender<Bytes>,
    started_ms: u64,
    commands: Option<Commands>,
    /// Places for those who listen to what happens: fewer than connections, so that figures are always to be had.
    listeners: Arc<Semaphore>,
}

/// The document that `/api/fleet` is.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    now_ms: u64,
    coordinator: About,
    hosts: &'a [Host],
    history: Vec<&'a Entry>,
}

#[derive(Serialize)]
struct About {
    version: &'static str,
    started_ms: u64,
    commands: bool,
}

/// Follows the targets of `plan`, whose key came from `files`, until a signal ends it.
///
/// # Errors
/// When the address cannot be listened on, or the token cannot be read.
pub async fn serve(args: ServeArgs, plan: Plan, files: Vec<PathBuf>) -> Result<u8, Failure> {
    let fault = |error: std::io::Error| Failure::failed(format!("cannot watch for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        Failure::failed(format!(
            "cannot listen on {}: {error}; choose another address or port with --listen",
            args.listen
        ))
    })?;
    let address = listener.local_addr().unwrap_or(args.listen);
    let Followed {
        mut events,
        told,
        links,
    } = follow(&plan, &files);
    let now = unix_milliseconds();
    let commands = match (&args.token_file, args.generation_file) {
        (Some(token), Some(generations)) => {
            Some(Commands::new(token, generations, files, plan.clone(), told)?)
        }
        _ => None,
    };
    let shared = Arc::new(Shared {
        fleet: Mutex::new(Fleet::new(
            plan.targets.iter().map(|target| target.name.clone()),
            now,
        )),
        news: broadcast::channel(BEHIND).0,
        started_ms: now,
        commands,
        listeners: Arc::new(Semaphore::new(LISTENERS)),
    });
    let closing = CancellationToken::new();
    let answers = Arc::clone(&shared);
    let server = tokio::spawn(http::serve(
        listener,
        Limits::MANY,
        closing.clone(),
        move |request| answer(Arc::clone(&answers), request),
    ));
    tracing::info!(%address, hosts = plan.targets.len(), "the fleet is shown at http://{address}/");
    notify::ready(&format!("following {} hosts", plan.targets.len()));
    let mut watchdog = notify::watchdog_interval().map(interval);
    if let Some(watchdog) = &mut watchdog {
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let tick = async {
            match &mut watchdog {
                Some(watchdog) => watchdog.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((at, event)) = events.recv() => shared.learn(at, event),
            _ = tick => notify::watchdog(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify::stopping("ending");
    tracing::info!("ending");
    drop(links);
    closing.cancel();
    server.abort();
    Ok(0)
}

impl Shared {
    /// Nobody holds this lock across an await, and nothing under it can panic half-way.
    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, at: usize, event: Event) {
        let mut fleet = self.fleet();
        let learned = fleet.on(unix_milliseconds(), at, event);
        for entry in &learned.entries {
            log(entry);
        }
        if self.news.receiver_count() > 0 {
            let host = fleet.hosts().get(at).filter(|_| learned.changed);
            let mut text = host.map(|host| news("host", host)).unwrap_or_default();
            text.extend(learned.entries.iter().map(|entry| news("history", entry)));
            if !text.is_empty() {
                // The last one who looked may just have gone.
                let _ = self.news.send(text.into());
            }
        }
    }

    fn document(&self) -> Result<String, serde_json::Error> {
        let fleet = self.fleet();
        serde_json::to_string(&Document {
            version: 1,
            now_ms: unix_milliseconds(),
            coordinator: About {
                version: env!("CARGO_PKG_VERSION"),
                started_ms: self.started_ms,
                commands: self.commands.is_some(),
            },
            hosts: fleet.hosts(),
            history: fleet.history().collect(),
        })
    }
}

fn log(entry: &Entry) {
    let (host, by, why) = (&entry.host, entry.by.as_deref(), entry.message.as_str());
    match entry.level {
        Level::Info => tracing::info!(%host, by, why, "{}", entry.what),
        // It is theirs, and an error there: here nothing is wrong.
        Level::Warning | Level::Error => tracing::warn!(%host, by, why, "{}", entry.what),
    }
}

async fn answer(shared: Arc<Shared>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/api/command" || path == "/api/session" {
        return commands::answer(&shared, request).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return http::not_allowed();
    }
    match path.as_str() {
        "/" => page("text/html; charset=utf-8", PAGE),
        "/page.css" => page("text/css; charset=utf-8", STYLE),
        "/page.js" => page("text/javascript; charset=utf-8", SCRIPT),
        "/api/fleet" => match shared.document() {
            Ok(document) => http::respond(StatusCode::OK, JSON, document),
            Err(error) => http::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        "/events" => match Arc::clone(&shared.listeners).try_acquire_owned() {
            Ok(place) => events(shared, place, request.extensions().get::<Pulse>().cloned()),
            Err(_) => http::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many pages are open; close some",
            ),
        },
        "/metrics" => metrics::figures(&shared).answer(&request),
        "/healthz" => http::text(StatusCode::OK, "ok"),
        _ => http::not_found("/, /api/fleet, /events, /metrics and /healthz"),
    }
}

fn page(kind: &'static str, content: &'static str) -> Response {
    let mut response = http::respond(StatusCode::OK, kind, content);
    let headers = response.headers_mut();
    headers.insert("content-security-policy", HeaderValue::from_static(POLICY));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    response
}

/// One event of a stream of server-sent events (HTML, section 9.2).
fn news(name: &str, document: &impl Serialize) -> String {
    // These types are all writable as JSON, and their JSON has no line breaks.
    let data = serde_json::to_string(document).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}

fn events(shared: Arc<Shared>, place: OwnedSemaphorePermit, pulse: Option<Pulse>) -> Response {
    let stream = stream_of(shared).inspect(move |_| {
        // One that takes nothing any more is cut in the end, and makes room.
        let _place = &place;
        if let Some(pulse) = &pulse {
            pulse.0.notify_one();
        }
    });
    let body = BodyExt::boxed(StreamBody::new(stream));
    let mut response = http::respond(StatusCode::OK, "text/event-stream", "");
    *response.body_mut() = body;
    // Of nginx: what is kept back until there is more of it is no news.
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// All, and then what changes.
fn stream_of(shared: Arc<Shared>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync {
    // Listened for first: what happens in between comes twice, and not never.
    let news_of_it = shared.news.subscribe();
    let begin = (shared, news_of_it, true, Bytes::new());
    stream::unfold(begin, |(shared, mut receiver, all, mut left)| async move {
        let mut all = all;
        while left.is_empty() {
            left = if std::mem::take(&mut all) {
                let document = shared.document().unwrap_or_default();
                Bytes::from(format!("event: fleet\ndata: {document}\n\n"))
            } else {
                match timeout(STILL_HERE, receiver.recv()).await {
                    Ok(Ok(chunk)) => chunk,
                    Ok(Err(RecvError::Lagged(_))) => {
                        receiver = receiver.resubscribe();
                        all = true;
                        continue;
                    }
                    Ok(Err(RecvError::Closed)) => return None,
                    Err(_) => Bytes::from(news("beat", &json!({ "now_ms": unix_milliseconds() }))),
                }
            };
        }
        // In parts: on a slow link a whole fleet takes longer than one that takes nothing may stay.
        let part = left.split_to(left.len().min(PART_BYTES));
        Some((Ok(Frame::data(part)), (shared, receiver, false, left)))
    })
}

/// For who tells of hosts what they do not tell themselves.
type Told = mpsc::Sender<(usize, Event)>;
