//! `train`, `resume` and `plan`.

use super::{commands, option, show, signals};
use crate::config::{self, Layer, ResumeFrom, RunFile, Settings};
use crate::error::{Error, Result};
use crate::report::console::{Console, say};
use crate::train::{self, Control, PlanReport, Request, Summary, exchange};
use clap::ArgMatches;
use std::path::{Path, PathBuf};

/// `qwentune train`.
pub fn train(matches: &ArgMatches, warnings: &mut Vec<String>, command_line: Vec<String>) -> Result<()> {
    let settings = resolved(matches, warnings)?;
    show(warnings);
    config::check_inputs(&settings, true)?;
    execute(Request { settings, command_line, ..Request::default() })
}

/// `qwentune resume`.
pub fn resume(matches: &ArgMatches, warnings: &mut Vec<String>, command_line: Vec<String>) -> Result<()> {
    let folder = PathBuf::from(option(matches, "run").unwrap_or_default());
    let flags = commands::given(matches, warnings)?;
    show(warnings);
    if exchange::is_trainer_checkpoint(&folder) {
        return resume_theirs(&folder, flags, command_line);
    }
    commands::refuse(&flags, "resume", commands::NOT_ON_RESUME)?;
    let run = RunFile::read(&folder)?;
    let mut settings = continued(&run.settings, &flags)?;
    settings.output_dir = folder;
    if settings.resume_from_checkpoint.is_none() {
        settings.resume_from_checkpoint = Some(ResumeFrom::Auto);
    }
    find_inputs(&mut settings, &flags, &run)?;
    config::check_inputs(&settings, true)?;
    execute(Request { settings, command_line, must_resume: true, ..Request::default() })
}

/// `qwentune resume` of a checkpoint of Hugging Face's Trainer: `train --resume-from-checkpoint`.
fn resume_theirs(folder: &Path, mut flags: Layer, command_line: Vec<String>) -> Result<()> {
    if let Some(field) = config::fields::find("resume_from_checkpoint") {
        flags.set(field, serde_json::json!({ "path": folder }));
    }
    exchange::complete(&mut flags)?;
    let settings = config::resolve(&flags)?;
    config::check_inputs(&settings, true)?;
    execute(Request { settings, command_line, ..Request::default() })
}

/// `qwentune plan`.
pub fn plan(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<()> {
    let settings = resolved(matches, warnings)?;
    show(warnings);
    config::check_inputs(&settings, false)?;
    let json = matches.get_flag("json");
    let mut console = Console::new(settings.quiet || json, settings.logging_steps);
    let report = train::plan(&settings, &mut console)?;
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

/// The settings of a command that takes `--config` and flags.
pub fn resolved(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<Settings> {
    let mut layer = given(matches, warnings)?;
    exchange::complete(&mut layer)?;
    config::resolve(&layer)
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

/// A run's own settings with the changes asked for, if all of them may be made.
fn continued(frozen: &Settings, flags: &Layer) -> Result<Settings> {
    let mut layer = Layer::from_settings(frozen);
    layer.cover(flags);
    // How the run began is no way to start that is asked for now.
    layer.forget("init_adapter");
    let mut settings = config::resolve(&layer)?;
    settings.init_adapter.clone_from(&frozen.init_adapter);
    let refused: Vec<String> = config::changed(frozen, &settings)
        .into_iter()
        .filter(|(field, _, _)| !config::may_change_on_resume(field.key))
        .map(|(field, old, new)| format!("{} is {old} in this run, {new} was asked for", field.name))
        .collect();
    if refused.is_empty() {
        return Ok(settings);
    }
    Err(Error::refused(format!("resume refused: {}", refused.join("; "))).hint(
        "resume without these flags, or start a run of its own: train --init-adapter ... --output-dir ...",
    ))
}

/// Relative paths of a run are those of the folder it was started in. When its files are not found from here,
/// that folder is entered; paths given now keep their meaning.
fn find_inputs(settings: &mut Settings, flags: &Layer, run: &RunFile) -> Result<()> {
    let there = PathBuf::from(&run.working_directory);
    let frozen = &run.settings;
    let mut inputs = std::iter::once(&frozen.model)
        .chain(&frozen.train_files)
        .chain(&frozen.valid_file)
        .chain(&frozen.fold_adapters);
    if !inputs.any(|path| path.is_relative() && !path.exists() && there.join(path).exists()) {
        return Ok(());
    }
    let absolute = |path: &mut PathBuf| -> Result<()> {
        *path = std::path::absolute(&*path).map_err(|e| Error::reading(path, e))?;
        Ok(())
    };
    absolute(&mut settings.output_dir)?;
    let Settings { model, train_files, valid_file, cache_dir, fold_adapters, .. } = settings;
    let single =
        [("model", Some(model)), ("valid_file", valid_file.as_mut()), ("cache_dir", cache_dir.as_mut())];
    for (_, path) in single.into_iter().filter(|(key, _)| flags.has(key)) {
        path.map_or(Ok(()), absolute)?;
    }
    for (key, paths) in [("train_files", train_files), ("fold_adapters", fold_adapters)] {
        if flags.has(key) {
            paths.iter_mut().try_for_each(absolute)?;
        }
    }
    std::env::set_current_dir(&there).map_err(|e| Error::reading(&there, e))
}

fn execute(request: Request) -> Result<()> {
    let control = Control::default();
    signals::watch(&control)?;
    let settings = request.settings.clone();
    let program = request.command_line.first().cloned().unwrap_or_else(|| "qwentune".into());
    let mut console = Console::new(settings.quiet, settings.logging_steps);
    let summary = train::run(request, &control, &mut console)?;
    drop(console);
    if !settings.quiet {
        for line in ending(&program, &settings, &summary) {
            say(&line);
        }
    }
    Ok(())
}

/// What is said when a run is complete. `program` is how this one was started, so that the commands shown
/// work as they stand. A run that was complete already has said so itself.
fn ending(program: &str, settings: &Settings, summary: &Summary) -> Vec<String> {
    let program = shell_word(program);
    let folder = shell_word(&settings.output_dir.display().to_string());
    let mut lines = Vec::new();
    if let Some((first, last)) = summary.loss {
        lines.push(format!("training complete at step {}", summary.step));
        lines.push(format!("  loss       {first:.4} -> {last:.4}"));
    }
    if let Some((before, after)) = summary.eval_loss {
        lines.push(format!("  eval loss  {before:.4} -> {after:.4}"));
    }
    lines.push(format!("  adapter    {}", summary.adapter.display()));
    lines.push(format!("  report     {}", settings.output_dir.join("report.html").display()));
    if summary.tainted {
        lines.push("  not exact: imported, or continued on another engine or device".into());
    }
    lines.push(format!("  look in    {program} checkpoint show {folder}"));
    if summary.loss.is_none() {
        return lines;
    }
    let more = summary.total_steps.max(summary.step).saturating_mul(2);
    lines.push(format!("  train on   {program} resume {folder} --max-steps {more}"));
    lines
}

/// A word as a shell takes it.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c) || !c.is_ascii();
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
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
    lines
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
