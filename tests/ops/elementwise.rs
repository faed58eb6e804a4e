//! SwiGLU, the elementary functions under it, and moved rows.

use super::rig::{Rig, check_gradient, close, normal, same_bits, wide};
use qwentune::device::cpu::math;
use qwentune::device::{Indices, Matrix};
use qwentune::ops::{embedding, rows, swiglu};
use qwentune::selftest::reference::{self, sigmoid};

#[test]
fn swiglu_follows_the_reference() {
    for case in swiglu::check::CASES {
        let mut rig = Rig::new(21);
        let (x, values) = rig.random(case.rows * 2 * case.width, case.size);
        let (dout, gradient) = rig.random(case.rows * case.width, 1.0);
        let out = rig.space(dout.len);
        let got = rig.run(&[out, x], |dev| {
            swiglu::forward(dev, x, case.width, out);
            swiglu::backward(dev, x, case.width, dout);
        });
        let (x, dy) = (wide(&values), wide(&gradient));
        let dx = reference::swiglu_gradient(&x, case.width, &dy);
        let name = format!("{case:?}");
        close(&name, &got[0], &reference::swiglu(&x, case.width), 5e-7);
        close(&format!("{name} gradient"), &got[1], &dx, 1e-6);
        if case.size < 10.0 {
            check_gradient(&name, |x| reference::swiglu(x, case.width), &x, &dy, &dx);
        }
    }
}

/// Units in the last place of the f32 next to `want`.
fn ulps(got: f32, want: f64) -> f64 {
    let near = want as f32;
    let unit = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
    (f64::from(got) - want).abs() / unit
}

#[test]
fn exponential_is_within_one_unit() {
    let most = |limit: f32, sign: f32| {
        let points = (0..limit.to_bits()).step_by(4999);
        points
            .map(|bits| f32::from_bits(bits) * sign)
            .map(|x| ulps(math::exp(x), libm::exp(f64::from(x))))
            .fold(0.0, f64::max)
    };
    let (above, below) = (most(88.7, 1.0), most(103.9, -1.0));
    assert!(above < 1.0 && below < 1.0, "{above} and {below} units");
    assert_eq!(math::exp(0.0), 1.0);
    assert_eq!(math::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(math::exp(f32::MAX), f32::INFINITY);
    assert!(math::exp(f32::NAN).is_nan());
}

#[test]
fn sigmoid_is_accurate_and_stays_in_bounds() {
    for x in normal(5, 10_000, 20.0) {
        assert!(
            (f64::from(math::sigmoid(x)) - sigmoid(f64::from(x))).abs()
                <= 1.5e-7 * sigmoid(f64::from(x)) + 1e-38
        );
    }
    assert_eq!([math::sigmoid(f32::MIN), math::sigmoid(f32::MAX)], [0.0, 1.0]);
}

#[test]
fn logarithm_is_correctly_rounded() {
    for bits in (1..f32::INFINITY.to_bits()).step_by(49_999) {
        let x = f32::from_bits(bits);
        assert!(ulps(math::ln(x).abs(), libm::log(f64::from(x)).abs()) <= 0.500_001, "ln {x}");
    }
}

#[test]
fn rows_move_unchanged() {
    for case in rows::check::CASES {
        let mut rig = Rig::new(31);
        let (x, values) = rig.random(case.rows * case.width, 1.0);
        let index: Vec<u32> = (0..case.rows as u32).step_by(case.every).collect();
        let some = rig.space(index.len() * case.width);
        let [back, copied, embedded] = [x.len, x.len, some.len].map(|n| rig.space(n));
        let table = Matrix::from_f32(&values, case.rows, case.width);
        let places = Indices::host(&index);
        let got = rig.run(&[some, back, copied, embedded], |dev| {
            rows::gather(dev, x, places, case.width, some);
            rows::scatter(dev, some, places, case.width, back);
            rows::copy(dev, x, copied);
            embedding::forward(dev, &table, places, embedded);
        });
        let row = |i: u32| &values[i as usize * case.width..][..case.width];
        let picked: Vec<f32> = index.iter().flat_map(|i| row(*i)).copied().collect();
        let kept = |i: usize| if (i / case.width).is_multiple_of(case.every) { values[i] } else { 0.0 };
        let spread: Vec<f32> = (0..values.len()).map(kept).collect();
        assert!(same_bits(&got[0], &picked) && same_bits(&got[3], &picked), "{case:?}");
        assert!(same_bits(&got[1], &spread) && same_bits(&got[2], &values), "{case:?}");
    }
}
