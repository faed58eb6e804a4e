//! SwiGLU (Shazeer 2020): `silu(gate) * up`.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Region};

/// `out` [T, I] from `gate_up` [T, 2·I]: gate in columns 0..I, up in I..2I. `width` is I.
pub fn forward(dev: &mut Device, gate_up: Region, width: usize, out: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, gate_up, width, out),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, gate_up, width, out),
    }
}

/// Replaces `gate_up` by its gradient, given `dout` [T, I].
pub fn backward(dev: &mut Device, gate_up: Region, width: usize, dout: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, gate_up, width, dout),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::backward(cuda, gate_up, width, dout),
    }
}
