//! Rotation and head norm on the CPU.

use super::Rope;
use crate::device::cpu::tasks;
use crate::device::{Cpu, Region};
use crate::ops::rmsnorm::cpu::{inverse_rms, normalise, radial};

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

pub(super) fn forward(cpu: &mut Cpu, p: &Rope, qkv: Region, positions: &[u32], qk: Region) {
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

pub(super) fn backward(cpu: &mut Cpu, p: &Rope, qkv: Region, positions: &[u32], dqk: Region, dqkv: Region) {
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
