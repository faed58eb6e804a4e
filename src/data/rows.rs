//! What a row says, whatever its format: a conversation, a text, or tokens.

use super::dataset::{IGNORED, Row};
use super::json::{self, Fields, Json};
use super::keys;
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
    /// What the row itself says about training on this answer; `None`: as `--train-on` has it.
    pub(super) trained: Option<bool>,
}

impl Message {
    /// A message that is one text.
    pub(super) fn new(role: Role, content: String) -> Self {
        let content = Said::Text(content);
        Message {
            role,
            content,
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            trained: None,
        }
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
    keys::check_row(fields, false)?;
    format_of(fields, false)
}

/// The format of a file of prompts: its rows need no answers.
#[cfg(feature = "text")]
pub(super) fn recognise_prompt(first: &Json) -> Read<RowFormat> {
    format_of(object(first)?, true)
}

fn format_of(fields: &Fields, prompts: bool) -> Read<RowFormat> {
    let has = |key: &&str| fields.contains_key(key);
    let asks = keys::QUESTION.iter().any(has) || has(&keys::INPUT);
    match () {
        () if has(&"input_ids") => Ok(RowFormat::Tokenized),
        () if has(&"messages") => Ok(RowFormat::Messages),
        () if keys::MESSAGES.iter().any(has) => Ok(RowFormat::Sharegpt),
        () if asks && (prompts || keys::ANSWER.iter().any(has)) => {
            let alpaca = has(&"instruction") || !keys::QUESTION.iter().any(has);
            Ok(if alpaca { RowFormat::Alpaca } else { RowFormat::PromptCompletion })
        }
        () if has(&"text") => Ok(RowFormat::Text),
        () => {
            let keys: Vec<&str> = fields.keys().take(8).collect();
            Err(format!(
                "no known row format has the keys {keys:?} (known: messages; conversations; instruction and \
                 output; prompt and completion; question and answer; text; input_ids): say which they are, such as \
                 --columns prompt=KEY,response=KEY"
            ))
        }
    }
}

/// Reads one row as a prompt: an answer that ends it is left out.
#[cfg(feature = "text")]
pub(super) fn read_prompt(row: &Json, format: RowFormat, vocab_size: usize) -> Read<Content> {
    let fields = object(row)?;
    keys::check_row(fields, true)?;
    let mut messages = match format {
        RowFormat::Auto => return Err("the row format is not known".into()),
        RowFormat::Messages | RowFormat::Sharegpt => conversation_of(fields)?,
        RowFormat::Alpaca | RowFormat::PromptCompletion => question(fields)?,
        RowFormat::Text => return nonempty(fields, "text").map(Content::Text),
        RowFormat::Tokenized => return tokens(fields, vocab_size).map(Content::Tokens),
    };
    messages.pop_if(|last| last.role == Role::Assistant);
    conversation(messages, fields).map(Content::Chat)
}

/// Reads one row. `vocab_size` bounds the ids of tokenised rows.
pub(super) fn read(row: &Json, format: RowFormat, vocab_size: usize) -> Read<Content> {
    let fields = object(row)?;
    keys::check_row(fields, false)?;
    let messages = match format {
        RowFormat::Auto => return Err("the row format is not known".into()),
        RowFormat::Messages | RowFormat::Sharegpt => conversation_of(fields)?,
        RowFormat::Alpaca | RowFormat::PromptCompletion => question_and_answer(fields)?,
        RowFormat::Text => return nonempty(fields, "text").map(Content::Text),
        RowFormat::Tokenized => return tokens(fields, vocab_size).map(Content::Tokens),
    };
    conversation(messages, fields).map(Content::Chat)
}

/// What was recognised in the row, for people: the format and which key is what.
#[cfg(feature = "text")]
pub(super) fn explain(row: &Json, format: RowFormat) -> Vec<String> {
    let Json::Object(fields) = row else { return Vec::new() };
    let used = |names: &[&'static str]| keys::one_of(fields, names, "").ok().flatten();
    let mut lines = Vec::new();
    let mut tell = |what: &str, key: Option<&str>| {
        lines.extend(
            key.filter(|key| keys::said(fields, key).is_some()).map(|key| format!("{what}: `{key}`")),
        );
    };
    match format {
        RowFormat::Messages | RowFormat::Sharegpt => tell("messages", used(keys::MESSAGES)),
        RowFormat::Alpaca | RowFormat::PromptCompletion => {
            tell("question", used(keys::QUESTION));
            tell("behind it, on a line of its own", Some(keys::INPUT));
            tell("answer", used(keys::ANSWER));
            tell("turns before it", Some("history"));
        }
        RowFormat::Text => tell("text", Some("text")),
        RowFormat::Tokenized => {
            for key in ["input_ids", "labels"].iter().chain(keys::MASKS) {
                tell("tokens", Some(key));
            }
        }
        RowFormat::Auto => {}
    }
    if !matches!(format, RowFormat::Text | RowFormat::Tokenized) {
        tell("system message", used(keys::SYSTEM));
        tell("tools", Some("tools"));
        tell("variables of the template", Some("chat_template_kwargs"));
    }
    let named = |key: &str| lines.iter().any(|line| line.ends_with(&format!("`{key}`")));
    let unused: Vec<String> = fields.keys().filter(|key| !named(key)).map(|key| format!("`{key}`")).collect();
    if !unused.is_empty() {
        lines.push(format!("not used: {}", unused.join(", ")));
    }
    lines
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
    keys::check_message(fields)?;
    let speaker = keys::one_of(fields, keys::SPEAKER, "role_tag")?.unwrap_or("role");
    let said = keys::one_of(fields, keys::SAID, "content_tag")?.unwrap_or("content");
    let role = match string(fields, speaker)?.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" | "human" => Role::User,
        "assistant" | "gpt" | "chatgpt" | "bot" | "model" => Role::Assistant,
        "tool" | "observation" | "tool_response" => Role::Tool,
        "function_call" | "tool_call" => return call(fields, said),
        other => {
            return Err(format!(
                "`{speaker}` {other:?} is not system, developer, user, assistant or tool; --columns user_tag={other} \
                 or assistant_tag={other} says who it is"
            ));
        }
    };
    let answers = role == Role::Assistant;
    let trained = keys::trained(fields)?;
    if trained == Some(true) && !answers {
        return Err(format!("a message of the role {:?} is to be trained on; only answers are", role.name()));
    }
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
        content: content(fields, said, answers && !tool_calls.is_empty())?,
        reasoning: optional(fields, "reasoning_content")?.filter(|_| answers),
        tool_calls,
        tool_call_id: optional(fields, "tool_call_id")?,
        name: optional(fields, "name")?,
        trained,
    })
}

/// A message that is nothing but calls of tools, written as JSON (LLaMA-Factory's `function_call`, ms-swift's
/// `tool_call`).
fn call(fields: &Fields, said: &str) -> Read<Message> {
    let parsed = match fields.get(said) {
        Some(Json::String(text)) => {
            json::parse(text).map_err(|fault| format!("the call in `{said}` is no JSON: {}", fault.what))?
        }
        Some(other) => other.clone(),
        None => return Err(format!("`{said}` is missing")),
    };
    let calls = match parsed {
        Json::Array(calls) => calls,
        one => vec![one],
    };
    check_calls(&calls)?;
    if calls.is_empty() {
        return Err(format!("`{said}` has no call"));
    }
    let mut message = Message::new(Role::Assistant, String::new());
    (message.content, message.tool_calls, message.trained) = (Said::Absent, calls, keys::trained(fields)?);
    Ok(message)
}

/// The content under `key`; only beside tool calls it may be null or missing.
fn content(fields: &Fields, key: &str, calls: bool) -> Read<Said> {
    match fields.get(key) {
        None if calls => Ok(Said::Absent),
        Some(Json::Null) if calls => Ok(Said::Null),
        Some(Json::Array(parts)) => {
            let read = |(index, part): (usize, &Json)| {
                text_part(part).map_err(|fault| format!("part {} of `{key}`: {fault}", index + 1))
            };
            parts.iter().enumerate().map(read).collect::<Read<_>>().map(Said::Parts)
        }
        _ => string(fields, key).map(Said::Text),
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
    check_calls(calls)?;
    Ok(calls.to_vec())
}

fn check_calls(calls: &[Json]) -> Read<()> {
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
    Ok(())
}

/// The messages of a conversation, whatever their keys are called.
fn conversation_of(fields: &Fields) -> Read<Vec<Message>> {
    let key = keys::one_of(fields, keys::MESSAGES, "messages")?.unwrap_or("messages");
    with_system(fields, messages(array(fields, key)?)?)
}

/// Puts the row's own system message in front.
fn with_system(fields: &Fields, mut messages: Vec<Message>) -> Read<Vec<Message>> {
    let Some(key) = keys::one_of(fields, keys::SYSTEM, "system")? else { return Ok(messages) };
    let Some(system) = optional(fields, key)?.filter(|text| !text.is_empty()) else { return Ok(messages) };
    let system = Message::new(Role::System, system);
    match messages.first() {
        Some(first) if *first == system => {}
        Some(first) if matches!(first.role, Role::System | Role::Developer) => {
            return Err(format!("`{key}` and the first message are two system messages: keep one"));
        }
        _ => messages.insert(0, system),
    }
    Ok(messages)
}

/// A question and its answer: two strings, or two lists of messages. Alpaca, DeepKE, KnowLM and prompt-completion
/// rows are all read so.
fn question_and_answer(fields: &Fields) -> Read<Vec<Message>> {
    let mut messages = question(fields)?;
    let key = keys::one_of(fields, keys::ANSWER, "response")?.unwrap_or("output");
    match fields.get(key) {
        Some(Json::Array(items)) if asks_in_messages(fields)?.is_some() => {
            messages.extend(self::messages(items)?)
        }
        _ => messages.push(Message::new(Role::Assistant, nonempty(fields, key)?)),
    }
    Ok(messages)
}

/// The key of a question that is a list of messages.
fn asks_in_messages(fields: &Fields) -> Read<Option<&'static str>> {
    let key = keys::one_of(fields, keys::QUESTION, "prompt")?;
    Ok(key.filter(|key| matches!(fields.get(key), Some(Json::Array(_)))))
}

/// The question is one text, with a line feed and `input` behind it where there is one; `history` goes before it.
fn question(fields: &Fields) -> Read<Vec<Message>> {
    keys::check_question(fields)?;
    if let Some(key) = asks_in_messages(fields)? {
        for other in [keys::INPUT, "history"] {
            if keys::said(fields, other).is_some() {
                return Err(format!("`{other}` beside a `{key}` of messages has no place"));
            }
        }
        return with_system(fields, messages(array(fields, key)?)?);
    }
    let mut messages = Vec::new();
    if keys::said(fields, "history").is_some() {
        for (index, pair) in array(fields, "history")?.iter().enumerate() {
            let Json::Array(pair) = pair else {
                return Err(format!(
                    "`history` entry {} is {}, not a pair of strings",
                    index + 1,
                    pair.kind()
                ));
            };
            let [Json::String(query), Json::String(response)] = &pair[..] else {
                return Err(format!("`history` entry {} is not a pair of strings", index + 1));
            };
            messages.push(Message::new(Role::User, query.clone()));
            messages.push(Message::new(Role::Assistant, response.clone()));
        }
    }
    let key = keys::one_of(fields, keys::QUESTION, "prompt")?;
    let input = optional(fields, keys::INPUT)?.filter(|text| !text.is_empty());
    let asked = match (key.and_then(|key| keys::said(fields, key)), input) {
        // As LLaMA-Factory: what there is of the two.
        (None, Some(input)) => input,
        (_, None) => nonempty(fields, key.unwrap_or("instruction"))?,
        (Some(_), Some(input)) => format!("{}\n{input}", string(fields, key.unwrap_or_default())?),
    };
    messages.push(Message::new(Role::User, asked));
    with_system(fields, messages)
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

/// Positions other than a row's own, and rows joined into one, would be computed otherwise here.
fn check_places(fields: &Fields, tokens: usize) -> Read<()> {
    for (key, wanted) in
        [("position_ids", (0..tokens as i64).collect()), ("seq_lengths", vec![tokens as i64])]
    {
        if keys::said(fields, key).is_some() && integers(fields, key)? != wanted {
            return Err(format!(
                "`{key}` says that this is several rows in one: give each alone, --packing joins them"
            ));
        }
    }
    Ok(())
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
    let mut labels = match fields.get("labels") {
        None | Some(Json::Null) => ids.clone(),
        Some(_) => integers(fields, "labels")?,
    };
    check_places(fields, ids.len())?;
    for key in keys::MASKS.iter().filter(|key| !matches!(fields.get(key), None | Some(Json::Null))) {
        let mask = integers(fields, key)?;
        if mask.len() != ids.len() || mask.iter().any(|one| ![0, 1].contains(one)) {
            return Err(format!("`{key}` must hold a 1 or 0 for each of the {} tokens", ids.len()));
        }
        let left_out = labels.iter_mut().zip(&mask).filter(|(_, one)| **one == 0);
        left_out.for_each(|(label, _)| *label = i64::from(IGNORED));
    }
    let label =
        |value: &i64| if *value == i64::from(IGNORED) { Some(IGNORED) } else { i32::try_from(*value).ok() };
    let labels: Option<Vec<i32>> = labels.iter().map(label).collect();
    let Some(labels) = labels else { return Err("a label is outside the vocabulary".into()) };
    let row = Row { ids: ids.iter().map(|&id| id as u32).collect(), labels };
    row.fault().map_or(Ok(row), Err)
}
