//! Devices: memory, streams, launches. A device knows no model; the operations in `ops` are its users.

pub mod arena;
pub mod cpu;
pub mod matrix;

pub use arena::{Planner, Purpose, Region, Storage};
pub use cpu::Cpu;
pub use matrix::Matrix;

/// Where operations run.
pub enum Device {
    /// Rayon threads and SIMD, f32 arithmetic: the embedded default and the reference.
    Cpu(Cpu),
}
