//! Generation: the block's forward pass with keys and values kept, over the operations of training. Prompts
//! are read in one pass; then every sequence takes one token a step, all of them together, so that the weights
//! are read once for all.
//!
//! A sequence's logits have the same bits whoever else is in the batch.

use super::adapter::Adapter;
use super::block::{Kept, Pass, Reads};
use super::buffers::Passes;
use super::spec::Spec;
use super::stack::Stack;
use super::state::{Adapters, State};
use super::weights::Weights;
use crate::device::{Device, Planner, Purpose, Region, Storage};
use crate::error::Result;
use crate::ops::attention::{self, Segment, Segments};
use crate::ops::decode_attention::Seen;
use crate::ops::linear;

/// Sizes of a decoder's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences at once.
    pub slots: usize,
    /// Most tokens of one sequence, prompt and answer together.
    pub capacity: usize,
    /// Most tokens of the prompts that are read in one pass; at least `slots`.
    pub rows: usize,
}

/// The sequence in one slot.
#[derive(Clone, Copy, Default)]
struct Sequence {
    /// Tokens in the cache.
    len: usize,
    /// Which rotary table its prompt's length asks for.
    level: usize,
}

/// A model with its adapter on a device's planned memory.
pub struct Decoder {
    spec: Spec,
    stack: Stack,
    params: Region,
    inputs: Region,
    limits: Limits,
    sequences: Vec<Sequence>,
}

/// The token rows of one pass, as the host lists them.
#[derive(Default)]
struct Tokens {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Rows of the rotary table.
    angles: Vec<u32>,
    /// Rows of the caches that the tokens become.
    places: Vec<u32>,
    /// Of a pass over prompts: the prompts. Of a step: the rows of the caches that each token sees.
    runs: Vec<Segment>,
    /// Rows whose logits are wanted.
    last: Vec<u32>,
}

impl Tokens {
    fn push(&mut self, id: u32, position: usize, slot: usize, sequence: Sequence, capacity: usize) {
        self.ids.push(id);
        self.positions.push(position as u32);
        self.angles.push((sequence.level * capacity + position) as u32);
        self.places.push((slot * capacity + position) as u32);
    }
}

impl Decoder {
    /// Plans all memory. Nothing is allocated yet.
    ///
    /// # Errors
    /// A device that has no kernels for it.
    pub fn plan(
        planner: &mut Planner,
        spec: &Spec,
        weights: &Weights,
        adapter: &Adapter,
        limits: Limits,
    ) -> Result<Self> {
        let state = State::plan_reading(planner, &adapter.layout);
        let adapters = Adapters::plan(planner, &adapter.layout, state)?;
        let Limits { slots, capacity, rows } = limits;
        let stack =
            Stack::plan(planner, spec, weights, adapters, Passes::Decoding { rows, slots, capacity })?;
        let integers = 4 * rows + 3 * slots + attention::most_work(rows);
        Ok(Decoder {
            spec: spec.clone(),
            stack,
            params: state.params,
            inputs: planner.region(Purpose::Inputs, Storage::Integer, integers),
            limits,
            sequences: vec![Sequence::default(); slots],
        })
    }

    /// Writes constants, adapter values and, where the device keeps copies, the frozen matrices; call once after allocation.
    ///
    /// # Errors
    /// When the device failed.
    pub fn upload(&mut self, dev: &mut Device, adapter: &Adapter) -> Result<()> {
        self.stack.uploads.run(dev, &mut |_, _| {})?;
        dev.write(self.params, &adapter.values)?;
        linear::pack(dev, &self.stack.uploads.packing());
        Ok(())
    }

    /// Sizes it was planned with.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Starts a sequence in each of the given slots with its prompt, and gives the logits [prompts, V] of what
    /// follows. `None` when cancelled.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When the prompts are longer than planned, or one is empty.
    pub fn prefill(
        &mut self,
        dev: &mut Device,
        prompts: &[(usize, &[u32])],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        let capacity = self.limits.capacity;
        let mut tokens = Tokens::default();
        for &(slot, prompt) in prompts {
            assert!((1..=capacity).contains(&prompt.len()), "a prompt longer than planned, or empty");
            let sequence = Sequence { len: prompt.len(), level: self.spec.rotary_level(prompt.len()) };
            self.sequences[slot] = sequence;
            tokens.runs.push(Segment { start: tokens.ids.len() as u32, len: prompt.len() as u32 });
            for (position, id) in prompt.iter().enumerate() {
                tokens.push(*id, position, slot, sequence, capacity);
            }
            tokens.last.push(tokens.ids.len() as u32 - 1);
        }
        self.run(dev, &tokens, true, cancelled)
    }

    /// Appends one token to the sequence in each of the given slots, and gives the logits [slots, V] of what
    /// follows. `None` when cancelled: the sequences are then unusable.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When a sequence is full.
    pub fn step(
        &mut self,
        dev: &mut Device,
        next: &[(usize, u32)],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        let capacity = self.limits.capacity;
        let mut tokens = Tokens::default();
        for &(slot, id) in next {
            let sequence = &mut self.sequences[slot];
            assert!(sequence.len < capacity, "a sequence longer than planned");
            tokens.push(id, sequence.len, slot, *sequence, capacity);
            sequence.len += 1;
            tokens.runs.push(Segment { start: (slot * capacity) as u32, len: sequence.len as u32 });
            tokens.last.push(tokens.last.len() as u32);
        }
        self.run(dev, &tokens, false, cancelled)
    }

    /// Makes the tokens known to the device and runs the model over them.
    fn run(
        &self,
        dev: &mut Device,
        tokens: &Tokens,
        prompts: bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        let Tokens { ids, positions, angles, places, runs, last } = tokens;
        let fits = ids.len() <= self.limits.rows && last.len() <= self.limits.slots;
        assert!(fits, "more rows than planned");
        let words: Vec<u32> = runs.iter().flat_map(|run| [run.start, run.len]).collect();
        let lists_work = prompts && dev.capabilities().own_memory;
        let work = if lists_work { attention::work(runs) } else { <_>::default() };
        let lists: [&[u32]; 9] = [ids, positions, angles, places, last, &words, &work[0], &work[1], &work[2]];
        let [ids, positions, angles, places, last, words, work @ ..] = dev.place(self.inputs, lists)?;
        let kept = Kept { places, positions };
        let reads = if prompts {
            Reads::Prompts(Segments { list: runs, work }, kept)
        } else {
            Reads::Sequences(Seen { list: runs, words }, kept)
        };
        let pass = Pass { ids, angles, reads, dropout: None };
        if self.stack.forward(dev, &pass, cancelled).is_none() {
            return Ok(None);
        }
        let (logits, row) = self.stack.head.logits(dev, self.stack.output(&pass), last);
        let mut values = dev.read(logits)?;
        let vocab = self.spec.vocab;
        for i in 1..values.len() / row {
            values.copy_within(i * row..i * row + vocab, i * vocab);
        }
        values.truncate(last.len() * vocab);
        Ok(Some(values))
    }
}
