//! The check cases of the operations: one table each, read by the tests and by everything else that runs an
//! operation on its own. Shapes are those of the models, odd ones around the sizes of blocks and lanes, and
//! the smallest; values that strain an operation stand beside the shapes.

use super::attention::Segment;

/// A normalisation.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormCase {
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
pub const RMSNORM: &[RmsNormCase] = &[
    RmsNormCase { rows: 1, dim: 1, eps: 1e-6, size: 1.0 },
    RmsNormCase { rows: 3, dim: 17, eps: 1e-6, size: 1.0 },
    RmsNormCase { rows: 67, dim: 896, eps: 1e-6, size: 1.0 },
    RmsNormCase { rows: 5, dim: 5120, eps: 1e-5, size: 300.0 },
    RmsNormCase { rows: 4, dim: 64, eps: 1e-6, size: 1e-4 },
    RmsNormCase { rows: 2, dim: 48, eps: 1e-6, size: 0.0 },
];

/// A rotation of queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct RopeCase {
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
pub const ROPE: &[RopeCase] = &[
    RopeCase { tokens: 1, heads: 1, kv_heads: 1, head_dim: 2, theta: 1e4, norm: false, position: 0 },
    RopeCase { tokens: 5, heads: 3, kv_heads: 1, head_dim: 24, theta: 1e4, norm: true, position: 7 },
    RopeCase { tokens: 70, heads: 14, kv_heads: 2, head_dim: 64, theta: 1e6, norm: false, position: 0 },
    RopeCase { tokens: 33, heads: 16, kv_heads: 8, head_dim: 128, theta: 1e6, norm: true, position: 900 },
];

/// An attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCase {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Lengths of the segments.
    pub segments: &'static [u32],
    /// Standard deviation of the queries: large ones make a softmax with one weight near 1.
    pub peak: f32,
}

impl AttentionCase {
    /// The segments in their places.
    #[must_use]
    pub fn placed(&self) -> Vec<Segment> {
        let mut start = 0;
        let place = |len: &u32| {
            start += len;
            Segment { start: start - len, len: *len }
        };
        self.segments.iter().map(place).collect()
    }

    /// Tokens in all.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.segments.iter().sum::<u32>() as usize
    }
}

/// Attention.
pub const ATTENTION: &[AttentionCase] = &[
    AttentionCase { heads: 1, kv_heads: 1, head_dim: 16, segments: &[1], peak: 1.0 },
    AttentionCase { heads: 2, kv_heads: 1, head_dim: 16, segments: &[5, 1, 17, 2], peak: 1.0 },
    AttentionCase { heads: 2, kv_heads: 2, head_dim: 24, segments: &[16, 15, 33], peak: 1.0 },
    AttentionCase { heads: 7, kv_heads: 1, head_dim: 64, segments: &[63, 64, 65], peak: 1.0 },
    AttentionCase { heads: 14, kv_heads: 2, head_dim: 64, segments: &[130], peak: 1.0 },
    AttentionCase { heads: 4, kv_heads: 2, head_dim: 128, segments: &[96, 31], peak: 1.0 },
    AttentionCase { heads: 2, kv_heads: 1, head_dim: 6, segments: &[20], peak: 1.0 },
    AttentionCase { heads: 2, kv_heads: 1, head_dim: 16, segments: &[90], peak: 40.0 },
    AttentionCase { heads: 2, kv_heads: 1, head_dim: 64, segments: &[1, 2, 33], peak: 20.0 },
    AttentionCase { heads: 2, kv_heads: 1, head_dim: 128, segments: &[200], peak: 1.0 },
];

/// A gated activation.
#[derive(Clone, Copy, Debug)]
pub struct SwigluCase {
    /// Token rows.
    pub rows: usize,
    /// Columns of the result.
    pub width: usize,
    /// Standard deviation of the input.
    pub size: f32,
}

/// SwiGLU.
pub const SWIGLU: &[SwigluCase] = &[
    SwigluCase { rows: 1, width: 1, size: 1.0 },
    SwigluCase { rows: 3, width: 37, size: 1.0 },
    SwigluCase { rows: 19, width: 4864, size: 2.0 },
    SwigluCase { rows: 4, width: 64, size: 1e4 },
];

/// Lengths of the flat buffers of an optimizer step or a reduction.
pub const FLAT: &[usize] = &[1, 15, 16, 1000, 16 * 1024, 100_003];

/// Rows moved by index.
#[derive(Clone, Copy, Debug)]
pub struct RowsCase {
    /// Rows of the source.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Every which row is taken.
    pub every: usize,
}

/// Gather, scatter and embedding.
pub const ROWS: &[RowsCase] = &[
    RowsCase { rows: 1, width: 1, every: 1 },
    RowsCase { rows: 10, width: 7, every: 3 },
    RowsCase { rows: 300, width: 896, every: 2 },
];

/// Attention of single queries over a cache.
#[derive(Clone, Copy, Debug)]
pub struct DecodeCase {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Rows of the cache for each query.
    pub capacity: usize,
    /// Rows that each query sees, from the first of its part on.
    pub seen: &'static [u32],
    /// Standard deviation of the queries.
    pub peak: f32,
}

impl DecodeCase {
    /// Where each query's rows lie: it has `capacity` of its own.
    #[must_use]
    pub fn runs(&self) -> Vec<Segment> {
        let run = |(slot, len): (usize, &u32)| Segment { start: (slot * self.capacity) as u32, len: *len };
        self.seen.iter().enumerate().map(run).collect()
    }
}

/// Decoding attention.
pub const DECODE: &[DecodeCase] = &[
    DecodeCase { heads: 1, kv_heads: 1, head_dim: 6, capacity: 1, seen: &[1], peak: 1.0 },
    DecodeCase { heads: 2, kv_heads: 1, head_dim: 24, capacity: 70, seen: &[1, 17, 70], peak: 1.0 },
    DecodeCase { heads: 14, kv_heads: 2, head_dim: 64, capacity: 130, seen: &[128, 5], peak: 1.0 },
    DecodeCase { heads: 4, kv_heads: 4, head_dim: 128, capacity: 300, seen: &[299], peak: 1.0 },
    DecodeCase { heads: 2, kv_heads: 1, head_dim: 16, capacity: 90, seen: &[90, 33], peak: 40.0 },
];

/// A group of linear layers.
#[derive(Clone, Copy, Debug)]
pub struct LinearCase {
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
pub const LINEAR: &[LinearCase] = &[
    LinearCase { tokens: 1, input: 8, layers: &[(8, 1, false)], residual: false, dropout: 0.0 },
    LinearCase {
        tokens: 70,
        input: 64,
        layers: &[(64, 4, true), (16, 3, true), (16, 8, true)],
        residual: false,
        dropout: 0.0,
    },
    LinearCase {
        tokens: 33,
        input: 136,
        layers: &[(264, 16, false), (264, 0, false)],
        residual: false,
        dropout: 0.25,
    },
    LinearCase { tokens: 130, input: 200, layers: &[(72, 8, false)], residual: true, dropout: 0.0 },
    LinearCase { tokens: 600, input: 72, layers: &[(24, 80, false)], residual: true, dropout: 0.1 },
    LinearCase { tokens: 17, input: 40, layers: &[(48, 0, true)], residual: false, dropout: 0.0 },
    LinearCase {
        tokens: 96,
        input: 264,
        layers: &[(520, 64, false), (136, 72, false)],
        residual: false,
        dropout: 0.0,
    },
    LinearCase { tokens: 1300, input: 8, layers: &[(136, 1, false)], residual: false, dropout: 0.0 },
];

/// A head with its loss.
#[derive(Clone, Copy, Debug)]
pub struct LossCase {
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
pub const LOSS: &[LossCase] = &[
    LossCase { rows: 1, hidden: 8, vocab: 5, chunk: 4, spread: 1.0 },
    LossCase { rows: 50, hidden: 64, vocab: 157, chunk: 20, spread: 1.0 },
    LossCase { rows: 9, hidden: 136, vocab: 2600, chunk: 9, spread: 12.0 },
    LossCase { rows: 3, hidden: 40, vocab: 1025, chunk: 2, spread: 0.01 },
];
