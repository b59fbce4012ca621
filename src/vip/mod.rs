//! The role `io-vip`: addresses that always lead to a healthy host, and never to two.

pub mod core;
pub mod keys;
pub mod said;
pub mod share;
pub mod shown;
pub mod view;

#[cfg(feature = "etcd")]
mod command;
#[cfg(feature = "etcd")]
mod config;
#[cfg(feature = "etcd")]
mod daemon;
#[cfg(feature = "etcd")]
mod hands;
#[cfg(feature = "etcd")]
#[cfg(test)]
mod hands_tests;
#[cfg(feature = "etcd")]
mod health;
#[cfg(feature = "etcd")]
mod import;
#[cfg(feature = "etcd")]
mod log;
#[cfg(feature = "etcd")]
mod memo;
#[cfg(feature = "etcd")]
mod metrics;
#[cfg(feature = "etcd")]
mod operate;
#[cfg(feature = "etcd")]
mod run;
#[cfg(feature = "etcd")]
mod status;

#[cfg(feature = "etcd")]
pub use command::{Cli, run};
