//! Logs, and what the service manager is told.
//!
//! Logs go to standard error. Under a journal each line carries its level as systemd's `<N>` prefix and no time
//! (the journal has both); on a terminal it carries them itself. `RUST_LOG` chooses what is shown
//! (`io_guardian=debug`); without it everything from `info` on is.

pub mod notify;

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging. `journal` says whether standard error is a journal ([`stderr_is_journal`]).
///
/// A second call does nothing: the first one wins.
pub fn start(journal: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = if journal {
        builder
            .with_ansi(false)
            .event_format(JournalLine)
            .try_init()
            .map_err(|_| ())
    } else {
        let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        builder
            .with_target(false)
            .with_ansi(ansi)
            .try_init()
            .map_err(|_| ())
    };
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
