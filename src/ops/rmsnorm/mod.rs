//! RMSNorm (Zhang & Sennrich 2019): `y = x / sqrt(mean(x²) + eps) * w`, f32 with sums in f64.

pub mod check;
pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Region};

/// Operands of one normalisation over rows of `dim` elements.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// Row length.
    pub dim: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Scale, `[dim]`, f32.
    pub weight: Region,
}

/// `y` [rows, dim] from `x` [rows, dim]; `rstd` `[rows]` is kept for the backward pass.
pub fn forward(dev: &mut Device, p: &RmsNorm, x: Region, y: Region, rstd: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, x, y, rstd),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, p, x, y, rstd, false),
    }
}

/// Recomputes `y` from `x` and `rstd`: the same bits as [`forward`] wrote.
pub fn recompute(dev: &mut Device, p: &RmsNorm, x: Region, rstd: Region, y: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::recompute(cpu, p, x, rstd, y),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, p, x, y, rstd, true),
    }
}

/// `dx += d(norm)ᵀ dy`: adds to what `dx` holds (the residual's gradient). The weight is frozen.
pub fn backward(dev: &mut Device, p: &RmsNorm, x: Region, rstd: Region, dy: Region, dx: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, p, x, rstd, dy, dx),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::backward(cuda, p, x, rstd, dy, dx),
    }
}
