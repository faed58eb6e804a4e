//! Attention over a cache: one row and many, groups of heads, sharp softmaxes; what fills the cache, and scaled queries.

use super::{Cache, Seen};
use crate::device::Capabilities;
use crate::device::Storage::{Activation, F32};
use crate::ops::attention::{Attention, Segment};
use crate::ops::check::forms::{add, dot, softmax};
use crate::ops::check::{self, Cost, Limit, Operation, Rig, Shape, boxed, takes_heads};
use std::borrow::Cow::{self, Borrowed};

/// Attention of single queries over a cache.
#[derive(Clone, Debug)]
pub struct Case {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Rows of the cache for each query.
    pub capacity: usize,
    /// Rows that each query sees, from the first of its part on.
    pub seen: Cow<'static, [u32]>,
    /// Standard deviation of the queries.
    pub peak: f32,
}

impl Case {
    /// Where each query's rows lie: it has `capacity` of its own.
    #[must_use]
    pub fn runs(&self) -> Vec<Segment> {
        let run = |(slot, len): (usize, &u32)| Segment { start: (slot * self.capacity) as u32, len: *len };
        self.seen.iter().enumerate().map(run).collect()
    }
}

/// Decoding attention.
pub const CASES: &[Case] = &[
    Case { heads: 1, kv_heads: 1, head_dim: 6, capacity: 1, seen: Borrowed(&[1]), peak: 1.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 24, capacity: 70, seen: Borrowed(&[1, 17, 70]), peak: 1.0 },
    Case { heads: 14, kv_heads: 2, head_dim: 64, capacity: 130, seen: Borrowed(&[128, 5]), peak: 1.0 },
    Case { heads: 4, kv_heads: 4, head_dim: 128, capacity: 300, seen: Borrowed(&[299]), peak: 1.0 },
    Case { heads: 2, kv_heads: 1, head_dim: 16, capacity: 90, seen: Borrowed(&[90, 33]), peak: 40.0 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "decode_attention",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

/// One step of eight answers that have come to the length of a training batch.
fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    boxed(&[Case {
        heads: s.heads,
        kv_heads: s.kv_heads,
        head_dim: s.head_dim,
        capacity: s.tokens,
        seen: Cow::Owned(vec![s.tokens as u32; 8]),
        peak: 1.0,
    }])
}

/// One query for each run of rows of the cache.
fn form(p: &Attention, runs: &[Segment], qk: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let (d, kv) = (p.head_dim, p.kv_heads * p.head_dim);
    let mut out = vec![0.0; runs.len() * p.heads * d];
    for (row, run) in runs.iter().enumerate() {
        for head in 0..p.heads {
            let q = &qk[row * (p.heads + p.kv_heads) * d + head * d..][..d];
            let place = |j: u32| (run.start + j) as usize * kv + head * p.kv_heads / p.heads * d;
            let score = |j| dot(q, &k[place(j)..][..d]) * f64::from(p.scale);
            let (weights, _) = softmax(&(0..run.len).map(score).collect::<Vec<f64>>());
            for (j, weight) in (0..run.len).zip(weights) {
                add(&mut out[(row * p.heads + head) * d..][..d], weight, &v[place(j)..][..d]);
            }
        }
    }
    out
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_heads(device, self.head_dim)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { heads, kv_heads, head_dim: d, capacity, peak, .. } = *self;
        let p = Attention { heads, kv_heads, head_dim: d, scale: (1.0 / (d as f64).sqrt()) as f32 };
        let (count, kv, width) = (self.seen.len(), kv_heads * d, (heads + kv_heads) * d);
        rig.seed(23);
        let qk = rig.random(Activation, count * width, peak);
        let qkv = rig.random(Activation, count * (width + kv), 1.0);
        let [k, v] = [(); 2].map(|()| rig.random(Activation, count * capacity * kv, 1.0));
        let table = rig.random(F32, count, 1.0);
        let out = rig.space(Activation, count * heads * d);
        let runs = self.runs();
        // Each query's own key and value become the last row it sees.
        let places: Vec<u32> = runs.iter().map(|run| run.start + run.len - 1).collect();
        let [to, words, positions] = [
            places.clone(),
            runs.iter().flat_map(|run| [run.start, run.len]).collect(),
            (0..count as u32).rev().collect(),
        ]
        .map(|list| rig.list(list));
        let cache = Cache { k, v };
        rig.call("append", Cost { activations: 4 * count * kv, ..Cost::default() }, move |dev, lists| {
            super::append(dev, &p, qk, qkv, lists[to.at], cache);
            Ok(())
        });
        let rows = self.seen.iter().sum::<u32>() as usize;
        let cost = Cost {
            flops: 4.0 * (rows * heads * d) as f64,
            activations: 2 * rows * kv + 2 * out.len,
            ..Cost::default()
        };
        let list = runs.clone();
        rig.call("forward", cost, move |dev, lists| {
            super::forward(dev, &p, qk, &Seen { list: &list, words: lists[words.at] }, cache, out);
            Ok(())
        });
        rig.call("scale queries", Cost { activations: 2 * out.len, ..Cost::default() }, move |dev, lists| {
            super::scale_queries(dev, &p, table, lists[positions.at], qk);
            Ok(())
        });
        let sharp = Limit::ROUNDED.with_f32(1e-5 * f64::from(peak / 8.0).max(1.0));
        rig.wants(&[k, v, out, qk], move |o| {
            let (queries, projected) = (o.given(qk), o.given(qkv));
            let (mut keys, mut values) = (o.given(k), o.given(v));
            for (row, place) in places.iter().enumerate() {
                let to = *place as usize * kv;
                keys[to..to + kv].copy_from_slice(&queries[(row + 1) * width - kv..][..kv]);
                values[to..to + kv].copy_from_slice(&projected[(row + 1) * (width + kv) - kv..][..kv]);
            }
            let attended = form(&p, &runs, &queries, &keys, &values);
            let mut scaled = queries;
            for (row, factor) in scaled.chunks_exact_mut(width).zip(o.given(table).iter().rev()) {
                row[..heads * d].iter_mut().for_each(|q| *q *= factor);
            }
            vec![
                o.finding("k", k, &keys, Limit::SAME),
                o.finding("v", v, &values, Limit::SAME),
                o.finding("out", out, &attended, sharp),
                o.finding("scaled queries", qk, &scaled, Limit::ROUNDED),
            ]
        });
    }
}
