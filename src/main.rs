//! The `qwentune` program: a thin layer over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    qwentune::cli::main(std::env::args_os().collect())
}
