//! How a token is chosen: the likeliest, or drawn after temperature, top-k and top-p in the order and meaning of
//! transformers' logits warpers. What is drawn is a pure function of seed, row and place.

use crate::philox::{self, Stream};
use std::collections::BTreeSet;

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token always.
    pub temperature: f64,
    /// Only tokens at least as likely as the k-th; `None`: all.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability; 1: all.
    pub top_p: f64,
    /// Divides the logits above 0 of tokens that are in the text already, and multiplies those below; 1: nothing.
    pub repetition_penalty: f32,
}

impl Sampling {
    /// The likeliest token always, of equals the lowest id.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: None, top_p: 1.0, repetition_penalty: 1.0 };

    /// Applies the penalty to the tokens that were `said` (Keskar et al., CTRL, section 4.1; transformers'
    /// `RepetitionPenaltyLogitsProcessor`), also where the likeliest token is taken.
    pub fn penalise(&self, logits: &mut [f32], said: &BTreeSet<u32>) {
        for id in said {
            if let Some(logit) = logits.get_mut(*id as usize) {
                let penalty = self.repetition_penalty;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }

    /// The token for `draw`, uniform in [0, 1). `None` when a logit is not a number, or none is finite.
    #[must_use]
    pub fn choose(&self, logits: &[f32], draw: f64) -> Option<u32> {
        let likeliest = likeliest(logits)?;
        if self.temperature == 0.0 {
            return Some(likeliest);
        }
        let weights = self.weights(logits);
        let mut left = draw * weights.iter().map(|(_, weight)| weight).sum::<f64>();
        for (id, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return Some(*id);
            }
        }
        // Rounding may leave a little: the last token takes it.
        weights.last().map(|(id, _)| *id)
    }

    /// The tokens that can be drawn, likeliest first (of equals the lowest id), with weights that are their
    /// probabilities but for a common factor.
    #[must_use]
    pub fn weights(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self.top_k.filter(|k| *k < all.len()) {
            let (_, kth, _) = all.select_nth_unstable_by(k.max(1) - 1, order);
            let least = kth.1;
            all.retain(|(_, logit)| *logit >= least);
        }
        all.sort_unstable_by(order);
        let max = all.first().map_or(0.0, |(_, logit)| f64::from(*logit));
        let weight = |logit: f32| libm::exp((f64::from(logit) - max) / self.temperature);
        let mut weights: Vec<(u32, f64)> = all.into_iter().map(|(id, logit)| (id, weight(logit))).collect();
        if self.top_p < 1.0 {
            let enough = self.top_p * weights.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let reaches = |(_, weight): &(u32, f64)| {
                sum += weight;
                sum >= enough
            };
            let last = weights.iter().position(reaches).unwrap_or(weights.len() - 1);
            weights.truncate(last + 1);
        }
        weights
    }
}

/// The uniform number in [0, 1) of token `place` of row `row`.
#[must_use]
pub fn draw(seed: u64, row: u64, place: u64) -> f64 {
    philox::uniform(seed, Stream::Sampling, row << 32 | place)
}

fn likeliest(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in (0..).zip(logits) {
        if logit.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, most)| logit > most) {
            best = Some((id, logit));
        }
    }
    best.filter(|(_, most)| most.is_finite()).map(|(id, _)| id)
}
