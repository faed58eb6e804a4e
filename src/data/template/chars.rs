//! Characters as Python and chat templates see them.

use std::ops::Range;

/// White space by Python's `str.isspace`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Where tags stand: `<word>` and `</word>`.
pub(super) fn tags(text: &str) -> Vec<Range<usize>> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let tag = |(start, _): (usize, &str)| {
        let rest = &text[start + 1..];
        let name = rest.strip_prefix('/').unwrap_or(rest);
        let after = name.trim_start_matches(word);
        (after.len() < name.len() && after.starts_with('>')).then(|| start..text.len() - after.len() + 1)
    };
    text.match_indices('<').filter_map(tag).collect()
}
