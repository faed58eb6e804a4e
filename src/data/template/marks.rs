//! Where each character of a rendering comes from.
//!
//! Each character of a conversation's texts is replaced by a code point of its own, U+40000 plus its number: planes
//! 4 to 13 hold no assigned character. What a template writes of them can then be told from its own words, and from
//! the same character elsewhere in the row. One character stays one character, so the template takes the same way
//! as with the text itself, as long as it looks at the text only by what sees through the marks (`super::python`).

use super::chars::{is_space, tags};
use std::borrow::Cow;
use std::collections::BTreeSet;

const FIRST: u32 = 0x4_0000;
/// How many characters can have a mark.
pub(super) const MOST: usize = 0xA_0000 - 2;
/// Around what a template encloses in `{% generation %}`.
pub(super) const BEGIN: char = '\u{DFFFE}';
pub(super) const END: char = '\u{DFFFF}';

/// Whether it is a character that marks are made of.
pub(super) fn is_reserved(c: char) -> bool {
    (FIRST..0xE_0000).contains(&u32::from(c))
}

/// Whether the text holds such a character.
pub(super) fn reserved(text: &str) -> bool {
    text.chars().any(is_reserved)
}

/// Which text of a message a character belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Content,
    Reasoning,
    Calls,
}

/// A character of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) char: char,
    pub(super) message: usize,
    pub(super) field: Field,
    /// It stands in a tag that has no marks.
    tag: bool,
}

impl Origin {
    /// Whether its absence from a rendering is a loss: white space and tags are not.
    pub(super) fn counts(&self) -> bool {
        !self.tag && !is_space(self.char) && !self.char.is_control()
    }
}

/// The characters of a row's texts, numbered.
#[derive(Debug, Default)]
pub(super) struct Marks {
    list: Vec<Origin>,
    /// Tags (`<think>`, `</tool_call>`) stay as they are: operators such as `'</think>' in content` cannot be made
    /// to see through marks.
    tags_stay: bool,
    /// Tags that are marked all the same.
    control: BTreeSet<String>,
}

impl Marks {
    pub(super) fn new(tags_stay: bool, control: &BTreeSet<String>) -> Self {
        Marks { list: Vec::new(), tags_stay, control: control.clone() }
    }

    /// The text in marks.
    pub(super) fn mark(&mut self, text: &str, message: usize, field: Field) -> String {
        let stay = if self.tags_stay { tags(text) } else { Vec::new() };
        let mut stay =
            stay.into_iter().filter(|range| !self.control.contains(&text[range.clone()])).peekable();
        let mut marked = String::with_capacity(text.len() * 4);
        for (at, char) in text.char_indices() {
            while stay.peek().is_some_and(|range| range.end <= at) {
                stay.next();
            }
            let tag = stay.peek().is_some_and(|range| range.start <= at);
            let code = FIRST + self.list.len() as u32;
            self.list.push(Origin { char, message, field, tag });
            marked.push(if tag { char } else { char::from_u32(code).unwrap_or(char) });
        }
        marked
    }

    /// Every character of the row's texts, in the order in which they were marked.
    pub(super) fn all(&self) -> &[Origin] {
        &self.list
    }

    /// The number of a marked character.
    pub(super) fn number(&self, char: char) -> Option<usize> {
        let number = u32::from(char).checked_sub(FIRST)? as usize;
        (number < self.list.len()).then_some(number)
    }

    /// The character that is meant.
    pub(super) fn seen(&self, char: char) -> char {
        self.number(char).map_or(char, |number| self.list[number].char)
    }

    /// The text that is meant.
    pub(super) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if text.chars().any(|c| self.number(c).is_some()) {
            Cow::Owned(text.chars().map(|c| self.seen(c)).collect())
        } else {
            Cow::Borrowed(text)
        }
    }
}
