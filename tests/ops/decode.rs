//! Attention over a cache: what fills it lies where it belongs.

use super::rig::results;
use qwentune::device::Storage::{Activation, F32};
use qwentune::ops::attention::Attention;
use qwentune::ops::decode_attention::{self, Cache};
use std::cell::RefCell;

#[test]
fn rows_are_kept_where_they_belong_and_queries_alone_are_scaled() {
    let p = Attention { heads: 3, kv_heads: 1, head_dim: 4, scale: 0.5 };
    let given = RefCell::new([Vec::new(), Vec::new()]);
    let got = results(|rig| {
        rig.seed(29);
        let values = [rig.normal(2 * 16, 1.0), rig.normal(2 * 20, 1.0)];
        let [qk, qkv] = values.clone().map(|v| rig.holding(Activation, v));
        let [k, v] = [(); 2].map(|()| rig.zeros(Activation, 20));
        let table = rig.holding(F32, vec![1.0, 2.0, 3.0]);
        let (to, positions) = (rig.list(vec![3, 1]), rig.list(vec![2, 0]));
        rig.call("append and scale", Default::default(), move |dev, lists| {
            decode_attention::append(dev, &p, qk, qkv, lists[to.at], Cache { k, v });
            decode_attention::scale_queries(dev, &p, table, lists[positions.at], qk);
            Ok(())
        });
        rig.wants(&[k, v, qk], |_| Vec::new());
        *given.borrow_mut() = values;
    });
    let [qk, qkv] = given.into_inner();
    for (row, place) in [(0, 3), (1, 1)] {
        assert_eq!(got[0][4 * place..][..4], qk[16 * row + 12..][..4]);
        assert_eq!(got[1][4 * place..][..4], qkv[20 * row + 16..][..4]);
    }
    assert!(got[0][..4].iter().chain(&got[1][8..12]).all(|v| *v == 0.0));
    for (i, (new, old)) in got[2].iter().zip(&qk).enumerate() {
        let factor = if i < 12 { 3.0 } else { 1.0 };
        assert_eq!(*new, old * factor, "{i}");
    }
}
