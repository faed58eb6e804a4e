//! Frozen linear layers that read one input, with their LoRA adapters (Hu et al. 2021), as one operation:
//! `y_i = x·W_iᵀ + b_i + scale_i · (drop(x)·A_iᵀ)·B_iᵀ (+ residual)`.

#[cfg(feature = "cuda")]
pub mod cuda;

use super::philox::philox4x32;
use crate::device::cpu::matmul::{Left, Output, Product, Right, Term};
use crate::device::{Cpu, Device, Indices, Matrix, Region, Target};
use rayon::prelude::*;

/// One adapter: `A` [r, in], `B` [out, r] and their gradients, f32 ranges of the flat buffers.
#[derive(Clone, Copy, Debug)]
pub struct Lora {
    /// Rank.
    pub rank: usize,
    /// Columns in `s`: [`width`] of the rank.
    pub width: usize,
    /// alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub scale: f32,
    /// A, [r, in].
    pub a: Region,
    /// B, [out, r].
    pub b: Region,
    /// Gradient of A, added to.
    pub grad_a: Region,
    /// Gradient of B, added to.
    pub grad_b: Region,
    /// What the products of a GPU read: A [width, in] and B [out, width] in bf16, zero beyond the rank; see [`pack`].
    pub packed: [Region; 2],
}

/// Columns that an adapter of rank `rank` has in `s`: the rank, on a GPU in 16-byte pieces.
#[must_use]
pub fn width(target: Target, rank: usize) -> usize {
    match target {
        Target::Cpu => rank,
        Target::Cuda => rank.next_multiple_of(8),
    }
}

/// One layer of the group: `W` [out, in], its bias `[out]`, and where its output columns begin.
#[derive(Clone)]
pub struct Linear {
    /// Frozen weight [out, in].
    pub weight: Matrix,
    /// Frozen bias `[out]`, f32.
    pub bias: Option<Region>,
    /// First column of this layer's output in the group's output rows.
    pub column: usize,
    /// The adapter, where the layer is a target.
    pub lora: Option<Lora>,
}

/// Dropout of a LoRA input: element i of the mask is a pure function of the key and i, so forward and
/// backward passes compute it alike (see `philox`).
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that an element is zeroed; the rest is multiplied by 1/(1-p).
    pub p: f32,
    /// (seed low, seed high).
    pub key: [u32; 2],
    /// Upper counter words: (layer and input site, step, micro-batch). The lowest word is element / 4.
    pub counter: [u32; 3],
    /// Where a GPU finds the last two of them: they change when its work comes again, the rest does not.
    pub clock: Region,
}

impl Dropout {
    /// Elements whose random word is below this are dropped. p is below 1, so it is at most 2^32 - 256.
    fn limit(&self) -> u32 {
        (f64::from(self.p) * 4_294_967_296.0).ceil() as u32
    }

    /// Factor of the elements that stay.
    fn keep(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

/// The layers that read one input, and the shapes of its rows.
#[derive(Clone)]
pub struct Group {
    /// Input features.
    pub input: usize,
    /// Columns of an output row (the layers' outputs side by side).
    pub output: usize,
    /// The layers.
    pub layers: Vec<Linear>,
}

impl Group {
    /// Columns of `s`: the adapters' side by side.
    #[must_use]
    pub fn rank_sum(&self) -> usize {
        self.layers.iter().filter_map(|l| l.lora.map(|a| a.width)).sum()
    }

    /// f32 elements that the backward pass over `tokens` tokens needs for the parts of the adapters' gradients.
    #[must_use]
    pub fn partial_len(&self, target: Target, tokens: usize) -> usize {
        let part = |l: &Linear| l.lora.map_or(0, |a| (self.input + l.weight.rows()) * a.width);
        match target {
            Target::Cpu => 0,
            Target::Cuda => tokens.div_ceil(SPLIT_TOKENS) * self.layers.iter().map(part).sum::<usize>(),
        }
    }
}

/// Tokens whose part of the adapters' gradients is summed on its own on a GPU. Part of the order of the sum: it never
/// changes.
const SPLIT_TOKENS: usize = 512;

/// The adapters' copies in bf16; see [`Lora::packed`].
#[derive(Clone, Copy, Debug)]
pub struct Packing<'a> {
    /// The flat parameters, f32.
    pub params: Region,
    /// The copies.
    pub packed: Region,
    /// Six integers for each matrix: its first element in `params`, in `packed`, its rows and columns, those of the copy.
    pub table: Indices<'a>,
}

/// Brings the copies up to date; nothing where the parameters themselves are read.
pub fn pack(dev: &mut Device, p: &Packing<'_>) {
    match dev {
        Device::Cpu(_) => {
            let _ = p;
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::pack(cuda, p),
    }
}

/// Operands of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// Input [T, in].
    pub x: Region,
    /// Output [T, output].
    pub y: Region,
    /// Kept: `scale_i · drop(x)·A_iᵀ` of all adapters side by side, [T, rank_sum].
    pub s: Region,
    /// Added to the output when given, [T, output].
    pub residual: Option<Region>,
    /// Dropout of the adapters' input; `None` at probability 0 and in evaluation.
    pub dropout: Option<Dropout>,
    /// Scratch [T, in] for the dropped input; read only with dropout.
    pub scratch: Region,
}

/// Runs the group.
pub fn forward(dev: &mut Device, g: &Group, o: &Forward) {
    match dev {
        Device::Cpu(cpu) => cpu_forward(cpu, g, o),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::forward(cuda, g, o),
    }
}

/// Operands of the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// The forward pass's input [T, in].
    pub x: Region,
    /// The forward pass's `s`.
    pub s: Region,
    /// Gradient of the output [T, output].
    pub dy: Region,
    /// Scratch like `s`: gradients of s.
    pub ds: Region,
    /// Written: gradient of the input [T, in]; `None` where nothing below is trained.
    pub dx: Option<Region>,
    /// As in the forward pass.
    pub dropout: Option<Dropout>,
    /// Scratch [T, in]; used only with dropout.
    pub scratch: Region,
    /// Scratch of [`Group::partial_len`] elements, f32.
    pub partial: Region,
}

/// Adds the adapters' gradients and writes the input's. Never computes a gradient of a frozen weight.
pub fn backward(dev: &mut Device, g: &Group, o: &Backward) {
    match dev {
        Device::Cpu(cpu) => cpu_backward(cpu, g, o),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda::backward(cuda, g, o),
    }
}

/// The adapters with their layers, and the first column of each in `s`.
fn adapters(g: &Group) -> Vec<(&Linear, Lora, usize)> {
    let mut first = 0;
    let mut all = Vec::new();
    for layer in &g.layers {
        if let Some(lora) = layer.lora {
            all.push((layer, lora, first));
            first += lora.width;
        }
    }
    all
}

fn cpu_forward(cpu: &mut Cpu, g: &Group, o: &Forward) {
    let rows = o.x.len / g.input;
    let width = g.rank_sum();
    let adapters = adapters(g);
    if width > 0 {
        let input = dropped(cpu, o.dropout, o.x, o.scratch);
        let mut reads = vec![input];
        reads.extend(adapters.iter().map(|(_, lora, _)| lora.a));
        let (mut engine, r, mut w) = cpu.engine(&reads, &[o.s]);
        let outputs: Vec<_> = adapters
            .iter()
            .zip(&r[1..])
            .map(|((_, lora, first), a)| Output {
                column: *first,
                columns: lora.rank,
                terms: vec![Term { left: 0, first: 0, depth: g.input, right: Right::transposed(a, g.input) }],
                scale: lora.scale,
                bias: None,
            })
            .collect();
        let p = Product {
            rows,
            lefts: &[Left::new(r[0], g.input)],
            outputs: &outputs,
            residual: None,
            accumulate: false,
        };
        engine.multiply(&p, w[0], width);
        cpu.round(o.s);
    }
    forward_outputs(cpu, g, o, rows);
    cpu.round(o.y);
}

/// `y` from `x` and the finished `s`.
fn forward_outputs(cpu: &mut Cpu, g: &Group, o: &Forward, rows: usize) {
    let empty = Region { len: 0, ..o.x };
    let mut reads = vec![o.x, o.s, o.residual.unwrap_or(empty)];
    for layer in &g.layers {
        reads.push(layer.bias.unwrap_or(empty));
        reads.push(layer.lora.map_or(empty, |lora| lora.b));
    }
    let width = g.rank_sum();
    let (mut engine, r, mut w) = cpu.engine(&reads, &[o.y]);
    let mut first = 0;
    let mut outputs = Vec::with_capacity(g.layers.len());
    for (layer, operands) in g.layers.iter().zip(r[3..].chunks_exact(2)) {
        let frozen =
            Term { left: 0, first: 0, depth: g.input, right: Right::weight_transposed(&layer.weight) };
        let mut terms = vec![frozen];
        if let Some(lora) = layer.lora {
            let right = Right::transposed(operands[1], lora.rank);
            terms.push(Term { left: 1, first, depth: lora.rank, right });
            first += lora.rank;
        }
        let bias = layer.bias.map(|_| operands[0]);
        outputs.push(Output { column: layer.column, columns: layer.weight.rows(), terms, scale: 1.0, bias });
    }
    let lefts = [Left::new(r[0], g.input), Left::new(r[1], width)];
    let residual = o.residual.map(|_| r[2]);
    let p = Product { rows, lefts: &lefts, outputs: &outputs, residual, accumulate: false };
    engine.multiply(&p, w[0], g.output);
}

fn cpu_backward(cpu: &mut Cpu, g: &Group, o: &Backward) {
    let adapters = adapters(g);
    if !adapters.is_empty() {
        rank_gradients(cpu, g, o, &adapters);
        cpu.round(o.ds);
        let input = dropped(cpu, o.dropout, o.x, o.scratch);
        for &(layer, lora, first) in &adapters {
            adapter_gradients(cpu, g, o, input, (layer, lora, first));
        }
    }
    let Some(dx) = o.dx else { return };
    match o.dropout {
        Some(dropout) if !adapters.is_empty() => {
            input_gradient(cpu, g, o, dx, Part::Adapters);
            mask(cpu, &dropout, dx);
            input_gradient(cpu, g, o, dx, Part::Frozen);
        }
        _ => input_gradient(cpu, g, o, dx, Part::Both),
    }
    cpu.round(dx);
}

/// `ds_i = scale_i · dy_i·B_i`.
fn rank_gradients(cpu: &mut Cpu, g: &Group, o: &Backward, adapters: &[(&Linear, Lora, usize)]) {
    let mut reads = vec![o.dy];
    reads.extend(adapters.iter().map(|(_, lora, _)| lora.b));
    let (mut engine, r, mut w) = cpu.engine(&reads, &[o.ds]);
    let outputs: Vec<_> = adapters
        .iter()
        .zip(&r[1..])
        .map(|((layer, lora, first), b)| Output {
            column: *first,
            columns: lora.rank,
            terms: vec![Term {
                left: 0,
                first: layer.column,
                depth: layer.weight.rows(),
                right: Right::new(b, lora.rank),
            }],
            scale: lora.scale,
            bias: None,
        })
        .collect();
    let lefts = [Left::new(r[0], g.output)];
    let p = Product {
        rows: o.dy.len / g.output,
        lefts: &lefts,
        outputs: &outputs,
        residual: None,
        accumulate: false,
    };
    engine.multiply(&p, w[0], g.rank_sum());
}

/// `dB += dyᵀ·s` and `dA += dsᵀ·drop(x)` of one adapter.
fn adapter_gradients(
    cpu: &mut Cpu,
    g: &Group,
    o: &Backward,
    input: Region,
    (layer, lora, first): (&Linear, Lora, usize),
) {
    let tokens = o.dy.len / g.output;
    let width = g.rank_sum();
    let whole = |columns, right| {
        [Output {
            column: 0,
            columns,
            terms: vec![Term { left: 0, first: 0, depth: tokens, right }],
            scale: 1.0,
            bias: None,
        }]
    };
    let (mut engine, r, mut w) = cpu.engine(&[o.dy, o.s, o.ds, input], &[lora.grad_b, lora.grad_a]);
    if tokens == 0 {
        return;
    }
    let lefts = [Left::transposed(&r[0][layer.column..], g.output)];
    let outputs = whole(lora.rank, Right::new(&r[1][first..], width));
    let rows = layer.weight.rows();
    let p = Product { rows, lefts: &lefts, outputs: &outputs, residual: None, accumulate: true };
    engine.multiply(&p, w[0], lora.rank);

    let lefts = [Left::transposed(&r[2][first..], width)];
    let outputs = whole(g.input, Right::new(r[3], g.input));
    let p = Product { rows: lora.rank, lefts: &lefts, outputs: &outputs, residual: None, accumulate: true };
    engine.multiply(&p, w[1], g.input);
}

/// Which terms of the input's gradient are summed.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Adapters,
    Frozen,
    Both,
}

/// `dx = Σ ds_i·A_i + Σ dy_i·W_i`, the adapters first; the frozen part alone is added to `dx`.
fn input_gradient(cpu: &mut Cpu, g: &Group, o: &Backward, dx: Region, part: Part) {
    let adapters = adapters(g);
    let mut reads = vec![o.ds, o.dy];
    reads.extend(adapters.iter().map(|(_, lora, _)| lora.a));
    let (mut engine, r, mut w) = cpu.engine(&reads, &[dx]);
    let mut terms = Vec::new();
    if part != Part::Frozen {
        for ((_, lora, first), a) in adapters.iter().zip(&r[2..]) {
            terms.push(Term { left: 0, first: *first, depth: lora.rank, right: Right::new(a, g.input) });
        }
    }
    if part != Part::Adapters {
        for layer in &g.layers {
            let right = Right::weight(&layer.weight);
            terms.push(Term { left: 1, first: layer.column, depth: layer.weight.rows(), right });
        }
    }
    let outputs = [Output { column: 0, columns: g.input, terms, scale: 1.0, bias: None }];
    let lefts = [Left::new(r[0], g.rank_sum()), Left::new(r[1], g.output)];
    let rows = o.dy.len / g.output;
    let p =
        Product { rows, lefts: &lefts, outputs: &outputs, residual: None, accumulate: part == Part::Frozen };
    engine.multiply(&p, w[0], g.input);
}

/// The adapters' input: `x` itself, or its dropped copy in `scratch`.
fn dropped(cpu: &mut Cpu, dropout: Option<Dropout>, x: Region, scratch: Region) -> Region {
    let Some(dropout) = dropout else { return x };
    let out = scratch.slice(0, x.len);
    let isa = cpu.isa;
    let (pool, [source], [target]) = cpu.split([x], [out]);
    in_pieces(pool, target, |first, piece| {
        piece.copy_from_slice(&source[first..first + piece.len()]);
        isa.run(
            #[inline(always)]
            || dropout.apply(first, piece),
        );
    });
    cpu.round(out);
    out
}

/// Applies the mask to a gradient.
fn mask(cpu: &mut Cpu, dropout: &Dropout, dx: Region) {
    let isa = cpu.isa;
    let (pool, [], [target]) = cpu.split([], [dx]);
    in_pieces(pool, target, |first, piece| {
        isa.run(
            #[inline(always)]
            || dropout.apply(first, piece),
        );
    });
}

/// Elements of a piece that one thread takes; a multiple of what [`Dropout::apply`] does at once.
const PIECE: usize = 8192;

/// Calls `f` with pieces of `values` and the index of each one's first element; in parallel when they are many.
fn in_pieces(pool: &rayon::ThreadPool, values: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    if values.len() <= 4 * PIECE {
        return values.chunks_mut(PIECE).enumerate().for_each(|(i, piece)| f(i * PIECE, piece));
    }
    pool.install(|| values.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| f(i * PIECE, piece)));
}

/// Counters whose words are computed side by side.
const COUNTERS: usize = 16;

impl Dropout {
    /// Zeroes or scales `values`, which are the elements from `first` (a multiple of 4) on.
    #[inline(always)]
    fn apply(&self, first: usize, values: &mut [f32]) {
        let (limit, scale) = (self.limit(), self.keep());
        let [a, b, c] = self.counter;
        let mut words = [[0; 4]; COUNTERS];
        for (i, values) in values.chunks_mut(4 * COUNTERS).enumerate() {
            // The lowest counter word is 32 bits: regions have fewer than 2^34 elements.
            let counter = (first / 4 + i * COUNTERS) as u32;
            for (i, words) in (0u32..).zip(&mut words) {
                *words = philox4x32([counter.wrapping_add(i), a, b, c], self.key);
            }
            for (v, word) in values.iter_mut().zip(words.as_flattened()) {
                *v = if *word >= limit { *v * scale } else { 0.0 };
            }
        }
    }
}
