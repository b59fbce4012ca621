//! What we change on a host, and what protects us from it: ports that the kernel closes, connections that it ends, addresses that it answers for as long
//! as it was told, memory that stays where it is, threads that a disk may hold.
//!
//! **Promise.** Only what is ours is touched: the nftables tables [`TABLE`] and [`DOOR_TABLE`], addresses with our mark, and sockets of ports that we were told to
//! close. No process is spawned, and no file on a disk is opened: each is a message to the kernel, which is answered before the call returns.
//!
//! **Not promised.** Another process may hold the kernel's own lock for nftables while it loads rules; then we wait for it.

#[cfg(test)]
mod address_tests;
mod address_watch;
mod addresses;
mod announce;
mod apart;
mod ask;
mod clock;
mod door;
mod door_install;
mod door_rules;
#[cfg(test)]
mod door_tests;
#[cfg(test)]
pub(crate) mod lab;
mod memory;
mod netlink;
mod network;
mod nft;
mod nft_messages;
mod nft_rules;
mod nft_socket;
mod ports;
mod readable;
mod route;
mod sockets;

pub use address_watch::{AddressEvent, AddressWatch, LinkState};
#[cfg(test)]
pub(crate) use addresses::IS_OLD;
pub use addresses::{AddressError, AddressSettings, Addresses, Holder};
pub use announce::Announcer;
pub use apart::spawn_apart;
pub use ask::ask_neighbours;
pub use clock::{BootTimer, boottime};
pub use door::{DOOR_TABLE, Door, DoorError};
pub use memory::{LockError, lock_memory, small_heap};
pub use network::{Network, NetworkError, local_addresses};
pub use nft::{Rules, TABLE, Table, TableError};
pub use ports::Ports;
pub use route::Link;
pub use sockets::{Cutting, cut_established};
