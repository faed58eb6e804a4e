//! Layers of settings: a configuration file below, flags above.

use super::fields::{self, FIELDS, Field};
#[cfg(feature = "yaml")]
use super::yaml;
use super::{Settings, foreign, llama_factory, value};
use crate::error::{Error, Kind, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Settings that were given, by field; a later one of the same field wins.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    given: BTreeMap<&'static str, Value>,
}

/// Largest settings file that is read: a parser's tree takes some tens of times its text.
const MAX_BYTES: u64 = 1 << 20;

impl Layer {
    /// Sets a field to a value in `Settings`' form.
    pub fn set(&mut self, field: &'static Field, value: Value) {
        self.given.insert(field.key, value);
    }

    /// Whether the setting was given here.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// The value that was given here, in `Settings`' form.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.given.get(key)
    }

    /// Takes a setting out.
    pub fn forget(&mut self, key: &str) {
        self.given.remove(key);
    }

    /// Whether the switch was given here, and on.
    #[must_use]
    pub fn is_true(&self, key: &str) -> bool {
        self.given.get(key) == Some(&Value::Bool(true))
    }

    /// Every setting of a resolved run.
    #[must_use]
    pub fn from_settings(settings: &Settings) -> Self {
        let all = serde_json::to_value(settings).unwrap_or(Value::Null);
        Layer { given: FIELDS.iter().map(|f| (f.key, all[f.key].clone())).collect() }
    }

    /// Every setting that was given, by its key.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.given.keys().copied()
    }

    /// Puts what `change` makes of each file and folder name in its place; names that are not given are passed over.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map_paths(&mut self, mut change: impl FnMut(&Path) -> Result<PathBuf>) -> Result<()> {
        let mut change = |value: &mut Value| -> Result<()> {
            if let Some(path) = value.as_str().filter(|path| !path.is_empty()) {
                *value = json!(change(Path::new(path))?);
            }
            Ok(())
        };
        for field in FIELDS.iter().filter(|field| field.kind.is_path()) {
            match self.given.get_mut(field.key) {
                Some(Value::Array(paths)) => paths.iter_mut().try_for_each(&mut change)?,
                Some(path) => change(path)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Puts `above` on top.
    pub fn cover(&mut self, above: &Layer) {
        self.given.extend(above.given.iter().map(|(k, v)| (*k, v.clone())));
    }

    /// Reads a TOML file, a YAML file (also one of LLaMA-Factory's), a JSON object of settings, or an earlier run's `run.json`. Settings of other tools
    /// that mean nothing here add a line to `warnings`.
    ///
    /// # Errors
    /// Input when the file cannot be read, usage when what it says is wrong.
    pub fn from_file(path: &Path, warnings: &mut Vec<String>) -> Result<Self> {
        let text = files::read_text(path, MAX_BYTES)?;
        let is_json = text.trim_start().starts_with('{');
        let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        let map = match (is_json, is_yaml) {
            (true, _) => parse_json(path, &text)?,
            (_, true) => parse_yaml(path, &text)?,
            _ => parse_toml(path, &text)?,
        };
        let map = match map.get("settings") {
            Some(Value::Object(inner)) if is_json => inner.clone(),
            _ if llama_factory::is_one(&map) => {
                llama_factory::translate(map, warnings).map_err(|e| e.at(path.display()))?
            }
            _ => map,
        };
        let mut layer = Layer::default();
        for (key, value) in &map {
            let place = || format!("{}:{}", path.display(), line_of(&text, key));
            let at = |e: Error| e.at(place()).of_kind(Kind::Usage);
            let Some(field) = fields::find(key) else {
                let foreign =
                    foreign::find_for_training(key).ok_or_else(|| unknown_key(&place(), key, value))?;
                let given = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                warnings.push(foreign.accept(key, &given).map_err(at)?);
                continue;
            };
            let value = value::from_json(field, value).map_err(at)?;
            if layer.has(field.key) {
                return Err(Error::usage(format!("{}: {} is set twice", place(), field.name)));
            }
            layer.set(field, value);
        }
        Ok(layer)
    }
}

/// Fills in the defaults and checks what can be checked without looking at any file.
///
/// # Errors
/// Usage, naming the setting.
pub fn resolve(layer: &Layer) -> Result<Settings> {
    let settings = fill(layer)?;
    super::check(&settings)?;
    Ok(settings)
}

/// Fills in the defaults. What contradicts another setting is left to [`super::check()`].
///
/// # Errors
/// Usage, naming a setting whose value does not have its type.
pub fn fill(layer: &Layer) -> Result<Settings> {
    let mut map: Map<String, Value> = layer.given.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    // A path that was unset (`--cache-dir none`) is an absent one.
    map.retain(|key, value| !(value.is_null() && matches!(key.as_str(), "model" | "output_dir")));
    split_adapters(&mut map)?;
    if !map.contains_key("lora_alpha")
        && let Some(rank) = map.get("lora_r").and_then(Value::as_f64)
    {
        map.insert("lora_alpha".into(), json!(2.0 * rank));
    }
    serde_json::from_value(Value::Object(map.clone())).map_err(|e| misfit(&map, &e))
}

/// DeepKE's list `A,B,C` of adapters to begin with: all but the last are folded into the base.
fn split_adapters(map: &mut Map<String, Value>) -> Result<()> {
    let Some(Value::String(list)) = map.get("init_adapter") else { return Ok(()) };
    let mut folders: Vec<String> = list.split(',').map(|folder| folder.trim().to_owned()).collect();
    folders.retain(|folder| !folder.is_empty());
    if !list.contains(',') {
        return Ok(());
    }
    if map.get("fold_adapters").and_then(Value::as_array).is_some_and(|folded| !folded.is_empty()) {
        return Err(Error::usage(
            "init_adapter lists several adapters, and fold_adapters others: give one list",
        ));
    }
    map.insert("init_adapter".into(), folders.pop().map_or(Value::Null, Value::String));
    map.insert("fold_adapters".into(), json!(folders));
    Ok(())
}

/// Names the setting whose value does not have its type.
fn misfit(map: &Map<String, Value>, error: &serde_json::Error) -> Error {
    let alone = |(key, value): (&String, &Value)| json!({ key.as_str(): value });
    let fits = |one: &Value| serde_json::from_value::<Settings>(one.clone()).is_ok();
    let name = map.iter().find(|entry| !fits(&alone(*entry))).and_then(|(key, _)| fields::find(key));
    Error::usage(name.map_or_else(|| error.to_string(), |field| format!("{}: {error}", field.name)))
}

fn parse_json(path: &Path, text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| Error::usage(format!("{}: {e}", path.display())).caused_by(e))
}

fn parse_toml(path: &Path, text: &str) -> Result<Map<String, Value>> {
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        Error::usage(format!("{}:{line}: {}", path.display(), e.message().replace('\n', " ")))
            .hint("a configuration is TOML (`learning_rate = 1e-4`), JSON, or the run.json of a run")
    })?;
    match serde_json::to_value(table) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Error::usage(format!("{}: not a table of settings", path.display()))),
    }
}

#[cfg(not(feature = "yaml"))]
fn parse_yaml(path: &Path, _: &str) -> Result<Map<String, Value>> {
    Err(Error::usage(format!("{}: this build reads no YAML", path.display()))
        .hint("build with the feature `yaml`, or write it as TOML or JSON"))
}

#[cfg(feature = "yaml")]
fn parse_yaml(path: &Path, text: &str) -> Result<Map<String, Value>> {
    let at = |(line, what)| Error::usage(format!("{}:{line}: {what}", path.display()));
    let mut map = yaml::parse(text).map_err(at)?;
    // A key without a value is one that is not given.
    map.retain(|_, value| !value.is_null());
    Ok(map)
}

fn unknown_key(place: &str, key: &str, value: &Value) -> Error {
    if value.is_object() {
        return Error::usage(format!("{place}: unknown section '{key}'"))
            .hint("settings are flat, named as the flags are: `lora_r = 16`, under no heading");
    }
    let error = Error::usage(format!("{place}: unknown setting '{key}'"));
    match nearest(key) {
        Some(name) => error.hint(format!("the nearest known name is {name}")),
        None => error,
    }
}

/// The line on which a key is first written, counted from 1.
fn line_of(text: &str, key: &str) -> usize {
    let starts_here = |line: &str| {
        let bare = line.trim_start().trim_start_matches(['[', '"', '\'', '{', ' ']);
        bare.strip_prefix(key).is_some_and(|rest| {
            rest.trim_start_matches(['"', '\'', ' ', ']', '\t']).starts_with(['=', ':'])
                || rest.starts_with(']')
        })
    };
    text.lines().position(starts_here).map_or(1, |index| index + 1)
}

/// The known setting name or alias nearest to `name`, when one is near.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_");
    let known = FIELDS.iter().flat_map(|f| std::iter::once(&f.name).chain(f.aliases));
    let best = known.map(|known| (edit_distance(&name, known), *known)).min()?;
    (best.0 <= 2.max(name.len() / 3)).then_some(best.1)
}

/// Levenshtein's distance, in bytes.
#[must_use]
pub fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
