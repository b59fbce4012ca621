//! The real binaries, driven from outside. One test binary, so that it is linked once.

// The whole file is a test; clippy.toml's permission covers only what is inside of one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "tls")]
mod certificates;
mod checks;
#[cfg(feature = "tls")]
mod checks_tls;
mod coordinator;
mod databases;
mod demo;
mod fence;
mod guardian;
mod processes;
mod sealed;
mod wait;
