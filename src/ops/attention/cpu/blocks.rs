//! Pieces of the attention's operands: blocks of rows, columns of heads, rows as lanes.

use crate::device::cpu::lanes::{LANES, Lanes, get_lane, set_lane};
use crate::device::cpu::tile::Tile;
use crate::ops::attention::Segment;

/// Consecutive rows of one segment.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// First row of the segment.
    pub(super) start: usize,
    /// One past its last row.
    pub(super) end: usize,
    /// First row of the block.
    pub(super) first: usize,
    /// Rows of the block.
    pub(super) rows: usize,
}

/// The segments in blocks of `size` rows.
pub(super) fn blocks(segments: &[Segment], size: usize, tokens: usize) -> Vec<Block> {
    let mut all = Vec::new();
    let mut next = 0;
    for segment in segments {
        let start = segment.start as usize;
        assert_eq!(start, next, "segments in order, without gaps");
        next = start + segment.len as usize;
        all.extend((start..next).step_by(size).map(|first| Block {
            start,
            end: next,
            first,
            rows: size.min(next - first),
        }));
    }
    assert_eq!(next, tokens, "segments cover all rows");
    all
}

/// One head's columns in rows of several heads.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) width: usize,
}

impl<'a> Columns<'a> {
    /// Head `head` of `width` columns each.
    pub(super) fn head(values: &'a [f32], stride: usize, head: usize, width: usize) -> Self {
        Columns { values, stride, first: head * width, width }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.first..][..self.width]
    }

    /// Rows `first ..` densely into `to`, as many as fit.
    #[inline(always)]
    pub(super) fn copy(&self, first: usize, to: &mut [f32]) {
        for (row, to) in to.chunks_exact_mut(self.width).enumerate() {
            to.copy_from_slice(self.row(first + row));
        }
    }

    /// Up to sixteen rows from `first` on as the lanes of a panel; the other lanes are zero.
    #[inline(always)]
    pub(super) fn panel(&self, first: usize, rows: usize) -> Vec<Lanes> {
        let mut panel = vec![[0.0; LANES]; self.width];
        for lane in 0..rows.min(LANES) {
            set_lane(&mut panel, lane, self.row(first + lane));
        }
        panel
    }
}

/// Writes the lanes of `panels` to the rows of `tile`.
#[inline(always)]
pub(super) fn write_rows(tile: &mut Tile<'_>, panel: &[Lanes], first: usize, rows: usize) {
    for lane in 0..rows.min(LANES) {
        get_lane(panel, lane, tile.row(first + lane));
    }
}

/// Cuts `tile` into the columns of its heads and those into blocks of rows, heads outermost.
pub(super) fn cut<'a>(tile: Tile<'a>, heads: usize, width: usize, blocks: &[Block]) -> Vec<Tile<'a>> {
    let mut parts = Vec::with_capacity(heads * blocks.len());
    let mut rest = tile;
    for _ in 0..heads {
        let (mut head, right) = rest.split_cols(width);
        rest = right;
        for block in blocks {
            let (part, below) = head.split_rows(block.rows);
            head = below;
            parts.push(part);
        }
    }
    parts
}

/// Cuts [heads, T] values as [`cut`] does.
pub(super) fn cut_statistic<'a>(
    mut values: &'a mut [f32],
    heads: usize,
    blocks: &[Block],
) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(heads * blocks.len());
    for block in std::iter::repeat_n(blocks, heads).flatten() {
        let (part, rest) = values.split_at_mut(block.rows);
        values = rest;
        parts.push(part);
    }
    parts
}

/// Sets `value` where a key comes after its query: rows are keys from `key` on, lanes queries from `query` on.
#[inline(always)]
pub(super) fn hide_keys_in_rows(rows: &mut [Lanes], key: usize, query: usize, value: f32) {
    if key + rows.len() <= query + 1 {
        return;
    }
    for (key, row) in (key..).zip(rows) {
        row[..LANES.min(key.saturating_sub(query))].fill(value);
    }
}

/// Sets 0 where a key comes after its query: rows are queries from `query` on, lanes keys from `key` on.
#[inline(always)]
pub(super) fn hide_keys_in_lanes(rows: &mut [Lanes], query: usize, key: usize) {
    let visible = |query: usize| (query + 1).saturating_sub(key);
    for (query, row) in (query..).zip(rows).take_while(|(query, _)| visible(*query) < LANES) {
        row[visible(query)..].fill(0.0);
    }
}
