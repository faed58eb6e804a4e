//! The command line.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program; errors are printed and become exit statuses.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    let _ = args;
    ExitCode::from(2)
}
