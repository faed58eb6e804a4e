//! The data plan: which rows make up which micro-batch of which step. A pure function of
//! (row lengths, rules); nothing is read again to find a place.

use crate::error::Result;

/// What the plan depends on beside the row lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Rows of a micro-batch (without packing).
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Fill micro-batches up to `tokens_per_micro_batch` with whole rows.
    pub packing: bool,
    /// Capacity with packing.
    pub tokens_per_micro_batch: usize,
    /// Shuffle each epoch by (seed, epoch).
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
    /// Epochs, may be fractional.
    pub epochs: f64,
    /// Overrides `epochs`.
    pub max_steps: Option<u64>,
}

/// One optimizer step's data.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Epoch, counted from 0.
    pub epoch: u64,
    /// Step within the epoch, counted from 0.
    pub step_in_epoch: u64,
    /// Steps of this epoch.
    pub steps_in_epoch: u64,
    /// Row indices of each micro-batch, in order.
    pub micro_batches: Vec<Vec<u32>>,
    /// Whether this is the epoch's last step.
    pub last_in_epoch: bool,
}

/// The plan of a whole run. Holds one epoch's order at a time.
pub struct Plan {}

impl Plan {
    /// Plans a run over rows of the given lengths (tokens).
    ///
    /// # Errors
    /// No rows; a row longer than the packing capacity.
    pub fn new(lengths: &[u32], rules: Rules) -> Result<Self> {
        let _ = (lengths, rules);
        todo!()
    }

    /// Steps of the run.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        todo!()
    }

    /// The most tokens (bucketed) any micro-batch can have.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        todo!()
    }

    /// The data of step `step` (counted from 0, below any bound: a run may be extended).
    pub fn step(&mut self, step: u64) -> StepPlan {
        let _ = step;
        todo!()
    }

    /// Rows consumed before step `step` (counted from 0), over all epochs.
    pub fn samples_before(&mut self, step: u64) -> u64 {
        let _ = step;
        todo!()
    }
}
