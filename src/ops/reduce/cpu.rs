//! Reductions on the CPU.

use super::CHUNK;
use crate::device::cpu::{lanes, tasks};
use crate::device::{Cpu, Region};

pub(super) fn sum_of_squares(cpu: &mut Cpu, x: Region) -> f64 {
    let isa = cpu.isa;
    let (pool, [x], []) = cpu.split([x], []);
    let mut sums = vec![0.0; x.len().div_ceil(CHUNK)];
    tasks::run(
        pool,
        isa,
        sums.iter_mut().zip(x.chunks(CHUNK)).collect(),
        #[inline(always)]
        |(sum, chunk)| *sum = lanes::dot(chunk, chunk),
    );
    sums.iter().sum()
}
