//! The operations as a textbook writes them, in f64: what every device is compared with.

use crate::ops::adamw::AdamW;
use crate::ops::attention::{Attention, Segment};

/// `a · b`.
#[must_use]
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `to += factor · from`.
fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// `a·bᵀ` of `a` [rows, depth] and `b` [columns, depth].
#[must_use]
pub fn product_nt(a: &[f64], b: &[f64], depth: usize) -> Vec<f64> {
    a.chunks_exact(depth).flat_map(|row| b.chunks_exact(depth).map(move |column| dot(row, column))).collect()
}

/// `a·b` of `a` [rows, depth] and `b` [depth, columns].
#[must_use]
pub fn product_nn(a: &[f64], b: &[f64], columns: usize) -> Vec<f64> {
    let depth = b.len() / columns;
    let mut out = vec![0.0; a.len() / depth.max(1) * columns];
    for (row, out) in a.chunks_exact(depth).zip(out.chunks_exact_mut(columns)) {
        row.iter().zip(b.chunks_exact(columns)).for_each(|(factor, b)| add(out, *factor, b));
    }
    out
}

/// `aᵀ·b` of `a` [depth, rows] and `b` [depth, columns].
#[must_use]
pub fn product_tn(a: &[f64], rows: usize, b: &[f64], columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows * columns];
    for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact(columns)) {
        a.iter().zip(out.chunks_exact_mut(columns)).for_each(|(factor, out)| add(out, *factor, b));
    }
    out
}

/// Columns `first .. first + count` of rows of `width` elements.
#[must_use]
pub fn columns(values: &[f64], width: usize, first: usize, count: usize) -> Vec<f64> {
    values.chunks_exact(width).flat_map(|row| row[first..first + count].iter().copied()).collect()
}

fn inverse_rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt()
}

/// RMSNorm of one row.
#[must_use]
pub fn normalised(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let rstd = inverse_rms(x, eps);
    x.iter().zip(weight).map(|(x, w)| x * rstd * w).collect()
}

/// Gradient of RMSNorm's row `x`, given that of its result.
#[must_use]
pub fn norm_gradient(x: &[f64], weight: &[f64], eps: f64, dy: &[f64]) -> Vec<f64> {
    let (n, rstd) = (x.len() as f64, inverse_rms(x, eps));
    let dot: f64 = x.iter().zip(weight).zip(dy).map(|((x, w), dy)| x * w * dy).sum();
    x.iter().zip(weight).zip(dy).map(|((x, w), dy)| rstd * (dy * w - x * dot * rstd * rstd / n)).collect()
}

/// One head turned by a row of the table (`ops::rope::table`), or back with `turn` -1.
#[must_use]
pub fn rotated(x: &[f64], angles: &[f64], turn: f64) -> Vec<f64> {
    let half = x.len() / 2;
    let mut y = x.to_vec();
    for i in 0..half {
        let (c, s) = (angles[2 * i], angles[2 * i + 1] * turn);
        (y[i], y[i + half]) = (x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s);
    }
    y
}

/// The logistic function.
#[must_use]
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// SwiGLU of rows of `width` gates and as many ups.
#[must_use]
pub fn swiglu(x: &[f64], width: usize) -> Vec<f64> {
    x.chunks_exact(2 * width)
        .flat_map(|row| (0..width).map(|i| row[i] * sigmoid(row[i]) * row[width + i]))
        .collect()
}

/// Gradients of gates and ups.
#[must_use]
pub fn swiglu_gradient(x: &[f64], width: usize, dy: &[f64]) -> Vec<f64> {
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks_exact(2 * width).zip(dy.chunks_exact(width)) {
        let (gate, up) = row.split_at(width);
        let slope = |g: f64| sigmoid(g) + g * sigmoid(g) * sigmoid(-g);
        dx.extend((0..width).map(|i| dy[i] * up[i] * slope(gate[i])));
        dx.extend((0..width).map(|i| dy[i] * gate[i] * sigmoid(gate[i])));
    }
    dx
}

/// Losses of rows of `vocab` logits, and the logits' gradient of their sum.
#[must_use]
pub fn cross_entropy(logits: &[f64], vocab: usize, targets: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for (row, target) in logits.chunks_exact(vocab).zip(targets) {
        let max = row.iter().fold(f64::MIN, |m, l| m.max(*l));
        let sum: f64 = row.iter().map(|l| libm::exp(l - max)).sum();
        losses.push(libm::log(sum) - (row[*target as usize] - max));
        let first = gradient.len();
        gradient.extend(row.iter().map(|l| libm::exp(l - max) / sum));
        gradient[first + *target as usize] -= 1.0;
    }
    (losses, gradient)
}

/// One step of AdamW on parameters and both moments.
pub fn adamw_step(p: &AdamW, [params, m, v]: [&mut Vec<f64>; 3], grads: &[f64]) {
    let power = |base: f64| (0..p.step).fold(1.0, |product, _| product * base);
    for (i, g) in grads.iter().enumerate() {
        let g = g * f64::from(p.grad_scale);
        m[i] = p.beta1 * m[i] + (1.0 - p.beta1) * g;
        v[i] = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
        let (mean, square) = (m[i] / (1.0 - power(p.beta1)), v[i] / (1.0 - power(p.beta2)));
        params[i] -= p.lr * p.weight_decay * params[i] + p.lr * mean / (square.sqrt() + p.epsilon);
    }
}

/// Attention of one query for each run of rows of a cache; layouts as in `ops::decode_attention`.
#[must_use]
pub fn decode_attention(p: &Attention, runs: &[Segment], qk: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let (d, kv) = (p.head_dim, p.kv_heads * p.head_dim);
    let mut out = vec![0.0; runs.len() * p.heads * d];
    for (row, run) in runs.iter().enumerate() {
        for head in 0..p.heads {
            let q = &qk[row * (p.heads + p.kv_heads) * d + head * d..][..d];
            let place = |j: u32| (run.start + j) as usize * kv + head * p.kv_heads / p.heads * d;
            let scores: Vec<f64> =
                (0..run.len).map(|j| dot(q, &k[place(j)..][..d]) * f64::from(p.scale)).collect();
            let max = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
            let sum: f64 = scores.iter().map(|s| libm::exp(s - max)).sum();
            for (j, s) in (0..run.len).zip(&scores) {
                let weight = libm::exp(s - max) / sum;
                add(&mut out[(row * p.heads + head) * d..][..d], weight, &v[place(j)..][..d]);
            }
        }
    }
    out
}

/// Attention of packed segments.
pub struct AttentionShape {
    /// Heads, head size and scale.
    pub p: Attention,
    /// Segments, covering all tokens.
    pub segments: Vec<Segment>,
    /// Tokens.
    pub tokens: usize,
}

impl AttentionShape {
    fn q(&self, t: usize, h: usize) -> usize {
        (t * (self.p.heads + self.p.kv_heads) + h) * self.p.head_dim
    }

    fn k(&self, t: usize, h: usize) -> usize {
        self.q(t, self.p.heads + h * self.p.kv_heads / self.p.heads)
    }

    fn v(&self, t: usize, h: usize) -> usize {
        let before = self.p.heads + self.p.kv_heads + h * self.p.kv_heads / self.p.heads;
        (t * (self.p.heads + 2 * self.p.kv_heads) + before) * self.p.head_dim
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
                    let scores: Vec<f64> = (start..=t).map(score).collect();
                    let max = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
                    let sum: f64 = scores.iter().map(|s| libm::exp(s - max)).sum();
                    let lse = max + libm::log(sum);
                    let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - lse)).collect();
                    f(t, h, start..t + 1, &weights, lse);
                }
            }
        }
    }

    /// Result [T, heads·D] and log-sum-exp [heads, T].
    #[must_use]
    pub fn forward(&self, qk: &[f64], qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
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
    #[must_use]
    pub fn backward(&self, qk: &[f64], qkv: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
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
