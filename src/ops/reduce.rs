//! Reductions with a fixed order.

use crate::device::cpu::{lanes, tasks};
use crate::device::{Cpu, Device, Region};

/// Elements that are summed on their own: part of the order of the sum, so never changed lightly.
const CHUNK: usize = 16 * 1024;

/// Sum of squares of `x` in f64: fixed chunks, fixed tree. Not finite when any element is not.
pub fn sum_of_squares(dev: &mut Device, x: Region) -> f64 {
    match dev {
        Device::Cpu(cpu) => cpu_sum_of_squares(cpu, x),
    }
}

fn cpu_sum_of_squares(cpu: &mut Cpu, x: Region) -> f64 {
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
