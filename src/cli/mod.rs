//! The command line: words in, text and an exit status out. It holds no logic a user of the library would miss.

pub mod commands;
pub mod dialect;
mod doctor;
mod signals;
mod tokenize;
mod training;

use crate::error::{Error, Kind, Result};
use crate::report::console::{complain, say};
use clap::ArgMatches;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program; errors are printed and become exit statuses.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("no message").replace('\n', " ");
        complain(&format!("internal error: {text}{place}; please report this line and the command"));
    }));
    match std::panic::catch_unwind(|| run(args)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            let prefix = if error.kind == Kind::Stopped { "" } else { "error: " };
            complain(&format!("{prefix}{error}"));
            ExitCode::from(error.exit_code())
        }
        Err(_) => ExitCode::from(Kind::Check as u8),
    }
}

/// Runs one command line.
///
/// # Errors
/// Whatever the command ends with; its kind is the exit status.
pub fn run(args: Vec<OsString>) -> Result<()> {
    let command_line: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut translated = dialect::translate(args)?;
    let matches = match commands::program().try_get_matches_from(&translated.words) {
        Ok(matches) => matches,
        Err(error) => {
            say(commands::explain(&error)?.trim_end());
            return Ok(());
        }
    };
    let warnings = &mut translated.warnings;
    match matches.subcommand() {
        Some(("train", m)) => training::train(m, warnings, command_line),
        Some(("resume", m)) => training::resume(m, warnings, command_line),
        Some(("plan", m)) => training::plan(m, warnings),
        Some(("tokenize", m)) => tokenize::tokenize(m),
        Some(("doctor", _)) => doctor::doctor(),
        _ => Err(Error::usage("a command is missing").hint("qwentune --help lists them")),
    }
}

/// Prints warnings that came up while reading the command line.
fn show(warnings: &[String]) {
    for warning in warnings {
        complain(&format!("warning: {warning}"));
    }
}

/// The value of a flag that is no setting.
fn option<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.try_get_one::<String>(name).ok().flatten().map(String::as_str)
}
