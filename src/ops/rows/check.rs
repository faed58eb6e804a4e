//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

/// Rows moved by index.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Rows of the source.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Every which row is taken.
    pub every: usize,
}

/// Gather, scatter and embedding.
pub const CASES: &[Case] = &[
    Case { rows: 1, width: 1, every: 1 },
    Case { rows: 10, width: 7, every: 3 },
    Case { rows: 300, width: 896, every: 2 },
];
