//! The thread that ends connections: it may hang with a process that a disk holds, so it is not the monitor's own.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::host::{Network, Ports, cut_established, local_addresses, spawn_apart};

/// Stack of the thread.
const STACK: usize = 48 << 10;
/// Cuts that wait. One that finds no place is lost, and the fence stands without it.
const QUEUE: usize = 64;
/// A connection that was being accepted while the rules were made is found by a second look.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// Takes what is to be cut.
#[derive(Clone, Debug)]
pub(super) struct Cutter(SyncSender<Ports>);

impl Cutter {
    pub(super) fn start(allowed: Vec<Network>) -> io::Result<Self> {
        let (to_cut, wanted) = sync_channel(QUEUE);
        spawn_apart("cut", STACK, None, move |_| cut_all(&wanted, &allowed))?;
        Ok(Self(to_cut))
    }

    /// Ends the connections of these ports, some time soon.
    pub(super) fn cut(&self, ports: Ports) {
        if self.0.try_send(ports).is_err() {
            tracing::error!(
                "connections are not ended: the thread that does it hangs; the fence stands, and idle clients learn of it when they send"
            );
        }
    }
}

fn cut_all(wanted: &Receiver<Ports>, allowed: &[Network]) {
    // The kernel loads what it needs now, and not from the disk that hangs.
    if let Err(error) = cut_established(&Ports::default(), allowed, &[]) {
        tracing::warn!(%error, "the kernel does not tell of connections (sock_diag): they cannot be ended; idle clients learn of a fence when they send");
    }
    while let Ok(ports) = wanted.recv() {
        cut(&ports, allowed);
        let _ = wanted.recv_timeout(SECOND_LOOK).map(|more| cut(&more, allowed));
        cut(&ports, allowed);
    }
}

fn cut(ports: &Ports, allowed: &[Network]) {
    match cut_established(ports, allowed, &local_addresses()) {
        Ok(cutting) => {
            if cutting.ended > 0 {
                tracing::info!(
                    ports = ports.to_string(),
                    connections = cutting.ended,
                    "ended connections"
                );
            }
            if let Some(errno) = cutting.errno {
                tracing::warn!(
                    ports = ports.to_string(),
                    connections = cutting.refused,
                    error = %io::Error::from_raw_os_error(errno),
                    "connections could not be ended (does the kernel have CONFIG_INET_DIAG_DESTROY?); their clients learn of the fence when they send"
                );
            }
        }
        Err(error) => tracing::warn!(ports = ports.to_string(), %error, "connections could not be ended"),
    }
}
