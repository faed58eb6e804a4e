//! Logits for sampling: a few rows of a head.

use crate::device::Storage::{Activation, F32};
use crate::element::Element;
use crate::ops::check::forms::product_nt;
use crate::ops::check::{self, Cost, Limit, Operation, Rig, Shape, boxed, widened};

/// Rows of logits.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Rows.
    pub rows: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Vocabulary.
    pub vocab: usize,
}

/// Cases: a vocabulary that is no multiple of a tile or of 16 bytes.
pub const CASES: &[Case] = &[
    Case { rows: 1, hidden: 8, vocab: 8 },
    Case { rows: 33, hidden: 200, vocab: 520 },
    Case { rows: 5, hidden: 64, vocab: 157 },
];

/// The operation; its kernels are those of the linear layers.
pub const OPERATION: Operation = Operation {
    name: "logits",
    scalar: false,
    #[cfg(feature = "cuda")]
    kernels: crate::device::cuda::Kernels::NONE,
    cases: || boxed(CASES),
    in_model: |s: &Shape| boxed(&[Case { rows: 8, hidden: s.hidden, vocab: s.vocab }]),
};

impl check::Case for Case {
    fn set_up(&self, rig: &mut Rig) {
        let Case { rows, hidden, vocab } = *self;
        rig.seed(71);
        let head = rig.matrix(Element::Bf16, vocab, hidden, 1.0 / (hidden as f32).sqrt());
        let x = rig.random(Activation, rows * hidden, 1.0);
        let stride = rig.device().row_len(vocab);
        // Columns that make rows whole pieces are nobody's.
        let logits = rig.zeros(F32, rows * stride);
        let cost = Cost {
            flops: 2.0 * (rows * vocab * hidden) as f64,
            activations: x.len,
            words: rows * vocab,
            weights: vocab * hidden,
        };
        let weights = head.clone();
        rig.call("forward", cost, move |dev, _| {
            super::forward(dev, &head, x, logits);
            Ok(())
        });
        rig.wants(&[logits], move |o| {
            let dense = product_nt(&o.given(x), &widened(&weights), hidden);
            let mut want = vec![0.0; rows * stride];
            for (to, from) in want.chunks_exact_mut(stride).zip(dense.chunks_exact(vocab)) {
                to[..vocab].copy_from_slice(from);
            }
            vec![o.finding("logits", logits, &want, Limit::EXACT)]
        });
    }
}
