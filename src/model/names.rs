//! Hugging Face tensor names of each family, and which linear layers a block has.

use super::spec::{Family, Spec};
use crate::config::Targets;
use crate::error::{Error, Result};
use crate::formats::weight_map::WeightMap;

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

impl BlockNames {
    /// The block's linear layers in the canonical order: as the Hugging Face module defines them, which is the
    /// order of adapters in PyTorch's `named_parameters`, in optimizer state and in checkpoints.
    pub fn linears(&self) -> impl Iterator<Item = &LinearName> {
        self.qkv.iter().chain([&self.attention_out]).chain(&self.gate_up).chain([&self.down])
    }
}

/// Names of block `layer`.
#[must_use]
pub fn block(spec: &Spec, layer: usize) -> BlockNames {
    match spec.family {
        Family::QwenV1 => block_v1(spec, layer),
        Family::Qwen2 | Family::Qwen3 => block_v2(spec, layer),
    }
}

fn linear(module: String, shape: [usize; 2], bias: bool, column: usize) -> LinearName {
    LinearName { module, shape, bias, column }
}

/// Qwen v1: one layer for q, k and v; `w2` is the gate (`c_proj(w1(x) * silu(w2(x)))`, modeling_qwen.py).
fn block_v1(spec: &Spec, layer: usize) -> BlockNames {
    let name = |part: &str| format!("transformer.h.{layer}.{part}");
    let (hidden, inner, q) = (spec.hidden, spec.intermediate, spec.heads * spec.head_dim);
    BlockNames {
        attention_norm: name("ln_1.weight"),
        qkv: vec![linear(name("attn.c_attn"), [3 * q, hidden], true, 0)],
        qk_norm: None,
        attention_out: linear(name("attn.c_proj"), [hidden, q], false, 0),
        mlp_norm: name("ln_2.weight"),
        gate_up: vec![
            linear(name("mlp.w1"), [inner, hidden], false, inner),
            linear(name("mlp.w2"), [inner, hidden], false, 0),
        ],
        down: linear(name("mlp.c_proj"), [hidden, inner], false, 0),
    }
}

/// Qwen1.5 to Qwen3 (transformers, modeling_qwen2.py and modeling_qwen3.py).
fn block_v2(spec: &Spec, layer: usize) -> BlockNames {
    let name = |part: &str| format!("model.layers.{layer}.{part}");
    let (hidden, inner, bias) = (spec.hidden, spec.intermediate, spec.qkv_bias);
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    BlockNames {
        attention_norm: name("input_layernorm.weight"),
        qkv: vec![
            linear(name("self_attn.q_proj"), [q, hidden], bias, 0),
            linear(name("self_attn.k_proj"), [kv, hidden], bias, q),
            linear(name("self_attn.v_proj"), [kv, hidden], bias, q + kv),
        ],
        qk_norm: spec.qk_norm.then(|| [name("self_attn.q_norm.weight"), name("self_attn.k_norm.weight")]),
        attention_out: linear(name("self_attn.o_proj"), [hidden, q], false, 0),
        mlp_norm: name("post_attention_layernorm.weight"),
        gate_up: vec![
            linear(name("mlp.gate_proj"), [inner, hidden], false, 0),
            linear(name("mlp.up_proj"), [inner, hidden], false, inner),
        ],
        down: linear(name("mlp.down_proj"), [hidden, inner], false, 0),
    }
}

/// Names outside the blocks.
#[must_use]
pub fn top(spec: &Spec) -> TopNames {
    let (embedding, norm) = match spec.family {
        Family::QwenV1 => ("transformer.wte.weight", "transformer.ln_f.weight"),
        Family::Qwen2 | Family::Qwen3 => ("model.embed_tokens.weight", "model.norm.weight"),
    };
    let head = if spec.tied { embedding } else { STORED_HEAD };
    TopNames { embedding: embedding.into(), norm: norm.into(), head: head.into() }
}

/// The output head's tensor in files that store one; those of tied models may, as a copy of the embedding.
pub const STORED_HEAD: &str = "lm_head.weight";

/// Checks that a tied model's folder, where it stores an output head all the same, stores a copy of the
/// embedding: nothing else is trained or read as the head.
///
/// # Errors
/// [`crate::error::Kind::Input`] naming both tensors.
pub fn check_stored_head(spec: &Spec, weights: &WeightMap) -> Result<()> {
    let names = top(spec);
    let (Some(head), Some(embedding)) = (weights.get(STORED_HEAD), weights.get(&names.embedding)) else {
        return Ok(());
    };
    if !spec.tied || head.same_values(&embedding) {
        return Ok(());
    }
    let (path, table) = (head.file.path().display(), &names.embedding);
    Err(Error::input(format!("{path}: {STORED_HEAD} differs from {table}, but tie_word_embeddings is true"))
        .hint("set tie_word_embeddings to false in config.json if the head was trained on its own"))
}

/// PEFT's name of an adapter matrix (`A` or `B`) of `module`.
#[must_use]
pub fn adapter_tensor(module: &str, matrix: char) -> String {
    format!("base_model.model.{module}.lora_{matrix}.weight")
}

/// Whether `module` is to get an adapter: PEFT's rule, the whole name or its end after a dot.
#[must_use]
pub fn is_target(targets: &Targets, module: &str) -> bool {
    match targets {
        Targets::AllLinear => true,
        Targets::Names(names) => names.iter().any(|name| matches(name, module)),
    }
}

fn matches(target: &str, module: &str) -> bool {
    module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Checks that every target names at least one of `modules`.
///
/// # Errors
/// [`crate::error::Kind::Usage`]: lists the targets that match nothing and the names there are.
pub fn check_targets<'a>(
    targets: &Targets,
    modules: impl Iterator<Item = &'a LinearName> + Clone,
) -> Result<()> {
    let Targets::Names(names) = targets else {
        return Ok(());
    };
    let unmatched: Vec<&str> = names
        .iter()
        .filter(|name| !modules.clone().any(|linear| matches(name, &linear.module)))
        .map(String::as_str)
        .collect();
    if names.is_empty() || !unmatched.is_empty() {
        let what = if names.is_empty() {
            "no target modules are named".into()
        } else {
            format!("target modules that this model does not have: {}", unmatched.join(", "))
        };
        let mut there: Vec<&str> = Vec::new();
        for name in modules.map(|linear| short(&linear.module)) {
            if !there.contains(&name) {
                there.push(name);
            }
        }
        return Err(
            Error::usage(what).hint(format!("it has {}; all-linear means all of them", there.join(", ")))
        );
    }
    Ok(())
}

/// The shortest name of a linear layer that is clear within its block: the last part of the module's, or two where
/// that is ambiguous (v1's `c_proj`).
#[must_use]
pub fn short(module: &str) -> &str {
    let parts = |count: usize| {
        module.rmatch_indices('.').nth(count - 1).map_or(module, |(dot, _)| &module[dot + 1..])
    };
    if parts(1) == "c_proj" { parts(2) } else { parts(1) }
}

/// The distinct target names of these modules, sorted, as PEFT lists them.
#[must_use]
pub fn target_names<'a>(modules: impl Iterator<Item = &'a str>) -> Vec<String> {
    let found: std::collections::BTreeSet<&str> = modules.map(short).collect();
    found.into_iter().map(str::to_owned).collect()
}
