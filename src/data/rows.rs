//! What a row says, whatever its format: a conversation, a text, or tokens.

use super::dataset::{IGNORED, Row};
use super::json::{self, Fields, Json};
use crate::config::settings::RowFormat;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// The name that chat templates know.
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// There is no `content`.
    Absent,
    /// `content` is null.
    Null,
    Text(String),
    /// The texts of `content` in parts.
    Parts(Vec<String>),
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) content: Said,
    /// `reasoning_content` of an assistant's message.
    pub(super) reasoning: Option<String>,
    /// Calls of an assistant's message: objects with `function`, or with `name` and `arguments` themselves.
    pub(super) tool_calls: Vec<Json>,
    pub(super) tool_call_id: Option<String>,
    pub(super) name: Option<String>,
}

impl Message {
    /// A message that is one text.
    pub(super) fn new(role: Role, content: String) -> Self {
        let content = Said::Text(content);
        Message { role, content, reasoning: None, tool_calls: Vec::new(), tool_call_id: None, name: None }
    }

    /// Whether nothing is said in it.
    fn is_empty(&self) -> bool {
        let silent = match &self.content {
            Said::Absent | Said::Null => true,
            Said::Text(text) => text.is_empty(),
            Said::Parts(parts) => parts.iter().all(String::is_empty),
        };
        silent && self.reasoning.as_ref().is_none_or(String::is_empty) && self.tool_calls.is_empty()
    }
}

/// A conversation and what its row gives the chat template besides.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Conversation {
    /// At least one; a system message comes first.
    pub(super) messages: Vec<Message>,
    /// Descriptions of tools; none when there are none.
    pub(super) tools: Vec<Json>,
    /// `chat_template_kwargs`: variables of the template.
    pub(super) variables: Fields,
}

/// A row's content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Chat(Conversation),
    Text(String),
    Tokens(Row),
}

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
            let keys: Vec<&str> = fields.keys().take(8).collect();
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
    let mut turns = match format {
        RowFormat::Auto => return Err("the row format is not known".into()),
        RowFormat::Messages => messages(array(fields, "messages")?)?,
        RowFormat::Sharegpt => sharegpt(fields)?,
        RowFormat::Alpaca => alpaca_prompt(fields)?,
        RowFormat::PromptCompletion => match fields.get("prompt") {
            Some(Json::Array(items)) => messages(items)?,
            _ => vec![Message::new(Role::User, nonempty(fields, "prompt")?)],
        },
        RowFormat::Text => return nonempty(fields, "text").map(Content::Text),
        RowFormat::Tokenized => return tokens(fields, vocab_size).map(Content::Tokens),
    };
    turns.pop_if(|last| last.role == Role::Assistant);
    conversation(turns, fields).map(Content::Chat)
}

/// Reads one row. `vocab_size` bounds the ids of tokenised rows.
pub(super) fn read(row: &Json, format: RowFormat, vocab_size: usize) -> Read<Content> {
    let fields = object(row)?;
    let messages = match format {
        RowFormat::Auto => return Err("the row format is not known".into()),
        RowFormat::Messages => messages(array(fields, "messages")?)?,
        RowFormat::Sharegpt => sharegpt(fields)?,
        RowFormat::Alpaca => alpaca(fields)?,
        RowFormat::PromptCompletion => prompt_completion(fields)?,
        RowFormat::Text => return nonempty(fields, "text").map(Content::Text),
        RowFormat::Tokenized => return tokens(fields, vocab_size).map(Content::Tokens),
    };
    conversation(messages, fields).map(Content::Chat)
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

fn messages(items: &[Json]) -> Read<Vec<Message>> {
    let read = |(index, item): (usize, &Json)| {
        let fields = object(item).map_err(|_| format!("message {} is {}", index + 1, item.kind()))?;
        message(fields).map_err(|fault| format!("message {}: {fault}", index + 1))
    };
    items.iter().enumerate().map(read).collect()
}

fn message(fields: &Fields) -> Read<Message> {
    let role = match string(fields, "role")?.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => return Err(format!("role {other:?} is not system, developer, user, assistant or tool")),
    };
    let answers = role == Role::Assistant;
    if !answers && optional(fields, "reasoning_content")?.is_some_and(|text| !text.is_empty()) {
        return Err(format!("`reasoning_content` in a message of the role {:?}", role.name()));
    }
    if !matches!(fields.get("function_call"), None | Some(Json::Null)) {
        return Err("`function_call` is the old form: write it as an entry of `tool_calls`".into());
    }
    let tool_calls = tool_calls(fields)?;
    if !answers && !tool_calls.is_empty() {
        return Err(format!("`tool_calls` in a message of the role {:?}", role.name()));
    }
    Ok(Message {
        role,
        content: content(fields, answers && !tool_calls.is_empty())?,
        reasoning: optional(fields, "reasoning_content")?.filter(|_| answers),
        tool_calls,
        tool_call_id: optional(fields, "tool_call_id")?,
        name: optional(fields, "name")?,
    })
}

/// `content`; only beside tool calls it may be null or missing.
fn content(fields: &Fields, calls: bool) -> Read<Said> {
    match fields.get("content") {
        None if calls => Ok(Said::Absent),
        Some(Json::Null) if calls => Ok(Said::Null),
        Some(Json::Array(parts)) => {
            let read = |(index, part): (usize, &Json)| {
                text_part(part).map_err(|fault| format!("part {} of `content`: {fault}", index + 1))
            };
            parts.iter().enumerate().map(read).collect::<Read<_>>().map(Said::Parts)
        }
        _ => string(fields, "content").map(Said::Text),
    }
}

fn text_part(part: &Json) -> Read<String> {
    let Json::Object(fields) = part else { return Err(format!("it is {}, not an object", part.kind())) };
    match string(fields, "type")?.as_str() {
        "text" => {}
        other => return Err(format!("its type is {other:?}: this model reads text only")),
    }
    // Libraries that write tables fill the columns of the other kinds of parts with null.
    let more = fields.iter().find(|(key, value)| !["type", "text"].contains(key) && **value != Json::Null);
    more.map_or_else(|| string(fields, "text"), |(key, _)| Err(format!("`{key}` beside its text")))
}

fn tool_calls(fields: &Fields) -> Read<Vec<Json>> {
    let calls = match fields.get("tool_calls") {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(_) => array(fields, "tool_calls")?,
    };
    for (index, call) in calls.iter().enumerate() {
        let place = |fault: String| format!("tool call {}: {fault}", index + 1);
        let Json::Object(call) = call else { return Err(place(format!("it is {}", call.kind()))) };
        let function = match call.get("function") {
            Some(Json::Object(function)) => function,
            Some(other) => return Err(place(format!("`function` is {}, not an object", other.kind()))),
            None => call,
        };
        nonempty(function, "name").map_err(place)?;
        match function.get("arguments") {
            None | Some(Json::String(_) | Json::Object(_) | Json::Null) => {}
            Some(other) => {
                return Err(place(format!("`arguments` is {}, not an object or a string", other.kind())));
            }
        }
    }
    Ok(calls.to_vec())
}

fn sharegpt(fields: &Fields) -> Read<Vec<Message>> {
    let mut turns = Vec::new();
    if let Some(system) = optional(fields, "system")?.filter(|text| !text.is_empty()) {
        turns.push(Message::new(Role::System, system));
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
        turns.push(Message::new(role, string(fields, "value").map_err(place)?));
    }
    Ok(turns)
}

/// Alpaca, DeepKE, KnowLM: the query is `instruction`, then a line feed and `input` where there is one.
fn alpaca(fields: &Fields) -> Read<Vec<Message>> {
    let mut turns = alpaca_prompt(fields)?;
    turns.push(Message::new(Role::Assistant, nonempty(fields, "output")?));
    Ok(turns)
}

fn alpaca_prompt(fields: &Fields) -> Read<Vec<Message>> {
    let mut turns = Vec::new();
    if let Some(system) = optional(fields, "system")?.filter(|text| !text.is_empty()) {
        turns.push(Message::new(Role::System, system));
    }
    if !matches!(fields.get("history"), None | Some(Json::Null)) {
        for (index, pair) in array(fields, "history")?.iter().enumerate() {
            let [Json::String(query), Json::String(response)] = pair_of(pair) else {
                return Err(format!("`history` entry {} is not a pair of strings", index + 1));
            };
            turns.push(Message::new(Role::User, query.clone()));
            turns.push(Message::new(Role::Assistant, response.clone()));
        }
    }
    let mut query = nonempty(fields, "instruction")?;
    if let Some(input) = optional(fields, "input")?.filter(|text| !text.is_empty()) {
        query = format!("{query}\n{input}");
    }
    turns.push(Message::new(Role::User, query));
    Ok(turns)
}

fn pair_of(value: &Json) -> &[Json] {
    match value {
        Json::Array(items) => items,
        _ => &[],
    }
}

/// Strings are one user turn and its answer; arrays of messages are joined.
fn prompt_completion(fields: &Fields) -> Read<Vec<Message>> {
    let both_arrays = ["prompt", "completion"].map(|key| matches!(fields.get(key), Some(Json::Array(_))));
    if both_arrays == [true, true] {
        let mut turns = messages(array(fields, "prompt")?)?;
        turns.extend(messages(array(fields, "completion")?)?);
        return Ok(turns);
    }
    Ok(vec![
        Message::new(Role::User, nonempty(fields, "prompt")?),
        Message::new(Role::Assistant, nonempty(fields, "completion")?),
    ])
}

/// `fields` is the row, whose tools and variables belong to the conversation.
fn conversation(messages: Vec<Message>, fields: &Fields) -> Read<Conversation> {
    if messages.is_empty() {
        return Err("the conversation has no messages".into());
    }
    for (index, message) in messages.iter().enumerate() {
        let place = index + 1;
        match message.role {
            Role::System if index > 0 => {
                return Err(format!("message {place}: a system message comes first"));
            }
            Role::User if message.is_empty() => {
                return Err(format!("message {place}: the user says nothing"));
            }
            Role::Assistant if message.is_empty() => {
                return Err(format!("message {place}: the assistant says nothing"));
            }
            _ => {}
        }
    }
    let variables = match fields.get("chat_template_kwargs") {
        None | Some(Json::Null) => Fields::default(),
        Some(Json::Object(variables)) => variables.clone(),
        Some(other) => return Err(format!("`chat_template_kwargs` is {}, not an object", other.kind())),
    };
    Ok(Conversation { messages, tools: tools(fields)?, variables })
}

/// `tools`: a list of objects, or such a list written as a string.
fn tools(fields: &Fields) -> Read<Vec<Json>> {
    if fields.get("functions").is_some_and(|value| !matches!(value, Json::Null)) {
        return Err("`functions` is the old form: write them as `tools`".into());
    }
    let parsed;
    let value = match fields.get("tools") {
        Some(Json::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Json::String(text)) => {
            parsed = json::parse(text).map_err(|fault| format!("`tools` is no JSON: {}", fault.what))?;
            &parsed
        }
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(value) => value,
    };
    let Json::Array(items) = value else { return Err(format!("`tools` is {}, not an array", value.kind())) };
    match items.iter().position(|item| !matches!(item, Json::Object(_))) {
        Some(at) => Err(format!("tool {} is {}, not an object", at + 1, items[at].kind())),
        None => Ok(items.clone()),
    }
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
