//! Attention over a cache, and what fills it, against the textbook's sums in f64.

use super::rig::{Rig, close, wide};
use qwentune::device::Indices;
use qwentune::ops::attention::Attention;
use qwentune::ops::decode_attention::{self, Cache, Seen};
use qwentune::selftest::reference::decode_attention;

fn shape(case: &decode_attention::check::Case) -> Attention {
    let scale = (1.0 / (case.head_dim as f64).sqrt()) as f32;
    Attention { heads: case.heads, kv_heads: case.kv_heads, head_dim: case.head_dim, scale }
}

#[test]
fn queries_see_their_rows_of_the_cache() {
    for case in decode_attention::check::CASES {
        let p = shape(case);
        let (queries, kv) = (case.seen.len(), p.kv_heads * p.head_dim);
        let mut rig = Rig::new(23);
        let (qk, q_values) = rig.random(queries * (p.heads + p.kv_heads) * p.head_dim, case.peak);
        let (k, k_values) = rig.random(queries * case.capacity * kv, 1.0);
        let (v, v_values) = rig.random(queries * case.capacity * kv, 1.0);
        let out = rig.space(queries * p.heads * p.head_dim);
        let got = rig.run(&[out], |dev| {
            let runs = case.runs();
            let seen = Seen { list: &runs, words: Indices::host(&[]) };
            decode_attention::forward(dev, &p, qk, &seen, Cache { k, v }, out);
        });
        let want = decode_attention(&p, &case.runs(), &wide(&q_values), &wide(&k_values), &wide(&v_values));
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
