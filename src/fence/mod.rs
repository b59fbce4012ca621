//! `io-fence`: a disk that hangs must not look like a database that is slow.
//!
//! A *reporter* for each folder beats while what it writes there reaches the disk. The *monitor*, which depends on no disk, closes
//! the folder's ports when the beats stop, and opens them when they are back for a while.
//!
//! **Promise.** From a stall to the fence at most the heartbeat (and the time of one timer); a disk that completes others' writes is not stalled, and
//! fenced at the busy limit. Ports are never opened while any folder that shares them is stalled, nor while somebody has closed them by hand, nor because a monitor was restarted. Only our own nftables
//! table is touched, and no process is started. The monitor, once it runs, waits for no disk, no log and no bus.
//!
//! **Not promised.** A disk that loses what it has acknowledged is not noticed beyond the block that is read back. Packets that are forwarded (a
//! container with a network of its own) do not come by: the fence is for sockets of this host.

pub mod command;
mod config;
mod core;
mod cutter;
mod device;
mod disk;
mod events;
mod latency;
mod memo;
mod metrics;
mod monitor;
mod patience;
mod peers;
mod reporter;
mod run;
mod starter;
mod status;
mod teller;
mod wire;

pub use command::{Cli, run};
