//! `io-fence`: closes the ports of a database whose disk hangs.

use std::process::ExitCode;

use io_guardian::{cli, fence, host};

fn main() -> ExitCode {
    // Before anything is on it, the arguments included.
    host::small_heap();
    cli::main::<fence::Cli>(fence::run)
}
