//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

/// A normalisation.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Rows.
    pub rows: usize,
    /// Row length.
    pub dim: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Standard deviation of the input.
    pub size: f32,
}

/// RMSNorm.
pub const CASES: &[Case] = &[
    Case { rows: 1, dim: 1, eps: 1e-6, size: 1.0 },
    Case { rows: 3, dim: 17, eps: 1e-6, size: 1.0 },
    Case { rows: 67, dim: 896, eps: 1e-6, size: 1.0 },
    Case { rows: 5, dim: 5120, eps: 1e-5, size: 300.0 },
    Case { rows: 4, dim: 64, eps: 1e-6, size: 1e-4 },
    Case { rows: 2, dim: 48, eps: 1e-6, size: 0.0 },
];
