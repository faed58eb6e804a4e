//! Chat templates: a conversation as pieces of text and control tokens, each with what it is, so that the mask is
//! known for every piece.
//!
//! The model folder's own template is run as transformers runs it (`jinja`, `python`), and what it writes of each
//! message is known by marks on every character of the row (`marks`, `rendering`). From that follow where answers
//! begin and end (`answers`) and whether anything of the row is lost (`loss`). What has no such template is written
//! in Rust (`fixed`): Qwen v1, DeepKE, and no template at all.

mod answers;
mod chars;
mod chat;
mod fixed;
mod jinja;
mod loss;
mod marks;
mod pieces;
mod python;
mod rendering;
mod source;

use self::chat::ChatTemplate;
use self::fixed::Fixed;
use self::source::Source;
use super::rows::{Conversation, Role};
use super::tokenizer::{Recognise, Tokenizer};
use crate::config::Settings;
use crate::config::settings::{Template as Name, TrainOn};
use crate::error::{Error, Result};
use crate::identity;
use std::ops::Range;

/// What a piece is; decides whether it is scored and whether it may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A control token that neither ends an answer nor belongs to one (`<|im_start|>`).
    Start,
    /// The template's own text.
    Role,
    /// What a message says.
    Body,
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
    /// What the row says about training on this message.
    pub(super) trained: Option<bool>,
    /// The text is one control token.
    pub(super) control: bool,
    /// It is not tokenised together with the piece before.
    pub(super) alone: bool,
}

/// A conversation as a template writes it.
#[derive(Default)]
pub(super) struct Rendered {
    pub(super) pieces: Vec<Piece>,
    /// Earlier answers whose thoughts the template leaves out.
    pub(super) thoughts_left_out: usize,
    pub(super) answers: Vec<FoundAnswer>,
}

/// Where an answer stands in the text that a template writes, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundAnswer {
    /// Characters of the text.
    pub place: Range<usize>,
    /// How it was found.
    pub how: String,
}

/// What a chat template makes of a conversation, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The conversation, or why it cannot be written.
    pub text: std::result::Result<String, String>,
    /// What a model is given to answer: the same without the last answer.
    pub prompt: std::result::Result<String, String>,
    /// The answers; none where they cannot be told.
    pub answers: Vec<FoundAnswer>,
}

/// How conversations are written.
pub(super) enum Template {
    Fixed(Fixed),
    Chat(Box<ChatTemplate>),
}

impl Template {
    /// The template that the settings name, or the model folder's own.
    ///
    /// # Errors
    /// There is none, it cannot be run, or it does not fit the tokenizer or the other settings.
    pub(super) fn open(settings: &Settings, tokenizer: &Tokenizer) -> Result<Self> {
        let template = match (&settings.chat_template, settings.template) {
            (Some(path), _) => chat(Source::file(path)?, settings, tokenizer)?,
            (None, Name::Auto) => match Source::own(&settings.model)? {
                Some(source) => chat(source, settings, tokenizer)?,
                None if tokenizer.is_tiktoken() => {
                    Template::Fixed(Fixed::new(Name::Qwen, tokenizer, settings)?)
                }
                None => {
                    let what = format!("{}: the folder has no chat template", settings.model.display());
                    return Err(Error::input(what).hint("name one with --template or --chat-template FILE"));
                }
            },
            (None, name) => match Source::named(name) {
                Some(source) => chat(source, settings, tokenizer)?,
                None => Template::Fixed(Fixed::new(name, tokenizer, settings)?),
            },
        };
        let marks = matches!(&template, Template::Chat(chat) if chat.has_markers());
        if settings.train_on == TrainOn::Template && !marks {
            return Err(Error::usage(
                "--train-on template: the template marks nothing with {% generation %}",
            ));
        }
        Ok(template)
    }

    /// Writes a conversation. `system` stands in for a missing system message.
    pub(super) fn render(
        &self,
        conversation: &Conversation,
        system: Option<&str>,
        train_on: TrainOn,
    ) -> std::result::Result<Rendered, String> {
        let mut rendered = match self {
            Template::Fixed(fixed) => {
                let pieces = fixed.render(conversation, system)?;
                Rendered { pieces, ..Rendered::default() }
            }
            Template::Chat(chat) => chat.render(conversation, system, train_on == TrainOn::Template)?,
        };
        mark_trained(&mut rendered.pieces, conversation);
        Ok(rendered)
    }

    /// Writes a conversation up to where the assistant's next answer begins.
    pub(super) fn prompt(
        &self,
        conversation: &Conversation,
        system: Option<&str>,
    ) -> std::result::Result<Vec<Piece>, String> {
        match self {
            Template::Fixed(fixed) => fixed.prompt(conversation, system),
            Template::Chat(chat) => chat.prompt(conversation, system),
        }
    }

    /// What it writes, whether or not the answers can be told.
    pub(super) fn written(&self, conversation: &Conversation, system: Option<&str>) -> Written {
        let mut asked = conversation.clone();
        asked.messages.pop_if(|last| last.role == Role::Assistant);
        let joined = |pieces: Vec<Piece>| pieces.into_iter().map(|piece| piece.text).collect::<String>();
        let (text, prompt) = match self {
            Template::Fixed(fixed) => {
                (fixed.render(conversation, system).map(joined), fixed.prompt(&asked, system).map(joined))
            }
            Template::Chat(chat) => (chat.text(conversation, system, false), chat.text(&asked, system, true)),
        };
        let rendered = self.render(conversation, system, TrainOn::Assistant).unwrap_or_default();
        Written { text, prompt, answers: rendered.answers }
    }

    /// Which tokens of a rendering's texts are found before they are split. Control tokens in a row's text are text;
    /// DeepKE encodes with all of them allowed, and `none` takes the text as it is.
    pub(super) fn recognise(&self) -> Recognise<'_> {
        match self {
            Template::Fixed(fixed) if fixed.trusts_text() => Recognise::All,
            Template::Fixed(_) => Recognise::Written,
            Template::Chat(chat) => Recognise::Without(&chat.control_ids),
        }
    }

    /// Tokens that end an answer.
    pub(super) fn ends(&self) -> Vec<&str> {
        match self {
            Template::Fixed(fixed) => fixed.ends().to_vec(),
            Template::Chat(chat) => chat.tokens.ends.iter().map(String::as_str).collect(),
        }
    }

    /// What decides the rows.
    pub(super) fn identity(&self) -> identity::Template {
        match self {
            Template::Fixed(fixed) => {
                identity::Template { name: fixed.name().to_owned(), ..Default::default() }
            }
            Template::Chat(chat) => chat.identity(),
        }
    }

    /// What was chosen, for people: one fact a line.
    pub(super) fn explain(&self) -> Vec<String> {
        match self {
            Template::Fixed(fixed) => vec![format!("template: {}, written in Rust", fixed.name())],
            Template::Chat(chat) => {
                let thinking =
                    if chat.knows_thinking() { "the template knows it" } else { "the template has none" };
                let marks = if chat.has_markers() { "yes" } else { "no" };
                vec![
                    format!("template: {}, digest {}", chat.source.place, &chat.source.digest()[..16]),
                    format!("run by: {}", jinja::ENGINE),
                    format!("thinking: {thinking}"),
                    format!("marks answers with {{% generation %}}: {marks}"),
                    format!("an answer ends with: {}", chat.tokens.ends.join(", ")),
                ]
            }
        }
    }
}

/// Puts what the row says about training on a message on the message's pieces. The messages of one role are told apart by
/// their order: a template may add a system message, but leaves none out.
fn mark_trained(pieces: &mut [Piece], conversation: &Conversation) {
    if conversation.messages.iter().all(|message| message.trained.is_none()) {
        return;
    }
    let mut turns: Vec<(Role, usize)> = Vec::new();
    for piece in pieces.iter_mut().filter(|piece| piece.turn != pieces::NOBODY) {
        let turn = (piece.role, piece.turn);
        if !turns.contains(&turn) {
            turns.push(turn);
        }
        let number = turns.iter().filter(|(role, _)| *role == piece.role).position(|t| *t == turn);
        let mut messages = conversation.messages.iter().filter(|message| message.role == piece.role);
        piece.trained = number.and_then(|n| messages.nth(n)).and_then(|message| message.trained);
    }
}

fn chat(source: Source, settings: &Settings, tokenizer: &Tokenizer) -> Result<Template> {
    let opened = ChatTemplate::open(source, &settings.model, tokenizer, settings.thinking)?;
    Ok(Template::Chat(Box::new(opened)))
}
