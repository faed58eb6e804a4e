//! Where everything of a run lies on its device: constants, adapters, what blocks keep for their backward pass, and the
//! buffers they share. Planned before the first step.

use super::lora::{Layout, Slot};
use super::spec::Spec;
use super::weights::{BlockWeights, LinearWeights, Weights};
use crate::config::Recompute;
use crate::device::{Device, Indices, Matrix, Planner, Purpose, Region, Storage, Target};
use crate::error::{Error, Result};
use crate::ops::linear::{self, Group, Linear, Lora, Packing};
use crate::ops::rmsnorm::RmsNorm;
use crate::ops::rope::{HeadNorm, Rope};
use crate::ops::{loss, reduce};

/// Logits held at once: enough rows to amortise reading the head and, on a GPU, to fill it; bounded for a vocabulary of
/// 150k.
const fn logit_elements(target: Target) -> usize {
    match target {
        Target::Cpu => 1 << 25,
        Target::Cuda => 1 << 28,
    }
}

/// The flat trainable state, four arrays of one layout.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// LoRA parameters.
    pub params: Region,
    /// Their gradients.
    pub grads: Region,
    /// First moments.
    pub m: Region,
    /// Second moments.
    pub v: Region,
    /// Scratch of the gradients' norm.
    pub(super) sums: Region,
}

impl State {
    /// State of which only the parameters are read.
    pub(super) fn reading(params: Region) -> Self {
        State { params, grads: params, m: params, v: params, sums: params }
    }

    /// What a checkpoint keeps: parameters and both moments.
    #[must_use]
    pub fn kept(&self) -> [Region; 3] {
        [self.params, self.m, self.v]
    }
}

/// The linear groups of a block, in forward order; also their dropout sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Qkv,
    AttentionOut,
    GateUp,
    Down,
}

pub(super) struct Block {
    pub(super) attention_norm: RmsNorm,
    pub(super) qkv: Group,
    pub(super) rope: Rope,
    pub(super) attention_out: Group,
    pub(super) mlp_norm: RmsNorm,
    pub(super) gate_up: Group,
    pub(super) down: Group,
}

/// What a block keeps for its backward pass. `s_*` are the LoRA inner products of each group.
#[derive(Clone, Copy)]
pub(super) struct Saved {
    pub(super) attention_rstd: Region,
    pub(super) qkv: Region,
    pub(super) attended: Region,
    pub(super) lse: Region,
    pub(super) mid: Region,
    pub(super) mlp_rstd: Region,
    pub(super) gate_up: Region,
    pub(super) s_qkv: Region,
    pub(super) s_out: Region,
    pub(super) s_gate_up: Region,
    pub(super) s_down: Region,
}

/// Buffers every block overwrites.
pub(super) struct Workspace {
    pub(super) normed: Region,
    pub(super) qk: Region,
    pub(super) wide: Region,
    pub(super) dropped: Region,
    pub(super) dx: Region,
    pub(super) dnormed: Region,
    pub(super) dqkv: Region,
    pub(super) dqk: Region,
    pub(super) dattended: Region,
    pub(super) dwide: Region,
    pub(super) ds: Region,
    pub(super) partial: Region,
    pub(super) delta: Region,
    pub(super) head_x: Region,
    pub(super) head_normed: Region,
    pub(super) head_rstd: Region,
    pub(super) head_dx: Region,
    pub(super) logits: Region,
    pub(super) losses: Region,
}

/// Collects constants (norm weights, biases, the RoPE table) with their regions.
pub(super) struct Constants<'a> {
    pub(super) planner: &'a mut Planner,
    pub(super) values: Vec<(Region, Vec<f32>)>,
}

impl Constants<'_> {
    pub(super) fn add(&mut self, values: &[f32]) -> Region {
        let region = self.planner.region(Purpose::SmallWeights, Storage::F32, values.len());
        self.values.push((region, values.to_vec()));
        region
    }
}

/// Places of the adapters' matrices, also of their copies.
pub(super) struct Adapters<'a> {
    pub(super) layout: &'a Layout,
    pub(super) state: State,
    pub(super) packed: Region,
    pub(super) used: usize,
    pub(super) table: Vec<u32>,
}

impl<'a> Adapters<'a> {
    pub(super) fn plan(planner: &mut Planner, layout: &'a Layout) -> Self {
        let mut trainable = |storage, len| planner.region(Purpose::TrainableState, storage, len);
        let [params, grads, m, v] = [(); 4].map(|()| trainable(Storage::F32, layout.len));
        let state = State { params, grads, m, v, sums: reduce::plan(planner, layout.len) };
        Self::of_state(planner, layout, state)
    }

    /// Adapters whose flat state is planned already.
    pub(super) fn of_state(planner: &mut Planner, layout: &'a Layout, state: State) -> Self {
        let target = planner.target();
        let copies = |s: &Slot| linear::width(target, s.rank) * (s.shape[0] + s.shape[1]);
        let len = layout.slots.iter().map(copies).sum();
        let packed = planner.region(Purpose::TrainableState, Storage::Copy, len);
        Adapters { layout, state, packed, used: 0, table: Vec::new() }
    }

    /// The place of a copy of `rows` × `columns` elements of the [rows, columns] matrix at `source`.
    fn copy(&mut self, source: usize, matrix: [usize; 2], copy: [usize; 2]) -> Region {
        let place = self.packed.slice(self.used, copy[0] * copy[1]);
        let entry = [source, self.used, matrix[0], matrix[1], copy[0], copy[1]];
        self.table.extend(entry.map(|v| v as u32));
        self.used += place.len;
        place
    }

    fn of(&mut self, l: &LinearWeights, target: Target) -> Option<Lora> {
        let slot = self.layout.slot(&l.name.module)?;
        let ([output, input], rank, [a, b]) = (slot.shape, slot.rank, slot.lens());
        let width = linear::width(target, rank);
        let packed = [
            self.copy(slot.a, [rank, input], [width, input]),
            self.copy(slot.b, [output, rank], [output, width]),
        ];
        Some(Lora {
            rank,
            width,
            scale: slot.scale,
            a: self.state.params.slice(slot.a, a),
            b: self.state.params.slice(slot.b, b),
            grad_a: self.state.grads.slice(slot.a, a),
            grad_b: self.state.grads.slice(slot.b, b),
            packed,
        })
    }
}

fn group(
    layers: &[LinearWeights],
    output: usize,
    constants: &mut Constants<'_>,
    adapters: &mut Adapters<'_>,
) -> Group {
    let linears = layers
        .iter()
        .map(|l| Linear {
            weight: l.weight.planned(constants.planner),
            bias: l.bias.as_ref().map(|b| constants.add(b)),
            column: l.name.column,
            lora: adapters.of(l, constants.planner.target()),
        })
        .collect();
    Group { input: layers[0].name.shape[1], output, layers: linears }
}

/// Plans the buffers of one run.
pub(super) struct Shapes<'a> {
    pub(super) planner: &'a mut Planner,
    pub(super) spec: &'a Spec,
    pub(super) tokens: usize,
}

impl Shapes<'_> {
    fn rows(&mut self, purpose: Purpose, storage: Storage, width: usize) -> Region {
        self.planner.region(purpose, storage, self.tokens * width)
    }

    fn saved(&mut self, block: &Block, ranks: [usize; 4], gate_up: Option<Region>) -> Saved {
        use Purpose::SavedActivations as P;
        use Storage::{Activation, F32};
        let (hidden, heads) = (self.spec.hidden, self.spec.heads);
        Saved {
            attention_rstd: self.rows(P, F32, 1),
            qkv: self.rows(P, Activation, block.qkv.output),
            attended: self.rows(P, Activation, heads * self.spec.head_dim),
            lse: self.rows(P, F32, heads),
            mid: self.rows(P, Activation, hidden),
            mlp_rstd: self.rows(P, F32, 1),
            gate_up: gate_up.unwrap_or_else(|| self.rows(P, Activation, block.gate_up.output)),
            s_qkv: self.rows(P, Activation, ranks[0]),
            s_out: self.rows(P, Activation, ranks[1]),
            s_gate_up: self.rows(P, Activation, ranks[2]),
            s_down: self.rows(P, Activation, ranks[3]),
        }
    }

    pub(super) fn workspace(&mut self, blocks: &[Block]) -> Workspace {
        use Purpose::Workspace as P;
        use Storage::{Activation, F32};
        let (hidden, width) = (self.spec.hidden, self.spec.intermediate);
        let attended = self.spec.heads * self.spec.head_dim;
        let (block, target) = (&blocks[0], self.planner.target());
        let groups = || blocks.iter().flat_map(|block| block.parts().map(|(_, group)| group));
        let most = |f: &dyn Fn(&Group) -> usize| groups().map(f).max().unwrap_or(0);
        let logits = loss::row_len(target, self.spec.vocab);
        let chunk = (logit_elements(target) / logits).clamp(1, self.tokens);
        let partial = most(&|g| g.partial_len(target, self.tokens));
        Workspace {
            normed: self.rows(P, Activation, hidden),
            qk: self.rows(P, Activation, block.rope.qk_width()),
            wide: self.rows(P, Activation, width),
            dropped: self.rows(P, Activation, hidden.max(width).max(attended)),
            dx: self.rows(P, Activation, hidden),
            dnormed: self.rows(P, Activation, hidden),
            dqkv: self.rows(P, Activation, block.qkv.output),
            dqk: self.rows(P, Activation, block.rope.qk_width()),
            dattended: self.rows(P, Activation, attended),
            dwide: self.rows(P, Activation, width),
            ds: self.rows(P, Activation, most(&Group::rank_sum)),
            partial: self.planner.region(P, F32, partial),
            delta: self.rows(P, F32, self.spec.heads),
            head_x: self.rows(P, Activation, hidden),
            head_normed: self.rows(P, Activation, hidden),
            head_rstd: self.rows(P, F32, 1),
            head_dx: self.rows(P, Activation, hidden),
            logits: self.planner.region(Purpose::Logits, F32, chunk * logits),
            losses: self.rows(P, F32, 1),
        }
    }
}

impl Block {
    pub(super) fn new(
        weights: &BlockWeights,
        spec: &Spec,
        table: Region,
        constants: &mut Constants<'_>,
        adapters: &mut Adapters<'_>,
    ) -> Self {
        let norm = |weight| RmsNorm { dim: spec.hidden, eps: spec.norm_eps, weight };
        let head_norm = weights.qk_norm.as_ref().map(|[q, k]| HeadNorm {
            q: constants.add(q),
            k: constants.add(k),
            eps: spec.norm_eps,
        });
        let rope = Rope {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            table,
            norm: head_norm,
        };
        let attention_norm = norm(constants.add(&weights.attention_norm));
        let mlp_norm = norm(constants.add(&weights.mlp_norm));
        let mut linears = |layers: &[LinearWeights], output| group(layers, output, constants, adapters);
        Block {
            attention_norm,
            qkv: linears(&weights.qkv, rope.qkv_width()),
            rope,
            attention_out: linears(std::slice::from_ref(&weights.attention_out), spec.hidden),
            mlp_norm,
            gate_up: linears(&weights.gate_up, 2 * spec.intermediate),
            down: linears(std::slice::from_ref(&weights.down), spec.hidden),
        }
    }

    /// Rank sums of the groups, in the order of [`Block::parts`].
    pub(super) fn ranks(&self) -> [usize; 4] {
        self.parts().map(|(_, group)| group.rank_sum())
    }

    pub(super) fn parts(&self) -> [(Part, &Group); 4] {
        [
            (Part::Qkv, &self.qkv),
            (Part::AttentionOut, &self.attention_out),
            (Part::GateUp, &self.gate_up),
            (Part::Down, &self.down),
        ]
    }
}

/// Everything a device has to be told before it can run blocks.
pub(super) struct Uploads {
    pub(super) constants: Vec<(Region, Vec<f32>)>,
    /// The table of the adapters' copies.
    pub(super) table: (Region, Vec<u32>),
}

impl Uploads {
    /// Writes norm weights, biases, tables and, where the device keeps copies, the frozen matrices. `progress` gets the bytes
    /// of matrices that are done and those in all.
    pub(super) fn run(
        &mut self,
        dev: &mut Device,
        blocks: &[Block],
        [embedding, head]: [&Matrix; 2],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        for (region, values) in self.constants.drain(..) {
            dev.write(region, &values)?;
        }
        dev.place(self.table.0, [&self.table.1])?;
        if dev.target() == Target::Cpu {
            return Ok(());
        }
        let layers = blocks.iter().flat_map(Block::parts).flat_map(|(_, g)| &g.layers);
        let mut all: Vec<&Matrix> = layers.map(|l| &l.weight).chain([embedding]).collect();
        if !head.is_same(embedding) {
            all.push(head);
        }
        let total = all.iter().map(|m| m.bytes().len() as u64).sum();
        let mut done = 0;
        for matrix in all {
            dev.upload(matrix)?;
            done += matrix.bytes().len() as u64;
            progress(done, total);
        }
        Ok(())
    }

    /// What [`linear::pack`] reads.
    pub(super) fn packing(&self, params: Region, packed: Region) -> Packing<'_> {
        Packing { params, packed, table: Indices { values: &self.table.1, copy: self.table.0 } }
    }
}

/// Embedding and head with their places on the device; one where they are tied.
pub(super) fn plan_ends(planner: &mut Planner, weights: &Weights) -> [Matrix; 2] {
    let embedding = weights.embedding.planned(planner);
    let tied = weights.head.is_same(&weights.embedding);
    let head = if tied { embedding.clone() } else { weights.head.planned(planner) };
    [embedding, head]
}

/// What the kernels of a GPU cannot do, by name.
pub(super) fn check_shapes(target: Target, spec: &Spec) -> Result<()> {
    if target == Target::Cpu {
        return Ok(());
    }
    let refused =
        |what: String| Err(Error::input(format!("model: {what}")).hint("train this model with --device cpu"));
    if ![64, 128].contains(&spec.head_dim) {
        return refused(format!("heads of {} elements; the GPU's kernels are for 64 and 128", spec.head_dim));
    }
    for (name, size) in [("hidden_size", spec.hidden), ("intermediate_size", spec.intermediate)] {
        if !size.is_multiple_of(8) {
            return refused(format!("{name} {size}; the GPU's kernels need a multiple of 8"));
        }
    }
    Ok(())
}

/// The largest rank sum of each group over all blocks.
pub(super) fn widest(blocks: &[Block]) -> [usize; 4] {
    blocks.iter().map(Block::ranks).fold([0; 4], |most, ranks| std::array::from_fn(|i| most[i].max(ranks[i])))
}

/// Blocks below the first adapted one share a set; so do all blocks when everything is recomputed.
pub(super) fn plan_saved(
    shapes: &mut Shapes<'_>,
    blocks: &[Block],
    first: usize,
    recompute: Recompute,
) -> Vec<Saved> {
    let shared =
        (first > 0 || recompute == Recompute::Full).then(|| shapes.saved(&blocks[0], widest(blocks), None));
    let mut gate_up = None;
    let own = |shapes: &mut Shapes<'_>, block: &Block, gate_up: &mut Option<Region>| {
        let saved = shapes.saved(block, block.ranks(), *gate_up);
        if recompute == Recompute::Mlp {
            *gate_up = Some(saved.gate_up);
        }
        saved
    };
    (0..blocks.len())
        .map(|layer| match shared {
            Some(saved) if layer < first || recompute == Recompute::Full => saved,
            _ => own(shapes, &blocks[layer], &mut gate_up),
        })
        .collect()
}

/// The residual stream before each block and after the last; blocks below the first adapted one alternate
/// between two buffers.
pub(super) fn plan_residuals(shapes: &mut Shapes<'_>, layers: usize, first: usize) -> Vec<Region> {
    let hidden = shapes.spec.hidden;
    let mut residuals: Vec<Region> = Vec::with_capacity(layers + 1);
    for layer in 0..=layers {
        let region = match layer {
            2.. if layer < first => residuals[layer - 2],
            _ => shapes.rows(Purpose::SavedActivations, Storage::Activation, hidden),
        };
        residuals.push(region);
    }
    residuals
}
