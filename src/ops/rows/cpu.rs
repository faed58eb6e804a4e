//! Moved rows on the CPU.

use crate::device::cpu::tasks;
use crate::device::{Cpu, Region};

pub(super) fn gather(cpu: &mut Cpu, x: Region, index: &[u32], width: usize, out: Region) {
    let isa = cpu.isa;
    let (pool, [x], [out]) = cpu.split([x], [out]);
    assert_eq!(out.len(), index.len() * width, "one row for each index");
    let n = tasks::rows(width);
    let parts = out.chunks_mut(n * width).zip(index.chunks(n)).collect();
    tasks::run(pool, isa, parts, |(out, index)| {
        for (row, i) in out.chunks_exact_mut(width).zip(index) {
            row.copy_from_slice(&x[*i as usize * width..][..width]);
        }
    });
}

pub(super) fn scatter(cpu: &mut Cpu, x: Region, index: &[u32], width: usize, out: Region) {
    let (_, [x], [out]) = cpu.split([x], [out]);
    assert_eq!(x.len(), index.len() * width, "one row for each index");
    for (row, i) in x.chunks_exact(width).zip(index) {
        out[*i as usize * width..][..width].copy_from_slice(row);
    }
}

pub(super) fn copy(cpu: &mut Cpu, x: Region, out: Region) {
    let isa = cpu.isa;
    let (pool, [x], [out]) = cpu.split([x], [out]);
    assert_eq!(x.len(), out.len(), "copy between different lengths");
    let n = tasks::rows(1);
    let parts = out.chunks_mut(n).zip(x.chunks(n)).collect();
    tasks::run(pool, isa, parts, |(out, x)| out.copy_from_slice(x));
}

pub(super) fn zero(cpu: &mut Cpu, out: Region) {
    let isa = cpu.isa;
    let (pool, [], [out]) = cpu.split([], [out]);
    tasks::run(pool, isa, out.chunks_mut(tasks::rows(1)).collect(), |out| out.fill(0.0));
}
