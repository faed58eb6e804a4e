//! The command line: words in, text and an exit status out. It holds no logic a user of the library would miss.

mod bench;
#[cfg(feature = "text")]
mod chat;
mod checkpoint;
pub mod commands;
mod completions;
pub mod dialect;
mod doctor;
mod evaluate;
mod exchange;
#[cfg(feature = "text")]
mod generate;
mod inference;
mod init;
mod merge;
#[cfg(feature = "text")]
mod preview;
mod report;
mod selftest;
mod signals;
#[cfg(feature = "text")]
mod tokenize;
mod training;

#[cfg(feature = "internals")]
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::report::console::{complain, lost_output, say};
use clap::ArgMatches;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program; errors are printed and become exit statuses.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no message").replace('\n', " ");
        complain(&format!("internal error: {text}{place}; please report this line and the command"));
    }));
    crate::sys::ignore_file_size_signal();
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

/// Whether all that was printed arrived, at the end of a command that did all else. What a run prints is a log; its
/// results are in its folder.
fn check_output(is_log: bool) -> Result<()> {
    let Some(e) = lost_output() else { return Ok(()) };
    let what = format!("cannot write to standard output: {e}");
    if is_log {
        complain(&format!("warning: {what}"));
        return Ok(());
    }
    Err(Error::new(Kind::Io, what)
        .hint("what the command writes into files is complete; what it prints is not"))
}

/// Runs one command line.
///
/// # Errors
/// Whatever the command ends with; its kind is the exit status.
pub fn run(args: Vec<OsString>) -> Result<()> {
    crate::sys::start_threads()?;
    let command_line: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut translated = dialect::translate(args)?;
    let matches = match commands::program().try_get_matches_from(&translated.words) {
        Ok(matches) => matches,
        Err(error) => {
            say(commands::explain(&error)?.trim_end());
            return check_output(false);
        }
    };
    let warnings = &mut translated.warnings;
    let command = matches.subcommand();
    match command {
        Some(("train", m)) => training::train(m, warnings, command_line),
        Some(("resume", m)) => training::resume(m, warnings, command_line),
        Some(("plan", m)) => training::plan(m, warnings),
        #[cfg(feature = "text")]
        Some(("preview", m)) => preview::preview(m, warnings),
        #[cfg(feature = "text")]
        Some(("tokenize", m)) => tokenize::tokenize(m),
        #[cfg(feature = "text")]
        Some(("generate", m)) => generate::generate(m, warnings),
        #[cfg(feature = "text")]
        Some(("chat", m)) => chat::chat(m, warnings),
        #[cfg(not(feature = "text"))]
        Some((name @ ("preview" | "tokenize" | "generate" | "chat"), _)) => {
            Err(Error::usage(format!("`qwentune {name}` is not in this build, which has no tokenizers"))
                .hint("build it with the feature `text`"))
        }
        Some(("checkpoint", m)) => checkpoint::checkpoint(m),
        Some(("import", m)) => exchange::import(m, warnings, command_line),
        Some(("export", m)) => exchange::export(m),
        Some(("evaluate", m)) => evaluate::evaluate(m, warnings),
        Some(("merge", m)) => merge::merge(m),
        Some(("report", m)) => report::report(m),
        Some(("doctor", _)) => doctor::doctor(),
        Some(("init", m)) => init::init(m),
        Some(("completions", m)) => completions::print(m),
        Some(("man", _)) => {
            completions::print_manual();
            Ok(())
        }
        Some(("bench", m)) => bench::bench(m),
        Some(("selftest", m)) => selftest::selftest(m),
        _ => Err(Error::usage("a command is missing").hint("qwentune --help lists them")),
    }?;
    check_output(matches!(command, Some(("train" | "resume", _))))
}

#[cfg(feature = "internals")]
/// The settings that `qwentune train` with these flags would train with, and the warnings it would print.
///
/// # Errors
/// As `train`, for the command line alone: no model or data file is looked at, only `--config`'s.
pub fn train_settings(flags: &[&str]) -> Result<(Settings, Vec<String>)> {
    let words = ["qwentune", "train"].iter().chain(flags).map(OsString::from).collect();
    let mut translated = dialect::translate(words)?;
    match commands::program().try_get_matches_from(&translated.words) {
        Ok(matches) => {
            let Some((_, matches)) = matches.subcommand() else { return Err(Error::usage("no command")) };
            let settings = training::resolved(matches, &mut translated.warnings)?;
            Ok((settings, translated.warnings))
        }
        Err(error) => Err(Error::usage(commands::explain(&error)?)),
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
