//! SwiGLU on the CPU.

use crate::device::cpu::lanes::LANES;
use crate::device::cpu::{math::sigmoid, tasks};
use crate::device::{Cpu, Region};

pub(super) fn forward(cpu: &mut Cpu, gate_up: Region, width: usize, out: Region) {
    let isa = cpu.isa;
    let (pool, [x], [y]) = cpu.split([gate_up], [out]);
    assert_eq!(x.len(), 2 * y.len(), "gate and up beside each other");
    let n = tasks::rows(width) * width;
    tasks::run(
        pool,
        isa,
        y.chunks_mut(n).zip(x.chunks(2 * n)).collect(),
        #[inline(always)]
        |(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                let (gate, up) = x.split_at(width);
                for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                    *y = g * sigmoid(*g) * u;
                }
            }
        },
    );
    cpu.round(out);
}

pub(super) fn backward(cpu: &mut Cpu, gate_up: Region, width: usize, dout: Region) {
    let isa = cpu.isa;
    let (pool, [dy], [x]) = cpu.split([dout], [gate_up]);
    assert_eq!(x.len(), 2 * dy.len(), "gate and up beside each other");
    let n = tasks::rows(width) * width;
    tasks::run(
        pool,
        isa,
        x.chunks_mut(2 * n).zip(dy.chunks(n)).collect(),
        #[inline(always)]
        |(x, dy)| {
            for (x, dy) in x.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
                let (gate, up) = x.split_at_mut(width);
                gradient_row(gate, up, dy);
            }
        },
    );
    cpu.round(gate_up);
}

/// Sixteen elements at a time through registers: the compiler cannot see that gate and up lie apart.
#[inline(always)]
fn gradient_row(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    let (gates, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (ups, up_rest) = up.as_chunks_mut::<LANES>();
    let (dys, dy_rest) = dy.as_chunks::<LANES>();
    for ((gate, up), dy) in gates.iter_mut().zip(ups).zip(dys) {
        let (g, u, dy) = (*gate, *up, *dy);
        let (mut dgate, mut dup) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            (dgate[l], dup[l]) = gradient(g[l], u[l], dy[l]);
        }
        (*gate, *up) = (dgate, dup);
    }
    for ((gate, up), dy) in gate_rest.iter_mut().zip(up_rest).zip(dy_rest) {
        (*gate, *up) = gradient(*gate, *up, *dy);
    }
}

/// Gradients of gate and up. With s = sigmoid(g): d silu(g) / dg = s (1 + g (1 - s)).
#[inline(always)]
fn gradient(gate: f32, up: f32, dy: f32) -> (f32, f32) {
    let s = sigmoid(gate);
    (dy * up * (s * gate.mul_add(1.0 - s, 1.0)), dy * (gate * s))
}
