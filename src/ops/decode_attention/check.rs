//! What the operation is checked on: shapes of the models, odd ones around the sizes of blocks and lanes, the smallest,
//! and values that strain it.

use crate::ops::attention::Segment;

/// Attention of single queries over a cache.
#[derive(Clone, Copy, Debug)]
pub struct Case {
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

impl Case {
    /// Where each query's rows lie: it has `capacity` of its own.
    #[must_use]
    pub fn runs(&self) -> Vec<Segment> {
        let run = |(slot, len): (usize, &u32)| Segment { start: (slot * self.capacity) as u32, len: *len };
        self.seen.iter().enumerate().map(run).collect()
    }
}

/// Decoding attention.
pub const CASES: &[Case] = &[
    Case { heads: 1, kv_heads: 1, head_dim: 6, capacity: 1, seen: &[1], peak: 1.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 24, capacity: 70, seen: &[1, 17, 70], peak: 1.0 },
    Case { heads: 14, kv_heads: 2, head_dim: 64, capacity: 130, seen: &[128, 5], peak: 1.0 },
    Case { heads: 4, kv_heads: 4, head_dim: 128, capacity: 300, seen: &[299], peak: 1.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 16, capacity: 90, seen: &[90, 33], peak: 40.0 },
];
