//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

/// A group of linear layers.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Token rows.
    pub tokens: usize,
    /// Input features.
    pub input: usize,
    /// Output features, rank (0: no adapter) and bias of each layer.
    pub layers: &'static [(usize, usize, bool)],
    /// Whether something is added to the output.
    pub residual: bool,
    /// Probability that an element of the adapters' input is dropped.
    pub dropout: f32,
}

/// Linear layers with adapters. Ranks that are no multiple of 8, layers without adapters, one token, more tokens than a
/// part of the gradients has, more tiles of rows than a GPU takes together.
pub const CASES: &[Case] = &[
    Case { tokens: 1, input: 8, layers: &[(8, 1, false)], residual: false, dropout: 0.0 },
    Case {
        tokens: 70,
        input: 64,
        layers: &[(64, 4, true), (16, 3, true), (16, 8, true)],
        residual: false,
        dropout: 0.0,
    },
    Case {
        tokens: 33,
        input: 136,
        layers: &[(264, 16, false), (264, 0, false)],
        residual: false,
        dropout: 0.25,
    },
    Case { tokens: 130, input: 200, layers: &[(72, 8, false)], residual: true, dropout: 0.0 },
    Case { tokens: 600, input: 72, layers: &[(24, 80, false)], residual: true, dropout: 0.1 },
    Case { tokens: 17, input: 40, layers: &[(48, 0, true)], residual: false, dropout: 0.0 },
    Case {
        tokens: 96,
        input: 264,
        layers: &[(520, 64, false), (136, 72, false)],
        residual: false,
        dropout: 0.0,
    },
    Case { tokens: 1300, input: 8, layers: &[(136, 1, false)], residual: false, dropout: 0.0 },
];
