//! io-guardian keeps everything that depends on a database in step with that database.
//!
//! A *coordinator* beside the databases tells the *guardians* of all other hosts to drain before the databases
//! go, and to undrain when they are really back. A guardian answers when it is true, not when it is asked for:
//! an `ok` to a drain means that no dependent process is running.
//!
//! # Rooms
//!
//! Shared rooms, which no role owns:
//! - [`protocol`]: the messages, the key and the limits of the wire. Types and pure functions.
//! - [`units`]: control of what depends on the databases: systemd over D-Bus, or child processes.
//! - [`probe`]: is this database ready? PostgreSQL and Redis, each asked in its own protocol. Is this node healthy? HTTP,
//!   PostgreSQL, Redis, TCP or a command, counted.
//! - [`host`]: what we change on a host: ports that the kernel closes, connections that it ends, addresses that it answers for; and memory and threads
//!   that no disk can hold.
//! - [`store`]: what more than one machine must agree on: leases, compare-and-set, watches; etcd, or memory.
//! - [`telemetry`]: logs, figures over HTTP, and what the service manager is told.
//! - [`cli`]: durations, addresses, exit codes, one printer for all failures, completions and man pages.
//!
//! Roles, which meet only through the wire, the store and systemd:
//! - [`guardian`]: `io-guardian serve` on each host with dependents, and `io-guardian wait`.
//! - [`coordinator`]: `io-coordinator` on the host of the databases.
//! - [`fence`]: `io-fence` on the host of the databases: a disk that hangs closes their ports.
//! - [`vip`]: `io-vip` on each host that may hold addresses of a pool: each has one holder, and it is healthy.
//!
//! - [`demo`] is no role: like the binaries it puts roles together, and nothing uses it.
//!
//! **The rule.** A role may use the shared rooms; no role uses another role; a shared room uses no role.
//! `tests/rooms.rs` reads the source and holds us to it.

pub mod cli;
pub mod coordinator;
pub mod demo;
pub mod fence;
pub mod guardian;
pub mod host;
pub mod probe;
pub mod protocol;
pub mod store;
pub mod telemetry;
pub mod units;
pub mod vip;
