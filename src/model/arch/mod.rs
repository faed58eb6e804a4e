//! The architecture families: each file turns the `config.json` of one into a [`Spec`].
//!
//! A family is a file here and a line in [`FAMILIES`]; a new kind of mixer or MLP also a file in `block`.

mod qwen1;
mod qwen2;
mod qwen3;

use super::config::{Config, brief};
use super::spec::Spec;
use crate::error::{Error, Result};
use serde_json::Value;

/// One family.
pub(super) struct Family {
    /// Its name, as `model_type` has it.
    pub name: &'static str,
    /// Its `model_type`s and `architectures`.
    pub model_types: &'static [&'static str],
    pub architectures: &'static [&'static str],
    /// The released models, for messages.
    pub models: &'static str,
    /// Checks and reads the keys.
    pub read: fn(&Config) -> Result<Spec>,
}

/// All families.
const FAMILIES: &[&Family] = &[&qwen1::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY];

/// The architectures there are, in one sentence.
pub(super) fn supported() -> String {
    let list = FAMILIES.iter().map(|f| format!("{} ({})", f.architectures[0], f.models));
    format!("supported are {}", list.collect::<Vec<_>>().join(", "))
}

/// The family whose `architectures` and `model_type` the file names.
pub(super) fn family(config: &Config) -> Result<&'static Family> {
    let architecture = match config.value("architectures") {
        None => None,
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::String(one)] => Some(one.as_str()),
            [] => None,
            _ => return Err(config.fault("architectures names more than one, or something not a string")),
        },
        Some(_) => return Err(config.fault("architectures is not a list")),
    };
    let find = |key: &str, name: Option<&str>, names: fn(&Family) -> &'static [&'static str]| {
        let Some(name) = name else { return Ok(None) };
        let found = FAMILIES.iter().find(|family| names(family).contains(&name));
        found.map(|family| Some(*family)).ok_or_else(|| unsupported(config, key, name))
    };
    let by_architecture = find("architecture", architecture, |f| f.architectures)?;
    let by_type = find("model_type", config.text("model_type")?, |f| f.model_types)?;
    match (by_architecture, by_type) {
        (Some(a), Some(b)) if a.name != b.name => {
            Err(config.fault("architectures and model_type name different families"))
        }
        (Some(family), _) | (None, Some(family)) => Ok(family),
        (None, None) => Err(config.fault("neither architectures nor model_type is there").hint(supported())),
    }
}

fn unsupported(config: &Config, key: &str, name: &str) -> Error {
    let lower = name.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|p| lower.contains(p));
    let kind = if has(&["moe"]) {
        " (mixture of experts)"
    } else if has(&["vl", "vision", "omni"]) {
        " (vision)"
    } else if has(&["audio"]) {
        " (audio)"
    } else {
        ""
    };
    let name = brief(&Value::from(name));
    config.fault(format_args!("{key} {name}{kind} is not supported")).hint(supported())
}
