//! Tiny models of each family, with random weights, and rows for them: what the checks of whole training runs use.

use crate::config::{Settings, Strategy};
use crate::error::{Error, Result};
use crate::formats::publish;
use crate::formats::safetensors::{F32Tensor, encode_f32};
use crate::model::Spec;
use crate::philox::{Stream, uniform};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A family's tiny model.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    config: fn() -> Value,
}

/// Tokens that the tiny models know: an odd number, so that rows of logits do not end on a round place.
pub const VOCAB: usize = 157;

/// One of each kind: fused projections, grouped and equal numbers of heads, norms of heads, tied and untied heads, heads
/// of 64 and 128.
pub const FAMILIES: &[Family] = &[
    Family { name: "qwen", config: qwen },
    Family { name: "qwen1.5", config: || qwen2(2, false) },
    Family { name: "qwen2", config: || qwen2(1, true) },
    Family { name: "qwen3", config: qwen3 },
];

fn qwen() -> Value {
    json!({
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 2, "num_attention_heads": 2, "kv_channels": 64, "vocab_size": VOCAB,
        "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0, "seq_length": 1024,
        "max_position_embeddings": 1024, "use_dynamic_ntk": true, "use_logn_attn": true, "no_bias": true,
        "tie_word_embeddings": false,
    })
}

fn qwen2(kv_heads: usize, tied: bool) -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 128, "intermediate_size": 200,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": kv_heads, "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 1024, "hidden_act": "silu",
        "tie_word_embeddings": tied,
    })
}

fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 1024,
        "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true,
    })
}

/// Values between -`size` and `size`, rounded to bf16.
fn random(seed: u64, len: usize, size: f32) -> impl Iterator<Item = f32> {
    (0..len as u64).map(move |i| {
        let value = (2.0 * uniform(seed, Stream::LoraInit, i) - 1.0) as f32 * size;
        half::bf16::from_f32(value).to_f32()
    })
}

/// Writes the family's model to `folder`: every linear layer keeps the size of its input, norms are about 1.
///
/// # Errors
/// I/O errors.
pub fn write_model(family: &Family, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    publish::replace_file(&folder.join("config.json"), (family.config)().to_string().as_bytes())?;
    let spec = Spec::read(folder)?;
    let shapes = spec.tensors();
    let values: Vec<Vec<f32>> = (1..).zip(&shapes).map(|(seed, t)| tensor(seed, &t.name, &t.shape)).collect();
    let tensors: Vec<F32Tensor<'_>> = shapes
        .iter()
        .zip(&values)
        .map(|(t, values)| F32Tensor { name: &t.name, shape: &t.shape, values })
        .collect();
    publish::replace_file(&folder.join("model.safetensors"), &encode_f32(&tensors))
}

fn tensor(seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
    let len = shape.iter().product();
    let is_norm = shape.len() == 1 && !name.ends_with(".bias");
    if is_norm {
        return random(seed, len, 0.25).map(|v| half::bf16::from_f32(1.0 + v).to_f32()).collect();
    }
    let inner = if shape.len() == 2 { shape[1] } else { 16 };
    random(seed, len, (3.0 / inner as f32).sqrt()).collect()
}

/// Writes `count` rows of 5 to 60 tokens, of which those behind the first third are scored.
///
/// # Errors
/// I/O errors.
pub fn write_rows(path: &Path, count: usize, seed: u64) -> Result<()> {
    let mut text = String::new();
    let draw = |i: u64, n: usize| (uniform(seed, Stream::LoraInit, i) * n as f64) as usize;
    for row in 0..count as u64 {
        let len = 5 + draw(row << 32, 56);
        let ids: Vec<usize> = (1..=len as u64).map(|i| draw(row << 32 | i, VOCAB)).collect();
        let labels: Vec<i64> =
            ids.iter().enumerate().map(|(i, id)| if i < len / 3 { -100 } else { *id as i64 }).collect();
        text += &json!({ "input_ids": ids, "labels": labels }).to_string();
        text.push('\n');
    }
    publish::replace_file(path, text.as_bytes())
}

/// Settings of a small run: batches of two rows, two micro-batches a step, with dropout. Model and data are in `folder`, and
/// so is the output, under `run`.
#[must_use]
pub fn settings(folder: &Path, steps: u64) -> Settings {
    Settings {
        model: folder.join("model"),
        train_files: vec![folder.join("rows.jsonl")],
        output_dir: folder.join("run"),
        cache_dir: Some(folder.join("cache")),
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        num_train_epochs: 100.0,
        max_steps: Some(steps),
        learning_rate: 2e-3,
        lora_r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.1,
        // Ranks that differ within a group, and a block after the first with the largest.
        lora_rank_pattern: BTreeMap::from([
            ("(o|attn.c)_proj".into(), 11),
            ("(layers|h).1.mlp.(up_proj|w1)".into(), 17),
        ]),
        save_strategy: Strategy::Steps,
        save_steps: 1.0,
        ..Settings::default()
    }
}
