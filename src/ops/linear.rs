//! Frozen linear layers that read one input, with their LoRA adapters (Hu et al. 2021), as one operation:
//! `y_i = x·W_iᵀ + b_i + scale_i · (drop(x)·A_iᵀ)·B_iᵀ (+ residual)`.

use crate::device::{Device, Matrix, Region};

/// One adapter: `A` [r, in], `B` [out, r] and their gradients, f32 ranges of the flat buffers.
#[derive(Clone, Copy, Debug)]
pub struct Lora {
    /// Rank.
    pub rank: usize,
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
}

/// One layer of the group: `W` [out, in], its bias [out], and where its output columns begin.
#[derive(Clone)]
pub struct Linear {
    /// Frozen weight [out, in].
    pub weight: Matrix,
    /// Frozen bias [out], f32.
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
    /// Sum of the adapters' ranks: columns of `s`.
    #[must_use]
    pub fn rank_sum(&self) -> usize {
        self.layers.iter().filter_map(|l| l.lora.map(|a| a.rank)).sum()
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
    /// Dropout of the adapters' input; `None` at probability 0 and in evaluation.
    pub dropout: Option<Dropout>,
    /// Scratch [T, in] for the dropped input; read only with dropout.
    pub scratch: Region,
}

/// Runs the group.
pub fn forward(dev: &mut Device, g: &Group, o: &Forward) {
    let _ = (dev, g, o);
    todo!()
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
}

/// Adds the adapters' gradients and writes the input's. Never computes a gradient of a frozen weight.
pub fn backward(dev: &mut Device, g: &Group, o: &Backward) {
    let _ = (dev, g, o);
    todo!()
}
