//! The CPU form: a task for each segment and key head, its value heads one after the other; chunks from the segment's
//! first token on, so a row's result depends on no other.

mod chunk;
mod panels;

use super::{Backward, DeltaRule, EPS, States};
use crate::device::cpu::Isa;
use crate::device::cpu::lanes;
use crate::device::cpu::math::{bf16, exp, sigmoid};
use crate::device::cpu::tasks;
use crate::device::cpu::tile::Tile;
use crate::device::{Cpu, Region};
use crate::ops::attention::Segment;
use chunk::{CHUNK, Chunk, Decays, Keys};
use panels::Panels;

/// One segment's rows of the inputs, and the shapes: what a task reads.
#[derive(Clone, Copy)]
struct Input<'a> {
    isa: Isa,
    /// Whether the output is rounded to what layers keep.
    rounds: bool,
    p: &'a DeltaRule,
    qkv: &'a [f32],
    projected: &'a [f32],
    a_log: &'a [f32],
    dt_bias: &'a [f32],
}

/// `x / sqrt(Σx² + eps)` and the factor.
#[inline(always)]
fn normalised(x: &[f32], out: &mut Vec<f32>, scale: f32) -> f32 {
    let factor = (1.0 / (lanes::dot(x, x) + f64::from(EPS)).sqrt()) as f32;
    out.extend(x.iter().map(|x| x * factor * scale));
    factor
}

/// Natural logarithm of 1 + e^x; x itself above 20.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { libm::log1p(libm::exp(f64::from(x))) as f32 }
}

impl<'a> Input<'a> {
    /// The rows of `segment`.
    fn of(self, segment: &Segment) -> Self {
        let (start, len) = (segment.start as usize, segment.len as usize);
        let rows = |values: &'a [f32], width: usize| &values[start * width..(start + len) * width];
        Input {
            qkv: rows(self.qkv, self.p.qkv_width()),
            projected: rows(self.projected, self.p.gates.width),
            ..self
        }
    }

    fn len(&self) -> usize {
        self.qkv.len() / self.p.qkv_width()
    }

    /// Rounds a row of the output, where layers keep bf16.
    #[inline(always)]
    fn round(&self, out: &mut [f32]) {
        if self.rounds {
            out.iter_mut().for_each(|v| *v = bf16(*v));
        }
    }

    /// 1 / sqrt(dk).
    fn query_scale(&self) -> f32 {
        (1.0 / (self.p.key_dim as f64).sqrt()) as f32
    }

    /// Columns of `qkv` of head `head` of q (0) or k (1).
    fn key_columns(&self, part: usize, head: usize) -> std::ops::Range<usize> {
        let first = (part * self.p.key_heads + head) * self.p.key_dim;
        first..first + self.p.key_dim
    }

    /// Columns of `qkv` of a value head.
    fn value_columns(&self, head: usize) -> std::ops::Range<usize> {
        let first = 2 * self.p.key_heads * self.p.key_dim + head * self.p.value_dim;
        first..first + self.p.value_dim
    }

    fn row(&self, token: usize) -> &'a [f32] {
        let width = self.p.qkv_width();
        &self.qkv[token * width..(token + 1) * width]
    }

    /// q̂ and k̂ of some tokens, and the factors that normalised them.
    #[inline(always)]
    fn keys(&self, tokens: std::ops::Range<usize>, head: usize) -> (Keys, Vec<[f32; 2]>) {
        let (mut q, mut k) = (Vec::new(), Vec::new());
        let factors = tokens.map(|token| {
            let row = self.row(token);
            [
                normalised(&row[self.key_columns(0, head)], &mut q, self.query_scale()),
                normalised(&row[self.key_columns(1, head)], &mut k, 1.0),
            ]
        });
        let factors = factors.collect();
        (Keys::new(self.isa, q, k, self.p.key_dim), factors)
    }

    #[inline(always)]
    fn values(&self, tokens: std::ops::Range<usize>, head: usize) -> Panels {
        let mut v = Panels::zeros(tokens.len(), self.p.value_dim);
        for (row, token) in tokens.enumerate() {
            v.set_row(row, &self.row(token)[self.value_columns(head)]);
        }
        v
    }

    /// β and g of a token's value head.
    #[inline(always)]
    fn gates(&self, token: usize, head: usize) -> [f32; 2] {
        let gates = self.p.gates;
        let row = &self.projected[token * gates.width..(token + 1) * gates.width];
        let (b, a) = (row[gates.b + head], row[gates.a + head] + self.dt_bias[head]);
        [sigmoid(b), -exp(self.a_log[head]) * softplus(a)]
    }

    #[inline(always)]
    fn decays(&self, tokens: std::ops::Range<usize>, head: usize) -> Decays {
        let (beta, g): (Vec<f32>, Vec<f32>) = tokens.map(|t| self.gates(t, head).into()).unzip();
        Decays::new(beta, &g)
    }

    /// The chunks' tokens.
    fn chunks(&self) -> impl DoubleEndedIterator<Item = std::ops::Range<usize>> + use<> {
        let len = self.len();
        (0..len.div_ceil(CHUNK)).map(move |chunk| chunk * CHUNK..(chunk * CHUNK + CHUNK).min(len))
    }

    /// The state of one value head, zero.
    #[inline(always)]
    fn no_state(&self) -> Panels {
        Panels::zeros(self.p.key_dim, self.p.value_dim)
    }
}

/// Splits the columns of a tile into `count` tiles of `width` columns.
fn columns<'a>(mut tile: Tile<'a>, count: usize, width: usize) -> Vec<Tile<'a>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let (left, rest) = tile.split_cols(width);
        all.push(left);
        tile = rest;
    }
    all
}

/// A state as it is kept: row-major [dk, dv].
#[inline(always)]
fn keep(state: &Panels, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(state.cols).enumerate() {
        state.get_row(row, out);
    }
}

pub(in super::super) fn forward(
    cpu: &mut Cpu,
    p: &DeltaRule,
    segments: &[Segment],
    [qkv, projected]: [Region; 2],
    out: Region,
    states: Option<States<'_>>,
) {
    let (isa, rounds) = (cpu.isa, cpu.keeps_bf16());
    let kept = states.map_or(Region { len: 0, ..out }, |s| s.region);
    let (pool, [qkv, projected, a_log, dt_bias], [o, kept]) =
        cpu.split([qkv, projected, p.a_log, p.dt_bias], [out, kept]);
    let input = Input { isa, rounds, p, qkv, projected, a_log, dt_bias };
    let (group, head_state) = (p.group(), p.key_dim * p.value_dim);
    let mut rows = Tile::new(o, p.out_width());
    // The states of a slot, by key head.
    let mut slots: Vec<Option<&mut [f32]>> = kept.chunks_mut(p.state_len().max(1)).map(Some).collect();
    let mut all = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let (mine, rest) = rows.split_rows(segment.len as usize);
        rows = rest;
        let slot = states.and_then(|s| slots[s.slots.values[index] as usize].take());
        let mut parts = slot.unwrap_or_default().chunks_mut(group * head_state);
        for (head, out) in columns(mine, p.key_heads, group * p.value_dim).into_iter().enumerate() {
            all.push((input.of(segment), head, out, parts.next()));
        }
    }
    tasks::run(
        pool,
        isa,
        all,
        #[inline(always)]
        |(input, head, mut out, kept)| forward_head(&input, head, &mut out, kept),
    );
    cpu.round(out);
}

#[inline(always)]
fn forward_head(input: &Input<'_>, head: usize, out: &mut Tile<'_>, kept: Option<&mut [f32]>) {
    let (group, dv) = (input.p.group(), input.p.value_dim);
    let mut states: Vec<Panels> = (0..group).map(|_| input.no_state()).collect();
    for tokens in input.chunks() {
        let (keys, _) = input.keys(tokens.clone(), head);
        for (i, state) in states.iter_mut().enumerate() {
            let value_head = head * group + i;
            let chunk = Chunk::new(&keys, input.decays(tokens.clone(), value_head));
            let [_, r] = chunk.errors(&input.values(tokens.clone(), value_head), state);
            let o = chunk.output(&r, state);
            for (row, token) in tokens.clone().enumerate() {
                let out = &mut out.row(token)[i * dv..(i + 1) * dv];
                o.get_row(row, out);
                input.round(out);
            }
            chunk.advance(&r, state);
        }
    }
    if let Some(kept) = kept {
        for (state, kept) in states.iter().zip(kept.chunks_exact_mut(input.p.key_dim * dv)) {
            keep(state, kept);
        }
    }
}

pub(in super::super) fn step(
    cpu: &mut Cpu,
    p: &DeltaRule,
    [qkv, projected]: [Region; 2],
    out: Region,
    states: States<'_>,
) {
    let (isa, rounds) = (cpu.isa, cpu.keeps_bf16());
    let (pool, [qkv, projected, a_log, dt_bias], [o, kept]) =
        cpu.split([qkv, projected, p.a_log, p.dt_bias], [out, states.region]);
    let input = Input { isa, rounds, p, qkv, projected, a_log, dt_bias };
    let mut slots: Vec<Option<&mut [f32]>> = kept.chunks_mut(p.state_len()).map(Some).collect();
    let mut all = Vec::new();
    for (token, out) in o.chunks_mut(p.out_width()).enumerate() {
        let slot = slots[states.slots.values[token] as usize].take().expect("one token of each sequence");
        let heads = slot.chunks_mut(p.key_dim * p.value_dim).zip(out.chunks_mut(p.value_dim));
        let segment = Segment { start: token as u32, len: 1 };
        all.extend(heads.enumerate().map(|(head, (state, out))| (input.of(&segment), head, state, out)));
    }
    tasks::run(
        pool,
        isa,
        all,
        #[inline(always)]
        |(input, head, state, out)| step_head(&input, head, state, out),
    );
    cpu.round(out);
}

/// The recurrence, for the one token of `input`.
#[inline(always)]
fn step_head(input: &Input<'_>, head: usize, state: &mut [f32], out: &mut [f32]) {
    let (keys, _) = input.keys(0..1, head / input.p.group());
    let [beta, g] = input.gates(0, head);
    let decay = exp(g);
    let dv = out.len();
    let mut u: Vec<f32> = vec![0.0; dv];
    for (row, k) in state.chunks_exact_mut(dv).zip(&keys.k) {
        for (x, u) in row.iter_mut().zip(&mut u) {
            *x *= decay;
            *u = k.mul_add(*x, *u);
        }
    }
    for (u, v) in u.iter_mut().zip(&input.row(0)[input.value_columns(head)]) {
        *u = beta * (v - *u);
    }
    out.fill(0.0);
    for ((row, k), q) in state.chunks_exact_mut(dv).zip(&keys.k).zip(&keys.q) {
        for ((x, u), o) in row.iter_mut().zip(&u).zip(&mut *out) {
            *x = k.mul_add(*u, *x);
            *o = q.mul_add(*x, *o);
        }
    }
    input.round(out);
}

/// What a task of the backward pass writes: columns of q, k, v, b and a.
struct Gradients<'a> {
    dq: Tile<'a>,
    dk: Tile<'a>,
    dv: Tile<'a>,
    db: Tile<'a>,
    da: Tile<'a>,
}

pub(in super::super) fn backward(cpu: &mut Cpu, p: &DeltaRule, segments: &[Segment], o: &Backward) {
    let (isa, rounds) = (cpu.isa, cpu.keeps_bf16());
    let (pool, [qkv, projected, a_log, dt_bias, dout], [dqkv, dprojected]) =
        cpu.split([o.qkv, o.projected, p.a_log, p.dt_bias, o.dout], [o.dqkv, o.dprojected]);
    let input = Input { isa, rounds, p, qkv, projected, a_log, dt_bias };
    let group = p.group();
    let mut rows = Tile::new(dqkv, p.qkv_width());
    let mut gate_rows = Tile::new(dprojected, p.gates.width);
    let mut all = Vec::new();
    for segment in segments {
        let (start, len) = (segment.start as usize, segment.len as usize);
        let (mine, rest) = rows.split_rows(len);
        let (gates, gates_rest) = gate_rows.split_rows(len);
        (rows, gate_rows) = (rest, gates_rest);
        let (q, kv) = mine.split_cols(p.key_heads * p.key_dim);
        let (k, v) = kv.split_cols(p.key_heads * p.key_dim);
        let (b, a) = gates.split_cols(p.gates.b).1.split_cols(p.value_heads);
        let [q, k] = [q, k].map(|tile| columns(tile, p.key_heads, p.key_dim));
        let v = columns(v, p.key_heads, group * p.value_dim);
        let [b, a] = [b, a].map(|tile| columns(tile, p.key_heads, group));
        let dout = &dout[start * p.out_width()..(start + len) * p.out_width()];
        let tiles = q.into_iter().zip(k).zip(v.into_iter().zip(b.into_iter().zip(a)));
        for (head, ((dq, dk), (dv, (db, da)))) in tiles.enumerate() {
            all.push((input.of(segment), head, dout, Gradients { dq, dk, dv, db, da }));
        }
    }
    tasks::run(
        pool,
        isa,
        all,
        #[inline(always)]
        |(input, head, dout, mut gradients)| backward_head(&input, head, dout, &mut gradients),
    );
    cpu.round(o.dqkv);
    cpu.round(o.dprojected);
}

#[inline(always)]
fn backward_head(input: &Input<'_>, head: usize, dout: &[f32], out: &mut Gradients<'_>) {
    let group = input.p.group();
    let chunks: Vec<_> = input.chunks().collect();
    // The states before each chunk and after the last, of each value head.
    let mut states: Vec<Vec<Panels>> = (0..group).map(|_| vec![input.no_state()]).collect();
    for tokens in &chunks {
        let (keys, _) = input.keys(tokens.clone(), head);
        for (i, states) in states.iter_mut().enumerate() {
            let value_head = head * group + i;
            let chunk = Chunk::new(&keys, input.decays(tokens.clone(), value_head));
            let mut state = states[states.len() - 1].clone();
            let [_, r] = chunk.errors(&input.values(tokens.clone(), value_head), &state);
            chunk.advance(&r, &mut state);
            states.push(state);
        }
    }
    let mut gradients: Vec<Panels> = (0..group).map(|_| input.no_state()).collect();
    for (index, tokens) in chunks.iter().enumerate().rev() {
        backward_chunk(input, head, tokens, (index, &states, &mut gradients), dout, out);
    }
}

/// One chunk; `states` are those before and after it, and the gradients of those after it.
#[inline(always)]
fn backward_chunk(
    input: &Input<'_>,
    head: usize,
    tokens: &std::ops::Range<usize>,
    (index, states, gradients): (usize, &[Vec<Panels>], &mut [Panels]),
    dout: &[f32],
    out: &mut Gradients<'_>,
) {
    let DeltaRule { key_dim: dk, value_dim: dv, .. } = *input.p;
    let (keys, factors) = input.keys(tokens.clone(), head);
    let (mut dq, mut dkeys) = (vec![0.0f32; keys.q.len()], vec![0.0f32; keys.k.len()]);
    for (i, (states, d)) in states.iter().zip(gradients).enumerate() {
        let value_head = head * input.p.group() + i;
        let chunk = Chunk::new(&keys, input.decays(tokens.clone(), value_head));
        let mut dout_head = Panels::zeros(tokens.len(), dv);
        for (row, token) in tokens.clone().enumerate() {
            let at = token * input.p.out_width() + value_head * dv;
            dout_head.set_row(row, &dout[at..at + dv]);
        }
        let v = input.values(tokens.clone(), value_head);
        let g = chunk.backward(&v, [&states[index], &states[index + 1]], &dout_head, d);
        dq.iter_mut().zip(&g.dq).for_each(|(sum, x)| *sum += x);
        dkeys.iter_mut().zip(&g.dk).for_each(|(sum, x)| *sum += x);
        for (row, token) in tokens.clone().enumerate() {
            g.dv.get_row(row, &mut out.dv.row(token)[i * dv..(i + 1) * dv]);
            let [db, da] = input.gate_gradients(token, value_head, [g.dbeta[row], g.dg[row]]);
            out.db.row(token)[i] = db;
            out.da.row(token)[i] = da;
        }
    }
    for (row, token) in tokens.clone().enumerate() {
        let at = row * dk..(row + 1) * dk;
        let [q_factor, k_factor] = factors[row];
        let scale = input.query_scale();
        unnormalise(&keys.q[at.clone()], &dq[at.clone()], q_factor, scale, out.dq.row(token));
        unnormalise(&keys.k[at.clone()], &dkeys[at], k_factor, 1.0, out.dk.row(token));
    }
}

impl Input<'_> {
    /// Gradients of b and a from those of β and g.
    #[inline(always)]
    fn gate_gradients(&self, token: usize, head: usize, [dbeta, dg]: [f32; 2]) -> [f32; 2] {
        let gates = self.p.gates;
        let row = &self.projected[token * gates.width..(token + 1) * gates.width];
        let beta = sigmoid(row[gates.b + head]);
        let a = row[gates.a + head] + self.dt_bias[head];
        let slope = if a > 20.0 { 1.0 } else { sigmoid(a) };
        [dbeta * beta * (1.0 - beta), -dg * exp(self.a_log[head]) * slope]
    }
}

/// Gradient of x where `y = scale · x · factor` and the factor normalises: `factor · scale · (dy - n (n·dy))` with
/// `n = x · factor`.
#[inline(always)]
fn unnormalise(y: &[f32], dy: &[f32], factor: f32, scale: f32, dx: &mut [f32]) {
    // n·dy with n = y / scale.
    let along = (lanes::dot(y, dy) / f64::from(scale) / f64::from(scale)) as f32;
    for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
        *dx = factor * scale * (-along).mul_add(*y, *dy);
    }
}
