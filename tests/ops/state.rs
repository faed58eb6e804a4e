//! The optimizer and reductions.

use super::rig::{Rig, close, wide};
use qwentune::ops::adamw::{self, AdamW};
use qwentune::ops::reduce;
use qwentune::selftest::reference::adamw_step;

const NUMBERS: AdamW =
    AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

#[test]
fn adamw_follows_the_reference() {
    for &len in adamw::check::CASES {
        let mut rig = Rig::new(41);
        let (params, values) = rig.random(len, 0.1);
        let (grads, gradient) = rig.random(len, 0.01);
        let [m, v] = [(); 2].map(|()| rig.given(&vec![0.0; len]));
        let steps: Vec<AdamW> = (1..=3).map(|step| AdamW { step, ..NUMBERS }).collect();
        let got = rig.run(&[params, m, v], |dev| {
            for p in &steps {
                adamw::step(dev, p, params, grads, m, v);
            }
        });
        let (mut params, mut m, mut v) = (wide(&values), vec![0.0; len], vec![0.0; len]);
        for p in &steps {
            adamw_step(p, [&mut params, &mut m, &mut v], &wide(&gradient));
        }
        close("params", &got[0], &params, 1e-6);
        close("m", &got[1], &m, 1e-6);
        close("v", &got[2], &v, 1e-6);
    }
}

#[test]
fn adamw_without_gradient_only_decays() {
    let mut rig = Rig::new(43);
    let (params, values) = rig.random(100, 1.0);
    let [grads, m, v] = [(); 3].map(|()| rig.given(&[0.0; 100]));
    let got = rig.run(&[params, m], |dev| adamw::step(dev, &NUMBERS, params, grads, m, v));
    let decayed: Vec<f64> = values.iter().map(|w| f64::from(*w) * (1.0 - 3e-4)).collect();
    close("params", &got[0], &decayed, 1e-7);
    assert_eq!(got[1], [0.0; 100]);
}

#[test]
fn sum_of_squares_is_exact_to_rounding() {
    for &len in adamw::check::CASES {
        let mut rig = Rig::new(47);
        let (x, values) = rig.random(len, 1.0);
        let sums = std::sync::Mutex::new(Vec::new());
        rig.run(&[x], |dev| {
            sums.lock().expect("no panic").push(reduce::sum_of_squares(dev, x, x).expect("the CPU"))
        });
        let sums = sums.into_inner().expect("no panic");
        let want: f64 = wide(&values).iter().map(|v| v * v).sum();
        assert!((sums[0] - want).abs() <= 1e-13 * want, "{} instead of {want}", sums[0]);
        assert!(sums.iter().all(|s| s.to_bits() == sums[0].to_bits()), "{sums:?}");
    }
}

#[test]
fn sum_of_squares_shows_any_number_that_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 16_384, 20_000] {
            let mut rig = Rig::new(53);
            let mut values = vec![1.0; 20_001];
            values[place] = bad;
            let x = rig.given(&values);
            rig.run(&[], |dev| assert!(!reduce::sum_of_squares(dev, x, x).expect("the CPU").is_finite()));
        }
    }
}
