//! From conversations and texts to tokens with labels: template, tokenizer, mask, length limits.
//!
//! Text that belongs together is tokenised together, because a token may reach over the end of a piece (a line
//! feed of the header and one of the content are one token). A token is scored when any of its bytes is, as in
//! Hugging Face's `assistant_masks`.
//!
//! Control tokens written in a conversation's text (`<|im_end|>`) are text, not control tokens: a message cannot
//! end its own turn. The exceptions take text as it is: DeepKE's template, template `none`, and `text` rows.

use super::dataset::{IGNORED, Row};
use super::prepare::Outcome;
use super::rows::{Content, Role};
use super::template::{Part, Piece, Rendered, Template, Written};
use super::tokenizer::{Recognise, Token, Tokenizer};
use crate::config::Settings;
use crate::config::settings::{TooLong, TrainOn};
use crate::error::{Error, Result};
use crate::identity;

/// Renders rows for one run.
pub(super) struct Renderer {
    pub(super) tokenizer: Tokenizer,
    /// The template, or why there is none (only rows that need one complain).
    template: Result<Template>,
    /// The token that ends a `text` row.
    text_end: String,
}

/// A token, whether it is scored, and the piece it begins in.
struct Marked {
    id: u32,
    scored: bool,
    piece: usize,
}

impl Renderer {
    /// Opens the model folder's tokenizer and template.
    pub(super) fn open(settings: &Settings, vocab_size: usize) -> Result<Self> {
        let tokenizer = Tokenizer::open(&settings.model)?;
        let folder = settings.model.display();
        if tokenizer.size() > vocab_size {
            return Err(Error::input(format!(
                "the tokenizer in {folder} has ids up to {}, the model only {vocab_size}",
                tokenizer.size() - 1
            ))
            .hint("is it this model's tokenizer?"));
        }
        let template = Template::open(settings, &tokenizer);
        let ends = template.as_ref().map(|template| template.ends()).unwrap_or_default();
        let known = |token: &&str| tokenizer.added(token).is_some();
        let last = tokenizer.ends().into_iter().chain(["<|endoftext|>"]).chain(ends).find(known);
        let Some(text_end) = last.map(str::to_owned) else {
            return Err(Error::input(format!("the tokenizer in {folder} has no token <|endoftext|>")));
        };
        Ok(Renderer { tokenizer, template, text_end })
    }

    /// What decides how text becomes tokens: the tokenizer's digest, and the template.
    pub(super) fn identity(&self) -> (String, identity::Template) {
        let template = match &self.template {
            Ok(template) => template.identity(),
            Err(_) => identity::Template { name: "unknown".to_string(), ..Default::default() },
        };
        (self.tokenizer.digest().to_string(), template)
    }

    /// The template, for rows that need one.
    ///
    /// # Errors
    /// It is not known.
    pub(super) fn require_template(&self) -> Result<()> {
        self.template.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// What was chosen for these rows and why, for people: one fact a line.
    pub(super) fn explain(&self) -> Vec<String> {
        match &self.template {
            Ok(template) => template.explain(),
            Err(fault) => vec![format!("template: {}", fault.what)],
        }
    }

    /// The tokens of a prompt: what the model reads before it answers. A text is continued as it is.
    pub(super) fn prompt(
        &self,
        content: &Content,
        system: Option<&str>,
    ) -> std::result::Result<Vec<u32>, String> {
        let chat = match content {
            Content::Tokens(row) => return Ok(row.ids.clone()),
            Content::Text(text) => return self.text_prompt(text).map_err(|e| e.what),
            Content::Chat(chat) => chat,
        };
        let template = self.template.as_ref().map_err(|fault| fault.what.clone())?;
        let pieces = template.prompt(chat, system)?;
        let marked =
            self.mark(&pieces, &vec![false; pieces.len()], template.recognise()).map_err(|e| e.what)?;
        Ok(marked.iter().map(|token| token.id).collect())
    }

    fn text_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let begins = self.tokenizer.begins(text).iter().filter_map(|token| self.tokenizer.added(token));
        Ok(begins.chain(self.tokenizer.encode(text)?).collect())
    }

    /// The tokens that end an answer in this template.
    pub(super) fn ends(&self) -> Vec<u32> {
        let names = self.template.as_ref().map_or_else(|_| vec![self.text_end.as_str()], |t| t.ends());
        names.iter().filter_map(|name| self.tokenizer.added(name)).collect()
    }

    /// Renders, tokenises and applies the length limits.
    pub(super) fn outcome(&self, content: &Content, settings: &Settings) -> Outcome {
        match self.rendered(content, settings) {
            Err(fault) => Outcome::Bad(fault),
            Ok((rendered, marked)) => limit(marked, &rendered.pieces, settings, rendered.thoughts_left_out),
        }
    }

    /// What the template makes of a row that is a conversation, for people.
    pub(super) fn written(&self, content: &Content, settings: &Settings) -> Option<Written> {
        let (Content::Chat(chat), Ok(template)) = (content, &self.template) else { return None };
        Some(template.written(chat, settings.system_prompt.as_deref()))
    }

    fn rendered(
        &self,
        content: &Content,
        settings: &Settings,
    ) -> std::result::Result<(Rendered, Vec<Marked>), String> {
        let (rendered, recognise) = match content {
            Content::Chat(chat) => {
                let template = self.template.as_ref().map_err(|fault| fault.what.clone())?;
                let system = settings.system_prompt.as_deref();
                (template.render(chat, system, settings.train_on)?, template.recognise())
            }
            Content::Text(text) => {
                let pieces = whole_text(text, self.tokenizer.begins(text), &self.text_end);
                (Rendered { pieces, ..Rendered::default() }, Recognise::All)
            }
            Content::Tokens(_) => return Err("the row is tokens already".into()),
        };
        let scored = scored(&rendered.pieces, settings.train_on, matches!(content, Content::Text(_)));
        let marked = self.mark(&rendered.pieces, &scored, recognise).map_err(|e| e.what)?;
        Ok((rendered, marked))
    }

    fn mark(&self, pieces: &[Piece], scored: &[bool], recognise: Recognise<'_>) -> Result<Vec<Marked>> {
        let mut marked = Vec::new();
        let mut first = 0;
        while first < pieces.len() {
            if pieces[first].control {
                let Some(id) = self.tokenizer.added(&pieces[first].text) else {
                    return Err(Error::input(format!("the tokenizer has no token {}", pieces[first].text)));
                };
                marked.push(Marked { id, scored: scored[first], piece: first });
                first += 1;
                continue;
            }
            let joins = |piece: &&Piece| !piece.control && !piece.alone;
            let end = first + 1 + pieces[first + 1..].iter().take_while(joins).count();
            let text: String = pieces[first..end].iter().map(|piece| piece.text.as_str()).collect();
            let mut ends = Vec::with_capacity(end - first);
            for piece in &pieces[first..end] {
                ends.push(ends.last().copied().unwrap_or(0) + piece.text.len());
            }
            for token in self.tokenizer.tokens(&text, recognise)? {
                marked.push(place(token, &ends, first, scored));
            }
            first = end;
        }
        Ok(marked)
    }

    /// Stretches of equally scored tokens as text.
    pub(super) fn stretches(&self, row: &Row) -> Vec<(String, bool)> {
        let scored = |i: usize| row.labels[i] != IGNORED;
        let mut stretches = Vec::new();
        let mut first = 0;
        for end in 1..=row.ids.len() {
            if end == row.ids.len() || scored(end) != scored(first) {
                stretches.push((self.tokenizer.decode(&row.ids[first..end]), scored(first)));
                first = end;
            }
        }
        stretches
    }
}

/// The pieces a token touches decide whether it is scored; `ends` are the pieces' ends in the text.
fn place(token: Token, ends: &[usize], first: usize, scored: &[bool]) -> Marked {
    let begins = ends.partition_point(|&end| end <= token.start).min(ends.len() - 1);
    let last = ends.partition_point(|&end| end < token.end).clamp(begins, ends.len() - 1);
    let any = scored[first + begins..=first + last].iter().any(|&s| s);
    Marked { id: token.id, scored: any, piece: first + begins }
}

/// A `text` row: all of it, behind the tokens that begin a text, and the end unless it has one.
fn whole_text(text: &str, begins: &[String], end: &str) -> Vec<Piece> {
    let piece = |text: &str, part, control| Piece {
        text: text.to_string(),
        part,
        turn: 0,
        role: Role::Assistant,
        trained: None,
        control,
        alone: true,
    };
    let body = text.strip_suffix(end).unwrap_or(text);
    let mut pieces: Vec<Piece> = begins.iter().map(|token| piece(token, Part::Start, true)).collect();
    pieces.extend([piece(body, Part::Body, false), piece(end, Part::End, true)]);
    pieces.retain(|piece| !piece.text.is_empty());
    pieces
}

/// Which pieces are scored. The official script scores the marks of every turn and the answers' contents. What a
/// row says about one of its answers goes before `train_on`.
fn scored(pieces: &[Piece], train_on: TrainOn, is_text: bool) -> Vec<bool> {
    let last = pieces.iter().filter(|piece| piece.role == Role::Assistant).map(|piece| piece.turn).max();
    let answers = |piece: &Piece| piece.role == Role::Assistant;
    let said = |piece: &Piece| answers(piece) && matches!(piece.part, Part::Body | Part::End);
    let one = |piece: &Piece| match train_on {
        _ if is_text => true,
        _ if piece.trained == Some(false)
            && !matches!(piece.part, Part::Start | Part::Role | Part::Break) =>
        {
            false
        }
        TrainOn::All => true,
        TrainOn::Assistant | TrainOn::Template => said(piece),
        TrainOn::LastTurn => said(piece) && (piece.trained == Some(true) || Some(piece.turn) == last),
        TrainOn::QwenOfficial => match piece.part {
            Part::Start | Part::End | Part::Break => true,
            Part::Body => answers(piece),
            Part::Role => false,
        },
    };
    pieces.iter().map(one).collect()
}

/// Applies the cutoff.
fn limit(marked: Vec<Marked>, pieces: &[Piece], settings: &Settings, thoughts_left_out: usize) -> Outcome {
    let tokens = marked.len();
    if tokens <= settings.cutoff_len {
        return Outcome::Row { row: row_of(&marked), truncated: false, thoughts_left_out };
    }
    if settings.too_long != TooLong::Truncate {
        return Outcome::TooLong(tokens);
    }
    match truncate(marked, pieces, settings) {
        Some(marked) => Outcome::Row { row: row_of(&marked), truncated: true, thoughts_left_out },
        None => Outcome::TooLong(tokens),
    }
}

fn row_of(marked: &[Marked]) -> Row {
    Row {
        ids: marked.iter().map(|token| token.id).collect(),
        labels: marked.iter().map(|token| if token.scored { token.id as i32 } else { IGNORED }).collect(),
    }
}

/// Cuts contents on the right and keeps every header. The room is shared as DeepKE shares it
/// (`infer_max_len`): answers get their share of the whole, but at least `max_target_length`; `max_source_length`
/// bounds the rest. Within each side the longest contents are cut first, all to the same length. The end of an
/// answer that was cut is not scored: the model must not learn to stop there.
fn truncate(mut marked: Vec<Marked>, pieces: &[Piece], settings: &Settings) -> Option<Vec<Marked>> {
    let mut sizes = vec![0; pieces.len()];
    marked.iter().for_each(|token| sizes[token.piece] += 1);
    let is = |i: usize, target: bool| {
        pieces[i].part == Part::Body
            && (pieces[i].role == Role::Assistant) == target
            && !matches!(pieces[i].role, Role::System | Role::Developer)
    };
    let side =
        |target: bool| (0..pieces.len()).filter(|&i| is(i, target)).map(|i| sizes[i]).collect::<Vec<usize>>();
    let (sources, targets) = (side(false), side(true));
    let (source, target) = (sources.iter().sum::<usize>(), targets.iter().sum::<usize>());
    let room = settings.cutoff_len.checked_sub(marked.len() - source - target)?;
    let share = room * target / (source + target).max(1);
    let mut for_target = share.max(settings.max_target_length.unwrap_or(0)).min(target).min(room);
    let for_source = (room - for_target).min(source).min(settings.max_source_length.unwrap_or(usize::MAX));
    for_target = (room - for_source).min(target);
    if for_target == 0 {
        return None;
    }
    let level = [water_level(&sources, for_source), water_level(&targets, for_target)];
    let mut left: Vec<usize> = (0..pieces.len())
        .map(|i| match (is(i, false), is(i, true)) {
            (true, _) => level[0],
            (_, true) => level[1],
            _ => usize::MAX,
        })
        .collect();
    let cut: Vec<bool> = (0..pieces.len()).map(|i| sizes[i] > left[i]).collect();
    let cut_turn = |turn: usize| (0..pieces.len()).any(|i| cut[i] && pieces[i].turn == turn);
    marked.retain(|token| {
        let keep = left[token.piece] > 0;
        left[token.piece] = left[token.piece].saturating_sub(1);
        keep
    });
    for token in &mut marked {
        let piece = &pieces[token.piece];
        if piece.part == Part::End && piece.role == Role::Assistant && cut_turn(piece.turn) {
            token.scored = false;
        }
    }
    Some(marked)
}

/// The largest length to which all `sizes` can be cut so that their sum is at most `room`.
fn water_level(sizes: &[usize], room: usize) -> usize {
    let mut sorted = sizes.to_vec();
    sorted.sort_unstable();
    let (mut left, mut count) = (room, sorted.len());
    for size in sorted {
        if size * count > left {
            return left / count;
        }
        left -= size;
        count -= 1;
    }
    usize::MAX
}
