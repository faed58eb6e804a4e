//! Prediction files: rows with a label and the answer a model gave, as `generate` writes them.

use super::extraction::{NO_SOURCE, Scorer, Task};
use super::json::{Fields, Json};
use super::{prepare, reader::RowReader};
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Reads a prediction file. Without `task`, the rows' own `task` counts.
///
/// # Errors
/// Input, naming file and row: rows that lack `id`, `label` or `output`, a label that does not fit the task, rows
/// of several tasks. Usage: no task is named anywhere.
pub fn read(path: &Path, task: Option<Task>) -> Result<(Task, Scorer)> {
    let mut reader = RowReader::open(path)?;
    let mut scorer: Option<(Task, Scorer)> = None;
    while let Some(raw) = reader.next()? {
        let place = format!("{}{}", path.display(), raw.place);
        let at = |fault: String| Error::input(format!("{place}: {fault}"));
        let row = match prepare::parse_json(&raw).map_err(at)? {
            Json::Object(fields) => fields,
            other => return Err(at(format!("the row is {}, not an object", other.kind()))),
        };
        let own = own_task(&row).map_err(at)?;
        let (task, scorer) = match &mut scorer {
            Some((task, scorer)) => (*task, scorer),
            empty => {
                let first = task.or(own).ok_or_else(|| no_task(&place))?;
                let (task, scorer) = empty.insert((first, Scorer::new(first)));
                (*task, scorer)
            }
        };
        if let Some(own) = own.filter(|own| *own != task) {
            return Err(at(format!("the row's task is {}, {} is evaluated", own.name(), task.name()))
                .hint("evaluate the rows of one task at a time"));
        }
        add(scorer, &row).map_err(|(fault, remedy)| at(fault).hint(remedy))?;
    }
    scorer.ok_or_else(|| Error::input(format!("{}: no rows", path.display())))
}

fn no_task(place: &str) -> Error {
    let names = Task::ALL.map(|(name, _)| name).join(", ");
    Error::usage(format!("{place}: the row does not say its `task`"))
        .hint(format!("say what was extracted: --task {names}"))
}

/// The row's `task`; one without rules here is refused.
fn own_task(row: &Fields) -> std::result::Result<Option<Task>, String> {
    match row.get("task") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(name)) => Task::named(name).map(Some).ok_or_else(|| {
            format!("the row's task is {name:?}; there are rules for NER, RE, EE, EET and EEA")
        }),
        Some(other) => Err(format!("`task` is {}, not a string", other.kind())),
    }
}

/// What is wrong with a row, and what to do.
type Fault = (String, &'static str);

fn add(scorer: &mut Scorer, row: &Fields) -> std::result::Result<(), Fault> {
    let text = |key: &str, remedy: &'static str| match row.get(key) {
        Some(Json::String(text)) => Ok(text.clone()),
        Some(Json::Integer(number)) if key == "id" => Ok(number.to_string()),
        Some(other) => Err((format!("`{key}` is {}, not a string", other.kind()), "")),
        None => Err((format!("`{key}` is missing"), remedy)),
    };
    let source = match row.get("source") {
        None | Some(Json::Null) => NO_SOURCE.to_owned(),
        Some(_) => text("source", "")?,
    };
    let id = text("id", "rows of one text share `source` and `id`; give every text an id of its own")?;
    let answer = text("output", "`qwentune generate --input-file ... --output-file ...` writes the answers")?;
    let no_label =
        "a label is the JSON text of a list such as [{\"entity\": \"Oslo\", \"entity_type\": \"location\"}]";
    let label: Value = serde_json::from_str(&text("label", no_label)?)
        .map_err(|fault| (format!("`label` is not JSON: {fault}"), no_label))?;
    scorer.add(&source, &id, &label, &answer).map_err(|fault| (fault, no_label))
}
