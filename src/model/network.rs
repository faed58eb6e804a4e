//! Training: forward and backward passes over micro-batches. Buffers are planned before the first step; a micro-batch of T
//! tokens uses the first T rows of each.

use super::block::{Pass, PassDropout, Reads};
use super::buffers::Passes;
use super::head::Scored;
use super::lora::{AdapterSpec, Layout};
use super::spec::Spec;
use super::stack::Stack;
use super::state::{Adapters, State};
use super::weights::Weights;
use crate::config::Recompute;
use crate::device::{Device, Indices, Planner, Purpose, Recording, Region, Storage};
use crate::error::Result;
use crate::ops::attention::{self, Segment, Segments};
use crate::ops::{linear, reduce};

pub use super::block::DropoutKey;

/// One micro-batch as the network reads it; T is the length of `ids`.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Token ids, T.
    pub ids: &'a [u32],
    /// Positions, T.
    pub positions: &'a [u32],
    /// Runs of tokens that attend to each other, in order, covering T.
    pub segments: &'a [Segment],
    /// Rows whose next token is scored, ascending.
    pub scored: &'a [u32],
    /// Their next tokens.
    pub targets: &'a [u32],
}

/// A model with adapters on a device's planned memory.
pub struct Network {
    stack: Stack,
    recompute: Recompute,
    dropout: f32,
    /// Whether there is memory for a backward pass.
    trains: bool,
    inputs: Region,
    /// The flat trainable state.
    pub state: State,
}

/// Integers of a micro-batch beside those of its input.
#[derive(Default)]
struct Extra {
    work: [Vec<u32>; 3],
    clock: [u32; 2],
}

impl Extra {
    fn new(dev: &Device, input: &Input<'_>, dropout: Option<DropoutKey>) -> Self {
        if !dev.capabilities().own_memory {
            return Self::default();
        }
        let clock = dropout.map_or([0; 2], |d| [d.step as u32, d.micro_batch]);
        Extra { work: attention::work(input.segments), clock }
    }

    /// The most integers of a micro-batch of `tokens` tokens: ids, positions, scored rows and targets, and these.
    fn most(tokens: usize) -> usize {
        4 * tokens + attention::most_work(tokens) + 2
    }
}

impl Network {
    /// Plans all buffers for micro-batches of up to `tokens` tokens. Nothing is allocated yet.
    ///
    /// # Errors
    /// Shapes that the planned device has no kernels for.
    pub fn plan(
        planner: &mut Planner,
        spec: &Spec,
        weights: &Weights,
        layout: &Layout,
        adapter: &AdapterSpec,
        tokens: usize,
        recompute: Recompute,
    ) -> Result<Self> {
        let state = State::plan(planner, layout);
        let adapters = Adapters::plan(planner, layout, state)?;
        let first = layout.slots.first().map_or(spec.layers.len(), |slot| slot.layer);
        let passes = Passes::Training { tokens, recompute, first };
        let stack = Stack::plan(planner, spec, weights, adapters, passes)?;
        let inputs = planner.region(Purpose::Inputs, Storage::Integer, Extra::most(tokens));
        Ok(Network { stack, recompute, dropout: adapter.dropout as f32, trains: true, inputs, state })
    }

    /// As [`Network::plan`] for [`Network::loss`] alone: no gradients, no moments, and nothing kept for a backward pass.
    ///
    /// # Errors
    /// As [`Network::plan`].
    pub fn plan_evaluation(
        planner: &mut Planner,
        spec: &Spec,
        weights: &Weights,
        layout: &Layout,
        tokens: usize,
    ) -> Result<Self> {
        let state = State::plan_reading(planner, layout);
        let adapters = Adapters::plan(planner, layout, state)?;
        let stack = Stack::plan(planner, spec, weights, adapters, Passes::Evaluation { tokens })?;
        let inputs = planner.region(Purpose::Inputs, Storage::Integer, Extra::most(tokens));
        Ok(Network { stack, recompute: Recompute::None, dropout: 0.0, trains: false, inputs, state })
    }

    /// Writes norm weights, biases, rotary tables and, where the device keeps copies, the frozen matrices; call once after
    /// allocation. `progress` gets the bytes of matrices that are done and those in all.
    ///
    /// # Errors
    /// When the device failed.
    pub fn upload(&mut self, dev: &mut Device, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.stack.uploads.run(dev, progress)
    }

    /// Makes a micro-batch known to the device. What comes again with the same shape comes first, in the same places.
    fn pass<'a>(
        &self,
        dev: &mut Device,
        input: Input<'a>,
        extra: &'a Extra,
        dropout: Option<DropoutKey>,
    ) -> Result<(Pass<'a>, Scored<'a>)> {
        let [forward, keys, queries] = &extra.work;
        let lists: [&[u32]; 8] =
            [&extra.clock, input.ids, input.positions, forward, keys, queries, input.scored, input.targets];
        let [clock, ids, angles, forward, keys, queries, rows, targets] = dev.place(self.inputs, lists)?;
        let reads = Reads::Texts(Segments { list: input.segments, work: [forward, keys, queries] });
        let dropout = dropout.map(|key| PassDropout { key, p: self.dropout, clock: clock.copy });
        Ok((Pass { ids, angles, reads, dropout }, Scored { rows, targets }))
    }

    /// Loss of each scored token, nats; adapters without dropout. `None` when cancelled.
    ///
    /// # Errors
    /// When the device failed.
    pub fn loss(
        &self,
        dev: &mut Device,
        input: Input<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        let extra = Extra::new(dev, &input, None);
        let (pass, scored) = self.pass(dev, input, &extra, None)?;
        let done = self
            .forward(dev, &pass, cancelled)
            .and_then(|()| self.stack.head.score(dev, self.stack.output(&pass), scored, cancelled));
        done.map(|()| dev.read(self.losses_of(scored.targets.len()))).transpose()
    }

    /// Queues or does one micro-batch: its losses then lie in [`Network::losses_of`], and the gradient of `grad_scale` × their sum
    /// is added to the flat gradients. `None` when cancelled; the gradients are then unusable.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// On a network that was planned for evaluation.
    pub fn accumulate(
        &self,
        dev: &mut Device,
        input: Input<'_>,
        grad_scale: f32,
        dropout: DropoutKey,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<()>> {
        assert!(self.trains, "this network was planned for evaluation");
        let dropout = (self.dropout > 0.0).then_some(dropout);
        let extra = Extra::new(dev, &input, dropout);
        let (pass, scored) = self.pass(dev, input, &extra, dropout)?;
        let ends = [self.stack.output(&pass), self.stack.output_gradient(&pass)];
        let done = self
            .forward(dev, &pass, cancelled)
            .and_then(|()| self.stack.head.backward(dev, ends, scored, grad_scale, cancelled));
        if done.is_none() {
            return Ok(None);
        }
        Ok(repeated(dev, &pass, "backward", cancelled, |dev, cancelled| {
            self.stack.backward(dev, &pass, self.recompute, cancelled)
        }))
    }

    /// Where the losses of the `count` scored tokens of the micro-batch done last lie, nats.
    #[must_use]
    pub fn losses_of(&self, count: usize) -> Region {
        self.stack.head.losses(count)
    }

    /// Sum of the squares of all gradients.
    ///
    /// # Errors
    /// When the device failed, also in work that was queued before.
    pub fn gradient_square(&self, dev: &mut Device) -> Result<f64> {
        reduce::sum_of_squares(dev, self.state.grads, self.state.sums)
    }

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>, cancelled: &dyn Fn() -> bool) -> Option<()> {
        let packing = self.stack.uploads.packing();
        repeated(dev, pass, "forward", cancelled, |dev, cancelled| {
            linear::pack(dev, &packing);
            self.stack.forward(dev, pass, cancelled)
        })
    }
}

/// Does work over all layers, which a GPU records. It can be cancelled between two layers on a device that does not queue
/// it, and before the first on the others.
fn repeated(
    dev: &mut Device,
    pass: &Pass<'_>,
    what: &'static str,
    cancelled: &dyn Fn() -> bool,
    mut work: impl FnMut(&mut Device, &dyn Fn() -> bool) -> Option<()>,
) -> Option<()> {
    if cancelled() {
        return None;
    }
    let Reads::Texts(segments) = &pass.reads else { unreachable!("training reads whole texts") };
    let mut shape: Vec<usize> = segments.work.iter().map(Indices::len).collect();
    shape.extend([pass.tokens(), usize::from(pass.dropout.is_some())]);
    let never = || false;
    let cancelled: &dyn Fn() -> bool = if dev.capabilities().queued { &never } else { cancelled };
    let mut done = Some(());
    dev.repeat(Recording { what, shape }, |dev| done = work(dev, cancelled));
    done
}
