//! Token embedding, on the tables that rows are moved from.

use crate::device::Capabilities;
use crate::device::Storage::Activation;
use crate::element::Element;
use crate::ops::check::{self, Cost, Limit, Operation, Rig, Shape, boxed, takes_rows, widened};
use crate::ops::rows;

/// The operation; its kernel is that of moved rows.
pub const OPERATION: Operation = Operation {
    name: "embedding",
    scalar: true,
    #[cfg(feature = "cuda")]
    kernels: crate::device::cuda::Kernels::NONE,
    cases: || boxed(&rows::check::CASES.iter().map(|case| Case(*case)).collect::<Vec<Case>>()),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    // A table beyond any cache, of which each token reads a row.
    boxed(&[Case(rows::check::Case { rows: 4 * s.tokens, width: s.hidden, every: 4 })])
}

/// The table's rows, of which some are taken.
#[derive(Clone, Copy)]
struct Case(rows::check::Case);

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_rows(device, self.0.width)
    }

    fn set_up(&self, rig: &mut Rig) {
        let rows::check::Case { rows, width, every } = self.0;
        rig.seed(32);
        let table = rig.matrix(Element::Bf16, rows, width, 1.0);
        let taken = self.0.index();
        let out = rig.space(Activation, taken.len() * width);
        let ids = rig.list(taken);
        let cost = Cost { activations: out.len, weights: out.len, ..Cost::default() };
        let entries = table.clone();
        rig.call("forward", cost, move |dev, lists| {
            super::forward(dev, &table, lists[ids.at], out);
            Ok(())
        });
        rig.wants(&[out], move |o| {
            let all = widened(&entries);
            let taken: Vec<f64> = all.chunks_exact(width).step_by(every).flatten().copied().collect();
            vec![o.finding("embedded", out, &taken, Limit::SAME)]
        });
    }
}
