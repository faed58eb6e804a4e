//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

/// A rotation of queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Token rows.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// With the head norm.
    pub norm: bool,
    /// Position of the first token; they ascend from there.
    pub position: u32,
}

/// Rotary embedding.
pub const CASES: &[Case] = &[
    Case { tokens: 1, heads: 1, kv_heads: 1, head_dim: 2, theta: 1e4, norm: false, position: 0 },
    Case { tokens: 5, heads: 3, kv_heads: 1, head_dim: 24, theta: 1e4, norm: true, position: 7 },
    Case { tokens: 70, heads: 14, kv_heads: 2, head_dim: 64, theta: 1e6, norm: false, position: 0 },
    Case { tokens: 33, heads: 16, kv_heads: 8, head_dim: 128, theta: 1e6, norm: true, position: 900 },
];
