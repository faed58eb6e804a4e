//! `checkpoint show`, `verify` and `list`.

use super::option;
use super::training::size;
use crate::checkpoint::format::{Digest, Header};
use crate::checkpoint::inspect::{self, Listed, Shown};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::report::console::{complain, say};
use clap::ArgMatches;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// `qwentune checkpoint …`.
pub fn checkpoint(matches: &ArgMatches) -> Result<()> {
    let Some((verb, matches)) = matches.subcommand() else {
        return Err(Error::usage("show, verify or list is missing"));
    };
    let path = PathBuf::from(option(matches, "path").unwrap_or_default());
    let as_json = matches.get_flag("json");
    match verb {
        "show" => show(&newest(&path)?, as_json),
        "verify" => verify(&path, as_json),
        _ => list(&path, as_json),
    }
}

/// The file itself, or the newest checkpoint of a run folder.
fn newest(path: &Path) -> Result<PathBuf> {
    if !files::is_folder(path)? {
        return Ok(path.to_owned());
    }
    match inspect::list(path)?.into_iter().next() {
        Some(listed) => Ok(listed.path),
        None => Err(none_in(path)),
    }
}

fn none_in(path: &Path) -> Error {
    Error::input(format!("{}: no checkpoint in this folder", path.display()))
}

fn print_json(value: &Value) {
    say(&serde_json::to_string_pretty(value).unwrap_or_default());
}

fn hex(digest: &Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn show(path: &Path, as_json: bool) -> Result<()> {
    let shown = inspect::show(path)?;
    if as_json {
        print_json(&shown_json(path, &shown));
    } else {
        shown_lines(path, &shown).iter().for_each(|line| say(line));
    }
    Ok(())
}

fn header_json(path: &Path, header: &Header) -> Value {
    json!({
        "path": path,
        "step": header.step,
        "bytes": header.file_len,
        "samples": header.samples,
        "inexact": header.tainted,
        "digest": hex(&header.digest),
    })
}

fn shown_json(path: &Path, shown: &Shown) -> Value {
    let mut value = header_json(path, &shown.header);
    let state = &shown.state;
    let section = |s: &crate::checkpoint::format::Section| json!({ "name": s.name, "offset": s.offset, "bytes": s.len, "digest": hex(&s.digest) });
    let best = state
        .cursor
        .best
        .map(|best| json!({ "eval_loss": best.loss, "step": best.step, "adapter": hex(&best.adapter) }));
    value["parameters"] = json!(shown.parameters);
    value["tokens"] = json!(state.cursor.tokens);
    value["best"] = json!(best);
    value["history"] = json!(state.history);
    value["sections"] = shown.header.sections.iter().map(section).collect();
    value["tensors"] = state.tensors.iter().map(|t| json!({ "name": t.name, "shape": t.shape })).collect();
    value["identity"] = json!(state.identity);
    value["log_lines"] = json!(state.log.len());
    value
}

fn shown_lines(path: &Path, shown: &Shown) -> Vec<String> {
    let (header, state) = (&shown.header, &shown.state);
    let row = |name: &str, value: String| format!("  {name:<14}{value}");
    let mut lines = vec![
        format!("{}: whole, every byte checked", path.display()),
        row("step", step_of(shown)),
        row("rows seen", header.samples.to_string()),
        row("tokens", state.cursor.tokens.to_string()),
        row("parameters", format!("{} in {} tensors", shown.parameters, state.tensors.len())),
        row("size", size(header.file_len)),
        row("digest", hex(&header.digest)),
        row("exact", if header.tainted { "no: continued inexactly".into() } else { "yes".into() }),
    ];
    if let Some(best) = &state.cursor.best {
        lines.push(row("best", format!("eval_loss {:.4} at step {}", best.loss, best.step)));
    }
    for ancestor in &state.history.lineage {
        lines
            .push(row("came from", format!("{:?}, step {}", ancestor.descent, ancestor.step).to_lowercase()));
    }
    lines.push("sections".into());
    for section in &header.sections {
        lines.push(row(section.name, format!("{:>12} bytes at {}", section.len, section.offset)));
    }
    lines.push("what decided it".into());
    lines.extend(state.identity.fields().iter().map(|(key, value)| format!("  {key} = {value}")));
    lines
}

fn step_of(shown: &Shown) -> String {
    match shown.state.history.length() {
        Some(length) => format!("{} of {}", shown.header.step, length.total_steps),
        None => shown.header.step.to_string(),
    }
}

fn verify(path: &Path, as_json: bool) -> Result<()> {
    let files: Vec<PathBuf> = if files::is_folder(path)? {
        inspect::list(path)?.into_iter().map(|listed| listed.path).collect()
    } else {
        vec![path.to_owned()]
    };
    if files.is_empty() {
        return Err(none_in(path));
    }
    let results: Vec<(PathBuf, Result<Header>)> = files
        .into_iter()
        .map(|file| {
            let result = inspect::verify(&file);
            (file, result)
        })
        .collect();
    let mut failed: Vec<Error> = Vec::new();
    let mut rows = Vec::new();
    for (file, result) in results {
        match result {
            Ok(header) => {
                rows.push(with(header_json(&file, &header), "whole", json!(true)));
                if !as_json {
                    say(&format!(
                        "{}: whole, step {}, {}",
                        file.display(),
                        header.step,
                        size(header.file_len)
                    ));
                }
            }
            Err(error) => {
                let why = with(json!({ "path": file, "whole": false }), "why", json!(error.what));
                rows.push(why);
                failed.push(error);
            }
        }
    }
    if as_json {
        print_json(&Value::Array(rows));
    }
    outcome(failed)
}

fn with(mut value: Value, key: &str, inner: Value) -> Value {
    value[key] = inner;
    value
}

/// One error for all files that are not whole; damage outweighs what merely could not be read.
fn outcome(mut failed: Vec<Error>) -> Result<()> {
    failed.sort_by_key(|error| error.kind != Kind::Check);
    let mut failed = failed.into_iter();
    let Some(first) = failed.next() else { return Ok(()) };
    failed.for_each(|other| complain(&format!("error: {other}")));
    Err(first)
}

fn list(path: &Path, as_json: bool) -> Result<()> {
    if !files::is_folder(path)? {
        return Err(Error::input(format!("{}: no such folder", path.display())));
    }
    let all = inspect::list(path)?;
    if as_json {
        print_json(&all.iter().map(listed_json).collect());
        return Ok(());
    }
    if all.is_empty() {
        return Err(none_in(path));
    }
    all.iter().for_each(|listed| say(&listed_line(listed)));
    Ok(())
}

fn listed_json(listed: &Listed) -> Value {
    match &listed.header {
        Ok(header) => with(header_json(&listed.path, header), "misnamed", json!(listed.misnamed)),
        Err(why) => json!({ "path": listed.path, "bytes": listed.bytes, "damaged": why }),
    }
}

fn listed_line(listed: &Listed) -> String {
    let path = listed.path.display();
    match &listed.header {
        Ok(header) => {
            let inexact = if header.tainted { "  inexact" } else { "" };
            let misnamed = if listed.misnamed { "  (its name says another step)" } else { "" };
            format!("step {:<10}{:>12}  {path}{inexact}{misnamed}", header.step, size(listed.bytes))
        }
        Err(why) => format!("damaged        {:>12}  {path}: {why}", size(listed.bytes)),
    }
}
