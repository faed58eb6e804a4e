//! Rotary embedding (Su et al. 2021, NeoX halves) of queries and keys, with Qwen3's per-head RMSNorm before it.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Indices, Region};

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
    /// Per-head norm weights of q and k, each `[D]`, and its epsilon; `None` where the family has none.
    pub norm: Option<HeadNorm>,
}

/// Qwen3's q/k norm.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm {
    /// Query weight `[D]`, f32.
    pub q: Region,
    /// Key weight `[D]`, f32.
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

/// `qk` [T, qk_width] = rope(norm(q, k of `qkv` [T, qkv_width])) at `positions` `[T]`.
pub fn forward(dev: &mut Device, p: &Rope, qkv: Region, positions: Indices<'_>, qk: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, qkv, positions.values, qk),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, p, qkv, positions, qk),
    }
}

/// Writes the q and k columns of `dqkv` [T, qkv_width] from `dqk` [T, qk_width]; the v columns stay.
pub fn backward(dev: &mut Device, p: &Rope, qkv: Region, positions: Indices<'_>, dqk: Region, dqkv: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, p, qkv, positions.values, dqk, dqkv),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::backward(cuda, p, qkv, positions, dqk, dqkv),
    }
}

/// The table of [`Rope::table`]: `inv_freq = 1 / theta^(2i/D)` and the angles `position · inv_freq` in f32, as
/// `transformers` has them; power, cosine and sine of the rounded angle in f64, then rounded.
#[must_use]
pub fn table(head_dim: usize, theta: f64, positions: usize) -> Vec<f32> {
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        1.0 / libm::pow(theta, f64::from(exponent)) as f32
    };
    let frequencies: Vec<f32> = (0..head_dim / 2).map(frequency).collect();
    let mut table = Vec::with_capacity(positions * head_dim);
    for position in 0..positions {
        for frequency in &frequencies {
            let angle = f64::from(position as f32 * frequency);
            table.push(libm::cos(angle) as f32);
            table.push(libm::sin(angle) as f32);
        }
    }
    table
}
