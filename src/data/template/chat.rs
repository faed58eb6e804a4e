//! A chat template with the tokens of its model: from a conversation to pieces, so that the mask is found and not
//! assumed.

use super::answers::{self, Answer, Found, Prompts};
use super::jinja::{ENGINE, Inputs, Jinja};
use super::loss;
use super::marks::{MOST, Marks, is_reserved, reserved};
use super::pieces;
use super::rendering::Rendering;
use super::source::{Source, Tokens};
use super::{FoundAnswer, Piece, Rendered};
use crate::data::json::{Fields, Json};
use crate::data::rows::{Conversation, Message, Role, Said};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::identity;
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::Path;

type Made<T> = std::result::Result<T, String>;

/// A template that runs, whosever it is.
pub(in crate::data) struct ChatTemplate {
    jinja: Jinja,
    pub(super) source: Source,
    pub(super) tokens: Tokens,
    /// Tokens that only the template may write: special ones, and those that its text names.
    control: BTreeSet<String>,
    pub(super) control_ids: Vec<u32>,
    thinking: Option<bool>,
}

impl ChatTemplate {
    /// # Errors
    /// The template is wrong; the tokenizer lacks what it writes; nothing could end an answer; thinking is set and
    /// the template does not know it.
    pub(super) fn open(
        source: Source,
        folder: &Path,
        tokenizer: &Tokenizer,
        thinking: Option<bool>,
    ) -> Result<Self> {
        let wrong = |what: String| Error::input(format!("{}: {what}", source.place));
        let jinja = Jinja::new(&source.templates).map_err(wrong)?;
        let named = |token: &str| source.templates.iter().any(|(_, text)| text.contains(token));
        for token in ["<|im_start|>", "<|im_end|>"] {
            if named(token) && tokenizer.added(token).is_none() {
                return Err(Error::input(format!(
                    "the tokenizer in {} has no token {token}",
                    folder.display()
                ))
                .hint("choose a --template that the model knows"));
            }
        }
        if let Some(on) = thinking.filter(|_| !named("enable_thinking")) {
            let what = format!("--thinking {on}: the chat template has no thinking to turn on or off");
            return Err(Error::usage(what).hint(&source.place));
        }
        let tokens = Tokens::read(folder, tokenizer)?;
        if tokens.ends.is_empty() {
            return Err(wrong("the model has no token that ends an answer".into())
                .hint("it is eos_token of tokenizer_config.json, or <|im_end|>"));
        }
        let control: BTreeSet<String> = tokenizer
            .added_tokens()
            .filter(|(token, special)| *special || (!is_tag(token) && named(token)))
            .map(|(token, _)| token.to_owned())
            .collect();
        let control_ids = control.iter().filter_map(|token| tokenizer.added(token)).collect();
        Ok(ChatTemplate { jinja, source, tokens, control, control_ids, thinking })
    }

    /// What decides the rows: the text, the tokens that it is given, thinking, and what runs it.
    pub(super) fn identity(&self) -> identity::Template {
        let text = format!("{} {:?}", self.source.digest(), self.tokens);
        identity::Template {
            name: self.source.name.to_owned(),
            digest: Some(blake3::hash(text.as_bytes()).to_hex().to_string()),
            thinking: self.thinking,
            engine: Some(ENGINE.to_owned()),
        }
    }

    /// Whether the template can be told to think or not to.
    pub(super) fn knows_thinking(&self) -> bool {
        self.source.templates.iter().any(|(_, text)| text.contains("enable_thinking"))
    }

    /// Whether the template marks what a model says.
    pub(super) fn has_markers(&self) -> bool {
        self.source.templates.iter().any(|(_, text)| text.contains("endgeneration"))
    }

    /// Writes a conversation. With `by_markers` the template's own markers tell what is scored.
    pub(super) fn render(
        &self,
        chat: &Conversation,
        system: Option<&str>,
        by_markers: bool,
    ) -> Made<Rendered> {
        let row = Row::new(self, chat, system)?;
        let rendering = row.rendering(false)?;
        let text = self.source.text(row.name);
        let lost = loss::check(&rendering, &row.messages, text, true, self.source.drops_thoughts)?;
        if by_markers {
            let pieces = pieces::by_markers(&rendering, &row.messages, &self.tokens.ends);
            return Ok(Rendered { pieces, thoughts_left_out: lost, answers: Vec::new() });
        }
        let found = answers::find(&rendering, &row.messages, &row)?;
        let answers = found.iter().map(|answer| explain(answer, &rendering)).collect();
        let pieces = pieces::by_answers(&rendering, &row.messages, &found, &self.tokens.ends);
        Ok(Rendered { pieces, thoughts_left_out: lost, answers })
    }

    /// The text alone, whether or not its characters' origin can be told.
    pub(super) fn text(&self, chat: &Conversation, system: Option<&str>, prompt: bool) -> Made<String> {
        if chat.messages.is_empty() {
            return Err("there is nothing to answer".into());
        }
        let row = Row::new(self, chat, system)?;
        let text = self.jinja.plain(row.name, row.inputs(&row.messages, row.thinking, prompt))?;
        Ok(text.chars().filter(|c| !is_reserved(*c)).collect())
    }

    /// Writes a conversation up to where the next answer begins.
    pub(super) fn prompt(&self, chat: &Conversation, system: Option<&str>) -> Made<Vec<Piece>> {
        let row = Row::new(self, chat, system)?;
        let rendering = row.rendering(true)?;
        loss::check(
            &rendering,
            &row.messages,
            self.source.text(row.name),
            false,
            self.source.drops_thoughts,
        )?;
        Ok(pieces::by_answers(&rendering, &row.messages, &[], &self.tokens.ends))
    }
}

/// How an answer was found, for people.
fn explain(answer: &Answer, rendering: &Rendering) -> FoundAnswer {
    let how = match answer.found {
        Found::Prompt => "behind the whole prompt",
        Found::PromptEnd => "behind the prompt's own text, which stands there once",
        Found::Header => "behind the prompt's header; its <think> is not in the history",
        Found::Markers => "by the template's {% generation %}",
    };
    let end = rendering.slice(answer.end.clone());
    let how = format!("message {}: the answer begins {how}, and ends with {end}", answer.message + 1);
    FoundAnswer { place: answer.start..answer.end.end, how }
}

fn is_tag(token: &str) -> bool {
    super::chars::tags(token).first().is_some_and(|tag| tag.len() == token.len())
}

/// A row as a template gets it.
struct Row<'a> {
    template: &'a ChatTemplate,
    messages: Vec<Message>,
    tools: &'a [Json],
    variables: &'a Fields,
    name: &'static str,
    /// What the row or else the run says about thinking.
    thinking: Option<bool>,
    asked: [OnceCell<Option<Vec<char>>>; 6],
}

impl<'a> Row<'a> {
    fn new(template: &'a ChatTemplate, chat: &'a Conversation, system: Option<&str>) -> Made<Self> {
        let mut messages = chat.messages.clone();
        if let Some(text) = system.filter(|_| messages[0].role != Role::System) {
            messages.insert(0, Message::new(Role::System, text.to_owned()));
        }
        let name = template.source.choice(!chat.tools.is_empty());
        let source = template.source.text(name);
        if let Some(key) = chat.variables.keys().find(|key| !source.contains(*key)) {
            return Err(format!("`chat_template_kwargs`: the chat template knows no {key}"));
        }
        let thinking = match chat.variables.get("enable_thinking") {
            None => template.thinking,
            Some(Json::Bool(on)) => Some(*on),
            Some(other) => return Err(format!("`enable_thinking` is {}, not true or false", other.kind())),
        };
        let row = Row {
            template,
            messages,
            tools: &chat.tools,
            variables: &chat.variables,
            name,
            thinking,
            asked: Default::default(),
        };
        row.check_texts()?;
        Ok(row)
    }

    /// Texts that get no marks must not hold a control token; no text may hold what marks are made of.
    fn check_texts(&self) -> Made<()> {
        let mut characters = 0;
        for (index, message) in self.messages.iter().enumerate() {
            let place = |what: &str| format!("message {}: {what}", index + 1);
            let mut texts: Vec<&str> = message.reasoning.iter().map(String::as_str).collect();
            match &message.content {
                Said::Absent | Said::Null => {}
                Said::Text(text) => texts.push(text),
                Said::Parts(parts) => texts.extend(parts.iter().map(String::as_str)),
            }
            message
                .tool_calls
                .iter()
                .for_each(|call| strings(call, &mut |text| texts.push(text), &mut |_| {}));
            if texts.iter().any(|text| reserved(text)) {
                return Err(place("it holds characters of planes without meaning (U+40000 to U+DFFFF)"));
            }
            characters += texts.iter().map(|text| text.chars().count()).sum::<usize>();
            let mut unmarked: Vec<&str> =
                message.tool_call_id.iter().chain(&message.name).map(String::as_str).collect();
            message
                .tool_calls
                .iter()
                .for_each(|call| strings(call, &mut |_| {}, &mut |key| unmarked.push(key)));
            self.check_unmarked(&unmarked).map_err(|fault| place(&fault))?;
        }
        let mut unmarked = Vec::new();
        for json in self.tools.iter().chain(self.variables.iter().map(|(_, json)| json)) {
            let mut both = Vec::new();
            strings(json, &mut |text| both.push(text), &mut |_| {});
            strings(json, &mut |_| {}, &mut |key| both.push(key));
            unmarked.extend(both);
        }
        self.check_unmarked(&unmarked)?;
        if characters > MOST {
            return Err(format!(
                "the conversation has {characters} characters; a chat template takes at most {MOST}"
            ));
        }
        Ok(())
    }

    fn check_unmarked(&self, texts: &[&str]) -> Made<()> {
        let holds = |text: &&str| self.template.control.iter().find(|token| text.contains(token.as_str()));
        if let Some(token) = texts.iter().find_map(holds) {
            return Err(format!(
                "the control token {token} in tools, a name, an id or a key would be taken as one"
            ));
        }
        match texts.iter().any(|text| reserved(text)) {
            true => Err("characters of planes without meaning (U+40000 to U+DFFFF)".into()),
            false => Ok(()),
        }
    }

    fn inputs<'b>(&'b self, messages: &'b [Message], thinking: Option<bool>, prompt: bool) -> Inputs<'b> {
        let special = &self.template.tokens.special;
        Inputs { messages, tools: self.tools, variables: self.variables, special, thinking, prompt }
    }

    /// The conversation with the origin of each character.
    fn rendering(&self, prompt: bool) -> Made<Rendering> {
        let template = self.template;
        let inputs = self.inputs(&self.messages, self.thinking, prompt);
        let plain = template.jinja.plain(self.name, inputs)?;
        if !self.tools.is_empty() {
            let without = template.jinja.plain(self.name, Inputs { tools: &[], ..inputs })?;
            if without == plain {
                return Err("the chat template writes nothing of `tools`".into());
            }
        }
        let tries = [false, true].into_iter().find_map(|tags_stay| {
            let marks = Marks::new(tags_stay, &template.control);
            let (marked, marks) = template.jinja.marked(self.name, inputs, marks).ok()?;
            Rendering::new(&plain, &marked, marks, &template.control)
        });
        tries.ok_or_else(|| {
            "the chat template looks into the messages' text: what it writes cannot be told from what they say".into()
        })
    }

    fn written(&self, messages: &[Message], thinking: Option<bool>, prompt: bool) -> Option<Vec<char>> {
        let text = self.template.jinja.plain(self.name, self.inputs(messages, thinking, prompt)).ok()?;
        Some(text.chars().filter(|c| !is_reserved(*c)).collect())
    }
}

impl Prompts for Row<'_> {
    fn before(&self, message: usize, thinking: Option<bool>, prompt: bool) -> Option<Vec<char>> {
        self.written(&self.messages[..message], thinking, prompt)
    }

    fn question(&self, thinking: Option<bool>, prompt: bool) -> Option<Vec<char>> {
        let mode = thinking.map_or(0, |on| 1 + usize::from(on));
        let question = || {
            let message = Message::new(Role::User, "question".to_owned());
            self.written(&[message], thinking, prompt)
        };
        self.asked[2 * mode + usize::from(prompt)].get_or_init(question).clone()
    }

    fn modes(&self) -> Vec<Option<bool>> {
        let mut modes = vec![self.thinking];
        if self.template.source.text(self.name).contains("enable_thinking") {
            modes.extend([Some(true), Some(false)].into_iter().filter(|mode| *mode != self.thinking));
        }
        modes
    }

    fn ends(&self) -> &[String] {
        &self.template.tokens.ends
    }

    fn control(&self, text: &[char]) -> Option<String> {
        let text: String = text.iter().take(64).collect();
        let begins = |token: &&String| text.starts_with(token.as_str());
        self.template.control.iter().filter(begins).max_by_key(|token| token.len()).cloned()
    }
}

/// All strings of a value, and all keys.
fn strings<'a>(json: &'a Json, text: &mut dyn FnMut(&'a str), key: &mut dyn FnMut(&'a str)) {
    match json {
        Json::String(string) => text(string),
        Json::Array(items) => items.iter().for_each(|item| strings(item, text, key)),
        Json::Object(fields) => fields.iter().for_each(|(name, value)| {
            key(name);
            strings(value, text, key);
        }),
        Json::Null | Json::Bool(_) | Json::Integer(_) | Json::Float(_) => {}
    }
}
