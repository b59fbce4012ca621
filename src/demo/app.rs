//! `io-guardian demo-app`: a dependent as real ones are, only smaller.
//!
//! **Promise.** It holds one connection to each database that it is given, uses it ten times a second, and never
//! connects again: when a connection is lost it says so and ends with 1. Asked to stop, it ends with 0.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};

use super::stand_in;
use crate::cli::{self, Failure, HostPort, block_on};
use crate::probe::{Kind, POSTGRES_PORT, REDIS_PORT};

/// How often the connections are used.
const USE_EVERY: Duration = Duration::from_millis(100);
/// The longest that connecting, or one question, may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The role and the database of the demo's PostgreSQL.
pub(super) const POSTGRES_USER: &str = "demo";
pub(super) const POSTGRES_DATABASE: &str = "postgres";

/// Arguments of `io-guardian demo-app`.
#[derive(clap::Args, Clone, Debug)]
pub struct AppArgs {
    /// Its name.
    #[arg(long)]
    pub name: String,
    /// The PostgreSQL to hold a connection to.
    #[arg(long)]
    pub postgres: Option<HostPort>,
    /// The Redis to hold a connection to.
    #[arg(long)]
    pub redis: Option<HostPort>,
    /// How long it takes to stop: it finishes what it has begun, its connections held.
    #[arg(long, value_parser = cli::parse_duration)]
    pub goodbye: Option<Duration>,
    /// Be no dependent but a stand-in for this database, on this port of 127.0.0.1.
    #[arg(long, value_enum, requires = "listen")]
    pub stand_in: Option<StandIn>,
    /// The port of the stand-in.
    #[arg(long)]
    pub listen: Option<u16>,
}

/// Which database a stand-in stands for.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum StandIn {
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
}

/// Runs the dependent until it is asked to stop, or a connection is lost.
///
/// # Errors
/// When it cannot connect, or a connection is lost.
pub fn run(args: AppArgs) -> Result<u8, Failure> {
    block_on(async move {
        let fault = |error: std::io::Error| Failure::failed(format!("cannot listen to signals: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
        let asked_to_stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        if let (Some(which), Some(port)) = (args.stand_in, args.listen) {
            let kind = match which {
                StandIn::Postgres => Kind::Postgres,
                StandIn::Redis => Kind::Redis,
            };
            let listener = TcpListener::bind(("127.0.0.1", port))
                .await
                .map_err(|error| Failure::failed(format!("cannot listen on 127.0.0.1:{port}: {error}")))?;
            tokio::select! {
                () = asked_to_stop => {}
                () = stand_in::serve(kind, listener) => {}
            }
            return Ok(0);
        }
        let name = &args.name;
        let postgres = match &args.postgres {
            Some(address) => Some(
                postgres(address, name)
                    .await
                    .map_err(|why| lost(name, "cannot reach", "postgres", address, why))?,
            ),
            None => None,
        };
        let redis = match &args.redis {
            Some(address) => Some(
                redis(address)
                    .await
                    .map_err(|why| lost(name, "cannot reach", "redis", address, why))?,
            ),
            None => None,
        };
        let work = async {
            loop {
                sleep(USE_EVERY).await;
                if let (Some(client), Some(address)) = (&postgres, &args.postgres) {
                    ask_postgres(client, "SELECT 1")
                        .await
                        .map_err(|why| lost(name, "lost its connection to", "postgres", address, why))?;
                }
                if let (Some(connection), Some(address)) = (&redis, &args.redis) {
                    ask_redis(connection, &["PING"])
                        .await
                        .map_err(|why| lost(name, "lost its connection to", "redis", address, why))?;
                }
            }
        };
        let stop = async {
            asked_to_stop.await;
            if let Some(goodbye) = args.goodbye {
                sleep(goodbye).await;
            }
        };
        tokio::select! {
            () = stop => Ok(0),
            failed = work => failed,
        }
    })?
}

fn lost(name: &str, what: &str, kind: &str, address: &HostPort, why: String) -> Failure {
    Failure::failed(format!("{name} {what} {kind} {address}: {why}"))
}

/// Connects to PostgreSQL as `application`.
pub(super) async fn postgres(address: &HostPort, application: &str) -> Result<Client, String> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&address.host)
        .port(address.port.unwrap_or(POSTGRES_PORT))
        .user(POSTGRES_USER)
        .dbname(POSTGRES_DATABASE)
        .application_name(application);
    let (client, connection) = within(config.connect(NoTls)).await?;
    // Ends with the connection, which ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

/// Has PostgreSQL answer a query that gives one value.
pub(super) async fn ask_postgres(client: &Client, query: &str) -> Result<String, String> {
    let answer = within(client.simple_query(query)).await?;
    answer
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .ok_or_else(|| "an answer with no row".to_owned())
}

/// Connects to Redis.
pub(super) async fn redis(address: &HostPort) -> Result<MultiplexedConnection, String> {
    let port = address.port.unwrap_or(REDIS_PORT);
    let client = redis::Client::open((address.host.as_str(), port)).map_err(|error| error.to_string())?;
    within(client.get_multiplexed_async_connection()).await
}

/// Has Redis answer a command with a text.
pub(super) async fn ask_redis(connection: &MultiplexedConnection, words: &[&str]) -> Result<String, String> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    within(command.query_async::<String>(&mut connection.clone())).await
}

async fn within<T, E: std::fmt::Display>(question: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(PATIENCE, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
