//! The fused head on the CPU, a chunk of rows after the other.

use super::Loss;
use crate::device::cpu::BLOCK;
use crate::device::cpu::lanes::{self, LANES};
use crate::device::cpu::math::{exp, ln};
use crate::device::cpu::matmul::{Left, Output, Product, Right, Term};
use crate::device::cpu::tasks;
use crate::device::{Cpu, Matrix, Region};

/// Columns of the gradient of the logits multiplied at a time: bounds the packed copy of them.
const DEPTH: usize = 16 * BLOCK;

pub(super) fn run(cpu: &mut Cpu, p: &Loss<'_>, x: Region, backward: Option<(f32, Region)>) {
    let (vocab, hidden) = (p.head.rows(), p.head.cols());
    let rows = p.logits.len / vocab;
    assert!(rows > 0, "the logits' chunk holds no row");
    let mut losses = vec![0.0; p.targets.len()];
    for (chunk, (targets, losses)) in p.targets.values.chunks(rows).zip(losses.chunks_mut(rows)).enumerate() {
        let x = x.slice(chunk * rows * hidden, targets.len() * hidden);
        let chunk_logits = p.logits.slice(0, targets.len() * vocab);
        logits(cpu, p.head, x, chunk_logits);
        score_rows(cpu, targets, chunk_logits, vocab, losses, backward.is_some());
        if let Some((scale, dx)) = backward {
            let dx = dx.slice(chunk * rows * hidden, targets.len() * hidden);
            hidden_gradient(cpu, p.head, chunk_logits, scale, dx);
            cpu.round(dx);
        }
    }
    cpu.write(p.losses).copy_from_slice(&losses);
}

/// `logits = x·headᵀ`.
pub(in crate::ops) fn logits(cpu: &mut Cpu, head: &Matrix, x: Region, logits: Region) {
    let (mut engine, r, mut w) = cpu.engine(&[x], &[logits]);
    let right = Right::weight_transposed(head);
    let terms = vec![Term { left: 0, first: 0, depth: head.cols(), right }];
    let outputs = [Output { column: 0, columns: head.rows(), terms, scale: 1.0, bias: None }];
    let lefts = [Left::new(r[0], head.cols())];
    let rows = x.len / head.cols();
    let p =
        Product { rows, lefts: &lefts, outputs: &outputs, residual: None, accumulate: false, rounds: false };
    engine.multiply(&p, w[0], head.rows());
}

/// `dx = scale · dlogits·head`, a range of the vocabulary after the other. The scale comes last: a row that is rounded to bf16
/// would else be rounded the same way everywhere, by the scale's own error.
fn hidden_gradient(cpu: &mut Cpu, head: &Matrix, dlogits: Region, scale: f32, dx: Region) {
    let (vocab, hidden) = (head.rows(), head.cols());
    let (mut engine, r, mut w) = cpu.engine(&[dlogits], &[dx]);
    for first in (0..vocab).step_by(DEPTH) {
        let depth = DEPTH.min(vocab - first);
        let slice = head.row_range(first, depth);
        let terms = vec![Term { left: 0, first: 0, depth, right: Right::weight(&slice) }];
        let scale = if first + depth == vocab { scale } else { 1.0 };
        let outputs = [Output { column: 0, columns: hidden, terms, scale, bias: None }];
        let lefts = [Left::new(&r[0][first..], vocab)];
        let rows = dx.len / hidden;
        let p = Product {
            rows,
            lefts: &lefts,
            outputs: &outputs,
            residual: None,
            accumulate: first > 0,
            rounds: false,
        };
        engine.multiply(&p, w[0], hidden);
    }
}

/// Loss of each row of logits; replaces the row by its gradient where that is wanted.
fn score_rows(
    cpu: &mut Cpu,
    targets: &[u32],
    logits: Region,
    vocab: usize,
    losses: &mut [f32],
    gradient: bool,
) {
    let isa = cpu.isa;
    let (pool, [], [logits]) = cpu.split([], [logits]);
    let n = tasks::rows(vocab);
    tasks::run(
        pool,
        isa,
        logits.chunks_mut(n * vocab).zip(losses.chunks_mut(n)).zip(targets.chunks(n)).collect(),
        #[inline(always)]
        |((rows, losses), targets)| {
            for ((row, loss), target) in rows.chunks_exact_mut(vocab).zip(losses).zip(targets) {
                *loss = score_row(row, *target as usize, gradient);
            }
        },
    );
}

/// `ln Σ exp(l - max) - (l[target] - max)`, stable for any finite logits.
#[inline(always)]
fn score_row(row: &mut [f32], target: usize, gradient: bool) -> f32 {
    let max = maximum(row);
    let at_target = row[target] - max;
    let sum = sum_of_exponentials(row, max);
    if gradient {
        let factor = 1.0 / sum;
        for v in row.iter_mut() {
            *v = exp(*v - max) * factor;
        }
        row[target] -= 1.0;
    }
    ln(sum) - at_target
}

#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (m, v) in lanes.iter_mut().zip(chunk) {
            *m = if *v > *m { *v } else { *m };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m })
}

/// Every lane sums every sixteenth element; the lanes are then added pairwise.
#[inline(always)]
fn sum_of_exponentials(row: &[f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for chunk in row.chunks(LANES) {
        for (sum, v) in lanes.iter_mut().zip(chunk) {
            *sum += exp(*v - max);
        }
    }
    lanes::tree(lanes)
}
