//! Micro-batches: rows laid end to end as segments, padded to a fixed bucket of tokens.

use super::dataset::Dataset;
use crate::error::Result;

/// One micro-batch, ready for a device. T (the length of `ids`) is a bucket size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids, T; padding is id 0.
    pub ids: Vec<u32>,
    /// Position within the segment, T.
    pub positions: Vec<u32>,
    /// (first row, tokens) of each segment, in order, covering all T; padding is the last segment.
    pub segments: Vec<(u32, u32)>,
    /// Rows whose next token is scored, ascending.
    pub scored: Vec<u32>,
    /// The next token of each of those.
    pub targets: Vec<u32>,
    /// Tokens that are not padding.
    pub real_tokens: usize,
}

/// The bucket that `tokens` tokens are padded to.
#[must_use]
pub fn bucket(tokens: usize) -> usize {
    let _ = tokens;
    todo!()
}

/// Lays the rows end to end. The token after a segment's last has no target.
///
/// # Errors
/// I/O errors of the token cache.
pub fn assemble(dataset: &Dataset, rows: &[u32]) -> Result<MicroBatch> {
    let _ = (dataset, rows);
    todo!()
}
