//! What a run minimises. An objective says what a micro-batch holds, which passes of the model run over it, and what
//! each token's loss counts. Everything else of a run (order of rows, schedule, optimizer, checkpoints) is the same
//! for all of them: a preference loss would be one more file here and one more name in [`identity::Objective`].

mod supervised;

use crate::data::batch::MicroBatch;
use crate::data::dataset::Dataset;
use crate::device::{Device, Region};
use crate::error::Result;
use crate::identity;
use crate::model::network::{DropoutKey, Network};

/// The passes over one micro-batch of a step, and what keys them.
pub struct Pass<'a> {
    /// The micro-batch, as [`Objective::batch`] made it.
    pub batch: &'a MicroBatch,
    /// What the step's losses are divided by, as [`Objective::divisor`] has it.
    pub divisor: f64,
    /// Keys of the dropout masks.
    pub dropout: DropoutKey,
}

/// What is minimised.
pub trait Objective {
    /// A micro-batch of these rows.
    ///
    /// # Errors
    /// I/O errors of the token cache; no rows.
    fn batch(&self, rows: &Dataset, indices: &[u32]) -> Result<MicroBatch>;

    /// The loss of a step of these micro-batches is the sum of their losses divided by this; so each token's loss counts
    /// one part of it.
    fn divisor(&self, batches: &[MicroBatch]) -> f64;

    /// Queues or does the passes over a micro-batch that add its gradients. Returns where the losses of its tokens then
    /// lie; `None` when cancelled.
    ///
    /// # Errors
    /// When the device failed.
    fn accumulate(
        &self,
        network: &Network,
        device: &mut Device,
        pass: &Pass<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Region>>;

    /// Losses of a micro-batch's tokens, without dropout and gradients. `None` when cancelled.
    ///
    /// # Errors
    /// When the device failed.
    fn losses(
        &self,
        network: &Network,
        device: &mut Device,
        batch: &MicroBatch,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>>;
}

/// The objective of that name.
#[must_use]
pub fn named(name: identity::Objective) -> Box<dyn Objective> {
    match name {
        identity::Objective::Supervised => Box::new(supervised::Supervised),
    }
}
