//! Attention: segments around the tiles of rows, groups of heads, sharp and flat softmaxes.

use super::{Attention, Backward, Segment, Segments, placed, work};
use crate::device::Storage::{Activation, F32};
use crate::device::{Capabilities, Region};
use crate::ops::check::forms::{add, dot, softmax};
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_heads};
use std::borrow::Cow::{self, Borrowed};

/// An attention.
#[derive(Clone, Debug)]
pub struct Case {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Lengths of the segments.
    pub segments: Cow<'static, [u32]>,
    /// Standard deviation of the queries: large ones make a softmax with one weight near 1.
    pub peak: f32,
    /// Whether each query is followed by its output's gate in the projected rows.
    pub gated: bool,
}

impl Case {
    /// Tokens in all.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.segments.iter().sum::<u32>() as usize
    }
}

/// Attention.
pub const CASES: &[Case] = &[
    Case { heads: 1, kv_heads: 1, head_dim: 16, segments: Borrowed(&[1]), peak: 1.0, gated: false },
    Case { heads: 2, kv_heads: 1, head_dim: 16, segments: Borrowed(&[5, 1, 17, 2]), peak: 1.0, gated: false },
    Case { heads: 2, kv_heads: 2, head_dim: 24, segments: Borrowed(&[16, 15, 33]), peak: 1.0, gated: false },
    Case { heads: 7, kv_heads: 1, head_dim: 64, segments: Borrowed(&[63, 64, 65]), peak: 1.0, gated: false },
    Case { heads: 14, kv_heads: 2, head_dim: 64, segments: Borrowed(&[130]), peak: 1.0, gated: false },
    Case { heads: 4, kv_heads: 2, head_dim: 128, segments: Borrowed(&[96, 31]), peak: 1.0, gated: false },
    Case { heads: 2, kv_heads: 1, head_dim: 6, segments: Borrowed(&[20]), peak: 1.0, gated: false },
    Case { heads: 2, kv_heads: 1, head_dim: 16, segments: Borrowed(&[90]), peak: 40.0, gated: false },
    Case { heads: 2, kv_heads: 1, head_dim: 64, segments: Borrowed(&[1, 2, 33]), peak: 20.0, gated: false },
    Case { heads: 2, kv_heads: 1, head_dim: 128, segments: Borrowed(&[200]), peak: 1.0, gated: false },
    Case { heads: 4, kv_heads: 2, head_dim: 24, segments: Borrowed(&[3, 40]), peak: 1.0, gated: true },
    Case { heads: 2, kv_heads: 1, head_dim: 256, segments: Borrowed(&[70, 1, 65]), peak: 1.0, gated: true },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "attention",
    scalar: false,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    boxed(&[Case {
        heads: s.heads,
        kv_heads: s.kv_heads,
        head_dim: s.head_dim,
        segments: Cow::Owned(vec![s.row as u32; s.tokens / s.row]),
        peak: 1.0,
        gated: s.delta.is_some(),
    }])
}

/// The operation in f64.
#[derive(Clone)]
struct Form {
    p: Attention,
    segments: Vec<Segment>,
    tokens: usize,
}

impl Form {
    fn q(&self, t: usize, h: usize) -> usize {
        (t * (self.p.heads + self.p.kv_heads) + h) * self.p.head_dim
    }

    fn k(&self, t: usize, h: usize) -> usize {
        self.q(t, self.p.heads + h * self.p.kv_heads / self.p.heads)
    }

    fn v(&self, t: usize, h: usize) -> usize {
        let width = self.p.qkv_width() / self.p.head_dim;
        (t * width + width - self.p.kv_heads + h * self.p.kv_heads / self.p.heads) * self.p.head_dim
    }

    fn o(&self, t: usize, h: usize) -> usize {
        (t * self.p.heads + h) * self.p.head_dim
    }

    /// Calls `f` with each query head and row, the visible rows and their weights, and the log-sum-exp.
    fn each(&self, qk: &[f64], mut f: impl FnMut(usize, usize, std::ops::Range<usize>, &[f64], f64)) {
        let d = self.p.head_dim;
        for segment in &self.segments {
            let start = segment.start as usize;
            for t in start..start + segment.len as usize {
                for h in 0..self.p.heads {
                    let score =
                        |j| dot(&qk[self.q(t, h)..][..d], &qk[self.k(j, h)..][..d]) * f64::from(self.p.scale);
                    let (weights, lse) = softmax(&(start..=t).map(score).collect::<Vec<f64>>());
                    f(t, h, start..t + 1, &weights, lse);
                }
            }
        }
    }

    /// Result [T, heads·D] and log-sum-exp [heads, T].
    fn forward(&self, qk: &[f64], qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.p.head_dim;
        let mut out = vec![0.0; self.tokens * self.p.heads * d];
        let mut lses = vec![0.0; self.tokens * self.p.heads];
        self.each(qk, |t, h, rows, weights, lse| {
            lses[h * self.tokens + t] = lse;
            for (j, w) in rows.zip(weights) {
                add(&mut out[self.o(t, h)..][..d], *w, &qkv[self.v(j, h)..][..d]);
            }
        });
        (out, lses)
    }

    /// Gradients of qk and of qkv (zero in its q and k columns).
    fn backward(&self, qk: &[f64], qkv: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.p.head_dim;
        let (mut dqk, mut dqkv) = (vec![0.0; qk.len()], vec![0.0; qkv.len()]);
        self.each(qk, |t, h, rows, weights, _| {
            let dout = &dout[self.o(t, h)..][..d];
            let dweights: Vec<f64> = rows.clone().map(|j| dot(dout, &qkv[self.v(j, h)..][..d])).collect();
            let mean = dot(&dweights, weights);
            for ((j, w), dw) in rows.zip(weights).zip(&dweights) {
                let ds = w * (dw - mean) * f64::from(self.p.scale);
                add(&mut dqkv[self.v(j, h)..][..d], *w, dout);
                add(&mut dqk[self.q(t, h)..][..d], ds, &qk[self.k(j, h)..][..d]);
                add(&mut dqk[self.k(j, h)..][..d], ds, &qk[self.q(t, h)..][..d]);
            }
        });
        (dqk, dqkv)
    }
}

/// Attention's gradients: weights and their gradients are rounded to bf16 between two products.
const TWICE_ROUNDED: f64 = 1e-2;

/// Largest differentiated case: each difference is a whole pass.
const DIFFERENTIATED: usize = 100;

impl Case {
    /// Limits. Scores of about `peak` are known to `peak` units in the last place, and so are the weights.
    fn limits(&self) -> [Limit; 2] {
        let peak = f64::from(self.peak);
        // With one token in sight the gradient of the scores is zero, and what is left of it is rounding of delta.
        let sharp = if peak > 4.0 { 1.5 } else { 1.0 };
        let values = Limit::ROUNDED.with_f32(1e-5 * (peak / 8.0).max(1.0));
        [values, Limit { f32: 2e-5 * peak, bf16: TWICE_ROUNDED * sharp }]
    }
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_heads(device, self.head_dim) && (!self.gated || device.gated_mixers)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { heads, kv_heads, head_dim: d, peak, .. } = *self;
        let p = Attention {
            heads,
            kv_heads,
            head_dim: d,
            gated: self.gated,
            scale: (1.0 / (d as f64).sqrt()) as f32,
        };
        let (segments, tokens) = (placed(&self.segments), self.tokens());
        rig.seed(7);
        let mut input = rig.normal(tokens * (heads + kv_heads) * d, 1.0);
        for row in input.chunks_exact_mut((heads + kv_heads) * d) {
            row[..heads * d].iter_mut().for_each(|q| *q = half::bf16::from_f32(*q * peak).to_f32());
        }
        let qk = rig.holding(Activation, input);
        let qkv = rig.random(Activation, tokens * p.qkv_width(), 1.0);
        let dout = rig.random(Activation, tokens * heads * d, 1.0);
        let out = rig.space(Activation, tokens * heads * d);
        let [lse, delta] = [(); 2].map(|()| rig.space(F32, tokens * heads));
        let dqk = rig.space(Activation, qk.len);
        let dqkv = rig.zeros(Activation, qkv.len);
        let lists = work(&segments).map(|words| rig.list(words));
        let form = Form { p, segments: segments.clone(), tokens };
        // Two products over the visible part of the scores, then five.
        let visible = segments.iter().map(|s| s.len as f64 * (s.len as f64 + 1.0)).sum::<f64>();
        let product = visible * (heads * d) as f64;
        let read = qk.len + tokens * kv_heads * d;
        let cost =
            Cost { flops: 2.0 * product, activations: read + out.len, words: lse.len, ..Cost::default() };
        let of_forward = segments.clone();
        rig.call("forward", cost, move |dev, all| {
            let segments = Segments { list: &of_forward, work: lists.map(|list| all[list.at]) };
            super::forward(dev, &p, &segments, qk, qkv, out, lse);
            Ok(())
        });
        let activations = 2 * read + 2 * out.len;
        let cost = Cost { flops: 5.0 * product, activations, words: 2 * lse.len, ..Cost::default() };
        rig.call("backward", cost, move |dev, all| {
            let segments = Segments { list: &segments, work: lists.map(|list| all[list.at]) };
            let o = Backward { qk, qkv, out, lse, dout, delta, dqk, dqkv };
            super::backward(dev, &p, &segments, &o);
            Ok(())
        });
        let [values, gradients] = self.limits();
        let of_results = form.clone();
        rig.wants(&[out, lse, dqk, dqkv], move |o| {
            let (x, v) = (o.given(qk), o.given(qkv));
            let (want_out, want_lse) = of_results.forward(&x, &v);
            let (want_dqk, want_dqkv) = of_results.backward(&x, &v, &o.given(dout));
            vec![
                o.finding("out", out, &want_out, values),
                o.finding("lse", lse, &want_lse, Limit::SUMMED),
                o.finding("dqk", dqk, &want_dqk, gradients),
                o.finding("dv", dqkv, &want_dqkv, values),
            ]
        });
        if tokens <= DIFFERENTIATED {
            derivatives(rig, form, [qk, qkv, dout]);
        }
    }
}

/// The derivatives of `form` by its operands, of which the last is the gradient of its result.
fn derivatives(rig: &mut Rig, form: Form, [qk, qkv, dout]: [Region; 3]) {
    let of_qk = form.clone();
    rig.derivative("dqk", move |rig| {
        let (at, v, upper) = (rig.given(qk), rig.given(qkv), rig.given(dout));
        let gradient = of_qk.backward(&at, &v, &upper).0;
        let form = of_qk.clone();
        Derivative { function: Box::new(move |x: &[f64]| form.forward(x, &v).0), at, upper, gradient }
    });
    rig.derivative("dv", move |rig| {
        let (x, at, upper) = (rig.given(qk), rig.given(qkv), rig.given(dout));
        let gradient = form.backward(&x, &at, &upper).1;
        let form = form.clone();
        Derivative { function: Box::new(move |v: &[f64]| form.forward(&x, v).0), at, upper, gradient }
    });
}
