//! Attention on the CPU, backward: dQ with queries in the lanes, dK and dV with keys in the lanes. The scores
//! are computed in both, which costs two products of seven and needs no sum between tasks.

use super::blocks::{
    Block, Columns, blocks, cut, cut_statistic, hide_keys_in_lanes, hide_keys_in_rows, write_rows,
};
use super::{KEYS, QUERIES, STEP};
use crate::device::Cpu;
use crate::device::cpu::Isa;
use crate::device::cpu::lanes::{self, LANES, Lanes, column_products, row_products};
use crate::device::cpu::math::exp;
use crate::device::cpu::tasks;
use crate::device::cpu::tile::Tile;
use crate::ops::attention::{Attention, Backward, Segment};

/// Writes the gradients of rotated q and k, and of v.
pub(in super::super) fn run(cpu: &mut Cpu, p: &Attention, segments: &[Segment], o: &Backward) {
    query_gradient(cpu, p, segments, o);
    key_value_gradient(cpu, p, segments, o);
    cpu.round(o.dqk);
    cpu.round(o.dqkv);
}

/// What the gradients of one query head are computed from.
struct Operands<'a> {
    q: Columns<'a>,
    k: Columns<'a>,
    v: Columns<'a>,
    dout: Columns<'a>,
    lse: &'a [f32],
    scale: f32,
}

impl<'a> Operands<'a> {
    /// Those of query head `head`; the slices are `qk`, `qkv`, `dout` and `lse`.
    fn of(p: &Attention, [qk, qkv, dout, lse]: [&'a [f32]; 4], head: usize) -> Self {
        let (kv, d) = (head / p.group(), p.head_dim);
        let tokens = dout.len() / (p.heads * d);
        Operands {
            q: Columns::head(qk, p.qk_width(), head, d),
            k: Columns::head(qk, p.qk_width(), p.heads + kv, d),
            v: Columns::head(qkv, p.qkv_width(), p.heads + p.kv_heads + kv, d),
            dout: Columns::head(dout, p.heads * d, head, d),
            lse: &lse[head * tokens..][..tokens],
            scale: p.scale,
        }
    }
}

/// `dQ`, and `delta[h, t] = Σ dout∘out` of each row and head.
fn query_gradient(cpu: &mut Cpu, p: &Attention, segments: &[Segment], o: &Backward) {
    let (isa, d) = (cpu.isa, p.head_dim);
    let reads = [o.qk, o.qkv, o.dout, o.lse, o.out];
    let (pool, [qk, qkv, dout, lse, out], [dqk, delta]) = cpu.split(reads, [o.dqk, o.delta]);
    let blocks = blocks(segments, QUERIES, dqk.len() / p.qk_width());
    let deltas = cut_statistic(delta, p.heads, &blocks);
    let dqs = cut(Tile::new(dqk, p.qk_width()), p.heads, d, &blocks);
    let places = (0..p.heads).flat_map(|h| blocks.iter().map(move |b| (h, *b)));
    tasks::run(
        pool,
        isa,
        places.zip(dqs.into_iter().zip(deltas)).collect(),
        #[inline(always)]
        |((head, block), (dq, delta))| {
            let o = Operands::of(p, [qk, qkv, dout, lse], head);
            let out = Columns::head(out, p.heads * d, head, d);
            for (row, delta) in (block.first..).zip(delta.iter_mut()) {
                *delta = lanes::dot(out.row(row), o.dout.row(row)) as f32;
            }
            query_block(isa, &o, block, delta, dq);
        },
    );
}

/// Sixteen queries of the backward pass.
struct QueryPanel {
    first: usize,
    rows: usize,
    q: Vec<Lanes>,
    dout: Vec<Lanes>,
    dq: Vec<Lanes>,
    lse: Lanes,
    delta: Lanes,
}

impl QueryPanel {
    #[inline(always)]
    fn new(o: &Operands<'_>, first: usize, deltas: &[f32]) -> Self {
        let rows = deltas.len();
        let (mut lse, mut delta) = ([0.0; LANES], [0.0; LANES]);
        lse[..rows].copy_from_slice(&o.lse[first..first + rows]);
        delta[..rows].copy_from_slice(deltas);
        let dq = vec![[0.0; LANES]; o.q.width];
        QueryPanel { first, rows, q: o.q.panel(first, rows), dout: o.dout.panel(first, rows), dq, lse, delta }
    }

    /// Replaces the products with the keys from `first` on by the gradients of the scaled scores.
    #[inline(always)]
    fn differentiate(&self, scores: &mut [Lanes], dweights: &[Lanes], scale: f32, first: usize) {
        for (scores, dweights) in scores.iter_mut().zip(dweights) {
            for l in 0..LANES {
                let weight = exp(scores[l] * scale - self.lse[l]);
                scores[l] = weight * (dweights[l] - self.delta[l]) * scale;
            }
        }
        hide_keys_in_rows(scores, first, self.first, 0.0);
    }
}

/// `dQ = Σ dS·K`, with dS = P∘(dout·Vᵀ - delta)·scale.
#[inline(always)]
fn query_block(isa: Isa, o: &Operands<'_>, block: Block, delta: &[f32], mut out: Tile<'_>) {
    let d = o.q.width;
    let firsts = (block.first..).step_by(LANES);
    let mut panels: Vec<QueryPanel> =
        firsts.zip(delta.chunks(LANES)).map(|(first, delta)| QueryPanel::new(o, first, delta)).collect();
    let (mut keys, mut values) = (vec![0.0; STEP * d], vec![0.0; STEP * d]);
    let (mut scores, mut dweights) = ([[0.0; LANES]; STEP], [[0.0; LANES]; STEP]);
    let end = block.first + block.rows;
    for first in (block.start..end).step_by(STEP) {
        let count = STEP.min(end - first);
        o.k.copy(first, &mut keys[..count * d]);
        o.v.copy(first, &mut values[..count * d]);
        for panel in &mut panels {
            let seen = count.min((panel.first + panel.rows).saturating_sub(first));
            if seen > 0 {
                row_products(isa, &keys, &panel.q, &mut scores[..seen]);
                row_products(isa, &values, &panel.dout, &mut dweights[..seen]);
                panel.differentiate(&mut scores[..seen], &dweights, o.scale, first);
                column_products(isa, &keys, &scores[..seen], &mut panel.dq);
            }
        }
    }
    for panel in &panels {
        write_rows(&mut out, &panel.dq, panel.first - block.first, panel.rows);
    }
}

fn key_value_gradient(cpu: &mut Cpu, p: &Attention, segments: &[Segment], o: &Backward) {
    let (isa, d) = (cpu.isa, p.head_dim);
    let reads = [o.qk, o.qkv, o.dout, o.lse, o.delta];
    let (pool, [qk, qkv, dout, lse, delta], [dqk, dqkv]) = cpu.split(reads, [o.dqk, o.dqkv]);
    let (sources, tokens) = ([qk, qkv, dout, lse], dqk.len() / p.qk_width());
    let blocks = blocks(segments, KEYS, tokens);
    let (_, dk) = Tile::new(dqk, p.qk_width()).split_cols(p.heads * d);
    let (_, dv) = Tile::new(dqkv, p.qkv_width()).split_cols(p.qk_width());
    let tiles = cut(dk, p.kv_heads, d, &blocks).into_iter().zip(cut(dv, p.kv_heads, d, &blocks));
    let places = (0..p.kv_heads).flat_map(|h| blocks.iter().map(move |b| (h, *b)));
    tasks::run(
        pool,
        isa,
        places.zip(tiles).collect(),
        #[inline(always)]
        |((kv, block), (dk, dv))| {
            let first = Operands::of(p, sources, kv * p.group());
            let mut panels = KeyPanel::all(&first, block);
            for head in kv * p.group()..(kv + 1) * p.group() {
                let delta = &delta[head * tokens..][..tokens];
                key_block(isa, &Operands::of(p, sources, head), delta, block, &mut panels);
            }
            write_key_panels(&panels, block, dk, dv);
        },
    );
}

/// Sixteen keys of the backward pass.
struct KeyPanel {
    first: usize,
    rows: usize,
    k: Vec<Lanes>,
    v: Vec<Lanes>,
    dk: Vec<Lanes>,
    dv: Vec<Lanes>,
}

impl KeyPanel {
    #[inline(always)]
    fn all(o: &Operands<'_>, block: Block) -> Vec<Self> {
        let zero = || vec![[0.0; LANES]; o.k.width];
        (0..block.rows)
            .step_by(LANES)
            .map(|r| {
                let (first, rows) = (block.first + r, LANES.min(block.rows - r));
                let (k, v) = (o.k.panel(first, rows), o.v.panel(first, rows));
                KeyPanel { first, rows, k, v, dk: zero(), dv: zero() }
            })
            .collect()
    }

    /// Replaces the products with the queries from `first` on by the weights, and the products with their
    /// output gradients by the gradients of the scaled scores.
    #[inline(always)]
    fn differentiate(
        &self,
        o: &Operands<'_>,
        delta: &[f32],
        scores: &mut [Lanes],
        dweights: &mut [Lanes],
        first: usize,
    ) {
        let statistics = o.lse[first..].iter().zip(&delta[first..]);
        for ((scores, dweights), (lse, delta)) in scores.iter_mut().zip(dweights.iter_mut()).zip(statistics) {
            for l in 0..LANES {
                scores[l] = exp(scores[l] * o.scale - lse);
                dweights[l] = scores[l] * (dweights[l] - delta) * o.scale;
            }
        }
        hide_keys_in_lanes(scores, first, self.first);
        hide_keys_in_lanes(dweights, first, self.first);
    }
}

/// One query head's part of `dK = Σ dSᵀ·Q` and `dV = Σ Pᵀ·dout`.
#[inline(always)]
fn key_block(isa: Isa, o: &Operands<'_>, delta: &[f32], block: Block, panels: &mut [KeyPanel]) {
    let d = o.q.width;
    let (mut queries, mut douts) = (vec![0.0; STEP * d], vec![0.0; STEP * d]);
    let (mut scores, mut dweights) = ([[0.0; LANES]; STEP], [[0.0; LANES]; STEP]);
    for first in (block.first..block.end).step_by(STEP) {
        let count = STEP.min(block.end - first);
        o.q.copy(first, &mut queries[..count * d]);
        o.dout.copy(first, &mut douts[..count * d]);
        for panel in panels.iter_mut() {
            let (scores, dweights) = (&mut scores[..count], &mut dweights[..count]);
            row_products(isa, &queries, &panel.k, scores);
            row_products(isa, &douts, &panel.v, dweights);
            panel.differentiate(o, delta, scores, dweights, first);
            column_products(isa, &douts, scores, &mut panel.dv);
            column_products(isa, &queries, dweights, &mut panel.dk);
        }
    }
}

fn write_key_panels(panels: &[KeyPanel], block: Block, mut dk: Tile<'_>, mut dv: Tile<'_>) {
    for panel in panels {
        write_rows(&mut dk, &panel.dk, panel.first - block.first, panel.rows);
        write_rows(&mut dv, &panel.dv, panel.first - block.first, panel.rows);
    }
}
