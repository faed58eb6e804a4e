//! Prompts for generation: one text, or the rows of a file, as the tokens a model reads before it answers; and
//! rows written back with the answer.

use super::json::Fields;
use super::reader::{Place, RowReader};
use super::render::Renderer;
use super::rows::{self, Content, Conversation, Message, Role, Said};
use super::tokenizer::Tokenizer;
use super::{json, prepare};
use crate::config::Settings;
use crate::config::settings::RowFormat;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Bad rows that are listed.
const LISTED: usize = 20;

/// Makes prompts by a model folder's tokenizer and template.
pub struct Prompter {
    renderer: Renderer,
    system: Option<String>,
    columns: BTreeMap<String, String>,
    format: RowFormat,
    vocab: usize,
    thinking: Option<bool>,
}

/// Questions and answers, in turn.
#[derive(Clone, Debug, Default)]
pub struct Dialogue {
    messages: Vec<Message>,
}

impl Dialogue {
    /// Adds a question.
    pub fn ask(&mut self, text: &str) {
        self.messages.push(Message::new(Role::User, text.to_owned()));
    }

    /// Adds the answer to the last question.
    pub fn answer(&mut self, text: &str) {
        self.messages.push(Message::new(Role::Assistant, text.to_owned()));
    }

    /// Takes the last question back.
    pub fn take_back(&mut self) {
        self.messages.pop();
    }
}

/// One row of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptRow {
    /// Where it is in the file.
    pub place: Place,
    /// The row as it was written, in one line.
    pub text: String,
    /// The prompt.
    pub ids: Vec<u32>,
}

impl Prompter {
    /// Opens tokenizer and template as the settings name them; ids are below `vocab`.
    ///
    /// # Errors
    /// Tokenizer or template cannot be used, or thinking is set and the template does not know it.
    pub fn open(settings: &Settings, vocab: usize) -> Result<Self> {
        let renderer = Renderer::open(settings, vocab)?;
        if settings.thinking.is_some() {
            renderer.require_template()?;
        }
        let (system, columns) = (settings.system_prompt.clone(), settings.columns.clone());
        let (format, thinking) = (settings.format, settings.thinking);
        Ok(Prompter { renderer, system, columns, format, vocab, thinking })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.renderer.tokenizer
    }

    /// Tokens that end an answer, as the template has them.
    #[must_use]
    pub fn ends(&self) -> Vec<u32> {
        self.renderer.ends()
    }

    /// What decides how a prompt becomes tokens, for comparing two jobs.
    #[must_use]
    pub fn identity(&self) -> String {
        let Prompter { renderer, system, columns, format, thinking, .. } = self;
        format!("{:?} {system:?} {columns:?} {format:?} {thinking:?}", renderer.identity())
    }

    /// The prompt of one question.
    ///
    /// # Errors
    /// The template is not known, or the question is empty.
    pub fn question(&self, text: &str) -> Result<Vec<u32>> {
        let mut dialogue = Dialogue::default();
        dialogue.ask(text);
        self.dialogue(&dialogue)
    }

    /// The prompt of the last question of a dialogue, behind all that was said before.
    ///
    /// # Errors
    /// As [`Prompter::question`].
    pub fn dialogue(&self, dialogue: &Dialogue) -> Result<Vec<u32>> {
        self.renderer.require_template()?;
        let messages = dialogue.messages.clone();
        if messages.last().is_none_or(|last| last.content == Said::Text(String::new())) {
            return Err(Error::input("the prompt is empty"));
        }
        let chat = Conversation { messages, tools: Vec::new(), variables: Fields::default() };
        self.ids(&Content::Chat(chat)).map_err(Error::input)
    }

    /// The prompts of all rows of a file, every one checked.
    ///
    /// # Errors
    /// Names file and row; up to 20 bad rows are listed.
    pub fn file(&self, path: &Path) -> Result<Vec<PromptRow>> {
        let mut reader = RowReader::open(path)?;
        let (mut rows, mut bad) = (Vec::new(), Vec::new());
        let mut format = self.format;
        while let Some(raw) = reader.next()? {
            let made = prepare::parse(&raw, &self.columns).and_then(|row| {
                if format == RowFormat::Auto {
                    format = rows::recognise_prompt(&row)?;
                }
                self.ids(&rows::read_prompt(&row, format, self.vocab)?)
            });
            match made {
                Ok(ids) => {
                    let text = String::from_utf8_lossy(&raw.bytes);
                    // Line ends are white space outside strings, and cannot be inside.
                    let text = text.trim().replace(['\n', '\r'], " ");
                    rows.push(PromptRow { place: raw.place, text, ids });
                }
                Err(fault) if bad.len() < LISTED => {
                    bad.push(format!("{}{}: {fault}", path.display(), raw.place));
                }
                Err(_) => break,
            }
        }
        match bad.as_slice() {
            [] if rows.is_empty() => Err(Error::input(format!("{}: no rows", path.display()))),
            [] => Ok(rows),
            [only] => Err(Error::input(only).hint("mend the row, or leave it out")),
            many => {
                let what = format!("{} bad rows:\n{}", many.len(), many.join("\n"));
                Err(Error::input(what).hint("mend the rows, or leave them out"))
            }
        }
    }

    fn ids(&self, content: &Content) -> std::result::Result<Vec<u32>, String> {
        if let (Content::Chat(_), Err(fault)) = (content, self.renderer.require_template()) {
            return Err(fault.what);
        }
        let ids = self.renderer.prompt(content, self.system.as_deref())?;
        if ids.is_empty() { Err("the prompt is empty".into()) } else { Ok(ids) }
    }
}

/// The row, a JSON object, with the key `output`: added at its end, or in the place of the one it has. All else
/// stays as it is written.
///
/// # Panics
/// When `row` is not a JSON object: rows are parsed before.
#[must_use]
pub fn with_output(row: &str, output: &str) -> String {
    let value = serde_json::Value::from(output).to_string();
    if let Some(place) = value_of(row, "output") {
        return format!("{}{value}{}", &row[..place.start], &row[place.end..]);
    }
    let end = row.rfind('}').expect("an object");
    let inner = row[..end].trim_end();
    let comma = if inner.ends_with('{') { "" } else { ", " };
    format!("{inner}{comma}\"output\": {value}}}")
}

/// Where the value of a key of the outermost object stands.
fn value_of(row: &str, wanted: &str) -> Option<std::ops::Range<usize>> {
    let bytes = row.as_bytes();
    let (mut at, mut depth) = (0, 0usize);
    let mut key: Option<String> = None;
    let mut value: Option<usize> = None;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = string_end(bytes, at);
                if depth == 1 && value.is_none() {
                    key = serde_json::from_str(&row[at..end]).ok();
                }
                at = end;
                continue;
            }
            b':' if depth == 1 => value = Some(at + 1),
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' => {
                let ends = depth == 1;
                if let (true, Some(start), true) = (ends, value, key.as_deref() == Some(wanted)) {
                    let text = &row[start..at];
                    let before = text.len() - text.trim_start().len();
                    return Some(start + before..start + text.trim_end().len());
                }
                if ends {
                    (key, value) = (None, None);
                }
                depth -= usize::from(bytes[at] != b',');
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// One past the closing quotation mark of the string that begins at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// Whether the line is a whole JSON object.
#[must_use]
pub fn is_row(line: &str) -> bool {
    matches!(json::parse(line), Ok(json::Json::Object(_)))
}
