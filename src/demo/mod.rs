//! `io-guardian demo`: the whole story on one machine, in under a minute, with no root.
//!
//! **Promise.** What is shown is real: guardians are `io-guardian serve`, dependents are processes that hold
//! connections, commands go over the wire, and connections are counted by the databases themselves. Where a database
//! is not installed, a stand-in takes its place, and that is said. What is not seen as told is a failure, and the exit
//! code is 1. However the demo ends, Ctrl-C and `kill -9` included, no process and no folder of it is left.
//!
//! **Not guaranteed.** That PostgreSQL's shared memory segment of 56 bytes (`ipcs -m`) is removed when the demo is killed
//! in the very moment in which it has killed PostgreSQL: only a new start of PostgreSQL could.
//!
//! This is a composition, as the binaries are: it puts roles together, and nothing uses it.

pub mod app;
mod children;
mod databases;
mod fleet;
mod screen;
mod stand_in;
mod story;
mod view;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use self::children::Shelter;
use self::screen::Screen;
use self::story::{Stage, Story, seconds};
use self::view::{View, Watcher, lock};
use crate::cli::{Failure, block_on};
use crate::protocol::{Keyring, PresharedKey};
use crate::units::processes::keeper::{self, Keeper};
use crate::units::processes::{adopt_orphans, children_left};

/// The longest that a part of the clean end may take.
const END_TIME: Duration = Duration::from_secs(10);

/// Arguments of `io-guardian demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// Use the built-in stand-ins even where redis-server and postgres are installed
    #[arg(long)]
    stand_ins: bool,
}

/// Tells the story.
///
/// # Errors
/// When something was not seen as told, or a signal came.
pub fn run(args: DemoArgs) -> Result<u8, Failure> {
    block_on(demo(args))?
}

async fn demo(args: DemoArgs) -> Result<u8, Failure> {
    let begun = Instant::now();
    let mut signals = Signals::new()?;
    adopt_orphans().map_err(|error| Failure::failed(format!("cannot adopt orphans: {error}")))?;
    let (root, keeper) = make_folder()?;
    let key_path = root.join("key");
    let key = make_key(&key_path)?;
    let mut stage = Stage {
        root,
        key_path,
        key,
        stand_ins: args.stand_ins,
        shelter: Shelter::new(keeper),
        databases: Vec::new(),
        guardians: Vec::new(),
    };
    let screen = Mutex::new(Screen::new());
    let told = tokio::select! {
        biased;
        name = signals.next() => Err(Failure::failed(format!("{name} came; everything is stopped and removed"))),
        told = tell(&mut stage, &screen) => told,
    };
    lock(&screen).close_table();
    let cleaned = clean(stage, &mut signals).await;
    let seen = told?;
    cleaned?;
    let mut screen = lock(&screen);
    screen.say("")?;
    screen.say("What was seen:")?;
    for fact in seen {
        screen.say(&format!("  ✓ {fact}"))?;
    }
    screen.say("  ✓ the end: no process and no folder is left")?;
    screen.say(&format!("It worked, in {}.", seconds(begun.elapsed())))?;
    Ok(0)
}

async fn tell(stage: &mut Stage, screen: &Mutex<Screen>) -> Result<Vec<String>, Failure> {
    lock(screen).say(&format!(
        "Three guardians, five dependents, two databases; all of it in {}",
        stage.root.display()
    ))?;
    let targets = Mutex::new(Vec::new());
    let databases = Mutex::new(Vec::new());
    let (sender, view) = watch::channel(View::new(Instant::now()));
    // More complaints than these between two looks are dropped.
    let (loud, complaints) = mpsc::channel(32);
    let watcher = Watcher {
        key: stage.key.clone(),
        targets: &targets,
        databases: &databases,
        screen,
        view: sender,
        loud: complaints,
    };
    let story = Story {
        stage,
        screen,
        view,
        targets: &targets,
        addresses: &databases,
        loud,
        generation: 0,
        seen: Vec::new(),
    };
    tokio::select! {
        told = story.tell() => told,
        gone = watcher.run() => Err(gone),
    }
}

/// Stops everything: in order, or at once when another signal comes.
async fn clean(mut stage: Stage, signals: &mut Signals) -> Result<(), Failure> {
    let keeper_pid = stage.shelter.pid();
    let in_order = tokio::select! {
        biased;
        _ = signals.next() => Ok(()),
        stopped = timeout(END_TIME, stage.strike()) => {
            stopped.unwrap_or_else(|_| Err(Failure::failed("not everything stopped in time; it was killed")))
        }
    };
    let Stage { root, shelter, .. } = stage;
    let finish = tokio::task::spawn_blocking(move || shelter.close());
    match timeout(keeper::PATIENCE + END_TIME, finish).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => return Err(left(&root, &error.to_string())),
        Ok(Err(error)) => return Err(left(&root, &error.to_string())),
        Err(_) => return Err(left(&root, "the keeper takes too long")),
    }
    // The guardians' own keepers end a moment after them, and what a killed PostgreSQL leaves ends by itself.
    let gone = async {
        while children_left(keeper_pid) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(END_TIME, gone).await.is_err() {
        return Err(left(&root, "a process does not end"));
    }
    in_order
}

fn left(root: &Path, why: &str) -> Failure {
    Failure::failed(format!(
        "the end was not clean: {why}; look for processes of {} and remove it",
        root.display()
    ))
}

/// The folder that holds everything, and the keeper that removes it however we end.
fn make_folder() -> Result<(PathBuf, Keeper), Failure> {
    let fault = |error: io::Error| Failure::failed(format!("cannot make a temporary folder: {error}"));
    let folder = tempfile::Builder::new()
        .prefix("io-guardian-demo-")
        .tempdir()
        .map_err(fault)?;
    // PostgreSQL runs as another user when we are root: it must get through to its own folder.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).map_err(fault)?;
    keeper::mark(folder.path()).map_err(fault)?;
    let keeper = Keeper::start(&[folder.path()])
        .map_err(|error| Failure::failed(format!("cannot start the keeper: {error}")))?;
    Ok((folder.keep(), keeper))
}

fn make_key(path: &Path) -> Result<PresharedKey, Failure> {
    let fault = |error: io::Error| Failure::failed(format!("cannot make a key: {error}"));
    let mut random = [0_u8; 32];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .map_err(fault)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(fault)?;
    Keyring::read(&[path])
        .map(|keys| keys.first().clone())
        .map_err(Failure::failed)
}

/// The signals that end the demo.
struct Signals([(Signal, &'static str); 3]);

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::failed(format!("cannot listen to signals: {error}")))
        };
        Ok(Self([
            (listen(SignalKind::interrupt())?, "SIGINT"),
            (listen(SignalKind::terminate())?, "SIGTERM"),
            (listen(SignalKind::hangup())?, "SIGHUP"),
        ]))
    }

    /// The next one, by name.
    async fn next(&mut self) -> &'static str {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.0.recv() => interrupt.1,
            _ = terminate.0.recv() => terminate.1,
            _ = hangup.0.recv() => hangup.1,
        }
    }
}
