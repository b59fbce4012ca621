//! The real binaries, driven from outside.

mod databases;
mod wait;
