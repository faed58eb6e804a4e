//! Attention over a cache, and what fills it, against the textbook's sums in f64.

use super::rig::{Rig, close, wide};
use qwentune::device::Indices;
use qwentune::ops::attention::{Attention, Segment};
use qwentune::ops::cases::{DECODE, DecodeCase};
use qwentune::ops::decode_attention::{self, Cache, Seen};

fn shape(case: &DecodeCase) -> Attention {
    let scale = (1.0 / (case.head_dim as f64).sqrt()) as f32;
    Attention { heads: case.heads, kv_heads: case.kv_heads, head_dim: case.head_dim, scale }
}

/// Where a query's rows lie: each has `capacity` of its own.
fn seen(case: &DecodeCase) -> Vec<Segment> {
    let run = |(slot, len): (usize, &u32)| Segment { start: (slot * case.capacity) as u32, len: *len };
    case.seen.iter().enumerate().map(run).collect()
}

fn reference(case: &DecodeCase, p: &Attention, qk: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let (d, kv) = (p.head_dim, p.kv_heads * p.head_dim);
    let mut out = Vec::new();
    for (row, run) in seen(case).iter().enumerate() {
        for head in 0..p.heads {
            let q = &qk[row * (p.heads + p.kv_heads) * d + head * d..][..d];
            let place = |j: u32| (run.start + j) as usize * kv + head * p.kv_heads / p.heads * d;
            let score = |j: u32| {
                let products = q.iter().zip(&k[place(j)..]).map(|(q, k)| q * k);
                products.sum::<f64>() * f64::from(p.scale)
            };
            let scores: Vec<f64> = (0..run.len).map(score).collect();
            let max = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
            let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - max)).collect();
            let sum: f64 = weights.iter().sum();
            for column in 0..d {
                let values = (0..run.len).map(|j| weights[j as usize] * v[place(j) + column]);
                out.push(values.sum::<f64>() / sum);
            }
        }
    }
    out
}

#[test]
fn queries_see_their_rows_of_the_cache() {
    for case in DECODE {
        let p = shape(case);
        let (queries, kv) = (case.seen.len(), p.kv_heads * p.head_dim);
        let mut rig = Rig::new(23);
        let (qk, q_values) = rig.random(queries * (p.heads + p.kv_heads) * p.head_dim, case.peak);
        let (k, k_values) = rig.random(queries * case.capacity * kv, 1.0);
        let (v, v_values) = rig.random(queries * case.capacity * kv, 1.0);
        let out = rig.space(queries * p.heads * p.head_dim);
        let got = rig.run(&[out], |dev| {
            let runs = seen(case);
            let seen = Seen { list: &runs, words: Indices::host(&[]) };
            decode_attention::forward(dev, &p, qk, &seen, Cache { k, v }, out);
        });
        let want = reference(case, &p, &wide(&q_values), &wide(&k_values), &wide(&v_values));
        close(&format!("{case:?}"), &got[0], &want, 1e-5 * f64::from(case.peak / 8.0).max(1.0));
    }
}

#[test]
fn rows_are_kept_where_they_belong_and_queries_alone_are_scaled() {
    let p = Attention { heads: 3, kv_heads: 1, head_dim: 4, scale: 0.5 };
    let mut rig = Rig::new(29);
    let (qk, qk_values) = rig.random(2 * 16, 1.0);
    let (qkv, qkv_values) = rig.random(2 * 20, 1.0);
    let (k, v) = (rig.given(&[0.0; 20]), rig.given(&[0.0; 20]));
    let table = rig.given(&[1.0, 2.0, 3.0]);
    let got = rig.run(&[k, v, qk], |dev| {
        decode_attention::append(dev, &p, qk, qkv, Indices::host(&[3, 1]), Cache { k, v });
        decode_attention::scale_queries(dev, &p, table, Indices::host(&[2, 0]), qk);
    });
    for (row, place) in [(0, 3), (1, 1)] {
        assert_eq!(got[0][4 * place..][..4], qk_values[16 * row + 12..][..4]);
        assert_eq!(got[1][4 * place..][..4], qkv_values[20 * row + 16..][..4]);
    }
    assert!(got[0][..4].iter().chain(&got[1][8..12]).all(|v| *v == 0.0));
    for (i, (new, old)) in got[2].iter().zip(&qk_values).enumerate() {
        let factor = if i < 12 { 3.0 } else { 1.0 };
        assert_eq!(*new, old * factor, "{i}");
    }
}
