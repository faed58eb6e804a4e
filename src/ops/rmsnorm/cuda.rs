//! RMSNorm on CUDA: `kernels/op/rmsnorm.cu`.

use super::RmsNorm;
use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};

/// The kernels.
pub const KERNELS: Kernels =
    Kernels { kernels: &[&FORWARD, &BACKWARD], shared: &[("rmsnorm", "WARPS", ROWS)] };

static FORWARD: Kernel<RmsNormForward> = Kernel::new("rmsnorm", "rmsnorm_forward", 256, 0);
static BACKWARD: Kernel<RmsNormBackward> = Kernel::new("rmsnorm", "rmsnorm_backward", 256, 0);

/// Rows of a block: each of its warps has one.
const ROWS: usize = 8;

parameters! {
    /// A launch of `rmsnorm_forward`.
    pub struct RmsNormForward {
        /// Address of the result, bf16 [rows, dim].
        pub y: u64,
        /// Address of f32 `[rows]`: written, or read when `given`.
        pub rstd: u64,
        /// Address of the input, bf16 [rows, dim].
        pub x: u64,
        /// Address of f32 `[dim]`.
        pub weight: u64,
        /// Rows.
        pub rows: i32,
        /// Elements of a row, a multiple of 8.
        pub dim: i32,
        /// Added to the mean square.
        pub eps: f32,
        /// Whether `rstd` is read.
        pub given: i32,
    }
}

parameters! {
    /// A launch of `rmsnorm_backward`.
    pub struct RmsNormBackward {
        /// Address of bf16 [rows, dim], added to.
        pub dx: u64,
        /// Address of the input, bf16 [rows, dim].
        pub x: u64,
        /// Address of the result's gradient, bf16 [rows, dim].
        pub dy: u64,
        /// Address of f32 `[rows]`.
        pub rstd: u64,
        /// Address of f32 `[dim]`.
        pub weight: u64,
        /// Rows.
        pub rows: i32,
        /// Elements of a row, a multiple of 8.
        pub dim: i32,
    }
}

fn grid(rows: usize) -> [u32; 3] {
    [rows.div_ceil(ROWS) as u32, 1, 1]
}

pub(super) fn forward(cuda: &mut Cuda, p: &RmsNorm, x: Region, y: Region, rstd: Region, given: bool) {
    let rows = x.len / p.dim;
    let params = RmsNormForward {
        y: cuda.address(y),
        rstd: cuda.address(rstd),
        x: cuda.address(x),
        weight: cuda.address(p.weight),
        rows: rows as i32,
        dim: p.dim as i32,
        eps: p.eps,
        given: i32::from(given),
    };
    cuda.launch(&FORWARD, grid(rows), &params);
}

pub(super) fn backward(cuda: &mut Cuda, p: &RmsNorm, x: Region, rstd: Region, dy: Region, dx: Region) {
    let rows = x.len / p.dim;
    let params = RmsNormBackward {
        dx: cuda.address(dx),
        x: cuda.address(x),
        dy: cuda.address(dy),
        rstd: cuda.address(rstd),
        weight: cuda.address(p.weight),
        rows: rows as i32,
        dim: p.dim as i32,
    };
    cuda.launch(&BACKWARD, grid(rows), &params);
}
