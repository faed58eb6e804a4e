//! RMSNorm of each head, multiplied by a gate: `y = w ∘ x / sqrt(mean(x²) + eps) ∘ silu(z)`.

pub mod check;
mod cpu;

use crate::device::{Device, Region};

/// Operands over rows of `heads` heads of `dim` elements, and gates at a column of wider rows.
#[derive(Clone, Copy, Debug)]
pub struct GatedNorm {
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Scale, `[dim]`, f32; all heads have the same.
    pub weight: Region,
    /// Elements of a row that holds the gates.
    pub gate_width: usize,
    /// First column of the gates there.
    pub gate: usize,
}

impl GatedNorm {
    /// Elements of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.heads * self.dim
    }
}

/// `y` [T, heads·dim] from `x` [T, heads·dim] and the gates in `projected` [T, gate_width].
pub fn forward(dev: &mut Device, p: &GatedNorm, x: Region, projected: Region, y: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, x, projected, y),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}

/// Replaces `dy` by the gradient of `x`, and writes that of the gates to their columns of `dprojected`.
pub fn backward(
    dev: &mut Device,
    p: &GatedNorm,
    [x, projected]: [Region; 2],
    dy: Region,
    dprojected: Region,
) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, p, [x, projected], dy, dprojected),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}
