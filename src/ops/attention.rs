//! Causal grouped-query attention over packed segments in blocks (Dao et al. 2022): the scores are never
//! stored, the backward pass computes them again from the log-sum-exp.
//!
//! Every task owns the rows it writes: queries for the output and dQ, keys for dK and dV. Sixteen of its rows
//! stand side by side in the lanes of a panel and the rows of the other side pass by one after the other, so
//! maxima, sums and products are in the order of the rows, whoever computes them. Blocks start at their
//! segment, so a row's result does not depend on its neighbours.

mod blocks;
mod cpu_backward;
mod cpu_forward;

use crate::device::{Device, Region};

/// A run of tokens that attend to each other and to nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First token row.
    pub start: u32,
    /// Tokens.
    pub len: u32,
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
/// [T, (heads+2·kv_heads)·D]; `lse` [heads, T] f32 is kept. Segments are in order and cover all T rows.
pub fn forward(
    dev: &mut Device,
    p: &Attention,
    segments: &[Segment],
    qk: Region,
    qkv: Region,
    out: Region,
    lse: Region,
) {
    match dev {
        Device::Cpu(cpu) => cpu_forward::run(cpu, p, segments, [qk, qkv], [out, lse]),
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
pub fn backward(dev: &mut Device, p: &Attention, segments: &[Segment], o: &Backward) {
    match dev {
        Device::Cpu(cpu) => cpu_backward::run(cpu, p, segments, o),
    }
}

/// Query rows of a task; a multiple of the lanes.
const QUERIES: usize = 64;

/// Key rows of a task; fewer, since a task does all query heads of its group.
const KEYS: usize = 32;

/// Rows of the other side that are taken at a time. Part of the order of the sums: it never changes.
const STEP: usize = 48;
