//! A configuration file to begin with: every setting with its default and its meaning, those that must be given first.

use super::fields::{Class, FIELDS, Field, Group, Kind};
use serde_json::Value;

/// Settings that a first run has to give, and what stands there until it does.
const GIVEN: [(&str, &str); 3] = [
    ("model_name_or_path", "\"path/to/model\""),
    ("train_file", "[\"train.jsonl\"]"),
    ("output_dir", "\"runs/first\""),
];

/// The text of a commented configuration, TOML.
#[must_use]
pub fn commented() -> String {
    let mut text = String::from(
        "# A configuration for `qwentune train --config FILE`. Flags win over it. A line that begins with `#` shows a\n\
         # setting's default; take the `#` away to change it.\n",
    );
    for (name, value) in GIVEN {
        text += &format!("\n{name} = {value}\n");
    }
    let all = serde_json::to_value(super::Settings::default()).unwrap_or(Value::Null);
    for group in Group::ALL {
        text += &format!("\n# ---- {} ----\n", group.title());
        let shown = |f: &&Field| {
            f.group == group && f.class != Class::Start && GIVEN.iter().all(|(name, _)| *name != f.name)
        };
        for field in FIELDS.iter().filter(shown) {
            text += &format!("\n# {}\n", described(field));
            text += &match (field.kind, &all[field.key]) {
                // A text can say everything but that there is none.
                (Kind::Text, Value::Null) => format!("# {}: not given\n", field.name),
                (_, value) => format!("# {} = {}\n", field.name, toml(value)),
            };
        }
    }
    text
}

fn described(field: &Field) -> String {
    let choices = match field.kind {
        Kind::Choice(names) => format!(": {}", names.join(", ")),
        _ => String::new(),
    };
    let note = match field.default_note {
        "" => String::new(),
        note => format!(" (default: {note})"),
    };
    format!("{}{choices}{note}", field.doc)
}

/// A default as TOML has it; `none` where there is none.
fn toml(value: &Value) -> String {
    match value {
        Value::Null => "\"none\"".into(),
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            format!(
                "{{ {} }}",
                map.iter().map(|(k, v)| format!("{k:?} = {}", toml(v))).collect::<Vec<_>>().join(", ")
            )
        }
        other => other.to_string(),
    }
}
