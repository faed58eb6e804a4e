//! Sums on CUDA: `kernels/op/reduce.cu`.

use super::CHUNK;
use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Kernel, Kernels};
use crate::error::Result;

/// The kernels.
pub const KERNELS: Kernels = Kernels { kernels: &[&SUM], shared: &[("reduce", "CHUNK", CHUNK)] };

static SUM: Kernel<SumParams> = Kernel::new("reduce", "sum_of_squares", 256, 64);

parameters! {
    /// A launch of `sum_of_squares`.
    pub struct SumParams {
        /// Address of the sums, f64, one for each chunk of 16384 elements.
        pub sums: u64,
        /// Address of the elements, f32.
        pub x: u64,
        /// Number of elements.
        pub count: u64,
    }
}

pub(super) fn sum_of_squares(cuda: &mut Cuda, x: Region, scratch: Region) -> Result<f64> {
    let chunks = x.len.div_ceil(CHUNK);
    let sums = scratch.slice(0, 2 * chunks);
    let params = SumParams { sums: cuda.address(sums), x: cuda.address(x), count: x.len as u64 };
    cuda.launch(&SUM, [chunks as u32, 1, 1], &params);
    let bytes = cuda.read_bytes(sums)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).sum())
}
