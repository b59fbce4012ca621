//! The guardian: on each host with dependents, it stops and starts them when a coordinator says so.
//!
//! **Promise.** An `ok` to a drain means that no dependent process runs. `ping` and `status` are answered at all
//! times, during a drain too. Strangers cannot use up what peers need, and learn nothing. A second drain joins
//! the first, an undrain supersedes it, and every command gets exactly one answer.
//!
//! With databases to ask, it repairs what messages missed: it drains when they are lost and nobody said so, and undrains when they
//! are back. A hold keeps the host down against all of that.
//!
//! The decisions are in [`core`] (what is wanted), [`operations`] (what is under way), [`session`] (what a frame means) and
//! [`admission`] (who may be connected), with no clock and no socket; the rest is their shell.

pub mod admission;
pub mod config;
mod connection;
pub mod core;
pub mod databases;
mod keys;
mod line;
mod manager;
pub mod memory;
mod metrics;
pub mod operations;
mod publish;
mod serve;
mod server;
pub mod session;
pub mod wait;
pub mod watch;

pub use config::ServeArgs;
pub use serve::run as serve;
