//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

use super::Segment;

/// An attention.
#[derive(Clone, Copy, Debug)]
pub struct Case {
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

impl Case {
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
pub const CASES: &[Case] = &[
    Case { heads: 1, kv_heads: 1, head_dim: 16, segments: &[1], peak: 1.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 16, segments: &[5, 1, 17, 2], peak: 1.0 },
    Case { heads: 2, kv_heads: 2, head_dim: 24, segments: &[16, 15, 33], peak: 1.0 },
    Case { heads: 7, kv_heads: 1, head_dim: 64, segments: &[63, 64, 65], peak: 1.0 },
    Case { heads: 14, kv_heads: 2, head_dim: 64, segments: &[130], peak: 1.0 },
    Case { heads: 4, kv_heads: 2, head_dim: 128, segments: &[96, 31], peak: 1.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 6, segments: &[20], peak: 1.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 16, segments: &[90], peak: 40.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 64, segments: &[1, 2, 33], peak: 20.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 128, segments: &[200], peak: 1.0 },
];
