//! Rotation and head norm: heads of the models' sizes and odd ones, with and without the norm, at late positions.

use super::{HeadNorm, Rope, table};
use crate::device::Storage::{Activation, F32};
use crate::device::{Capabilities, Region};
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_heads};
use crate::ops::rmsnorm::check::{gradient, normalised};

/// A rotation of queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Token rows.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// With the head norm.
    pub norm: bool,
    /// Position of the first token; they ascend from there.
    pub position: u32,
}

/// Rotary embedding.
pub const CASES: &[Case] = &[
    Case { tokens: 1, heads: 1, kv_heads: 1, head_dim: 2, theta: 1e4, norm: false, position: 0 },
    Case { tokens: 5, heads: 3, kv_heads: 1, head_dim: 24, theta: 1e4, norm: true, position: 7 },
    Case { tokens: 70, heads: 14, kv_heads: 2, head_dim: 64, theta: 1e6, norm: false, position: 0 },
    Case { tokens: 33, heads: 16, kv_heads: 8, head_dim: 128, theta: 1e6, norm: true, position: 900 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "rope",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    boxed(&[Case {
        tokens: s.tokens,
        heads: s.heads,
        kv_heads: s.kv_heads,
        head_dim: s.head_dim,
        theta: 1e6,
        norm: s.head_norm,
        position: 0,
    }])
}

/// Added to the norm's mean square.
const EPS: f32 = 1e-6;

/// One head turned by a row of the table, or back with `turn` -1.
fn rotated(x: &[f64], angles: &[f64], turn: f64) -> Vec<f64> {
    let half = x.len() / 2;
    let mut y = x.to_vec();
    for i in 0..half {
        let (c, s) = (angles[2 * i], angles[2 * i + 1] * turn);
        (y[i], y[i + half]) = (x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s);
    }
    y
}

/// The operation in f64.
#[derive(Clone)]
struct Form {
    case: Case,
    table: Vec<f64>,
    /// Weights of q and k.
    norms: [Vec<f64>; 2],
}

impl Form {
    /// Calls `f` with the first elements of each head in `qkv` and in `qk`, its row of the table and its norm.
    fn heads(&self, mut f: impl FnMut(usize, usize, &[f64], Option<&[f64]>)) {
        let Case { heads, kv_heads, head_dim: d, .. } = self.case;
        for t in 0..self.case.tokens {
            let angles = &self.table[(self.case.position as usize + t) * d..][..d];
            for h in 0..heads + kv_heads {
                let norm = self.case.norm.then_some(&self.norms[usize::from(h >= heads)][..]);
                f((t * (heads + 2 * kv_heads) + h) * d, (t * (heads + kv_heads) + h) * d, angles, norm);
            }
        }
    }

    fn forward(&self, qkv: &[f64]) -> Vec<f64> {
        let d = self.case.head_dim;
        let mut qk = vec![0.0; self.case.tokens * (self.case.heads + self.case.kv_heads) * d];
        self.heads(|raw, turned, angles, norm| {
            let x = &qkv[raw..raw + d];
            let x = norm.map_or(x.to_vec(), |w| normalised(x, w, f64::from(EPS)));
            qk[turned..turned + d].copy_from_slice(&rotated(&x, angles, 1.0));
        });
        qk
    }

    /// Gradient of `qkv`, zero in its v columns.
    fn backward(&self, qkv: &[f64], dqk: &[f64]) -> Vec<f64> {
        let d = self.case.head_dim;
        let mut dqkv = vec![0.0; qkv.len()];
        self.heads(|raw, turned, angles, norm| {
            let dy = rotated(&dqk[turned..turned + d], angles, -1.0);
            let dx = norm.map_or(dy.clone(), |w| gradient(&qkv[raw..raw + d], w, f64::from(EPS), &dy));
            dqkv[raw..raw + d].copy_from_slice(&dx);
        });
        dqkv
    }
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_heads(device, self.head_dim)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { tokens, heads, kv_heads, head_dim: d, theta, norm, position } = *self;
        let case = *self;
        rig.seed(17);
        let angles = rig.holding(F32, table(d, theta, position as usize + tokens));
        let [q, k] = [(); 2].map(|()| rig.random(F32, d, 1.0));
        let norm = norm.then_some(HeadNorm { q, k, eps: EPS });
        let p = Rope { heads, kv_heads, head_dim: d, table: angles, norm };
        let qkv = rig.random(Activation, tokens * p.qkv_width(), 1.0);
        let dqk = rig.random(Activation, tokens * p.qk_width(), 1.0);
        let qk = rig.space(Activation, dqk.len);
        let dqkv = rig.zeros(Activation, qkv.len);
        let positions = rig.list((position..).take(tokens).collect());
        let turning = Cost { activations: 2 * qk.len, words: tokens * d, ..Cost::default() };
        rig.call("forward", turning, move |dev, lists| {
            super::forward(dev, &p, qkv, lists[positions.at], qk);
            Ok(())
        });
        // With the norm, what it was of is read again.
        let read = if p.norm.is_some() { 3 * qk.len } else { 2 * qk.len };
        rig.call("backward", Cost { activations: read, ..turning }, move |dev, lists| {
            super::backward(dev, &p, qkv, lists[positions.at], dqk, dqkv);
            Ok(())
        });
        let form = move |given: &dyn Fn(Region) -> Vec<f64>| Form {
            case,
            table: given(angles),
            norms: [given(q), given(k)],
        };
        rig.wants(&[qk, dqkv], move |o| {
            let (form, x) = (form(&|region| o.given(region)), o.given(qkv));
            vec![
                o.finding("qk", qk, &form.forward(&x), Limit::ROUNDED),
                o.finding("dqkv", dqkv, &form.backward(&x, &o.given(dqk)), Limit::ROUNDED),
            ]
        });
        rig.derivative("dqkv", move |rig| {
            let (form, at, upper) = (form(&|region| rig.given(region)), rig.given(qkv), rig.given(dqk));
            let gradient = form.backward(&at, &upper);
            Derivative { function: Box::new(move |x: &[f64]| form.forward(x)), at, upper, gradient }
        });
    }
}
