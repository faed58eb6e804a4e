//! Causal grouped-query attention over packed segments in blocks (Dao et al. 2022): the scores are never
//! stored, the backward pass computes them again from the log-sum-exp.
//!
//! Every task owns the rows it writes: queries for the output and dQ, keys for dK and dV. Sixteen of its rows
//! stand side by side in the lanes of a panel and the rows of the other side pass by one after the other, so
//! maxima, sums and products are in the order of the rows, whoever computes them. Blocks start at their
//! segment, so a row's result does not depend on its neighbours.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Indices, Region};

/// A run of tokens that attend to each other and to nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First token row.
    pub start: u32,
    /// Tokens.
    pub len: u32,
}

/// The segments of a micro-batch, in order and covering all T rows; and, for a device that wants them, the pieces of
/// work they make.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    /// The segments.
    pub list: &'a [Segment],
    /// As [`work`] lists them.
    pub work: [Indices<'a>; 3],
}

impl<'a> Segments<'a> {
    #[cfg(feature = "internals")]
    /// Segments for the CPU.
    #[must_use]
    pub fn host(list: &'a [Segment]) -> Self {
        Segments { list, work: [Indices::host(&[]); 3] }
    }
}

/// Rows of a piece of work on a GPU: in the forward pass, and of keys and of queries in the backward pass.
pub const WORK_ROWS: [u32; 3] = [128, 64, 64];

/// Pieces are padded with empty ones to a multiple of this: so that launches of a similar batch are the same.
const WORK_PADDING: usize = 32;

/// Pieces of work on a GPU for the segments, three integers each (first row and length of the segment, block within it);
/// one list for each of [`WORK_ROWS`], long pieces first, and empty ones at the end.
#[must_use]
pub fn work(segments: &[Segment]) -> [Vec<u32>; 3] {
    let list = |rows: u32, remaining: bool| {
        let mut pieces: Vec<(u32, [u32; 3])> = Vec::new();
        for s in segments {
            let count = s.len.div_ceil(rows);
            let size = |block| if remaining { count - block } else { block };
            pieces.extend((0..count).map(|block| (size(block), [s.start, s.len, block])));
        }
        pieces.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let mut words: Vec<u32> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
        words.resize(words.len().next_multiple_of(3 * WORK_PADDING), 0);
        words
    };
    [list(WORK_ROWS[0], false), list(WORK_ROWS[1], true), list(WORK_ROWS[2], false)]
}

/// The most integers that [`work`] makes of `tokens` tokens in all three lists.
#[must_use]
pub fn most_work(tokens: usize) -> usize {
    let pieces = |rows: u32| (tokens.div_ceil(rows as usize) + tokens).next_multiple_of(WORK_PADDING);
    3 * WORK_ROWS.into_iter().map(pieces).sum::<usize>()
}

/// Shapes of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; query head h reads kv head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Head size D.
    pub head_dim: usize,
    /// Softmax scale, 1/sqrt(D).
    pub scale: f32,
}

impl Attention {
    fn qk_width(&self) -> usize {
        (self.heads + self.kv_heads) * self.head_dim
    }

    fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// `out` [T, heads·D] from `qk` [T, (heads+kv_heads)·D] (rotated) and the v columns of `qkv`
/// [T, (heads+2·kv_heads)·D]; `lse` [heads, T] f32 is kept. `out` is one that the device keeps without loss.
pub fn forward(
    dev: &mut Device,
    p: &Attention,
    segments: &Segments<'_>,
    qk: Region,
    qkv: Region,
    out: Region,
    lse: Region,
) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, segments.list, [qk, qkv], [out, lse]),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, p, segments, [qk, qkv], [out, lse]),
    }
}

/// Operands of the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// Rotated q, k as the forward pass read them.
    pub qk: Region,
    /// Raw projections; only the v columns are read.
    pub qkv: Region,
    /// The forward pass's result.
    pub out: Region,
    /// The forward pass's log-sum-exp.
    pub lse: Region,
    /// Gradient of `out`.
    pub dout: Region,
    /// Scratch [heads, T] f32: row sums of dout∘out.
    pub delta: Region,
    /// Written: gradient of the rotated q, k.
    pub dqk: Region,
    /// Written: v columns only.
    pub dqkv: Region,
}

/// Gradients of rotated q and k, and of v.
pub fn backward(dev: &mut Device, p: &Attention, segments: &Segments<'_>, o: &Backward) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, p, segments.list, o),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::backward(cuda, p, segments, o),
    }
}
