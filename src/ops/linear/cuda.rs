//! The matrix products on CUDA: `kernels/op/linear.cu`.

use crate::device::cuda::driver::Launch;
use crate::device::cuda::parameters::parameters;

parameters! {
    /// One product of a sum; strides and depth in elements, multiples of 8.
    pub struct Term {
        /// Address of A, `[rows, depth]`.
        pub a: u64,
        /// Address of B: `[columns, depth]` (NT) or `[depth, columns]` (NN).
        pub b: u64,
        /// Elements from a row of A to the next.
        pub a_stride: i32,
        /// Elements from a row of B to the next.
        pub b_stride: i32,
        /// Inner dimension.
        pub depth: i32,
        /// Zero.
        pub reserved: i32,
    }
}

parameters! {
    /// One output: a range of columns of the result.
    pub struct Output {
        /// Address of f32 `[columns]`, or 0.
        pub bias: u64,
        /// First term.
        pub first: i32,
        /// Number of terms.
        pub count: i32,
        /// Columns, a multiple of 8.
        pub columns: i32,
        /// First column in the result's rows.
        pub column: i32,
        /// Factor of the sum.
        pub scale: f32,
        /// Zero.
        pub reserved: i32,
    }
}

/// Outputs of a launch.
pub const MAX_OUTPUTS: usize = 3;
/// Terms of a launch.
pub const MAX_TERMS: usize = 8;

parameters! {
    /// A launch of `linear_nt_*` or `linear_nn_*`.
    pub struct LinearParams {
        /// All outputs' terms.
        pub terms: [Term; MAX_TERMS],
        /// The outputs.
        pub outputs: [Output; MAX_OUTPUTS],
        /// Address of the result [rows, stride], bf16 or f32.
        pub y: u64,
        /// Address of what is added, bf16 [rows, stride], or 0.
        pub residual: u64,
        /// Token rows.
        pub rows: i32,
        /// Elements of a row of the result.
        pub stride: i32,
        /// Whether the result is f32.
        pub wide: i32,
        /// The term before which the sum is masked by the dropout; beyond the count: never.
        pub pause: i32,
        /// Random words below it drop their element.
        pub limit: u32,
        /// Factor of the elements that stay.
        pub keep: f32,
        /// Key of the mask.
        pub key: [u32; 2],
        /// Upper counter words of the mask.
        pub counter: [u32; 3],
        /// Zero.
        pub reserved: i32,
    }
}

/// Which way B lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// [columns, depth].
    Nt,
    /// [depth, columns].
    Nn,
}

const ROWS: u32 = 128;
const STAGES: u32 = 4;
const SLICE_BYTES: u32 = 64;

/// Kernel and shape of a launch with outputs of at most `columns` columns. A function of the shape alone: wide tiles
/// read less, narrow ones waste less where there is not even one wide tile.
#[must_use]
pub fn kernel(right: Right, rows: usize, columns: usize, outputs: usize) -> (&'static str, Launch) {
    let tile: u32 = if columns >= 256 { 256 } else { 128 };
    let name = match (right, tile) {
        (Right::Nt, 128) => "linear_nt_128",
        (Right::Nt, _) => "linear_nt_256",
        (Right::Nn, 128) => "linear_nn_128",
        (Right::Nn, _) => "linear_nn_256",
    };
    let grid = [(columns as u32).div_ceil(tile), (rows as u32).div_ceil(ROWS), outputs as u32];
    (name, Launch { grid, threads: 256, shared_bytes: STAGES * SLICE_BYTES * (ROWS + tile) })
}
