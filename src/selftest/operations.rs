//! Every case of every operation, on the chosen device, against [`super::reference`].
//!
//! References start from what the device itself stored: inputs are bf16 values everywhere, gradients of the adapters come
//! from the stored inner products. So an error is that of one operation.

use super::reference::{self, AttentionShape};
use super::{Row, Settings};
use crate::device::{Capabilities, Device, Matrix, Planner, Purpose, Region, Storage};
use crate::element::Element;
use crate::error::Result;
use crate::ops::adamw::{self, AdamW};
use crate::ops::attention::{self, Attention, Segments};
use crate::ops::decode_attention::{self, Cache, Seen};
use crate::ops::linear::{self, Backward, Dropout, Forward, Group, Linear, Lora, Packing};
use crate::ops::loss::{self, Loss};
use crate::ops::rmsnorm::{self, RmsNorm};
use crate::ops::rope::{self, HeadNorm, Rope};
use crate::ops::{embedding, reduce, rows, swiglu};
use crate::philox::{Stream, philox4x32, uniform};

/// Largest error of a result that is rounded to bf16 once: half a unit is 2^-9 of a value.
const ROUNDED: f64 = 5e-3;

/// Largest error of sums kept in f32, on tensor cores too.
const SUMMED: f64 = 1e-4;

/// Largest error of what is computed in f32 without long sums.
const EXACT: f64 = 1e-6;

/// Attention's gradients: weights and their gradients are rounded to bf16 between two products.
const TWICE_ROUNDED: f64 = 1e-2;

pub(super) fn check(settings: &Settings) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let device = settings.chosen()?.capabilities();
    let pieces = |width: usize| width.is_multiple_of(device.row_multiple);
    let heads = |d: usize| device.head_sizes.is_none_or(|sizes| sizes.contains(&d));
    for case in rmsnorm::check::CASES.iter().filter(|c| pieces(c.dim)) {
        rmsnorm(settings, case, &mut rows)?;
    }
    for case in rope::check::CASES.iter().filter(|c| heads(c.head_dim)) {
        rope(settings, case, &mut rows)?;
    }
    for case in attention::check::CASES.iter().filter(|c| heads(c.head_dim)) {
        attention(settings, case, &mut rows)?;
    }
    for case in decode_attention::check::CASES.iter().filter(|c| heads(c.head_dim)) {
        decode(settings, case, &mut rows)?;
    }
    for case in swiglu::check::CASES.iter().filter(|c| pieces(c.width)) {
        swiglu(settings, case, &mut rows)?;
    }
    for case in rows::check::CASES.iter().filter(|c| pieces(c.width)) {
        moved_rows(settings, case, &mut rows)?;
    }
    for case in linear::check::CASES {
        linear(settings, case, &mut rows)?;
    }
    for case in loss::check::CASES {
        loss(settings, case, &mut rows)?;
    }
    for len in adamw::check::CASES {
        optimizer(settings, *len, &mut rows)?;
    }
    Ok(rows)
}

// ---- what the checks share -------------------------------------------------------------------------------------------

/// Regions with their first values.
struct Bench<'a> {
    settings: &'a Settings,
    planner: Planner,
    values: Vec<(Region, Vec<f32>)>,
    integers: Region,
    matrices: Vec<Matrix>,
    seed: u64,
}

/// What is wanted of a region after the operation.
struct Wanted {
    name: &'static str,
    values: Vec<f64>,
    limit: f64,
}

fn wanted(name: &'static str, values: Vec<f64>, limit: f64) -> Wanted {
    Wanted { name, values, limit }
}

fn bf16(value: f32) -> f32 {
    half::bf16::from_f32(value).to_f32()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Settings, seed: u64) -> Result<Self> {
        let mut planner = Planner::new(settings.chosen()?.capabilities());
        let integers = planner.region(Purpose::Inputs, Storage::Integer, 1 << 14);
        Ok(Bench { settings, planner, values: Vec::new(), integers, matrices: Vec::new(), seed })
    }

    fn given(&mut self, storage: Storage, values: Vec<f32>) -> Region {
        let region = self.planner.region(Purpose::Workspace, storage, values.len());
        self.values.push((region, values));
        region
    }

    /// About normal, with the given deviation, rounded to bf16.
    fn normal(&mut self, len: usize, size: f32) -> Vec<f32> {
        self.seed += 1;
        let draw = |i: u64| uniform(self.seed, Stream::LoraInit, i);
        let sum = |i: u64| (0..4).map(|j| draw(4 * i + j)).sum::<f64>() - 2.0;
        (0..len as u64).map(|i| bf16((sum(i) * 3.0f64.sqrt()) as f32 * size)).collect()
    }

    fn random(&mut self, storage: Storage, len: usize, size: f32) -> (Region, Vec<f64>) {
        let values = self.normal(len, size);
        let wide = wide(&values);
        (self.given(storage, values), wide)
    }

    /// To be written: NaN where the operation leaves something out.
    fn space(&mut self, storage: Storage, len: usize) -> Region {
        self.given(storage, vec![f32::NAN; len])
    }

    /// A frozen matrix with its place on the device.
    fn matrix(&mut self, rows: usize, cols: usize, size: f32) -> (Matrix, Vec<f64>) {
        let values = self.normal(rows * cols, size);
        let matrix = Matrix::from_f32(&values, rows, cols).planned(&mut self.planner);
        self.matrices.push(matrix.clone());
        (matrix, wide(&values))
    }

    /// What `outs` hold after `op`: each time the same bits, which the second result says.
    fn run(&self, outs: &[Region], op: &dyn Fn(&mut Device) -> Result<()>) -> Result<(Vec<Vec<f32>>, bool)> {
        let mut dev = self.settings.chosen()?.device(&self.planner, None)?;
        for matrix in &self.matrices {
            dev.upload(matrix)?;
        }
        let mut first: Option<Vec<Vec<f32>>> = None;
        let mut identical = true;
        for _ in 0..self.settings.repeats.max(1) {
            for (region, values) in &self.values {
                dev.write(*region, values)?;
            }
            op(&mut dev)?;
            let got = outs.iter().map(|r| dev.read(*r)).collect::<Result<Vec<_>>>()?;
            let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            match &first {
                None => first = Some(got),
                Some(first) => identical &= first.iter().zip(&got).all(|(a, b)| same(a, b)),
            }
        }
        Ok((first.unwrap_or_default(), identical))
    }
}

/// A row for each result, of `case`.
fn report(
    rows: &mut Vec<Row>,
    operation: &'static str,
    case: &impl std::fmt::Debug,
    (got, identical): &(Vec<Vec<f32>>, bool),
    wanted: Vec<Wanted>,
) {
    assert_eq!(got.len(), wanted.len(), "{operation}: a reference for each result");
    for (got, wanted) in got.iter().zip(wanted) {
        assert_eq!(got.len(), wanted.values.len(), "{operation} {}: length", wanted.name);
        rows.push(Row {
            operation,
            case: format!("{} of {}", wanted.name, plain(case)),
            error: Some(distance(got, &wanted.values)),
            limit: Some(wanted.limit),
            identical: Some(*identical),
            bits: digest(got),
        });
    }
}

/// A case's fields without its type's name.
fn plain(case: &impl std::fmt::Debug) -> String {
    let text = format!("{case:?}");
    let fields = text.split_once(" { ").and_then(|(_, rest)| rest.strip_suffix(" }"));
    fields.unwrap_or(&text).to_owned()
}

/// ‖got − want‖ / ‖want‖; the first alone where nothing but zeros is wanted; infinite for NaN.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - w));
    let whole = norm(&mut want.iter().copied());
    let error = if whole > 0.0 { difference / whole } else { difference };
    if error.is_nan() { f64::INFINITY } else { error }
}

fn digest(values: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    values.iter().for_each(|v| {
        hasher.update(&v.to_le_bytes());
    });
    hasher.finalize().to_hex()[..16].to_owned()
}

// ---- the operations --------------------------------------------------------------------------------------------------

fn rmsnorm(settings: &Settings, case: &rmsnorm::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    use Storage::{Activation, F32};
    let (count, dim, eps) = (case.rows, case.dim, f64::from(case.eps));
    let mut b = Bench::new(settings, 11)?;
    let (x, values) = b.random(Activation, count * dim, case.size);
    let (weight, w) = b.random(F32, dim, 1.0);
    let (dy, gradient) = b.random(Activation, count * dim, 1.0);
    let (dx, residual) = b.random(Activation, count * dim, 1.0);
    let [y, again] = [(); 2].map(|()| b.space(Activation, count * dim));
    let rstd = b.space(F32, count);
    let p = RmsNorm { dim, eps: case.eps, weight };
    let got = b.run(&[y, again, rstd, dx], &|dev| {
        rmsnorm::forward(dev, &p, x, y, rstd);
        rmsnorm::recompute(dev, &p, x, rstd, again);
        rmsnorm::backward(dev, &p, x, rstd, dy, dx);
        Ok(())
    })?;
    let normed: Vec<f64> = values.chunks_exact(dim).flat_map(|x| reference::normalised(x, &w, eps)).collect();
    let inverse = |x: &[f64]| 1.0 / (reference::dot(x, x) / dim as f64 + eps).sqrt();
    let gradients = values.chunks_exact(dim).zip(gradient.chunks_exact(dim));
    let added: Vec<f64> = gradients
        .flat_map(|(x, dy)| reference::norm_gradient(x, &w, eps, dy))
        .zip(&residual)
        .map(|(g, r)| g + r)
        .collect();
    let wants = vec![
        wanted("y", normed.clone(), ROUNDED),
        wanted("y recomputed", wide(&got.0[0]), 0.0),
        wanted("rstd", values.chunks_exact(dim).map(inverse).collect(), EXACT),
        wanted("dx", added, ROUNDED),
    ];
    report(rows, "rmsnorm", case, &got, wants);
    Ok(())
}

fn rope(settings: &Settings, case: &rope::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    use Storage::{Activation, F32};
    let rope::check::Case { tokens, heads, kv_heads, head_dim: d, .. } = *case;
    let mut b = Bench::new(settings, 17)?;
    let angles = rope::table(d, case.theta, case.position as usize + tokens);
    let table = b.given(F32, angles.clone());
    let ((q, q_weight), (k, k_weight)) = (b.random(F32, d, 1.0), b.random(F32, d, 1.0));
    let norm = case.norm.then_some(HeadNorm { q, k, eps: 1e-6 });
    let p = Rope { heads, kv_heads, head_dim: d, table, norm };
    let (qkv, values) = b.random(Activation, tokens * p.qkv_width(), 1.0);
    let (dqk, gradient) = b.random(Activation, tokens * p.qk_width(), 1.0);
    let qk = b.space(Activation, dqk.len);
    let dqkv = b.given(Activation, vec![0.0; qkv.len]);
    let positions: Vec<u32> = (case.position..).take(tokens).collect();
    let integers = b.integers;
    let got = b.run(&[qk, dqkv], &|dev| {
        let [positions] = dev.place(integers, [&positions])?;
        rope::forward(dev, &p, qkv, positions, qk);
        rope::backward(dev, &p, qkv, positions, dqk, dqkv);
        Ok(())
    })?;
    let (angles, eps) = (wide(&angles), f64::from(1e-6f32));
    let (mut forward, mut backward) = (vec![0.0; dqk.len], vec![0.0; qkv.len]);
    for t in 0..tokens {
        let angles = &angles[(case.position as usize + t) * d..][..d];
        for h in 0..heads + kv_heads {
            let (raw, turned) = (t * p.qkv_width() + h * d, t * p.qk_width() + h * d);
            let weight = if h < heads { &q_weight } else { &k_weight };
            let x = &values[raw..raw + d];
            let normed = if case.norm { reference::normalised(x, weight, eps) } else { x.to_vec() };
            forward[turned..turned + d].copy_from_slice(&reference::rotated(&normed, angles, 1.0));
            let dy = reference::rotated(&gradient[turned..turned + d], angles, -1.0);
            let dx = if case.norm { reference::norm_gradient(x, weight, eps, &dy) } else { dy };
            backward[raw..raw + d].copy_from_slice(&dx);
        }
    }
    report(rows, "rope", case, &got, vec![wanted("qk", forward, ROUNDED), wanted("dqkv", backward, ROUNDED)]);
    Ok(())
}

fn attention(settings: &Settings, case: &attention::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    use Storage::{Activation, F32};
    let attention::check::Case { heads, kv_heads, head_dim: d, .. } = *case;
    let scale = (1.0 / (d as f64).sqrt()) as f32;
    let p = Attention { heads, kv_heads, head_dim: d, scale };
    let shape = AttentionShape { p, segments: case.placed(), tokens: case.tokens() };
    let tokens = shape.tokens;
    let mut b = Bench::new(settings, 7)?;
    let mut input = b.normal(tokens * (heads + kv_heads) * d, 1.0);
    for row in input.chunks_exact_mut((heads + kv_heads) * d) {
        row[..heads * d].iter_mut().for_each(|q| *q = bf16(*q * case.peak));
    }
    let x = wide(&input);
    let qk = b.given(Activation, input);
    let (qkv, v) = b.random(Activation, tokens * (heads + 2 * kv_heads) * d, 1.0);
    let (dout, dy) = b.random(Activation, tokens * heads * d, 1.0);
    let out = b.space(Activation, tokens * heads * d);
    let [lse, delta] = [(); 2].map(|()| b.space(F32, tokens * heads));
    let dqk = b.space(Activation, qk.len);
    let dqkv = b.given(Activation, vec![0.0; qkv.len]);
    let (integers, work) = (b.integers, attention::work(&shape.segments));
    let got = b.run(&[out, lse, dqk, dqkv], &|dev| {
        let [forward, keys, queries] = &work;
        let work = dev.place(integers, [forward, keys, queries])?;
        let segments = Segments { list: &shape.segments, work };
        attention::forward(dev, &p, &segments, qk, qkv, out, lse);
        let o = attention::Backward { qk, qkv, out, lse, dout, delta, dqk, dqkv };
        attention::backward(dev, &p, &segments, &o);
        Ok(())
    })?;
    let (want_out, want_lse) = shape.forward(&x, &v);
    let (want_dqk, want_dqkv) = shape.backward(&x, &v, &dy);
    // With one token in sight the gradient of the scores is zero, and what is left of it is rounding of delta.
    let sharp = if case.peak > 4.0 { 1.5 } else { 1.0 };
    let wants = vec![
        wanted("out", want_out, ROUNDED),
        wanted("lse", want_lse, SUMMED),
        wanted("dqk", want_dqk, TWICE_ROUNDED * sharp),
        wanted("dv", want_dqkv, ROUNDED),
    ];
    report(rows, "attention", case, &got, wants);
    Ok(())
}

fn decode(settings: &Settings, case: &decode_attention::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    use Storage::{Activation, F32};
    let decode_attention::check::Case { heads, kv_heads, head_dim: d, capacity, .. } = *case;
    let p = Attention { heads, kv_heads, head_dim: d, scale: (1.0 / (d as f64).sqrt()) as f32 };
    let (count, kv, width) = (case.seen.len(), kv_heads * d, (heads + kv_heads) * d);
    let mut b = Bench::new(settings, 23)?;
    let (qk, queries) = b.random(Activation, count * width, case.peak);
    let (qkv, projected) = b.random(Activation, count * (width + kv), 1.0);
    let [(k, mut keys), (v, mut values)] = [(); 2].map(|()| b.random(Activation, count * capacity * kv, 1.0));
    let (table, factors) = b.random(F32, count, 1.0);
    let out = b.space(Activation, count * heads * d);
    let runs = case.runs();
    // Each query's own key and value become the last row it sees.
    let places: Vec<u32> = runs.iter().map(|run| run.start + run.len - 1).collect();
    let words: Vec<u32> = runs.iter().flat_map(|run| [run.start, run.len]).collect();
    let positions: Vec<u32> = (0..count as u32).rev().collect();
    let integers = b.integers;
    let cache = Cache { k, v };
    let got = b.run(&[k, v, out, qk], &|dev| {
        let [places, words, positions] = dev.place(integers, [&places, &words, &positions])?;
        decode_attention::append(dev, &p, qk, qkv, places, cache);
        decode_attention::forward(dev, &p, qk, &Seen { list: &runs, words }, cache, out);
        decode_attention::scale_queries(dev, &p, table, positions, qk);
        Ok(())
    })?;
    for (row, place) in places.iter().enumerate() {
        let to = *place as usize * kv;
        keys[to..to + kv].copy_from_slice(&queries[(row + 1) * width - kv..][..kv]);
        values[to..to + kv].copy_from_slice(&projected[(row + 1) * (width + kv) - kv..][..kv]);
    }
    let attended = reference::decode_attention(&p, &runs, &queries, &keys, &values);
    let mut scaled = queries;
    for (row, factor) in scaled.chunks_exact_mut(width).zip(factors.iter().rev()) {
        row[..heads * d].iter_mut().for_each(|q| *q *= factor);
    }
    let wants = vec![
        wanted("k", keys, 0.0),
        wanted("v", values, 0.0),
        wanted("out", attended, ROUNDED),
        wanted("scaled queries", scaled, ROUNDED),
    ];
    report(rows, "decode", case, &got, wants);
    Ok(())
}

fn swiglu(settings: &Settings, case: &swiglu::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    let (len, width) = (case.rows * case.width, case.width);
    let mut b = Bench::new(settings, 21)?;
    let (x, values) = b.random(Storage::Activation, 2 * len, case.size);
    let (dout, gradient) = b.random(Storage::Activation, len, 1.0);
    let out = b.space(Storage::Activation, len);
    let got = b.run(&[out, x], &|dev| {
        swiglu::forward(dev, x, width, out);
        swiglu::backward(dev, x, width, dout);
        Ok(())
    })?;
    let dx = reference::swiglu_gradient(&values, width, &gradient);
    let wants = vec![wanted("out", reference::swiglu(&values, width), ROUNDED), wanted("dx", dx, ROUNDED)];
    report(rows, "swiglu", case, &got, wants);
    Ok(())
}

fn moved_rows(settings: &Settings, case: &rows::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    let width = case.width;
    let mut b = Bench::new(settings, 31)?;
    let (x, values) = b.random(Storage::Activation, case.rows * width, 1.0);
    let (table, entries) = b.matrix(case.rows, width, 1.0);
    let index: Vec<u32> = (0..case.rows as u32).step_by(case.every).collect();
    let some = b.space(Storage::Activation, index.len() * width);
    let [back, copied] = [(); 2].map(|()| b.space(Storage::Activation, x.len));
    let embedded = b.space(Storage::Activation, some.len);
    let integers = b.integers;
    let got = b.run(&[some, back, copied, embedded], &|dev| {
        let [index] = dev.place(integers, [&index])?;
        rows::gather(dev, x, index, width, some);
        rows::scatter(dev, some, index, width, back);
        rows::copy(dev, x, copied);
        embedding::forward(dev, &table, index, embedded);
        Ok(())
    })?;
    let pick = |from: &[f64]| -> Vec<f64> {
        index.iter().flat_map(|i| from[*i as usize * width..][..width].to_vec()).collect()
    };
    let kept = |i: usize| if (i / width).is_multiple_of(case.every) { values[i] } else { 0.0 };
    let wants = vec![
        wanted("gathered", pick(&values), 0.0),
        wanted("scattered", (0..values.len()).map(kept).collect(), 0.0),
        wanted("copied", values.clone(), 0.0),
        wanted("embedded", pick(&entries), 0.0),
    ];
    report(rows, "rows", case, &got, wants);
    Ok(())
}

/// The values of one layer's adapter.
struct Adapter {
    lora: Lora,
    a: Vec<f64>,
    b: Vec<f64>,
    grad_a: Vec<f64>,
    grad_b: Vec<f64>,
}

/// A group with its operands.
struct LinearBench<'a> {
    bench: Bench<'a>,
    group: Group,
    weights: Vec<(Vec<f64>, Vec<f64>)>,
    adapters: Vec<Adapter>,
    params: Region,
    packed: Region,
    table: Vec<u32>,
}

const SCALE: f32 = 0.75;

impl<'a> LinearBench<'a> {
    fn new(settings: &'a Settings, case: &linear::check::Case) -> Result<Self> {
        let mut bench = Bench::new(settings, 41)?;
        let target = bench.planner.capabilities();
        let len = |width: &dyn Fn(usize) -> usize| -> usize {
            case.layers.iter().map(|(output, rank, _)| width(*rank) * (case.input + output)).sum()
        };
        let values = bench.normal(len(&|rank| rank), 0.2);
        let params = bench.given(Storage::F32, values.clone());
        let first = bench.normal(values.len(), 1.0);
        let grads = bench.given(Storage::F32, first.clone());
        let packed =
            bench.planner.region(Purpose::TrainableState, Storage::Copy, len(&|rank| target.row_len(rank)));
        let mut all = LinearBench {
            bench,
            group: Group { input: case.input, output: 0, layers: Vec::new() },
            weights: Vec::new(),
            adapters: Vec::new(),
            params,
            packed,
            table: Vec::new(),
        };
        let (mut used, mut copied) = (0, 0);
        for &(output, rank, bias) in case.layers {
            all.add_layer(output, bias);
            if rank > 0 {
                all.add_adapter(rank, grads, (&values, &first), (&mut used, &mut copied));
            }
        }
        Ok(all)
    }

    fn add_layer(&mut self, output: usize, bias: bool) {
        let input = self.group.input;
        let (weight, w) = self.bench.matrix(output, input, (1.0 / input as f32).sqrt());
        let added = bias.then(|| self.bench.random(Storage::F32, output, 0.5));
        let (bias, values) =
            added.map_or((None, vec![0.0; output]), |(region, values)| (Some(region), values));
        self.weights.push((w, values));
        self.group.layers.push(Linear { weight, bias, column: self.group.output, lora: None });
        self.group.output += output;
    }

    fn add_adapter(
        &mut self,
        rank: usize,
        grads: Region,
        (values, first): (&[f32], &[f32]),
        (used, copied): (&mut usize, &mut usize),
    ) {
        let (input, target) = (self.group.input, self.bench.planner.capabilities());
        let Some(layer) = self.group.layers.last_mut() else { return };
        let (output, width) = (layer.weight.rows(), target.row_len(rank));
        let (a, b) = (*used, *used + rank * input);
        *used = b + output * rank;
        let mut copy = |source: usize, matrix: [usize; 2], copy: [usize; 2]| {
            let place = self.packed.slice(*copied, copy[0] * copy[1]);
            let entry = [source, *copied, matrix[0], matrix[1], copy[0], copy[1]];
            self.table.extend(entry.map(|v| v as u32));
            *copied += place.len;
            place
        };
        let packed = [copy(a, [rank, input], [width, input]), copy(b, [output, rank], [output, width])];
        let lora = Lora {
            rank,
            width,
            scale: SCALE,
            a: self.params.slice(a, rank * input),
            b: self.params.slice(b, output * rank),
            grad_a: grads.slice(a, rank * input),
            grad_b: grads.slice(b, output * rank),
            packed,
        };
        layer.lora = Some(lora);
        self.adapters.push(Adapter {
            lora,
            a: wide(&values[a..b]),
            b: wide(&values[b..*used]),
            grad_a: wide(&first[a..b]),
            grad_b: wide(&first[b..*used]),
        });
    }
}

/// What every element of a dropped input is multiplied by.
fn mask(dropout: f32, key: [u32; 2], counter: [u32; 3], elements: usize) -> Vec<f64> {
    let kept = |i: usize| {
        let word = philox4x32([(i / 4) as u32, counter[0], counter[1], counter[2]], key)[i % 4];
        f64::from(word) >= f64::from(dropout) * 4_294_967_296.0
    };
    let keep = f64::from(1.0 / (1.0 - dropout));
    (0..elements).map(|i| if dropout == 0.0 || kept(i) { keep } else { 0.0 }).collect()
}

fn linear(settings: &Settings, case: &linear::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    use Storage::{Activation, F32};
    let (tokens, input) = (case.tokens, case.input);
    let mut l = LinearBench::new(settings, case)?;
    let (output, width, target) = (l.group.output, l.group.rank_sum(), l.bench.planner.capabilities());
    let (x, xs) = l.bench.random(Activation, tokens * input, 1.0);
    let (dy, dys) = l.bench.random(Activation, tokens * output, 1.0);
    let added = case.residual.then(|| l.bench.random(Activation, tokens * output, 1.0));
    let [y, s, ds, dx, scratch] =
        [output, width, width, input, input].map(|n| l.bench.space(Activation, tokens * n));
    let partial = l.bench.space(F32, l.group.partial_len(target, tokens));
    let (key, counter) = ([7, 9], [3, 11, 12]);
    let integers = l.bench.integers;
    let residual = added.as_ref().map(|(region, _)| *region);
    let mut outs = vec![y, s, ds, dx];
    outs.extend(l.adapters.iter().flat_map(|a| [a.lora.grad_a, a.lora.grad_b]));
    let got = l.bench.run(&outs, &|dev| {
        let clock: &[u32] = &counter[1..];
        let [table, clock] = dev.place(integers, [&l.table, clock])?;
        let dropout =
            (case.dropout > 0.0).then_some(Dropout { p: case.dropout, key, counter, clock: clock.copy });
        linear::pack(dev, &Packing { params: l.params, packed: l.packed, table });
        linear::forward(dev, &l.group, &Forward { x, y, s, residual, dropout, scratch });
        let backward = Backward { x, s, dy, ds, dx: Some(dx), dropout, scratch, partial };
        linear::backward(dev, &l.group, &backward);
        Ok(())
    })?;
    let mask = mask(case.dropout, key, counter, tokens * input);
    // The dropped input is stored in bf16, on devices that do so.
    let store = |v: f64| if target.activation == Element::F32 { v } else { f64::from(bf16(v as f32)) };
    let dropped: Vec<f64> = xs.iter().zip(&mask).map(|(x, m)| store(x * m)).collect();
    let stored = LinearStored {
        xs: &xs,
        dropped: &dropped,
        mask: &mask,
        dys: &dys,
        s: &wide(&got.0[1]),
        ds: &wide(&got.0[2]),
    };
    let mut wants = stored.wanted(&l, added.map(|(_, values)| values));
    wants.extend(stored.gradients(&l, target));
    report(rows, "linear", case, &got, wants);
    Ok(())
}

/// What the device read and stored, for the references.
struct LinearStored<'a> {
    xs: &'a [f64],
    dropped: &'a [f64],
    mask: &'a [f64],
    dys: &'a [f64],
    s: &'a [f64],
    ds: &'a [f64],
}

impl LinearStored<'_> {
    /// y, s, ds and dx.
    fn wanted(&self, l: &LinearBench<'_>, residual: Option<Vec<f64>>) -> Vec<Wanted> {
        let (input, output, width) = (l.group.input, l.group.output, l.group.rank_sum());
        let tokens = self.xs.len() / input;
        let (mut y, mut s, mut ds) =
            (vec![0.0; tokens * output], vec![0.0; tokens * width], vec![0.0; tokens * width]);
        let (mut tail, mut dx) = (vec![0.0; tokens * input], vec![0.0; tokens * input]);
        let (mut adapters, mut first) = (l.adapters.iter(), 0);
        let scaled =
            |values: Vec<f64>| values.into_iter().map(|v| v * f64::from(SCALE)).collect::<Vec<f64>>();
        for (layer, (weight, bias)) in l.group.layers.iter().zip(&l.weights) {
            let (rows, column) = (layer.weight.rows(), layer.column);
            let dy = reference::columns(self.dys, output, column, rows);
            let mut sum = reference::product_nt(self.xs, weight, input);
            sum.chunks_exact_mut(rows).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            plus(&mut dx, &reference::product_nn(&dy, weight, input));
            if let Some((lora, adapter)) = layer.lora.as_ref().and_then(|l| Some((l, adapters.next()?))) {
                let rank = lora.rank;
                put(
                    &mut s,
                    width,
                    first,
                    rank,
                    &scaled(reference::product_nt(self.dropped, &adapter.a, input)),
                );
                put(&mut ds, width, first, rank, &scaled(reference::product_nn(&dy, &adapter.b, rank)));
                let stored = |all: &[f64]| reference::columns(all, width, first, rank);
                plus(&mut sum, &reference::product_nt(&stored(self.s), &adapter.b, rank));
                plus(&mut tail, &reference::product_nn(&stored(self.ds), &adapter.a, input));
                first += lora.width;
            }
            put(&mut y, output, column, rows, &sum);
        }
        if let Some(residual) = residual {
            plus(&mut y, &residual);
        }
        tail.iter_mut().zip(self.mask).for_each(|(t, m)| *t *= m);
        plus(&mut dx, &tail);
        vec![
            wanted("y", y, ROUNDED),
            wanted("s", s, ROUNDED),
            wanted("ds", ds, ROUNDED),
            wanted("dx", dx, ROUNDED),
        ]
    }

    /// dA and dB of each adapter.
    fn gradients(&self, l: &LinearBench<'_>, target: &Capabilities) -> Vec<Wanted> {
        let (input, output, width) = (l.group.input, l.group.output, l.group.rank_sum());
        let limit = if target.activation == Element::F32 { EXACT * 10.0 } else { SUMMED };
        let (mut all, mut first) = (Vec::new(), 0);
        for (layer, adapter) in l.group.layers.iter().filter(|layer| layer.lora.is_some()).zip(&l.adapters) {
            let (rows, rank) = (layer.weight.rows(), adapter.lora.rank);
            let dy = reference::columns(self.dys, output, layer.column, rows);
            let (s, ds) = (
                reference::columns(self.s, width, first, rank),
                reference::columns(self.ds, width, first, rank),
            );
            let mut a = reference::product_tn(&ds, rank, self.dropped, input);
            let mut b = reference::product_tn(&dy, rows, &s, rank);
            plus(&mut a, &adapter.grad_a);
            plus(&mut b, &adapter.grad_b);
            all.extend([wanted("dA", a, limit), wanted("dB", b, limit)]);
            first += adapter.lora.width;
        }
        all
    }
}

fn plus(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Writes `count` columns of rows of `width`.
fn put(to: &mut [f64], width: usize, first: usize, count: usize, from: &[f64]) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(count)) {
        to[first..first + count].copy_from_slice(from);
    }
}

fn loss(settings: &Settings, case: &loss::check::Case, rows: &mut Vec<Row>) -> Result<()> {
    use Storage::{Activation, F32};
    const GRAD_SCALE: f32 = 0.125;
    let loss::check::Case { rows: count, hidden, vocab, chunk, spread } = *case;
    let mut b = Bench::new(settings, 51)?;
    let (head, weights) = b.matrix(vocab, hidden, spread / (hidden as f32).sqrt());
    let (x, xs) = b.random(Activation, count * hidden, 1.0);
    let dx = b.space(Activation, x.len);
    let logits = b.space(F32, chunk * b.planner.capabilities().row_len(vocab));
    let [losses, again] = [(); 2].map(|()| b.space(F32, count));
    let targets: Vec<u32> = (0..count).map(|i| (i * 7919 % vocab) as u32).collect();
    let integers = b.integers;
    let got = b.run(&[losses, again, dx], &|dev| {
        let [targets] = dev.place(integers, [&targets])?;
        let p = Loss { head: &head, targets, logits, losses };
        loss::forward(dev, &p, x);
        loss::forward_backward(dev, &Loss { losses: again, ..p }, x, GRAD_SCALE, dx);
        Ok(())
    })?;
    let exact = reference::product_nt(&xs, &weights, hidden);
    let (want, gradient) = reference::cross_entropy(&exact, vocab, &targets);
    let scaled: Vec<f64> = gradient.iter().map(|g| g * f64::from(GRAD_SCALE)).collect();
    let wants = vec![
        wanted("losses", want, SUMMED),
        wanted("losses again", wide(&got.0[0]), 0.0),
        wanted("dx", reference::product_nn(&scaled, &weights, hidden), ROUNDED),
    ];
    report(rows, "loss", case, &got, wants);
    Ok(())
}

const ADAMW: AdamW =
    AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

fn optimizer(settings: &Settings, len: usize, rows: &mut Vec<Row>) -> Result<()> {
    let mut b = Bench::new(settings, 61)?;
    let (params, values) = b.random(Storage::F32, len, 0.1);
    let (grads, gradient) = b.random(Storage::F32, len, 0.01);
    let [m, v] = [(); 2].map(|()| b.given(Storage::F32, vec![0.0; len]));
    let scratch = reduce::plan(&mut b.planner, len);
    let sums = std::cell::RefCell::new(reduce::Sums::plan(&mut b.planner, 2, len));
    let square = std::cell::Cell::new(0.0);
    let both = std::cell::RefCell::new(Vec::new());
    let got = b.run(&[params, m, v], &|dev| {
        for step in 1..=3 {
            adamw::step(dev, &AdamW { step, ..ADAMW }, params, grads, m, v);
        }
        square.set(reduce::sum_of_squares(dev, grads, scratch)?);
        let mut sums = sums.borrow_mut();
        sums.clear();
        sums.add(dev, grads);
        sums.add(dev, grads.slice(0, len.div_ceil(2)));
        both.replace(sums.read(dev)?);
        Ok(())
    })?;
    let (mut w, mut m, mut v) = (values, vec![0.0; len], vec![0.0; len]);
    for step in 1..=3 {
        reference::adamw_step(&AdamW { step, ..ADAMW }, [&mut w, &mut m, &mut v], &gradient);
    }
    let wants = vec![wanted("params", w, EXACT), wanted("m", m, EXACT), wanted("v", v, EXACT)];
    report(rows, "adamw", &len, &got, wants);
    let want = reference::dot(&gradient, &gradient);
    rows.push(Row::compared(
        "reduce",
        format!("sum of {len} squares"),
        (square.get() - want).abs() / want,
        1e-12,
    ));
    let part =
        |len: usize| gradient[..len].iter().fold((0.0, 0.0), |(sum, size), g| (sum + g, size + g.abs()));
    for (got, len) in both.take().into_iter().zip([len, len.div_ceil(2)]) {
        let (want, size) = part(len);
        rows.push(Row::compared("reduce", format!("sum of {len}"), (got - want).abs() / size, 1e-12));
    }
    Ok(())
}
