//! Attention: what a row's result depends on.

use super::rig::results;
use qwentune::device::Storage::{Activation, F32};
use qwentune::ops::attention::{self, Attention, Segment, Segments};

/// A row's result depends on its segment alone: the same segment elsewhere in the batch gives the same bits.
#[test]
fn segments_do_not_see_each_other() {
    let (heads, kv, d) = (2, 1, 16);
    let len = 70;
    let p = Attention { heads, kv_heads: kv, head_dim: d, scale: 0.25 };
    let outputs = [0, 37].map(|before: usize| {
        let got = results(|rig| {
            rig.seed(3);
            let (qk_tail, qkv_tail) =
                (rig.normal(len * (heads + kv) * d, 1.0), rig.normal(len * (heads + 2 * kv) * d, 1.0));
            let mut qk_values = rig.normal(before * (heads + kv) * d, 2.0);
            let mut qkv_values = rig.normal(before * (heads + 2 * kv) * d, 2.0);
            qk_values.extend(qk_tail);
            qkv_values.extend(qkv_tail);
            let (qk, qkv) = (rig.holding(Activation, qk_values), rig.holding(Activation, qkv_values));
            let out = rig.space(Activation, (before + len) * heads * d);
            let lse = rig.space(F32, (before + len) * heads);
            let tail = Segment { start: before as u32, len: len as u32 };
            let mut segments = vec![Segment { start: 0, len: before as u32 }, tail];
            segments.retain(|s| s.len > 0);
            rig.call("forward", Default::default(), move |dev, _| {
                attention::forward(dev, &p, &Segments::host(&segments), qk, qkv, out, lse);
                Ok(())
            });
            rig.wants(&[out], |_| Vec::new());
        });
        got[0][before * heads * d..].iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
    });
    assert_eq!(outputs[0], outputs[1]);
}
