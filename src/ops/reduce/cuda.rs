//! Sums on CUDA: `kernels/op/reduce.cu`.

use super::CHUNK;
use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};
use crate::error::Result;

/// The kernels.
pub const KERNELS: Kernels =
    Kernels { kernels: &[&SUM_OF_SQUARES, &SUM], shared: &[("reduce", "CHUNK", CHUNK)] };

static SUM_OF_SQUARES: Kernel<SumParams> = Kernel::new("reduce", "sum_of_squares", 256, 64);
static SUM: Kernel<SumParams> = Kernel::new("reduce", "sum", 256, 64);

parameters! {
    /// A launch of `sum_of_squares` or `sum`.
    pub struct SumParams {
        /// Address of the sums, f64, one for each chunk of 16384 elements.
        pub sums: u64,
        /// Address of the elements, f32.
        pub x: u64,
        /// Number of elements.
        pub count: u64,
    }
}

fn launch(cuda: &mut Cuda, kernel: &Kernel<SumParams>, x: Region, sums: Region) {
    let params = SumParams { sums: cuda.address(sums), x: cuda.address(x), count: x.len as u64 };
    let grid = [x.len.div_ceil(CHUNK) as u32, 1, 1];
    cuda.launch(kernel, grid, &params);
}

pub(super) fn sum_of_squares(cuda: &mut Cuda, x: Region, scratch: Region) -> Result<f64> {
    let sums = scratch.slice(0, 2 * x.len.div_ceil(CHUNK));
    launch(cuda, &SUM_OF_SQUARES, x, sums);
    Ok(read_sums(cuda, sums)?.iter().sum())
}

/// Queues the sums of the chunks of `x`.
pub(super) fn sum(cuda: &mut Cuda, x: Region, sums: Region) {
    launch(cuda, &SUM, x, sums);
}

/// The f64 that a region holds.
pub(super) fn read_sums(cuda: &mut Cuda, sums: Region) -> Result<Vec<f64>> {
    let bytes = cuda.read_bytes(sums)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
}
