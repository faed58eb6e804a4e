//! A rendered conversation of which every character is known to be the template's or the row's.

use super::marks::{BEGIN, END, Marks, Origin};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// A control token among the template's own characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) place: Range<usize>,
    pub(super) token: String,
}

/// Places are counted in characters.
pub(super) struct Rendering {
    pub(super) text: Vec<char>,
    /// For each character its number among the row's; none: it is the template's.
    pub(super) numbers: Vec<Option<u32>>,
    /// What the template encloses in `{% generation %}`.
    pub(super) stretches: Vec<Range<usize>>,
    pub(super) controls: Vec<Control>,
    marks: Arc<Marks>,
}

impl Rendering {
    /// From the same rendering with the row's texts and with marks in their place; none when the marks made a
    /// difference.
    pub(super) fn new(
        plain: &str,
        marked: &str,
        marks: Arc<Marks>,
        control: &BTreeSet<String>,
    ) -> Option<Self> {
        let (text, stretches) = without_markers(plain);
        let (marked, marked_stretches) = without_markers(marked);
        let same = text.len() == marked.len()
            && stretches == marked_stretches
            && text.iter().zip(&marked).all(|(plain, marked)| *plain == marks.seen(*marked));
        if !same {
            return None;
        }
        let mut numbers: Vec<Option<u32>> =
            marked.iter().map(|c| marks.number(*c).map(|number| number as u32)).collect();
        take_tags_back(&text, &mut numbers, marks.all());
        let controls = find_controls(&text, &numbers, control);
        Some(Rendering { text, numbers, stretches, controls, marks })
    }

    /// The row's character at a place.
    pub(super) fn origin(&self, place: usize) -> Option<&Origin> {
        self.numbers[place].map(|number| &self.marks.all()[number as usize])
    }

    /// All characters of the row.
    pub(super) fn row(&self) -> &[Origin] {
        self.marks.all()
    }

    /// The text of a stretch.
    pub(super) fn slice(&self, place: Range<usize>) -> String {
        self.text[place].iter().collect()
    }

    /// The control tokens within a stretch.
    pub(super) fn controls_in(&self, place: Range<usize>) -> impl Iterator<Item = &Control> {
        self.controls.iter().filter(move |c| c.place.start >= place.start && c.place.end <= place.end)
    }
}

/// The text without the template's markers, and what they enclose.
fn without_markers(text: &str) -> (Vec<char>, Vec<Range<usize>>) {
    let (mut kept, mut stretches, mut open) = (Vec::with_capacity(text.len()), Vec::new(), Vec::new());
    for c in text.chars() {
        match c {
            BEGIN => open.push(kept.len()),
            END => stretches.extend(open.pop().map(|start| start..kept.len())),
            _ => kept.push(c),
        }
    }
    stretches.sort_by_key(|stretch| stretch.start);
    (kept, stretches)
}

/// Tags that kept their characters stand between marks of the same text: they are the row's as well.
fn take_tags_back(text: &[char], numbers: &mut [Option<u32>], row: &[Origin]) {
    let mut last: Option<(usize, u32)> = None;
    for place in 0..numbers.len() {
        let Some(number) = numbers[place] else { continue };
        if let Some((before, known)) = last
            && number > known + 1
            && place - before == (number - known) as usize
            && (1..place - before).all(|step| {
                let origin = &row[known as usize + step];
                origin.char == text[before + step] && origin.message == row[known as usize].message
            })
        {
            (1..place - before).for_each(|step| numbers[before + step] = Some(known + step as u32));
        }
        last = Some((place, number));
    }
}

fn find_controls(text: &[char], numbers: &[Option<u32>], control: &BTreeSet<String>) -> Vec<Control> {
    let mut tokens: Vec<Vec<char>> = control.iter().map(|token| token.chars().collect()).collect();
    tokens.sort_by_key(|token| std::cmp::Reverse(token.len()));
    let firsts: BTreeSet<char> = tokens.iter().map(|token| token[0]).collect();
    let (mut found, mut place) = (Vec::new(), 0);
    while place < text.len() {
        let own = |token: &&Vec<char>| {
            text[place..].starts_with(token)
                && numbers[place..place + token.len()].iter().all(Option::is_none)
        };
        let token = if firsts.contains(&text[place]) { tokens.iter().find(own) } else { None };
        let length = token.map_or(1, Vec::len);
        found.extend(
            token.map(|token| Control { place: place..place + length, token: token.iter().collect() }),
        );
        place += length;
    }
    found
}
