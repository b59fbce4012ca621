//! `io-vip`: addresses that always lead to a healthy host, and never to two.

use std::process::ExitCode;

use io_guardian::{cli, vip};

fn main() -> ExitCode {
    cli::main::<vip::Cli>(vip::run)
}
