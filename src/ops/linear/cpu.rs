//! Linear layers with adapters on the CPU.

use super::{Backward, Dropout, Forward, Group, Linear, Lora, adapters};
use crate::device::cpu::matmul::{Left, Output, Product, Right, Term};
use crate::device::cpu::tasks;
use crate::device::{Cpu, Region};
use crate::philox::philox4x32;

pub(super) fn forward(cpu: &mut Cpu, g: &Group, o: &Forward) {
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
            rounds: false,
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
    let rounds = o.kept && cpu.keeps_bf16();
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
    let p = Product { rows, lefts: &lefts, outputs: &outputs, residual, accumulate: false, rounds };
    engine.multiply(&p, w[0], g.output);
}

pub(super) fn backward(cpu: &mut Cpu, g: &Group, o: &Backward) {
    let adapters = adapters(g);
    if !adapters.is_empty() {
        rank_gradients(cpu, g, o, &adapters);
        cpu.round(o.ds);
        let input = dropped(cpu, o.dropout, o.x, o.scratch);
        if o.dy.len > 0 {
            a_gradients(cpu, g, o, input, &adapters);
            adapters.chunk_by(|a, b| a.1.rank == b.1.rank).for_each(|same| b_gradients(cpu, g, o, same));
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
        rounds: false,
    };
    engine.multiply(&p, w[0], g.rank_sum());
}

/// `dA += dsᵀ·drop(x)`. The gradient of these tokens is summed by itself, in `o.partial`, and then added: so the order of the
/// sum over micro-batches does not depend on who computes them.
fn a_gradients(cpu: &mut Cpu, g: &Group, o: &Backward, input: Region, adapters: &[(&Linear, Lora, usize)]) {
    let (width, tokens) = (g.rank_sum(), o.dy.len / g.output);
    let partial = o.partial.slice(0, width * g.input);
    let (mut engine, r, mut w) = cpu.engine(&[o.ds, input], &[partial]);
    let lefts = [Left::transposed(r[0], width)];
    let outputs = [over_tokens(0, g.input, tokens, 0, Right::new(r[1], g.input))];
    let p = Product {
        rows: width,
        lefts: &lefts,
        outputs: &outputs,
        residual: None,
        accumulate: false,
        rounds: false,
    };
    engine.multiply(&p, w[0], g.input);
    add_parts(cpu, g, partial, adapters);
}

/// `dB += dyᵀ·s` of adapters of one rank, summed as [`a_gradients`]: transposed, which reads dy as it lies.
fn b_gradients(cpu: &mut Cpu, g: &Group, o: &Backward, adapters: &[(&Linear, Lora, usize)]) {
    let (width, tokens, rank) = (g.rank_sum(), o.dy.len / g.output, adapters[0].1.rank);
    let partial = o.partial.slice(0, rank * g.output);
    let (mut engine, r, mut w) = cpu.engine(&[o.s, o.dy], &[partial]);
    let (mut lefts, mut outputs) = (Vec::new(), Vec::new());
    for (index, (layer, _, first)) in adapters.iter().enumerate() {
        lefts.push(Left::transposed(&r[0][*first..], width));
        let right = Right::new(&r[1][layer.column..], g.output);
        outputs.push(over_tokens(layer.column, layer.weight.rows(), tokens, index, right));
    }
    let p = Product {
        rows: rank,
        lefts: &lefts,
        outputs: &outputs,
        residual: None,
        accumulate: false,
        rounds: false,
    };
    engine.multiply(&p, w[0], g.output);
    for (layer, lora, _) in adapters {
        let (_, [from], [to]) = cpu.split([partial], [lora.grad_b]);
        for (column, row) in to.chunks_exact_mut(rank).enumerate() {
            for (r, v) in row.iter_mut().enumerate() {
                *v += from[r * g.output + layer.column + column];
            }
        }
    }
}

/// One product over all tokens.
fn over_tokens<'a>(
    column: usize,
    columns: usize,
    tokens: usize,
    left: usize,
    right: Right<'a>,
) -> Output<'a> {
    let terms = vec![Term { left, first: 0, depth: tokens, right }];
    Output { column, columns, terms, scale: 1.0, bias: None }
}

/// `dA += partial`, for all adapters at once.
fn add_parts(cpu: &mut Cpu, g: &Group, partial: Region, adapters: &[(&Linear, Lora, usize)]) {
    let isa = cpu.isa;
    let parts = adapters.iter().map(|(_, a, first)| partial.slice(first * g.input, a.rank * g.input));
    let (from, to): (Vec<_>, Vec<_>) = parts.zip(adapters.iter().map(|(_, a, _)| a.grad_a)).unzip();
    let (engine, from, to) = cpu.engine(&from, &to);
    let n = tasks::ELEMENTS;
    let pieces = to.into_iter().zip(from).flat_map(|(to, from)| to.chunks_mut(n).zip(from.chunks(n)));
    tasks::run(
        engine.threads,
        isa,
        pieces.collect(),
        #[inline(always)]
        |(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
    );
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
    let p = Product {
        rows,
        lefts: &lefts,
        outputs: &outputs,
        residual: None,
        accumulate: part == Part::Frozen,
        rounds: false,
    };
    engine.multiply(&p, w[0], g.input);
}

/// The adapters' input: `x` itself, or its dropped copy in `scratch`.
fn dropped(cpu: &mut Cpu, dropout: Option<Dropout>, x: Region, scratch: Region) -> Region {
    let Some(dropout) = dropout else { return x };
    let out = scratch.slice(0, x.len);
    let isa = cpu.isa;
    let (pool, [source], [target]) = cpu.split([x], [out]);
    tasks::run(
        pool,
        isa,
        pieces(target),
        #[inline(always)]
        |(first, piece)| {
            piece.copy_from_slice(&source[first..first + piece.len()]);
            dropout.apply(first, piece);
        },
    );
    cpu.round(out);
    out
}

/// Applies the mask to a gradient.
fn mask(cpu: &mut Cpu, dropout: &Dropout, dx: Region) {
    let isa = cpu.isa;
    let (pool, [], [target]) = cpu.split([], [dx]);
    tasks::run(
        pool,
        isa,
        pieces(target),
        #[inline(always)]
        |(first, piece)| dropout.apply(first, piece),
    );
}

/// Pieces of `values` that begin where a counter does, with the index of each one's first element.
fn pieces(values: &mut [f32]) -> Vec<(usize, &mut [f32])> {
    let pieces = values.chunks_mut(tasks::ELEMENTS).enumerate();
    pieces.map(|(i, piece)| (i * tasks::ELEMENTS, piece)).collect()
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
