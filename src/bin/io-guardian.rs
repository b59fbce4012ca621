//! The guardian's command line: arguments, and nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use io_guardian::cli::{self, PageCommand};
use io_guardian::units::processes::keeper;
use io_guardian::{demo, guardian};

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
    Serve(Box<guardian::ServeArgs>),
    /// Wait until databases really answer
    Wait(guardian::wait::WaitArgs),
    /// See the whole story on this machine, with databases and services of its own; needs no root
    Demo(demo::DemoArgs),
    /// A dependent of the demo
    #[command(hide = true)]
    DemoApp(demo::app::AppArgs),
    /// Cleans up after whoever started it
    #[command(hide = true)]
    Keeper(keeper::KeeperArgs),
    #[command(flatten)]
    Page(PageCommand),
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| match arguments.command {
        Command::Serve(args) => guardian::serve(*args),
        Command::Wait(args) => guardian::wait::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::DemoApp(args) => demo::app::run(args),
        Command::Keeper(args) => keeper::run(args),
        Command::Page(page) => cli::print_page::<Arguments>(&page),
    })
}
