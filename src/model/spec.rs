//! `config.json` of a Qwen folder, checked and reduced to what the engine needs.

use crate::error::Result;
use std::path::Path;

/// The architecture families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen-7B v1, `QWenLMHeadModel`.
    QwenV1,
    /// Qwen1.5, 2, 2.5: `Qwen2ForCausalLM`.
    Qwen2,
    /// Qwen3 dense: `Qwen3ForCausalLM`.
    Qwen3,
}

/// Shapes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Family.
    pub family: Family,
    /// Hidden size H.
    pub hidden: usize,
    /// MLP width I (v1: half of its `intermediate_size`).
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Head size D.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// RMSNorm epsilon.
    pub norm_eps: f32,
    /// RoPE base.
    pub rope_theta: f64,
    /// Longest position trained on.
    pub max_positions: usize,
    /// Output head is the embedding table.
    pub tied: bool,
    /// q, k, v projections have a bias.
    pub qkv_bias: bool,
    /// Per-head RMSNorm of q and k.
    pub qk_norm: bool,
}

/// Reads `folder/config.json`.
///
/// # Errors
/// Names the key, what is wrong with it, and what is not supported (MoE, sliding window, vision, quantised).
pub fn read(folder: &Path) -> Result<Spec> {
    let _ = folder;
    todo!()
}
