//! AdamW on the CPU.

use super::{AdamW, Factors};
use crate::device::cpu::tasks;
use crate::device::{Cpu, Region};

pub(super) fn step(cpu: &mut Cpu, p: &AdamW, params: Region, grads: Region, m: Region, v: Region) {
    let (factors, isa) = (Factors::new(p), cpu.isa);
    let (pool, [grads], [params, m, v]) = cpu.split([grads], [params, m, v]);
    let n = tasks::rows(1);
    let parts = params.chunks_mut(n).zip(grads.chunks(n)).zip(m.chunks_mut(n)).zip(v.chunks_mut(n));
    tasks::run(
        pool,
        isa,
        parts.collect(),
        #[inline(always)]
        |(((params, grads), m), v)| factors.update(params, grads, m, v),
    );
}
