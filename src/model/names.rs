//! Hugging Face tensor names of each family, and which linear layers a block has.

use super::spec::Spec;

/// One linear layer of a block, as the checkpoint names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearName {
    /// Module path without `.weight`, e.g. `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Output and input features.
    pub shape: [usize; 2],
    /// Whether the family gives it a bias (`module.bias`).
    pub bias: bool,
    /// First column of its output in the group's output row (q|k|v side by side; gate|up side by side).
    pub column: usize,
}

/// The names of one block, in the canonical order: PyTorch's `named_parameters` order within each group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockNames {
    /// Norm before attention.
    pub attention_norm: String,
    /// Layers that read the normalised attention input.
    pub qkv: Vec<LinearName>,
    /// q norm and k norm weights.
    pub qk_norm: Option<[String; 2]>,
    /// Attention output projection.
    pub attention_out: LinearName,
    /// Norm before the MLP.
    pub mlp_norm: String,
    /// Layers that read the normalised MLP input: gate in columns 0..I, up in I..2I, whatever their order.
    pub gate_up: Vec<LinearName>,
    /// MLP down projection.
    pub down: LinearName,
}

/// Names outside the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopNames {
    /// Embedding table.
    pub embedding: String,
    /// Final norm.
    pub norm: String,
    /// Output head; the embedding's name where tied.
    pub head: String,
}

/// Names of block `layer`.
#[must_use]
pub fn block(spec: &Spec, layer: usize) -> BlockNames {
    let _ = (spec, layer);
    todo!()
}

/// Names outside the blocks.
#[must_use]
pub fn top(spec: &Spec) -> TopNames {
    let _ = spec;
    todo!()
}
