//! Templates written in Rust, for models whose folder has none: Qwen v1, DeepKE's, and no template at all.
//!
//! | template | default system message | tokenised |
//! | --- | --- | --- |
//! | qwen | You are a helpful assistant. | with `qwen.tiktoken` role, line feed and content each alone (Qwen v1's `make_context`); otherwise whole (Qwen2) |
//! | deepke | You are a helpful assistant. | each element of DeepKE's template alone; no line feed after the last turn |
//! | none | none | whole; the contents as they are, `<\|endoftext\|>` after each answer |

use super::{Part, Piece};
use crate::config::Settings;
use crate::config::settings::Template as Name;
use crate::data::rows::{Conversation, Message, Role, Said};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// A message that is one text, which is all that these templates know.
#[derive(Clone, Debug)]
struct Turn {
    role: Role,
    content: String,
}

/// The messages as turns, or what these templates have no place for.
fn turns(chat: &Conversation) -> std::result::Result<Vec<Turn>, String> {
    let nowhere = |what: &str| Err(format!("this template has no place for {what}"));
    if !chat.tools.is_empty() {
        return nowhere("`tools`");
    }
    if let Some(key) = chat.variables.keys().next() {
        return nowhere(&format!("`chat_template_kwargs` ({key})"));
    }
    let turn = |(index, message): (usize, &Message)| {
        let nowhere =
            |what: &str| Err(format!("message {}: this template has no place for {what}", index + 1));
        let Said::Text(content) = &message.content else { return nowhere("`content` that is no text") };
        if !message.tool_calls.is_empty() {
            return nowhere("`tool_calls`");
        }
        if message.name.is_some() || message.tool_call_id.is_some() {
            return nowhere("`name` and `tool_call_id`");
        }
        if message.role == Role::Developer {
            return nowhere("the role \"developer\"");
        }
        if message.reasoning.as_ref().is_some_and(|text| !text.is_empty()) {
            return nowhere("`reasoning_content`");
        }
        Ok(Turn { role: message.role, content: content.clone() })
    };
    chat.messages.iter().enumerate().map(turn).collect()
}

/// A template written in Rust.
pub(in crate::data) struct Fixed {
    kind: Kind,
    /// Role, line feed and content are tokenised each alone (Qwen v1).
    piecewise: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Qwen,
    Deepke,
    Plain,
}

impl Fixed {
    /// `name` is one of `qwen`, `deepke` and, for every other, `none`.
    ///
    /// # Errors
    /// The tokenizer lacks a token that the template writes; thinking is set.
    pub(super) fn new(name: Name, tokenizer: &Tokenizer, settings: &Settings) -> Result<Self> {
        let kind = match name {
            Name::Qwen => Kind::Qwen,
            Name::Deepke => Kind::Deepke,
            _ => Kind::Plain,
        };
        let fixed = Fixed { kind, piecewise: tokenizer.is_tiktoken() && kind == Kind::Qwen };
        if let Some(on) = settings.thinking {
            let what = format!("--thinking {on}: the template {} has no thinking", fixed.name());
            return Err(Error::usage(what));
        }
        let needed: &[&str] = match kind {
            Kind::Plain => &["<|endoftext|>"],
            _ => &["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        };
        match needed.iter().find(|token| tokenizer.added(token).is_none()) {
            None => Ok(fixed),
            Some(token) => {
                let folder = settings.model.display();
                Err(Error::input(format!("the tokenizer in {folder} has no token {token}"))
                    .hint("choose a --template that the model knows"))
            }
        }
    }

    /// Its name in the settings.
    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Qwen => "qwen",
            Kind::Deepke => "deepke",
            Kind::Plain => "none",
        }
    }

    /// Tokens that end an answer.
    pub(super) fn ends(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Plain => &["<|endoftext|>"],
            Kind::Qwen => &["<|im_end|>", "<|endoftext|>", "<|im_start|>"],
            Kind::Deepke => &["<|im_end|>", "<|endoftext|>"],
        }
    }

    /// Whether control tokens that a row's text contains stay control tokens.
    pub(super) fn trusts_text(&self) -> bool {
        self.kind != Kind::Qwen
    }

    /// Writes a conversation. `system` stands in for the default system message.
    pub(super) fn render(
        &self,
        chat: &Conversation,
        system: Option<&str>,
    ) -> std::result::Result<Vec<Piece>, String> {
        let turns = turns(chat)?;
        self.check(&turns, false)?;
        let mut pieces = self.written(&turns, system).pieces;
        if self.kind == Kind::Deepke {
            // Its last turn has no line feed.
            pieces.pop();
        }
        Ok(pieces)
    }

    /// Writes a conversation up to where the assistant's next answer begins.
    pub(super) fn prompt(
        &self,
        chat: &Conversation,
        system: Option<&str>,
    ) -> std::result::Result<Vec<Piece>, String> {
        let turns = turns(chat)?;
        self.check(&turns, true)?;
        let mut writer = self.written(&turns, system);
        if self.kind != Kind::Plain {
            (writer.turn, writer.role) = (writer.turn + 1, Role::Assistant);
            writer.open("assistant");
        }
        Ok(writer.pieces)
    }

    fn written(&self, turns: &[Turn], system: Option<&str>) -> Writer {
        let mut all = Vec::with_capacity(turns.len() + 1);
        let own = (self.kind != Kind::Plain).then_some("You are a helpful assistant.");
        if let Some(text) = system.or(own).filter(|_| turns[0].role != Role::System) {
            all.push(Turn { role: Role::System, content: text.to_string() });
        }
        all.extend_from_slice(turns);
        let mut writer = Writer {
            kind: self.kind,
            piecewise: self.piecewise,
            pieces: Vec::new(),
            turn: 0,
            role: Role::System,
        };
        match self.kind {
            Kind::Plain => writer.plain(&all),
            _ => writer.chatml(&all),
        }
        writer
    }

    /// Whether the template can say this; `open` when an answer is still to come.
    fn check(&self, turns: &[Turn], open: bool) -> std::result::Result<(), String> {
        if let Some(index) = turns.iter().position(|turn| turn.role == Role::Tool) {
            return Err(format!("message {}: this template has no tool messages", index + 1));
        }
        if self.kind == Kind::Deepke {
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
    kind: Kind,
    piecewise: bool,
    pieces: Vec<Piece>,
    turn: usize,
    role: Role,
}

impl Writer {
    fn text(&mut self, text: impl Into<String>, part: Part, alone: bool) {
        let (text, turn, role) = (text.into(), self.turn, self.role);
        if !text.is_empty() {
            self.pieces.push(Piece { text, part, turn, role, trained: None, control: false, alone });
        }
    }

    fn control(&mut self, token: &str, part: Part) {
        let (text, turn, role) = (token.to_string(), self.turn, self.role);
        self.pieces.push(Piece { text, part, turn, role, trained: None, control: true, alone: true });
    }

    fn open(&mut self, role: &str) {
        self.control("<|im_start|>", Part::Start);
        if self.piecewise {
            self.text(role, Part::Role, true);
            self.text("\n", Part::Role, true);
        } else {
            self.text(format!("{role}\n"), Part::Role, false);
        }
    }

    fn chatml(&mut self, turns: &[Turn]) {
        for (index, turn) in turns.iter().enumerate() {
            (self.turn, self.role) = (index, turn.role);
            self.open(turn.role.name());
            // DeepKE writes role and question as one element, the answer as one of its own.
            let alone = self.piecewise || (self.kind == Kind::Deepke && turn.role == Role::Assistant);
            self.text(turn.content.as_str(), Part::Body, alone);
            self.control("<|im_end|>", Part::End);
            self.text("\n", Part::Break, false);
        }
    }

    fn plain(&mut self, turns: &[Turn]) {
        for (index, turn) in turns.iter().enumerate() {
            (self.turn, self.role) = (index, turn.role);
            self.text(turn.content.as_str(), Part::Body, false);
            if turn.role == Role::Assistant {
                self.control("<|endoftext|>", Part::End);
            }
        }
    }
}
