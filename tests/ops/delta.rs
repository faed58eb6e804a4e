//! Gated DeltaNet and the gate of attention: chunks beside the recurrence in f64, gradients beside numerical derivatives,
//! segments alone and packed, and tokens one at a time.

use super::plain_rig::{Rig, close, same_bits, wide};
use qwentune::device::{Indices, Region};
use qwentune::ops::attention::{Segment, Segments};
use qwentune::ops::delta_rule::{self, Backward, DeltaRule, Gates, States};
use qwentune::ops::gated_norm::{self, GatedNorm};
use qwentune::ops::output_gate::{self, OutputGate};
use qwentune::ops::short_convolution::{self, ShortConvolution, Windows};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn placed(lens: &[u32]) -> Vec<Segment> {
    let mut start = 0;
    let mut place = |len: &u32| {
        start += len;
        Segment { start: start - len, len: *len }
    };
    lens.iter().map(&mut place).collect()
}

/// Checks `dx` against central differences of `Σ dy·f(x)` at some elements.
fn numeric(
    what: &str,
    f: impl Fn(&[f64]) -> Vec<f64>,
    x: &[f64],
    dy: &[f64],
    dx: &[f32],
    columns: impl Fn(usize) -> bool,
    tolerance: f64,
) {
    let value = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    let kept: Vec<usize> = (0..x.len()).filter(|i| columns(*i)).collect();
    let rms = (kept.iter().map(|i| f64::from(dx[*i]).powi(2)).sum::<f64>() / kept.len() as f64).sqrt();
    let mut x = x.to_vec();
    for &i in kept.iter().step_by(kept.len() / 41 + 1) {
        let (old, h) = (x[i], 1e-6);
        x[i] = old + h;
        let above = value(&x);
        x[i] = old - h;
        let below = value(&x);
        x[i] = old;
        let want = (above - below) / (2.0 * h);
        let limit = tolerance * (rms + want.abs()) + 1e-7;
        assert!((want - f64::from(dx[i])).abs() <= limit, "{what}[{i}]: {} instead of {want}", dx[i]);
    }
}

// ---- the delta rule ------------------------------------------------------------------------------------------------

#[derive(Debug)]
struct Case {
    lens: &'static [u32],
    /// Heads of keys and of values, and their sizes.
    heads: [usize; 2],
    dims: [usize; 2],
    /// Means of b and a, and A_log.
    gates: [f32; 3],
    /// How far keys are from one another.
    spread: f32,
    /// Largest error of the output and of the gradients.
    tolerance: [f64; 2],
}

const PLAIN: [f32; 3] = [0.0, -1.0, 0.0];
const CASES: &[Case] = &[
    Case { lens: &[1], heads: [1, 1], dims: [4, 4], gates: PLAIN, spread: 1.0, tolerance: [1e-5, 5e-5] },
    Case { lens: &[64], heads: [1, 1], dims: [8, 16], gates: PLAIN, spread: 1.0, tolerance: [1e-5, 5e-5] },
    Case {
        lens: &[3, 65, 1],
        heads: [2, 4],
        dims: [8, 24],
        gates: PLAIN,
        spread: 1.0,
        tolerance: [1e-5, 5e-5],
    },
    Case { lens: &[130], heads: [1, 3], dims: [16, 5], gates: PLAIN, spread: 1.0, tolerance: [1e-5, 5e-5] },
    // Nearly parallel keys that are learned whole and never forgotten: the triangular solve is at its worst.
    Case {
        lens: &[70],
        heads: [1, 2],
        dims: [8, 8],
        gates: [8.0, -12.0, 0.0],
        spread: 0.02,
        tolerance: [1e-4, 5e-3],
    },
    // Everything is forgotten at once: e^-30 and less.
    Case {
        lens: &[66, 5],
        heads: [1, 1],
        dims: [8, 8],
        gates: [0.0, 2.0, 2.77],
        spread: 1.0,
        tolerance: [1e-5, 5e-5],
    },
];

struct Shape {
    p: DeltaRule,
    segments: Vec<Segment>,
    a_log: Vec<f64>,
    dt_bias: Vec<f64>,
}

struct Inputs {
    shape: Shape,
    qkv: (Region, Vec<f32>),
    projected: (Region, Vec<f32>),
}

/// Operands of a case; three columns lie before the gates and one after them.
fn inputs(rig: &mut Rig, case: &Case, lens: &[u32]) -> Inputs {
    let ([key_heads, value_heads], [key_dim, value_dim]) = (case.heads, case.dims);
    let a_log: Vec<f32> = (0..value_heads).map(|h| case.gates[2] + 0.1 * h as f32).collect();
    let dt_bias: Vec<f32> = (0..value_heads).map(|h| 0.3 * h as f32 - 0.2).collect();
    let gates = Gates { width: 3 + 2 * value_heads + 1, b: 3, a: 3 + value_heads };
    let (a, d) = (rig.given(&a_log), rig.given(&dt_bias));
    let p = DeltaRule { key_heads, value_heads, key_dim, value_dim, a_log: a, dt_bias: d, gates };
    let tokens = lens.iter().sum::<u32>() as usize;
    let (_, mut qkv) = rig.random(tokens * p.qkv_width(), 1.0);
    let (first, keys) = (key_heads * key_dim, key_heads * key_dim);
    for row in qkv.chunks_exact_mut(p.qkv_width()) {
        row[first..first + keys].iter_mut().for_each(|k| *k = 1.0 + case.spread * (*k - 1.0));
    }
    let (_, mut projected) = rig.random(tokens * gates.width, 1.0);
    for row in projected.chunks_exact_mut(gates.width) {
        row[gates.b..gates.a].iter_mut().for_each(|b| *b += case.gates[0]);
        row[gates.a..gates.a + value_heads].iter_mut().for_each(|a| *a += case.gates[1]);
    }
    let shape = Shape { p, segments: placed(lens), a_log: wide(&a_log), dt_bias: wide(&dt_bias) };
    let regions = (rig.given(&qkv), rig.given(&projected));
    Inputs { shape, qkv: (regions.0, qkv), projected: (regions.1, projected) }
}

fn unit(x: &[f64]) -> Vec<f64> {
    let norm = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
    x.iter().map(|x| x / norm).collect()
}

impl Shape {
    /// The recurrence of the paper, token by token.
    fn forward(&self, qkv: &[f64], projected: &[f64]) -> Vec<f64> {
        let p = &self.p;
        let (dk, dv) = (p.key_dim, p.value_dim);
        let mut out = vec![0.0; qkv.len() / p.qkv_width() * p.out_width()];
        for segment in &self.segments {
            for head in 0..p.value_heads {
                let mut state = vec![0.0; dk * dv];
                for t in segment.start as usize..(segment.start + segment.len) as usize {
                    let (row, gates) = (&qkv[t * p.qkv_width()..], &projected[t * p.gates.width..]);
                    let key = head / (p.value_heads / p.key_heads);
                    let q = unit(&row[key * dk..][..dk]);
                    let k = unit(&row[(p.key_heads + key) * dk..][..dk]);
                    let v = &row[2 * p.key_heads * dk + head * dv..][..dv];
                    let beta = sigmoid(gates[p.gates.b + head]);
                    let a = gates[p.gates.a + head] + self.dt_bias[head];
                    let softplus = libm::log1p(libm::exp(a));
                    let decay = libm::exp(-libm::exp(self.a_log[head]) * softplus);
                    state.iter_mut().for_each(|s| *s *= decay);
                    for c in 0..dv {
                        let said: f64 = (0..dk).map(|r| state[r * dv + c] * k[r]).sum();
                        let u = beta * (v[c] - said);
                        (0..dk).for_each(|r| state[r * dv + c] += k[r] * u);
                        let o: f64 = (0..dk).map(|r| state[r * dv + c] * q[r]).sum();
                        out[t * p.out_width() + head * dv + c] = o / (dk as f64).sqrt();
                    }
                }
            }
        }
        out
    }
}

#[test]
fn chunks_follow_the_recurrence_and_its_derivatives() {
    for case in CASES {
        let mut rig = Rig::new(11);
        let Inputs { shape, qkv, projected } = inputs(&mut rig, case, case.lens);
        let p = shape.p;
        let tokens = qkv.1.len() / p.qkv_width();
        let out = rig.space(tokens * p.out_width());
        let (dout, gradient) = rig.random(tokens * p.out_width(), 1.0);
        let dqkv = rig.space(qkv.1.len());
        let dprojected = rig.given(&vec![0.0; projected.1.len()]);
        let segments = Segments::host(&shape.segments);
        let got = rig.run(&[out, dqkv, dprojected], |dev| {
            delta_rule::forward(dev, &p, &segments, [qkv.0, projected.0], out, None);
            let (qkv, projected) = (qkv.0, projected.0);
            let o = Backward { qkv, projected, dout, dqkv, dprojected };
            delta_rule::backward(dev, &p, &segments, &o);
        });
        let name = format!("{case:?}");
        let (x, gates, dy) = (wide(&qkv.1), wide(&projected.1), wide(&gradient));
        close(&name, &got[0], &shape.forward(&x, &gates), case.tolerance[0]);
        let limit = case.tolerance[1];
        numeric(&format!("{name} qkv"), |x| shape.forward(x, &gates), &x, &dy, &got[1], |_| true, limit);
        let columns = |i: usize| (3..3 + 2 * p.value_heads).contains(&(i % p.gates.width));
        numeric(&format!("{name} b, a"), |g| shape.forward(&x, g), &gates, &dy, &got[2], columns, limit);
        assert!((0..got[2].len()).all(|i| columns(i) || got[2][i] == 0.0), "{name}: other columns");
    }
}

/// A packed segment has the bytes of the segment alone: in the output and in the gradients.
#[test]
fn segments_of_a_delta_rule_do_not_see_each_other() {
    let case = &CASES[2];
    let run = |lens: &[u32], skip: usize| {
        let mut rig = Rig::new(5);
        let Inputs { shape, mut qkv, mut projected } = inputs(&mut rig, case, &[70, 9, 70]);
        let p = shape.p;
        let tokens = lens.iter().sum::<u32>() as usize;
        qkv.0 = rig.given(&qkv.1[skip * p.qkv_width()..][..tokens * p.qkv_width()]);
        projected.0 = rig.given(&projected.1[skip * p.gates.width..][..tokens * p.gates.width]);
        let (_, dout) = rig.random(149 * p.out_width(), 1.0);
        let dout = rig.given(&dout[skip * p.out_width()..][..tokens * p.out_width()]);
        let widths = [p.out_width(), p.qkv_width(), p.gates.width];
        let [out, dqkv, dprojected] = widths.map(|width| rig.given(&vec![0.0; tokens * width]));
        let segments = placed(lens);
        let got = rig.run(&[out, dqkv, dprojected], |dev| {
            let segments = Segments::host(&segments);
            let (qkv, projected) = (qkv.0, projected.0);
            delta_rule::forward(dev, &p, &segments, [qkv, projected], out, None);
            delta_rule::backward(dev, &p, &segments, &Backward { qkv, projected, dout, dqkv, dprojected });
        });
        let last = lens[lens.len() - 1] as usize;
        let tails = got.into_iter().zip(widths).map(|(x, width)| x[(tokens - last) * width..].to_vec());
        tails.collect::<Vec<_>>()
    };
    let (packed, alone) = (run(&[70, 9, 70], 0), run(&[70], 79));
    assert!(packed.iter().zip(&alone).all(|(a, b)| same_bits(a, b)));
}

/// Tokens that come one at a time after a prompt go on from its state.
#[test]
fn sequences_go_on_from_their_states() {
    let case = &CASES[3];
    let (prompts, more) = ([67u32, 1], 3);
    let mut rig = Rig::new(9);
    let whole = inputs(&mut rig, case, &[70, 4]);
    let p = whole.shape.p;
    let want = whole.shape.forward(&wide(&whole.qkv.1), &wide(&whole.projected.1));
    let row = |values: &[f32], width: usize, t: usize| values[t * width..(t + 1) * width].to_vec();
    let rows = |values: &[f32], width: usize, of: &[usize]| -> Vec<f32> {
        of.iter().flat_map(|t| row(values, width, *t)).collect()
    };
    let gather = |rig: &mut Rig, of: &[usize]| {
        let qkv = rig.given(&rows(&whole.qkv.1, p.qkv_width(), of));
        [qkv, rig.given(&rows(&whole.projected.1, p.gates.width, of))]
    };
    let read: Vec<usize> = (0..67).chain([70]).collect();
    let first = gather(&mut rig, &read);
    let steps: Vec<[Region; 2]> = (0..more).map(|i| gather(&mut rig, &[67 + i, 71 + i])).collect();
    // Slots that were used before, one of them by nobody now.
    let states = rig.space(3 * p.state_len());
    let out = rig.space(68 * p.out_width());
    let outs: Vec<Region> = (0..more).map(|_| rig.space(2 * p.out_width())).collect();
    let (slots, segments) = ([2u32, 0], placed(&prompts));
    let got = rig.run(&outs, |dev| {
        let states = States { region: states, slots: Indices::host(&slots) };
        delta_rule::forward(dev, &p, &Segments::host(&segments), first, out, Some(states));
        for (operands, out) in steps.iter().zip(&outs) {
            delta_rule::step(dev, &p, *operands, *out, states);
        }
    });
    for (i, got) in got.iter().enumerate() {
        let wanted: Vec<f64> = [67 + i, 71 + i]
            .iter()
            .flat_map(|t| want[t * p.out_width()..][..p.out_width()].to_vec())
            .collect();
        close(&format!("token {i}"), got, &wanted, 1e-5);
    }
}

// ---- the others ----------------------------------------------------------------------------------------------------

fn convolved(p: &ShortConvolution, segments: &[Segment], weight: &[f64], x: &[f64]) -> Vec<f64> {
    let mut out = Vec::new();
    for s in segments {
        for t in 0..s.len as usize {
            for c in 0..p.channels {
                let tap = |j: usize| (t + 1 + j).checked_sub(p.taps);
                let at = |t: usize| x[(s.start as usize + t) * p.width + c];
                let sum: f64 =
                    (0..p.taps).filter_map(|j| Some(weight[j * p.channels + c] * at(tap(j)?))).sum();
                out.push(sum * sigmoid(sum));
            }
        }
    }
    out
}

#[test]
fn the_short_convolution_follows_the_reference_and_its_window() {
    for (taps, lens) in [(4usize, &[1u32, 2, 9, 40][..]), (2, &[5]), (1, &[3, 3])] {
        let mut rig = Rig::new(3);
        let channels = 21;
        let (weight, weights) = rig.random(taps * channels, 0.7);
        let p = ShortConvolution { channels, taps, width: channels + 3, weight };
        let segments = placed(lens);
        let tokens = lens.iter().sum::<u32>() as usize;
        let (x, values) = rig.random(tokens * p.width, 1.0);
        let (dy, gradient) = rig.random(tokens * channels, 1.0);
        let y = rig.space(tokens * channels);
        let dx = rig.given(&vec![0.0; tokens * p.width]);
        let got = rig.run(&[y, dx], |dev| {
            short_convolution::forward(dev, &p, &Segments::host(&segments), x, y, None);
            short_convolution::backward(dev, &p, &Segments::host(&segments), x, dy, dx);
        });
        let (values, weights, gradient) = (wide(&values), wide(&weights), wide(&gradient));
        let forward = |x: &[f64]| convolved(&p, &segments, &weights, x);
        close("convolution", &got[0], &forward(&values), 1e-6);
        let columns = |i: usize| i % p.width < channels;
        numeric("convolution's gradient", forward, &values, &gradient, &got[1], columns, 1e-5);
        assert!((0..got[1].len()).all(|i| columns(i) || got[1][i] == 0.0));

        // One token after the other: the same bits.
        let last = segments[segments.len() - 1];
        let windows = rig.space(2 * p.window_len());
        let single = rig.space(channels);
        let slots = [1u32];
        for end in 1..last.len {
            let prompt = [Segment { start: 0, len: end }];
            let token = |t: u32| x.slice((last.start + t) as usize * p.width, p.width);
            let texts = x.slice(last.start as usize * p.width, end as usize * p.width);
            let out = rig.run(&[single], |dev| {
                let windows = Windows { region: windows, slots: Indices::host(&slots) };
                let y = y.slice(0, end as usize * channels);
                short_convolution::forward(dev, &p, &Segments::host(&prompt), texts, y, Some(windows));
                short_convolution::step(dev, &p, token(end), single, windows);
            });
            assert!(
                same_bits(&out[0], &got[0][(last.start + end) as usize * channels..][..channels]),
                "{end}"
            );
        }
    }
}

/// An operation in f64, of its input and its gates.
type Reference<'a> = dyn Fn(&[f64], &[f64]) -> Vec<f64> + 'a;

#[test]
fn gates_follow_the_reference() {
    let (heads, dim, rows, width) = (3, 20, 7, 130);
    let mut rig = Rig::new(17);
    let (weight, weights) = rig.random(dim, 1.0);
    let norm = GatedNorm { heads, dim, eps: 1e-6, weight, gate_width: width, gate: 5 };
    let gate = OutputGate { heads, dim, width, gate: 7, stride: 2 * dim };
    let (x, values) = rig.random(rows * heads * dim, 1.0);
    let (projected, gates) = rig.random(rows * width, 2.0);
    let (_, gradient) = rig.random(rows * heads * dim, 1.0);
    let (values, gates, dy) = (wide(&values), wide(&gates), wide(&gradient));
    let weights = wide(&weights);
    let normed = |x: &[f64], z: &[f64]| -> Vec<f64> {
        let head = |i: usize| {
            let (row, head) = (i / heads, i % heads);
            let x = &x[i * dim..][..dim];
            let mean = x.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            let z = &z[row * width + 5 + head * dim..][..dim];
            let y = move |d: usize| x[d] / (mean + 1e-6).sqrt() * z[d] * sigmoid(z[d]);
            (0..dim).map(|d| weights[d] * y(d)).collect::<Vec<_>>()
        };
        (0..rows * heads).flat_map(head).collect()
    };
    let gated = |x: &[f64], g: &[f64]| -> Vec<f64> {
        let one = |i: usize| {
            let (row, head, d) = (i / (heads * dim), i / dim % heads, i % dim);
            x[i] * sigmoid(g[row * width + 7 + head * 2 * dim + d])
        };
        (0..x.len()).map(one).collect()
    };
    let of_norm = |i: usize| (5..5 + heads * dim).contains(&(i % width));
    let of_gate = |i: usize| {
        let column = (i % width).wrapping_sub(7);
        column < heads * 2 * dim && column % (2 * dim) < dim
    };
    let y = rig.space(rows * heads * dim);
    let (dx, dgates) = (rig.given(&gradient), rig.given(&vec![0.0; rows * width]));
    let check = |what: &str, got: &[Vec<f32>], f: &Reference<'_>, columns: &dyn Fn(usize) -> bool| {
        close(what, &got[0], &f(&values, &gates), 1e-6);
        numeric(&format!("{what} x"), |x| f(x, &gates), &values, &dy, &got[1], |_| true, 1e-5);
        numeric(&format!("{what} gate"), |g| f(&values, g), &gates, &dy, &got[2], columns, 1e-5);
        assert!((0..got[2].len()).all(|i| columns(i) || got[2][i] == 0.0), "{what}: other columns");
    };
    let got = rig.run(&[y, dx, dgates], |dev| {
        gated_norm::forward(dev, &norm, x, projected, y);
        gated_norm::backward(dev, &norm, [x, projected], dx, dgates);
    });
    check("norm", &got, &normed, &of_norm);
    let got = rig.run(&[y, dx, dgates], |dev| {
        output_gate::forward(dev, &gate, x, projected, y);
        output_gate::backward(dev, &gate, [x, projected], dx, dgates);
    });
    check("gate", &got, &gated, &of_gate);
}
