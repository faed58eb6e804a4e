//! A short causal convolution of each channel over the tokens of its segment, and SiLU:
//! `c_t = Σ_j w_j x_(t - taps + 1 + j)`, `y_t = c_t σ(c_t)`; before a segment there is nothing.

pub mod check;
mod cpu;

use crate::device::{Device, Indices, Region};
use crate::ops::attention::Segments;

/// Shapes of one convolution. It reads the first `channels` columns of rows of `width` elements.
#[derive(Clone, Copy, Debug)]
pub struct ShortConvolution {
    /// Channels C.
    pub channels: usize,
    /// Tokens that a channel sees, itself included.
    pub taps: usize,
    /// Elements of an input row.
    pub width: usize,
    /// Weights [taps, C], f32; the last row is the token's own.
    pub weight: Region,
}

/// What sequences go on from: the last `taps - 1` rows of their inputs, activations [slots, taps - 1, C], the newest last.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// All windows.
    pub region: Region,
    /// The slot of each segment, or of each token of a step.
    pub slots: Indices<'a>,
}

impl ShortConvolution {
    /// Elements of a window.
    #[must_use]
    pub fn window_len(&self) -> usize {
        (self.taps - 1) * self.channels
    }
}

/// `y` [T, C] from `x` [T, width]. The windows after each segment are kept where they are given.
pub fn forward(
    dev: &mut Device,
    p: &ShortConvolution,
    segments: &Segments<'_>,
    x: Region,
    y: Region,
    windows: Option<Windows<'_>>,
) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, segments.list, x, y, windows),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}

/// One more token of each sequence: `y` [N, C] from `x` [N, width], from and to its window.
pub fn step(dev: &mut Device, p: &ShortConvolution, x: Region, y: Region, windows: Windows<'_>) {
    match dev {
        Device::Cpu(cpu) => cpu::step(cpu, p, x, y, windows),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}

/// Writes the first C columns of `dx` [T, width] from `dy` [T, C], which it overwrites.
pub fn backward(
    dev: &mut Device,
    p: &ShortConvolution,
    segments: &Segments<'_>,
    x: Region,
    dy: Region,
    dx: Region,
) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, p, segments.list, x, dy, dx),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}
