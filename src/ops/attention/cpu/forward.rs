//! Attention on the CPU, forward: queries in the lanes, a running softmax over the keys (Milakov & Gimelshein
//! 2018).

use super::blocks::{Block, Columns, blocks, cut, cut_statistic, hide_keys_in_rows, write_rows};
use super::{QUERIES, STEP};
use crate::device::cpu::Isa;
use crate::device::cpu::lanes::{LANES, Lanes, column_products, row_products};
use crate::device::cpu::math::{bf16, exp, ln};
use crate::device::cpu::tasks;
use crate::device::cpu::tile::Tile;
use crate::device::{Cpu, Region};
use crate::ops::attention::{Attention, Segment};

/// Writes output and log-sum-exp (`writes`) from `qk` and `qkv` (`reads`).
pub(in super::super) fn run(
    cpu: &mut Cpu,
    p: &Attention,
    segments: &[Segment],
    reads: [Region; 2],
    writes: [Region; 2],
) {
    let (isa, d, rounds) = (cpu.isa, p.head_dim, cpu.keeps_bf16());
    let (pool, [qk, qkv], [out, lse]) = cpu.split(reads, writes);
    let tokens = out.len() / (p.heads * d);
    let blocks = blocks(segments, QUERIES, tokens);
    let outs = cut(Tile::new(out, p.heads * d), p.heads, d, &blocks);
    let lses = cut_statistic(lse, p.heads, &blocks);
    let places = (0..p.heads).flat_map(|h| blocks.iter().map(move |b| (h, *b)));
    tasks::run(
        pool,
        isa,
        places.zip(outs.into_iter().zip(lses)).collect(),
        #[inline(always)]
        |((head, block), (out, lse))| {
            let kv = head / p.group();
            let q = Columns::head(qk, p.qk_width(), head, d);
            let k = Columns::head(qk, p.qk_width(), p.heads + kv, d);
            let v = Columns::head(qkv, p.qkv_width(), p.heads + p.kv_heads + kv, d);
            let panels = forward_block(isa, [q, k, v], p.scale, block, lse);
            finish(panels, block, rounds, out);
        },
    );
    cpu.round(writes[0]);
}

/// Sixteen queries on their way through the keys.
struct Softmax {
    /// First query, its row.
    first: usize,
    rows: usize,
    q: Vec<Lanes>,
    /// Unnormalised output, `[D]`.
    out: Vec<Lanes>,
    max: Lanes,
    sum: Lanes,
}

#[inline(always)]
fn forward_block(
    isa: Isa,
    [q, k, v]: [Columns<'_>; 3],
    scale: f32,
    block: Block,
    lse: &mut [f32],
) -> Vec<Softmax> {
    let d = q.width;
    let mut panels: Vec<Softmax> = (0..block.rows)
        .step_by(LANES)
        .map(|r| Softmax {
            first: block.first + r,
            rows: LANES.min(block.rows - r),
            q: q.panel(block.first + r, block.rows - r),
            out: vec![[0.0; LANES]; d],
            max: [f32::NEG_INFINITY; LANES],
            sum: [0.0; LANES],
        })
        .collect();
    let (mut keys, mut values) = (vec![0.0; STEP * d], vec![0.0; STEP * d]);
    let mut scores = [[0.0; LANES]; STEP];
    let end = block.first + block.rows;
    for first in (block.start..end).step_by(STEP) {
        let count = STEP.min(end - first);
        k.copy(first, &mut keys[..count * d]);
        v.copy(first, &mut values[..count * d]);
        for panel in &mut panels {
            let seen = count.min((panel.first + panel.rows).saturating_sub(first));
            if seen > 0 {
                row_products(isa, &keys, &panel.q, &mut scores[..seen]);
                panel.weigh(&mut scores[..seen], scale, first);
                column_products(isa, &values, &scores[..seen], &mut panel.out);
            }
        }
    }
    for (panel, lse) in panels.iter().zip(lse.chunks_mut(LANES)) {
        for (l, lse) in lse.iter_mut().enumerate() {
            *lse = panel.max[l] + ln(panel.sum[l]);
        }
    }
    panels
}

/// Divides by the sums, rounds where that is asked for, and writes.
#[inline(always)]
fn finish(panels: Vec<Softmax>, block: Block, rounds: bool, mut out: Tile<'_>) {
    for mut panel in panels {
        for row in &mut panel.out {
            for (v, sum) in row.iter_mut().zip(&panel.sum) {
                *v /= sum;
            }
            if rounds {
                row.iter_mut().for_each(|v| *v = bf16(*v));
            }
        }
        write_rows(&mut out, &panel.out, panel.first - block.first, panel.rows);
    }
}

impl Softmax {
    /// Replaces the products with the keys from `first` on by their unnormalised weights, and brings maximum,
    /// sum and output up to the new maximum.
    #[inline(always)]
    fn weigh(&mut self, scores: &mut [Lanes], scale: f32, first: usize) {
        let old = self.max;
        hide_keys_in_rows(scores, first, self.first, f32::NEG_INFINITY);
        for scores in scores.iter_mut() {
            for (score, max) in scores.iter_mut().zip(&mut self.max) {
                *score *= scale;
                *max = if *score > *max { *score } else { *max };
            }
        }
        let mut sum = [0.0f32; LANES];
        for scores in scores.iter_mut() {
            for ((score, max), sum) in scores.iter_mut().zip(&self.max).zip(&mut sum) {
                *score = exp(*score - max);
                *sum += *score;
            }
        }
        let mut factor = [0.0f32; LANES];
        for l in 0..LANES {
            factor[l] = exp(old[l] - self.max[l]);
            self.sum[l] = self.sum[l].mul_add(factor[l], sum[l]);
        }
        if factor != [1.0; LANES] {
            for row in &mut self.out {
                for (v, factor) in row.iter_mut().zip(&factor) {
                    *v *= factor;
                }
            }
        }
    }
}
