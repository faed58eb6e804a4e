//! The CPU form.

use super::OutputGate;
use crate::device::cpu::math::sigmoid;
use crate::device::cpu::tasks;
use crate::device::{Cpu, Region};

impl OutputGate {
    fn columns(&self) -> usize {
        self.heads * self.dim
    }

    fn head(&self, head: usize) -> std::ops::Range<usize> {
        let first = self.gate + head * self.stride;
        first..first + self.dim
    }
}

pub(in super::super) fn forward(cpu: &mut Cpu, p: &OutputGate, x: Region, projected: Region, y: Region) {
    let isa = cpu.isa;
    let (pool, [x, gates], [out]) = cpu.split([x, projected], [y]);
    let (columns, n) = (p.columns(), tasks::rows(p.columns()));
    tasks::run(
        pool,
        isa,
        out.chunks_mut(n * columns).zip(x.chunks(n * columns)).zip(gates.chunks(n * p.width)).collect(),
        #[inline(always)]
        |((y, x), gates)| {
            let rows = y.chunks_exact_mut(columns).zip(x.chunks_exact(columns));
            for ((y, x), gates) in rows.zip(gates.chunks_exact(p.width)) {
                let heads = y.chunks_exact_mut(p.dim).zip(x.chunks_exact(p.dim)).enumerate();
                for (head, (y, x)) in heads {
                    for ((y, x), gate) in y.iter_mut().zip(x).zip(&gates[p.head(head)]) {
                        *y = x * sigmoid(*gate);
                    }
                }
            }
        },
    );
    cpu.round(y);
}

/// With s = σ(gate): dx = dy s, dgate = dy x s (1 - s).
pub(in super::super) fn backward(
    cpu: &mut Cpu,
    p: &OutputGate,
    [x, projected]: [Region; 2],
    dy: Region,
    dprojected: Region,
) {
    let isa = cpu.isa;
    let (pool, [x, gates], [dy_rows, dgates]) = cpu.split([x, projected], [dy, dprojected]);
    let (columns, n) = (p.columns(), tasks::rows(p.columns()));
    let parts = dy_rows
        .chunks_mut(n * columns)
        .zip(dgates.chunks_mut(n * p.width))
        .zip(x.chunks(n * columns).zip(gates.chunks(n * p.width)));
    tasks::run(
        pool,
        isa,
        parts.collect(),
        #[inline(always)]
        |((dy, dgates), (x, gates))| {
            let gradients = dy.chunks_exact_mut(columns).zip(dgates.chunks_exact_mut(p.width));
            for ((dy, dgates), (x, gates)) in
                gradients.zip(x.chunks_exact(columns).zip(gates.chunks_exact(p.width)))
            {
                for (head, (dy, x)) in dy.chunks_exact_mut(p.dim).zip(x.chunks_exact(p.dim)).enumerate() {
                    let (dgates, gates) = (&mut dgates[p.head(head)], &gates[p.head(head)]);
                    for (((dy, dgate), x), gate) in dy.iter_mut().zip(dgates).zip(x).zip(gates) {
                        let s = sigmoid(*gate);
                        *dgate = *dy * x * s * (1.0 - s);
                        *dy *= s;
                    }
                }
            }
        },
    );
    cpu.round(dy);
    cpu.round(dprojected);
}
