//! Linear layers that read one input, with their adapters and the adapters' buffers.

use super::{Pass, site};
use crate::device::{Device, Region, Storage};
use crate::error::Result;
use crate::model::buffers::{Buffers, Saved};
use crate::model::builder::Builder;
use crate::model::spec::LinearSpec;
use crate::ops::linear::{self, Group};

/// A group of linear layers at its place in the model.
pub(super) struct Projection {
    pub group: Group,
    layer: usize,
    site: u32,
    /// The adapters' inner products.
    s: Region,
    shared: SharedBuffers,
}

/// What the projections of a block use one after the other.
#[derive(Clone, Copy, Default)]
pub(super) struct SharedBuffers {
    dropped: Region,
    ds: Region,
    partial: Region,
}

impl SharedBuffers {
    /// For all of these groups.
    pub fn plan(b: &mut Buffers<'_>, groups: &[&Group]) -> Self {
        let most = |f: &dyn Fn(&Group) -> usize| groups.iter().map(|group| f(group)).max().unwrap_or(0);
        let (device, rows) = (b.planner().capabilities(), b.rows());
        let partial = if b.trains() { most(&|group| group.partial_len(device, rows)) } else { 0 };
        SharedBuffers {
            dropped: b.gradient(Storage::Activation, most(&|group| group.input)),
            ds: b.gradient(Storage::Activation, most(&Group::rank_sum)),
            partial: b.work_len(Storage::F32, partial),
        }
    }
}

impl Projection {
    fn new(specs: &[LinearSpec], layer: usize, site: u32, b: &mut Builder<'_>) -> Result<Self> {
        let (s, shared) = (Region::default(), SharedBuffers::default());
        Ok(Projection { group: b.group(specs)?, layer, site, s, shared })
    }

    /// What reads a mixer's normalised input.
    pub fn mixer_input(specs: &[LinearSpec], layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        Self::new(specs, layer, site::MIXER_INPUT, b)
    }

    /// What makes a mixer's output.
    pub fn mixer_output(spec: &LinearSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        Self::new(std::slice::from_ref(spec), layer, site::MIXER_OUTPUT, b)
    }

    /// What reads an MLP's normalised input.
    pub fn mlp_input(specs: &[LinearSpec], layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        Self::new(specs, layer, site::MLP_INPUT, b)
    }

    /// What makes an MLP's output.
    pub fn mlp_output(spec: &LinearSpec, layer: usize, b: &mut Builder<'_>) -> Result<Self> {
        Self::new(std::slice::from_ref(spec), layer, site::MLP_OUTPUT, b)
    }

    pub fn plan(&mut self, b: &mut Buffers<'_>, shared: SharedBuffers) {
        self.s = b.kept(Storage::Activation, self.group.rank_sum());
        self.shared = shared;
    }

    /// `y` of `x`, which the layer keeps.
    pub fn forward(&self, dev: &mut Device, pass: &Pass<'_>, x: Region, y: &Saved) {
        self.compute(dev, pass, x, y.values, None);
        y.save(dev, pass);
    }

    /// `y` of `x`, with `residual` added to it.
    pub fn forward_onto(&self, dev: &mut Device, pass: &Pass<'_>, x: Region, y: Region, residual: Region) {
        self.compute(dev, pass, x, y, Some(residual));
    }

    fn compute(&self, dev: &mut Device, pass: &Pass<'_>, x: Region, y: Region, residual: Option<Region>) {
        let Group { input, output, .. } = self.group;
        let dropout = pass.dropout(self.layer, self.site);
        let forward = linear::Forward {
            x: pass.rows(x, input),
            y: pass.rows(y, output),
            s: pass.rows(self.s, self.group.rank_sum()),
            residual: residual.map(|r| pass.rows(r, output)),
            kept: residual.is_none(),
            dropout,
            scratch: self.scratch(pass),
        };
        linear::forward(dev, &self.group, &forward);
    }

    /// Adds the adapters' gradients, and writes `dx` where it is given.
    pub fn backward(&self, dev: &mut Device, pass: &Pass<'_>, x: Region, dy: Region, dx: Option<Region>) {
        let Group { input, output, .. } = self.group;
        let width = self.group.rank_sum();
        let backward = linear::Backward {
            x: pass.rows(x, input),
            s: pass.rows(self.s, width),
            dy: pass.rows(dy, output),
            ds: pass.rows(self.shared.ds, width),
            dx: dx.map(|r| pass.rows(r, input)),
            dropout: pass.dropout(self.layer, self.site),
            scratch: self.scratch(pass),
            partial: self.shared.partial,
        };
        linear::backward(dev, &self.group, &backward);
    }

    /// Where the dropped input goes; nothing in a pass without dropout.
    fn scratch(&self, pass: &Pass<'_>) -> Region {
        let dropped = self.shared.dropped;
        if pass.dropout.is_some() { pass.rows(dropped, self.group.input) } else { dropped.slice(0, 0) }
    }
}
