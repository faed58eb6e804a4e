//! AdamW on CUDA: `kernels/op/adamw.cu`.

use super::{AdamW, Factors};
use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};

/// The kernels.
pub const KERNELS: Kernels = Kernels { kernels: &[&STEP], shared: &[("adamw", "BLOCK", BLOCK)] };

static STEP: Kernel<AdamWParams> = Kernel::new("adamw", "adamw_step", 256, 0);

parameters! {
    /// A launch of `adamw_step`: the factors are those of the CPU's form, so the bits are too.
    pub struct AdamWParams {
        /// Address of the parameters, f32.
        pub params: u64,
        /// Address of the gradients, f32.
        pub grads: u64,
        /// Address of the first moments, f32.
        pub m: u64,
        /// Address of the second moments, f32.
        pub v: u64,
        /// Elements of each.
        pub count: u64,
        /// Factor of the gradients.
        pub grad_scale: f32,
        /// 1 - lr * weight decay.
        pub keep: f32,
        /// 1 - beta1.
        pub first: f32,
        /// beta2.
        pub beta2: f32,
        /// 1 - beta2.
        pub second: f32,
        /// sqrt(1 - beta2^t).
        pub root: f32,
        /// Added to the denominator.
        pub epsilon: f32,
        /// -lr / (1 - beta1^t).
        pub size: f32,
    }
}

/// Elements of a block.
const BLOCK: usize = 1024;

pub(super) fn step(cuda: &mut Cuda, p: &AdamW, params: Region, grads: Region, m: Region, v: Region) {
    let f = Factors::new(p);
    let grid = [params.len.div_ceil(BLOCK) as u32, 1, 1];
    let params = AdamWParams {
        count: params.len as u64,
        params: cuda.address_to_write(params),
        grads: cuda.address(grads),
        m: cuda.address_to_write(m),
        v: cuda.address_to_write(v),
        grad_scale: f.grad_scale,
        keep: f.keep,
        first: f.first,
        beta2: f.beta2,
        second: f.second,
        root: f.root,
        epsilon: f.epsilon,
        size: f.size,
    };
    cuda.launch(&STEP, grid, &params);
}
