//! Supervised fine-tuning: cross-entropy of the scored tokens, each of a step's tokens counting the same, whichever
//! micro-batch it is in.

use super::{Objective, Pass};
use crate::data::batch::{self, MicroBatch};
use crate::data::dataset::Dataset;
use crate::device::{Device, Region};
use crate::error::{Error, Result};
use crate::model::network::{Input, Network};
use crate::ops::attention::Segment;

/// The objective.
pub(super) struct Supervised;

fn segments(batch: &MicroBatch) -> Vec<Segment> {
    batch.segments.iter().map(|&(start, len)| Segment { start, len }).collect()
}

fn input<'a>(batch: &'a MicroBatch, segments: &'a [Segment]) -> Input<'a> {
    Input {
        ids: &batch.ids,
        positions: &batch.positions,
        segments,
        scored: &batch.scored,
        targets: &batch.targets,
    }
}

impl Objective for Supervised {
    fn batch(&self, rows: &Dataset, indices: &[u32]) -> Result<MicroBatch> {
        let batch = batch::assemble(rows, indices)?;
        if batch.scored.is_empty() {
            // Rows without a scored token were left out when they were read.
            return Err(Error::check(format!("no token of the rows {indices:?} is scored")));
        }
        Ok(batch)
    }

    fn divisor(&self, batches: &[MicroBatch]) -> f64 {
        batches.iter().map(|batch| batch.scored.len()).sum::<usize>() as f64
    }

    fn accumulate(
        &self,
        network: &Network,
        device: &mut Device,
        pass: &Pass<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Region>> {
        let segments = segments(pass.batch);
        let (input, scale) = (input(pass.batch, &segments), (1.0 / pass.divisor) as f32);
        let done = network.accumulate(device, input, scale, pass.dropout, cancelled)?;
        Ok(done.map(|()| network.losses_of(pass.batch.targets.len())))
    }

    fn losses(
        &self,
        network: &Network,
        device: &mut Device,
        batch: &MicroBatch,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        let segments = segments(batch);
        network.loss(device, input(batch, &segments), cancelled)
    }
}
