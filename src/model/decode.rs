//! Generation: the block's forward pass with keys and values kept, over the operations of training. Prompts
//! are read in one pass; then every sequence takes one token a step, all of them together, so that the weights
//! are read once for all.
//!
//! A sequence's logits have the same bits whoever else is in the batch.

use super::adapter::Adapter;
use super::buffers::{Adapters, Block, Constants, State, Uploads, check_shapes, plan_ends};
use super::spec::Spec;
use super::weights::Weights;
use crate::device::{Device, Indices, Matrix, Planner, Purpose, Region, Storage, Target};
use crate::error::Result;
use crate::ops::attention::{self, Attention, Segment, Segments};
use crate::ops::decode_attention::{self, Cache, Seen};
use crate::ops::linear::{self, Group};
use crate::ops::rmsnorm::{self, RmsNorm};
use crate::ops::{embedding, logits, loss, rope, rows, swiglu};

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

/// Buffers every block overwrites.
struct Work {
    x: Region,
    mid: Region,
    normed: Region,
    rstd: Region,
    qkv: Region,
    qk: Region,
    attended: Region,
    lse: Region,
    gate_up: Region,
    wide: Region,
    s: Region,
    head_x: Region,
    head_normed: Region,
    logits: Region,
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
    target: Target,
    spec: Spec,
    embedding: Matrix,
    head: Matrix,
    final_norm: RmsNorm,
    blocks: Vec<Block>,
    attention: Attention,
    caches: Vec<Cache>,
    work: Work,
    logn: Option<Region>,
    params: Region,
    packed: Region,
    inputs: Region,
    uploads: Uploads,
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

/// The same, known to the device.
struct Pass<'a> {
    ids: Indices<'a>,
    positions: Indices<'a>,
    angles: Indices<'a>,
    places: Indices<'a>,
    reads: Reads<'a>,
    last: Indices<'a>,
}

/// What the queries of a pass see.
enum Reads<'a> {
    /// The tokens of this pass before them, of the same prompt.
    Prompts(Segments<'a>),
    /// Runs of the caches' rows, one for each.
    Caches(Seen<'a>),
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
        check_shapes(planner.target(), spec)?;
        let params = planner.region(Purpose::TrainableState, Storage::F32, adapter.layout.len);
        let mut adapters = Adapters::of_state(planner, &adapter.layout, State::reading(params));
        let mut constants = Constants { planner, values: Vec::new() };
        let table = constants.add(&tables(spec, limits.capacity));
        let logn = spec.logn.then(|| constants.add(&logarithms(spec, limits.capacity)));
        let final_norm =
            RmsNorm { dim: spec.hidden, eps: spec.norm_eps, weight: constants.add(&weights.norm) };
        let block = |b| Block::new(b, spec, table, &mut constants, &mut adapters);
        let blocks: Vec<Block> = weights.blocks.iter().map(block).collect();
        let constants = constants.values;
        let width = limits.slots * limits.capacity * spec.kv_heads * spec.head_dim;
        let mut kept = || planner.region(Purpose::SavedActivations, Storage::Activation, width);
        let caches = blocks.iter().map(|_| Cache { k: kept(), v: kept() }).collect();
        let work = plan_work(planner, spec, &blocks[0], limits);
        let [embedding, head] = plan_ends(planner, weights);
        let mut integers = |len| planner.region(Purpose::Inputs, Storage::Integer, len);
        let table = (integers(adapters.table.len()), adapters.table);
        let inputs = integers(4 * limits.rows + 3 * limits.slots + attention::most_work(limits.rows));
        Ok(Decoder {
            target: planner.target(),
            spec: spec.clone(),
            embedding,
            head,
            final_norm,
            blocks,
            attention: Attention {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                scale: (1.0 / (spec.head_dim as f64).sqrt()) as f32,
            },
            caches,
            work,
            logn,
            params,
            packed: adapters.packed,
            inputs,
            uploads: Uploads { constants, table },
            limits,
            sequences: vec![Sequence::default(); limits.slots],
        })
    }

    /// Writes constants, adapter values and, where the device keeps copies, the frozen matrices; call once after allocation.
    ///
    /// # Errors
    /// When the device failed.
    pub fn upload(&mut self, dev: &mut Device, adapter: &Adapter) -> Result<()> {
        self.uploads.run(dev, &self.blocks, [&self.embedding, &self.head], &mut |_, _| {})?;
        dev.write(self.params, &adapter.values)?;
        linear::pack(dev, &self.uploads.packing(self.params, self.packed));
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
            let sequence = Sequence { len: prompt.len(), level: level(&self.spec, prompt.len()) };
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
        let work = if prompts && self.target != Target::Cpu { attention::work(runs) } else { <_>::default() };
        let lists: [&[u32]; 9] = [ids, positions, angles, places, last, &words, &work[0], &work[1], &work[2]];
        let [ids, positions, angles, places, last, words, work @ ..] = dev.place(self.inputs, lists)?;
        let reads = if prompts {
            Reads::Prompts(Segments { list: runs, work })
        } else {
            Reads::Caches(Seen { list: runs, words })
        };
        let pass = Pass { ids, positions, angles, places, reads, last };
        if self.forward(dev, &pass, cancelled).is_none() {
            return Ok(None);
        }
        let logits = self.head(dev, &pass);
        let mut values = dev.read(logits)?;
        let (vocab, row) = (self.spec.vocab, loss::row_len(self.target, self.spec.vocab));
        for i in 1..values.len() / row {
            values.copy_within(i * row..i * row + vocab, i * vocab);
        }
        values.truncate(last.len() * vocab);
        Ok(Some(values))
    }

    fn forward(&self, dev: &mut Device, pass: &Pass<'_>, cancelled: &dyn Fn() -> bool) -> Option<()> {
        let tokens = pass.ids.len();
        embedding::forward(dev, &self.embedding, pass.ids, self.work.x.slice(0, tokens * self.spec.hidden));
        for layer in 0..self.blocks.len() {
            if cancelled() {
                return None;
            }
            self.attention(dev, pass, layer);
            self.mlp(dev, tokens, layer);
        }
        Some(())
    }

    /// The logits of the pass's last rows.
    fn head(&self, dev: &mut Device, pass: &Pass<'_>) -> Region {
        let (count, hidden, work) = (pass.last.len(), self.spec.hidden, &self.work);
        let x = work.x.slice(0, pass.ids.len() * hidden);
        let (head_x, normed) =
            (work.head_x.slice(0, count * hidden), work.head_normed.slice(0, count * hidden));
        rows::gather(dev, x, pass.last, hidden, head_x);
        rmsnorm::forward(dev, &self.final_norm, head_x, normed, work.rstd.slice(0, count));
        let out = work.logits.slice(0, count * loss::row_len(self.target, self.spec.vocab));
        logits::forward(dev, &self.head, normed, out);
        out
    }

    fn attention(&self, dev: &mut Device, pass: &Pass<'_>, layer: usize) {
        let (block, work, cache) = (&self.blocks[layer], &self.work, self.caches[layer]);
        let (tokens, p) = (pass.ids.len(), &self.attention);
        let rows = |region: Region, width: usize| region.slice(0, tokens * width);
        let (x, normed) = (rows(work.x, self.spec.hidden), rows(work.normed, self.spec.hidden));
        rmsnorm::forward(dev, &block.attention_norm, x, normed, rows(work.rstd, 1));
        let qkv = rows(work.qkv, block.qkv.output);
        self.linear(dev, &block.qkv, normed, qkv, None);
        let qk = rows(work.qk, block.rope.qk_width());
        rope::forward(dev, &block.rope, qkv, pass.angles, qk);
        if let Some(table) = self.logn {
            decode_attention::scale_queries(dev, p, table, pass.positions, qk);
        }
        decode_attention::append(dev, p, qk, qkv, pass.places, cache);
        let attended = rows(work.attended, block.attention_out.input);
        match &pass.reads {
            Reads::Prompts(segments) => {
                attention::forward(dev, p, segments, qk, qkv, attended, rows(work.lse, self.spec.heads));
            }
            Reads::Caches(seen) => decode_attention::forward(dev, p, qk, seen, cache, attended),
        }
        self.linear(dev, &block.attention_out, attended, rows(work.mid, self.spec.hidden), Some(x));
    }

    fn mlp(&self, dev: &mut Device, tokens: usize, layer: usize) {
        let (block, work, width) = (&self.blocks[layer], &self.work, self.spec.intermediate);
        let rows = |region: Region, width: usize| region.slice(0, tokens * width);
        let (mid, normed) = (rows(work.mid, self.spec.hidden), rows(work.normed, self.spec.hidden));
        rmsnorm::forward(dev, &block.mlp_norm, mid, normed, rows(work.rstd, 1));
        let (gate_up, wide) = (rows(work.gate_up, 2 * width), rows(work.wide, width));
        self.linear(dev, &block.gate_up, normed, gate_up, None);
        swiglu::forward(dev, gate_up, width, wide);
        self.linear(dev, &block.down, wide, rows(work.x, self.spec.hidden), Some(mid));
    }

    fn linear(&self, dev: &mut Device, group: &Group, x: Region, y: Region, residual: Option<Region>) {
        let tokens = x.len / group.input;
        let s = self.work.s.slice(0, tokens * group.rank_sum());
        let scratch = Region { len: 0, ..x };
        linear::forward(dev, group, &linear::Forward { x, y, s, residual, dropout: None, scratch });
    }
}

fn plan_work(planner: &mut Planner, spec: &Spec, block: &Block, limits: Limits) -> Work {
    use Storage::{Activation, F32};
    let mut space = |storage, len| planner.region(Purpose::Workspace, storage, len);
    let (rows, slots, hidden) = (limits.rows, limits.slots, spec.hidden);
    let groups = [&block.qkv, &block.attention_out, &block.gate_up, &block.down];
    let ranks = groups.map(Group::rank_sum).into_iter().max().unwrap_or(0);
    Work {
        x: space(Activation, rows * hidden),
        mid: space(Activation, rows * hidden),
        normed: space(Activation, rows * hidden),
        rstd: space(F32, rows.max(slots)),
        qkv: space(Activation, rows * block.qkv.output),
        qk: space(Activation, rows * block.rope.qk_width()),
        attended: space(Activation, rows * block.attention_out.input),
        lse: space(F32, rows * spec.heads),
        gate_up: space(Activation, rows * block.gate_up.output),
        wide: space(Activation, rows * spec.intermediate),
        s: space(Activation, rows * ranks),
        head_x: space(Activation, slots * hidden),
        head_normed: space(Activation, slots * hidden),
        logits: planner.region(Purpose::Logits, F32, slots * loss::row_len(planner.target(), spec.vocab)),
    }
}

// ---- Qwen v1 beyond the length it was trained on (modeling_qwen.py) -----------------------------------------

/// The table of a prompt of `len` tokens: 0 up to the trained length, then one for every doubling. As there, the
/// prompt decides, and what is generated after it keeps its table.
fn level(spec: &Spec, len: usize) -> usize {
    if !spec.dynamic_ntk {
        return 0;
    }
    (0..usize::BITS as usize).find(|k| len.div_ceil(1 << k) <= spec.max_positions).unwrap_or(0)
}

/// The rotary tables of all levels, one behind the other, each of `capacity` positions. The base is multiplied by
/// `alpha^(d/(d-2))` with `alpha = 2^(level+1) - 1`.
fn tables(spec: &Spec, capacity: usize) -> Vec<f32> {
    let d = spec.head_dim as f64;
    let table = |level: usize| {
        let alpha = ((2u64 << level) - 1) as f64;
        let factor = if level == 0 { 1.0 } else { libm::pow(alpha, d / (d - 2.0)) };
        rope::table(spec.head_dim, spec.rope_theta * factor, capacity)
    };
    (0..=level(spec, capacity)).flat_map(table).collect()
}

/// Factors of the queries: `log(position + 1)` to the base of the trained length, and 1 up to it.
fn logarithms(spec: &Spec, capacity: usize) -> Vec<f32> {
    let trained = spec.max_positions as f64;
    let factor =
        |n: usize| if n > spec.max_positions { libm::log(n as f64) / libm::log(trained) } else { 1.0 };
    (1..=capacity).map(|n| factor(n) as f32).collect()
}
