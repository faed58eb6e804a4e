//! Moved rows: one element, odd widths, and rows of a model, of which some are taken.

use crate::device::Capabilities;
use crate::device::Storage::{Activation, Kept};
use crate::ops::check::{self, Cost, Limit, Operation, Rig, Shape, boxed, takes_rows};

/// Rows moved by index.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Rows of the source.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Every which row is taken.
    pub every: usize,
}

/// Gather, scatter and embedding.
pub const CASES: &[Case] = &[
    Case { rows: 1, width: 1, every: 1 },
    Case { rows: 10, width: 7, every: 3 },
    Case { rows: 300, width: 896, every: 2 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "rows",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    boxed(&[Case { rows: s.tokens, width: s.hidden, every: 2 }])
}

impl Case {
    /// The rows that are taken.
    #[must_use]
    pub fn index(&self) -> Vec<u32> {
        (0..self.rows as u32).step_by(self.every).collect()
    }
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_rows(device, self.width)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { rows, width, every } = *self;
        let len = rows * width;
        rig.seed(31);
        let x = rig.random(Activation, len, 1.0);
        let taken = self.index();
        let some = rig.space(Activation, taken.len() * width);
        let [back, copied, restored] = [(); 3].map(|()| rig.space(Activation, len));
        let kept = rig.space(Kept, len);
        let index = rig.list(taken);
        let (moved, all) = (2 * some.len, 2 * len);
        rig.call("gather", Cost { activations: moved, ..Cost::default() }, move |dev, lists| {
            super::gather(dev, x, lists[index.at], width, some);
            Ok(())
        });
        rig.call("scatter", Cost { activations: moved + len, ..Cost::default() }, move |dev, lists| {
            super::scatter(dev, some, lists[index.at], width, back);
            Ok(())
        });
        rig.call("copy", Cost { activations: all, ..Cost::default() }, move |dev, _| {
            super::copy(dev, x, copied);
            Ok(())
        });
        rig.call("keep and restore", Cost { activations: 2 * all, ..Cost::default() }, move |dev, _| {
            super::copy(dev, x, kept);
            super::copy(dev, kept, restored);
            Ok(())
        });
        rig.wants(&[some, back, copied, restored], move |o| {
            let values = o.given(x);
            let kept = |i: usize| (i / width).is_multiple_of(every);
            let picked: Vec<f64> = (0..values.len()).filter(|i| kept(*i)).map(|i| values[i]).collect();
            let spread: Vec<f64> = (0..values.len()).map(|i| if kept(i) { values[i] } else { 0.0 }).collect();
            vec![
                o.finding("gathered", some, &picked, Limit::SAME),
                o.finding("scattered", back, &spread, Limit::SAME),
                o.finding("copied", copied, &values, Limit::SAME),
                o.finding("restored", restored, &values, Limit::SAME),
            ]
        });
    }
}
