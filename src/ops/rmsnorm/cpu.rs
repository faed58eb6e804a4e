//! RMSNorm on the CPU: f32 with sums in f64.

use super::RmsNorm;
use crate::device::cpu::{lanes, tasks};
use crate::device::{Cpu, Region};

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub(in crate::ops) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean = lanes::dot(x, x) / x.len() as f64;
    (1.0 / (mean + f64::from(eps)).sqrt()) as f32
}

#[inline(always)]
pub(in crate::ops) fn normalise(x: &[f32], weight: &[f32], rstd: f32, y: &mut [f32]) {
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * rstd * w;
    }
}

/// The factor c of the gradient `rstd · (dy·w - c·x)`: `rstd² · mean(x·dy·w)`.
#[inline(always)]
pub(in crate::ops) fn radial(x: &[f32], weight: &[f32], dy: &[f32], rstd: f32) -> f32 {
    let (weight, dy) = (&weight[..x.len()], &dy[..x.len()]);
    let dot = lanes::sum(
        x.len(),
        #[inline(always)]
        |i| f64::from(x[i]) * f64::from(dy[i] * weight[i]),
    );
    (dot / x.len() as f64 * f64::from(rstd) * f64::from(rstd)) as f32
}

pub(super) fn forward(cpu: &mut Cpu, p: &RmsNorm, x: Region, y: Region, rstd: Region) {
    let (isa, dim, eps) = (cpu.isa, p.dim, p.eps);
    let (pool, [x, weight], [rows, rstd]) = cpu.split([x, p.weight], [y, rstd]);
    let n = tasks::rows(dim);
    tasks::run(
        pool,
        isa,
        rows.chunks_mut(n * dim).zip(x.chunks(n * dim)).zip(rstd.chunks_mut(n)).collect(),
        #[inline(always)]
        |((y, x), rstd)| {
            for ((y, x), rstd) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).zip(rstd) {
                *rstd = inverse_rms(x, eps);
                normalise(x, weight, *rstd, y);
            }
        },
    );
    cpu.round(y);
}

pub(super) fn recompute(cpu: &mut Cpu, p: &RmsNorm, x: Region, rstd: Region, y: Region) {
    let (isa, dim) = (cpu.isa, p.dim);
    let (pool, [x, weight, rstd], [rows]) = cpu.split([x, p.weight, rstd], [y]);
    let n = tasks::rows(dim);
    tasks::run(
        pool,
        isa,
        rows.chunks_mut(n * dim).zip(x.chunks(n * dim)).zip(rstd.chunks(n)).collect(),
        #[inline(always)]
        |((y, x), rstd)| {
            for ((y, x), rstd) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).zip(rstd) {
                normalise(x, weight, *rstd, y);
            }
        },
    );
    cpu.round(y);
}

pub(super) fn backward(cpu: &mut Cpu, p: &RmsNorm, x: Region, rstd: Region, dy: Region, dx: Region) {
    let (isa, dim) = (cpu.isa, p.dim);
    let (pool, [x, weight, rstd, dy], [rows]) = cpu.split([x, p.weight, rstd, dy], [dx]);
    let n = tasks::rows(dim);
    let parts = rows.chunks_mut(n * dim).zip(x.chunks(n * dim)).zip(dy.chunks(n * dim)).zip(rstd.chunks(n));
    tasks::run(
        pool,
        isa,
        parts.collect(),
        #[inline(always)]
        |(((dx, x), dy), rstd)| {
            let rows = dx.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).zip(dy.chunks_exact(dim)).zip(rstd);
            for (((dx, x), dy), rstd) in rows {
                let c = radial(x, weight, dy, *rstd);
                for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                    *dx = rstd.mul_add(x.mul_add(-c, dy * w), *dx);
                }
            }
        },
    );
    cpu.round(dx);
}
