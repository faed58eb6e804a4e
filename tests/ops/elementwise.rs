//! The elementary functions under the operations.

use super::rig::normal;
use qwentune::device::cpu::math;
use qwentune::ops::swiglu::check::sigmoid;

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
