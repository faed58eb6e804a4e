//! The data plan: which rows make up which micro-batch of which step. A pure function of
//! (row lengths, rules); nothing is read again to find a place.
//!
//! As in Hugging Face's trainer: a micro-batch is `batch_size` consecutive rows of the epoch's order (the
//! epoch's last may be smaller), a step is `accumulation` micro-batches, the last, partial window of an epoch
//! is a step too, and a run has ceil(epochs × steps of an epoch) steps. With packing the number of
//! micro-batches depends on the epoch's order, so whole epochs are summed and the fraction of the next one is
//! rounded up.
//!
//! Packing is first-fit: a row goes into the oldest open micro-batch with room; at most [`OPEN_BINS`] are open,
//! the fullest is closed first. Micro-batches come in the order in which they were opened.

use super::batch::bucket;
use crate::error::{Error, Result};
use crate::philox::{self, Stream};

/// Micro-batches that packing fills at the same time.
pub const OPEN_BINS: usize = 64;

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
    /// Where the numbering begins.
    pub origin: Origin,
}

/// Where the numbering of a plan begins: at zero, or where a run left another plan. Steps, epochs and rows are counted
/// from there on, as if all before had been this plan's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Steps before its first.
    pub step: u64,
    /// Epochs before its first.
    pub epoch: u64,
    /// Rows consumed before its first step.
    pub samples: u64,
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

impl StepPlan {
    /// Epochs finished after this step, as a fraction: what `metrics.jsonl` calls `epoch`.
    #[must_use]
    pub fn epochs_done(&self) -> f64 {
        self.epoch as f64 + (self.step_in_epoch + 1) as f64 / self.steps_in_epoch as f64
    }
}

/// The plan of a whole run. Holds one epoch's order at a time.
pub struct Plan {
    lengths: Vec<u32>,
    rules: Rules,
    /// First step of each epoch known so far, where epochs differ (packing with shuffling).
    starts: Vec<u64>,
    epoch: u64,
    layout: Layout,
    total_steps: u64,
}

/// The micro-batches of one epoch: `rows` cut at `ends`.
struct Layout {
    rows: Vec<u32>,
    ends: Vec<u32>,
}

impl Layout {
    /// `epoch` is counted from the plan's origin.
    fn new(lengths: &[u32], rules: &Rules, epoch: u64) -> Self {
        let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
        if rules.shuffle {
            philox::shuffle(&mut order, rules.seed, Stream::RowOrder, rules.origin.epoch + epoch);
        }
        if rules.packing {
            return pack(&order, lengths, rules.tokens_per_micro_batch);
        }
        let count = order.len().div_ceil(rules.batch_size);
        let ends = (1..=count).map(|k| (k * rules.batch_size).min(order.len()) as u32).collect();
        Layout { rows: order, ends }
    }

    fn steps(&self, accumulation: usize) -> u64 {
        self.ends.len().div_ceil(accumulation) as u64
    }

    fn micro_batch(&self, index: usize) -> &[u32] {
        let first = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.rows[first..self.ends[index] as usize]
    }
}

/// First-fit in the given order; every length fits an empty bin.
fn pack(order: &[u32], lengths: &[u32], capacity: usize) -> Layout {
    let mut open: Vec<(u32, usize)> = Vec::with_capacity(OPEN_BINS);
    let mut bin_of = Vec::with_capacity(order.len());
    let mut rows_of_bin: Vec<u32> = Vec::new();
    for &row in order {
        let need = lengths[row as usize] as usize;
        let place = open.iter().position(|&(_, room)| room >= need).unwrap_or_else(|| {
            if open.len() == OPEN_BINS {
                let fullest = (0..open.len()).min_by_key(|&i| open[i].1).unwrap_or(0);
                open.remove(fullest);
            }
            open.push((rows_of_bin.len() as u32, capacity));
            rows_of_bin.push(0);
            open.len() - 1
        });
        open[place].1 -= need;
        rows_of_bin[open[place].0 as usize] += 1;
        bin_of.push(open[place].0);
    }
    let mut ends = rows_of_bin;
    let mut next = Vec::with_capacity(ends.len());
    let mut sum = 0;
    for end in &mut ends {
        next.push(sum);
        sum += *end;
        *end = sum;
    }
    let mut rows = vec![0; order.len()];
    for (&row, &bin) in order.iter().zip(&bin_of) {
        rows[next[bin as usize] as usize] = row;
        next[bin as usize] += 1;
    }
    Layout { rows, ends }
}

impl Plan {
    /// Plans a run over rows of the given lengths (tokens).
    ///
    /// # Errors
    /// No rows; a row longer than the packing capacity; a batch size or accumulation of 0.
    pub fn new(lengths: &[u32], rules: Rules) -> Result<Self> {
        check(lengths, &rules)?;
        let layout = Layout::new(lengths, &rules, 0);
        let mut plan =
            Plan { lengths: lengths.to_vec(), rules, starts: vec![0], epoch: 0, layout, total_steps: 0 };
        plan.total_steps = plan.count_steps();
        plan.enter(0);
        Ok(plan)
    }

    fn count_steps(&mut self) -> u64 {
        if let Some(steps) = self.rules.max_steps {
            return steps;
        }
        let Origin { step, epoch, .. } = self.rules.origin;
        step + self.steps_of((self.rules.epochs - epoch as f64).max(0.0))
    }

    /// Steps of that many epochs from the origin on.
    fn steps_of(&mut self, epochs: f64) -> u64 {
        if self.epochs_are_alike() {
            return (epochs * self.steps_in_epoch() as f64).ceil() as u64;
        }
        let whole = epochs.floor();
        let before = self.epoch_start(whole as u64);
        let fraction = epochs - whole;
        if fraction == 0.0 {
            return before;
        }
        self.enter(whole as u64);
        before + (fraction * self.steps_in_epoch() as f64).ceil() as u64
    }

    /// Steps of the run.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// The most tokens (bucketed) any micro-batch can have.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        let most = if self.rules.packing {
            let all: usize = self.lengths.iter().map(|&n| n as usize).sum();
            all.min(self.rules.tokens_per_micro_batch)
        } else {
            let mut longest = self.lengths.clone();
            longest.sort_unstable_by(|a, b| b.cmp(a));
            longest.iter().take(self.rules.batch_size).map(|&n| n as usize).sum()
        };
        bucket(most)
    }

    /// The data of step `step` (counted from 0, below any bound: a run may be extended). Steps before the origin are
    /// those of another plan: they count as its first.
    pub fn step(&mut self, step: u64) -> StepPlan {
        let (epoch, step_in_epoch) = self.locate(step);
        let steps_in_epoch = self.steps_in_epoch();
        let first = step_in_epoch as usize * self.rules.accumulation;
        let last = (first + self.rules.accumulation).min(self.layout.ends.len());
        StepPlan {
            epoch: self.rules.origin.epoch + epoch,
            step_in_epoch,
            steps_in_epoch,
            micro_batches: (first..last).map(|i| self.layout.micro_batch(i).to_vec()).collect(),
            last_in_epoch: step_in_epoch + 1 == steps_in_epoch,
        }
    }

    /// Rows consumed before step `step` (counted from 0), over all epochs.
    pub fn samples_before(&mut self, step: u64) -> u64 {
        let (epoch, step_in_epoch) = self.locate(step);
        let micro_batches = step_in_epoch as usize * self.rules.accumulation;
        let within = if micro_batches == 0 { 0 } else { self.layout.ends[micro_batches - 1] };
        self.rules.origin.samples + epoch * self.lengths.len() as u64 + u64::from(within)
    }

    /// Whether every epoch has the same number of steps.
    fn epochs_are_alike(&self) -> bool {
        !(self.rules.packing && self.rules.shuffle)
    }

    fn steps_in_epoch(&self) -> u64 {
        self.layout.steps(self.rules.accumulation)
    }

    /// Makes `epoch` the one whose layout is held.
    fn enter(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.layout = Layout::new(&self.lengths, &self.rules, epoch);
            self.epoch = epoch;
        }
    }

    /// Steps before `epoch`, where epochs differ.
    fn epoch_start(&mut self, epoch: u64) -> u64 {
        while self.starts.len() as u64 <= epoch {
            self.extend_starts();
        }
        self.starts[epoch as usize]
    }

    fn extend_starts(&mut self) {
        self.enter(self.starts.len() as u64 - 1);
        let next = self.starts[self.starts.len() - 1] + self.steps_in_epoch();
        self.starts.push(next);
    }

    /// (epoch from the origin on, step within it) of a step; that epoch's layout is held afterwards.
    fn locate(&mut self, step: u64) -> (u64, u64) {
        let step = step.saturating_sub(self.rules.origin.step);
        if self.epochs_are_alike() {
            let steps = self.steps_in_epoch();
            self.enter(step / steps);
            return (step / steps, step % steps);
        }
        while self.starts[self.starts.len() - 1] <= step {
            self.extend_starts();
        }
        let epoch = self.starts.partition_point(|&first| first <= step) as u64 - 1;
        self.enter(epoch);
        (epoch, step - self.starts[epoch as usize])
    }
}

fn check(lengths: &[u32], rules: &Rules) -> Result<()> {
    if lengths.is_empty() {
        return Err(Error::input("there are no rows to train on"));
    }
    if u32::try_from(lengths.len()).is_err() {
        return Err(Error::input(format!("{} rows are more than 2^32", lengths.len())));
    }
    if rules.batch_size == 0 || rules.accumulation == 0 {
        return Err(Error::usage("batch size and gradient accumulation must be at least 1"));
    }
    let capacity = rules.tokens_per_micro_batch;
    if rules.packing
        && let Some(row) = lengths.iter().position(|&n| n as usize > capacity)
    {
        return Err(Error::input(format!(
            "row {} has {} tokens, more than a packed micro-batch holds ({capacity})",
            row + 1,
            lengths[row]
        ))
        .hint("raise --tokens-per-micro-batch or lower --cutoff-len"));
    }
    Ok(())
}
