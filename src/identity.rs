//! What decides the result of a run. Two runs with equal identities compute the same bits; a checkpoint holds its
//! run's, and a resume compares it with what is there now.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that decides the result of a run. Its canonical JSON ([`canonical_json`]) is its encoding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The frozen model.
    pub model: BaseModel,
    /// The rows.
    pub data: Data,
    /// Where the adapter begins.
    pub adapter: InitialAdapter,
    /// What is minimised.
    pub objective: Objective,
    /// Settings that decide the numbers, as text.
    pub settings: BTreeMap<String, String>,
    /// The arithmetic.
    pub engine: Engine,
}

/// The frozen model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// BLAKE3 of each file, hex, by name.
    pub files: BTreeMap<String, String>,
    /// How its matrices are stored: the names of their [`crate::encoding::Encoding`]s, most often `bf16` alone.
    pub encoding: String,
}

/// The rows of a run and how they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Rows trained on.
    pub train: RowSet,
    /// Rows evaluated on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<RowSet>,
    /// Digest of the tokenizer, where rows were text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The chat template, where rows were text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
}

/// Tokenised rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSet {
    /// BLAKE3 of the tokens and labels of all rows, hex.
    pub digest: String,
    /// Their number.
    pub rows: u64,
    /// The files they came from; none for rows in memory or split off others.
    pub files: Vec<DataFile>,
}

/// A data file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// BLAKE3 of its bytes, hex.
    pub digest: String,
    /// The format of its rows.
    pub format: String,
    /// Rows left out because they are wrong.
    pub skipped: u64,
}

/// A chat template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Its name, `unknown` for none that the program has by name.
    pub name: String,
    /// BLAKE3 of its text, hex, where it is a text that is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Whether reasoning was asked for, where the template can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<bool>,
    /// Name and version of what runs the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Where the adapter begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialAdapter {
    /// BLAKE3 of its first values, hex.
    pub initial: String,
    /// Digests of the adapters folded into the base, in order.
    pub folded: Vec<String>,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Cross-entropy of the scored tokens.
    #[default]
    Supervised,
}

/// The arithmetic of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Kind of device: `cpu`, or `cuda` with its compute capability.
    pub device: String,
    /// Name of the arithmetic: `f32` or `bf16`.
    pub arithmetic: String,
    /// Its version, which changes whenever a result's bits do.
    pub version: String,
    /// Fingerprint of the kernels, on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<String>,
}

/// A difference between two identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field, its path joined by dots.
    pub field: String,
    /// Value in the checkpoint, if it has one.
    pub old: Option<String>,
    /// Value now, if there is one.
    pub new: Option<String>,
}

impl Identity {
    /// Every value as text, by the path of its field joined by dots: `data.train.rows`.
    #[must_use]
    pub fn fields(&self) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        flatten(String::new(), &to_value(self), &mut fields);
        fields
    }

    /// All fields in which `self` (the checkpoint's) and `now` differ, sorted by field.
    #[must_use]
    pub fn differences(&self, now: &Identity) -> Vec<Difference> {
        let (old, new) = (self.fields(), now.fields());
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let differing = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
        differing
            .map(|name| Difference {
                field: name.clone(),
                old: old.get(name).cloned(),
                new: new.get(name).cloned(),
            })
            .collect()
    }
}

/// Values made of maps, lists, strings, integers and booleans always serialise.
fn to_value<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn flatten(path: String, value: &Value, fields: &mut BTreeMap<String, String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(below(key), value, fields)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| flatten(below(&i.to_string()), value, fields));
        }
        Value::String(text) => _ = fields.insert(path, text.clone()),
        other => _ = fields.insert(path, other.to_string()),
    }
}

/// JSON in the one form that equal values share: keys in byte order, no white space, the escapes of `serde_json`.
/// `value` holds no floating-point numbers.
#[must_use]
pub fn canonical_json<T: Serialize>(value: &T) -> String {
    let mut text = String::new();
    write_canonical(&to_value(value), &mut text);
    text
}

fn write_canonical(value: &Value, out: &mut String) {
    let mut list = |brackets: [char; 2], items: &mut dyn Iterator<Item = (Option<&String>, &Value)>| {
        out.push(brackets[0]);
        for (index, (key, item)) in items.enumerate() {
            if index > 0 {
                out.push(',');
            }
            if let Some(key) = key {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
            }
            write_canonical(item, out);
        }
        out.push(brackets[1]);
    };
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            list(['{', '}'], &mut sorted.into_iter().map(|(key, value)| (Some(key), value)));
        }
        Value::Array(items) => list(['[', ']'], &mut items.iter().map(|value| (None, value))),
        plain => out.push_str(&plain.to_string()),
    }
}

/// Reads what [`canonical_json`] wrote, and nothing else: another spelling of the same value (white space, order,
/// a key twice) is an error.
///
/// # Errors
/// Says what is wrong.
pub fn from_canonical_json<T: Serialize + for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    let value: T = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if canonical_json(&value).as_bytes() == bytes { Ok(value) } else { Err("not in canonical form".into()) }
}
