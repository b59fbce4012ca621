//! Logs, figures, and what the service manager is told.
//!
//! Logs go to standard error. Under a journal each line carries its level as systemd's `<N>` prefix and no time
//! (the journal has both); on a terminal it carries them itself. `RUST_LOG` chooses what is shown
//! (`io_guardian=debug`); without it everything from `info` on is.

mod audit;
pub mod http;
mod log_budget;
mod lossy;
pub mod metrics;
pub mod notify;

pub use audit::audit;
pub use log_budget::LogBudget;
pub use lossy::Lossy;

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, layer::SubscriberExt, registry, util::SubscriberInitExt};

/// Starts logging. `journal` says whether standard error is a journal ([`stderr_is_journal`]).
///
/// A second call does nothing: the first one wins.
pub fn start(journal: bool) {
    start_with(journal, std::io::stderr);
}

/// The same for a daemon that must not wait for whoever reads its log: lines that are not taken in time are lost, counted, and the loss is said.
///
/// # Errors
/// When there can be no thread that writes.
pub fn start_lossy(journal: bool) -> std::io::Result<Lossy> {
    let lossy = Lossy::start()?;
    start_with(journal, lossy.clone());
    Ok(lossy)
}

fn start_with<W>(journal: bool, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let _ = audit::IS_JOURNAL.set(journal);
    // `Targets` and not `EnvFilter`: the latter brings a regular expression engine, a megabyte in every daemon.
    let chosen = std::env::var("RUST_LOG")
        .ok()
        .map(|text| (text.parse::<Targets>(), text));
    let filter = match &chosen {
        Some((Ok(filter), _)) => filter.clone(),
        _ => Targets::new().with_default(Level::INFO),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let started = if journal {
        let lines = lines.with_ansi(false).event_format(JournalLine);
        registry().with(lines.with_filter(filter)).try_init()
    } else {
        let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        registry()
            .with(lines.with_target(false).with_ansi(ansi).with_filter(filter))
            .try_init()
    };
    if let (Ok(()), Some((Err(error), text))) = (started, chosen) {
        tracing::warn!(%error, "RUST_LOG={text:?} is ignored; write for example io_guardian=debug");
    }
}

/// Whether standard error is connected to the journal: systemd says so in `$JOURNAL_STREAM`
/// (systemd.exec(5)), as device and inode.
pub fn stderr_is_journal() -> bool {
    use std::os::fd::AsFd;
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else {
        return false;
    };
    nix::sys::stat::fstat(std::io::stderr().as_fd()).is_ok_and(|s| s.st_dev == device && s.st_ino == inode)
}

/// One line for the journal: `<6>message field=value`.
struct JournalLine;

impl<S, N> FormatEvent<S, N> for JournalLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut w: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // sd-daemon(3): SD_ERR, SD_WARNING, SD_INFO, SD_DEBUG.
        let level = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(w, "<{level}>")?;
        ctx.field_format().format_fields(w.by_ref(), event)?;
        writeln!(w)
    }
}
