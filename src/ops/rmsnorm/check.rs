//! RMSNorm: on rows of the models' sizes, the smallest, large and tiny values, and zeros.

use super::RmsNorm;
use crate::device::Capabilities;
use crate::device::Storage::{Activation, F32};
use crate::ops::check::forms::dot;
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_rows};

/// A normalisation.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Rows.
    pub rows: usize,
    /// Row length.
    pub dim: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Standard deviation of the input.
    pub size: f32,
}

/// RMSNorm.
pub const CASES: &[Case] = &[
    Case { rows: 1, dim: 1, eps: 1e-6, size: 1.0 },
    Case { rows: 3, dim: 17, eps: 1e-6, size: 1.0 },
    Case { rows: 67, dim: 896, eps: 1e-6, size: 1.0 },
    Case { rows: 5, dim: 5120, eps: 1e-5, size: 300.0 },
    Case { rows: 4, dim: 64, eps: 1e-6, size: 1e-4 },
    Case { rows: 2, dim: 48, eps: 1e-6, size: 0.0 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "rmsnorm",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    boxed(&[Case { rows: s.tokens, dim: s.hidden, eps: 1e-6, size: 1.0 }])
}

fn inverse_rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt()
}

/// One row.
#[must_use]
pub fn normalised(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let rstd = inverse_rms(x, eps);
    x.iter().zip(weight).map(|(x, w)| x * rstd * w).collect()
}

/// Gradient of row `x`, given that of its result.
#[must_use]
pub fn gradient(x: &[f64], weight: &[f64], eps: f64, dy: &[f64]) -> Vec<f64> {
    let (n, rstd) = (x.len() as f64, inverse_rms(x, eps));
    let dot: f64 = x.iter().zip(weight).zip(dy).map(|((x, w), dy)| x * w * dy).sum();
    x.iter().zip(weight).zip(dy).map(|((x, w), dy)| rstd * (dy * w - x * dot * rstd * rstd / n)).collect()
}

/// Rows of the weight's length.
fn all_normalised(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    x.chunks_exact(weight.len()).flat_map(|x| normalised(x, weight, eps)).collect()
}

fn all_gradients(x: &[f64], weight: &[f64], eps: f64, dy: &[f64]) -> Vec<f64> {
    let rows = x.chunks_exact(weight.len()).zip(dy.chunks_exact(weight.len()));
    rows.flat_map(|(x, dy)| gradient(x, weight, eps, dy)).collect()
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_rows(device, self.dim)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { rows, dim, eps, size } = *self;
        let len = rows * dim;
        rig.seed(11);
        let x = rig.random(Activation, len, size);
        let weight = rig.random(F32, dim, 1.0);
        let dy = rig.random(Activation, len, 1.0);
        let dx = rig.random(Activation, len, 1.0);
        let [y, again] = [(); 2].map(|()| rig.space(Activation, len));
        let rstd = rig.space(F32, rows);
        let p = RmsNorm { dim, eps, weight };
        let passing = Cost { activations: 2 * len, words: rows + dim, ..Cost::default() };
        rig.call("forward", passing, move |dev, _| {
            super::forward(dev, &p, x, y, rstd);
            Ok(())
        });
        rig.call("recompute", passing, move |dev, _| {
            super::recompute(dev, &p, x, rstd, again);
            Ok(())
        });
        rig.call("backward", Cost { activations: 4 * len, ..passing }, move |dev, _| {
            super::backward(dev, &p, x, rstd, dy, dx);
            Ok(())
        });
        let eps = f64::from(eps);
        rig.wants(&[y, again, rstd, dx], move |o| {
            let (values, weight) = (o.given(x), o.given(weight));
            let scales: Vec<f64> = values.chunks_exact(dim).map(|x| inverse_rms(x, eps)).collect();
            let added = all_gradients(&values, &weight, eps, &o.given(dy));
            let sum: Vec<f64> = added.iter().zip(o.given(dx)).map(|(g, r)| g + r).collect();
            vec![
                o.finding("y", y, &all_normalised(&values, &weight, eps), Limit::ROUNDED),
                o.finding("y recomputed", again, &o.got(y), Limit::SAME),
                o.finding("rstd", rstd, &scales, Limit::EXACT),
                o.finding("dx", dx, &sum, Limit::ROUNDED),
            ]
        });
        // Of one element, or of zeros, nothing is left to differentiate.
        if size > 0.0 && dim > 1 {
            rig.derivative("dx", move |rig| {
                let (at, weight, upper) = (rig.given(x), rig.given(weight), rig.given(dy));
                let gradient = all_gradients(&at, &weight, eps, &upper);
                let function = Box::new(move |x: &[f64]| all_normalised(x, &weight, eps));
                Derivative { function, at, upper, gradient }
            });
        }
    }
}
