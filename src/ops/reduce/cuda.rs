//! Sums on CUDA: `kernels/op/reduce.cu`.

use super::CHUNK;
use crate::device::Region;
use crate::device::cuda::parameters::parameters;
use crate::device::cuda::{Cuda, Family, Launch};
use crate::error::Result;

/// The kernels.
pub const FAMILY: Family = Family { image: "reduce", kernels: &["sum_of_squares"] };

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
    cuda.launch(
        "sum_of_squares",
        Launch { grid: [chunks as u32, 1, 1], threads: 256, shared_bytes: 64 },
        &params,
    );
    let bytes = cuda.read_bytes(sums)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).sum())
}
