//! The guardian: on each host with dependents, it stops and starts them when a coordinator says so.
//!
//! **Promise.** An `ok` to a drain means that no dependent process runs. `ping` and `status` are answered at all
//! times, during a drain too. Strangers cannot use up what peers need, and learn nothing. A second drain joins
//! the first, an undrain supersedes it, and every command gets exactly one answer.
//!
//! **Not promised yet.** A guardian does nothing without a coordinator's command.
//!
//! The decisions are in [`operations`] (what to do), [`session`] (what a frame means) and [`admission`] (who may
//! be connected), with no clock and no socket; the rest is their shell.

pub mod admission;
pub mod config;
mod connection;
mod keys;
mod line;
mod log_budget;
mod manager;
pub mod memory;
pub mod operations;
mod serve;
mod server;
pub mod session;
pub mod wait;

pub use config::ServeArgs;
pub use serve::run as serve;
