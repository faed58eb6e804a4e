//! The spellings of other tools, turned into ours before the command line is parsed: underscores, aliases,
//! `--flag True`, and flags that mean nothing here.

use super::inference;
use crate::config::fields::{Field, Kind, find};
use crate::config::foreign::{self, Foreign};
use crate::config::llama_factory::DataSets;
use crate::config::model_folder::expand_home;
use crate::config::value::to_text;
use crate::error::{Error, Result};
use serde_json::Value;
use std::ffi::OsString;

/// A command line in this program's own spelling.
#[derive(Debug, Default)]
pub struct Translated {
    /// The words, the program's name first.
    pub words: Vec<String>,
    /// One line for each flag that has no effect.
    pub warnings: Vec<String>,
}

/// Commands that take the settings of a run.
const TRAINING: &[&str] = &["train", "resume", "plan", "preview"];

/// Translates a whole command line.
///
/// # Errors
/// Usage: a word is not UTF-8, a flag of another tool cannot be honoured, or the line is one of another command.
pub fn translate(args: Vec<OsString>) -> Result<Translated> {
    let mut out = Translated::default();
    let mut rest = Words::new(args)?;
    let command = rest.left().get(1).cloned().unwrap_or_default();
    if command == "train" {
        inference::refuse(rest.left())?;
    }
    let trains = TRAINING.contains(&command.as_str());
    let mut data_sets = DataSets::default();
    while let Some(word) = rest.next() {
        let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            let is_end = word == "--";
            out.words.push(word);
            if is_end {
                out.words.extend(rest.by_ref());
            }
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if let Some(named) = data_sets.named(name).filter(|_| trains) {
            *named = value.or_else(|| rest.next_value());
        } else if let Some(field) = find(name) {
            setting(&mut out, &mut rest, field, false, value);
        } else if let Some(field) = negated(name) {
            setting(&mut out, &mut rest, field, true, value);
        } else if let Some(foreign) = foreign_flag(name, trains) {
            let warning = ignore(&mut rest, foreign, name, value)?;
            if !out.warnings.contains(&warning) {
                out.warnings.push(warning);
            }
        } else {
            let value = value.or_else(|| rest.next_negative());
            // Settings expand it themselves; a shell does only where a word begins so.
            let value =
                value.map(|v| if v.starts_with("~/") { expand_home(&v) } else { Ok(v) }).transpose()?;
            let equals = value.map(|v| format!("={v}")).unwrap_or_default();
            out.words.push(format!("--{}{equals}", name.replace('_', "-")));
        }
    }
    for (key, value) in data_sets.find(false)? {
        let Some(field) = find(key) else { continue };
        match value {
            Value::Array(all) => {
                out.words.push(format!("--{}", field.flag()));
                out.words.extend(all.iter().map(|value| to_text(field.kind, value)));
            }
            one => out.words.push(format!("--{}={}", field.flag(), to_text(field.kind, &one))),
        }
    }
    Ok(out)
}

fn foreign_flag(name: &str, trains: bool) -> Option<&'static Foreign> {
    if trains { foreign::find_for_training(name) } else { foreign::find(name) }
}

/// The switch that `--no-<switch>` turns off.
fn negated(name: &str) -> Option<&'static Field> {
    let name = name.replace('_', "-");
    find(name.strip_prefix("no-")?).filter(|field| field.kind == Kind::Switch)
}

/// Writes a setting in canonical form; lists keep their words behind them.
fn setting(out: &mut Translated, rest: &mut Words, field: &Field, negate: bool, value: Option<String>) {
    let flag = field.flag();
    let value = match value {
        None if field.kind == Kind::Switch => rest.next_boolean(),
        None => rest.next_negative(),
        other => other,
    };
    match value {
        value if negate => {
            let off = value.is_none_or(|v| !v.eq_ignore_ascii_case("false"));
            out.words.push(format!("--{flag}={}", !off));
        }
        Some(value) => out.words.push(format!("--{flag}={value}")),
        None => out.words.push(format!("--{flag}")),
    }
}

fn ignore(rest: &mut Words, foreign: &Foreign, name: &str, value: Option<String>) -> Result<String> {
    let value = match value {
        Some(value) => Some(value),
        None if foreign.takes_value => rest.next_value(),
        None => rest.next_boolean(),
    };
    foreign.accept(name, value.as_deref().unwrap_or("true"))
}

/// The words not yet looked at.
struct Words {
    words: std::vec::IntoIter<String>,
}

impl Words {
    fn new(args: Vec<OsString>) -> Result<Self> {
        let words: std::result::Result<Vec<String>, OsString> =
            args.into_iter().map(OsString::into_string).collect();
        let words = words.map_err(|w| Error::usage(format!("'{}' is not valid UTF-8", w.display())))?;
        Ok(Words { words: words.into_iter() })
    }

    fn next_boolean(&mut self) -> Option<String> {
        self.next_if(|w| w.eq_ignore_ascii_case("true") || w.eq_ignore_ascii_case("false"))
    }

    /// All that are left.
    fn left(&self) -> &[String] {
        self.words.as_slice()
    }

    /// The next word, where it is a negative number, also one such as `-1e-2`: no flag looks so.
    fn next_negative(&mut self) -> Option<String> {
        self.next_if(|w| w.starts_with('-') && w.parse::<f64>().is_ok_and(f64::is_finite))
    }

    /// The next word, unless it is a flag.
    fn next_value(&mut self) -> Option<String> {
        self.next_if(|w| !w.starts_with("--"))
    }

    fn next_if(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.left().first().is_some_and(|word| wanted(word)).then(|| self.words.next()).flatten()
    }
}

impl Iterator for Words {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.words.next()
    }
}
