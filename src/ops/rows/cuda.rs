//! Moved rows on CUDA: `kernels/op/rows.cu`.

use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};
use crate::device::{Indices, Region};

/// The kernels.
pub const KERNELS: Kernels =
    Kernels { kernels: &[&GATHER, &SCATTER], shared: &[("rows", "THREADS", THREADS as usize)] };

const THREADS: u32 = 256;

static GATHER: Kernel<RowsParams> = Kernel::new("rows", "rows_gather", THREADS, 0);
static SCATTER: Kernel<RowsParams> = Kernel::new("rows", "rows_scatter", THREADS, 0);

parameters! {
    /// A launch of `rows_gather` or `rows_scatter`.
    pub struct RowsParams {
        /// Address of the written rows, bf16.
        pub out: u64,
        /// Address of the read rows, bf16.
        pub x: u64,
        /// Address of u32 `[rows]`: the row that is read (gather) or written (scatter).
        pub index: u64,
        /// Rows moved.
        pub rows: i32,
        /// Elements of a row, a multiple of 8.
        pub width: i32,
    }
}

fn run(
    cuda: &mut Cuda,
    kernel: &Kernel<RowsParams>,
    x: Region,
    index: Indices<'_>,
    width: usize,
    out: Region,
) {
    let params = RowsParams {
        out: cuda.address(out),
        x: cuda.address(x),
        index: cuda.address(index.copy),
        rows: index.len() as i32,
        width: width as i32,
    };
    let blocks = (index.len() * width / 8).div_ceil(THREADS as usize) as u32;
    cuda.launch(kernel, [blocks, 1, 1], &params);
}

/// `out[i] = x[index[i]]`; also of a frozen matrix's copy.
pub(in crate::ops) fn gather(cuda: &mut Cuda, x: Region, index: Indices<'_>, width: usize, out: Region) {
    run(cuda, &GATHER, x, index, width, out);
}

pub(super) fn scatter(cuda: &mut Cuda, x: Region, index: Indices<'_>, width: usize, out: Region) {
    run(cuda, &SCATTER, x, index, width, out);
}
