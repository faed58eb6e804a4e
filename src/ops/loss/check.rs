//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

/// A head with its loss.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Scored rows.
    pub rows: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Rows of logits held at once.
    pub chunk: usize,
    /// Standard deviation of the logits.
    pub spread: f32,
}

/// Linear + cross-entropy. A chunk that does not divide the rows, vocabularies of odd size, sharp and flat logits.
pub const CASES: &[Case] = &[
    Case { rows: 1, hidden: 8, vocab: 5, chunk: 4, spread: 1.0 },
    Case { rows: 50, hidden: 64, vocab: 157, chunk: 20, spread: 1.0 },
    Case { rows: 9, hidden: 136, vocab: 2600, chunk: 9, spread: 12.0 },
    Case { rows: 3, hidden: 40, vocab: 1025, chunk: 2, spread: 0.01 },
];
