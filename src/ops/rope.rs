//! Rotary embedding (Su et al. 2021, NeoX halves) of queries and keys, with Qwen3's per-head RMSNorm before it.

use crate::device::{Device, Region};

/// Shapes and constants of the attention input.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size D.
    pub head_dim: usize,
    /// cos and sin, f32 [max positions, D/2, 2] (cos then sin of one angle side by side).
    pub table: Region,
    /// Per-head norm weights of q and k, each [D], and its epsilon; `None` where the family has none.
    pub norm: Option<HeadNorm>,
}

/// Qwen3's q/k norm.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm {
    /// Query weight [D], f32.
    pub q: Region,
    /// Key weight [D], f32.
    pub k: Region,
    /// Added to the mean square.
    pub eps: f32,
}

impl Rope {
    /// Columns of the projected input: q, k and v side by side.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the rotated output: q and k side by side.
    #[must_use]
    pub fn qk_width(&self) -> usize {
        (self.heads + self.kv_heads) * self.head_dim
    }
}

/// `qk` [T, qk_width] = rope(norm(q, k of `qkv` [T, qkv_width])) at `positions` [T].
pub fn forward(dev: &mut Device, p: &Rope, qkv: Region, positions: &[u32], qk: Region) {
    let _ = (dev, p, qkv, positions, qk);
    todo!()
}

/// Writes the q and k columns of `dqkv` [T, qkv_width] from `dqk` [T, qk_width]; the v columns stay.
pub fn backward(dev: &mut Device, p: &Rope, qkv: Region, positions: &[u32], dqk: Region, dqkv: Region) {
    let _ = (dev, p, qkv, positions, dqk, dqkv);
    todo!()
}
