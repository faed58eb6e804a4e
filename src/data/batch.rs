//! Micro-batches: rows laid end to end as segments, padded to a fixed bucket of tokens.

use super::dataset::{Dataset, IGNORED};
use crate::error::{Error, Result};

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

/// The bucket that `tokens` tokens are padded to: multiples of 16 up to 512, then 16 sizes to each doubling
/// (544, 576 … 1024, 1088 …). Above 256 tokens the padding is less than 1/16 of the bucket's tokens.
/// Part of the arithmetic: a change of buckets changes results.
#[must_use]
pub fn bucket(tokens: usize) -> usize {
    let tokens = tokens.max(1);
    let doubling = (tokens - 1).checked_ilog2().unwrap_or(0);
    tokens.next_multiple_of(1 << doubling.saturating_sub(4).max(4))
}

/// Lays the rows end to end. The token after a segment's last has no target.
///
/// # Errors
/// I/O errors of the token cache; no rows, or none with a scored token: no row without one is ever kept.
pub fn assemble(dataset: &Dataset, rows: &[u32]) -> Result<MicroBatch> {
    if rows.is_empty() {
        return Err(Error::check("a micro-batch without rows"));
    }
    let real_tokens = rows.iter().map(|&row| dataset.lengths()[row as usize] as usize).sum();
    let total = bucket(real_tokens);
    let mut batch = MicroBatch {
        ids: Vec::with_capacity(total),
        positions: Vec::with_capacity(total),
        segments: Vec::with_capacity(rows.len() + 1),
        scored: Vec::new(),
        targets: Vec::new(),
        real_tokens,
    };
    for &index in rows {
        let row = dataset.row(index as usize)?;
        let first = batch.ids.len();
        for (i, &label) in row.labels.iter().enumerate().skip(1) {
            if label != IGNORED {
                batch.scored.push((first + i - 1) as u32);
                batch.targets.push(label as u32);
            }
        }
        push_segment(&mut batch, &row.ids);
    }
    if batch.scored.is_empty() {
        return Err(Error::check(format!("none of the tokens of rows {rows:?} is scored")));
    }
    if total > real_tokens {
        push_segment(&mut batch, &vec![0; total - real_tokens]);
    }
    Ok(batch)
}

fn push_segment(batch: &mut MicroBatch, ids: &[u32]) {
    batch.segments.push((batch.ids.len() as u32, ids.len() as u32));
    batch.ids.extend_from_slice(ids);
    batch.positions.extend(0..ids.len() as u32);
}
