//! What a row says, whatever its format: a conversation, a text, or tokens.

use super::dataset::{IGNORED, Row};
use super::json::Json;
use crate::config::settings::RowFormat;
use std::collections::BTreeMap;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) role: Role,
    pub(super) content: String,
    /// `reasoning_content` of an assistant's message.
    pub(super) reasoning: Option<String>,
}

/// A row's content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// At least one turn; a system turn comes first.
    Chat(Vec<Turn>),
    Text(String),
    Tokens(Row),
}

type Fields = BTreeMap<String, Json>;
type Read<T> = std::result::Result<T, String>;

/// The format that the keys of a file's first row tell.
pub(super) fn recognise(first: &Json) -> Read<RowFormat> {
    let fields = object(first)?;
    let has = |key: &str| fields.contains_key(key);
    match () {
        () if has("input_ids") => Ok(RowFormat::Tokenized),
        () if has("messages") => Ok(RowFormat::Messages),
        () if has("conversations") => Ok(RowFormat::Sharegpt),
        () if has("instruction") && has("output") => Ok(RowFormat::Alpaca),
        () if has("prompt") && has("completion") => Ok(RowFormat::PromptCompletion),
        () if has("text") => Ok(RowFormat::Text),
        () => {
            let keys: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
            Err(format!(
                "no known row format has the keys {keys:?} (known: messages; conversations; instruction and \
                 output; prompt and completion; text; input_ids)"
            ))
        }
    }
}

/// The format of a file of prompts: its rows need no answers.
#[cfg(feature = "text")]
pub(super) fn recognise_prompt(first: &Json) -> Read<RowFormat> {
    let has = |key: &str| object(first).is_ok_and(|fields| fields.contains_key(key));
    match () {
        () if has("instruction") => Ok(RowFormat::Alpaca),
        () if has("prompt") => Ok(RowFormat::PromptCompletion),
        () => recognise(first),
    }
}

/// Reads one row as a prompt: an answer that ends it is left out.
#[cfg(feature = "text")]
pub(super) fn read_prompt(row: &Json, format: RowFormat, vocab_size: usize) -> Read<Content> {
    let fields = object(row)?;
    refuse_tools(fields)?;
    let mut turns = match format {
        RowFormat::Auto => return Err("the row format is not known".into()),
        RowFormat::Messages => messages(array(fields, "messages")?)?,
        RowFormat::Sharegpt => sharegpt(fields)?,
        RowFormat::Alpaca => alpaca_prompt(fields)?,
        RowFormat::PromptCompletion => match fields.get("prompt") {
            Some(Json::Array(items)) => messages(items)?,
            _ => vec![turn(Role::User, nonempty(fields, "prompt")?)],
        },
        RowFormat::Text => return nonempty(fields, "text").map(Content::Text),
        RowFormat::Tokenized => return tokens(fields, vocab_size).map(Content::Tokens),
    };
    turns.pop_if(|last| last.role == Role::Assistant);
    conversation(turns).map(Content::Chat)
}

/// Reads one row. `vocab_size` bounds the ids of tokenised rows.
pub(super) fn read(row: &Json, format: RowFormat, vocab_size: usize) -> Read<Content> {
    let fields = object(row)?;
    refuse_tools(fields)?;
    match format {
        RowFormat::Auto => Err("the row format is not known".into()),
        RowFormat::Messages => Ok(Content::Chat(conversation(messages(array(fields, "messages")?)?)?)),
        RowFormat::Sharegpt => Ok(Content::Chat(conversation(sharegpt(fields)?)?)),
        RowFormat::Alpaca => Ok(Content::Chat(conversation(alpaca(fields)?)?)),
        RowFormat::PromptCompletion => Ok(Content::Chat(conversation(prompt_completion(fields)?)?)),
        RowFormat::Text => nonempty(fields, "text").map(Content::Text),
        RowFormat::Tokenized => tokens(fields, vocab_size).map(Content::Tokens),
    }
}

fn refuse_tools(fields: &Fields) -> Read<()> {
    for key in ["tools", "functions"] {
        if fields.get(key).is_some_and(|value| !matches!(value, Json::Null)) {
            return Err(format!("`{key}` is not supported: write the tools into the system message"));
        }
    }
    Ok(())
}

fn object(value: &Json) -> Read<&Fields> {
    match value {
        Json::Object(fields) => Ok(fields),
        other => Err(format!("the row is {}, not an object", other.kind())),
    }
}

fn array<'a>(fields: &'a Fields, key: &str) -> Read<&'a [Json]> {
    match fields.get(key) {
        Some(Json::Array(items)) => Ok(items),
        Some(other) => Err(format!("`{key}` is {}, not an array", other.kind())),
        None => Err(format!("`{key}` is missing")),
    }
}

fn string(fields: &Fields, key: &str) -> Read<String> {
    match fields.get(key) {
        Some(Json::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("`{key}` is {}, not a string", other.kind())),
        None => Err(format!("`{key}` is missing")),
    }
}

/// Absent and null are the same: libraries that write tables fill missing columns with null.
fn optional(fields: &Fields, key: &str) -> Read<Option<String>> {
    match fields.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(_) => string(fields, key).map(Some),
    }
}

fn nonempty(fields: &Fields, key: &str) -> Read<String> {
    let text = string(fields, key)?;
    if text.is_empty() { Err(format!("`{key}` is empty")) } else { Ok(text) }
}

fn turn(role: Role, content: String) -> Turn {
    Turn { role, content, reasoning: None }
}

fn messages(items: &[Json]) -> Read<Vec<Turn>> {
    let read = |(index, item): (usize, &Json)| {
        let fields = object(item).map_err(|_| format!("message {} is {}", index + 1, item.kind()))?;
        message(fields).map_err(|fault| format!("message {}: {fault}", index + 1))
    };
    items.iter().enumerate().map(read).collect()
}

fn message(fields: &Fields) -> Read<Turn> {
    for key in ["tool_calls", "function_call"] {
        match fields.get(key) {
            None | Some(Json::Null) => {}
            Some(Json::Array(calls)) if calls.is_empty() => {}
            Some(_) => {
                return Err(format!(
                    "`{key}` is not supported: write the call into `content` as the model does"
                ));
            }
        }
    }
    let role = match string(fields, "role")?.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => return Err(format!("role {other:?} is not system, user, assistant or tool")),
    };
    let reasoning = optional(fields, "reasoning_content")?.filter(|text| !text.is_empty());
    Ok(Turn { role, content: string(fields, "content")?, reasoning })
}

fn sharegpt(fields: &Fields) -> Read<Vec<Turn>> {
    let mut turns = Vec::new();
    if let Some(system) = optional(fields, "system")?.filter(|text| !text.is_empty()) {
        turns.push(turn(Role::System, system));
    }
    for (index, item) in array(fields, "conversations")?.iter().enumerate() {
        let place = |fault: String| format!("conversation turn {}: {fault}", index + 1);
        let fields = object(item).map_err(|_| place(format!("it is {}", item.kind())))?;
        let role = match string(fields, "from").map_err(place)?.as_str() {
            "system" => Role::System,
            "user" | "human" => Role::User,
            "assistant" | "gpt" | "chatgpt" | "bot" | "model" => Role::Assistant,
            "tool" | "observation" => Role::Tool,
            other => return Err(place(format!("`from` {other:?} is not a known speaker"))),
        };
        turns.push(turn(role, string(fields, "value").map_err(place)?));
    }
    Ok(turns)
}

/// Alpaca, DeepKE, KnowLM: the query is `instruction`, then a line feed and `input` where there is one.
fn alpaca(fields: &Fields) -> Read<Vec<Turn>> {
    let mut turns = alpaca_prompt(fields)?;
    turns.push(turn(Role::Assistant, nonempty(fields, "output")?));
    Ok(turns)
}

fn alpaca_prompt(fields: &Fields) -> Read<Vec<Turn>> {
    let mut turns = Vec::new();
    if let Some(system) = optional(fields, "system")?.filter(|text| !text.is_empty()) {
        turns.push(turn(Role::System, system));
    }
    if !matches!(fields.get("history"), None | Some(Json::Null)) {
        for (index, pair) in array(fields, "history")?.iter().enumerate() {
            let [Json::String(query), Json::String(response)] = pair_of(pair) else {
                return Err(format!("`history` entry {} is not a pair of strings", index + 1));
            };
            turns.push(turn(Role::User, query.clone()));
            turns.push(turn(Role::Assistant, response.clone()));
        }
    }
    let mut query = nonempty(fields, "instruction")?;
    if let Some(input) = optional(fields, "input")?.filter(|text| !text.is_empty()) {
        query = format!("{query}\n{input}");
    }
    turns.push(turn(Role::User, query));
    Ok(turns)
}

fn pair_of(value: &Json) -> &[Json] {
    match value {
        Json::Array(items) => items,
        _ => &[],
    }
}

/// Strings are one user turn and its answer; arrays of messages are joined.
fn prompt_completion(fields: &Fields) -> Read<Vec<Turn>> {
    let both_arrays = ["prompt", "completion"].map(|key| matches!(fields.get(key), Some(Json::Array(_))));
    if both_arrays == [true, true] {
        let mut turns = messages(array(fields, "prompt")?)?;
        turns.extend(messages(array(fields, "completion")?)?);
        return Ok(turns);
    }
    Ok(vec![
        turn(Role::User, nonempty(fields, "prompt")?),
        turn(Role::Assistant, nonempty(fields, "completion")?),
    ])
}

fn conversation(turns: Vec<Turn>) -> Read<Vec<Turn>> {
    if turns.is_empty() {
        return Err("the conversation has no messages".into());
    }
    for (index, turn) in turns.iter().enumerate() {
        let place = index + 1;
        match turn.role {
            Role::System if index > 0 => {
                return Err(format!("message {place}: a system message comes first"));
            }
            Role::User if turn.content.is_empty() => {
                return Err(format!("message {place}: the user says nothing"));
            }
            Role::Assistant if turn.content.is_empty() && turn.reasoning.is_none() => {
                return Err(format!("message {place}: the assistant says nothing"));
            }
            _ => {}
        }
    }
    Ok(turns)
}

fn integers(fields: &Fields, key: &str) -> Read<Vec<i64>> {
    let read = |(index, item): (usize, &Json)| match item {
        Json::Integer(value) => Ok(*value),
        other => Err(format!("`{key}` has {} at position {index}, not an integer", other.kind())),
    };
    array(fields, key)?.iter().enumerate().map(read).collect()
}

fn tokens(fields: &Fields, vocab_size: usize) -> Read<Row> {
    let ids = integers(fields, "input_ids")?;
    let outside = |id: &i64| usize::try_from(*id).is_err() || *id as usize >= vocab_size;
    if let Some(at) = ids.iter().position(outside) {
        return Err(format!("token {} at position {at} is outside the vocabulary of {vocab_size}", ids[at]));
    }
    if let Some(mask) = fields.get("attention_mask") {
        let ones = |items: &[Json]| items.iter().all(|item| matches!(item, Json::Integer(1)));
        if !matches!(mask, Json::Array(items) if ones(items)) {
            return Err("`attention_mask` is not all ones: leave padding out of the rows".into());
        }
    }
    let labels = match fields.get("labels") {
        None | Some(Json::Null) => ids.clone(),
        Some(_) => integers(fields, "labels")?,
    };
    let label =
        |value: &i64| if *value == i64::from(IGNORED) { Some(IGNORED) } else { i32::try_from(*value).ok() };
    let labels: Option<Vec<i32>> = labels.iter().map(label).collect();
    let Some(labels) = labels else { return Err("a label is outside the vocabulary".into()) };
    let row = Row { ids: ids.iter().map(|&id| id as u32).collect(), labels };
    row.fault().map_or(Ok(row), Err)
}
