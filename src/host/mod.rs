//! What we change on a host, and what protects us from it: ports that the kernel closes, connections that it ends, memory that stays where it
//! is, threads that a disk may hold.
//!
//! **Promise.** Only what is ours is touched: the nftables table [`TABLE`], and sockets of ports that we were told to close. No process is spawned, and
//! no file on a disk is opened: each is a message to the kernel, which is answered before the call returns.
//!
//! **Not promised.** Another process may hold the kernel's own lock for nftables while it loads rules; then we wait for it.

mod apart;
mod memory;
mod netlink;
mod network;
mod nft;
mod nft_messages;
mod nft_rules;
mod nft_socket;
mod ports;
mod sockets;

pub use apart::spawn_apart;
pub use memory::{LockError, lock_memory, small_heap};
pub use network::{Network, NetworkError, local_addresses};
pub use nft::{Rules, TABLE, Table, TableError};
pub use ports::Ports;
pub use sockets::{Cutting, cut_established};
