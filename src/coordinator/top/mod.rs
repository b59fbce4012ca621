//! `io-coordinator top`: the fleet on a terminal, as it changes. `screen` decides what is shown; this is its shell.

mod screen;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event as TerminalEvent};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use self::screen::{Done, Screen, plain};
use super::fleet::{Fleet, Followed, LinkState, follow};
use super::run::Plan;
use crate::cli::{self, Failure, unix_milliseconds};

/// How often what is shown is drawn again although nothing has changed: the ages of things grow.
const TICK: Duration = Duration::from_secs(1);
/// Changes that come closer together than this are drawn as one.
const FRAME: Duration = Duration::from_millis(50);

/// Follows the targets of `plan`, whose key came from `files`, until a key or a signal ends it. With `once`, and where there is no
/// terminal: until each host was heard or missed, or the time of the plan is over; then prints a table.
///
/// # Errors
/// When the terminal cannot be used.
pub async fn top(plan: Plan, files: Vec<PathBuf>, once: bool) -> Result<u8, Failure> {
    let names = plan.targets.iter().map(|target| target.name.clone());
    let fleet = Fleet::new(names, unix_milliseconds());
    let followed = follow(&plan, &files);
    if once || !std::io::stdout().is_terminal() {
        return print_once(fleet, followed, plan.connect_timeout).await;
    }
    let fault = |error: std::io::Error| {
        Failure::failed(format!("cannot use this terminal: {error}; `--once` needs none"))
    };
    let mut terminal = ratatui::try_init().map_err(fault)?;
    let ended = follow_on(&mut terminal, fleet, followed).await.map_err(fault);
    ratatui::restore();
    ended.map(|()| 0)
}

async fn print_once(mut fleet: Fleet, mut followed: Followed, patience: Duration) -> Result<u8, Failure> {
    let until = Instant::now() + patience;
    let is_open = |fleet: &Fleet| {
        fleet.hosts().iter().any(|host| {
            host.link == LinkState::Connecting
                || host.link == LinkState::Open && host.target.is_none() && host.fault.is_none()
        })
    };
    while is_open(&fleet) {
        let Ok(Some((at, event))) = timeout_at(until, followed.events.recv()).await else {
            break;
        };
        fleet.on(unix_milliseconds(), at, event);
    }
    cli::print(&plain(&fleet, unix_milliseconds()))?;
    Ok(0)
}

async fn follow_on(
    terminal: &mut ratatui::DefaultTerminal,
    mut fleet: Fleet,
    mut followed: Followed,
) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (to_keys, mut keys) = mpsc::channel(16);
    // It ends with the process: nothing wakes a read of a terminal.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if to_keys.blocking_send(event).is_err() {
                break;
            }
        }
    });
    let mut screen = Screen::new(std::env::var_os("NO_COLOR").is_none());
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stale = true;
    let mut drawn = Instant::now();
    loop {
        let now = Instant::now();
        if stale && now >= drawn {
            terminal.draw(|frame| screen.draw(frame, &fleet, unix_milliseconds()))?;
            stale = false;
            drawn = now + FRAME;
        }
        tokio::select! {
            Some((at, event)) = followed.events.recv() => {
                fleet.on(unix_milliseconds(), at, event);
                stale = true;
            }
            key = keys.recv() => match key {
                Some(TerminalEvent::Key(key)) => {
                    if screen.on_key(key, &fleet) == Done::Yes {
                        return Ok(());
                    }
                    (stale, drawn) = (true, now);
                }
                Some(_) => stale = true,
                None => return Ok(()),
            },
            _ = tick.tick() => stale = true,
            () = tokio::time::sleep_until(drawn), if stale => {}
            _ = terminate.recv() => return Ok(()),
        }
    }
}
