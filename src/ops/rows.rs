//! Moving whole rows and regions: gather of the scored rows, its transpose, copies, fills.

#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::cpu::tasks;
use crate::device::{Cpu, Device, Indices, Region};

/// `out[i] = x[index[i]]`; rows of `width` elements.
pub fn gather(dev: &mut Device, x: Region, index: Indices<'_>, width: usize, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu_gather(cpu, x, index.values, width, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::gather(cuda, x, index, width, out),
    }
}

fn cpu_gather(cpu: &mut Cpu, x: Region, index: &[u32], width: usize, out: Region) {
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

/// `out` = 0, then `out[index[i]] = x[i]`; indices are distinct.
pub fn scatter(dev: &mut Device, x: Region, index: Indices<'_>, width: usize, out: Region) {
    zero(dev, out);
    match dev {
        Device::Cpu(cpu) => cpu_scatter(cpu, x, index.values, width, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::scatter(cuda, x, index, width, out),
    }
}

fn cpu_scatter(cpu: &mut Cpu, x: Region, index: &[u32], width: usize, out: Region) {
    let (_, [x], [out]) = cpu.split([x], [out]);
    assert_eq!(x.len(), index.len() * width, "one row for each index");
    for (row, i) in x.chunks_exact(width).zip(index) {
        out[*i as usize * width..][..width].copy_from_slice(row);
    }
}

/// `out = x`, same length.
pub fn copy(dev: &mut Device, x: Region, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu_copy(cpu, x, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda.copy(x, out),
    }
}

fn cpu_copy(cpu: &mut Cpu, x: Region, out: Region) {
    let isa = cpu.isa;
    let (pool, [x], [out]) = cpu.split([x], [out]);
    assert_eq!(x.len(), out.len(), "copy between different lengths");
    let n = tasks::rows(1);
    let parts = out.chunks_mut(n).zip(x.chunks(n)).collect();
    tasks::run(pool, isa, parts, |(out, x)| out.copy_from_slice(x));
}

/// `out = 0`.
pub fn zero(dev: &mut Device, out: Region) {
    match dev {
        Device::Cpu(cpu) => {
            let isa = cpu.isa;
            let (pool, [], [out]) = cpu.split([], [out]);
            tasks::run(pool, isa, out.chunks_mut(tasks::rows(1)).collect(), |out| out.fill(0.0));
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda.zero(out),
    }
}
