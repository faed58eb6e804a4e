//! Reductions with a fixed order.

pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use crate::device::{Device, Planner, Purpose, Region, Storage, Target};
use crate::error::Result;

/// Elements that are summed on their own: part of the order of the sum, so never changed lightly.
const CHUNK: usize = 16 * 1024;

/// What [`sum_of_squares`] of `len` elements needs beside them.
pub fn plan(planner: &mut Planner, len: usize) -> Region {
    let words = if planner.target() == Target::Cpu { 0 } else { 2 * len.div_ceil(CHUNK) };
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

/// Sums of f32 values in f64, first to last: the order is part of the result. Several are taken one after the other and read
/// at once.
pub struct Sums {
    sums: Vec<f64>,
}

impl Sums {
    /// For up to `most` sums. Nothing is allocated on the device yet.
    pub fn plan(planner: &mut Planner, most: usize) -> Self {
        let _ = planner;
        Sums { sums: Vec::with_capacity(most) }
    }

    /// Forgets all sums.
    pub fn clear(&mut self) {
        self.sums.clear();
    }

    /// Queues or does one more sum, that of `x`.
    ///
    /// # Errors
    /// When the device failed.
    pub fn add(&mut self, dev: &mut Device, x: Region) -> Result<()> {
        let values = dev.read(x)?;
        self.sums.push(values.iter().fold(0.0, |sum, x| sum + f64::from(*x)));
        Ok(())
    }

    /// All sums, in order.
    ///
    /// # Errors
    /// When the device failed, also in work that was queued before.
    pub fn read(&mut self, dev: &mut Device) -> Result<Vec<f64>> {
        let _ = dev;
        Ok(self.sums.clone())
    }
}
