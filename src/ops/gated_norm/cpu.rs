//! The CPU form, head by head.

use super::GatedNorm;
use crate::device::cpu::math::sigmoid;
use crate::device::cpu::{lanes, tasks};
use crate::device::{Cpu, Region};
use crate::ops::rmsnorm::cpu::inverse_rms;

pub(in super::super) fn forward(cpu: &mut Cpu, p: &GatedNorm, x: Region, projected: Region, y: Region) {
    let isa = cpu.isa;
    let (pool, [x, z, weight], [out]) = cpu.split([x, projected, p.weight], [y]);
    let (width, n) = (p.width(), tasks::rows(p.width()));
    tasks::run(
        pool,
        isa,
        out.chunks_mut(n * width).zip(x.chunks(n * width)).zip(z.chunks(n * p.gate_width)).collect(),
        #[inline(always)]
        |((y, x), z)| {
            let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(z.chunks_exact(p.gate_width));
            for ((y, x), z) in rows {
                let gates = z[p.gate..][..width].chunks_exact(p.dim);
                for ((y, x), z) in y.chunks_exact_mut(p.dim).zip(x.chunks_exact(p.dim)).zip(gates) {
                    let rstd = inverse_rms(x, p.eps);
                    for (((y, x), z), w) in y.iter_mut().zip(x).zip(z).zip(weight) {
                        *y = x * rstd * w * (z * sigmoid(*z));
                    }
                }
            }
        },
    );
    cpu.round(y);
}

/// With n = x·rstd: dz = dy∘w∘n∘silu'(z), dn = dy∘w∘silu(z), dx = rstd (dn - n mean(n∘dn)).
pub(in super::super) fn backward(
    cpu: &mut Cpu,
    p: &GatedNorm,
    [x, projected]: [Region; 2],
    dy: Region,
    dprojected: Region,
) {
    let isa = cpu.isa;
    let (pool, [x, z, weight], [dy_rows, dz]) = cpu.split([x, projected, p.weight], [dy, dprojected]);
    let (width, n) = (p.width(), tasks::rows(p.width()));
    let parts = dy_rows
        .chunks_mut(n * width)
        .zip(dz.chunks_mut(n * p.gate_width))
        .zip(x.chunks(n * width).zip(z.chunks(n * p.gate_width)));
    tasks::run(
        pool,
        isa,
        parts.collect(),
        #[inline(always)]
        |((dy, dz), (x, z))| {
            let gradients = dy.chunks_exact_mut(width).zip(dz.chunks_exact_mut(p.gate_width));
            for ((dy, dz), (x, z)) in gradients.zip(x.chunks_exact(width).zip(z.chunks_exact(p.gate_width))) {
                let dz = dz[p.gate..][..width].chunks_exact_mut(p.dim);
                let z = z[p.gate..][..width].chunks_exact(p.dim);
                let heads = dy.chunks_exact_mut(p.dim).zip(dz).zip(x.chunks_exact(p.dim).zip(z));
                for ((dy, dz), (x, z)) in heads {
                    backward_head(p.eps, weight, x, z, dy, dz);
                }
            }
        },
    );
    cpu.round(dy);
    cpu.round(dprojected);
}

#[inline(always)]
fn backward_head(eps: f32, weight: &[f32], x: &[f32], z: &[f32], dy: &mut [f32], dz: &mut [f32]) {
    let rstd = inverse_rms(x, eps);
    for ((((dy, dz), x), z), w) in dy.iter_mut().zip(dz).zip(x).zip(z).zip(weight) {
        let s = sigmoid(*z);
        let scaled = *dy * w;
        *dz = scaled * (x * rstd) * (s * z.mul_add(1.0 - s, 1.0));
        *dy = scaled * (z * s);
    }
    let mean = lanes::dot(x, dy) / x.len() as f64;
    let along = (mean * f64::from(rstd) * f64::from(rstd)) as f32;
    for (dy, x) in dy.iter_mut().zip(x) {
        *dy = rstd * x.mul_add(-along, *dy);
    }
}
