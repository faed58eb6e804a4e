//! `report`: the page of a run made again, or one that compares several.

use super::option;
use crate::error::Result;
use crate::report::console::say;
use crate::train::report;
use clap::ArgMatches;
use std::path::{Path, PathBuf};

/// `qwentune report`.
pub fn report(matches: &ArgMatches) -> Result<()> {
    let runs: Vec<PathBuf> =
        matches.get_many::<String>("runs").into_iter().flatten().map(PathBuf::from).collect();
    if let [run] = runs.as_slice() {
        say(&report::write(run)?.display().to_string());
        return Ok(());
    }
    let out = Path::new(option(matches, "output").unwrap_or_default());
    report::compare(&runs, out)?;
    say(&out.display().to_string());
    Ok(())
}
