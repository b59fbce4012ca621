//! `io-coordinator`: tells the guardians of a fleet to drain and undrain.

use std::process::ExitCode;

use io_guardian::{cli, coordinator};

fn main() -> ExitCode {
    cli::main::<coordinator::command::Cli>(coordinator::command::run)
}
