//! The real binaries, driven from outside.

// clippy.toml allows these in tests, but does not see that the helpers of an integration test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod databases;
mod wait;
