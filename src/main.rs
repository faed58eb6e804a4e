//! The `qwentune` program: a thin layer over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    qwentune::command_line(std::env::args_os().collect())
}
