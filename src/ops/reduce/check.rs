//! Sums: lengths around lanes and chunks.

use super::Sums;
use crate::device::Storage::F32;
use crate::ops::check::forms::dot;
use crate::ops::check::{self, Cost, Limit, Operation, Rig, Shape, boxed};
use std::cell::RefCell;

/// Sums in f64 differ by the order of their terms alone.
const SUM: Limit = Limit { f32: 1e-12, bf16: 1e-12 };

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
        let (len, half) = (self.len, self.len.div_ceil(2));
        let sums = RefCell::new(Sums::plan(rig.planner(), 2, len));
        let found = [(); 2].map(|()| rig.number());
        rig.call("sums", Cost { words: len + half, ..Cost::default() }, move |dev, _| {
            let mut sums = sums.borrow_mut();
            sums.clear();
            sums.add(dev, x);
            sums.add(dev, x.slice(0, half));
            sums.read(dev)?.into_iter().zip(&found).for_each(|(sum, found)| found.set(sum));
            Ok(())
        });
        rig.wants(&[], move |o| {
            let x = o.given(x);
            // Of values that cancel each other the sum is as exact as that of their sizes.
            let of = |len: usize| {
                let size: f64 = x[..len].iter().map(|v| v.abs()).sum();
                (x[..len].iter().sum::<f64>(), SUM.relative_to(size, x[..len].iter().sum()))
            };
            let ((all, all_limit), (first, first_limit)) = (of(len), of(half));
            vec![
                o.number("sum of squares", 0, dot(&x, &x), SUM),
                o.number("sum", 1, all, all_limit),
                o.number("sum of the first half", 2, first, first_limit),
            ]
        });
    }
}
