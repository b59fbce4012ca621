//! The command line of `io-vip`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::config::{Config, FileArgs, NodeArgs, SOCKET, StoreArgs, StoreConfig, check_name, nodename};
use super::keys::{self, Keys};
use super::operate::{Listing, Pool, table};
use super::run::Counts;
use super::shown::Shown;
use super::{daemon, import, status};
use crate::cli::{Failure, PageCommand, block_on, print, print_page};
use crate::store::{Etcd, StoreError};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer of a daemon.
const ANSWER_MAX_BYTES: u64 = 4 << 20;

const HELP: &str = "\
Each setting is a flag, a key of the file, and, where yaim has it, YAIM_… in the environment; a flag beats the environment, which beats the file. \
A DURATION is 500ms, 5s or 1m 30s; a bare number is milliseconds.

Exit codes: 0 done, or ended by a signal; 1 failed at run time; 64 wrong command line; 78 wrong configuration.";

/// Addresses that always lead to a healthy host, and never to two.
#[derive(Parser)]
#[command(name = "io-vip", version, about, after_help = HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take part: hold a fair share of the pool while this node is healthy
    #[command(after_help = HELP)]
    Run(Box<RunArgs>),
    /// Put addresses into the pool
    Add(AddressesArgs),
    /// Take addresses out of the pool; whoever holds them drops them
    Remove(AddressesArgs),
    /// Put the addresses of a yaim's pool into this one; that program keeps them in etcd's second API
    Import(ImportArgs),
    /// Show the pool: who holds what
    List(ListArgs),
    /// Show this host's daemon: what it holds, for how long, and why not
    Status(StatusArgs),
    /// Move an address to a node: it stays there while that node is healthy
    Move(MoveArgs),
    /// Have a node give up all it holds, and take nothing until it is resumed
    Pause(PauseArgs),
    /// Have a node that was paused take part again
    Resume(NodeNameArgs),
    #[command(flatten)]
    Page(PageCommand),
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Check the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Args)]
struct PoolArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Args)]
struct AddressesArgs {
    /// IPv4 or IPv6 addresses, without a netmask
    #[arg(required = true, value_name = "ADDRESS", value_parser = keys::address)]
    addresses: Vec<IpAddr>,
    #[command(flatten)]
    pool: PoolArgs,
}

#[derive(Args)]
struct ImportArgs {
    /// The etcd that yaim uses, started with --enable-v2
    #[arg(long, value_name = "http://HOST:PORT")]
    from: String,
    /// Also while yaim holds some of them: where io-vip runs, two hosts then have them
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pool: PoolArgs,
}

#[derive(Args)]
struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pool: PoolArgs,
}

#[derive(Args)]
struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The Unix socket of the daemon
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

#[derive(Args)]
struct MoveArgs {
    /// Which
    #[arg(value_name = "ADDRESS", value_parser = keys::address)]
    address: IpAddr,
    /// To which node
    #[arg(value_name = "NODE", value_parser = node_name, required_unless_present = "anywhere")]
    node: Option<String>,
    /// It may be anywhere again
    #[arg(long, conflicts_with = "node")]
    anywhere: bool,
    #[command(flatten)]
    pool: PoolArgs,
}

#[derive(Args)]
struct NodeNameArgs {
    /// Which node [default: this host's, by nodename of the file, or its name]
    #[arg(value_name = "NODE", value_parser = node_name)]
    node: Option<String>,
    #[command(flatten)]
    pool: PoolArgs,
}

#[derive(Args)]
struct PauseArgs {
    #[command(flatten)]
    node: NodeNameArgs,
    /// Why, for whoever looks
    #[arg(long, value_name = "TEXT", default_value = "no reason was given")]
    reason: String,
}

fn node_name(text: &str) -> Result<String, String> {
    check_name(text, false).map(|()| text.to_owned())
}

/// What the kernel calls this host.
fn hostname() -> String {
    let name = nix::sys::utsname::uname();
    name.map(|name| name.nodename().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Runs it.
///
/// # Errors
/// With an exit code, and what to do.
pub fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Run(args) => {
            let config = Config::read(&args.file, args.store, args.node, &hostname())?;
            if args.check_config {
                let mut text = "the configuration is fine\n".to_owned();
                for unread in &config.unread {
                    text.push_str(&format!("not looked at here: {unread}\n"));
                }
                return print(&text).map(|()| 0);
            }
            daemon::run(config)
        }
        Command::Add(args) => add(args),
        Command::Remove(args) => remove(args),
        Command::Import(args) => import_pool(args),
        Command::List(args) => list(args),
        Command::Status(args) => show_status(&args),
        Command::Move(args) => r#move(args),
        Command::Pause(args) => pause(args),
        Command::Resume(args) => {
            let node = named(args.node, &args.pool)?;
            with_pool(args.pool, async |pool, out| {
                out.push_str(&match pool.resume(&node).await.map_err(refused)? {
                    true => format!("{node} is not paused any more: it takes part while it is healthy\n"),
                    false => format!("{node} was not paused\n"),
                });
                Ok(())
            })
        }
        Command::Page(page) => print_page::<Cli>(&page),
    }
}

/// The node that is meant.
fn named(node: Option<String>, pool: &PoolArgs) -> Result<String, Failure> {
    match node {
        Some(node) => Ok(node),
        None => nodename(&pool.file, &hostname()),
    }
}

fn pause(args: PauseArgs) -> Result<u8, Failure> {
    let node = named(args.node.node, &args.node.pool)?;
    with_pool(args.node.pool, async |pool, out| {
        pool.pause(&node, &args.reason).await.map_err(refused)?;
        // It is done, whether or not the store tells of the node, too.
        let listing = pool.list().await;
        let is_unknown = listing.is_ok_and(|listing| !listing.nodes.contains(&node));
        out.push_str(&match is_unknown {
            false => {
                format!("{node} is paused: it gives up what it holds; `io-vip resume {node}` ends that\n")
            }
            true => format!(
                "{node} is paused, and no node of that name takes part now: is it the right name? `io-vip list` shows them; `io-vip resume {node}` ends that\n"
            ),
        });
        Ok(())
    })
}

/// Why it was not done, or may not have been.
fn refused(error: StoreError) -> Failure {
    Failure::failed(match error {
        StoreError::Unknown(_) => format!(
            "nobody knows whether the store did it: {error}; `io-vip list` shows what is there now, and it can be done again"
        ),
        error => format!("the store did not do it: {error}"),
    })
}

/// Opens the pool, does it, and prints what came of it: what was done before something failed, too.
fn with_pool(
    args: PoolArgs,
    act: impl AsyncFnOnce(&Pool<Etcd>, &mut String) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let config = StoreConfig::read(&args.file, args.store)?;
    let mut text = String::new();
    let done = block_on(async {
        let pool = Pool {
            store: config.open()?,
            keys: Keys::new(&config.prefix),
        };
        act(&pool, &mut text).await
    })?;
    print(&text)?;
    done.map(|()| 0)
}

fn added(address: IpAddr, is_new: bool) -> String {
    format!(
        "{address} is {}\n",
        if is_new { "added" } else { "there already" }
    )
}

fn add(args: AddressesArgs) -> Result<u8, Failure> {
    with_pool(args.pool, async |pool, out| {
        for address in args.addresses {
            out.push_str(&added(address, pool.add(address).await.map_err(refused)?));
        }
        Ok(())
    })
}

fn import_pool(args: ImportArgs) -> Result<u8, Failure> {
    with_pool(args.pool, async |pool, out| {
        let found = import::read(&args.from, pool.keys.prefix())
            .await
            .map_err(Failure::failed)?;
        let holders: BTreeSet<&str> = found.iter().filter_map(|old| old.marked.as_deref()).collect();
        if !holders.is_empty() && !args.force {
            let holders: Vec<&str> = holders.into_iter().collect();
            return Err(Failure::failed(format!(
                "nothing is imported: yaim holds some of them, on {}, and a host of ours would, too. Stop yaim there, wait for its ttl, see with `ip address` that they are \
                 gone, and try again; or --force, where no io-vip runs yet",
                holders.join(", ")
            )));
        }
        if found.is_empty() {
            out.push_str("that pool is empty\n");
        }
        for old in found {
            out.push_str(&added(old.address, pool.add(old.address).await.map_err(refused)?));
        }
        Ok(())
    })
}

fn remove(args: AddressesArgs) -> Result<u8, Failure> {
    with_pool(args.pool, async |pool, out| {
        for address in args.addresses {
            out.push_str(&match pool.remove(address).await.map_err(refused)? {
                Some(Some(node)) => format!("{address} is removed; {node} drops it\n"),
                Some(None) => format!("{address} is removed; nobody held it\n"),
                None => format!("{address} is not in the pool\n"),
            });
        }
        Ok(())
    })
}

fn list(args: ListArgs) -> Result<u8, Failure> {
    let json = args.json;
    with_pool(args.pool, async |pool, out| {
        let listing = pool.list().await.map_err(refused)?;
        out.push_str(&match json {
            true => serde_json::to_string_pretty(&listing).unwrap_or_default() + "\n",
            false => table(&listing),
        });
        Ok(())
    })
}

fn r#move(args: MoveArgs) -> Result<u8, Failure> {
    let (address, node) = (args.address, args.node);
    with_pool(args.pool, async |pool, out| {
        if !pool.prefer(address, node.as_deref()).await.map_err(refused)? {
            return Err(Failure::failed(format!(
                "{address} is not in the pool: `io-vip list` shows it, `io-vip add {address}` puts it there"
            )));
        }
        let Some(node) = &node else {
            out.push_str(&format!("{address} may be anywhere\n"));
            return Ok(());
        };
        // It is done, whether or not the store tells of the node, too.
        let listing = pool.list().await;
        let hint = listing.map_or_else(|_| String::new(), |listing| hint(&listing, address, node));
        out.push_str(&format!("{address} goes to {node}{hint}\n"));
        Ok(())
    })
}

/// What an address has to wait for before it can go to that node.
fn hint(listing: &Listing, address: IpAddr, node: &str) -> String {
    let cannot = listing.cannot.get(&address).and_then(|nodes| nodes.get(node));
    match (listing.paused.get(node), listing.nodes.contains(node), cannot) {
        (Some(why), _, _) => format!(", once that is resumed (paused: {why})"),
        (None, false, _) => ", once that is healthy: now it is not, or there is none of that name".to_owned(),
        (None, true, Some(why)) => format!(", once it can hold it there: {why}"),
        (None, true, None) => String::new(),
    }
}

fn show_status(args: &StatusArgs) -> Result<u8, Failure> {
    let fault = |error: std::io::Error| {
        Failure::failed(format!(
            "no daemon answers on {}: {error}; is io-vip running? name its socket with --socket",
            args.socket.display()
        ))
    };
    let mut stream = UnixStream::connect(&args.socket).map_err(fault)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fault)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(fault)?;
    stream.write_all(b"status\n").map_err(fault)?;
    let mut answer = String::new();
    stream
        .take(ANSWER_MAX_BYTES)
        .read_to_string(&mut answer)
        .map_err(fault)?;
    let senseless = |error: serde_json::Error| {
        Failure::failed(format!(
            "the daemon's answer makes no sense: {error}; is it of another version?"
        ))
    };
    let answer: serde_json::Value = serde_json::from_str(&answer).map_err(senseless)?;
    if args.json {
        let text = serde_json::to_string_pretty(&answer).map_err(senseless)?;
        return print(&format!("{text}\n")).map(|()| 0);
    }
    let (shown, counts): (Shown, Counts) = serde_json::from_value(answer).map_err(senseless)?;
    print(&status::text(&shown, &counts.shut)).map(|()| 0)
}
