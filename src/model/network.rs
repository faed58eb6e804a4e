//! Forward and backward of the Qwen block, written once over `ops`. Buffers are planned before the first
//! step; a micro-batch of T tokens uses the first T rows of each.

use super::buffers::{
    Adapters, Block, Constants, Part, Saved, Shapes, State, Uploads, Workspace, check_shapes, plan_ends,
    plan_residuals, plan_saved,
};
use super::lora::{AdapterSpec, Layout};
use super::spec::Spec;
use super::weights::Weights;
use crate::config::Recompute;
use crate::device::{Device, Indices, Matrix, Planner, Purpose, Recording, Region, Storage, Target};
use crate::error::Result;
use crate::ops::attention::{self, Attention, Segment, Segments};
use crate::ops::linear::{self, Dropout, Group};
use crate::ops::loss::{self, Loss};
use crate::ops::rmsnorm::{self, RmsNorm};
use crate::ops::rope;
use crate::ops::{embedding, reduce, rows, swiglu};

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

/// What keys the dropout masks of one micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// Steps done before this one.
    pub step: u64,
    /// Micro-batch within the step.
    pub micro_batch: u32,
}

/// A model with adapters on a device's planned memory.
pub struct Network {
    target: Target,
    spec: Spec,
    embedding: Matrix,
    head: Matrix,
    final_norm: RmsNorm,
    blocks: Vec<Block>,
    attention: Attention,
    saved: Vec<Saved>,
    residuals: Vec<Region>,
    work: Workspace,
    recompute: Recompute,
    dropout: f32,
    lowest: Option<(usize, Part)>,
    uploads: Uploads,
    packed: Region,
    inputs: Region,
    /// The flat trainable state.
    pub state: State,
}

/// Everything one pass over a micro-batch needs to know.
struct Pass<'a> {
    ids: Indices<'a>,
    positions: Indices<'a>,
    segments: Segments<'a>,
    scored: Indices<'a>,
    targets: Indices<'a>,
    dropout: Option<DropoutKey>,
    /// Where the device finds step and micro-batch of the dropout.
    clock: Region,
    cancelled: &'a dyn Fn() -> bool,
}

/// Integers of a micro-batch beside those of its input.
#[derive(Default)]
struct Extra {
    work: [Vec<u32>; 3],
    clock: [u32; 2],
}

impl Extra {
    fn new(target: Target, input: &Input<'_>, dropout: Option<DropoutKey>) -> Self {
        if target == Target::Cpu {
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
        check_shapes(planner.target(), spec)?;
        let mut adapters = Adapters::plan(planner, layout);
        let mut constants = Constants { planner, values: Vec::new() };
        let table = constants.add(&rope::table(spec.head_dim, spec.rope_theta, tokens));
        let final_weight = constants.add(&weights.norm);
        let blocks: Vec<Block> = weights
            .blocks
            .iter()
            .map(|b| Block::new(b, spec, table, &mut constants, &mut adapters))
            .collect();
        let constants = constants.values;
        let adapted = |b: &Block| b.parts().into_iter().find(|(_, g)| g.rank_sum() > 0).map(|(part, _)| part);
        let lowest = blocks.iter().enumerate().find_map(|(l, b)| adapted(b).map(|part| (l, part)));
        let first = lowest.map_or(blocks.len(), |(layer, _)| layer);
        let [embedding, head] = plan_ends(planner, weights);
        let mut integers = |len| planner.region(Purpose::Inputs, Storage::Integer, len);
        let table = (integers(adapters.table.len()), adapters.table);
        let inputs = integers(Extra::most(tokens));
        let mut shapes = Shapes { planner, spec, tokens };
        let saved = plan_saved(&mut shapes, &blocks, first, recompute);
        let residuals = plan_residuals(&mut shapes, blocks.len(), first);
        let work = shapes.workspace(&blocks);
        Ok(Network {
            target: planner.target(),
            spec: spec.clone(),
            embedding,
            head,
            final_norm: RmsNorm { dim: spec.hidden, eps: spec.norm_eps, weight: final_weight },
            attention: Attention {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                scale: (1.0 / (spec.head_dim as f64).sqrt()) as f32,
            },
            blocks,
            saved,
            residuals,
            work,
            recompute,
            dropout: adapter.dropout as f32,
            lowest,
            uploads: Uploads { constants, table },
            packed: adapters.packed,
            inputs,
            state: adapters.state,
        })
    }

    /// Writes norm weights, biases, the RoPE table and, where the device keeps copies, the frozen matrices; call once after
    /// allocation. `progress` gets the bytes of matrices that are done and those in all.
    ///
    /// # Errors
    /// When the device failed.
    pub fn upload(&mut self, dev: &mut Device, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.uploads.run(dev, &self.blocks, [&self.embedding, &self.head], progress)
    }

    /// Makes a micro-batch known to the device. What comes again with the same shape comes first, in the same places.
    fn pass<'a>(
        &self,
        dev: &mut Device,
        input: Input<'a>,
        extra: &'a Extra,
        dropout: Option<DropoutKey>,
        cancelled: &'a dyn Fn() -> bool,
    ) -> Result<Pass<'a>> {
        let [forward, keys, queries] = &extra.work;
        let lists: [&[u32]; 8] =
            [&extra.clock, input.ids, input.positions, forward, keys, queries, input.scored, input.targets];
        let [clock, ids, positions, forward, keys, queries, scored, targets] =
            dev.place(self.inputs, lists)?;
        let segments = Segments { list: input.segments, work: [forward, keys, queries] };
        Ok(Pass { ids, positions, segments, scored, targets, dropout, clock: clock.copy, cancelled })
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
        let extra = Extra::new(dev.target(), &input, None);
        let pass = self.pass(dev, input, &extra, None, cancelled)?;
        if self.forward(dev, &pass).is_none() {
            return Ok(None);
        }
        self.head_input(dev, &pass);
        let done = self.head_chunks(&pass, |operands, x, _| loss::forward(dev, operands, x));
        done.map(|()| dev.read(self.losses_of(pass.targets.len()))).transpose()
    }

    /// Queues or does one micro-batch: its losses then lie in [`Network::losses_of`], and the gradient of `grad_scale` × their sum
    /// is added to the flat gradients. `None` when cancelled; the gradients are then unusable.
    ///
    /// # Errors
    /// When the device failed.
    pub fn accumulate(
        &self,
        dev: &mut Device,
        input: Input<'_>,
        grad_scale: f32,
        dropout: DropoutKey,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<()>> {
        let dropout = (self.dropout > 0.0).then_some(dropout);
        let extra = Extra::new(dev.target(), &input, dropout);
        let pass = self.pass(dev, input, &extra, dropout, cancelled)?;
        if self.forward(dev, &pass).is_none() || self.head_backward(dev, &pass, grad_scale).is_none() {
            return Ok(None);
        }
        Ok(self.repeated(dev, &pass, "backward", |dev, cancelled| {
            let Some((first, _)) = self.lowest else { return Some(()) };
            for layer in (first..self.blocks.len()).rev() {
                if cancelled() {
                    return None;
                }
                self.block_backward(dev, &pass, layer);
            }
            Some(())
        }))
    }

    /// Where the losses of the `count` scored tokens of the micro-batch done last lie, nats.
    #[must_use]
    pub fn losses_of(&self, count: usize) -> Region {
        self.rows(self.work.losses, count, 1)
    }

    /// Sum of the squares of all gradients.
    ///
    /// # Errors
    /// When the device failed, also in work that was queued before.
    pub fn gradient_square(&self, dev: &mut Device) -> Result<f64> {
        reduce::sum_of_squares(dev, self.state.grads, self.state.sums)
    }

    /// Does work over all blocks, which a GPU records. It can be cancelled between two blocks on a device that does not
    /// queue it, and before the first on the others.
    fn repeated(
        &self,
        dev: &mut Device,
        pass: &Pass<'_>,
        what: &'static str,
        work: impl FnOnce(&mut Device, &dyn Fn() -> bool) -> Option<()>,
    ) -> Option<()> {
        if (pass.cancelled)() {
            return None;
        }
        let mut shape: Vec<usize> = pass.segments.work.iter().map(Indices::len).collect();
        shape.extend([pass.ids.len(), usize::from(pass.dropout.is_some())]);
        let never = || false;
        let cancelled: &dyn Fn() -> bool = if dev.is_queued() { &never } else { pass.cancelled };
        let mut done = Some(());
        dev.repeat(Recording { what, shape }, |dev| done = work(dev, cancelled));
        done
    }

    /// The first `tokens` rows of a region.
    fn rows(&self, region: Region, tokens: usize, width: usize) -> Region {
        region.slice(0, tokens * width)
    }

    /// Runs the head over the scored rows, as many at once as the logits' region holds; between two chunks it
    /// can be cancelled. `run` gets the operands, the chunk's normalised rows and their gradient's place.
    fn head_chunks(&self, pass: &Pass<'_>, mut run: impl FnMut(&Loss<'_>, Region, Region)) -> Option<()> {
        let (hidden, work) = (self.spec.hidden, &self.work);
        let chunk = work.logits.len / loss::row_len(self.target, self.spec.vocab);
        for first in (0..pass.targets.len()).step_by(chunk) {
            if (pass.cancelled)() {
                return None;
            }
            let count = chunk.min(pass.targets.len() - first);
            let part = |r: Region| r.slice(first * hidden, count * hidden);
            let operands = Loss {
                head: &self.head,
                targets: pass.targets.slice(first, count),
                logits: work.logits,
                losses: work.losses.slice(first, count),
            };
            run(&operands, part(work.head_normed), part(work.dnormed));
        }
        Some(())
    }

    fn dropout(&self, pass: &Pass<'_>, layer: usize, part: Part) -> Option<Dropout> {
        let key = pass.dropout?;
        Some(Dropout {
            p: self.dropout,
            key: [key.seed as u32, (key.seed >> 32) as u32],
            counter: [((layer as u32) << 8) | part as u32, key.step as u32, key.micro_batch],
            clock: pass.clock,
        })
    }

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>) -> Option<()> {
        let packing = self.uploads.packing(self.state.params, self.packed);
        let first = self.rows(self.residuals[0], pass.ids.len(), self.spec.hidden);
        self.repeated(dev, pass, "forward", |dev, cancelled| {
            linear::pack(dev, &packing);
            embedding::forward(dev, &self.embedding, pass.ids, first);
            for layer in 0..self.blocks.len() {
                if cancelled() {
                    return None;
                }
                self.attention_forward(dev, pass, layer);
                self.mlp_forward(dev, pass, layer, true);
            }
            Some(())
        })
    }

    /// Runs one group forward.
    fn linear(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize, part: Part, o: LinearIo) {
        let group = self.group(layer, part);
        let tokens = pass.ids.len();
        let forward = linear::Forward {
            x: self.rows(o.x, tokens, group.input),
            y: self.rows(o.y, tokens, group.output),
            s: self.rows(o.s, tokens, group.rank_sum()),
            residual: o.residual.map(|r| self.rows(r, tokens, group.output)),
            dropout: self.dropout(pass, layer, part),
            scratch: self.rows(self.work.dropped, tokens, group.input),
        };
        linear::forward(dev, group, &forward);
    }

    fn group(&self, layer: usize, part: Part) -> &Group {
        let block = &self.blocks[layer];
        match part {
            Part::Qkv => &block.qkv,
            Part::AttentionOut => &block.attention_out,
            Part::GateUp => &block.gate_up,
            Part::Down => &block.down,
        }
    }

    fn attention_forward(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize) {
        let (block, saved, work) = (&self.blocks[layer], &self.saved[layer], &self.work);
        let tokens = pass.ids.len();
        let hidden = |r| self.rows(r, tokens, self.spec.hidden);
        let rstd = self.rows(saved.attention_rstd, tokens, 1);
        let residual = self.residuals[layer];
        rmsnorm::forward(dev, &block.attention_norm, hidden(residual), hidden(work.normed), rstd);
        let io = LinearIo { x: work.normed, y: saved.qkv, s: saved.s_qkv, residual: None };
        self.linear(dev, pass, layer, Part::Qkv, io);
        let qkv = self.rows(saved.qkv, tokens, block.qkv.output);
        let qk = self.rows(work.qk, tokens, block.rope.qk_width());
        rope::forward(dev, &block.rope, qkv, pass.positions, qk);
        let attended = self.rows(saved.attended, tokens, block.attention_out.input);
        let lse = self.rows(saved.lse, tokens, self.spec.heads);
        attention::forward(dev, &self.attention, &pass.segments, qk, qkv, attended, lse);
        let io = LinearIo { x: saved.attended, y: saved.mid, s: saved.s_out, residual: Some(residual) };
        self.linear(dev, pass, layer, Part::AttentionOut, io);
    }

    /// The MLP from `mid`; without `output` only what the backward pass needs is computed.
    fn mlp_forward(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize, output: bool) {
        let (block, saved, work) = (&self.blocks[layer], &self.saved[layer], &self.work);
        let tokens = pass.ids.len();
        let hidden = |r| self.rows(r, tokens, self.spec.hidden);
        let rstd = self.rows(saved.mlp_rstd, tokens, 1);
        rmsnorm::forward(dev, &block.mlp_norm, hidden(saved.mid), hidden(work.normed), rstd);
        let io = LinearIo { x: work.normed, y: saved.gate_up, s: saved.s_gate_up, residual: None };
        self.linear(dev, pass, layer, Part::GateUp, io);
        if output {
            self.swiglu(dev, tokens, layer);
            let io = LinearIo {
                x: work.wide,
                y: self.residuals[layer + 1],
                s: saved.s_down,
                residual: Some(saved.mid),
            };
            self.linear(dev, pass, layer, Part::Down, io);
        }
    }

    fn swiglu(&self, dev: &mut Device, tokens: usize, layer: usize) {
        let width = self.spec.intermediate;
        let gate_up = self.rows(self.saved[layer].gate_up, tokens, 2 * width);
        swiglu::forward(dev, gate_up, width, self.rows(self.work.wide, tokens, width));
    }

    /// Gathers the scored rows of the last residual and normalises them.
    fn head_input(&self, dev: &mut Device, pass: &Pass<'_>) {
        let (count, hidden) = (pass.scored.len(), self.spec.hidden);
        let last = self.rows(self.residuals[self.blocks.len()], pass.ids.len(), hidden);
        let x = self.rows(self.work.head_x, count, hidden);
        let normed = self.rows(self.work.head_normed, count, hidden);
        rows::gather(dev, last, pass.scored, hidden, x);
        rmsnorm::forward(dev, &self.final_norm, x, normed, self.rows(self.work.head_rstd, count, 1));
    }

    /// Losses and their gradient down to the last residual (`work.dx`).
    fn head_backward(&self, dev: &mut Device, pass: &Pass<'_>, grad_scale: f32) -> Option<()> {
        self.head_input(dev, pass);
        let (count, hidden, work) = (pass.scored.len(), self.spec.hidden, &self.work);
        let x = self.rows(work.head_x, count, hidden);
        let dnormed = self.rows(work.dnormed, count, hidden);
        let dx = self.rows(work.head_dx, count, hidden);
        let rstd = self.rows(work.head_rstd, count, 1);
        self.head_chunks(pass, |p, x, dx| loss::forward_backward(dev, p, x, grad_scale, dx))?;
        rows::zero(dev, dx);
        rmsnorm::backward(dev, &self.final_norm, x, rstd, dnormed, dx);
        let full = self.rows(work.dx, pass.ids.len(), hidden);
        rows::scatter(dev, dx, pass.scored, hidden, full);
        Some(())
    }

    /// Takes the gradient in `work.dx` from block `layer`'s output to its input, as far as anything below is
    /// trained, and adds the adapters' gradients.
    fn block_backward(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize) {
        let stop = match self.lowest {
            Some((first, part)) if first == layer => Some(part),
            _ => None,
        };
        match self.recompute {
            Recompute::Full => {
                self.attention_forward(dev, pass, layer);
                self.mlp_forward(dev, pass, layer, true);
            }
            Recompute::Mlp => self.mlp_forward(dev, pass, layer, false),
            Recompute::None | Recompute::Auto => {}
        }
        self.mlp_backward(dev, pass, layer, stop);
        if stop.is_none_or(|part| part <= Part::AttentionOut) {
            self.attention_backward(dev, pass, layer, stop);
        }
    }

    /// Runs one group backward; `dx` is left out where nothing below is trained.
    fn linear_backward(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize, part: Part, o: LinearGrad) {
        let group = self.group(layer, part);
        let tokens = pass.ids.len();
        let dx = if self.lowest == Some((layer, part)) { None } else { Some(o.dx) };
        let backward = linear::Backward {
            x: self.rows(o.x, tokens, group.input),
            s: self.rows(o.s, tokens, group.rank_sum()),
            dy: self.rows(o.dy, tokens, group.output),
            ds: self.rows(self.work.ds, tokens, group.rank_sum()),
            dx: dx.map(|r| self.rows(r, tokens, group.input)),
            dropout: self.dropout(pass, layer, part),
            scratch: self.rows(self.work.dropped, tokens, group.input),
            partial: self.work.partial,
        };
        linear::backward(dev, group, &backward);
    }

    fn mlp_backward(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize, stop: Option<Part>) {
        let (block, saved, work) = (&self.blocks[layer], &self.saved[layer], &self.work);
        let (tokens, width) = (pass.ids.len(), self.spec.intermediate);
        if block.down.rank_sum() > 0 {
            self.swiglu(dev, tokens, layer);
        }
        let grad = LinearGrad { x: work.wide, s: saved.s_down, dy: work.dx, dx: work.dwide };
        self.linear_backward(dev, pass, layer, Part::Down, grad);
        if stop == Some(Part::Down) {
            return;
        }
        let gate_up = self.rows(saved.gate_up, tokens, 2 * width);
        swiglu::backward(dev, gate_up, width, self.rows(work.dwide, tokens, width));
        let hidden = |r| self.rows(r, tokens, self.spec.hidden);
        let rstd = self.rows(saved.mlp_rstd, tokens, 1);
        if block.gate_up.rank_sum() > 0 {
            rmsnorm::recompute(dev, &block.mlp_norm, hidden(saved.mid), rstd, hidden(work.normed));
        }
        let grad = LinearGrad { x: work.normed, s: saved.s_gate_up, dy: saved.gate_up, dx: work.dnormed };
        self.linear_backward(dev, pass, layer, Part::GateUp, grad);
        if stop != Some(Part::GateUp) {
            let (x, dy, dx) = (hidden(saved.mid), hidden(work.dnormed), hidden(work.dx));
            rmsnorm::backward(dev, &block.mlp_norm, x, rstd, dy, dx);
        }
    }

    fn attention_backward(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize, stop: Option<Part>) {
        let (block, saved, work) = (&self.blocks[layer], &self.saved[layer], &self.work);
        let tokens = pass.ids.len();
        let grad = LinearGrad { x: saved.attended, s: saved.s_out, dy: work.dx, dx: work.dattended };
        self.linear_backward(dev, pass, layer, Part::AttentionOut, grad);
        if stop == Some(Part::AttentionOut) {
            return;
        }
        let operands = self.attention_operands(layer, tokens);
        let positions = pass.positions;
        rope::forward(dev, &block.rope, operands.qkv, positions, operands.qk);
        attention::backward(dev, &self.attention, &pass.segments, &operands);
        rope::backward(dev, &block.rope, operands.qkv, positions, operands.dqk, operands.dqkv);
        let hidden = |r| self.rows(r, tokens, self.spec.hidden);
        let (x, rstd) = (hidden(self.residuals[layer]), self.rows(saved.attention_rstd, tokens, 1));
        if block.qkv.rank_sum() > 0 {
            rmsnorm::recompute(dev, &block.attention_norm, x, rstd, hidden(work.normed));
        }
        let grad = LinearGrad { x: work.normed, s: saved.s_qkv, dy: work.dqkv, dx: work.dnormed };
        self.linear_backward(dev, pass, layer, Part::Qkv, grad);
        if stop != Some(Part::Qkv) {
            rmsnorm::backward(dev, &block.attention_norm, x, rstd, hidden(work.dnormed), hidden(work.dx));
        }
    }

    fn attention_operands(&self, layer: usize, tokens: usize) -> attention::Backward {
        let (block, saved, work) = (&self.blocks[layer], &self.saved[layer], &self.work);
        let attended = block.attention_out.input;
        attention::Backward {
            qk: self.rows(work.qk, tokens, block.rope.qk_width()),
            qkv: self.rows(saved.qkv, tokens, block.qkv.output),
            out: self.rows(saved.attended, tokens, attended),
            lse: self.rows(saved.lse, tokens, self.spec.heads),
            dout: self.rows(work.dattended, tokens, attended),
            delta: self.rows(work.delta, tokens, self.spec.heads),
            dqk: self.rows(work.dqk, tokens, block.rope.qk_width()),
            dqkv: self.rows(work.dqkv, tokens, block.qkv.output),
        }
    }
}

/// Operands of one group's forward pass, at their full planned size.
struct LinearIo {
    x: Region,
    y: Region,
    s: Region,
    residual: Option<Region>,
}

/// Operands of one group's backward pass, at their full planned size.
struct LinearGrad {
    x: Region,
    s: Region,
    dy: Region,
    dx: Region,
}
