//! The gate of an attention's output: `y = x ∘ σ(gate)`, each head by its own gate.

pub mod check;
mod cpu;

use crate::device::{Device, Region};

/// Where the gates of rows of `heads` heads of `dim` elements lie: head h's begin at column `gate + h·stride` of rows of
/// `width` elements.
#[derive(Clone, Copy, Debug)]
pub struct OutputGate {
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Elements of a row that holds the gates.
    pub width: usize,
    /// First column of the gates.
    pub gate: usize,
    /// Columns from one head's gates to the next's.
    pub stride: usize,
}

/// `y` [T, heads·dim] from `x` [T, heads·dim] and the gates in `projected` [T, width].
pub fn forward(dev: &mut Device, p: &OutputGate, x: Region, projected: Region, y: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, x, projected, y),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => unreachable!("a device without gates is refused when the model is planned"),
    }
}

/// Replaces `dy` by the gradient of `x`, and writes that of the gates to their columns of `dprojected`.
pub fn backward(
    dev: &mut Device,
    p: &OutputGate,
    [x, projected]: [Region; 2],
    dy: Region,
    dprojected: Region,
) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, p, [x, projected], dy, dprojected),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => unreachable!("a device without gates is refused when the model is planned"),
    }
}
