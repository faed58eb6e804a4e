//! LLaMA-Factory's configurations (`llamafactory-cli train FILE.yaml`, version 0.9): data sets named in a
//! `dataset_info.json`, names and defaults that mean something else there. What is the same here stays as it is;
//! what cannot be honoured is refused by the tables of `foreign`.

use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Largest `dataset_info.json` that is read.
const MAX_BYTES: u64 = 4 << 20;

/// Keys that only LLaMA-Factory's configurations have.
const ITS_OWN: &[&str] = &["dataset", "eval_dataset", "dataset_dir", "finetuning_type", "lora_target"];

/// What it takes where nothing is said and this program would take something else.
const DEFAULTS: &[(&str, f64)] = &[("lora_rank", 8.0), ("learning_rate", 5e-5)];

/// Its templates under the names they have here.
const TEMPLATES: &[(&str, &str)] =
    &[("qwen", "qwen2.5"), ("qwen3_nothink", "qwen3-nothink"), ("empty", "none")];

/// Whether this is a configuration of LLaMA-Factory.
pub(super) fn is_one(map: &Map<String, Value>) -> bool {
    ITS_OWN.iter().any(|key| map.contains_key(*key))
}

/// The same configuration in this program's names; what was filled in or means something else adds a line to
/// `warnings`.
pub(super) fn translate(
    mut map: Map<String, Value>,
    warnings: &mut Vec<String>,
) -> Result<Map<String, Value>> {
    let named = |value: Option<Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
            Ok(Some(items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")))
        }
        Some(other) => Err(Error::usage(format!("{other} does not name data sets or their folder"))),
    };
    let names = DataSets {
        train: named(map.remove("dataset"))?,
        eval: named(map.remove("eval_dataset"))?,
        folder: named(map.remove("dataset_dir"))?,
    };
    let limited = map.get("max_samples").is_some_and(|most| !most.is_null());
    for (key, value) in names.find(limited)? {
        if map.insert(key.to_owned(), value).is_some() {
            return Err(Error::usage(format!("{key} beside `dataset`: name the rows once")));
        }
    }
    for (key, value) in DEFAULTS {
        let given = super::fields::find(key).is_some_and(|field| {
            let mut names = field.aliases.iter().chain([&field.name, &field.key]);
            names.any(|name| map.get(*name).is_some_and(|value| !value.is_null()))
        });
        if !given {
            map.insert((*key).to_owned(), json!(value));
            warnings.push(format!("{key} is not given: {value}, LLaMA-Factory's default"));
        }
    }
    rename(&mut map, warnings);
    let template = map.get("template").and_then(Value::as_str);
    if let Some((_, ours)) = TEMPLATES.iter().find(|(theirs, _)| template == Some(theirs)) {
        map.insert("template".to_owned(), json!(ours));
    }
    pack(&mut map, warnings);
    Ok(map)
}

/// Switches and lists that another setting says here.
fn rename(map: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    let mut turn = |their: &str, on: Value, key: &str, value: Value| {
        if map.get(their) == Some(&on) {
            map.remove(their);
            warnings.push(format!("{their}: {on} is {key}: {value} here"));
            map.insert(key.to_owned(), value);
        }
    };
    turn("mask_history", json!(true), "train_on", json!("last-turn"));
    turn("disable_shuffling", json!(true), "shuffle", json!(false));
    let begins = map.get("adapter_name_or_path").cloned().unwrap_or_default();
    if map.get("create_new_adapter") == Some(&json!(true)) {
        map.remove("create_new_adapter");
        if map.remove("adapter_name_or_path").is_some() {
            map.insert("fold_adapters".to_owned(), begins);
        }
    }
}

/// Its packed sequences have `cutoff_len` tokens, and a batch has several; here a micro-batch is one sequence.
fn pack(map: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    let neat = map.remove("neat_packing") == Some(json!(true));
    let packs = map.get("packing") == Some(&json!(true)) || neat;
    if !packs {
        return;
    }
    map.insert("packing".to_owned(), json!(true));
    if !neat {
        warnings.push("packing: rows never see each other here, as with neat_packing".into());
    }
    let count = |key: &str, default| map.get(key).and_then(Value::as_u64).unwrap_or(default);
    let tokens = count("cutoff_len", 2048).saturating_mul(count("per_device_train_batch_size", 8));
    if !map.contains_key("tokens_per_micro_batch") {
        map.insert("tokens_per_micro_batch".to_owned(), json!(tokens));
        warnings
            .push(format!("tokens_per_micro_batch is {tokens}: cutoff_len x per_device_train_batch_size"));
    }
}

/// Names of data sets, as `dataset`, `eval_dataset` and `dataset_dir` give them.
#[derive(Debug, Default)]
pub struct DataSets {
    /// Those to train on, separated by commas.
    pub train: Option<String>,
    /// The one to evaluate on.
    pub eval: Option<String>,
    /// The folder of `dataset_info.json`; `data` where none is given.
    pub folder: Option<String>,
}

impl DataSets {
    /// The part that the flag `name` gives.
    pub fn named(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name.replace('-', "_").as_str() {
            "dataset" => Some(&mut self.train),
            "eval_dataset" => Some(&mut self.eval),
            "dataset_dir" => Some(&mut self.folder),
            _ => None,
        }
    }

    /// The settings that name their files and columns. `limited`: only the first rows of each are taken.
    ///
    /// # Errors
    /// Input or usage: no such data set, or one that cannot be read here, with the reason.
    pub fn find(&self, limited: bool) -> Result<Vec<(&'static str, Value)>> {
        let list = |names: &Option<String>| -> Vec<String> {
            let names = names.as_deref().unwrap_or_default().split(',').map(str::trim);
            names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let (train, eval) = (list(&self.train), list(&self.eval));
        if train.is_empty() && eval.is_empty() {
            return Ok(Vec::new());
        }
        let folder = PathBuf::from(self.folder.as_deref().unwrap_or("data"));
        let path = folder.join("dataset_info.json");
        if self.folder.as_deref().is_some_and(|folder| folder == "ONLINE" || folder.starts_with("REMOTE:")) {
            return Err(
                Error::usage("dataset_dir: nothing is downloaded").hint("name a folder with the files")
            );
        }
        let all = files::read(&path, MAX_BYTES)?;
        let all: Map<String, Value> = serde_json::from_slice(&all)
            .map_err(|e| Error::input(format!("{}:{}: {e}", path.display(), e.line())))?;
        let mut found = Found { path: &path, folder: &folder, columns: Map::new() };
        let mut files = Vec::new();
        for name in &train {
            let own = found.files(name, &all)?;
            if limited && own.len() > 1 {
                return Err(found.wrong(name, "max_samples of a folder of several files: name one file"));
            }
            files.extend(own);
        }
        let mut settings = Vec::new();
        if !files.is_empty() {
            settings.push(("train_file", json!(files)));
        }
        let eval: Vec<PathBuf> =
            eval.iter().map(|name| found.files(name, &all)).collect::<Result<Vec<_>>>()?.concat();
        match eval.as_slice() {
            [] => {}
            [one] => settings.push(("valid_file", json!(one))),
            _ => return Err(Error::usage("eval_dataset: one file is evaluated; join the rows into one")),
        }
        if !found.columns.is_empty() {
            settings.push(("columns", Value::Object(found.columns)));
        }
        Ok(settings)
    }
}

/// What was found in a `dataset_info.json` so far.
struct Found<'a> {
    path: &'a Path,
    folder: &'a Path,
    columns: Map<String, Value>,
}

/// Entries that say where a data set is downloaded from.
const REMOTE: &[&str] = &["hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"];
/// Columns of training that is not done here, and what it is.
const OTHER_COLUMNS: &[&str] = &["chosen", "rejected", "kto_tag", "images", "videos", "audios"];
/// The names that rows are known by without `columns` and `tags`: saying them changes nothing.
const USUAL: &[(&str, &str)] = &[
    ("prompt", "instruction"),
    ("query", "input"),
    ("response", "output"),
    ("messages", "conversations"),
    ("messages", "messages"),
    ("system", "system"),
    ("tools", "tools"),
    ("history", "history"),
    ("role_tag", "from"),
    ("role_tag", "role"),
    ("content_tag", "value"),
    ("content_tag", "content"),
    ("user_tag", "human"),
    ("user_tag", "user"),
    ("assistant_tag", "gpt"),
    ("assistant_tag", "assistant"),
    ("observation_tag", "observation"),
    ("observation_tag", "tool"),
    ("function_tag", "function_call"),
    ("system_tag", "system"),
];

impl Found<'_> {
    fn wrong(&self, name: &str, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{}: data set {name}: {what}", self.path.display()))
    }

    fn files(&mut self, name: &str, all: &Map<String, Value>) -> Result<Vec<PathBuf>> {
        let Some(Value::Object(entry)) = all.get(name) else {
            let known: Vec<&str> = all.keys().take(12).map(String::as_str).collect();
            return Err(self.wrong(name, "it is not there").hint(format!("it has {}", known.join(", "))));
        };
        self.check(name, entry)?;
        for (key, table) in [("columns", entry.get("columns")), ("tags", entry.get("tags"))] {
            match table {
                None | Some(Value::Null) => {}
                Some(Value::Object(table)) => self.map(name, table)?,
                Some(_) => return Err(self.wrong(name, format!("`{key}` is no object"))),
            }
        }
        let Some(file) = entry.get("file_name").and_then(Value::as_str) else {
            return Err(self.wrong(name, "it has no `file_name`"));
        };
        let path = self.folder.join(file);
        if !files::is_folder(&path)? {
            return Ok(vec![path]);
        }
        let reading = |e: std::io::Error| Error::reading(&path, e);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(reading)? {
            let file = entry.map_err(reading)?.path();
            if files::is_file(&file)? {
                files.push(file);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Refuses what changes the rows and is not done here.
    fn check(&self, name: &str, entry: &Map<String, Value>) -> Result<()> {
        let said = |key: &str| entry.get(key).filter(|value| !value.is_null() && **value != json!(false));
        if let Some(key) = REMOTE.iter().find(|key| said(key).is_some()) {
            let from = entry[*key].as_str().unwrap_or_default();
            return Err(self.wrong(name, format!("`{key}`: nothing is downloaded here")).hint(format!(
                "get it with: hf download --repo-type dataset {from} --local-dir DIR, and name its file: --train-file"
            )));
        }
        if said("ranking").is_some() {
            return Err(
                self.wrong(name, "`ranking`: it is for preference training (DPO, KTO), which this is not")
            );
        }
        if said("num_samples").is_some() {
            return Err(
                self.wrong(name, "`num_samples` draws rows at random: write a file of the rows wanted")
            );
        }
        if said("split").is_some_and(|split| split != "train") {
            return Err(self.wrong(name, "`split` other than train: a file has one split"));
        }
        match said("formatting").and_then(Value::as_str) {
            None | Some("alpaca" | "sharegpt" | "openai") => Ok(()),
            Some(other) => {
                Err(self.wrong(name, format!("`formatting` {other:?} is not alpaca, sharegpt or openai")))
            }
        }
    }

    fn map(&mut self, name: &str, table: &Map<String, Value>) -> Result<()> {
        for (column, key) in table {
            let Some(key) = key.as_str() else {
                if key.is_null() {
                    continue;
                }
                return Err(self.wrong(name, format!("the key of {column} is no text")));
            };
            if OTHER_COLUMNS.contains(&column.as_str()) {
                return Err(self.wrong(name, format!("`{column}`: text with one answer is trained on here")));
            }
            if !USUAL.iter().any(|(usual, _)| usual == column) {
                return Err(self.wrong(name, format!("`{column}` is no column or tag that is known")));
            }
            if USUAL.contains(&(column.as_str(), key)) {
                continue;
            }
            let before = self.columns.insert(column.clone(), json!(key));
            if before.is_some_and(|before| before != json!(key)) {
                return Err(self.wrong(
                    name,
                    format!("another data set has another key for {column}: train on each alone"),
                ));
            }
        }
        Ok(())
    }
}
