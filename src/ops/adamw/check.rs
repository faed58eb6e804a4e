//! AdamW: buffers of the lengths around lanes, blocks and tasks; three steps, as the first ones correct their bias.

use super::AdamW;
use crate::device::Storage::F32;
use crate::ops::check::{self, Cost, Limit, Operation, Rig, Shape, boxed};

/// Parameters of an optimizer step.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Elements.
    pub len: usize,
}

/// Cases.
pub const CASES: &[Case] = &[
    Case { len: 1 },
    Case { len: 15 },
    Case { len: 16 },
    Case { len: 1000 },
    Case { len: 16 * 1024 },
    Case { len: 100_003 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "adamw",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model: |s: &Shape| boxed(&[Case { len: s.trainable() }]),
};

/// What a step is asked for.
pub const NUMBERS: AdamW =
    AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

const STEPS: u64 = 3;

/// One step on parameters and both moments.
fn form(p: &AdamW, [params, m, v]: [&mut Vec<f64>; 3], grads: &[f64]) {
    let power = |base: f64| (0..p.step).fold(1.0, |product, _| product * base);
    for (i, g) in grads.iter().enumerate() {
        let g = g * f64::from(p.grad_scale);
        m[i] = p.beta1 * m[i] + (1.0 - p.beta1) * g;
        v[i] = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
        let (mean, square) = (m[i] / (1.0 - power(p.beta1)), v[i] / (1.0 - power(p.beta2)));
        params[i] -= p.lr * p.weight_decay * params[i] + p.lr * mean / (square.sqrt() + p.epsilon);
    }
}

impl check::Case for Case {
    fn set_up(&self, rig: &mut Rig) {
        let len = self.len;
        rig.seed(61);
        let params = rig.random(F32, len, 0.1);
        let grads = rig.random(F32, len, 0.01);
        let [m, v] = [(); 2].map(|()| rig.zeros(F32, len));
        for step in 1..=STEPS {
            rig.call("step", Cost { words: 7 * len, ..Cost::default() }, move |dev, _| {
                super::step(dev, &AdamW { step, ..NUMBERS }, params, grads, m, v);
                Ok(())
            });
        }
        rig.wants(&[params, m, v], move |o| {
            let (mut w, mut first, mut second) = (o.given(params), o.given(m), o.given(v));
            let grads = o.given(grads);
            for step in 1..=STEPS {
                form(&AdamW { step, ..NUMBERS }, [&mut w, &mut first, &mut second], &grads);
            }
            vec![
                o.finding("params", params, &w, Limit::EXACT),
                o.finding("m", m, &first, Limit::EXACT),
                o.finding("v", v, &second, Limit::EXACT),
            ]
        });
    }
}
