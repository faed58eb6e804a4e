//! Operations on their own: what each is checked on and measured by, as one table that `selftest`, the tests on the CPU
//! and on the emulated device, and the benchmarks read. An operation's part is its `check.rs`: its cases, each with its
//! operands, its f64 form, that form's gradient, and the work of its calls.

// The tests read all of it, the program less.
#![cfg_attr(not(feature = "internals"), allow(dead_code, unused_imports))]

pub mod forms;
mod rig;

pub use rig::{Call, Derivative, Finding, List, Number, Outcome, Results, Rig, widened};

use crate::device::Capabilities;

/// An operation as the registry has it.
#[derive(Clone, Copy)]
pub struct Operation {
    /// Name of its folder.
    pub name: &'static str,
    /// Whether its kernels compute without tensor cores: a GPU's bits are then those of the emulated device.
    pub scalar: bool,
    /// What it has for a GPU.
    #[cfg(feature = "cuda")]
    pub kernels: crate::device::cuda::Kernels,
    /// What it is checked on.
    pub cases: fn() -> Vec<Box<dyn Case>>,
    /// What a training step of a model asks of it; empty where that is another operation's part.
    pub in_model: fn(&Shape) -> Vec<Box<dyn Case>>,
}

/// One shape, with the values that go with it. `Debug` names it in reports.
pub trait Case: std::fmt::Debug {
    /// Whether devices of this kind take it.
    fn runs_on(&self, device: &Capabilities) -> bool {
        let _ = device;
        true
    }

    /// Puts operands, calls, and what is wanted of them into the rig.
    fn set_up(&self, rig: &mut Rig);
}

/// A case's fields without its type's name.
#[must_use]
pub fn described(case: &dyn Case) -> String {
    let text = format!("{case:?}");
    let fields = text.split_once(" { ").and_then(|(_, rest)| rest.strip_suffix(" }"));
    fields.unwrap_or(&text).to_owned()
}

/// The cases of a table.
pub fn boxed<C: Case + Clone + 'static>(cases: &[C]) -> Vec<Box<dyn Case>> {
    cases.iter().map(|case| Box::new(case.clone()) as Box<dyn Case>).collect()
}

/// Whether rows of `width` elements are what the device moves.
pub(in crate::ops) fn takes_rows(device: &Capabilities, width: usize) -> bool {
    width.is_multiple_of(device.row_multiple)
}

/// Whether the device has heads of this size.
pub(in crate::ops) fn takes_heads(device: &Capabilities, head_dim: usize) -> bool {
    device.head_sizes.is_none_or(|sizes| sizes.contains(&head_dim))
}

/// What a model asks of its operations in a training step.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Tokens of each of its rows, which see nothing of each other.
    pub row: usize,
    /// Rows of logits held at once.
    pub chunk: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_dim: usize,
    /// Inner size of the MLP.
    pub intermediate: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Rank of the adapters on all linear layers.
    pub rank: usize,
    /// Layers, for the length of the optimizer's buffers.
    pub layers: usize,
    /// Whether queries and keys are normed by head.
    pub head_norm: bool,
}

impl Shape {
    /// Trainable parameters of all layers.
    #[must_use]
    pub fn trainable(&self) -> usize {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = 4 * self.hidden + 2 * q + 2 * kv;
        let mlp = 3 * (self.hidden + self.intermediate);
        self.layers * self.rank * (attention + mlp)
    }
}

/// The least work of a call: each operand passes the memory once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations of its products; 0 where it is bound by memory.
    pub flops: f64,
    /// Activations read and written.
    pub activations: usize,
    /// f32 and integers read and written.
    pub words: usize,
    /// Elements of frozen matrices read, as bf16.
    pub weights: usize,
}

impl Cost {
    /// Bytes on a device.
    #[must_use]
    pub fn bytes(&self, device: &Capabilities) -> usize {
        device.activation.bytes() * self.activations + 4 * self.words + 2 * self.weights
    }
}

/// The largest error of a result that is right, as ‖got − want‖ / ‖want‖.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// On a device that keeps activations in f32.
    pub f32: f64,
    /// On one that stores them as bf16.
    pub bf16: f64,
}

impl Limit {
    /// Rounded once to bf16: half a unit is 2^-9 of a value.
    pub const ROUNDED: Limit = Limit { f32: 1e-6, bf16: 5e-3 };
    /// Sums kept in f32, on tensor cores too.
    pub const SUMMED: Limit = Limit { f32: 1e-6, bf16: 1e-4 };
    /// Computed in f32 without long sums, everywhere.
    pub const EXACT: Limit = Limit { f32: 1e-6, bf16: 1e-6 };
    /// The same bits.
    pub const SAME: Limit = Limit { f32: 0.0, bf16: 0.0 };

    /// The same difference as of a result of size `size`, where it is compared with `want`.
    #[must_use]
    pub fn relative_to(self, size: f64, want: f64) -> Limit {
        let factor = size / want.abs().max(f64::MIN_POSITIVE);
        Limit { f32: self.f32 * factor, bf16: self.bf16 * factor }
    }

    /// With another limit where activations are f32.
    #[must_use]
    pub const fn with_f32(self, f32: f64) -> Limit {
        Limit { f32, ..self }
    }
}
