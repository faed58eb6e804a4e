//! Moved rows on the CPU.

use crate::device::cpu::{kept, tasks};
use crate::device::{Cpu, Region, Storage};

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

/// Elements of a task of [`copy`], an even number.
const PIECE: usize = tasks::ELEMENTS;

pub(super) fn copy(cpu: &mut Cpu, x: Region, out: Region) {
    assert_eq!(x.len, out.len, "copy between different lengths");
    let (isa, pairs) = (cpu.isa, cpu.keeps_bf16());
    let words = if pairs { PIECE / 2 } else { PIECE };
    match (x.storage, out.storage) {
        (Storage::Kept, Storage::Kept) => copy(cpu, cpu.words(x), cpu.words(out)),
        (Storage::Kept, _) => {
            let (pool, [x], [out]) = cpu.split([cpu.words(x)], [out]);
            tasks::run(
                pool,
                isa,
                out.chunks_mut(PIECE).zip(x.chunks(words)).collect(),
                #[inline(always)]
                |(out, x)| kept::load(pairs, x, out),
            );
        }
        (_, Storage::Kept) => {
            let (pool, [x], [out]) = cpu.split([x], [cpu.words(out)]);
            tasks::run(
                pool,
                isa,
                out.chunks_mut(words).zip(x.chunks(PIECE)).collect(),
                #[inline(always)]
                |(out, x)| kept::store(pairs, x, out),
            );
        }
        _ => {
            let (pool, [x], [out]) = cpu.split([x], [out]);
            let parts = out.chunks_mut(PIECE).zip(x.chunks(PIECE)).collect();
            tasks::run(pool, isa, parts, |(out, x)| out.copy_from_slice(x));
        }
    }
}

pub(super) fn zero(cpu: &mut Cpu, out: Region) {
    let isa = cpu.isa;
    let (pool, [], [out]) = cpu.split([], [out]);
    tasks::run(pool, isa, out.chunks_mut(PIECE).collect(), |out| out.fill(0.0));
}
