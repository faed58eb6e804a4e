//! The CPU device: one f32 arena, a rayon pool, matrix products by vector instructions. The same bits for any number of threads and
//! for every instruction set it knows.

mod buffer;
pub mod isa;
mod kernel;
pub mod lanes;
pub mod math;
pub mod matmul;
mod pack;
mod simd;
pub mod tasks;
mod thin;
pub mod tile;

pub use isa::Isa;
pub use kernel::{Arithmetic, BLOCK};
pub use matmul::Engine;

use super::{Capabilities, Planner, Region};
use crate::element::Element;
use crate::error::Result;
use crate::sys;
use buffer::Buffer;

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
    arena: Buffer,
    packed: Buffer,
    /// Copied regions that were not asked for yet.
    copied: Option<[Vec<f32>; 3]>,
    pool: rayon::ThreadPool,
    /// Rounding of stored activations.
    pub rounding: Rounding,
    /// Instruction set in use; all give the same bits.
    pub isa: Isa,
    /// Arithmetic of products with frozen weights.
    pub arithmetic: Arithmetic,
}

impl Cpu {
    /// f32 throughout, over what the host has in memory.
    pub const CAPABILITIES: &'static Capabilities = &Capabilities {
        kind: "cpu",
        activation: Element::F32,
        own_memory: false,
        queued: false,
        sums_in_parts: false,
        head_sizes: None,
        row_multiple: 1,
        logits: 1 << 25,
    };

    /// Allocates the planned arena, zeroed, and a pool of `threads` (`None`: all cores).
    ///
    /// # Errors
    /// When the pool or the memory cannot be had.
    pub fn new(plan: &Planner, threads: Option<usize>) -> Result<Self> {
        let pool = sys::pool(threads)?;
        Ok(Cpu {
            arena: Buffer::zeroed(plan.bytes() / size_of::<f32>()),
            packed: Buffer::zeroed(0),
            copied: None,
            pool,
            rounding: Rounding::None,
            isa: Isa::best(),
            arithmetic: Arithmetic::F32,
        })
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

    /// Several regions at once: `reads` shared, `writes` exclusive, with the pool to work in.
    ///
    /// # Panics
    /// When a written region overlaps any other, or one lies outside the arena.
    pub fn split<const R: usize, const W: usize>(
        &mut self,
        reads: [Region; R],
        writes: [Region; W],
    ) -> (&rayon::ThreadPool, [&[f32]; R], [&mut [f32]; W]) {
        self.check(&reads, &writes);
        let base = self.arena.as_mut_ptr();
        // SAFETY: all regions are inside the arena, which `&mut self` borrows exclusively for the lifetime of
        // the results; written regions overlap nothing (both as `check` asserts).
        let shared =
            reads.map(|r| unsafe { std::slice::from_raw_parts(base.add(r.start).cast_const(), r.len) });
        // SAFETY: as above.
        let exclusive = writes.map(|r| unsafe { std::slice::from_raw_parts_mut(base.add(r.start), r.len) });
        (&self.pool, shared, exclusive)
    }

    /// As [`Cpu::split`] for any number of regions, with what matrix products need.
    ///
    /// # Panics
    /// When a written region overlaps any other, or one lies outside the arena.
    pub fn engine(
        &mut self,
        reads: &[Region],
        writes: &[Region],
    ) -> (Engine<'_>, Vec<&[f32]>, Vec<&mut [f32]>) {
        self.check(reads, writes);
        let base = self.arena.as_mut_ptr();
        // SAFETY: as in `split`.
        let shared = reads
            .iter()
            .map(|r| unsafe { std::slice::from_raw_parts(base.add(r.start).cast_const(), r.len) });
        // SAFETY: as in `split`.
        let exclusive =
            writes.iter().map(|r| unsafe { std::slice::from_raw_parts_mut(base.add(r.start), r.len) });
        (
            Engine { pool: &self.pool, isa: self.isa, arithmetic: self.arithmetic, packed: &mut self.packed },
            shared.collect(),
            exclusive.collect(),
        )
    }

    /// Copies `regions` into the memory of `into`, whose content is lost.
    pub(super) fn begin_copy(&mut self, regions: [Region; 3], mut into: [Vec<f32>; 3]) {
        assert!(self.copied.is_none(), "one copy at a time");
        for (region, out) in regions.into_iter().zip(&mut into) {
            out.clear();
            out.extend_from_slice(self.read(region));
        }
        self.copied = Some(into);
    }

    pub(super) fn end_copy(&mut self) -> [Vec<f32>; 3] {
        self.copied.take().expect("a copy that was begun")
    }

    /// Rounds stored activations, where that is asked for.
    pub fn round(&mut self, region: Region) {
        if self.rounding == Rounding::Bf16 {
            for v in self.write(region) {
                *v = half::bf16::from_f32(*v).to_f32();
            }
        }
    }

    fn check(&self, reads: &[Region], writes: &[Region]) {
        let inside = |r: &Region| r.start.checked_add(r.len).is_some_and(|end| end <= self.arena.len());
        let apart = |a: &Region, b: &Region| {
            a.len == 0 || b.len == 0 || a.start + a.len <= b.start || b.start + b.len <= a.start
        };
        assert!(reads.iter().chain(writes).all(inside), "region outside the arena");
        for (i, w) in writes.iter().enumerate() {
            assert!(
                reads.iter().chain(&writes[i + 1..]).all(|r| apart(w, r)),
                "written region overlaps another"
            );
        }
    }
}
