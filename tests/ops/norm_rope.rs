//! RMSNorm and the rotation of queries and keys.

use super::rig::{Rig, check_gradient, close, same_bits, wide};
use qwentune::device::Indices;
use qwentune::ops::rmsnorm::{self, RmsNorm};
use qwentune::ops::rope::{self, HeadNorm, Rope};
use qwentune::selftest::reference::{norm_gradient, normalised, rotated};

#[test]
fn rmsnorm_follows_the_reference_and_recomputes_its_bits() {
    for case in rmsnorm::check::CASES {
        let mut rig = Rig::new(11);
        let (x, values) = rig.random(case.rows * case.dim, case.size);
        let (weight, weights) = rig.random(case.dim, 1.0);
        let (dy, gradient) = rig.random(x.len, 1.0);
        let (dx, residual) = rig.random(x.len, 1.0);
        let [y, again] = [x.len; 2].map(|n| rig.space(n));
        let rstd = rig.space(case.rows);
        let p = RmsNorm { dim: case.dim, eps: case.eps, weight };
        let got = rig.run(&[y, again, dx], |dev| {
            rmsnorm::forward(dev, &p, x, y, rstd);
            rmsnorm::recompute(dev, &p, x, rstd, again);
            rmsnorm::backward(dev, &p, x, rstd, dy, dx);
        });
        assert!(same_bits(&got[0], &got[1]), "{case:?}: recomputed");
        let (x, w, dy, eps) = (wide(&values), wide(&weights), wide(&gradient), f64::from(case.eps));
        let forward =
            |x: &[f64]| x.chunks_exact(case.dim).flat_map(|x| normalised(x, &w, eps)).collect::<Vec<f64>>();
        let rows = x.chunks_exact(case.dim).zip(dy.chunks_exact(case.dim));
        let dx: Vec<f64> = rows.flat_map(|(x, dy)| norm_gradient(x, &w, eps, dy)).collect();
        close(&format!("{case:?}"), &got[0], &forward(&x), 1e-6);
        let sum: Vec<f64> = dx.iter().zip(&residual).map(|(dx, r)| dx + f64::from(*r)).collect();
        close(&format!("{case:?} gradient"), &got[2], &sum, 1e-6);
        if case.size > 0.0 && case.dim > 1 {
            check_gradient(&format!("{case:?}"), forward, &x, &dy, &dx);
        }
    }
}

struct Reference<'a> {
    case: &'a rope::check::Case,
    table: Vec<f64>,
    /// Weights of q and k and the epsilon.
    norm: Option<([Vec<f64>; 2], f64)>,
}

impl Reference<'_> {
    /// Calls `f` with the places of each head in qkv and in qk, its row of the table and its norm.
    fn heads(&self, mut f: impl FnMut(usize, usize, &[f64], Option<(&[f64], f64)>)) {
        let rope::check::Case { heads, kv_heads, head_dim, .. } = *self.case;
        for t in 0..self.case.tokens {
            for h in 0..heads + kv_heads {
                let raw = (t * (heads + 2 * kv_heads) + h) * head_dim;
                let turned = (t * (heads + kv_heads) + h) * head_dim;
                let norm = self.norm.as_ref().map(|(w, eps)| (&w[usize::from(h >= heads)][..], *eps));
                let position = self.case.position as usize + t;
                f(raw, turned, &self.table[position * head_dim..][..head_dim], norm);
            }
        }
    }

    fn forward(&self, qkv: &[f64]) -> Vec<f64> {
        let d = self.case.head_dim;
        let mut qk = vec![0.0; self.case.tokens * (self.case.heads + self.case.kv_heads) * d];
        self.heads(|raw, turned, angles, norm| {
            let x = &qkv[raw..raw + d];
            let x = norm.map_or(x.to_vec(), |(w, eps)| normalised(x, w, eps));
            qk[turned..turned + d].copy_from_slice(&rotated(&x, angles, 1.0));
        });
        qk
    }

    fn backward(&self, qkv: &[f64], dqk: &[f64]) -> Vec<f64> {
        let d = self.case.head_dim;
        let mut dqkv = vec![0.0; qkv.len()];
        self.heads(|raw, turned, angles, norm| {
            let dy = rotated(&dqk[turned..turned + d], angles, -1.0);
            let dx = norm.map_or(dy.clone(), |(w, eps)| norm_gradient(&qkv[raw..raw + d], w, eps, &dy));
            dqkv[raw..raw + d].copy_from_slice(&dx);
        });
        dqkv
    }
}

#[test]
fn rope_follows_the_reference() {
    for case in rope::check::CASES {
        let rope::check::Case { tokens, heads, kv_heads, head_dim, .. } = *case;
        let mut rig = Rig::new(17);
        let angles = rope::table(head_dim, case.theta, case.position as usize + tokens);
        let table = rig.given(&angles);
        let ((q, q_weights), (k, k_weights)) = (rig.random(head_dim, 1.0), rig.random(head_dim, 1.0));
        let norm = case.norm.then_some(HeadNorm { q, k, eps: 1e-6 });
        let p = Rope { heads, kv_heads, head_dim, table, norm };
        let (qkv, values) = rig.random(tokens * p.qkv_width(), 1.0);
        let (dqk, gradient) = rig.random(tokens * p.qk_width(), 1.0);
        let qk = rig.space(dqk.len);
        let dqkv = rig.given(&vec![0.0; qkv.len]);
        let positions: Vec<u32> = (case.position..).take(tokens).collect();
        let got = rig.run(&[qk, dqkv], |dev| {
            rope::forward(dev, &p, qkv, Indices::host(&positions), qk);
            rope::backward(dev, &p, qkv, Indices::host(&positions), dqk, dqkv);
        });
        let weights = [wide(&q_weights), wide(&k_weights)];
        let table = wide(&angles);
        let reference = Reference { case, table, norm: case.norm.then_some((weights, f64::from(1e-6f32))) };
        let (x, dy) = (wide(&values), wide(&gradient));
        let dx = reference.backward(&x, &dy);
        close(&format!("{case:?}"), &got[0], &reference.forward(&x), 1e-6);
        close(&format!("{case:?} gradient"), &got[1], &dx, 1e-6);
        check_gradient(&format!("{case:?}"), |x| reference.forward(x), &x, &dy, &dx);
    }
}

/// Values that PyTorch 2 computes by the formula of `transformers` (float32), as (D, theta, position, pair, cos,
/// sin). An angle near 1000 is known to 6e-5 in f32, so the order of its roundings matters.
#[test]
fn rope_table_has_the_values_of_transformers() {
    for (dim, theta, position, pair, cos, sin) in [
        (128, 1e6, 1000, 0, 0.562_379_06, 0.826_879_56),
        (128, 1e6, 1000, 1, -0.023_706_254, 0.999_718_96),
        (128, 1e6, 1000, 5, 0.863_400_64, 0.504_518_93),
        (128, 1e6, 1000, 17, 0.939_295_17, 0.343_110_23),
        (128, 1e6, 1000, 63, 0.999_999_2, 0.001_240_937_4),
        (64, 1e4, 511, 0, -0.471_678_88, 0.881_770_37),
        (64, 1e4, 511, 5, -0.223_959_73, 0.974_598_4),
        (64, 1e4, 511, 17, -0.771_012_5, -0.636_820_1),
    ] {
        let table = rope::table(dim, theta, position + 1);
        let got = &table[position * dim + 2 * pair..][..2];
        close(&format!("D {dim}, position {position}, pair {pair}"), got, &[cos, sin], 1e-7);
    }
}
