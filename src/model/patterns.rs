//! PEFT's patterns: `rank_pattern` and `alpha_pattern`, numbers for the layers the end of whose name one matches, and
//! `target_modules` and `exclude_modules` where they are a regular expression of whole names.
//!
//! PEFT takes the first key of the dictionary for which `re.match(rf"(.*\.)?({key})$", module)` holds
//! (`get_pattern_key` in PEFT 0.21). A pattern may hold what Python's `re` and Rust's `regex` read alike: letters,
//! digits, `_`, `-`, the characters `. ^ $ |`, groups `(…)` and `(?:…)`, classes of such letters, ranges and dots,
//! `\.`, `\d`, `\w`, and one quantifier at a time. The order of the dictionary is not kept by every file that holds
//! one: where two patterns give a layer different numbers, that is refused.

use crate::error::{Error, Result};
use regex::bytes::{Regex, RegexBuilder};
use std::collections::BTreeMap;
use std::fmt::Display;

/// More than the linear layers of the largest Qwen.
const MAX_PATTERNS: usize = 4096;
/// Longest pattern, bytes.
const MAX_LEN: usize = 512;
/// Largest compiled pattern, bytes: repetitions of repetitions grow fast.
const MAX_COMPILED: usize = 1 << 17;

/// A table of patterns, ready to be matched.
pub struct Patterns<T> {
    name: &'static str,
    rows: Vec<Row<T>>,
}

struct Row<T> {
    pattern: String,
    regex: Regex,
    value: T,
}

impl<T: Copy + PartialEq + Display> Patterns<T> {
    /// Compiles the patterns of `table`; `name` is for messages.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`], naming the pattern that cannot be matched exactly as PEFT does.
    pub fn new(name: &'static str, table: &BTreeMap<String, T>) -> Result<Self> {
        if table.len() > MAX_PATTERNS {
            return Err(Error::usage(format!("{name} has more than {MAX_PATTERNS} patterns")));
        }
        let row = |(pattern, value): (&String, &T)| {
            let regex = compile(r"(?:.*\.)?", pattern).map_err(|why| unsupported(name, pattern, &why))?;
            Ok(Row { pattern: pattern.clone(), regex, value: *value })
        };
        Ok(Patterns { name, rows: table.iter().map(row).collect::<Result<_>>()? })
    }

    /// The number of `module`; `None` where no pattern matches.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`], naming two patterns that give it different numbers.
    pub fn get(&self, module: &str) -> Result<Option<T>> {
        let mut matching = self.rows.iter().filter(|row| row.regex.is_match(module.as_bytes()));
        let Some(first) = matching.next() else { return Ok(None) };
        match matching.find(|other| other.value != first.value) {
            None => Ok(Some(first.value)),
            Some(other) => Err(Error::usage(format!(
                "{}: {:?} gives {module} {}, {:?} gives it {}",
                self.name, first.pattern, first.value, other.pattern, other.value
            ))
            .hint(
                "PEFT takes the first of its dictionary, whose order no file keeps; let one pattern match",
            )),
        }
    }

    /// Checks that every pattern matches one of `modules`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`], naming the first that does not.
    pub fn check_used<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        let unused = |row: &&Row<T>| !modules.clone().any(|module| row.regex.is_match(module.as_bytes()));
        match self.rows.iter().find(unused) {
            None => Ok(()),
            Some(row) => Err(Error::usage(format!(
                "{}: the pattern {:?} matches no adapted layer",
                self.name, row.pattern
            ))
            .hint(
                "a pattern is a module name or its end after a dot, such as q_proj or layers.0.mlp.up_proj",
            )),
        }
    }
}

/// A pattern that whole module names match: PEFT's `target_modules` and `exclude_modules` where they are one string
/// (`re.fullmatch`).
pub struct Whole(Regex);

impl Whole {
    /// Compiles the pattern; `name` is for messages.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`], naming the pattern that cannot be matched exactly as PEFT does.
    pub fn new(name: &str, pattern: &str) -> Result<Self> {
        compile("", pattern).map(Whole).map_err(|why| unsupported(name, pattern, &why))
    }

    /// Whether the whole name matches.
    #[must_use]
    pub fn matches(&self, module: &str) -> bool {
        self.0.is_match(module.as_bytes())
    }
}

fn unsupported(name: &str, pattern: &str, why: &str) -> Error {
    Error::usage(format!("{name}: the pattern {pattern:?} is not supported: {why}"))
        .hint("write module names or their ends, with . \\. \\d \\w [...] (...|...) * + ? {n,m} ^ $")
}

/// The pattern behind `before`, matched with whole names.
fn compile(before: &str, pattern: &str) -> std::result::Result<Regex, String> {
    check_syntax(pattern)?;
    let build = |text: &str| RegexBuilder::new(text).unicode(false).size_limit(MAX_COMPILED).build();
    // Alone first: `a)|(b` would be whole only inside PEFT's own brackets.
    let whole = build(pattern).and_then(|_| build(&format!("^{before}(?:{pattern})$")));
    whole.map_err(|_| "its brackets do not match, or it is too large".into())
}

/// Whether the pattern holds only what the top of this file lists.
fn check_syntax(pattern: &str) -> std::result::Result<(), String> {
    if pattern.is_empty() || pattern.len() > MAX_LEN {
        return Err(format!("it has {} bytes, 1 to {MAX_LEN} are wanted", pattern.len()));
    }
    let mut rest = pattern;
    let mut repeatable = false;
    while let Some(first) = rest.chars().next() {
        let (len, next) = match first {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' | ')' => (1, true),
            '^' | '$' | '|' => (1, false),
            '(' if rest.starts_with("(?:") => (3, false),
            '(' if !rest.starts_with("(?") => (1, false),
            '\\' if [".", "d", "w"].iter().any(|c| rest[1..].starts_with(c)) => (2, true),
            '[' => (class(rest).ok_or("of [...] only letters, digits, _ . and ranges are")?, true),
            '*' | '+' | '?' if repeatable => (1, false),
            '{' if repeatable => (repetition(rest).ok_or("of {...} only {n}, {n,} and {n,m} are")?, false),
            other => return Err(format!("not its {:?}", rest[..other.len_utf8()].to_owned())),
        };
        rest = &rest[len..];
        repeatable = next;
    }
    Ok(())
}

/// Length of the class that `text` begins with.
fn class(text: &str) -> Option<usize> {
    let end = text.find(']')?;
    let inside = text[1..end].strip_prefix('^').unwrap_or(&text[1..end]);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (!inside.is_empty() && inside.chars().all(plain) && !inside.contains("--")).then_some(end + 1)
}

/// Length of the quantifier in braces that `text` begins with.
fn repetition(text: &str) -> Option<usize> {
    let end = text.find('}')?;
    let (least, most) = text[1..end].split_once(',').unwrap_or((&text[1..end], ""));
    let number = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
    (number(least) && (most.is_empty() || number(most))).then_some(end + 1)
}
