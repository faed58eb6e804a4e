//! SwiGLU on CUDA: `kernels/op/swiglu.cu`.

use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};

/// The kernels.
pub const KERNELS: Kernels =
    Kernels { kernels: &[&FORWARD, &BACKWARD], shared: &[("swiglu", "THREADS", THREADS as usize)] };

const THREADS: u32 = 256;

static FORWARD: Kernel<SwigluParams> = Kernel::new("swiglu", "swiglu_forward", THREADS, 0);
static BACKWARD: Kernel<SwigluParams> = Kernel::new("swiglu", "swiglu_backward", THREADS, 0);

parameters! {
    /// A launch of `swiglu_forward` or `swiglu_backward`.
    pub struct SwigluParams {
        /// Address of gate and up side by side, bf16 [rows, 2 width]; replaced by its gradient in the backward pass.
        pub gate_up: u64,
        /// Address of the result, or its gradient, bf16 [rows, width].
        pub out: u64,
        /// Rows.
        pub rows: i32,
        /// Columns of the result, a multiple of 8.
        pub width: i32,
    }
}

fn run(cuda: &mut Cuda, kernel: &Kernel<SwigluParams>, gate_up: Region, width: usize, out: Region) {
    assert_eq!(gate_up.len, 2 * out.len, "gate and up beside each other");
    let rows = out.len / width;
    let params = SwigluParams {
        gate_up: cuda.address(gate_up),
        out: cuda.address(out),
        rows: rows as i32,
        width: width as i32,
    };
    let blocks = (out.len / 8).div_ceil(THREADS as usize) as u32;
    cuda.launch(kernel, [blocks, 1, 1], &params);
}

pub(super) fn forward(cuda: &mut Cuda, gate_up: Region, width: usize, out: Region) {
    run(cuda, &FORWARD, gate_up, width, out);
}

pub(super) fn backward(cuda: &mut Cuda, gate_up: Region, width: usize, dout: Region) {
    run(cuda, &BACKWARD, gate_up, width, dout);
}
