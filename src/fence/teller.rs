//! The thread that tells the service manager: its socket may be full while the service manager itself waits for a disk.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::host::spawn_apart;
use crate::telemetry::notify;

/// Stack of the thread.
const STACK: usize = 48 << 10;

#[derive(Debug)]
enum News {
    Ready(String),
    Status(String),
    Alive,
}

/// Takes news. What finds no place is lost.
#[derive(Clone, Debug)]
pub(super) struct Teller(SyncSender<News>);

impl Teller {
    pub(super) fn start() -> io::Result<Self> {
        let (to_tell, news) = sync_channel(8);
        spawn_apart("tell", STACK, None, move |_| {
            for news in news {
                match news {
                    News::Ready(status) => notify::ready(&status),
                    News::Status(status) => notify::status(&status),
                    News::Alive => notify::watchdog(),
                }
            }
        })?;
        Ok(Self(to_tell))
    }

    pub(super) fn ready(&self, status: String) {
        let _ = self.0.try_send(News::Ready(status));
    }

    pub(super) fn status(&self, status: String) {
        let _ = self.0.try_send(News::Status(status));
    }

    /// The monitor makes progress: to be called by the monitor only.
    pub(super) fn alive(&self) {
        let _ = self.0.try_send(News::Alive);
    }
}
