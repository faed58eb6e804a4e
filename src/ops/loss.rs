//! Linear + cross-entropy over the scored rows, in chunks: the full logits never exist.

use crate::device::{Device, Matrix, Region};

/// Operands of the fused head.
#[derive(Clone, Copy, Debug)]
pub struct Loss<'a> {
    /// Output head [V, H].
    pub head: &'a Matrix,
    /// Target token of each scored row.
    pub targets: &'a [u32],
    /// Chunk of logits: a multiple of V elements.
    pub logits: Region,
}

/// Loss of each scored row, nats; `x` [N, H] are the normalised hidden rows.
pub fn forward(dev: &mut Device, p: &Loss<'_>, x: Region) -> Vec<f32> {
    let _ = (dev, p, x);
    todo!()
}

/// As [`forward`] (the same bits), and writes `dx` [N, H] = gradient of `grad_scale` × the sum of the losses.
pub fn forward_backward(dev: &mut Device, p: &Loss<'_>, x: Region, grad_scale: f32, dx: Region) -> Vec<f32> {
    let _ = (dev, p, x, grad_scale, dx);
    todo!()
}
