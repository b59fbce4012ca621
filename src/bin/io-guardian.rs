//! Stand-in: only `wait`.
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use io_guardian::{cli, guardian};

#[derive(Parser)]
#[command(name = "io-guardian", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Wait(guardian::wait::WaitArgs),
}

fn main() -> ExitCode {
    cli::main(|cli: Cli| match cli.command {
        Command::Wait(args) => guardian::wait::run(&args),
    })
}
