//! The guardian's command line: arguments, and nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use io_guardian::cli::{self, PageCommand};
use io_guardian::guardian;

/// Stops what depends on the databases before they go, and starts it when they are back.
#[derive(Parser)]
#[command(name = "io-guardian", version, about, after_help = cli::EXIT_CODES_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Guard this host: listen for a coordinator, drain and undrain
    Serve(guardian::ServeArgs),
    #[command(flatten)]
    Page(PageCommand),
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| match arguments.command {
        Command::Serve(args) => guardian::serve(args),
        Command::Page(page) => cli::print_page::<Arguments>(&page),
    })
}
