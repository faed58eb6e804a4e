//! Places of the activations: what each layer keeps for its backward pass, what the layers share, and what a decoder keeps
//! of its sequences.
//!
//! Blocks take turns with one workspace, each from its beginning on, so that it is as large as the largest block needs.
//! The same holds for what a layer keeps where it is computed again before its backward pass, or has none. So blocks are
//! asked for their buffers twice: first to learn these sizes, then for places.

use super::block::Pass;
use crate::config::Recompute;
use crate::device::{Device, Planner, Purpose, Region, Storage};
use crate::ops::rows;

/// What passes are planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passes {
    /// Forward and backward over micro-batches of so many tokens, with layers before `first` never passed backward.
    Training { tokens: usize, recompute: Recompute, first: usize },
    /// Forward over micro-batches of so many tokens: losses alone.
    Evaluation { tokens: usize },
    /// Forward over prompts of `rows` tokens together; then one token of each of `slots` sequences at a time.
    Decoding { rows: usize, slots: usize, capacity: usize },
}

/// Pieces of it begin on this many elements: 256 bytes of the smallest.
const PIECE: usize = 128;

/// A region that is shared by turns.
#[derive(Clone, Copy, Default)]
struct Area {
    region: Option<Region>,
    used: usize,
    most: usize,
}

impl Area {
    fn take(&mut self, storage: Storage, len: usize) -> Region {
        let start = self.used;
        self.used += len.next_multiple_of(PIECE);
        self.most = self.most.max(self.used);
        match self.region {
            Some(region) => region.slice(start, len),
            None => Region { storage, start, len },
        }
    }
}

/// An area for each type of elements.
#[derive(Clone, Copy, Default)]
struct Areas {
    activation: Area,
    f32: Area,
}

impl Areas {
    fn take(&mut self, storage: Storage, len: usize) -> Region {
        match storage {
            Storage::Activation => self.activation.take(storage, len),
            Storage::F32 | Storage::Kept | Storage::Copy | Storage::Integer => {
                assert_eq!(storage, Storage::F32, "only activations and f32 are shared");
                self.f32.take(storage, len)
            }
        }
    }

    fn turn(&mut self) {
        (self.activation.used, self.f32.used) = (0, 0);
    }

    fn plan(&mut self, planner: &mut Planner, purpose: Purpose) {
        let mut place = |area: &mut Area, storage| {
            area.region = Some(planner.region(purpose, storage, area.most));
            area.used = 0;
        };
        place(&mut self.activation, Storage::Activation);
        place(&mut self.f32, Storage::F32);
    }
}

/// What a layer computes, and keeps from its forward to its backward pass in the type that the device keeps.
#[derive(Clone, Copy, Default)]
pub(super) struct Saved {
    /// Computed and read here; whoever computes it rounds it to what is kept.
    pub values: Region,
    /// Where it waits, if not there.
    copy: Option<Region>,
    width: usize,
}

impl Saved {
    /// Ends its computation.
    pub fn save(&self, dev: &mut Device, pass: &Pass<'_>) {
        if let Some(copy) = self.copy {
            rows::copy(dev, pass.rows(self.values, self.width), pass.rows(copy, self.width));
        }
    }

    /// Begins its use in a backward pass.
    pub fn restore(&self, dev: &mut Device, pass: &Pass<'_>) {
        if let Some(copy) = self.copy {
            rows::copy(dev, pass.rows(copy, self.width), pass.rows(self.values, self.width));
        }
    }
}

/// Gives places to blocks; see the top of this file.
pub(super) struct Buffers<'a> {
    planner: &'a mut Planner,
    passes: Passes,
    measuring: bool,
    layer: usize,
    /// By turns of blocks.
    work: Areas,
    /// By turns of layers.
    transient: Areas,
}

impl<'a> Buffers<'a> {
    /// Calls `ask`, which asks for all buffers of a pass, to learn the sizes of what is shared; then again for the places.
    pub fn plan(planner: &'a mut Planner, passes: Passes, mut ask: impl FnMut(&mut Buffers<'_>)) {
        let (work, transient) = (Areas::default(), Areas::default());
        let mut buffers = Buffers { planner, passes, measuring: true, layer: 0, work, transient };
        ask(&mut buffers);
        buffers.measuring = false;
        buffers.transient.plan(buffers.planner, Purpose::SavedActivations);
        buffers.work.plan(buffers.planner, Purpose::Workspace);
        ask(&mut buffers);
    }

    pub fn planner(&self) -> &Planner {
        self.planner
    }

    /// Begins the layer of that number.
    pub fn begin_layer(&mut self, layer: usize) {
        self.layer = layer;
        self.transient.turn();
    }

    /// Begins a block: its workspace is no other's.
    pub fn begin_block(&mut self) {
        self.work.turn();
    }

    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// Token rows.
    pub fn rows(&self) -> usize {
        match self.passes {
            Passes::Training { tokens, .. } | Passes::Evaluation { tokens } => tokens,
            Passes::Decoding { rows, .. } => rows,
        }
    }

    /// Whether a backward pass is planned.
    pub fn trains(&self) -> bool {
        matches!(self.passes, Passes::Training { .. })
    }

    /// [rows, width], which no other buffer shares.
    pub fn own(&mut self, purpose: Purpose, storage: Storage, width: usize) -> Region {
        let len = self.rows() * width;
        self.own_len(purpose, storage, len)
    }

    /// The same for any length.
    pub fn own_len(&mut self, purpose: Purpose, storage: Storage, len: usize) -> Region {
        if self.measuring {
            return Region { storage, start: 0, len };
        }
        self.planner.region(purpose, storage, len)
    }

    /// [rows, width], kept from the layer's forward to its backward pass.
    pub fn kept(&mut self, storage: Storage, width: usize) -> Region {
        let keeps = self.keeps(&[Recompute::Full]);
        self.kept_if(keeps, storage, width)
    }

    /// Activations that are kept in the type that the device keeps.
    pub fn saved(&mut self, width: usize) -> Saved {
        let keeps = self.keeps(&[Recompute::Full]);
        self.saved_if(keeps, width)
    }

    /// As [`Buffers::saved`], of an MLP: computed again before the backward pass where that is asked for.
    pub fn saved_of_mlp(&mut self, width: usize) -> Saved {
        let keeps = self.keeps(&[Recompute::Full, Recompute::Mlp]);
        self.saved_if(keeps, width)
    }

    fn saved_if(&mut self, keeps: bool, width: usize) -> Saved {
        let device = self.planner.capabilities();
        if !keeps || device.kept == device.activation {
            return Saved { values: self.kept_if(keeps, Storage::Activation, width), copy: None, width };
        }
        let copy = self.own(Purpose::SavedActivations, Storage::Kept, width);
        Saved { values: self.work(Storage::Activation, width), copy: Some(copy), width }
    }

    /// Whether a backward pass reaches the layer, under a policy that is none of `again`.
    fn keeps(&self, again: &[Recompute]) -> bool {
        let computes =
            matches!(self.passes, Passes::Training { recompute, .. } if again.contains(&recompute));
        !computes && self.goes_back_to(self.layer)
    }

    /// Whether a backward pass reaches the layer of that number; the head counts as one.
    pub fn goes_back_to(&self, layer: usize) -> bool {
        matches!(self.passes, Passes::Training { first, .. } if layer >= first)
    }

    fn kept_if(&mut self, keeps: bool, storage: Storage, width: usize) -> Region {
        if keeps {
            return self.own(Purpose::SavedActivations, storage, width);
        }
        self.transient.take(storage, self.rows() * width)
    }

    /// [rows, width] within the block's forward or its backward pass.
    pub fn work(&mut self, storage: Storage, width: usize) -> Region {
        self.work.take(storage, self.rows() * width)
    }

    /// The same for any length.
    pub fn work_len(&mut self, storage: Storage, len: usize) -> Region {
        self.work.take(storage, len)
    }

    /// As [`Buffers::work`], within a backward pass; nothing where there is none.
    pub fn gradient(&mut self, storage: Storage, width: usize) -> Region {
        let width = if self.trains() { width } else { 0 };
        self.work(storage, width)
    }

    /// What a decoder keeps of each token, [slots · capacity, width] activations; nothing for other passes.
    pub fn cache(&mut self, width: usize) -> Option<Region> {
        let Passes::Decoding { slots, capacity, .. } = self.passes else { return None };
        Some(self.own_len(Purpose::SavedActivations, Storage::Activation, slots * capacity * width))
    }
}
