//! The gated norm of heads: odd sizes, a model's, large and tiny values, and gates at which the sigmoid is 0 or 1.

use super::GatedNorm;
use crate::device::Capabilities;
use crate::device::Storage::{Activation, F32};
use crate::ops::check::forms::{columns, put_columns, sigmoid};
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_rows};
use crate::ops::rmsnorm::check::{gradient, normalised};

/// A norm of heads by gates.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Token rows.
    pub rows: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Columns before the gates, and as many after them.
    pub beside: usize,
    /// Standard deviations of the input and of the gates.
    pub sizes: [f32; 2],
}

/// Gated norms.
pub const CASES: &[Case] = &[
    Case { rows: 1, heads: 1, dim: 2, beside: 0, sizes: [1.0, 1.0] },
    Case { rows: 7, heads: 3, dim: 20, beside: 5, sizes: [1.0, 2.0] },
    Case { rows: 19, heads: 4, dim: 128, beside: 264, sizes: [1.0, 1.0] },
    Case { rows: 33, heads: 2, dim: 128, beside: 8, sizes: [1e-3, 1.0] },
    Case { rows: 5, heads: 1, dim: 64, beside: 0, sizes: [300.0, 60.0] },
    Case { rows: 2, heads: 2, dim: 128, beside: 0, sizes: [0.0, 1.0] },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "gated_norm",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: crate::device::cuda::Kernels::NONE,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    let case = |d: check::DeltaShape| Case {
        rows: s.tokens,
        heads: d.value_heads,
        dim: d.value_dim,
        beside: 2 * d.key_heads * d.key_dim,
        sizes: [1.0, 1.0],
    };
    s.delta.into_iter().flat_map(|d| boxed(&[case(d)])).collect()
}

/// Added to the mean square.
const EPS: f32 = 1e-6;

fn silu(z: f64) -> f64 {
    z * sigmoid(z)
}

/// Heads `x` and their gates `z`, both in rows of the weight's length.
fn form(x: &[f64], z: &[f64], weight: &[f64]) -> Vec<f64> {
    let dim = weight.len();
    let normed = x.chunks_exact(dim).flat_map(|x| normalised(x, weight, f64::from(EPS)));
    normed.zip(z).map(|(y, z)| y * silu(*z)).collect()
}

/// Gradients of heads and gates.
fn gradients(x: &[f64], z: &[f64], weight: &[f64], dy: &[f64]) -> [Vec<f64>; 2] {
    let (dim, eps) = (weight.len(), f64::from(EPS));
    let slope = |z: f64| sigmoid(z) + z * sigmoid(z) * sigmoid(-z);
    let normed = x.chunks_exact(dim).flat_map(|x| normalised(x, weight, eps));
    let dz = normed.zip(z).zip(dy).map(|((y, z), dy)| dy * y * slope(*z)).collect();
    let dn: Vec<f64> = dy.iter().zip(z).map(|(dy, z)| dy * silu(*z)).collect();
    let heads = x.chunks_exact(dim).zip(dn.chunks_exact(dim));
    [heads.flat_map(|(x, dn)| gradient(x, weight, eps, dn)).collect(), dz]
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        device.gated_mixers && takes_rows(device, self.dim) && takes_rows(device, self.beside)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { rows, heads, dim, beside, sizes } = *self;
        let (columns_of, width) = (heads * dim, heads * dim + 2 * beside);
        let len = rows * columns_of;
        rig.seed(37);
        let x = rig.random(Activation, len, sizes[0]);
        let projected = rig.random(Activation, rows * width, sizes[1]);
        let weight = rig.random(F32, dim, 1.0);
        let dy = rig.random(Activation, len, 1.0);
        let y = rig.space(Activation, len);
        let dprojected = rig.zeros(Activation, rows * width);
        let p = GatedNorm { heads, dim, eps: EPS, weight, gate_width: width, gate: beside };
        let passing = Cost { activations: 3 * len, words: dim, ..Cost::default() };
        rig.call("forward", passing, move |dev, _| {
            super::forward(dev, &p, x, projected, y);
            Ok(())
        });
        rig.call("backward", Cost { activations: 5 * len, ..passing }, move |dev, _| {
            super::backward(dev, &p, [x, projected], dy, dprojected);
            Ok(())
        });
        rig.wants(&[y, dy, dprojected], move |o| {
            let (values, weight) = (o.given(x), o.given(weight));
            let gates = columns(&o.given(projected), width, beside, columns_of);
            let [dx, dz] = gradients(&values, &gates, &weight, &o.given(dy));
            let mut of_gates = vec![0.0; rows * width];
            put_columns(&mut of_gates, width, beside, columns_of, &dz);
            vec![
                o.finding("y", y, &form(&values, &gates, &weight), Limit::ROUNDED),
                o.finding("dx", dy, &dx, Limit::ROUNDED),
                o.finding("dz", dprojected, &of_gates, Limit::ROUNDED),
            ]
        });
        if sizes[0] > 0.0 && sizes[1] < 10.0 {
            let given = move |rig: &Rig| {
                let gates = columns(&rig.given(projected), width, beside, columns_of);
                (rig.given(x), gates, rig.given(weight), rig.given(dy))
            };
            rig.derivative("dx", move |rig| {
                let (at, z, weight, upper) = given(rig);
                let [gradient, _] = gradients(&at, &z, &weight, &upper);
                Derivative { function: Box::new(move |x: &[f64]| form(x, &z, &weight)), at, upper, gradient }
            });
            rig.derivative("dz", move |rig| {
                let (x, at, weight, upper) = given(rig);
                let [_, gradient] = gradients(&x, &at, &weight, &upper);
                Derivative { function: Box::new(move |z: &[f64]| form(&x, z, &weight)), at, upper, gradient }
            });
        }
    }
}
