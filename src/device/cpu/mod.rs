//! The CPU device: one f32 arena, a rayon pool, SIMD matmul. The same bits for any number of threads and
//! for every instruction set it knows.

use super::{Planner, Region};

/// Where activations are rounded to bf16, for comparing with a bf16 device. Tests only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// f32 throughout.
    None,
    /// Every activation an operation stores is rounded to bf16, as the CUDA kernels store it.
    Bf16,
}

/// The CPU device.
pub struct Cpu {
    arena: Vec<f32>,
    #[allow(dead_code)]
    pool: rayon::ThreadPool,
    /// Rounding of stored activations.
    pub rounding: Rounding,
}

impl Cpu {
    /// Allocates the planned arena, zeroed, and a pool of `threads` (`None`: all cores).
    ///
    /// # Errors
    /// When the pool or the memory cannot be had.
    pub fn new(plan: &Planner, threads: Option<usize>) -> crate::error::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .build()
            .map_err(|e| crate::error::Error::device(format!("cannot start threads: {e}")))?;
        Ok(Cpu { arena: vec![0.0; plan.elements()], pool, rounding: Rounding::None })
    }

    /// The elements of `region`.
    #[must_use]
    pub fn read(&self, region: Region) -> &[f32] {
        &self.arena[region.start..region.start + region.len]
    }

    /// The elements of `region`, to be written.
    pub fn write(&mut self, region: Region) -> &mut [f32] {
        &mut self.arena[region.start..region.start + region.len]
    }
}
