//! What operations read beside activations: norm weights, biases, rotary tables, frozen matrices and adapters, with their
//! places on the device; and their way there.

use super::buffers::Passes;
use super::rotary::Rotary;
use super::spec::{LinearSpec, NormSpec, Spec};
use super::state::Adapters;
use super::weights::Weights;
use crate::device::{Device, Indices, Matrix, Planner, Purpose, Region, Storage};
use crate::error::{Error, Result};
use crate::ops::linear::{Group, Linear, Packing};
use crate::ops::rmsnorm::RmsNorm;

/// Makes the operands of blocks and collects what has to be uploaded for them.
pub(super) struct Builder<'a> {
    pub planner: &'a mut Planner,
    weights: &'a Weights,
    adapters: Adapters<'a>,
    passes: Passes,
    /// Highest level of the rotary tables.
    level: usize,
    rotaries: Vec<(Rotary, Region)>,
    constants: Vec<(Region, Vec<f32>)>,
    matrices: Vec<Matrix>,
}

impl<'a> Builder<'a> {
    pub fn new(
        planner: &'a mut Planner,
        spec: &Spec,
        weights: &'a Weights,
        adapters: Adapters<'a>,
        passes: Passes,
    ) -> Self {
        let level = match passes {
            Passes::Training { .. } | Passes::Evaluation { .. } => 0,
            Passes::Decoding { capacity, .. } => spec.rotary_level(capacity),
        };
        let (rotaries, constants, matrices) = (Vec::new(), Vec::new(), Vec::new());
        Builder { planner, weights, adapters, passes, level, rotaries, constants, matrices }
    }

    /// What a decoder reads by position, of `values` of its longest text; nothing for other passes.
    pub fn decoded(&mut self, values: impl FnOnce(usize) -> Vec<f32>) -> Option<Region> {
        let Passes::Decoding { capacity, .. } = self.passes else { return None };
        Some(self.constant(values(capacity)))
    }

    /// Values that the operations read as f32.
    pub fn constant(&mut self, values: Vec<f32>) -> Region {
        let region = self.planner.region(Purpose::SmallWeights, Storage::F32, values.len());
        self.constants.push((region, values));
        region
    }

    /// The model's small tensor of that name.
    pub fn small(&mut self, name: &str) -> Result<Region> {
        Ok(self.constant(self.weights.small(name)?.to_vec()))
    }

    pub fn norm(&mut self, spec: &NormSpec) -> Result<RmsNorm> {
        let weight = self.small(&spec.weight.name)?;
        Ok(RmsNorm { dim: spec.weight.shape[0], eps: spec.eps, weight })
    }

    /// The tables of a rotary form; one for all layers of the form.
    pub fn rotary(&mut self, form: &Rotary) -> Region {
        if let Some((_, table)) = self.rotaries.iter().find(|(known, _)| known == form) {
            return *table;
        }
        let positions = match self.passes {
            Passes::Training { tokens, .. } | Passes::Evaluation { tokens } => tokens,
            Passes::Decoding { capacity, .. } => capacity,
        };
        let table = self.constant(form.tables(positions, self.level));
        self.rotaries.push((*form, table));
        table
    }

    /// Refuses heads that the device has no kernels for.
    pub fn check_heads(&self, head_dim: usize) -> Result<()> {
        let capabilities = self.planner.capabilities();
        match capabilities.head_sizes {
            Some(sizes) if !sizes.contains(&head_dim) => {
                let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
                let sizes = sizes.join(" and ");
                Err(refused(format!("heads of {head_dim} elements; the GPU's kernels are for {sizes}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses rows that the device cannot read in whole pieces.
    pub fn check_width(&self, name: &str, width: usize) -> Result<()> {
        let piece = self.planner.capabilities().row_multiple;
        if width.is_multiple_of(piece) {
            return Ok(());
        }
        Err(refused(format!("{name} {width}; the GPU's kernels need a multiple of {piece}")))
    }

    /// Layers that read one input, with their adapters.
    pub fn group(&mut self, specs: &[LinearSpec]) -> Result<Group> {
        let layers: Vec<Linear> = specs.iter().map(|spec| self.linear(spec)).collect::<Result<_>>()?;
        let output = specs.iter().map(|spec| spec.column + spec.shape[0]).max().unwrap_or(0);
        Ok(Group { input: specs[0].shape[1], output, layers })
    }

    fn linear(&mut self, spec: &LinearSpec) -> Result<Linear> {
        let frozen = self.weights.linear(&spec.module)?;
        let weight = self.matrix(&frozen.weight);
        let bias = frozen.bias.as_ref().map(|bias| self.constant(bias.clone()));
        let lora = self.adapters.of(self.planner, &spec.module);
        Ok(Linear { weight, bias, column: spec.column, lora })
    }

    /// The matrix with a place for the device's copy.
    fn matrix(&mut self, matrix: &Matrix) -> Matrix {
        let planned = matrix.planned(self.planner);
        self.matrices.push(planned.clone());
        planned
    }

    /// Embedding and head with their places; one where they are tied.
    pub fn ends(&mut self) -> [Matrix; 2] {
        let weights = self.weights;
        let embedding = self.matrix(&weights.embedding);
        let tied = weights.head.is_same(&weights.embedding);
        let head = if tied { embedding.clone() } else { self.matrix(&weights.head) };
        [embedding, head]
    }

    /// What has to be uploaded.
    pub fn uploads(self) -> Uploads {
        let Adapters { state, packed, table, .. } = self.adapters;
        let place = self.planner.region(Purpose::Inputs, Storage::Integer, table.len());
        Uploads {
            constants: self.constants,
            matrices: self.matrices,
            params: state.params,
            packed,
            table: (place, table),
        }
    }
}

fn refused(what: String) -> Error {
    Error::input(format!("model: {what}")).hint("train this model with --device cpu")
}

/// Everything a device has to be told before it can run blocks.
pub(super) struct Uploads {
    constants: Vec<(Region, Vec<f32>)>,
    matrices: Vec<Matrix>,
    params: Region,
    packed: Region,
    /// The table of the adapters' copies.
    table: (Region, Vec<u32>),
}

impl Uploads {
    /// Writes constants and, where the device keeps copies, the frozen matrices. `progress` gets the bytes of matrices
    /// that are done and those in all.
    pub fn run(&mut self, dev: &mut Device, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        for (region, values) in self.constants.drain(..) {
            dev.write(region, &values)?;
        }
        dev.place(self.table.0, [&self.table.1])?;
        let matrices = std::mem::take(&mut self.matrices);
        if !dev.capabilities().own_memory {
            return Ok(());
        }
        let total = matrices.iter().map(|m| m.bytes().len() as u64).sum();
        let mut done = 0;
        for matrix in matrices {
            dev.upload(&matrix)?;
            done += matrix.bytes().len() as u64;
            progress(done, total);
        }
        Ok(())
    }

    /// What [`crate::ops::linear::pack`] reads.
    pub fn packing(&self) -> Packing<'_> {
        let table = Indices { values: &self.table.1, copy: self.table.0 };
        Packing { params: self.params, packed: self.packed, table }
    }
}
