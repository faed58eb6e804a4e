//! Chat templates: a conversation as pieces of text and control tokens, each with what it is, so that the mask
//! follows by construction and nothing is searched for afterwards.
//!
//! | template | default system message | tokenised |
//! | --- | --- | --- |
//! | qwen | You are a helpful assistant. | with `qwen.tiktoken` role, line feed and content each alone (Qwen v1's `make_context`); otherwise whole (Qwen2) |
//! | qwen1.5 | You are a helpful assistant | whole |
//! | qwen2.5 | You are Qwen, created by Alibaba Cloud. You are a helpful assistant. | whole |
//! | qwen3, qwen3-nothink | none | whole |
//! | deepke | You are a helpful assistant. | each element of DeepKE's template alone; no line feed after the last turn |
//! | none | none | whole; the contents as they are, `<\|endoftext\|>` after each answer |

use super::rows::{Role, Turn};
use crate::config::settings::Template;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// What a piece is; decides whether it is scored and whether it may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `<|im_start|>`
    Start,
    /// Role word and its line feed.
    Role,
    /// What a message says.
    Body,
    /// Qwen3's think block without thoughts.
    EmptyThink,
    /// The token that ends an answer or a message.
    End,
    /// The line feed after it.
    Break,
}

/// A stretch of text or one control token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) part: Part,
    /// Index of the message, counted as rendered; the speaker.
    pub(super) turn: usize,
    pub(super) role: Role,
    /// The text is one control token.
    pub(super) control: bool,
    /// It is not tokenised together with the piece before.
    pub(super) alone: bool,
}

/// How a family writes a conversation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) template: Template,
    /// Role, line feed and content are tokenised each alone (Qwen v1).
    pub(super) piecewise: bool,
}

impl Style {
    /// The system message of a conversation that has none.
    fn default_system(self) -> Option<&'static str> {
        match self.template {
            Template::Qwen | Template::Deepke => Some("You are a helpful assistant."),
            Template::Qwen15 => Some("You are a helpful assistant"),
            Template::Qwen25 => Some("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
            Template::Auto | Template::Qwen3 | Template::Qwen3NoThink | Template::None => None,
        }
    }

    /// Whether control tokens that a row's text contains stay control tokens: DeepKE encodes with all of them
    /// allowed, and `none` takes the text as it is.
    pub(super) fn trusts_text(self) -> bool {
        matches!(self.template, Template::Deepke | Template::None)
    }

    /// Writes a conversation. `system` stands in for the family's default.
    pub(super) fn render(
        self,
        turns: &[Turn],
        system: Option<&str>,
    ) -> std::result::Result<Vec<Piece>, String> {
        self.check(turns, false)?;
        let mut writer = self.written(turns, system);
        if self.template == Template::Deepke {
            // Its last turn has no line feed.
            writer.pieces.pop();
        }
        Ok(writer.pieces)
    }

    /// Writes a conversation up to where the assistant's next answer begins. Without `thinking`, Qwen3's answer
    /// begins behind an empty think block.
    pub(super) fn prompt(
        self,
        turns: &[Turn],
        system: Option<&str>,
        thinking: bool,
    ) -> std::result::Result<Vec<Piece>, String> {
        self.check(turns, true)?;
        let mut writer = self.written(turns, system);
        if self.template != Template::None {
            (writer.turn, writer.role) = (writer.turn + 1, Role::Assistant);
            writer.open("assistant");
        }
        if self.template == Template::Qwen3 && !thinking {
            writer.think("");
        }
        Ok(writer.pieces)
    }

    fn written(self, turns: &[Turn], system: Option<&str>) -> Writer {
        let mut all = Vec::with_capacity(turns.len() + 1);
        let default = system.or(self.default_system()).filter(|_| turns[0].role != Role::System);
        if let Some(text) = default {
            all.push(Turn { role: Role::System, content: text.to_string(), reasoning: None });
        }
        all.extend_from_slice(turns);
        let mut writer = Writer { style: self, pieces: Vec::new(), turn: 0, role: Role::System };
        match self.template {
            Template::None => writer.plain(&all),
            Template::Qwen3 => writer.qwen3(&all),
            _ => writer.chatml(&all),
        }
        writer
    }

    /// Whether the template can say this; `open` when an answer is still to come.
    fn check(self, turns: &[Turn], open: bool) -> std::result::Result<(), String> {
        for (index, turn) in turns.iter().enumerate() {
            let place = index + 1;
            let thinks = matches!(self.template, Template::Qwen3 | Template::Qwen3NoThink);
            if turn.reasoning.is_some() && !thinks {
                return Err(format!("message {place}: this template has no place for `reasoning_content`"));
            }
            if turn.content.is_empty()
                && self.template == Template::Qwen3NoThink
                && turn.role == Role::Assistant
            {
                return Err(format!("message {place}: the assistant says nothing"));
            }
            let toolless = matches!(self.template, Template::Qwen | Template::Deepke | Template::None);
            if turn.role == Role::Tool && toolless {
                return Err(format!("message {place}: this template has no tool messages"));
            }
        }
        if self.template == Template::Deepke {
            let talk = if turns[0].role == Role::System { &turns[1..] } else { turns };
            let expected = [Role::User, Role::Assistant].iter().cycle();
            let alternates = talk.iter().zip(expected).all(|(turn, role)| turn.role == *role);
            if !alternates || (talk.len() % 2 == 1) != open {
                return Err("DeepKE's template takes questions and answers in turn".into());
            }
        }
        Ok(())
    }
}

struct Writer {
    style: Style,
    pieces: Vec<Piece>,
    turn: usize,
    role: Role,
}

impl Writer {
    fn text(&mut self, text: impl Into<String>, part: Part, alone: bool) {
        let (text, turn, role) = (text.into(), self.turn, self.role);
        if !text.is_empty() {
            self.pieces.push(Piece { text, part, turn, role, control: false, alone });
        }
    }

    fn control(&mut self, token: &str, part: Part) {
        let (text, turn, role) = (token.to_string(), self.turn, self.role);
        self.pieces.push(Piece { text, part, turn, role, control: true, alone: true });
    }

    fn open(&mut self, role: &str) {
        self.control("<|im_start|>", Part::Start);
        if self.style.piecewise {
            self.text(role, Part::Role, true);
            self.text("\n", Part::Role, true);
        } else {
            self.text(format!("{role}\n"), Part::Role, false);
        }
    }

    fn close(&mut self) {
        self.control("<|im_end|>", Part::End);
        self.text("\n", Part::Break, false);
    }

    fn enter(&mut self, index: usize, turn: &Turn) {
        (self.turn, self.role) = (index, turn.role);
    }

    fn chatml(&mut self, turns: &[Turn]) {
        let deepke = self.style.template == Template::Deepke;
        for (index, turn) in turns.iter().enumerate() {
            self.enter(index, turn);
            match turn.role {
                Role::Tool if self.style.template != Template::Qwen15 => self.tool(turns, index),
                _ => {
                    self.open(word(turn.role));
                    // DeepKE writes role and question as one element, the answer as one of its own.
                    let alone = self.style.piecewise || (deepke && turn.role == Role::Assistant);
                    self.text(turn.content.as_str(), Part::Body, alone);
                    self.close();
                }
            }
        }
    }

    /// Neighbouring tool messages share one user message (Qwen2.5 and Qwen3).
    fn tool(&mut self, turns: &[Turn], index: usize) {
        let tool_at = |i: usize| turns.get(i).is_some_and(|turn| turn.role == Role::Tool);
        if index == 0 || !tool_at(index - 1) {
            self.control("<|im_start|>", Part::Start);
            self.text("user", Part::Role, false);
        }
        self.text("\n<tool_response>\n", Part::Role, false);
        self.text(turns[index].content.as_str(), Part::Body, false);
        self.text("\n</tool_response>", Part::Role, false);
        if !tool_at(index + 1) {
            self.close();
        }
    }

    fn qwen3(&mut self, turns: &[Turn]) {
        let query = last_query(turns);
        for (index, turn) in turns.iter().enumerate() {
            self.enter(index, turn);
            match turn.role {
                Role::Tool => self.tool(turns, index),
                Role::Assistant => {
                    let (reasoning, content) = thoughts(turn);
                    let last = index + 1 == turns.len();
                    self.open("assistant");
                    if index > query && (last || !reasoning.is_empty()) {
                        self.think(reasoning.trim_matches('\n'));
                        self.text(content.trim_start_matches('\n'), Part::Body, false);
                    } else {
                        self.text(content, Part::Body, false);
                    }
                    self.close();
                }
                _ => {
                    self.open(word(turn.role));
                    self.text(turn.content.as_str(), Part::Body, false);
                    self.close();
                }
            }
        }
    }

    fn think(&mut self, thoughts: &str) {
        let part = if thoughts.is_empty() { Part::EmptyThink } else { Part::Body };
        self.text(format!("<think>\n{thoughts}\n</think>\n\n"), part, false);
    }

    fn plain(&mut self, turns: &[Turn]) {
        for (index, turn) in turns.iter().enumerate() {
            self.enter(index, turn);
            self.text(turn.content.as_str(), Part::Body, false);
            if turn.role == Role::Assistant {
                self.control("<|endoftext|>", Part::End);
            }
        }
    }
}

fn word(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

/// Index of the last message that is a question and no tool's answer; the last message when there is none.
fn last_query(turns: &[Turn]) -> usize {
    let asks = |turn: &Turn| {
        let answer =
            turn.content.starts_with("<tool_response>") && turn.content.ends_with("</tool_response>");
        turn.role == Role::User && !answer
    };
    turns.iter().rposition(asks).unwrap_or(turns.len() - 1)
}

/// (thoughts, answer) as Qwen3's template finds them.
fn thoughts(turn: &Turn) -> (String, &str) {
    if let Some(reasoning) = &turn.reasoning {
        return (reasoning.clone(), &turn.content);
    }
    let (Some((before, _)), Some((_, after))) =
        (turn.content.split_once("</think>"), turn.content.rsplit_once("</think>"))
    else {
        return (String::new(), &turn.content);
    };
    let before = before.trim_end_matches('\n');
    let inside = before.rsplit_once("<think>").map_or(before, |(_, inside)| inside);
    (inside.trim_start_matches('\n').to_string(), after.trim_start_matches('\n'))
}

/// The template that a model folder asks for: its chat template recognised by what it says, or Qwen v1's where
/// there is only `qwen.tiktoken`.
///
/// # Errors
/// There is no template, or it is none of the known ones.
pub(super) fn recognise(folder: &Path) -> Result<Template> {
    let source = own_template(folder)?;
    let unknown = |what: &str| {
        Error::input(format!("{}: {what}", folder.display()))
            .hint("name one with --template (qwen, qwen1.5, qwen2.5, qwen3, qwen3-nothink, deepke, none)")
    };
    match source {
        None if !folder.join("tokenizer.json").exists() && folder.join("qwen.tiktoken").exists() => {
            Ok(Template::Qwen)
        }
        None => Err(unknown("the folder has no chat template")),
        Some(text) => classify(&text).ok_or_else(|| unknown("the folder's chat template is not a known one")),
    }
}

/// Which family wrote a chat template: ChatML without other models' marks, then the family's own sentences.
fn classify(text: &str) -> Option<Template> {
    // A line feed is written either way in the templates' string literals.
    let text = &text.replace("\\n", "\n");
    let has = |part: &str| text.contains(part);
    let foreign = ["vision_start", "image_pad", "[INST]", "<|eot_id|>", "<start_of_turn>", "bos_token"];
    if !has("<|im_start|>") || !has("<|im_end|>") || foreign.iter().any(|mark| has(mark)) {
        return None;
    }
    if has("last_query_index") && has("reasoning_content") && has("</think>") {
        return Some(Template::Qwen3);
    }
    if has("think>") {
        return None;
    }
    let defaults = [
        ("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>", Template::Qwen25),
        ("system\nYou are a helpful assistant.<|im_end|>", Template::Qwen),
        ("system\nYou are a helpful assistant<|im_end|>", Template::Qwen15),
    ];
    if let Some((_, template)) = defaults.iter().find(|(sentence, _)| has(sentence)) {
        return Some(*template);
    }
    // ChatML that says nothing of its own: the system line is followed by what the row says.
    let speaks = |rest: &str| !rest.starts_with(['\'', '"']);
    (!text.split("system\n").skip(1).any(speaks)).then_some(Template::Qwen3NoThink)
}

/// The text of `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`.
fn own_template(folder: &Path) -> Result<Option<String>> {
    let read = |name: &str| match std::fs::read_to_string(folder.join(name)) {
        Ok(text) if text.len() <= 16 << 20 => Ok(Some(text)),
        Ok(_) => Err(Error::input(format!("{} is too long", folder.join(name).display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::reading(&folder.join(name), e)),
    };
    if let Some(text) = read("chat_template.jinja")? {
        return Ok(Some(text));
    }
    let Some(text) = read("tokenizer_config.json")? else { return Ok(None) };
    let config: Value = serde_json::from_str(&text).map_err(|e| {
        Error::input(format!("{}: {e}", folder.join("tokenizer_config.json").display())).caused_by(e)
    })?;
    let named = |name: &str| {
        let list = config["chat_template"].as_array()?;
        list.iter().find(|entry| entry["name"] == name)?["template"].as_str()
    };
    Ok(config["chat_template"].as_str().or_else(|| named("default")).map(str::to_string))
}
