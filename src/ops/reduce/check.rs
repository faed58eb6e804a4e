//! Sums: lengths around lanes and chunks.

use crate::device::Storage::F32;
use crate::ops::check::forms::dot;
use crate::ops::check::{self, Cost, Limit, Operation, Rig, Shape, boxed};

/// Elements that are summed.
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
    name: "reduce",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model: |s: &Shape| boxed(&[Case { len: s.trainable() }]),
};

impl check::Case for Case {
    fn set_up(&self, rig: &mut Rig) {
        rig.seed(62);
        let x = rig.random(F32, self.len, 0.01);
        let scratch = super::plan(rig.planner(), self.len);
        let sum = rig.number();
        rig.call("sum of squares", Cost { words: self.len, ..Cost::default() }, move |dev, _| {
            sum.set(super::sum_of_squares(dev, x, scratch)?);
            Ok(())
        });
        rig.wants(&[], move |o| {
            let x = o.given(x);
            vec![o.number("sum of squares", dot(&x, &x), Limit { f32: 1e-12, bf16: 1e-12 })]
        });
    }
}
