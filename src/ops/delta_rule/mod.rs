//! The gated delta rule (Yang, Kautz & Hatamizadeh 2024): a state of each value head that forgets, and learns the error of
//! what it would have said.
//!
//! Per token, with the normalised `q̂ = q / sqrt(Σq² + 1e-6) / sqrt(dk)`, `k̂ = k / sqrt(Σk² + 1e-6)`, `β = σ(b)` and
//! `g = -exp(A_log) · softplus(a + dt_bias)`:
//!
//! ```text
//! S' = e^g S;  u = β (v - S'ᵀ k̂);  S = S' + k̂ uᵀ;  o = Sᵀ q̂
//! ```
//!
//! with S [dk, dv] zero where a segment begins. Value head h reads key head `h / (value_heads / key_heads)`.

pub mod check;
mod cpu;

use crate::device::{Device, Indices, Region};
use crate::ops::attention::Segments;

/// Added to the sum of squares of a head of q or k. Not the model's norm epsilon.
const EPS: f32 = 1e-6;

/// Shapes and constants of one delta rule.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRule {
    /// Heads of q and of k.
    pub key_heads: usize,
    /// Heads of v and of the output, a multiple.
    pub value_heads: usize,
    /// Size dk of a head of q or k.
    pub key_dim: usize,
    /// Size dv of a head of v.
    pub value_dim: usize,
    /// `A_log`, `[value_heads]`, f32.
    pub a_log: Region,
    /// `dt_bias`, `[value_heads]`, f32.
    pub dt_bias: Region,
    /// Where b and a lie in the projected rows.
    pub gates: Gates,
}

/// Columns of b and of a, `value_heads` each, in rows of `width` elements.
#[derive(Clone, Copy, Debug)]
pub struct Gates {
    /// Elements of a row.
    pub width: usize,
    /// First column of b.
    pub b: usize,
    /// First column of a; b's lie directly before.
    pub a: usize,
}

/// What sequences go on from: S of each value head, f32 [slots, value_heads, dk, dv].
#[derive(Clone, Copy, Debug)]
pub struct States<'a> {
    /// All states.
    pub region: Region,
    /// The slot of each segment, or of each token of a step.
    pub slots: Indices<'a>,
}

impl DeltaRule {
    /// Columns of q|k|v: C.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.out_width()
    }

    /// Columns of the output.
    #[must_use]
    pub fn out_width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Elements of the states of one sequence.
    #[must_use]
    pub fn state_len(&self) -> usize {
        self.value_heads * self.key_dim * self.value_dim
    }

    /// Value heads that read one key head.
    fn group(&self) -> usize {
        self.value_heads / self.key_heads
    }
}

/// `out` [T, value_heads·dv] from `qkv` [T, C] and the gates in `projected` [T, width]. The states after each segment are
/// kept where `states` is given. `out` is one that the device keeps without loss.
pub fn forward(
    dev: &mut Device,
    p: &DeltaRule,
    segments: &Segments<'_>,
    [qkv, projected]: [Region; 2],
    out: Region,
    states: Option<States<'_>>,
) {
    match dev {
        Device::Cpu(cpu) => cpu::forward(cpu, p, segments.list, [qkv, projected], out, states),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}

/// One more token of each sequence: `out` [N, value_heads·dv], from and to its state.
pub fn step(dev: &mut Device, p: &DeltaRule, [qkv, projected]: [Region; 2], out: Region, states: States<'_>) {
    match dev {
        Device::Cpu(cpu) => cpu::step(cpu, p, [qkv, projected], out, states),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}

/// Operands of the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// As the forward pass read them.
    pub qkv: Region,
    /// As the forward pass read them.
    pub projected: Region,
    /// Gradient of the output.
    pub dout: Region,
    /// Written: gradient of `qkv`.
    pub dqkv: Region,
    /// Written: the columns of b and a.
    pub dprojected: Region,
}

/// Gradients of q, k, v, b and a. States before the chunks are computed again.
pub fn backward(dev: &mut Device, p: &DeltaRule, segments: &Segments<'_>, o: &Backward) {
    match dev {
        Device::Cpu(cpu) => cpu::backward(cpu, p, segments.list, o),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            unreachable!("a device without the delta rule is refused when the model is planned")
        }
    }
}
