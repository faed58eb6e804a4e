//! `train`, `resume` and `plan`.

use super::{commands, option, show, signals};
use crate::checkpoint::storage::FileSystem;
use crate::config::{self, Layer, Settings};
use crate::error::{Error, Result};
use crate::report::console::{Console, duration, say};
use crate::train::{self, Control, PlanReport, Request, Summary};
use clap::ArgMatches;
use std::path::{Path, PathBuf};

/// `qwentune train`.
pub fn train(matches: &ArgMatches, warnings: &mut Vec<String>, command_line: Vec<String>) -> Result<()> {
    let given = given(matches, warnings)?;
    show(warnings);
    let request = Request { given, command_line, ..Request::default() };
    execute(request, |request, control, console| train::train(request, control, console))
}

/// `qwentune resume`.
pub fn resume(matches: &ArgMatches, warnings: &mut Vec<String>, command_line: Vec<String>) -> Result<()> {
    let folder = PathBuf::from(option(matches, "run").unwrap_or_default());
    let given = commands::given(matches, warnings)?;
    show(warnings);
    if !train::start::is_trainer_checkpoint(&FileSystem, &folder)? {
        commands::refuse(&given, "resume", commands::NOT_ON_RESUME)?;
    }
    let request = Request { given, command_line, ..Request::default() };
    execute(request, |request, control, console| train::resume(&folder, request, control, console))
}

/// `qwentune plan`.
pub fn plan(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<()> {
    let given = given(matches, warnings)?;
    show(warnings);
    let quiet = given.is_true("quiet");
    let settings = train::settled(Request { given, ..Request::default() })?;
    let json = matches.get_flag("json");
    let mut console = Console::new(quiet || json);
    let mut report = train::plan(&settings, &mut console)?;
    if matches.get_flag("measure") {
        report.seconds_per_step = Some(train::measure(&settings, &mut console)?);
    }
    drop(console);
    if json {
        say(&serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        for line in plan_table(&report) {
            say(&line);
        }
    }
    Ok(())
}

/// The settings of a command that takes `--config` and flags, and goes on with no run.
pub fn resolved(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<Settings> {
    config::resolve(&given(matches, warnings)?)
}

/// What `--config` and flags give.
pub fn given(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<Layer> {
    let flags = commands::given(matches, warnings)?;
    let mut layer = match option(matches, "config") {
        Some(file) => Layer::from_file(Path::new(file), warnings)?,
        None => Layer::default(),
    };
    // Of two ways to start that exclude each other, the flag wins over the file as any flag does.
    for (given, other) in [
        ("overwrite_output_dir", "resume_from_checkpoint"),
        ("resume_from_checkpoint", "overwrite_output_dir"),
    ] {
        if flags.has(given) && !flags.has(other) {
            layer.forget(other);
        }
    }
    layer.cover(&flags);
    if !flags.has("tokens_per_micro_batch") || layer.is_true("packing") {
        return Ok(layer);
    }
    Err(Error::usage("--tokens-per-micro-batch is the size of a packed micro-batch and needs --packing")
        .hint("without packing, --per-device-train-batch-size counts rows"))
}

/// Runs until the end, a stop or an error, with its signals watched and its events on the console.
fn execute(
    request: Request,
    run: impl FnOnce(Request, &Control, &mut Console) -> Result<Summary>,
) -> Result<()> {
    let quiet = request.given.is_true("quiet");
    let control = Control::default();
    signals::watch(&control, &request.given)?;
    let mut console = Console::new(quiet);
    let summary = run(request, &control, &mut console)?;
    drop(console);
    if !quiet {
        ending(&summary).iter().for_each(|line| say(line));
    }
    Ok(())
}

/// What is said when a run is complete.
fn ending(summary: &Summary) -> Vec<String> {
    let (step, total) = (summary.step, summary.total_steps);
    let mut lines = Vec::new();
    match summary.patience {
        Some(patience) => lines.push(format!(
            "training stopped early at step {step} of {total}: {patience} evaluations without a better one"
        )),
        None if summary.trained > 0 => lines.push(format!("training complete at step {step}")),
        // That was said already.
        None => {}
    }
    if let Some((first, last)) = summary.loss {
        lines.push(format!("  loss       {first:.4} -> {last:.4}"));
    }
    if let Some((before, after)) = summary.eval_loss {
        lines.push(format!("  eval loss  {before:.4} -> {after:.4}"));
    }
    if let Some((step, loss)) = summary.best {
        lines.push(format!("  best       {loss:.4} at step {step}"));
    }
    lines.push(format!("  adapter    {}, that of step {}", summary.adapter.display(), summary.published));
    lines.push(format!("  report     {}", summary.report.display()));
    if summary.tainted {
        lines.push("  not exact: imported, or continued on another engine or device".into());
    }
    lines.push(format!("  look in    {}", summary.look_in));
    lines.push(format!("  train on   {}", summary.train_on));
    lines
}

fn plan_table(report: &PlanReport) -> Vec<String> {
    let mut lines = vec![format!("device: {}", report.device), "device memory by purpose".to_owned()];
    let row = |name: &str, value: String| format!("  {name:<36}{value:>14}");
    lines.extend(report.arena.iter().map(|(purpose, bytes)| row(purpose, size(*bytes))));
    let arena = report.arena.iter().map(|(_, bytes)| bytes).sum();
    lines.push(row("all of it", size(arena)));
    lines.push(row("to evaluate alone", size(report.evaluation)));
    lines.push("memory of the process".to_owned());
    lines.push(row("base weights, mapped", size(report.base_weights)));
    lines.push(row("expected peak", size(report.peak)));
    lines.push("the run".to_owned());
    lines.push(row("rows", report.rows.to_string()));
    lines.push(row("tokens of an epoch", report.tokens_per_epoch.to_string()));
    lines.push(row("optimizer steps", report.steps.to_string()));
    lines.push(row("tokens of the largest micro-batch", report.micro_batch_tokens.to_string()));
    lines.push(row("trainable parameters", report.trainable.to_string()));
    lines.push(row("one checkpoint", size(report.checkpoint)));
    lines.push(format!("fits here: {}", fit(report, arena)));
    if let Some(seconds) = report.seconds_per_step {
        let all = duration(seconds * report.steps as f64);
        lines.push(format!("takes here: about {all}, {seconds:.3} s a step (median of a few that were run)"));
    }
    lines
}

/// Whether it fits, and what would make it.
fn fit(report: &PlanReport, arena: u64) -> String {
    let Some(available) = report.available else {
        return "not known, the device is not here".into();
    };
    let (need, place) = if report.own_memory { (arena, "on the device") } else { (report.peak, "here") };
    let (needed, there) = (size(need), size(available));
    if need <= available {
        return format!("yes, {needed} of {there} that can be had {place}");
    }
    // What is not mapped fits: a run for which it did not would have been refused.
    format!(
        "not whole: {needed} are needed, {there} can be had {place}. It runs, but weights are read from the disk again \
         in every step, which is slow; a smaller model or {} more memory would do",
        size(need - available)
    )
}

/// Bytes in the unit that reads best.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
