//! Reductions with a fixed order.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Planner, Purpose, Region, Storage};
use crate::error::Result;

/// Elements that are summed on their own: part of the order of the sum, so never changed lightly.
const CHUNK: usize = 16 * 1024;

/// What [`sum_of_squares`] of `len` elements needs beside them.
pub fn plan(planner: &mut Planner, len: usize) -> Region {
    let words = if planner.capabilities().sums_in_parts { 2 * len.div_ceil(CHUNK) } else { 0 };
    planner.region(Purpose::Workspace, Storage::F32, words)
}

/// Sum of squares of `x` in f64: fixed chunks, fixed tree. Not finite when any element is not. `scratch` is as [`plan`]
/// made it for as many elements or more.
///
/// # Errors
/// When the device failed.
pub fn sum_of_squares(dev: &mut Device, x: Region, scratch: Region) -> Result<f64> {
    match dev {
        Device::Cpu(cpu) => {
            let _ = scratch;
            Ok(cpu::sum_of_squares(cpu, x))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::sum_of_squares(cuda, x, scratch),
    }
}
