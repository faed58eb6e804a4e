//! The CPU device: one f32 arena, a rayon pool, matrix products by vector instructions. The same bits for any number of threads and
//! for every instruction set it knows.

mod buffer;
pub mod isa;
pub mod kept;
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

use super::{Capabilities, Planner, Region, Storage};
use crate::element::Element;
use crate::error::Result;
use buffer::Buffer;
use tasks::Threads;

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
    threads: Threads,
    capabilities: &'static Capabilities,
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
        kept: Element::F32,
        own_memory: false,
        queued: false,
        sums_in_parts: false,
        head_sizes: None,
        row_multiple: 1,
        logits: 1 << 25,
    };

    /// With [`Arithmetic::Bf16`]: what layers keep for the backward pass is rounded.
    const WITH_BF16: &'static Capabilities = &Capabilities { kept: Element::Bf16, ..*Self::CAPABILITIES };

    /// What it can in an arithmetic.
    #[must_use]
    pub const fn capabilities_in(arithmetic: Arithmetic) -> &'static Capabilities {
        match arithmetic {
            Arithmetic::F32 => Self::CAPABILITIES,
            Arithmetic::Bf16 => Self::WITH_BF16,
        }
    }

    /// Allocates the planned arena, zeroed, and `threads` (`None`: one for each core). Products are in f32, whatever is kept.
    ///
    /// # Errors
    /// When the pool or the memory cannot be had.
    pub fn new(plan: &Planner, threads: Option<usize>) -> Result<Self> {
        let threads = Threads::new(threads)?;
        Ok(Cpu {
            arena: Buffer::zeroed(plan.bytes() / size_of::<f32>()),
            packed: Buffer::zeroed(0),
            copied: None,
            threads,
            capabilities: plan.capabilities(),
            rounding: Rounding::None,
            isa: Isa::best(),
            arithmetic: Arithmetic::F32,
        })
    }

    /// What it can, as it was planned for.
    #[must_use]
    pub fn capabilities(&self) -> &'static Capabilities {
        self.capabilities
    }

    /// Its threads.
    #[must_use]
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Whether what layers keep is rounded to bf16.
    pub(crate) fn keeps_bf16(&self) -> bool {
        self.capabilities.kept == Element::Bf16
    }

    /// A region of [`Storage::Kept`] as f32, of which each is a pair of bf16 where the device keeps those.
    #[must_use]
    pub fn words(&self, kept: Region) -> Region {
        assert_eq!(kept.storage, Storage::Kept, "a region of what is kept");
        let (start, len) = match self.keeps_bf16() {
            true => (kept.start / 2, kept.len.div_ceil(2)),
            false => (kept.start, kept.len),
        };
        Region { storage: Storage::F32, start, len }
    }

    /// The elements of `region`.
    #[must_use]
    pub fn read(&self, region: Region) -> &[f32] {
        assert_ne!(region.storage, Storage::Kept, "read as words");
        &self.arena[region.start..region.start + region.len]
    }

    /// The elements of `region`, to be written.
    pub fn write(&mut self, region: Region) -> &mut [f32] {
        assert_ne!(region.storage, Storage::Kept, "written as words");
        &mut self.arena[region.start..region.start + region.len]
    }

    /// Copies `values` to a region of any storage.
    pub(super) fn put(&mut self, region: Region, values: &[f32]) {
        assert_eq!(region.len, values.len(), "as many values as elements");
        if region.storage != Storage::Kept {
            return self.write(region).copy_from_slice(values);
        }
        let words = self.words(region);
        kept::store(self.keeps_bf16(), values, self.write(words));
    }

    /// Appends the elements of a region of any storage.
    pub(super) fn get(&self, region: Region, out: &mut Vec<f32>) {
        if region.storage != Storage::Kept {
            return out.extend_from_slice(self.read(region));
        }
        let first = out.len();
        out.resize(first + region.len, 0.0);
        kept::load(self.keeps_bf16(), self.read(self.words(region)), &mut out[first..]);
    }

    /// Several regions at once: `reads` shared, `writes` exclusive, with the threads to work on.
    ///
    /// # Panics
    /// When a written region overlaps any other, or one lies outside the arena.
    pub fn split<const R: usize, const W: usize>(
        &mut self,
        reads: [Region; R],
        writes: [Region; W],
    ) -> (&Threads, [&[f32]; R], [&mut [f32]; W]) {
        self.check(&reads, &writes);
        let base = self.arena.as_mut_ptr();
        // SAFETY: all regions are inside the arena, which `&mut self` borrows exclusively for the lifetime of
        // the results; written regions overlap nothing (both as `check` asserts).
        let shared =
            reads.map(|r| unsafe { std::slice::from_raw_parts(base.add(r.start).cast_const(), r.len) });
        // SAFETY: as above.
        let exclusive = writes.map(|r| unsafe { std::slice::from_raw_parts_mut(base.add(r.start), r.len) });
        (&self.threads, shared, exclusive)
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
            Engine {
                threads: &self.threads,
                isa: self.isa,
                arithmetic: self.arithmetic,
                packed: &mut self.packed,
            },
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
                *v = math::bf16(*v);
            }
        }
    }

    fn check(&self, reads: &[Region], writes: &[Region]) {
        let inside = |r: &Region| {
            let end = r.start.checked_add(r.len).filter(|_| r.storage != Storage::Kept);
            end.is_some_and(|end| end <= self.arena.len())
        };
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
