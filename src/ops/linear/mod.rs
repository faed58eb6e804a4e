//! Frozen linear layers that read one input, with their LoRA adapters (Hu et al. 2021), as one operation:
//! `y_i = x·W_iᵀ + b_i + scale_i · (drop(x)·A_iᵀ)·B_iᵀ (+ residual)`.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Capabilities, Device, Indices, Matrix, Region};

/// One adapter: `A` [r, in], `B` [out, r] and their gradients, f32 ranges of the flat buffers.
#[derive(Clone, Copy, Debug)]
pub struct Lora {
    /// Rank.
    pub rank: usize,
    /// Columns in `s`: the rank, in whole pieces of the device.
    pub width: usize,
    /// alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub scale: f32,
    /// A, [r, in].
    pub a: Region,
    /// B, [out, r].
    pub b: Region,
    /// Gradient of A, added to.
    pub grad_a: Region,
    /// Gradient of B, added to.
    pub grad_b: Region,
    /// What the products of a GPU read: A [width, in] and B [out, width] in bf16, zero beyond the rank; see [`pack`].
    pub packed: [Region; 2],
}

/// One layer of the group: `W` [out, in], its bias `[out]`, and where its output columns begin.
#[derive(Clone)]
pub struct Linear {
    /// Frozen weight [out, in].
    pub weight: Matrix,
    /// Frozen bias `[out]`, f32.
    pub bias: Option<Region>,
    /// First column of this layer's output in the group's output rows.
    pub column: usize,
    /// The adapter, where the layer is a target.
    pub lora: Option<Lora>,
}

/// Dropout of a LoRA input: element i of the mask is a pure function of the key and i, so forward and
/// backward passes compute it alike (see `philox`).
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that an element is zeroed; the rest is multiplied by 1/(1-p).
    pub p: f32,
    /// (seed low, seed high).
    pub key: [u32; 2],
    /// Upper counter words: (layer and input site, step, micro-batch). The lowest word is element / 4.
    pub counter: [u32; 3],
    /// Where a GPU finds the last two of them: they change when its work comes again, the rest does not.
    pub clock: Region,
}

impl Dropout {
    /// Elements whose random word is below this are dropped. p is below 1, so it is at most 2^32 - 256.
    fn limit(&self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0).ceil() as u32
    }

    /// Factor of the elements that stay.
    fn keep(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

/// The layers that read one input, and the shapes of its rows.
#[derive(Clone)]
pub struct Group {
    /// Input features.
    pub input: usize,
    /// Columns of an output row (the layers' outputs side by side).
    pub output: usize,
    /// The layers.
    pub layers: Vec<Linear>,
}

impl Group {
    /// Columns of `s`: the adapters' side by side.
    #[must_use]
    pub fn rank_sum(&self) -> usize {
        self.layers.iter().filter_map(|l| l.lora.map(|a| a.width)).sum()
    }

    /// f32 elements that the backward pass over `tokens` tokens needs for the parts of the adapters' gradients; on the CPU
    /// for dA of all adapters, or for dB of those of one rank.
    #[must_use]
    pub fn partial_len(&self, device: &Capabilities, tokens: usize) -> usize {
        let part = |l: &Linear| l.lora.map_or(0, |a| (self.input + l.weight.rows()) * a.width);
        if device.sums_in_parts {
            return tokens.div_ceil(SPLIT_TOKENS) * self.layers.iter().map(part).sum::<usize>();
        }
        let widest = self.layers.iter().filter_map(|l| l.lora.map(|a| a.width)).max().unwrap_or(0);
        (self.rank_sum() * self.input).max(widest * self.output)
    }
}

/// Tokens whose part of the adapters' gradients is summed on its own on a GPU. Part of the order of the sum: it never
/// changes.
const SPLIT_TOKENS: usize = 512;

/// The adapters' copies in bf16; see [`Lora::packed`].
#[derive(Clone, Copy, Debug)]
pub struct Packing<'a> {
    /// The flat parameters, f32.
    pub params: Region,
    /// The copies.
    pub packed: Region,
    /// Six integers for each matrix: its first element in `params`, in `packed`, its rows and columns, those of the copy.
    pub table: Indices<'a>,
}

/// Brings the copies up to date; nothing where the parameters themselves are read.
pub fn pack(dev: &mut Device, p: &Packing<'_>) {
    match dev {
        Device::Cpu(_) => {
            let _ = p;
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::pack(cuda, p),
    }
}

/// Operands of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// Input [T, in].
    pub x: Region,
    /// Output [T, output].
    pub y: Region,
    /// Kept: `scale_i · drop(x)·A_iᵀ` of all adapters side by side, [T, rank_sum].
    pub s: Region,
    /// Added to the output when given, [T, output].
    pub residual: Option<Region>,
    /// Whether the output is kept for the backward pass: it is then one that the device keeps without loss.
    pub kept: bool,
    /// Dropout of the adapters' input; `None` at probability 0 and in evaluation.
    pub dropout: Option<Dropout>,
    /// Scratch [T, in] for the dropped input; read only with dropout.
    pub scratch: Region,
}

/// Runs the group.
pub fn forward(dev: &mut Device, g: &Group, o: &Forward) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, g, o),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, g, o),
    }
}

/// Operands of the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// The forward pass's input [T, in].
    pub x: Region,
    /// The forward pass's `s`.
    pub s: Region,
    /// Gradient of the output [T, output].
    pub dy: Region,
    /// Scratch like `s`: gradients of s.
    pub ds: Region,
    /// Written: gradient of the input [T, in]; `None` where nothing below is trained.
    pub dx: Option<Region>,
    /// As in the forward pass.
    pub dropout: Option<Dropout>,
    /// Scratch [T, in]; used only with dropout.
    pub scratch: Region,
    /// Scratch of [`Group::partial_len`] elements, f32.
    pub partial: Region,
}

/// Adds the adapters' gradients and writes the input's. Never computes a gradient of a frozen weight.
pub fn backward(dev: &mut Device, g: &Group, o: &Backward) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, g, o),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::backward(cuda, g, o),
    }
}

/// The adapters with their layers, and the first column of each in `s`.
fn adapters(g: &Group) -> Vec<(&Linear, Lora, usize)> {
    let mut first = 0;
    let mut all = Vec::new();
    for layer in &g.layers {
        if let Some(lora) = layer.lora {
            all.push((layer, lora, first));
            first += lora.width;
        }
    }
    all
}
