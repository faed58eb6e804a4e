//! Devices: memory, streams, launches. A device knows no model; the operations in `ops` are its users.

pub mod arena;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod matrix;

pub use arena::{Planner, Purpose, Region, Storage};
pub use cpu::Cpu;
pub use matrix::Matrix;

/// Where operations run.
pub enum Device {
    /// Rayon threads and SIMD, f32 arithmetic: the embedded default and the reference.
    Cpu(Cpu),
}

impl Device {
    /// Copies `values` to `region`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn write(&mut self, region: Region, values: &[f32]) {
        match self {
            Device::Cpu(cpu) => cpu.write(region).copy_from_slice(values),
        }
    }

    /// Appends the elements of `region` to `out`.
    pub fn read_into(&self, region: Region, out: &mut Vec<f32>) {
        match self {
            Device::Cpu(cpu) => out.extend_from_slice(cpu.read(region)),
        }
    }

    /// The elements of `region`.
    #[must_use]
    pub fn read(&self, region: Region) -> Vec<f32> {
        let mut out = Vec::with_capacity(region.len);
        self.read_into(region, &mut out);
        out
    }
}
