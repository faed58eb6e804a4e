//! The head with its loss: chunks that do not divide the rows, vocabularies of odd size and of a model, sharp and flat logits.

use super::Loss;
use crate::device::Capabilities;
use crate::device::Storage::{Activation, F32};
use crate::element::Element;
use crate::ops::check::forms::{product_nn, product_nt, softmax};
use crate::ops::check::{self, Cost, Derivative, Limit, Operation, Rig, Shape, boxed, takes_rows, widened};

/// A head with its loss.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Scored rows.
    pub rows: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Rows of logits held at once.
    pub chunk: usize,
    /// Standard deviation of the logits.
    pub spread: f32,
}

/// Linear + cross-entropy. A chunk that does not divide the rows, vocabularies of odd size, sharp and flat logits.
pub const CASES: &[Case] = &[
    Case { rows: 1, hidden: 8, vocab: 5, chunk: 4, spread: 1.0 },
    Case { rows: 50, hidden: 64, vocab: 157, chunk: 20, spread: 1.0 },
    Case { rows: 9, hidden: 136, vocab: 2600, chunk: 9, spread: 12.0 },
    Case { rows: 3, hidden: 40, vocab: 1025, chunk: 2, spread: 0.01 },
    Case { rows: 64, hidden: 8, vocab: 152_064, chunk: 64, spread: 4.0 },
    Case { rows: 11, hidden: 12, vocab: 37, chunk: 3, spread: 1.0 },
    Case { rows: 1, hidden: 1, vocab: 5, chunk: 3, spread: 1.0 },
    Case { rows: 5, hidden: 16, vocab: 4500, chunk: 3, spread: 3.0 },
    Case { rows: 9, hidden: 64, vocab: 130, chunk: 3, spread: 40.0 },
];

/// The operation.
pub const OPERATION: Operation = Operation {
    name: "loss",
    scalar: false,
    #[cfg(feature = "cuda")]
    kernels: super::cuda::KERNELS,
    cases: || boxed(CASES),
    in_model,
};

fn in_model(s: &Shape) -> Vec<Box<dyn check::Case>> {
    boxed(&[Case { rows: s.tokens, hidden: s.hidden, vocab: s.vocab, chunk: s.chunk, spread: 1.0 }])
}

const GRAD_SCALE: f32 = 0.125;

/// Losses of rows of `vocab` logits, and the logits' gradient of their sum.
fn form(logits: &[f64], vocab: usize, targets: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for (row, target) in logits.chunks_exact(vocab).zip(targets) {
        let (mut weights, lse) = softmax(row);
        losses.push(lse - row[*target as usize]);
        weights[*target as usize] -= 1.0;
        gradient.extend(weights);
    }
    (losses, gradient)
}

impl check::Case for Case {
    fn runs_on(&self, device: &Capabilities) -> bool {
        takes_rows(device, self.hidden)
    }

    fn set_up(&self, rig: &mut Rig) {
        let Case { rows, hidden, vocab, chunk, spread } = *self;
        rig.seed(51);
        let head = rig.matrix(Element::Bf16, vocab, hidden, spread / (hidden as f32).sqrt());
        let x = rig.random(Activation, rows * hidden, 1.0);
        let dx = rig.space(Activation, x.len);
        let logits = rig.space(F32, chunk * rig.device().row_len(vocab));
        let [losses, again] = [(); 2].map(|()| rig.space(F32, rows));
        let indices: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocab) as u32).collect();
        let targets = rig.list(indices.clone());
        let product = 2.0 * (rows * vocab * hidden) as f64;
        let cost = Cost { flops: product, activations: x.len, words: rows, weights: vocab * hidden };
        let of_forward = head.clone();
        rig.call("forward", cost, move |dev, lists| {
            let p = Loss { head: &of_forward, targets: lists[targets.at], logits, losses };
            super::forward(dev, &p, x);
            Ok(())
        });
        let both = Cost { flops: 2.0 * product, activations: 2 * x.len, ..cost };
        let of_both = head.clone();
        rig.call("forward and backward", both, move |dev, lists| {
            let p = Loss { head: &of_both, targets: lists[targets.at], logits, losses: again };
            super::forward_backward(dev, &p, x, GRAD_SCALE, dx);
            Ok(())
        });
        let (of_results, own_targets) = (head.clone(), indices.clone());
        rig.wants(&[losses, again, dx], move |o| {
            let weights = widened(&of_results);
            let exact = product_nt(&o.given(x), &weights, hidden);
            let (want, gradient) = form(&exact, vocab, &own_targets);
            let scaled: Vec<f64> = gradient.iter().map(|g| g * f64::from(GRAD_SCALE)).collect();
            vec![
                o.finding("losses", losses, &want, Limit::SUMMED),
                o.finding("losses again", again, &o.got(losses), Limit::SAME),
                // Logits of about `spread` are known to as many units in the last place.
                o.finding(
                    "dx",
                    dx,
                    &product_nn(&scaled, &weights, hidden),
                    Limit::ROUNDED.with_f32(2e-6 * f64::from(spread).max(1.0)),
                ),
            ]
        });
        if vocab * hidden < 1 << 15 {
            rig.derivative("dx", move |rig| {
                let (at, weights, targets) = (rig.given(x), widened(&head), indices.clone());
                let (_, dlogits) = form(&product_nt(&at, &weights, hidden), vocab, &targets);
                let gradient = product_nn(&dlogits, &weights, hidden);
                let upper = vec![1.0; targets.len()];
                let function =
                    Box::new(move |x: &[f64]| form(&product_nt(x, &weights, hidden), vocab, &targets).0);
                Derivative { function, at, upper, gradient }
            });
        }
    }
}
