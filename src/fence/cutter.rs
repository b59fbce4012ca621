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
        spawn_apart("cut", STACK, None, move |_| {
            // The kernel loads what it needs now, and not from the disk that hangs.
            if let Err(error) = cut_established(&Ports::default(), &allowed, &[]) {
                tracing::warn!(%error, "the kernel does not tell of connections (sock_diag): they cannot be ended; idle clients learn of a fence when they send");
            }
            cut_all(&wanted, |ports| cut(ports, &allowed));
        })?;
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

fn cut_all(wanted: &Receiver<Ports>, mut cut: impl FnMut(&Ports)) {
    while let Ok(mut ports) = wanted.recv() {
        cut(&ports);
        // Each has its second look, and none too soon.
        while let Ok(more) = wanted.recv_timeout(SECOND_LOOK) {
            cut(&more);
            ports.add(&more);
        }
        cut(&ports);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_soon_after_another_cut_has_its_second_look_too() {
        let (to_cut, wanted) = sync_channel(QUEUE);
        for port in [5432, 6379] {
            to_cut.send(Ports::new([port], [])).unwrap();
        }
        drop(to_cut);
        let mut cuts = Vec::new();
        cut_all(&wanted, |ports| cuts.push(ports.clone()));
        assert_eq!(
            cuts,
            [
                Ports::new([5432], []),
                Ports::new([6379], []),
                Ports::new([5432, 6379], [])
            ]
        );
    }
}
