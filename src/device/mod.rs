//! Devices: memory, streams, launches. A device knows no model; the operations in `ops` are its users.

pub mod arena;
mod capabilities;
mod choice;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod indices;
pub mod matrix;

pub use arena::{Planner, Purpose, Region, Storage};
pub use capabilities::Capabilities;
pub use choice::{Chosen, Devices, OnCpu};
pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use indices::Indices;
pub use matrix::Matrix;

use crate::error::Result;

/// Where operations run. Those of a GPU are queued: what fails is told by the next call that waits, which is every one
/// that returns a [`Result`].
pub enum Device {
    /// Rayon threads and SIMD, f32 arithmetic: the embedded default and the reference.
    Cpu(Cpu),
    /// A GPU, bf16 with f32 sums.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
}

/// Work that comes again: the same name and shape mean the same launches with the same operands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recording {
    /// What is done.
    pub what: &'static str,
    /// Everything that decides which launches it takes.
    pub shape: Vec<usize>,
}

impl Device {
    /// What it can.
    #[must_use]
    pub fn capabilities(&self) -> &'static Capabilities {
        match self {
            Device::Cpu(cpu) => cpu.capabilities(),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => Cuda::CAPABILITIES,
        }
    }

    /// Copies `values` to `region`, rounded where it holds bf16.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn write(&mut self, region: Region, values: &[f32]) -> Result<()> {
        match self {
            Device::Cpu(cpu) => cpu.put(region, values),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.write(region, values)?,
        }
        Ok(())
    }

    /// Appends the elements of `region` to `out`.
    ///
    /// # Errors
    /// When the device failed, also in work that was queued before.
    pub fn read_into(&mut self, region: Region, out: &mut Vec<f32>) -> Result<()> {
        match self {
            Device::Cpu(cpu) => cpu.get(region, out),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.read_into(region, out)?,
        }
        Ok(())
    }

    /// The elements of `region`.
    ///
    /// # Errors
    /// As [`Device::read_into`].
    pub fn read(&mut self, region: Region) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(region.len);
        self.read_into(region, &mut out)?;
        Ok(out)
    }

    /// Starts copying `regions` (f32), as they are after all work queued so far, into the memory of `into`. Work that is
    /// queued from now on may run beside it; what would change a region waits by itself.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When a copy is under way.
    pub fn begin_copy(&mut self, regions: [Region; 3], into: [Vec<f32>; 3]) -> Result<()> {
        match self {
            Device::Cpu(cpu) => {
                cpu.begin_copy(regions, into);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.begin_copy(regions, into),
        }
    }

    /// Waits for the copy that was begun.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When none was begun.
    pub fn end_copy(&mut self) -> Result<[Vec<f32>; 3]> {
        match self {
            Device::Cpu(cpu) => Ok(cpu.end_copy()),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.end_copy(),
        }
    }

    /// Makes the integers of `lists` known to the device, which lays its copies one after the other into `region`.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn place<'a, const N: usize>(
        &mut self,
        region: Region,
        lists: [&'a [u32]; N],
    ) -> Result<[Indices<'a>; N]> {
        let total: usize = lists.iter().map(|l| l.len()).sum();
        assert!(total <= region.len, "{total} integers for a region of {}", region.len);
        let mut first = 0;
        let places = lists.map(|values| {
            first += values.len();
            Indices { values, copy: region.slice(first - values.len(), values.len()) }
        });
        match self {
            Device::Cpu(_) => {}
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.write_integers(region.slice(0, total), &lists.concat())?,
        }
        Ok(places)
    }

    /// Copies a frozen matrix to its place; nothing on a device that reads the host's.
    ///
    /// # Errors
    /// When the device failed.
    pub fn upload(&mut self, matrix: &Matrix) -> Result<()> {
        match self {
            Device::Cpu(_) => {
                let _ = matrix;
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.upload(matrix),
        }
    }

    /// Does `work`. A GPU records its launches the second time it is asked for the same, and from then on repeats them
    /// as one CUDA graph: the same launches, so the same bits. What differs between two times must be in device memory.
    /// Where no graph can be made, `work` is called again, as nothing was done while it was recorded.
    pub fn repeat(&mut self, recording: Recording, mut work: impl FnMut(&mut Device)) {
        match self {
            Device::Cpu(_) => {
                drop(recording);
                work(self);
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => match cuda.begin_recording(recording) {
                cuda::Recorded::Direct => work(self),
                cuda::Recorded::Replayed => {}
                cuda::Recorded::Begun(recording) => {
                    work(self);
                    let done = match self {
                        Device::Cuda(cuda) => cuda.end_recording(recording),
                        Device::Cpu(_) => true,
                    };
                    if !done {
                        work(self);
                    }
                }
            },
        }
    }

    /// Begins to measure the time of the work that is queued from now on.
    ///
    /// # Errors
    /// When the device failed.
    pub fn begin_timing(&mut self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.begin_timing(),
        }
    }

    /// Waits for that work, and gives its seconds; `None` where it was done when the calls returned, whose time the caller
    /// knows.
    ///
    /// # Errors
    /// When the device failed.
    pub fn end_timing(&mut self) -> Result<Option<f64>> {
        match self {
            Device::Cpu(_) => Ok(None),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.end_timing().map(Some),
        }
    }

    /// Whether work that comes again is recorded; the bits are the same.
    pub fn record(&mut self, yes: bool) {
        match self {
            Device::Cpu(_) => {
                let _ = yes;
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => cuda.graphs = yes,
        }
    }

    /// The CPU device, where it is one.
    pub fn cpu_mut(&mut self) -> Option<&mut Cpu> {
        match self {
            Device::Cpu(cpu) => Some(cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => None,
        }
    }
}
