//! Attention over kept keys and values on the CPU.

use super::Cache;
use crate::device::cpu::lanes::{self, LANES};
use crate::device::cpu::math::{bf16, exp};
use crate::device::cpu::tasks;
use crate::device::{Cpu, Region};
use crate::ops::attention::{Attention, Segment};

fn qk_width(p: &Attention) -> usize {
    (p.heads + p.kv_heads) * p.head_dim
}

pub(super) fn append(cpu: &mut Cpu, p: &Attention, qk: Region, qkv: Region, to: &[u32], cache: Cache) {
    let (width, raw, kv) = (qk_width(p), qk_width(p) + p.kv_heads * p.head_dim, p.kv_heads * p.head_dim);
    let (_, [qk, qkv], [k, v]) = cpu.split([qk, qkv], [cache.k, cache.v]);
    assert_eq!(qk.len(), to.len() * width, "one place for each row");
    for ((qk, qkv), to) in qk.chunks_exact(width).zip(qkv.chunks_exact(raw)).zip(to) {
        let place = *to as usize * kv..(*to as usize + 1) * kv;
        k[place.clone()].copy_from_slice(&qk[width - kv..]);
        v[place].copy_from_slice(&qkv[raw - kv..]);
    }
}

pub(super) fn forward(cpu: &mut Cpu, p: &Attention, qk: Region, seen: &[Segment], cache: Cache, out: Region) {
    let (isa, d, kv_heads, rounds) = (cpu.isa, p.head_dim, p.kv_heads, cpu.keeps_bf16());
    let (width, group) = (qk_width(p), p.heads / p.kv_heads * p.head_dim);
    let (pool, [qk, k, v], [y]) = cpu.split([qk, cache.k, cache.v], [out]);
    assert_eq!(y.len(), seen.len() * p.heads * d, "one run of rows for each query");
    tasks::run(
        pool,
        isa,
        y.chunks_exact_mut(group).enumerate().collect(),
        #[inline(always)]
        |(task, y)| {
            let (row, head) = (task / kv_heads, task % kv_heads);
            let rows = Rows { first: seen[row], stride: kv_heads * d, column: head * d, width: d };
            attend(&qk[row * width + head * group..][..group], rows, p.scale, k, v, y);
            if rounds {
                y.iter_mut().for_each(|v| *v = bf16(*v));
            }
        },
    );
    cpu.round(out);
}

/// The rows a query sees, of one key/value head.
#[derive(Clone, Copy)]
struct Rows {
    first: Segment,
    stride: usize,
    column: usize,
    width: usize,
}

impl Rows {
    #[inline(always)]
    fn of(self, values: &[f32]) -> impl Iterator<Item = &[f32]> {
        let start = self.first.start as usize * self.stride;
        let rows = values[start..start + self.first.len as usize * self.stride].chunks_exact(self.stride);
        rows.map(move |row| &row[self.column..self.column + self.width])
    }
}

/// All query heads of one key/value head; softmax over the scores as they are, kept for one head after another.
#[inline(always)]
fn attend(q: &[f32], rows: Rows, scale: f32, k: &[f32], v: &[f32], out: &mut [f32]) {
    let (d, seen) = (rows.width, rows.first.len as usize);
    let heads = q.len() / d;
    let mut weights = vec![0.0f32; heads * seen];
    for (j, k) in rows.of(k).enumerate() {
        for (head, q) in q.chunks_exact(d).enumerate() {
            weights[head * seen + j] = dot(q, k) * scale;
        }
    }
    let mut sums = Vec::with_capacity(heads);
    for weights in weights.chunks_exact_mut(seen) {
        sums.push(exponentials(weights));
    }
    out.fill(0.0);
    for (j, v) in rows.of(v).enumerate() {
        for (head, out) in out.chunks_exact_mut(d).enumerate() {
            let weight = weights[head * seen + j];
            for (out, v) in out.iter_mut().zip(v) {
                *out = weight.mul_add(*v, *out);
            }
        }
    }
    for (out, sum) in out.chunks_exact_mut(d).zip(sums) {
        out.iter_mut().for_each(|v| *v /= sum);
    }
}

/// Every lane multiplies every sixteenth element; the lanes are then added pairwise.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            sums[l] = a[l].mul_add(b[l], sums[l]);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = a.mul_add(*b, *sum);
    }
    lanes::tree(sums)
}

/// Replaces scores by the exponentials of their distance to the largest; gives their sum, lane by lane.
#[inline(always)]
fn exponentials(scores: &mut [f32]) -> f32 {
    let max = scores.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
    let mut sums = [0.0f32; LANES];
    for chunk in scores.chunks_mut(LANES) {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    lanes::tree(sums)
}

pub(super) fn scale_queries(cpu: &mut Cpu, p: &Attention, table: Region, positions: &[u32], qk: Region) {
    let (width, queries) = (qk_width(p), p.heads * p.head_dim);
    let (_, [table], [rows]) = cpu.split([table], [qk]);
    assert_eq!(rows.len(), positions.len() * width, "one position for each row");
    for (row, position) in rows.chunks_exact_mut(width).zip(positions) {
        let factor = table[*position as usize];
        row[..queries].iter_mut().for_each(|q| *q *= factor);
    }
    cpu.round(qk);
}
