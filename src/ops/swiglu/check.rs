//! SwiGLU: odd widths, a model's, and values at which the sigmoid is 0 or 1.

use crate::device::Capabilities;
use crate::device::Storage::Activation;
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_rows};

/// A gated activation.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Token rows.
    pub rows: usize,
    /// Columns of the result.
    pub width: usize,
    /// Standard deviation of the input.
    pub size: f32,
}

/// SwiGLU.
pub const CASES: &[Case] = &[
    Case { rows: 1, width: 1, size: 1.0 },
    Case { rows: 3, width: 37, size: 1.0 },
    Case { rows: 19, width: 4864, size: 2.0 },
    Case { rows: 4, width: 64, size: 1e4 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "swiglu",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    boxed(&[Case { rows: s.tokens, width: s.intermediate, size: 1.0 }])
}

/// The logistic function.
#[must_use]
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// Rows of `width` gates and as many ups.
fn form(x: &[f64], width: usize) -> Vec<f64> {
    x.chunks_exact(2 * width)
        .flat_map(|row| (0..width).map(|i| row[i] * sigmoid(row[i]) * row[width + i]))
        .collect()
}

/// Gradients of gates and ups.
fn gradient(x: &[f64], width: usize, dy: &[f64]) -> Vec<f64> {
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks_exact(2 * width).zip(dy.chunks_exact(width)) {
        let (gate, up) = row.split_at(width);
        let slope = |g: f64| sigmoid(g) + g * sigmoid(g) * sigmoid(-g);
        dx.extend((0..width).map(|i| dy[i] * up[i] * slope(gate[i])));
        dx.extend((0..width).map(|i| dy[i] * gate[i] * sigmoid(gate[i])));
    }
    dx
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_rows(device, self.width)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { rows, width, size } = *self;
        let len = rows * width;
        rig.seed(21);
        let x = rig.random(Activation, 2 * len, size);
        let dout = rig.random(Activation, len, 1.0);
        let out = rig.space(Activation, len);
        rig.call("forward", Cost { activations: 3 * len, ..Cost::default() }, move |dev, _| {
            super::forward(dev, x, width, out);
            Ok(())
        });
        rig.call("backward", Cost { activations: 5 * len, ..Cost::default() }, move |dev, _| {
            super::backward(dev, x, width, dout);
            Ok(())
        });
        rig.wants(&[out, x], move |o| {
            let (values, dy) = (o.given(x), o.given(dout));
            vec![
                o.finding("out", out, &form(&values, width), Limit::ROUNDED),
                o.finding("dx", x, &gradient(&values, width, &dy), Limit::ROUNDED),
            ]
        });
        if size < 10.0 {
            rig.derivative("dx", move |rig| {
                let (at, upper) = (rig.given(x), rig.given(dout));
                let gradient = gradient(&at, width, &upper);
                Derivative { function: Box::new(move |x: &[f64]| form(x, width)), at, upper, gradient }
            });
        }
    }
}
