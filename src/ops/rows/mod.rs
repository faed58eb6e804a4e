//! Moving whole rows and regions: gather of the scored rows, its transpose, copies, fills.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Indices, Region};

/// `out[i] = x[index[i]]`; rows of `width` elements.
pub fn gather(dev: &mut Device, x: Region, index: Indices<'_>, width: usize, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::gather(cpu, x, index.values, width, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::gather(cuda, x, index, width, out),
    }
}

/// `out` = 0, then `out[index[i]] = x[i]`; indices are distinct.
pub fn scatter(dev: &mut Device, x: Region, index: Indices<'_>, width: usize, out: Region) {
    zero(dev, out);
    match dev {
        Device::Cpu(cpu) => cpu::scatter(cpu, x, index.values, width, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::scatter(cuda, x, index, width, out),
    }
}

/// `out = x`, same length; to what layers keep, rounded as the device keeps it, and from there.
pub fn copy(dev: &mut Device, x: Region, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::copy(cpu, x, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda.copy(x, out),
    }
}

/// `out = 0`.
pub fn zero(dev: &mut Device, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::zero(cpu, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda.zero(out),
    }
}
