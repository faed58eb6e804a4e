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
use super::template::{self, Part, Piece, Style};
use super::tokenizer::{Recognise, Token, Tokenizer};
use crate::config::Settings;
use crate::config::settings::{Template, TooLong, TrainOn};
use crate::error::{Error, Result};
use crate::identity;

/// Renders rows for one run.
pub(super) struct Renderer {
    pub(super) tokenizer: Tokenizer,
    /// The template, or why the model folder's own is not known (only rows that need one complain).
    style: Result<Style>,
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
        let template = match settings.template {
            Template::Auto => template::recognise(&settings.model),
            named => Ok(named),
        };
        let needed: &[&str] = match template {
            Ok(Template::Qwen3) => &["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"],
            Ok(Template::None) => &["<|endoftext|>"],
            _ => &["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        };
        if let Some(token) = needed.iter().find(|token| tokenizer.added(token).is_none()) {
            return Err(Error::input(format!("the tokenizer in {folder} has no token {token}"))
                .hint("choose a --template that the model knows"));
        }
        let piecewise = tokenizer.is_tiktoken();
        let style =
            template.map(|template| Style { template, piecewise: piecewise && template == Template::Qwen });
        Ok(Renderer { tokenizer, style })
    }

    /// What decides how text becomes tokens: the tokenizer's digest, and the template.
    pub(super) fn identity(&self) -> (String, identity::Template) {
        let name = match &self.style {
            Ok(style) => {
                serde_json::to_value(style.template).ok().and_then(|v| v.as_str().map(str::to_string))
            }
            Err(_) => None,
        };
        let name = name.unwrap_or_else(|| "unknown".to_string());
        (self.tokenizer.digest().to_string(), identity::Template { name, ..identity::Template::default() })
    }

    /// The template, for rows that need one.
    ///
    /// # Errors
    /// It is not known.
    pub(super) fn require_template(&self) -> Result<()> {
        self.style.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// The tokens of a prompt: what the model reads before it answers. A text is continued as it is.
    pub(super) fn prompt(
        &self,
        content: &Content,
        system: Option<&str>,
        thinking: bool,
    ) -> std::result::Result<Vec<u32>, String> {
        let pieces = match content {
            Content::Tokens(row) => return Ok(row.ids.clone()),
            Content::Text(text) => {
                return self.tokenizer.encode(text).map_err(|e| e.what);
            }
            Content::Chat(turns) => match &self.style {
                Ok(style) => style.prompt(turns, system, thinking)?,
                Err(fault) => return Err(fault.what.clone()),
            },
        };
        let trusted = self.style.as_ref().is_ok_and(|s| s.trusts_text());
        let recognise = if trusted { Recognise::All } else { Recognise::Written };
        let marked = self.mark(&pieces, &vec![false; pieces.len()], recognise).map_err(|e| e.what)?;
        Ok(marked.iter().map(|token| token.id).collect())
    }

    /// The tokens that end an answer in this template.
    pub(super) fn ends(&self) -> Vec<u32> {
        let template = self.style.as_ref().ok().map(|style| style.template);
        let names: &[&str] = match template {
            None | Some(Template::None) => &["<|endoftext|>"],
            Some(Template::Qwen) => &["<|im_end|>", "<|endoftext|>", "<|im_start|>"],
            Some(_) => &["<|im_end|>", "<|endoftext|>"],
        };
        names.iter().filter_map(|name| self.tokenizer.added(name)).collect()
    }

    /// Whether the template knows thoughts, so that they can be turned off.
    pub(super) fn thinks(&self) -> bool {
        self.style.as_ref().is_ok_and(|style| style.template == Template::Qwen3)
    }

    /// Renders, tokenises and applies the length limits.
    pub(super) fn outcome(&self, content: &Content, settings: &Settings) -> Outcome {
        let pieces = match content {
            Content::Chat(turns) => match &self.style {
                Ok(style) => style.render(turns, settings.system_prompt.as_deref()),
                Err(fault) => Err(fault.what.clone()),
            },
            Content::Text(text) => Ok(whole_text(text)),
            Content::Tokens(_) => Err("the row is tokens already".into()),
        };
        let trusted =
            matches!(content, Content::Text(_)) || self.style.as_ref().is_ok_and(|s| s.trusts_text());
        let recognise = if trusted { Recognise::All } else { Recognise::Written };
        let marked = pieces.and_then(|pieces| {
            let scored = scored(&pieces, settings.train_on, matches!(content, Content::Text(_)));
            let marked = self.mark(&pieces, &scored, recognise).map_err(|e| e.what)?;
            Ok((pieces, marked))
        });
        match marked {
            Err(fault) => Outcome::Bad(fault),
            Ok((pieces, marked)) => limit(marked, &pieces, settings),
        }
    }

    fn mark(&self, pieces: &[Piece], scored: &[bool], recognise: Recognise) -> Result<Vec<Marked>> {
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

/// A `text` row: all of it, and the end unless it has one.
fn whole_text(text: &str) -> Vec<Piece> {
    let piece = |text: &str, part, control| Piece {
        text: text.to_string(),
        part,
        turn: 0,
        role: Role::Assistant,
        control,
        alone: true,
    };
    let body = text.strip_suffix("<|endoftext|>").unwrap_or(text);
    let mut pieces = vec![piece(body, Part::Body, false), piece("<|endoftext|>", Part::End, true)];
    pieces.retain(|piece| !piece.text.is_empty());
    pieces
}

/// Which pieces are scored. The official script scores the marks of every turn and the answers' contents.
fn scored(pieces: &[Piece], train_on: TrainOn, is_text: bool) -> Vec<bool> {
    let last = pieces.iter().filter(|piece| piece.role == Role::Assistant).map(|piece| piece.turn).max();
    let answers = |piece: &Piece| piece.role == Role::Assistant;
    let said = |piece: &Piece| answers(piece) && matches!(piece.part, Part::Body | Part::End);
    let one = |piece: &Piece| match train_on {
        _ if is_text => true,
        TrainOn::All => true,
        TrainOn::Assistant => said(piece),
        TrainOn::LastTurn => said(piece) && Some(piece.turn) == last,
        TrainOn::QwenOfficial => match piece.part {
            Part::Start | Part::End | Part::Break => true,
            Part::Body => answers(piece),
            Part::Role | Part::EmptyThink => false,
        },
    };
    pieces.iter().map(one).collect()
}

/// Applies the cutoff.
fn limit(marked: Vec<Marked>, pieces: &[Piece], settings: &Settings) -> Outcome {
    let tokens = marked.len();
    if tokens <= settings.cutoff_len {
        return Outcome::Row { row: row_of(&marked), truncated: false };
    }
    if settings.too_long != TooLong::Truncate {
        return Outcome::TooLong(tokens);
    }
    match truncate(marked, pieces, settings) {
        Some(marked) => Outcome::Row { row: row_of(&marked), truncated: true },
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
            && pieces[i].role != Role::System
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
