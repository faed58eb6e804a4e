//! Forms of rotary position embeddings (Su et al. 2021), and their tables of cosines and sines.

use crate::ops::rope;

/// How positions turn the heads of q and k.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Leading elements of a head that are turned; an even number.
    pub dims: usize,
    /// Base of the angles.
    pub theta: f64,
    /// Qwen v1's dynamic NTK: the base grows in generation for prompts longer than this, the trained length.
    pub dynamic_ntk: Option<usize>,
}

impl Rotary {
    /// The table of a prompt of `len` tokens: 0 up to the trained length, then one for every doubling. As in
    /// `modeling_qwen.py`, the prompt decides, and what is generated after it keeps its table.
    #[must_use]
    pub fn level(&self, len: usize) -> usize {
        let fits = |k: usize, trained: usize| len.div_ceil(1 << k) <= trained;
        let level =
            self.dynamic_ntk.and_then(|trained| (0..usize::BITS as usize).find(|&k| fits(k, trained)));
        level.unwrap_or(0)
    }

    /// The tables of the levels 0 to `level`, one behind the other, each of `positions` positions. The base is
    /// multiplied by `alpha^(d/(d-2))` with `alpha = 2^(level+1) - 1` where it grows.
    #[must_use]
    pub fn tables(&self, positions: usize, level: usize) -> Vec<f32> {
        let d = self.dims as f64;
        let table = |level: usize| {
            let alpha = ((2u64 << level) - 1) as f64;
            let grows = self.dynamic_ntk.is_some() && level > 0;
            let factor = if grows { libm::pow(alpha, d / (d - 2.0)) } else { 1.0 };
            rope::table(self.dims, self.theta * factor, positions)
        };
        (0..=level).flat_map(table).collect()
    }
}
