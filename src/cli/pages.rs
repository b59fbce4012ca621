//! Completions and man pages, made from the same definition as the command line itself.

use std::io;

use clap::{Command, CommandFactory, Subcommand};
use clap_complete::Shell;

use super::{Failure, print};

/// The two subcommands that every binary has.
#[derive(Subcommand, Clone, Debug)]
pub enum PageCommand {
    /// Print completions for a shell; bash reads them from /etc/bash_completion.d
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the man page; `| man -l -` shows it
    Man,
}

/// Prints what `page` asks for, for the binary whose arguments are `P`.
pub fn print_page<P: CommandFactory>(page: &PageCommand) -> Result<u8, Failure> {
    let mut command = P::command();
    let mut out = Vec::new();
    match page {
        PageCommand::Completions { shell } => {
            let name = command.get_name().to_owned();
            clap_complete::generate(*shell, &mut command, name, &mut out);
        }
        PageCommand::Man => man(command, &mut out)
            .map_err(|error| Failure::failed(format!("cannot write the man page: {error}")))?,
    }
    print(&String::from_utf8_lossy(&out)).map(|()| 0)
}

/// One page for the binary, with the options of each subcommand: one `man io-guardian` answers everything.
fn man(mut command: Command, out: &mut Vec<u8>) -> io::Result<()> {
    command.build();
    clap_mangen::Man::new(command.clone()).render(out)?;
    for sub in command
        .get_subcommands()
        .filter(|s| !s.is_hide_set() && s.get_name() != "help")
    {
        let heading = format!("{} {}", command.get_name(), sub.get_name()).to_uppercase();
        out.extend_from_slice(format!(".SH \"{heading}\"\n").as_bytes());
        let page = clap_mangen::Man::new(sub.clone());
        page.render_description_section(out)?;
        page.render_options_section(out)?;
    }
    Ok(())
}
