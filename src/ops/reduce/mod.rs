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

/// Sums of f32 values in f64, in a fixed order: several are begun one after the other, and read at once.
pub struct Sums {
    /// On a device that queues work: a sum for each chunk, [`Sums::chunks`] to each of the sums.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "devices that queue are left out"))]
    region: Region,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "devices that queue are left out"))]
    chunks: usize,
    /// Elements of each sum begun on such a device.
    begun: Vec<usize>,
    /// The sums, on a device that does not queue.
    done: Vec<f64>,
}

impl Sums {
    /// Plans up to `most` sums of up to `longest` elements.
    pub fn plan(planner: &mut Planner, most: usize, longest: usize) -> Self {
        let chunks = longest.div_ceil(CHUNK);
        let words = if planner.capabilities().queued { 2 * most * chunks } else { 0 };
        let region = planner.region(Purpose::Workspace, Storage::F32, words);
        Sums { region, chunks, begun: Vec::new(), done: Vec::new() }
    }

    /// Forgets all sums.
    pub fn clear(&mut self) {
        self.begun.clear();
        self.done.clear();
    }

    /// Queues or does the sum of `x`.
    ///
    /// # Panics
    /// When `x` is longer, or there are more sums, than was planned.
    pub fn add(&mut self, dev: &mut Device, x: Region) {
        match dev {
            Device::Cpu(cpu) => self.done.push(cpu.read(x).iter().fold(0.0, |sum, v| sum + f64::from(*v))),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let first = 2 * self.chunks * self.begun.len();
                cuda::sum(cuda, x, self.region.slice(first, 2 * x.len.div_ceil(CHUNK)));
                self.begun.push(x.len);
            }
        }
    }

    /// All sums, in the order they were begun.
    ///
    /// # Errors
    /// When the device failed, also in work that was queued before.
    pub fn read(&self, dev: &mut Device) -> Result<Vec<f64>> {
        match dev {
            Device::Cpu(_) => Ok(self.done.clone()),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let used = self.region.slice(0, 2 * self.chunks * self.begun.len());
                let sums = cuda::read_sums(cuda, used)?;
                let begun = self.begun.iter().zip(sums.chunks(self.chunks));
                Ok(begun.map(|(len, sums)| sums[..len.div_ceil(CHUNK)].iter().sum()).collect())
            }
        }
    }
}
