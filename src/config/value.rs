//! One setting's value: from the command line's text or a file's JSON to the form `Settings` reads, and back
//! to text.

use super::DeviceChoice;
use super::fields::{Field, Kind};
use super::model_folder::expand_home;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The words that mean "nothing" for an optional setting.
fn is_none(text: &str) -> bool {
    text.is_empty() || text.eq_ignore_ascii_case("none") || text.eq_ignore_ascii_case("null")
}

/// Reads the words given to a flag. Only lists take more than one.
///
/// # Errors
/// Usage: the value does not fit the setting.
pub fn from_words(field: &Field, words: &[String]) -> Result<Value> {
    match field.kind {
        Kind::Paths => paths(words.iter().map(String::as_str)),
        Kind::Modules | Kind::OptionalModules => from_text(field, &words.join(" ")),
        Kind::Counts => from_text(field, &words.join(" ")),
        _ => from_text(field, words.last().map_or("", String::as_str)),
    }
}

/// Reads one text.
///
/// # Errors
/// Usage: the value does not fit the setting.
pub fn from_text(field: &Field, text: &str) -> Result<Value> {
    let wrong = |wanted: &str| Err(Error::usage(format!("{}: '{text}' is not {wanted}", field.name)));
    let given = text;
    let text = text.trim();
    match field.kind {
        Kind::OptionalSwitch if is_none(text) => Ok(Value::Null),
        Kind::Switch | Kind::OptionalSwitch => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" => Ok(Value::Bool(true)),
            "false" | "no" | "0" => Ok(Value::Bool(false)),
            _ => wrong("true or false"),
        },
        Kind::OptionalCount if is_none(text) || text == "-1" => Ok(Value::Null),
        Kind::OptionalNumber if is_none(text) => Ok(Value::Null),
        Kind::Count | Kind::OptionalCount => {
            whole(text).map_or_else(|| wrong("a whole number"), |n| Ok(json!(n)))
        }
        Kind::Number | Kind::OptionalNumber => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(json!(number)),
            _ => wrong("a finite number"),
        },
        // These may begin or end with a space.
        Kind::Text => Ok(json!(given)),
        Kind::Path if is_none(text) => Ok(Value::Null),
        Kind::Path => Ok(json!(expand_home(given)?)),
        Kind::Paths => paths([text]),
        Kind::Choice(names) => match choice(names, text) {
            Some(name) => Ok(json!(name)),
            None => wrong(&format!("one of {}", names.join(", "))).map_err(|e: Error| match unfit(text) {
                Some(why) => e.hint(why),
                None => e,
            }),
        },
        Kind::OptionalModules if is_none(text) => Ok(Value::Null),
        Kind::Modules | Kind::OptionalModules => Ok(modules(text)),
        Kind::Folders => folders(text),
        Kind::Signals => signals(text).map_or_else(|| wrong("names of signals such as USR1"), Ok),
        Kind::Counts if is_none(text) => Ok(Value::Null),
        Kind::Counts => counts(text).map_or_else(|| wrong("a list of whole numbers such as 0,1,2"), Ok),
        Kind::Pairs(names) => pairs(field, names, text),
        Kind::Device => device(text).map_or_else(|| wrong("auto, cpu, cuda or cuda:N"), Ok),
        Kind::Resume => resume(text),
        Kind::Json => match serde_json::from_str::<Map<String, Value>>(text) {
            Ok(map) => Ok(Value::Object(map)),
            Err(_) if is_none(text) => Ok(json!({})),
            Err(_) => wrong("a JSON object such as {\"num_cycles\": 2}"),
        },
    }
}

/// Reads a value of a configuration file: a text is read as on the command line, anything else by its type.
///
/// # Errors
/// Usage: the value does not fit the setting.
pub fn from_json(field: &Field, value: &Value) -> Result<Value> {
    match (field.kind, value) {
        (Kind::Json, Value::Object(_)) => Ok(value.clone()),
        (Kind::Pairs(names), Value::Object(map)) => {
            let text = |(name, key): (&String, &Value)| match key {
                Value::Null => Some(format!("{name}=")),
                Value::String(key) => Some(format!("{name}={key}")),
                _ => None,
            };
            let all: Option<Vec<String>> = map.iter().map(text).collect();
            let all = all.ok_or_else(|| Error::usage(format!("{}: keys are texts", field.name)))?;
            pairs(field, names, &all.join(","))
        }
        // The structured forms `run.json` has; `Settings` itself checks what is inside.
        (Kind::Device | Kind::Resume | Kind::Modules | Kind::OptionalModules, Value::Object(_)) => {
            Ok(value.clone())
        }
        (Kind::Paths | Kind::Modules | Kind::OptionalModules, Value::Array(items)) => {
            let words: Option<Vec<String>> = items.iter().map(|i| i.as_str().map(str::to_owned)).collect();
            let words =
                words.ok_or_else(|| Error::usage(format!("{}: a list of texts is wanted", field.name)))?;
            from_words(field, &words)
        }
        (Kind::Folders, Value::Array(items)) if items.iter().all(Value::is_string) => {
            paths(items.iter().filter_map(Value::as_str))
        }
        (Kind::Signals, Value::Array(items)) => {
            let names: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            from_text(field, &names.join(","))
        }
        // Hugging Face has a list of one name where one is meant.
        (Kind::Choice(_), Value::Array(items)) if matches!(items.as_slice(), [Value::String(_)]) => {
            from_json(field, &items[0])
        }
        (Kind::Counts, Value::Array(items)) if !items.is_empty() => {
            from_text(field, &items.iter().map(Value::to_string).collect::<Vec<_>>().join(","))
        }
        (Kind::Text, Value::String(_)) => Ok(value.clone()),
        (_, Value::String(text)) => from_text(field, text),
        (Kind::Switch | Kind::OptionalSwitch, Value::Bool(_)) => Ok(value.clone()),
        (Kind::Resume, Value::Bool(_)) | (_, Value::Number(_)) => from_text(field, &value.to_string()),
        (_, Value::Null) => nothing(field),
        _ => Err(Error::usage(format!("{}: {value} does not fit this setting", field.name))),
    }
}

fn nothing(field: &Field) -> Result<Value> {
    match field.kind {
        Kind::OptionalCount | Kind::OptionalNumber | Kind::Text | Kind::Path | Kind::Resume => {
            Ok(Value::Null)
        }
        Kind::Counts | Kind::OptionalModules | Kind::OptionalSwitch => Ok(Value::Null),
        Kind::Folders | Kind::Signals => Ok(json!([])),
        Kind::Pairs(_) => Ok(json!({})),
        _ => Err(Error::usage(format!("{}: a value is wanted", field.name))),
    }
}

/// The text of a value in `Settings`' form; numbers in their shortest form that reads back to the same bits.
#[must_use]
pub fn to_text(kind: Kind, value: &Value) -> String {
    let words = |items: &[Value]| {
        items
            .iter()
            .map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(",")
    };
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => words(items),
        Value::Object(map) if matches!(kind, Kind::Pairs(_)) => {
            let pair =
                |(name, key): (&String, &Value)| format!("{name}={}", key.as_str().unwrap_or_default());
            map.iter().map(pair).collect::<Vec<_>>().join(",")
        }
        Value::Object(map) if kind != Kind::Json => match map.iter().next() {
            Some((name, Value::Array(items))) if name == "names" => words(items),
            Some((name, inner)) if name == "cuda" => format!("cuda:{inner}"),
            Some((_, inner)) => to_text(kind, inner),
            None => "none".to_owned(),
        },
        Value::Number(number) => match number.as_f64() {
            Some(f) if number.is_f64() && f.fract() == 0.0 && f.abs() < 1e15 => format!("{f:.0}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// A whole number, also written `1e3` or `10.0`.
fn whole(text: &str) -> Option<u64> {
    if let Ok(number) = text.parse::<u64>() {
        return Some(number);
    }
    let number = text.parse::<f64>().ok()?;
    // Above 2^53 a float no longer names one whole number.
    ((0.0..=9_007_199_254_740_992.0).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// Why a choice of other trainers is none here.
fn unfit(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().replace('-', "_").as_str() {
        "reduce_lr_on_plateau" | "greedy" => {
            Some("a schedule here is a function of the step alone: it cannot follow the losses")
        }
        "all" | "wandb" | "swanlab" | "mlflow" | "comet_ml" | "clearml" | "neptune" | "dvclive"
        | "trackio" => Some(
            "nothing is sent over a network: tensorboard writes an event file, which `wandb sync` imports too",
        ),
        _ => None,
    }
}

/// The canonical name of a choice: case, dashes and underscores do not matter.
fn choice(names: &[&'static str], text: &str) -> Option<&'static str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let wanted = match plain(text).as_str() {
        "wsd" => "warmup-stable-decay".to_owned(),
        "bfloat16" => "bf16".to_owned(),
        "float32" | "fp32" => "f32".to_owned(),
        "false" => "no".to_owned(),
        other => other.to_owned(),
    };
    names.iter().copied().find(|name| plain(name) == wanted)
}

/// `all-linear`, names separated by commas, spaces, or as a Python list; or what only a regular expression has.
fn modules(text: &str) -> Value {
    if text.contains(['*', '+', '?', '^', '$', '|', '\\']) {
        return json!({ "pattern": text });
    }
    let separators = |c: char| c.is_whitespace() || ",[]()'\"".contains(c);
    let names: Vec<&str> = text.split(separators).filter(|name| !name.is_empty()).collect();
    match names[..] {
        [one] if matches!(one.replace('_', "-").as_str(), "all" | "all-linear") => json!("all-linear"),
        _ => json!({ "names": names }),
    }
}

/// Folders separated by commas.
fn folders(text: &str) -> Result<Value> {
    paths(text.split(',').map(str::trim).filter(|folder| !folder.is_empty() && !is_none(text)))
}

fn paths<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Value> {
    Ok(json!(words.into_iter().map(expand_home).collect::<Result<Vec<_>>>()?))
}

/// `NAME=KEY` pairs separated by commas; an empty key means that the rows have none.
fn pairs(field: &Field, names: &[&str], text: &str) -> Result<Value> {
    let mut map = Map::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty() && !is_none(text)) {
        let (name, key) = pair.split_once('=').unwrap_or((pair, ""));
        let name = match name.trim() {
            "instruction" | "question" => "prompt",
            "input" => "query",
            "output" | "answer" | "completion" => "response",
            other => other,
        };
        if !names.contains(&name) || !pair.contains('=') {
            return Err(Error::usage(format!("{}: '{pair}' is not NAME=KEY", field.name))
                .hint(format!("the names are {}", names.join(", "))));
        }
        if map.insert(name.to_owned(), json!(key.trim())).is_some() {
            return Err(Error::usage(format!("{}: {name} is given twice", field.name)));
        }
    }
    Ok(Value::Object(map))
}

/// Signals that a program may be asked to stop with, by name.
pub const SIGNALS: [&str; 13] =
    ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "CONT", "URG", "XCPU", "VTALRM", "PROF", "PWR"];

/// Names of signals separated by commas, with or without `SIG`.
fn signals(text: &str) -> Option<Value> {
    if is_none(text) {
        return Some(json!([]));
    }
    let known = |word: &str| {
        let name = word.trim().to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        SIGNALS.iter().copied().find(|known| *known == name)
    };
    text.split(',').map(known).collect::<Option<Vec<&str>>>().map(|names| json!(names))
}

/// Whole numbers separated by commas, spaces, or as a Python list; ascending, each once.
fn counts(text: &str) -> Option<Value> {
    let separators = |c: char| c.is_whitespace() || ",[]()".contains(c);
    let words = text.split(separators).filter(|word| !word.is_empty());
    let numbers = words.map(whole).collect::<Option<BTreeSet<u64>>>()?;
    (!numbers.is_empty()).then(|| json!(numbers))
}

fn device(text: &str) -> Option<Value> {
    DeviceChoice::parse(text).and_then(|choice| serde_json::to_value(choice).ok())
}

/// `auto` (also `True`), nothing (`False`), a step, or a path.
fn resume(text: &str) -> Result<Value> {
    Ok(if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("auto") {
        json!("auto")
    } else if text.eq_ignore_ascii_case("false") || is_none(text) {
        Value::Null
    } else if let Ok(step) = text.parse::<u64>() {
        json!({ "step": step })
    } else {
        json!({ "path": expand_home(text)? })
    })
}
