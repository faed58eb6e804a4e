//! `selftest`: whether this machine's device computes what it should.

use super::option;
use crate::config;
use crate::error::{Error, Result};
use crate::formats::publish;
use crate::report::console::say;
use crate::selftest::{self, Row, Settings};
use crate::train::Devices;
use clap::ArgMatches;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// `qwentune selftest`.
pub fn selftest(matches: &ArgMatches) -> Result<()> {
    let settings = settings(matches)?;
    let file = PathBuf::from(option(matches, "json").unwrap_or_default());
    let device = selftest::device(&settings)?;
    say(&format!("qwentune {} on {device}", env!("CARGO_PKG_VERSION")));
    let begin = Instant::now();
    let only = option(matches, "only").unwrap_or("all");
    if !["all", "operations", "training"].contains(&only) {
        return Err(Error::usage(format!("--only {only}: all, operations or training")));
    }
    let mut rows = Vec::new();
    if only != "training" {
        rows.extend(part("operations", &mut || selftest::operations(&settings))?);
    }
    let folder = std::env::temp_dir().join(format!("qwentune-selftest-{}", std::process::id()));
    for (index, (name, check)) in selftest::TRAINING.iter().enumerate().filter(|_| only != "operations") {
        let folder = folder.join(index.to_string());
        rows.extend(part(name, &mut || check(&settings, &folder))?);
    }
    let failed = rows.iter().filter(|row| !row.passed()).count();
    write_report(&file, &device, &settings, &rows)?;
    let seconds = begin.elapsed().as_secs_f64();
    let (count, file) = (rows.len(), file.display());
    if failed == 0 {
        // Nothing of it is wanted any more; what a failed check leaves may be looked at.
        let _ = std::fs::remove_dir_all(&folder);
        say(&format!("{count} checks passed in {seconds:.0} s; details in {file}"));
        return Ok(());
    }
    Err(Error::check(format!("{failed} of {count} checks failed; details in {file}"))
        .hint(format!("do not train on this device; the runs' files are in {}", folder.display())))
}

fn settings(matches: &ArgMatches) -> Result<Settings> {
    let word = option(matches, "device").unwrap_or("auto");
    let choice = config::DeviceChoice::parse(word)
        .ok_or_else(|| Error::usage(format!("--device {word}: auto, cpu, cuda or cuda:N")))?;
    let repeats = option(matches, "repeats").unwrap_or("100");
    let repeats = repeats.parse().ok().filter(|n| *n > 0);
    let repeats = repeats.ok_or_else(|| Error::usage("--repeats wants a whole number, 1 or more"))?;
    let devices = Devices::default();
    let asked = config::Settings { device: choice, ..config::Settings::default() };
    devices.check(&asked)?;
    Ok(Settings { devices, choice, repeats, steps: None })
}

/// Runs a part of the checks and prints its rows.
fn part(name: &str, check: &mut dyn FnMut() -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    let begin = Instant::now();
    let rows = check()?;
    say(&format!("{name} ({:.1} s)", begin.elapsed().as_secs_f64()));
    for row in &rows {
        say(&line(row));
    }
    Ok(rows)
}

fn line(row: &Row) -> String {
    let error = row.error.map_or(String::new(), |e| format!("{e:.1e}"));
    let limit = row.limit.map_or(String::new(), |l| format!("of {l:.0e}"));
    let bits = match row.identical {
        Some(true) => "same bits",
        Some(false) => "OTHER BITS",
        None => "",
    };
    let verdict = if row.passed() { "ok" } else { "FAILED" };
    format!("  {verdict:<7}{:<17}{error:>8} {limit:<9}{bits:<11}{}", row.operation, row.case)
}

fn write_report(file: &Path, device: &str, settings: &Settings, rows: &[Row]) -> Result<()> {
    let report = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": device,
        "kernels": selftest::engine(settings)?,
        "repeats": settings.repeats,
        "passed": rows.iter().all(Row::passed),
        "checks": rows,
    });
    let text = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
    publish::replace_file(file, text.as_bytes())
}
