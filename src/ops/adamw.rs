//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019), in the order of operations of PyTorch's
//! single-tensor form, on the flat buffers.

use crate::device::{Device, Region};

/// One optimizer step's numbers; everything that depends on the step is computed in f64 by the caller.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps done including this one, for bias correction.
    pub step: u64,
    /// Gradients are multiplied by this first (clipping); 1 when not clipped.
    pub grad_scale: f32,
}

/// Updates `params`, `m`, `v` (same length, f32) in place from `grads`.
pub fn step(dev: &mut Device, p: &AdamW, params: Region, grads: Region, m: Region, v: Region) {
    let _ = (dev, p, params, grads, m, v);
    todo!()
}
