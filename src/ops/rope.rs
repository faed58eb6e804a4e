//! Rotary embedding (Su et al. 2021, NeoX halves) of queries and keys, with Qwen3's per-head RMSNorm before it.

#[cfg(feature = "cuda")]
pub mod cuda;

use super::rmsnorm::{inverse_rms, normalise, radial};
use crate::device::cpu::tasks;
use crate::device::{Cpu, Device, Indices, Region};

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
        Device::Cpu(cpu) => cpu_forward(cpu, p, qkv, positions.values, qk),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, p, qkv, positions, qk),
    }
}

/// Writes the q and k columns of `dqkv` [T, qkv_width] from `dqk` [T, qk_width]; the v columns stay.
pub fn backward(dev: &mut Device, p: &Rope, qkv: Region, positions: Indices<'_>, dqk: Region, dqkv: Region) {
    match dev {
        Device::Cpu(cpu) => cpu_backward(cpu, p, qkv, positions.values, dqk, dqkv),
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

/// Head norm weights as slices.
#[derive(Clone, Copy)]
struct Norm<'a> {
    q: &'a [f32],
    k: &'a [f32],
    eps: f32,
}

impl<'a> Norm<'a> {
    /// The weight of head `head` of q and k side by side, and the epsilon.
    fn of(self, head: usize, heads: usize) -> (&'a [f32], f32) {
        (if head < heads { self.q } else { self.k }, self.eps)
    }
}

/// The regions of the norm's weights; empty where there is none.
fn norm_regions(p: &Rope, qkv: Region) -> [Region; 2] {
    let empty = Region { len: 0, ..qkv };
    p.norm.map_or([empty; 2], |n| [n.q, n.k])
}

/// `(a, b)` turned by an angle; `sin` negative turns back.
#[inline(always)]
fn rotate(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a * cos - b * sin, b * cos + a * sin)
}

fn cpu_forward(cpu: &mut Cpu, p: &Rope, qkv: Region, positions: &[u32], qk: Region) {
    let (isa, d, heads) = (cpu.isa, p.head_dim, p.heads);
    let (width, raw) = (p.qk_width(), p.qkv_width());
    let [q, k] = norm_regions(p, qkv);
    let (pool, [x, table, q, k], [y]) = cpu.split([qkv, p.table, q, k], [qk]);
    assert_eq!(y.len(), positions.len() * width, "one row for each position");
    let norm = p.norm.map(|n| Norm { q, k, eps: n.eps });
    let n = tasks::rows(width);
    tasks::run(
        pool,
        isa,
        y.chunks_mut(n * width).zip(x.chunks(n * raw)).zip(positions.chunks(n)).collect(),
        #[inline(always)]
        |((y, x), positions)| {
            for ((y, x), position) in y.chunks_exact_mut(width).zip(x.chunks_exact(raw)).zip(positions) {
                let angles = &table[*position as usize * d..][..d];
                for (h, (y, x)) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)).enumerate() {
                    forward_head(x, norm.map(|n| n.of(h, heads)), angles, y);
                }
            }
        },
    );
    cpu.round(qk);
}

#[inline(always)]
fn forward_head(x: &[f32], norm: Option<(&[f32], f32)>, angles: &[f32], y: &mut [f32]) {
    match norm {
        Some((weight, eps)) => normalise(x, weight, inverse_rms(x, eps), y),
        None => y.copy_from_slice(x),
    }
    let (low, high) = y.split_at_mut(x.len() / 2);
    for ((a, b), angle) in low.iter_mut().zip(high).zip(angles.as_chunks::<2>().0) {
        (*a, *b) = rotate(*a, *b, angle[0], angle[1]);
    }
}

fn cpu_backward(cpu: &mut Cpu, p: &Rope, qkv: Region, positions: &[u32], dqk: Region, dqkv: Region) {
    let (isa, d, heads) = (cpu.isa, p.head_dim, p.heads);
    let (width, raw) = (p.qk_width(), p.qkv_width());
    let [q, k] = norm_regions(p, qkv);
    let (pool, [x, table, dy, q, k], [dx]) = cpu.split([qkv, p.table, dqk, q, k], [dqkv]);
    assert_eq!(dy.len(), positions.len() * width, "one row for each position");
    let norm = p.norm.map(|n| Norm { q, k, eps: n.eps });
    let n = tasks::rows(width);
    let parts =
        dx.chunks_mut(n * raw).zip(x.chunks(n * raw)).zip(dy.chunks(n * width)).zip(positions.chunks(n));
    tasks::run(
        pool,
        isa,
        parts.collect(),
        #[inline(always)]
        |(((dx, x), dy), positions)| {
            let rows = dx.chunks_exact_mut(raw).zip(x.chunks_exact(raw)).zip(dy.chunks_exact(width));
            for (((dx, x), dy), position) in rows.zip(positions) {
                let angles = &table[*position as usize * d..][..d];
                // Zipping with `dy` ends after the q and k columns.
                let columns = dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d));
                for (h, ((dx, x), dy)) in columns.enumerate() {
                    backward_head(x, norm.map(|n| n.of(h, heads)), angles, dy, dx);
                }
            }
        },
    );
    cpu.round(dqkv);
}

#[inline(always)]
fn backward_head(x: &[f32], norm: Option<(&[f32], f32)>, angles: &[f32], dy: &[f32], dx: &mut [f32]) {
    let half = x.len() / 2;
    let (dy_low, dy_high) = dy.split_at(half);
    let (low, high) = dx.split_at_mut(half);
    let pairs = low.iter_mut().zip(high).zip(dy_low.iter().zip(dy_high));
    for (((a, b), (da, db)), angle) in pairs.zip(angles.as_chunks::<2>().0) {
        (*a, *b) = rotate(*da, *db, angle[0], -angle[1]);
    }
    let Some((weight, eps)) = norm else { return };
    let rstd = inverse_rms(x, eps);
    let c = radial(x, weight, dx, rstd);
    for ((dx, x), w) in dx.iter_mut().zip(x).zip(weight) {
        *dx = rstd * x.mul_add(-c, *dx * w);
    }
}
