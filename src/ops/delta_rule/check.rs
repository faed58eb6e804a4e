//! The gated delta rule: segments around its chunks, groups of value heads, keys and values of different sizes, keys that
//! are nearly the same, states that are never forgotten and at once, and one more token of each segment.

use super::{Backward, DeltaRule, EPS, Gates, States};
use crate::device::Storage::{Activation, F32};
use crate::device::{Capabilities, Region};
use crate::ops::attention::{Segment, Segments, placed, work};
use crate::ops::check::forms::{add, dot, product_nn, product_nt, product_tn, sigmoid};
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed};
use std::borrow::Cow::{self, Borrowed};

/// A delta rule.
#[derive(Clone, Debug)]
pub struct Case {
    /// Heads of keys and of values.
    pub heads: [usize; 2],
    /// Their sizes.
    pub dims: [usize; 2],
    /// Lengths of the segments.
    pub segments: Cow<'static, [u32]>,
    /// Means of b and a, and the first head's `A_log`.
    pub gates: [f32; 3],
    /// How far keys are from one another: 0 makes all of them the same.
    pub spread: f32,
}

/// States that are partly forgotten and partly learned.
const PLAIN: [f32; 3] = [0.0, -1.0, 0.0];
/// Learned whole and never forgotten.
const KEPT: [f32; 3] = [8.0, -12.0, 0.0];
/// Forgotten at once: a decay of e^-30 and less.
const LOST: [f32; 3] = [0.0, 2.0, 2.77];

const fn case(
    heads: [usize; 2],
    dims: [usize; 2],
    segments: &'static [u32],
    gates: [f32; 3],
    spread: f32,
) -> Case {
    Case { heads, dims, segments: Borrowed(segments), gates, spread }
}

/// Delta rules.
pub const CASES: &[Case] = &[
    case([1, 1], [4, 4], &[1], PLAIN, 1.0),
    case([1, 1], [8, 16], &[64], PLAIN, 1.0),
    case([2, 4], [8, 24], &[3, 65, 1], PLAIN, 1.0),
    case([1, 3], [16, 5], &[130], PLAIN, 1.0),
    case([1, 2], [8, 8], &[70], KEPT, 0.02),
    case([1, 1], [8, 8], &[66, 5], LOST, 1.0),
    case([1, 2], [128, 128], &[63, 1, 130], PLAIN, 1.0),
    case([1, 1], [128, 128], &[70], KEPT, 0.1),
    case([2, 2], [128, 128], &[65], LOST, 1.0),
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "delta_rule",
    scalar: false,
    #[cfg(feature = "cuda")]
    kernels: crate::device::cuda::Kernels::NONE,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    let case = |d: check::DeltaShape| Case {
        heads: [d.key_heads, d.value_heads],
        dims: [d.key_dim, d.value_dim],
        segments: Cow::Owned(vec![s.row as u32; s.tokens / s.row]),
        gates: PLAIN,
        spread: 1.0,
    };
    s.delta.into_iter().flat_map(|d| boxed(&[case(d)])).collect()
}

/// The recurrence in f64.
#[derive(Clone)]
struct Form {
    p: DeltaRule,
    segments: Vec<Segment>,
    a_log: Vec<f64>,
    dt_bias: Vec<f64>,
}

/// What a token brings to a value head.
struct Token {
    /// Normalised, the query with its scale; and the factors that did it.
    q: Vec<f64>,
    k: Vec<f64>,
    factors: [f64; 2],
    v: Vec<f64>,
    beta: f64,
    /// Logarithm of the decay, and its derivative by a.
    g: f64,
    slope: f64,
}

/// What a token made of a state: the state after the decay, and after the token; and the error before β.
struct Made {
    decayed: Vec<f64>,
    after: Vec<f64>,
    error: Vec<f64>,
}

/// `x` normalised, times `scale`; and the factor that normalised.
fn unit(x: &[f64], scale: f64) -> (Vec<f64>, f64) {
    let factor = 1.0 / (dot(x, x) + f64::from(EPS)).sqrt();
    (x.iter().map(|x| x * factor * scale).collect(), factor)
}

/// Gradient of `x` of [`unit`], given its result.
fn unit_gradient(y: &[f64], factor: f64, scale: f64, dy: &[f64]) -> Vec<f64> {
    let along = dot(y, dy) / (scale * scale);
    y.iter().zip(dy).map(|(y, dy)| factor * scale * (dy - y * along)).collect()
}

impl Form {
    fn scale(&self) -> f64 {
        1.0 / (self.p.key_dim as f64).sqrt()
    }

    /// First columns of a value head's query, key and value.
    fn columns(&self, head: usize) -> [usize; 3] {
        let DeltaRule { key_heads, value_heads, key_dim, value_dim, .. } = self.p;
        let key = head / (value_heads / key_heads);
        [key * key_dim, (key_heads + key) * key_dim, 2 * key_heads * key_dim + head * value_dim]
    }

    fn token(&self, qkv: &[f64], projected: &[f64], head: usize) -> Token {
        let [q, k, v] = self.columns(head);
        let DeltaRule { key_dim, value_dim, gates, .. } = self.p;
        let (q, q_factor) = unit(&qkv[q..q + key_dim], self.scale());
        let (k, k_factor) = unit(&qkv[k..k + key_dim], 1.0);
        let a = projected[gates.a + head] + self.dt_bias[head];
        let rate = libm::exp(self.a_log[head]);
        Token {
            q,
            k,
            factors: [q_factor, k_factor],
            v: qkv[v..v + value_dim].to_vec(),
            beta: sigmoid(projected[gates.b + head]),
            g: -rate * libm::log1p(libm::exp(a)),
            slope: -rate * sigmoid(a),
        }
    }

    /// S' = e^g S; u = β (v - S'ᵀk); S = S' + k uᵀ.
    fn learn(&self, token: &Token, state: &[f64]) -> Made {
        let decay = libm::exp(token.g);
        let decayed: Vec<f64> = state.iter().map(|s| s * decay).collect();
        let said = product_nn(&token.k, &decayed, self.p.value_dim);
        let error: Vec<f64> = token.v.iter().zip(&said).map(|(v, said)| v - said).collect();
        let mut after = decayed.clone();
        for (row, k) in after.chunks_exact_mut(self.p.value_dim).zip(&token.k) {
            add(row, k * token.beta, &error);
        }
        Made { decayed, after, error }
    }

    /// Calls `f` with each segment and value head.
    fn each(&self, mut f: impl FnMut(usize, &Segment, usize)) {
        for (index, segment) in self.segments.iter().enumerate() {
            (0..self.p.value_heads).for_each(|head| f(index, segment, head));
        }
    }

    fn rows<'a>(&self, qkv: &'a [f64], projected: &'a [f64], t: usize) -> (&'a [f64], &'a [f64]) {
        (&qkv[t * self.p.qkv_width()..], &projected[t * self.p.gates.width..])
    }

    /// The output, and the state of each segment and head after its last token.
    fn forward(&self, qkv: &[f64], projected: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let (width, dv) = (self.p.out_width(), self.p.value_dim);
        let mut out = vec![0.0; qkv.len() / self.p.qkv_width() * width];
        let mut states = Vec::new();
        self.each(|_, segment, head| {
            let mut state = vec![0.0; self.p.key_dim * dv];
            for t in segment.start as usize..(segment.start + segment.len) as usize {
                let (qkv, projected) = self.rows(qkv, projected, t);
                let token = self.token(qkv, projected, head);
                state = self.learn(&token, &state).after;
                out[t * width + head * dv..][..dv].copy_from_slice(&product_nn(&token.q, &state, dv));
            }
            states.push(state);
        });
        (out, states)
    }

    /// One more token of each segment: the output, and the states after it.
    fn step(&self, states: &[Vec<f64>], qkv: &[f64], projected: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let (mut out, mut after) = (Vec::new(), Vec::new());
        self.each(|index, _, head| {
            let (qkv, projected) = self.rows(qkv, projected, index);
            let token = self.token(qkv, projected, head);
            let state = self.learn(&token, &states[index * self.p.value_heads + head]).after;
            out.extend(product_nn(&token.q, &state, self.p.value_dim));
            after.push(state);
        });
        (out, after)
    }

    /// Gradients of q|k|v and of the projected rows, zero beside b and a.
    fn backward(&self, qkv: &[f64], projected: &[f64], dout: &[f64]) -> [Vec<f64>; 2] {
        let (mut dqkv, mut dprojected) = (vec![0.0; qkv.len()], vec![0.0; projected.len()]);
        self.each(|_, segment, head| {
            let tokens = segment.start as usize..(segment.start + segment.len) as usize;
            let mut state = vec![0.0; self.p.key_dim * self.p.value_dim];
            let mut passed = Vec::new();
            for t in tokens.clone() {
                let (qkv, projected) = self.rows(qkv, projected, t);
                let token = self.token(qkv, projected, head);
                let made = self.learn(&token, &state);
                state.clone_from(&made.after);
                passed.push((token, made));
            }
            let mut d = vec![0.0; state.len()];
            for (t, (token, made)) in tokens.zip(&passed).rev() {
                let dout = &dout[t * self.p.out_width() + head * self.p.value_dim..][..self.p.value_dim];
                let row = &mut dqkv[t * self.p.qkv_width()..];
                let gates = &mut dprojected[t * self.p.gates.width..];
                self.backward_token(head, (token, made), dout, &mut d, (row, gates));
            }
        });
        [dqkv, dprojected]
    }

    /// One token; `d` is the gradient of the state after it, and becomes that of the state before.
    fn backward_token(
        &self,
        head: usize,
        (token, made): (&Token, &Made),
        dout: &[f64],
        d: &mut [f64],
        (dqkv, dgates): (&mut [f64], &mut [f64]),
    ) {
        let dv = self.p.value_dim;
        add(d, 1.0, &product_tn(&token.q, token.q.len(), dout, dv));
        let du = product_nn(&token.k, d, dv);
        let of_value: Vec<f64> = du.iter().map(|du| token.beta * du).collect();
        let learned: Vec<f64> = made.error.iter().map(|e| token.beta * e).collect();
        let mut of_key = product_nt(d, &learned, dv);
        add(&mut of_key, -1.0, &product_nt(&made.decayed, &of_value, dv));
        let of_query = product_nt(&made.after, dout, dv);
        add(d, -1.0, &product_tn(&token.k, token.k.len(), &of_value, dv));
        let dg = dot(d, &made.decayed);
        let decay = libm::exp(token.g);
        d.iter_mut().for_each(|d| *d *= decay);
        let [q, k, v] = self.columns(head);
        let [q_factor, k_factor] = token.factors;
        add(&mut dqkv[q..], 1.0, &unit_gradient(&token.q, q_factor, self.scale(), &of_query));
        add(&mut dqkv[k..], 1.0, &unit_gradient(&token.k, k_factor, 1.0, &of_key));
        add(&mut dqkv[v..], 1.0, &of_value);
        dgates[self.p.gates.b + head] = dot(&du, &made.error) * token.beta * (1.0 - token.beta);
        dgates[self.p.gates.a + head] = dg * token.slope;
    }
}

/// Largest differentiated case, in elements of q|k|v: each difference is a whole pass.
const DIFFERENTIATED: usize = 5000;

impl Case {
    /// Limits of the output, of the states and of the gradients. Of keys that are nearly the same, what is learned is the
    /// small rest of large numbers.
    fn limits(&self) -> [Limit; 3] {
        let [values, gradients] = if self.spread < 0.5 { [1e-4, 5e-3] } else { [1e-5, 5e-5] };
        let bf16 = |f32| Limit { f32, bf16: 5e-3 };
        [bf16(values), Limit { f32: values, bf16: 2e-4 }, Limit { f32: gradients, bf16: 1e-2 }]
    }

    /// b, a and three columns before them and one after, as deep in their distributions as the case wants.
    fn projected(&self, rig: &mut Rig, rows: usize, gates: Gates) -> Vec<f32> {
        let mut values = rig.normal(rows * gates.width, 1.0);
        for row in values.chunks_exact_mut(gates.width) {
            row[gates.b..gates.a].iter_mut().for_each(|b| *b = rounded(*b + self.gates[0]));
            row[gates.a..gates.a + self.heads[1]].iter_mut().for_each(|a| *a = rounded(*a + self.gates[1]));
        }
        values
    }

    fn qkv(&self, rig: &mut Rig, rows: usize, p: &DeltaRule) -> Vec<f32> {
        let mut values = rig.normal(rows * p.qkv_width(), 1.0);
        let keys = p.key_heads * p.key_dim;
        for row in values.chunks_exact_mut(p.qkv_width()) {
            row[keys..2 * keys].iter_mut().for_each(|k| *k = rounded(1.0 + self.spread * (*k - 1.0)));
        }
        values
    }
}

fn rounded(value: f32) -> f32 {
    half::bf16::from_f32(value).to_f32()
}

impl Case {
    fn parameters(&self, rig: &mut Rig) -> DeltaRule {
        let ([key_heads, value_heads], [key_dim, value_dim]) = (self.heads, self.dims);
        let gates = Gates { width: 8 + 2 * value_heads, b: 3, a: 3 + value_heads };
        let a_log = (0..value_heads).map(|h| self.gates[2] + 0.1 * h as f32).collect();
        let a_log = rig.holding(F32, a_log);
        let dt_bias = rig.holding(F32, (0..value_heads).map(|h| 0.3 * h as f32 - 0.2).collect());
        DeltaRule { key_heads, value_heads, key_dim, value_dim, a_log, dt_bias, gates }
    }
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        device.gated_mixers
    }

    fn set_up(&self, rig: &mut Rig) {
        rig.seed(43);
        let p = self.parameters(rig);
        let DeltaRule { value_heads, key_dim, value_dim, a_log, dt_bias, gates, .. } = p;
        let segments = placed(&self.segments);
        let (count, tokens) = (segments.len(), self.segments.iter().sum::<u32>() as usize);
        let [x, next] = [tokens, count].map(|rows| {
            let qkv = self.qkv(rig, rows, &p);
            let projected = self.projected(rig, rows, gates);
            [rig.holding(Activation, qkv), rig.holding(Activation, projected)]
        });
        let dout = rig.random(Activation, tokens * p.out_width(), 1.0);
        let [out, out_next] = [tokens, count].map(|rows| rig.space(Activation, rows * p.out_width()));
        // One slot more than there are segments: nobody's, which stays as it is.
        let states = rig.zeros(F32, (count + 1) * p.state_len());
        let dqkv = rig.space(Activation, x[0].len);
        let dprojected = rig.zeros(Activation, x[1].len);
        let slots = rig.list((1..=count as u32).rev().collect());
        let lists = work(&segments).map(|words| rig.list(words));
        // Three products of a state forward and six backward.
        let product = 2.0 * (tokens * value_heads * key_dim * value_dim) as f64;
        let read = x[0].len + 2 * tokens * value_heads;
        let cost =
            Cost { flops: 3.0 * product, activations: read + out.len, words: states.len, ..Cost::default() };
        let of_forward = segments.clone();
        rig.call("forward", cost, move |dev, all| {
            let segments = Segments { list: &of_forward, work: lists.map(|list| all[list.at]) };
            let states = States { region: states, slots: all[slots.at] };
            super::forward(dev, &p, &segments, x, out, Some(states));
            Ok(())
        });
        let activations = next[0].len + 2 * count * value_heads + out_next.len;
        let flops = 3.0 * product / tokens as f64 * count as f64;
        let cost = Cost { flops, activations, words: 2 * count * p.state_len(), ..Cost::default() };
        rig.call("step", cost, move |dev, all| {
            super::step(dev, &p, next, out_next, States { region: states, slots: all[slots.at] });
            Ok(())
        });
        let cost = Cost { flops: 6.0 * product, activations: 2 * read + out.len, ..Cost::default() };
        let of_backward = segments.clone();
        rig.call("backward", cost, move |dev, all| {
            let segments = Segments { list: &of_backward, work: lists.map(|list| all[list.at]) };
            let o = Backward { qkv: x[0], projected: x[1], dout, dqkv, dprojected };
            super::backward(dev, &p, &segments, &o);
            Ok(())
        });
        let form = move |a_log, dt_bias| Form { p, segments: segments.clone(), a_log, dt_bias };
        let (of_results, limits) = (form.clone(), self.limits());
        rig.wants(&[out, out_next, states, dqkv, dprojected], move |o| {
            let form = of_results(o.given(a_log), o.given(dt_bias));
            let [x, next] = [x, next].map(|operands| operands.map(|region| o.given(region)));
            let (want, ended) = form.forward(&x[0], &x[1]);
            let (want_next, after) = form.step(&ended, &next[0], &next[1]);
            let mut kept = vec![0.0; p.state_len()];
            after.chunks(p.value_heads).rev().for_each(|heads| kept.extend(heads.concat()));
            let [of_qkv, of_projected] = form.backward(&x[0], &x[1], &o.given(dout));
            let [values, state, gradients] = limits;
            vec![
                o.finding("out", out, &want, values),
                o.finding("out of one more", out_next, &want_next, values),
                o.finding("states", states, &kept, state),
                o.finding("dqkv", dqkv, &of_qkv, gradients),
                o.finding("db, da", dprojected, &of_projected, gradients),
            ]
        });
        if x[0].len <= DIFFERENTIATED && self.spread > 0.5 {
            derivatives(rig, form, [a_log, dt_bias], x, dout);
        }
    }
}

/// The derivatives by the operands `x` of the form that its parameters give; `dout` is the gradient of its result.
fn derivatives(
    rig: &mut Rig,
    form: impl Fn(Vec<f64>, Vec<f64>) -> Form + Clone + 'static,
    [a_log, dt_bias]: [Region; 2],
    x: [Region; 2],
    dout: Region,
) {
    let of_qkv = form.clone();
    rig.derivative("dqkv", move |rig| {
        let form = of_qkv(rig.given(a_log), rig.given(dt_bias));
        let (at, gates, upper) = (rig.given(x[0]), rig.given(x[1]), rig.given(dout));
        let [gradient, _] = form.backward(&at, &gates, &upper);
        let function = Box::new(move |x: &[f64]| form.forward(x, &gates).0);
        Derivative { function, at, upper, gradient }
    });
    rig.derivative("db, da", move |rig| {
        let form = form(rig.given(a_log), rig.given(dt_bias));
        let (qkv, at, upper) = (rig.given(x[0]), rig.given(x[1]), rig.given(dout));
        let [_, gradient] = form.backward(&qkv, &at, &upper);
        let function = Box::new(move |gates: &[f64]| form.forward(&qkv, gates).0);
        Derivative { function, at, upper, gradient }
    });
}
