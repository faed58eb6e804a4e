//! Logits of a few rows, for sampling: unlike training, generation needs them themselves.

pub mod check;

use super::loss;
use crate::device::{Device, Matrix, Region};

/// `logits` f32 [N, [`crate::device::Capabilities::row_len`]] = x·headᵀ; `x` [N, H] are normalised hidden rows, `head` [V, H].
pub fn forward(dev: &mut Device, head: &Matrix, x: Region, logits: Region) {
    match dev {
        Device::Cpu(cpu) => loss::cpu::logits(cpu, head, x, logits),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => loss::cuda::logits(cuda, head, x, logits),
    }
}
