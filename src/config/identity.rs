//! Which settings decide the numbers, and what may change when a run continues.

use super::fields::{Class, FIELDS, Field};
use super::{Settings, value};
use serde_json::Value;
use std::collections::BTreeMap;

/// The text of one setting: what `--help`, refusals and the identity show.
#[must_use]
pub fn text_of(settings: &Settings, field: &Field) -> String {
    // Plain values always serialise; a path that is not UTF-8 cannot get into `Settings` from a flag or file.
    let all = serde_json::to_value(settings).unwrap_or(Value::Null);
    value::to_text(field.kind, &all[field.key])
}

/// Key to text for every setting that decides the numbers, for a checkpoint's identity.
///
/// Left out: what may change on a resume, such as names of files (their contents are digested) and the length of
/// the run (the checkpoint's history records that).
#[must_use]
pub fn math_identity(settings: &Settings) -> BTreeMap<String, String> {
    let all = serde_json::to_value(settings).unwrap_or(Value::Null);
    FIELDS
        .iter()
        .filter(|field| field.class.decides_numbers())
        .map(|field| (field.key.to_owned(), value::to_text(field.kind, &all[field.key])))
        .collect()
}

/// The settings in which two differ, with both texts; how a process starts is left out.
#[must_use]
pub fn changed(old: &Settings, new: &Settings) -> Vec<(&'static Field, String, String)> {
    FIELDS
        .iter()
        .filter(|field| field.class != Class::Start)
        .map(|field| (field, text_of(old, field), text_of(new, field)))
        .filter(|(_, old, new)| old != new)
        .collect()
}
