//! The command line of `io-fence`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::config::{Config, FileArgs, FolderArgs, MonitorArgs, SOCKET, SeedArgs, TimeArgs};
use super::core::Target;
use super::run as daemon;
use super::status::{FolderStatus, Status};
use super::wire::{Answer, Request, line};
use crate::cli::{Failure, PageCommand, age, print, print_page};
use crate::host::Ports;

/// How long the monitor may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

const HELP: &str = "\
A DURATION is 500ms, 5s or 1m 30s; a bare number is seconds, but not in the file.

Exit codes: 0 done, or ended by a signal; 1 failed at run time; 64 wrong command line; 78 wrong configuration.";

/// Closes the ports of a database whose disk hangs, and opens them when it is back.
#[derive(Parser)]
#[command(name = "io-fence", version, about, after_help = HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch folders and fence their ports, in one process
    #[command(after_help = HELP)]
    Run(Box<RunArgs>),
    /// Fence only: reporters tell it of folders over its socket
    #[command(after_help = HELP)]
    Monitor(Box<MonitorOnlyArgs>),
    /// Watch folders only, and report to a monitor
    #[command(after_help = HELP)]
    Reporter(Box<ReporterArgs>),
    /// Show each folder: open or fenced, since when, why, its ports, its last beat, its p99
    Status(StatusArgs),
    /// Fence by hand; it stays so until `unfence`, over restarts of the monitor too
    Fence(FenceArgs),
    /// Undo a fence that was made by hand
    Unfence(UnfenceArgs),
    #[command(flatten)]
    Page(PageCommand),
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    times: TimeArgs,
    #[command(flatten)]
    monitor: MonitorArgs,
    #[command(flatten)]
    seed: SeedArgs,
}

#[derive(Args)]
struct MonitorOnlyArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    times: TimeArgs,
    #[command(flatten)]
    monitor: MonitorArgs,
    #[command(flatten)]
    seed: SeedArgs,
}

#[derive(Args)]
struct ReporterArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    times: TimeArgs,
    #[command(flatten)]
    seed: SeedArgs,
}

#[derive(Args)]
struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The Unix socket of the monitor
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

#[derive(Args)]
struct TargetArgs {
    /// The ports of this folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ports", "udp_ports"], required_unless_present_any = ["ports", "udp_ports"])]
    folder: Option<String>,
    /// These TCP ports
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// These UDP ports
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    udp_ports: Vec<u16>,
    /// The Unix socket of the monitor
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

impl TargetArgs {
    fn target(&self) -> Target {
        match &self.folder {
            Some(folder) if folder.len() > 1 => Target::Folder(folder.trim_end_matches('/').to_owned()),
            Some(folder) => Target::Folder(folder.clone()),
            None => Target::Ports(Ports::new(
                self.ports.iter().copied(),
                self.udp_ports.iter().copied(),
            )),
        }
    }
}

#[derive(Args)]
struct FenceArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Why, for whoever looks at the status
    #[arg(long, value_name = "TEXT", default_value = "no reason was given")]
    reason: String,
}

#[derive(Args)]
struct UnfenceArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// Runs it.
///
/// # Errors
/// With an exit code, and what to do.
pub fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Run(args) => {
            args.seed.refuse()?;
            let config = Config::read(&args.file, &args.folder, &args.times, &args.monitor)?;
            some_folder(&config)?;
            match args.file.check_config {
                true => fine(&config),
                false => daemon::monitor(config, true),
            }
        }
        Command::Monitor(args) => {
            args.seed.refuse()?;
            let config = Config::read(&args.file, &FolderArgs::default(), &args.times, &args.monitor)?;
            match args.file.check_config {
                true => fine(&config),
                false => daemon::monitor(config, false),
            }
        }
        Command::Reporter(args) => {
            args.seed.refuse()?;
            let config = Config::read(&args.file, &args.folder, &args.times, &MonitorArgs::default())?;
            some_folder(&config)?;
            match args.file.check_config {
                true => fine(&config),
                false => daemon::report(config),
            }
        }
        Command::Status(args) => status(&args),
        Command::Fence(args) => tell(
            &args.target.socket,
            &Request::Fence {
                target: args.target.target(),
                reason: args.reason,
            },
        ),
        Command::Unfence(args) => tell(
            &args.target.socket,
            &Request::Unfence {
                target: args.target.target(),
            },
        ),
        Command::Page(page) => print_page::<Cli>(&page),
    }
}

fn some_folder(config: &Config) -> Result<(), Failure> {
    if config.folders.is_empty() {
        return Err(Failure::usage(
            "no folder to watch: name it with --monitor DIR --ports 5432, or with [[folder]] in the file of --config",
        ));
    }
    Ok(())
}

fn fine(config: &Config) -> Result<u8, Failure> {
    let absent = config
        .folders
        .iter()
        .filter(|folder| !Path::new(&folder.path).is_dir());
    let absent: Vec<_> = absent
        .map(|folder| format!("; {} is no folder yet", folder.path))
        .collect();
    print(&format!("the configuration is fine{}\n", absent.concat()))?;
    Ok(0)
}

/// The line that the monitor answers.
fn ask(socket: &Path, request: &Request) -> Result<String, Failure> {
    let fault = |error: std::io::Error| {
        Failure::failed(format!(
            "no monitor answers on {}: {error}; is io-fence running? name its socket with --socket",
            socket.display()
        ))
    };
    let mut stream = UnixStream::connect(socket).map_err(fault)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fault)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(fault)?;
    stream.write_all(&line(request)).map_err(fault)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).map_err(fault)?;
    if answer.is_empty() {
        return Err(fault(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(answer)
}

fn senseless(error: serde_json::Error) -> Failure {
    Failure::failed(format!(
        "the monitor's answer makes no sense: {error}; is it of another version?"
    ))
}

fn tell(socket: &Path, request: &Request) -> Result<u8, Failure> {
    match serde_json::from_str(&ask(socket, request)?).map_err(senseless)? {
        Answer::Ok(text) => print(&format!("{text}\n")).map(|()| 0),
        Answer::Error(text) => Err(Failure::failed(text)),
    }
}

fn status(args: &StatusArgs) -> Result<u8, Failure> {
    let answer = ask(&args.socket, &Request::Status {})?;
    let status: Status = serde_json::from_str(&answer).map_err(senseless)?;
    if args.json {
        let text = serde_json::to_string_pretty(&status).map_err(senseless)?;
        return print(&format!("{text}\n")).map(|()| 0);
    }
    print(&shown(&status)).map(|()| 0)
}

fn shown(status: &Status) -> String {
    let mut out = String::new();
    for folder in &status.folders {
        out.push_str(&shown_folder(folder));
    }
    for hand in &status.by_hand {
        let what = match &hand.target {
            Target::Folder(folder) => folder.clone(),
            Target::Ports(_) => "ports".to_owned(),
        };
        out.push_str(&format!(
            "by hand: {what}: {} since {}: {}\n",
            hand.ports,
            age(hand.since_ms),
            hand.reason
        ));
    }
    if !status.unknown.is_empty() {
        out.push_str(&format!(
            "fenced when the monitor started, and nobody knows why: {}; open them with `io-fence unfence --ports`\n",
            status.unknown
        ));
    }
    out.push_str(&format!("fenced: {}\n", status.fenced));
    if status.pending {
        out.push_str("the kernel has refused the last change; it is tried again, and the log says why\n");
    }
    if !status.table_owned {
        out.push_str("others can change our nftables table: this kernel has no owner and persist for it\n");
    }
    if !status.memory_locked {
        out.push_str(
            "memory is not locked: a stall of the disk that has this program could stop the monitor\n",
        );
    }
    out
}

fn shown_folder(folder: &FolderStatus) -> String {
    let mut out = format!(
        "{}: {} since {}",
        folder.folder,
        folder.state,
        age(folder.since_ms)
    );
    if let Some(why) = &folder.why {
        out.push_str(&format!(": {why}"));
    }
    out.push_str(&format!("\n    ports {}", folder.ports));
    out.push_str(&match folder.last_beat_ms {
        Some(ms) => format!("; last beat {} ago", age(ms)),
        None => "; it has never beaten".to_owned(),
    });
    if let Some(us) = folder.p99_us {
        out.push_str(&format!("; p99 {:.1} ms", us as f64 / 1_000.0));
    }
    if folder.busy {
        out.push_str("; the disk is busy: it completes others' writes, so nothing is fenced yet");
    }
    if folder.spared > 0 {
        out.push_str(&format!("; {} times late on a busy disk", folder.spared));
    }
    if !folder.watched {
        out.push_str("; no reporter watches it");
    }
    out.push('\n');
    out
}
