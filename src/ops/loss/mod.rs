//! Linear + cross-entropy over the scored rows, in chunks: the full logits never exist.

pub mod check;
pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Indices, Matrix, Region};

/// Operands of the fused head.
#[derive(Clone, Copy, Debug)]
pub struct Loss<'a> {
    /// Output head [V, H].
    pub head: &'a Matrix,
    /// Target token of each scored row, N.
    pub targets: Indices<'a>,
    /// Chunk of logits: rows of [`crate::device::Capabilities::row_len`] of the vocabulary.
    pub logits: Region,
    /// Written: loss of each scored row, nats, f32 `[N]`.
    pub losses: Region,
}

/// Writes the losses; `x` [N, H] are the normalised hidden rows.
pub fn forward(dev: &mut Device, p: &Loss<'_>, x: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::run(cpu, p, x, None),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::run(cuda, p, x, None),
    }
}

/// As [`forward`] (the same bits), and writes `dx` [N, H] = gradient of `grad_scale` × the sum of the losses.
pub fn forward_backward(dev: &mut Device, p: &Loss<'_>, x: Region, grad_scale: f32, dx: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::run(cpu, p, x, Some((grad_scale, dx))),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::run(cuda, p, x, Some((grad_scale, dx))),
    }
}
