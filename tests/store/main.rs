//! The store, against what it promises: one set of tests for every store, and a real etcd with its faults.

// The whole file is a test; clippy.toml's permission covers only what is inside of one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "etcd")]
mod cluster;
// A store of this crate that is only there with a feature may be the only one that uses it.
#[allow(dead_code)]
mod conformance;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod faults;
#[cfg(feature = "etcd")]
mod identity;
#[cfg(feature = "etcd")]
mod strangers;
