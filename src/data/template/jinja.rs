//! Runs chat templates as transformers runs them with jinja2.
//!
//! The environment is as small as it can be: no loader, so a template reads no file; fuel for time and memory; no
//! clock. What differs from jinja2 is closed (`super::python`, [`rewritten`]) or refused by name.

use super::marks::{BEGIN, END, Field, Marks, reserved};
use super::python::{self, MARKS, Marked};
use crate::data::json::{Fields, Json};
use crate::data::rows::{Message, Said};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use regex::{Captures, Regex};
use std::sync::Arc;

/// The library and its version: another one may render other data.
pub(in crate::data) const ENGINE: &str = "minijinja 3.1.0";
/// Longest template.
pub(super) const MAX_SOURCE: usize = 1 << 20;

/// Most characters of an expression or a statement, strings and white space not counted: the library's parser and
/// compiler call themselves for each operator in it.
const MAX_TAG: usize = 4_000;

type Made<T> = std::result::Result<T, String>;

/// Templates of a model, compiled.
pub(super) struct Jinja {
    environment: Environment<'static>,
}

/// What a template is given.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) messages: &'a [Message],
    pub(super) tools: &'a [Json],
    /// `chat_template_kwargs` of the row.
    pub(super) variables: &'a Fields,
    /// Tokens by their names in `tokenizer_config.json`.
    pub(super) special: &'a [(String, String)],
    /// `enable_thinking`, when it is set.
    pub(super) thinking: Option<bool>,
    /// Whether an answer is to come.
    pub(super) prompt: bool,
}

impl Jinja {
    /// Compiles templates by their names.
    ///
    /// # Errors
    /// Where the template is wrong, or which of jinja2's habits cannot be followed.
    pub(super) fn new(templates: &[(String, String)]) -> Made<Self> {
        let mut environment = environment();
        for (name, source) in templates {
            let source = rewritten(source)?;
            environment.add_template_owned(name.clone(), source).map_err(|error| told(&error))?;
        }
        Ok(Jinja { environment })
    }

    /// Renders with the row's own texts.
    pub(super) fn plain(&self, name: &str, inputs: Inputs) -> Made<String> {
        let mut bytes = 0;
        let messages = messages(inputs.messages, &mut |text, _, _| {
            bytes += text.len();
            text.to_owned()
        })?;
        self.render(name, inputs, messages, Arc::default(), bytes)
    }

    /// Renders with the row's texts in marks, which are added to `marks`.
    pub(super) fn marked(&self, name: &str, inputs: Inputs, mut marks: Marks) -> Made<(String, Arc<Marks>)> {
        let mut bytes = 0;
        let messages = messages(inputs.messages, &mut |text, message, field| {
            let marked = marks.mark(text, message, field);
            bytes += marked.len();
            marked
        })?;
        let marks = Arc::new(marks);
        Ok((self.render(name, inputs, messages, marks.clone(), bytes)?, marks))
    }

    fn render(
        &self,
        name: &str,
        inputs: Inputs,
        messages: Value,
        marks: Arc<Marks>,
        bytes: usize,
    ) -> Made<String> {
        let tools = inputs.tools.iter().map(|tool| value(tool, &mut |text| text.to_owned()));
        let tools: Vec<Value> = tools.collect::<Made<_>>()?;
        let mut context = vec![
            ("messages".to_owned(), messages),
            ("tools".to_owned(), if tools.is_empty() { Value::from(()) } else { Value::from(tools) }),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(inputs.prompt)),
            (MARKS.to_owned(), Value::from_object(Marked(marks))),
        ];
        context
            .extend(inputs.special.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str()))));
        context.extend(inputs.thinking.map(|on| ("enable_thinking".to_owned(), Value::from(on))));
        for (name, json) in inputs.variables.iter() {
            if context.iter().any(|(taken, _)| taken == name && taken != "enable_thinking") {
                return Err(format!("`chat_template_kwargs` cannot set {name}"));
            }
            context.push((name.to_owned(), value(json, &mut |text| text.to_owned())?));
        }
        // A clone shares templates, filters and functions; only the fuel is its own.
        let mut environment = self.environment.clone();
        let fuel = 100_000 + 1_000 * inputs.messages.len() as u64 + bytes as u64;
        environment.set_fuel(Some(fuel));
        let template = environment.get_template(name).map_err(|error| told(&error))?;
        template.render(Value::from_pairs(context)).map_err(|error| told(&error))
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_formatter(|out, state, value| {
        let text = match value.as_str() {
            Some(text) => return out.write_str(text).map_err(Error::from),
            None => python::text_of(state, value)?,
        };
        out.write_str(&text).map_err(Error::from)
    });
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("trim", python::trim);
    environment.add_filter("replace", python::replace);
    environment.add_filter("string", python::string);
    environment.add_filter(PRINTED, python::string);
    environment.add_filter("join", python::join);
    environment.add_filter(BOUNDED, |value: Value| match value.kind() {
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some_and(|length| length > MOST_ITEMS) => {
            Err(Error::from(ErrorKind::OutOfFuel))
        }
        _ => Ok(value),
    });
    environment.add_filter(GENERATION, |text: &str| format!("{BEGIN}{text}{END}"));
    // It allocates before it pays for it.
    environment.remove_filter("format");
    environment.remove_global("debug");
    let many = |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Bytes
        )
    };
    environment.add_test("sequence", move |value: &Value| many(value));
    environment.add_test("iterable", move |value: &Value| many(value) || value.kind() == ValueKind::Iterable);
    environment
        .add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_function("raise_exception", |what: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{what}")))
    });
    environment.add_function("strftime_now", |_: Rest<Value>| -> Result<Value, Error> {
        let what = "it writes today's date: the data would be other data every day";
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{what}")))
    });
    environment
}

/// The filter that a value goes through when it is set. Adding lists costs the engine no fuel, and adding one to
/// itself again and again would take all memory.
const BOUNDED: &str = "qwentune_bounded";
/// Longest list that may be set.
const MOST_ITEMS: usize = 100_000;
/// Frames within each other; a macro costs four. So many lists can be added without one being set.
const MAX_RECURSION: usize = 32;
/// The filter that stands in for `{% generation %}`.
const GENERATION: &str = "qwentune_generation";
const RAISED: &str = "the template says: ";

/// What the library says, as a sentence about the template.
fn told(error: &Error) -> String {
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.kind() {
        ErrorKind::OutOfFuel => format!("the chat template does more than a template of this row may{line}"),
        _ => match detail.strip_prefix(RAISED) {
            Some(said) => format!("the chat template refuses it: {said}"),
            None if error.detail().is_some() => {
                format!("the chat template fails: {}: {detail}{line}", error.kind())
            }
            None => format!("the chat template fails: {detail}{line}"),
        },
    }
}

/// The source as this engine takes it with jinja2's meaning.
///
/// `{% generation %}` (transformers' own tag) becomes a filter. The line feed after `{% raw %}`, which jinja2 keeps
/// and this engine trims, is written out. Text joined to what `safe` marks is refused: jinja2 escapes it.
fn rewritten(source: &str) -> Made<String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("the chat template has {} bytes; at most {MAX_SOURCE} are read", source.len()));
    }
    if reserved(source) {
        return Err(
            "the chat template holds characters of planes without meaning (U+40000 to U+DFFFF)".into()
        );
    }
    // As jinja2 reads a source.
    let source = &source.replace("\r\n", "\n").replace('\r', "\n");
    let written = |code: &str| code.chars().filter(|c| !c.is_whitespace()).count();
    if let Some((start, _)) = tags(source).iter().find(|(_, code)| written(code) > MAX_TAG) {
        let line = 1 + source[..*start].matches('\n').count();
        return Err(format!(
            "the chat template holds an expression beyond {MAX_TAG} characters (line {line})"
        ));
    }
    if joins_safe_text(source) {
        return Err(
            "the chat template joins text to what `safe` or `escape` gives, which jinja2 would escape".into(),
        );
    }
    let pattern = |pattern: &str| Regex::new(pattern).map_err(|error| error.to_string());
    let begin = pattern(r"(?-u)\{%([-+]?)[ \t\r\n]*generation[ \t\r\n]*([-+]?)%\}")?;
    let end = pattern(r"(?-u)\{%([-+]?)[ \t\r\n]*endgeneration[ \t\r\n]*([-+]?)%\}")?;
    let raw = pattern(r"(?-u)\{%([-+]?)[ \t\r\n]*raw[ \t\r\n]*%\}(\n+)")?;
    let source = begin.replace_all(source, format!("{{%$1 filter {GENERATION} $2%}}"));
    let source = end.replace_all(&source, "{%$1 endfilter $2%}");
    let source = raw.replace_all(&source, |found: &Captures| {
        let (trim, feeds) = (&found[1], found[2].replace('\n', "\\n"));
        format!("{{%{trim} raw %}}{{% endraw %}}{{{{ \"{feeds}\" }}}}{{% raw %}}")
    });
    Ok(with_bounded_values(&with_printed_operands(&source)))
}

/// What stands inside the tags `{{ }}` and `{% %}`, with its strings blanked; comments and raw text are passed over.
fn tags(source: &str) -> Vec<(usize, String)> {
    let (mut tags, mut at) = (Vec::new(), 0);
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let close = match source.as_bytes().get(start + 1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                at = source[start..].find("#}").map_or(source.len(), |end| start + end + 2);
                continue;
            }
            _ => {
                at = start + 1;
                continue;
            }
        };
        let code = code_until(&source[start + 2..], close);
        at = start + 2 + code.len();
        let word = code.trim_matches(['-', '+', ' ', '\t', '\r', '\n']);
        if close == "%}" && word == "raw" {
            at = source[at..].find("endraw").map_or(source.len(), |end| at + end);
        }
        tags.push((start + 2, code));
    }
    tags
}

/// The text before `close`, each character of a string literal replaced by as many spaces as it has bytes.
fn code_until(text: &str, close: &str) -> String {
    let (mut code, mut quote) = (String::new(), None);
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        let mut blanked = c.len_utf8();
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) if c == '\\' => blanked += characters.next().map_or(0, |(_, next)| next.len_utf8()),
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if text[at..].starts_with(close) => break,
            None => {
                code.push(c);
                continue;
            }
        }
        code.push_str(&" ".repeat(blanked));
    }
    code
}

/// Whether a tag both uses `safe` or `escape` and joins with `+`; `~` escapes nothing.
fn joins_safe_text(source: &str) -> bool {
    tags(source).iter().any(|(_, code)| {
        let mut filters = code.split('|').skip(1).map(|filter| {
            let filter = filter.trim_start();
            &filter[..filter.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(filter.len())]
        });
        let safe = ["safe", "escape", "e", "forceescape"];
        let body = code.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        filters.any(|name| safe.contains(&name)) && body.contains('+')
    })
}

/// The source with every value that is set going through the filter [`BOUNDED`].
fn with_bounded_values(source: &str) -> String {
    let (mut made, mut done) = (String::with_capacity(source.len()), 0);
    for (start, code) in tags(source) {
        let word = code.trim_start_matches(['-', '+']).trim_start();
        let sets = word.strip_prefix("set").is_some_and(|rest| rest.starts_with([' ', '\t', '\r', '\n']));
        let Some(equals) = code.find('=').filter(|_| sets) else { continue };
        let end = code.trim_end_matches(['-', '+']).len();
        made.push_str(&source[done..=start + equals]);
        made.push_str(" (");
        made.push_str(&source[start + equals + 1..start + end]);
        made.push_str(") | ");
        made.push_str(BOUNDED);
        made.push(' ');
        done = start + end;
    }
    made.push_str(&source[done..]);
    made
}

/// The filter that operands of `~` go through: the engine would print `True`, `None`, lists and numbers its own way.
const PRINTED: &str = "qwentune_printed";
/// Words that end an operand.
const WORDS: [&str; 8] = ["if", "else", "and", "or", "is", "in", "not", "recursive"];

/// The source with every operand of `~` printed first, as Python prints it.
fn with_printed_operands(source: &str) -> String {
    let (mut made, mut done) = (String::with_capacity(source.len()), 0);
    for (start, code) in tags(source) {
        for end in operand_ends(&code, &source[start..start + code.len()]) {
            made.push_str(&source[done..start + end]);
            made.push_str(" | ");
            made.push_str(PRINTED);
            made.push(' ');
            done = start + end;
        }
    }
    made.push_str(&source[done..]);
    made
}

/// What is known of the operand under way within one pair of brackets.
#[derive(Clone, Copy, Default)]
struct Operand {
    /// It stands behind a `~`.
    joined: bool,
    /// Something of it was seen.
    begun: bool,
    /// It is a product, which a filter behind it would not bind to; numbers need none.
    product: bool,
}

/// Where operands of `~` end in a tag's `code`, of which the strings are blanked; `written` is the tag as it is.
fn operand_ends(code: &str, written: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut open = vec![Operand::default()];
    let mut end = |operand: &mut Operand, at: usize| {
        if operand.joined && operand.begun && !operand.product {
            ends.push(at);
        }
        *operand = Operand::default();
    };
    let mut place = 0;
    while let Some(c) = code[place..].chars().next() {
        let word: String = code[place..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(operand) = open.last_mut() else { return Vec::new() };
        match c {
            '~' => {
                operand.joined = true;
                end(operand, place);
                operand.joined = true;
            }
            '(' | '[' | '{' => {
                operand.begun = true;
                open.push(Operand::default());
            }
            ')' | ']' | '}' => {
                end(operand, place);
                open.pop();
            }
            '*' | '/' | '%' => operand.product = true,
            ',' | ':' | '=' | '<' | '>' | '!' => end(operand, place),
            '+' | '-' if operand.begun => end(operand, place),
            '+' | '-' => {}
            _ if WORDS.contains(&word.as_str()) => end(operand, place),
            _ => operand.begun |= !written.as_bytes()[place].is_ascii_whitespace(),
        }
        place += if word.is_empty() { c.len_utf8() } else { word.len() };
    }
    let last = code.trim_end_matches(['-', '+']).len();
    open.last_mut().into_iter().for_each(|operand| end(operand, last));
    ends
}

// ---- values -----------------------------------------------------------------------------------------------

/// Writes a text of a message, by its message and field.
type Write<'a> = &'a mut dyn FnMut(&str, usize, Field) -> String;

fn messages(list: &[Message], write: Write) -> Made<Value> {
    let one = |(index, message): (usize, &Message)| {
        message_value(message, index, write).map_err(|fault| format!("message {}: {fault}", index + 1))
    };
    list.iter().enumerate().map(one).collect::<Made<Vec<Value>>>().map(Value::from)
}

fn message_value(message: &Message, index: usize, write: Write) -> Made<Value> {
    let mut fields = vec![("role", Value::from(message.role.name()))];
    match &message.content {
        Said::Absent => {}
        Said::Null => fields.push(("content", Value::from(()))),
        Said::Text(text) => fields.push(("content", write(text, index, Field::Content).into())),
        Said::Parts(parts) => {
            let part = |text: &String| {
                let text = write(text, index, Field::Content);
                Value::from_pairs([("type", Value::from("text")), ("text", Value::from(text))])
            };
            fields.push(("content", parts.iter().map(part).collect::<Vec<Value>>().into()));
        }
    }
    if let Some(reasoning) = &message.reasoning {
        fields.push(("reasoning_content", write(reasoning, index, Field::Reasoning).into()));
    }
    if !message.tool_calls.is_empty() {
        let calls =
            message.tool_calls.iter().map(|call| call_value(call, &mut |t| write(t, index, Field::Calls)));
        fields.push(("tool_calls", calls.collect::<Made<Vec<Value>>>()?.into()));
    }
    for (key, text) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
        fields.extend(text.iter().map(|text| (key, Value::from(text.as_str()))));
    }
    Ok(Value::from_pairs(fields))
}

/// A call: its name and the strings of its arguments are texts of the row; the rest is passed on.
fn call_value(call: &Json, write: &mut dyn FnMut(&str) -> String) -> Made<Value> {
    let Json::Object(fields) = call else { return Err("a tool call is no object".into()) };
    let mut pairs = Vec::new();
    for (key, json) in fields.iter() {
        let made = match key {
            "function" => call_value(json, write)?,
            "name" | "arguments" => value(json, write)?,
            _ => value(json, &mut |text| text.to_owned())?,
        };
        pairs.push((key.to_owned(), made));
    }
    Ok(Value::from_pairs(pairs))
}

/// A value of a row; `write` writes its strings, but not the keys.
fn value(json: &Json, write: &mut dyn FnMut(&str) -> String) -> Made<Value> {
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(on) => Value::from(*on),
        Json::Integer(number) => Value::from(*number),
        // Larger integers arrive as floats; Python would print all their digits.
        Json::Float(number) if number.abs() >= 9.2e18 => {
            return Err(format!("the number {number} is beyond 64 bits: write it as a string"));
        }
        Json::Float(number) => Value::from(*number),
        Json::String(text) => Value::from(write(text)),
        Json::Array(items) => {
            Value::from(items.iter().map(|item| value(item, write)).collect::<Made<Vec<_>>>()?)
        }
        Json::Object(fields) => {
            let pair = |(key, json): (&str, &Json)| Ok((key.to_owned(), value(json, write)?));
            Value::from_pairs(fields.iter().map(pair).collect::<Made<Vec<_>>>()?)
        }
    })
}
