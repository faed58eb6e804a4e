//! `report.html` of a run folder made again, and the page that compares several.

use super::folder::REPORT;
use super::metrics;
use super::run_file::{self, RunFile};
use crate::checkpoint::storage::FileSystem;
use crate::config;
use crate::config::fields::{Class, FIELDS};
use crate::error::Result;
use crate::files;
use crate::formats::publish;
use crate::report::html::{self, Compared};
use crate::report::jsonl::{self, Line};
use std::path::{Path, PathBuf};

/// The lines a run has logged; what a damaged file holds before the damage.
fn lines(run: &Path) -> Result<Vec<Line>> {
    let path = run.join(metrics::NAME);
    if !files::exists(&path)? {
        return Ok(Vec::new());
    }
    Ok(jsonl::read(&files::read(&path, metrics::MAX_BYTES)?).lines)
}

/// Writes the page of the run in the folder `run`, whether it ended, was stopped or is under way; says where.
///
/// # Errors
/// Input: there is no run; I/O errors.
pub fn write(run: &Path) -> Result<PathBuf> {
    RunFile::read(&FileSystem, run)?;
    let run_json = files::read_text(&run.join(run_file::NAME), run_file::MAX_BYTES)?;
    let page = html::render(&run.display().to_string(), &lines(run)?, &run_json);
    let path = run.join(REPORT);
    publish::replace_file(&path, page.as_bytes())?;
    Ok(path)
}

/// Writes the page that compares the runs in these folders to `out`.
///
/// # Errors
/// As [`write()`].
pub fn compare(runs: &[PathBuf], out: &Path) -> Result<()> {
    let compared: Result<Vec<Compared>> = runs.iter().map(|run| compared(run)).collect();
    publish::replace_file(out, html::compare(&compared?).as_bytes())
}

fn compared(run: &Path) -> Result<Compared> {
    let settings = RunFile::read(&FileSystem, run)?.settings;
    let shown = FIELDS.iter().filter(|field| field.class != Class::Start && field.key != "output_dir");
    let settings = shown.map(|field| (field.name.to_owned(), config::text_of(&settings, field))).collect();
    Ok(Compared { name: run.display().to_string(), lines: lines(run)?, settings })
}
