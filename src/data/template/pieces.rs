//! A rendering cut into pieces at the borders of answers, of the row's texts and of control tokens.

use super::answers::Answer;
use super::rendering::{Control, Rendering};
use super::{Part, Piece};
use crate::data::rows::{Message, Role};
use std::ops::Range;

/// What a stretch of characters is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    part: Part,
    turn: usize,
    role: Role,
    control: bool,
}

/// The message of what belongs to none.
pub(super) const NOBODY: usize = usize::MAX;

/// The template's own text belongs to nobody: it is neither scored as an answer nor cut.
const TEMPLATE: Kind = Kind { part: Part::Role, turn: NOBODY, role: Role::System, control: false };

/// Pieces of which the answers, and the tokens that end them, are the assistant's.
pub(super) fn by_answers(
    rendering: &Rendering,
    messages: &[Message],
    answers: &[Answer],
    ends: &[String],
) -> Vec<Piece> {
    cut(rendering, |place, control| {
        let answer = answers.iter().find(|answer| (answer.start..answer.end.end).contains(&place));
        match (answer, control) {
            (Some(answer), control) => {
                let ended = place >= answer.end.start;
                let part = if ended { Part::End } else { Part::Body };
                Kind { part, turn: answer.message, role: Role::Assistant, control: control.is_some() }
            }
            (None, control) => outside(rendering, messages, place, control, ends),
        }
    })
}

/// Pieces of which what the template marks is the assistant's.
pub(super) fn by_markers(rendering: &Rendering, messages: &[Message], ends: &[String]) -> Vec<Piece> {
    cut(rendering, |place, control| {
        match rendering.stretches.iter().position(|stretch| stretch.contains(&place)) {
            Some(turn) => {
                let part =
                    if control.is_some_and(|c| ends.contains(&c.token)) { Part::End } else { Part::Body };
                Kind { part, turn, role: Role::Assistant, control: control.is_some() }
            }
            None => outside(rendering, messages, place, control, ends),
        }
    })
}

fn outside(
    rendering: &Rendering,
    messages: &[Message],
    place: usize,
    control: Option<&Control>,
    ends: &[String],
) -> Kind {
    if let Some(control) = control {
        let part = if ends.contains(&control.token) { Part::End } else { Part::Start };
        return Kind { part, control: true, ..TEMPLATE };
    }
    match rendering.origin(place) {
        // An answer's text outside of all answers is none: it is neither scored nor cut.
        Some(origin) if messages[origin.message].role == Role::Assistant => TEMPLATE,
        Some(origin) => {
            let role = messages[origin.message].role;
            Kind { part: Part::Body, turn: origin.message, role, control: false }
        }
        None => TEMPLATE,
    }
}

fn cut(rendering: &Rendering, kind: impl Fn(usize, Option<&Control>) -> Kind) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut last: Option<Kind> = None;
    let mut push = |place: Range<usize>, kind: Kind| {
        let text = rendering.slice(place);
        match pieces.last_mut().filter(|_| last == Some(kind) && !kind.control) {
            Some(piece) => piece.text += &text,
            None => {
                let Kind { part, turn, role, control } = kind;
                pieces.push(Piece { text, part, turn, role, trained: None, control, alone: control });
            }
        }
        last = Some(kind);
    };
    let mut controls = rendering.controls.iter().peekable();
    let mut place = 0;
    let mut ended = false;
    while place < rendering.text.len() {
        if let Some(control) = controls.next_if(|control| control.place.start == place) {
            let kind = kind(place, Some(control));
            ended = kind.part == Part::End;
            push(control.place.clone(), kind);
            place = control.place.end;
            continue;
        }
        let mut kind = kind(place, None);
        if ended && kind == TEMPLATE && rendering.text[place] == '\n' {
            kind.part = Part::Break;
        }
        ended = false;
        push(place..place + 1, kind);
        place += 1;
    }
    pieces
}
