//! Moved rows on CUDA: `kernels/op/rows.cu`.

use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Family, Launch};
use crate::device::{Indices, Region};

/// The kernels.
pub const FAMILY: Family = Family { image: "rows", kernels: &["rows_gather", "rows_scatter"] };

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

fn run(cuda: &mut Cuda, kernel: &str, x: Region, index: Indices<'_>, width: usize, out: Region) {
    let params = RowsParams {
        out: cuda.address(out),
        x: cuda.address(x),
        index: cuda.address(index.copy),
        rows: index.len() as i32,
        width: width as i32,
    };
    let blocks = (index.len() * width / 8).div_ceil(256) as u32;
    cuda.launch(kernel, Launch { grid: [blocks, 1, 1], threads: 256, shared_bytes: 0 }, &params);
}

/// `out[i] = x[index[i]]`; also of a frozen matrix's copy.
pub(in super::super) fn gather(cuda: &mut Cuda, x: Region, index: Indices<'_>, width: usize, out: Region) {
    run(cuda, "rows_gather", x, index, width, out);
}

pub(super) fn scatter(cuda: &mut Cuda, x: Region, index: Indices<'_>, width: usize, out: Region) {
    run(cuda, "rows_scatter", x, index, width, out);
}
