//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019), in the order of operations of PyTorch's
//! single-tensor form, on the flat buffers.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Region};

/// One optimizer step's numbers; everything that depends on the step is computed in f64.
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
    /// Steps done including this one, for bias correction: from 1.
    pub step: u64,
    /// Gradients are multiplied by this first (clipping); 1 when not clipped.
    pub grad_scale: f32,
}

/// Updates `params`, `m`, `v` (same length, f32) in place from `grads`.
pub fn step(dev: &mut Device, p: &AdamW, params: Region, grads: Region, m: Region, v: Region) {
    match dev {
        Device::Cpu(cpu) => cpu::step(cpu, p, params, grads, m, v),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::step(cuda, p, params, grads, m, v),
    }
}

/// The factors of one step, rounded to f32 as PyTorch rounds its scalars.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: f32,
    keep: f32,
    first: f32,
    beta2: f32,
    second: f32,
    root: f32,
    epsilon: f32,
    size: f32,
}

impl Factors {
    fn new(p: &AdamW) -> Self {
        let correction1 = 1.0 - power(p.beta1, p.step);
        let correction2 = 1.0 - power(p.beta2, p.step);
        Factors {
            grad_scale: p.grad_scale,
            keep: (1.0 - p.lr * p.weight_decay) as f32,
            first: (1.0 - p.beta1) as f32,
            beta2: p.beta2 as f32,
            second: (1.0 - p.beta2) as f32,
            root: correction2.sqrt() as f32,
            epsilon: p.epsilon as f32,
            size: (-p.lr / correction1) as f32,
        }
    }

    #[inline(always)]
    fn update(self, params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in params.iter_mut().zip(grads).zip(m).zip(v) {
            let g = g * self.grad_scale;
            *m = self.first.mul_add(g - *m, *m);
            *v = (self.second * g).mul_add(g, *v * self.beta2);
            let denominator = v.sqrt() / self.root + self.epsilon;
            *w = *w * self.keep + self.size * *m / denominator;
        }
    }
}

/// `base^n` by repeated squaring.
fn power(mut base: f64, mut n: u64) -> f64 {
    let mut result = 1.0;
    while n > 0 {
        if n & 1 == 1 {
            result *= base;
        }
        base *= base;
        n >>= 1;
    }
    result
}
