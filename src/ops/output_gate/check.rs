//! The gate of an attention's output: odd sizes, a model's, and gates at which the sigmoid is 0 or 1.

use super::OutputGate;
use crate::device::Capabilities;
use crate::device::Storage::Activation;
use crate::ops::check::forms::sigmoid;
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_rows};

/// A gated output. Gates and what else a head has in its row alternate, as queries and gates do.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Token rows.
    pub rows: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Columns after the heads'.
    pub beside: usize,
    /// Standard deviation of the gates.
    pub size: f32,
}

/// Output gates.
pub const CASES: &[Case] = &[
    Case { rows: 1, heads: 1, dim: 1, beside: 0, size: 1.0 },
    Case { rows: 7, heads: 3, dim: 20, beside: 5, size: 2.0 },
    Case { rows: 19, heads: 2, dim: 256, beside: 512, size: 1.0 },
    Case { rows: 4, heads: 5, dim: 8, beside: 16, size: 60.0 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "output_gate",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: crate::device::cuda::Kernels::NONE,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    let Shape { tokens: rows, heads, kv_heads, head_dim: dim, .. } = *s;
    let case = Case { rows, heads, dim, beside: 2 * kv_heads * dim, size: 1.0 };
    s.delta.into_iter().flat_map(|_| boxed(&[case])).collect()
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        device.gated_mixers && takes_rows(device, self.dim) && takes_rows(device, self.beside)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { rows, heads, dim, beside, size } = *self;
        let (width, len) = (2 * heads * dim + beside, rows * heads * dim);
        rig.seed(41);
        let x = rig.random(Activation, len, 1.0);
        let projected = rig.random(Activation, rows * width, size);
        let dy = rig.random(Activation, len, 1.0);
        let y = rig.space(Activation, len);
        let dprojected = rig.zeros(Activation, rows * width);
        let p = OutputGate { heads, dim, width, gate: dim, stride: 2 * dim };
        rig.call("forward", Cost { activations: 3 * len, ..Cost::default() }, move |dev, _| {
            super::forward(dev, &p, x, projected, y);
            Ok(())
        });
        rig.call("backward", Cost { activations: 5 * len, ..Cost::default() }, move |dev, _| {
            super::backward(dev, &p, [x, projected], dy, dprojected);
            Ok(())
        });
        // The place of an element's gate.
        let gate = move |i: usize| {
            let (row, head, element) = (i / (heads * dim), i / dim % heads, i % dim);
            row * width + (2 * head + 1) * dim + element
        };
        let form = move |x: &[f64], gates: &[f64]| -> Vec<f64> {
            x.iter().enumerate().map(|(i, x)| x * sigmoid(gates[gate(i)])).collect()
        };
        let gradients = move |x: &[f64], gates: &[f64], dy: &[f64]| {
            let mut dgates = vec![0.0; gates.len()];
            for (i, (x, dy)) in x.iter().zip(dy).enumerate() {
                let z = gates[gate(i)];
                dgates[gate(i)] = dy * x * sigmoid(z) * sigmoid(-z);
            }
            [form(dy, gates), dgates]
        };
        rig.wants(&[y, dy, dprojected], move |o| {
            let (values, gates) = (o.given(x), o.given(projected));
            let [dx, dgates] = gradients(&values, &gates, &o.given(dy));
            // 1 - σ loses its last digits where a gate is open.
            let gated = if size > 10.0 { Limit::ROUNDED.with_f32(1e-5) } else { Limit::ROUNDED };
            vec![
                o.finding("y", y, &form(&values, &gates), Limit::ROUNDED),
                o.finding("dx", dy, &dx, Limit::ROUNDED),
                o.finding("dgate", dprojected, &dgates, gated),
            ]
        });
        if size < 10.0 {
            let given = move |rig: &Rig| (rig.given(x), rig.given(projected), rig.given(dy));
            rig.derivative("dx", move |rig| {
                let (at, gates, upper) = given(rig);
                let [gradient, _] = gradients(&at, &gates, &upper);
                Derivative { function: Box::new(move |x: &[f64]| form(x, &gates)), at, upper, gradient }
            });
            rig.derivative("dgate", move |rig| {
                let (x, at, upper) = given(rig);
                let [_, gradient] = gradients(&x, &at, &upper);
                Derivative { function: Box::new(move |gates: &[f64]| form(&x, gates)), at, upper, gradient }
            });
        }
    }
}
