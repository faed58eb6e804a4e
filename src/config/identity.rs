//! Which settings decide the numbers, and what may change when a run continues.

use super::fields::{Class, FIELDS, Field, find};
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
/// Left out: names of files (their contents are digested), cadence, the machine, and the length of the run
/// (the checkpoint's schedule records that).
#[must_use]
pub fn math_identity(settings: &Settings) -> BTreeMap<String, String> {
    let all = serde_json::to_value(settings).unwrap_or(Value::Null);
    FIELDS
        .iter()
        .filter(|field| field.class == Class::Math)
        .map(|field| (field.key.to_owned(), value::to_text(field.kind, &all[field.key])))
        .collect()
}

/// Whether a resumed run may be given another value of this setting.
#[must_use]
pub fn may_change_on_resume(name: &str) -> bool {
    find(name).is_some_and(|field| field.class != Class::Math)
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
