//! The optimizer and reductions at their edges.

use super::rig::results;
use qwentune::device::Storage::F32;
use qwentune::ops::adamw;
use qwentune::ops::adamw::check::NUMBERS;
use qwentune::ops::reduce;
use std::cell::RefCell;

#[test]
fn adamw_without_gradient_only_decays() {
    let given = RefCell::new(Vec::new());
    let got = results(|rig| {
        rig.seed(43);
        let values = rig.normal(100, 1.0);
        let params = rig.holding(F32, values.clone());
        let [grads, m, v] = [(); 3].map(|()| rig.zeros(F32, 100));
        rig.call("step", Default::default(), move |dev, _| {
            adamw::step(dev, &NUMBERS, params, grads, m, v);
            Ok(())
        });
        rig.wants(&[params, m], |_| Vec::new());
        *given.borrow_mut() = values;
    });
    for (new, old) in got[0].iter().zip(given.into_inner()) {
        let want = f64::from(old) * (1.0 - 3e-4);
        assert!((f64::from(*new) - want).abs() <= 1e-7 * want.abs(), "{new} instead of {want}");
    }
    assert_eq!(got[1], [0.0; 100]);
}

#[test]
fn sum_of_squares_shows_any_number_that_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 16_384, 20_000] {
            results(|rig| {
                let mut values = vec![1.0; 20_001];
                values[place] = bad;
                let x = rig.holding(F32, values);
                rig.call("sum", Default::default(), move |dev, _| {
                    assert!(!reduce::sum_of_squares(dev, x, x)?.is_finite());
                    Ok(())
                });
            });
        }
    }
}
