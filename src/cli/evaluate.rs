//! `evaluate`: loss and perplexity of a file, or precision, recall and F1 of predictions.

use super::{commands, option, show};
use crate::config::{self, Settings};
use crate::data::extraction::{MatchMode, Scorer, Tally, Task};
use crate::data::predictions;
use crate::error::{Error, Result};
use crate::report::console::{Console, complain, say};
use crate::train::evaluate::{Fit, Report, evaluate as loss_of_file};
use clap::ArgMatches;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// `qwentune evaluate`.
pub fn evaluate(matches: &ArgMatches, warnings: &mut Vec<String>) -> Result<()> {
    let flags = commands::given(matches, warnings)?;
    show(warnings);
    let as_json = matches.get_flag("json");
    match matches.get_many::<String>("predictions") {
        Some(_) if ["model", "init_adapter", "valid_file"].iter().any(|key| flags.has(key)) => Err(
            Error::usage("--predictions compares answers with labels and needs no model: give one of them")
                .hint("the loss of a file: --model DIR [--adapter DIR] --valid-file FILE"),
        ),
        Some(files) => extraction(matches, files.map(PathBuf::from).collect(), as_json),
        None => loss(config::resolve(&flags)?, as_json),
    }
}

fn print(value: &Value) {
    say(&serde_json::to_string_pretty(value).unwrap_or_default());
}

// ---- loss -------------------------------------------------------------------------------------------------

fn loss(settings: Settings, as_json: bool) -> Result<()> {
    let Some(file) = settings.valid_file.clone() else {
        return Err(Error::usage("there is nothing to evaluate").hint(
            "the loss of a file: --model DIR [--adapter DIR] --valid-file FILE   precision, recall and F1 of answers: --predictions FILE --task NER",
        ));
    };
    let mut settings = Settings { train_files: vec![file.clone()], ..settings };
    config::check_inputs(&mut settings, false)?;
    settings.train_files.clear();
    let mut console = Console::new(settings.quiet || as_json);
    let report = loss_of_file(&settings, &mut console)?;
    drop(console);
    if as_json {
        print(&loss_json(&settings, &report));
        return Ok(());
    }
    say(&format!("{:<44}{:>12}{:>14}", file.display(), "loss", "perplexity"));
    say(&loss_line(&format!("base model {}", settings.model.display()), &report.base));
    if let (Some(folder), Some(fit)) = (&settings.init_adapter, &report.adapter) {
        say(&loss_line(&format!("adapter    {}", folder.display()), fit));
    }
    Ok(())
}

fn loss_line(name: &str, fit: &Fit) -> String {
    format!("{name:<44}{:>12.4}{:>14.3}", fit.loss, fit.perplexity)
}

fn loss_json(settings: &Settings, report: &Report) -> Value {
    json!({
        "file": settings.valid_file,
        "model": settings.model,
        "adapter_folder": settings.init_adapter,
        "rows": report.rows,
        "tokens": report.tokens,
        "base": report.base,
        "adapter": report.adapter,
    })
}

// ---- extraction -------------------------------------------------------------------------------------------

fn extraction(matches: &ArgMatches, files: Vec<PathBuf>, as_json: bool) -> Result<()> {
    let mut task = option(matches, "task").and_then(Task::named);
    let mode = if option(matches, "match-mode") == Some("set") { MatchMode::Set } else { MatchMode::Normal };
    let by_source = option(matches, "sort-by") == Some("source");
    let mut read = Vec::new();
    for file in files {
        let (found, scorer) = predictions::read(&file, task)?;
        // Files that are shown side by side are of one task.
        task = Some(found);
        if scorer.other_labels > 0 {
            complain(&format!(
                "warning: {}: {} rows have another label than the first row of their text, which counts",
                file.display(),
                scorer.other_labels
            ));
        }
        read.push((file.display().to_string(), scorer));
    }
    let Some(task) = task else { return Err(Error::usage("--predictions names no file")) };
    if as_json {
        let files: Vec<Value> = read.iter().map(|(f, s)| file_json(f, s, task, mode, by_source)).collect();
        let mode = option(matches, "match-mode");
        print(&json!({ "task": task.name(), "match_mode": mode, "files": files }));
    } else {
        table(&read, task, mode, by_source).iter().for_each(|line| say(line));
    }
    Ok(())
}

fn file_json(file: &str, scorer: &Scorer, task: Task, mode: MatchMode, by_source: bool) -> Value {
    let mut value = json!({ "file": file, "total": tally_json(&scorer.total(mode), task) });
    if by_source {
        let sources = scorer.by_source(mode).into_iter();
        value["sources"] = sources.map(|(name, tally)| (name.to_owned(), tally_json(&tally, task))).collect();
    }
    value
}

fn tally_json(tally: &Tally, task: Task) -> Value {
    let mut map = Map::new();
    map.insert("texts".into(), json!(tally.texts));
    map.insert("unparsable".into(), json!(tally.unparsable));
    for (name, count) in task.counted().iter().zip(&tally.counts) {
        let value = json!({
            "matched": count.matched,
            "gold": count.gold,
            "predicted": count.predicted,
            "precision": count.precision(),
            "recall": count.recall(),
            "f1": count.f1(),
        });
        map.insert((*name).into(), value);
    }
    Value::Object(map)
}

/// A line for each file, source and kind of item.
fn table(read: &[(String, Scorer)], task: Task, mode: MatchMode, by_source: bool) -> Vec<String> {
    let mut rows = Vec::new();
    for (file, scorer) in read {
        let mut tallies = vec![(file.clone(), scorer.total(mode))];
        if by_source {
            let sources = scorer.by_source(mode).into_iter();
            tallies.extend(sources.map(|(source, tally)| (format!("  {source}"), tally)));
        }
        rows.extend(tallies);
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(task.name().len());
    let mut lines = vec![format!(
        "{:<width$}  {:>6} {:>10}  {:<9}{:>7} {:>9} {:>7}  {:>9} {:>7} {:>7}",
        task.name(),
        "texts",
        "unparsable",
        "",
        "gold",
        "predicted",
        "matched",
        "precision",
        "recall",
        "F1"
    )];
    for (name, tally) in &rows {
        for (kind, count) in task.counted().iter().zip(&tally.counts) {
            lines.push(format!(
                "{name:<width$}  {:>6} {:>10}  {kind:<9}{:>7} {:>9} {:>7}  {:>9.2} {:>7.2} {:>7.2}",
                tally.texts,
                tally.unparsable,
                count.gold,
                count.predicted,
                count.matched,
                count.precision(),
                count.recall(),
                count.f1()
            ));
        }
    }
    lines
}
