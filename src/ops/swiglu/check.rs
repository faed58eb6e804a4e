//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

/// A gated activation.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Token rows.
    pub rows: usize,
    /// Columns of the result.
    pub width: usize,
    /// Standard deviation of the input.
    pub size: f32,
}

/// SwiGLU.
pub const CASES: &[Case] = &[
    Case { rows: 1, width: 1, size: 1.0 },
    Case { rows: 3, width: 37, size: 1.0 },
    Case { rows: 19, width: 4864, size: 2.0 },
    Case { rows: 4, width: 64, size: 1e4 },
];
