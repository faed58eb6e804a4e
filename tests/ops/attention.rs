//! Attention: scores, softmax and gradients as the textbook has them, in f64.

use super::rig::{Rig, check_gradient, close, wide};
use qwentune::ops::attention::{self, Attention, Segment, Segments};
use qwentune::selftest::reference::AttentionShape;

fn shape(case: &attention::check::Case) -> AttentionShape {
    let scale = (1.0 / (case.head_dim as f64).sqrt()) as f32;
    let p = Attention { heads: case.heads, kv_heads: case.kv_heads, head_dim: case.head_dim, scale };
    AttentionShape { p, segments: case.placed(), tokens: case.tokens() }
}

#[test]
fn attention_follows_the_reference() {
    for case in attention::check::CASES {
        let s = shape(case);
        let (d, heads, kv) = (case.head_dim, case.heads, case.kv_heads);
        let mut rig = Rig::new(7);
        let mut input = rig.random(s.tokens * (heads + kv) * d, 1.0).1;
        for row in input.chunks_exact_mut((heads + kv) * d) {
            row[..heads * d].iter_mut().for_each(|q| *q *= case.peak);
        }
        let qk = rig.given(&input);
        let (qkv, values) = rig.random(s.tokens * (heads + 2 * kv) * d, 1.0);
        let (dout, gradient) = rig.random(s.tokens * heads * d, 1.0);
        let [out, lse, delta] = [heads * d, heads, heads].map(|w| rig.space(s.tokens * w));
        let dqk = rig.space(qk.len);
        let dqkv = rig.given(&vec![0.0; qkv.len]);
        let got = rig.run(&[out, lse, dqk, dqkv], |dev| {
            attention::forward(dev, &s.p, &Segments::host(&s.segments), qk, qkv, out, lse);
            let o = attention::Backward { qk, qkv, out, lse, dout, delta, dqk, dqkv };
            attention::backward(dev, &s.p, &Segments::host(&s.segments), &o);
        });
        let (x, v, dy) = (wide(&input), wide(&values), wide(&gradient));
        let (want_out, want_lse) = s.forward(&x, &v);
        let (want_dqk, want_dqkv) = s.backward(&x, &v, &dy);
        let name = format!("{case:?}");
        // Scores of about `peak` are known to `peak` units in the last place, and so are the weights.
        let tolerance = 1e-5 * f64::from(case.peak / 8.0).max(1.0);
        close(&format!("{name} out"), &got[0], &want_out, tolerance);
        close(&format!("{name} lse"), &got[1], &want_lse, 1e-6);
        // All gradients together set the scale: with one token in sight those of q and k are zero.
        let (got_all, want_all) = (got[2..].concat(), [want_dqk.clone(), want_dqkv.clone()].concat());
        close(&format!("{name} gradients"), &got_all, &want_all, 2e-5 * f64::from(case.peak));
        close(&format!("{name} dv"), &got[3], &want_dqkv, tolerance);
        if s.tokens <= 100 {
            check_gradient(&name, |x| s.forward(x, &v).0, &x, &dy, &want_dqk);
            check_gradient(&name, |v| s.forward(&x, v).0, &v, &dy, &want_dqkv);
        }
    }
}

/// A row's result depends on its segment alone: the same segment elsewhere in the batch gives the same bits.
#[test]
fn segments_do_not_see_each_other() {
    let (heads, kv, d) = (2, 1, 16);
    let len = 70;
    let p = Attention { heads, kv_heads: kv, head_dim: d, scale: 0.25 };
    let outputs = [0, 37].map(|before: usize| {
        let mut rig = Rig::new(3);
        let (_, qk_tail) = rig.random(len * (heads + kv) * d, 1.0);
        let (_, qkv_tail) = rig.random(len * (heads + 2 * kv) * d, 1.0);
        let (_, mut qk_values) = rig.random(before * (heads + kv) * d, 2.0);
        let (_, mut qkv_values) = rig.random(before * (heads + 2 * kv) * d, 2.0);
        qk_values.extend(qk_tail);
        qkv_values.extend(qkv_tail);
        let (qk, qkv) = (rig.given(&qk_values), rig.given(&qkv_values));
        let (out, lse) = (rig.space((before + len) * heads * d), rig.space((before + len) * heads));
        let tail = Segment { start: before as u32, len: len as u32 };
        let mut segments = vec![Segment { start: 0, len: before as u32 }, tail];
        segments.retain(|s| s.len > 0);
        let got =
            rig.run(&[out], |dev| attention::forward(dev, &p, &Segments::host(&segments), qk, qkv, out, lse));
        got[0][before * heads * d..].to_vec()
    });
    assert!(super::rig::same_bits(&outputs[0], &outputs[1]));
}
