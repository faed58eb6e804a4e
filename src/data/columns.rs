//! `--columns`: a row whose keys have other names is read as if they had ours. The names on the left are those of
//! LLaMA-Factory's `dataset_info.json` (`columns` and `tags`).

use super::json::{Fields, Json};
use super::keys;
use std::collections::BTreeMap;

/// A name that `--columns` takes, the key it becomes, and the keys that mean the same and then count no more.
struct Column {
    name: &'static str,
    key: &'static str,
    others: &'static [&'static str],
}

const fn column(name: &'static str, key: &'static str, others: &'static [&'static str]) -> Column {
    Column { name, key, others }
}

/// Keys of a row.
const COLUMNS: &[Column] = &[
    column("prompt", "prompt", keys::QUESTION),
    column("query", keys::INPUT, &[]),
    column("response", "response", keys::ANSWER),
    column("history", "history", &[]),
    column("messages", "messages", keys::MESSAGES),
    column("system", "system", keys::SYSTEM),
    column("tools", "tools", &[]),
    column("text", "text", &[]),
];

/// Keys of a message.
const MESSAGE: &[Column] =
    &[column("role_tag", "role", keys::SPEAKER), column("content_tag", "content", keys::SAID)];

/// Speakers, and the role that each is.
const SPEAKERS: &[(&str, &str)] = &[
    ("system_tag", "system"),
    ("user_tag", "user"),
    ("assistant_tag", "assistant"),
    ("observation_tag", "tool"),
    ("function_tag", "function_call"),
];

/// The row with the names that are known here. A column that the row does not have changes nothing, one that is
/// mapped to nothing is left out.
pub(super) fn apply(columns: &BTreeMap<String, String>, row: Json) -> Json {
    let Json::Object(mut fields) = row else { return row };
    if columns.is_empty() {
        return Json::Object(fields);
    }
    rename(columns, COLUMNS, &mut fields);
    for key in keys::MESSAGES {
        if let Some(Json::Array(items)) = fields.get_mut(key) {
            items.iter_mut().for_each(|item| message(columns, item));
        }
    }
    Json::Object(fields)
}

fn message(columns: &BTreeMap<String, String>, item: &mut Json) {
    let Json::Object(fields) = item else { return };
    rename(columns, MESSAGE, fields);
    for key in keys::SPEAKER {
        let Some(Json::String(speaker)) = fields.get_mut(key) else { continue };
        let role = SPEAKERS.iter().find(|(name, _)| columns.get(*name) == Some(speaker));
        if let Some((_, role)) = role {
            *speaker = (*role).to_owned();
        }
    }
}

fn rename(columns: &BTreeMap<String, String>, table: &[Column], fields: &mut Fields) {
    // All are taken out before any is put in: two columns may change places.
    let mut taken = Vec::new();
    for column in table {
        let Some(source) = columns.get(column.name) else { continue };
        if source.is_empty() || fields.contains_key(source) {
            taken.push((column, fields.get(source).cloned()));
        }
    }
    for (column, _) in &taken {
        fields.remove(columns.get(column.name).map_or("", String::as_str));
        fields.remove(column.key);
        column.others.iter().for_each(|other| fields.remove(other));
    }
    for (column, value) in taken {
        if let Some(value) = value {
            fields.insert(column.key, value);
        }
    }
}
