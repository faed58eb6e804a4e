//! GGUF, the file format of ggml (its specification: `docs/gguf.md` of that project): LoRA adapters as llama.cpp, Ollama
//! and others load them beside a base model. Names are those of llama.cpp's `gguf-py`, `tensor_mapping.py`.

use super::peft::{Adapter, split_name};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensors begin at multiples of this, `general.alignment`'s default.
const ALIGNMENT: usize = 32;

/// Types of values and of tensors' elements.
const TEXT: u32 = 8;
const FLOAT: u32 = 6;
const F32: u32 = 0;

/// A linear layer's name in files of Hugging Face, and in ggml's. None is permuted: the rotary embedding of these
/// architectures turns halves there too.
const LAYERS: [(&str, &str); 12] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.w1", "ffn_up"),
    ("mlp.w2", "ffn_gate"),
    ("mlp.c_proj", "ffn_down"),
];

/// Families that ggml has under the name they have here.
const FAMILIES: [&str; 3] = ["qwen", "qwen2", "qwen3"];

/// A file that holds the adapter, for a base of `family`. llama.cpp multiplies B·A by the file's one alpha over the rank,
/// which it takes from the shape of B. `alpha_of` gives the alpha that has this meaning for a module and its rank: where
/// it is not that of the file, the difference is multiplied into B.
///
/// # Errors
/// Usage: a family, a layer or an alpha that llama.cpp has no form for; those of `alpha_of`.
pub fn encode_adapter(
    adapter: &Adapter,
    family: &str,
    alpha_of: &dyn Fn(&str, usize) -> Result<f64>,
) -> Result<Vec<u8>> {
    if !FAMILIES.contains(&family) {
        return Err(Error::usage(format!("an adapter of a {family} model cannot be written as GGUF"))
            .hint("merge it into its base, and convert the merged folder with llama.cpp's own converter"));
    }
    let mut file_alpha = None;
    let mut tensors = BTreeMap::new();
    for tensor in &adapter.tensors {
        let (module, matrix) = split_name(&tensor.name)
            .ok_or_else(|| Error::input(format!("{} is no tensor of a LoRA adapter", tensor.name)))?;
        let rank = if matrix == 'A' { tensor.shape[0] } else { tensor.shape[1] };
        let alpha = alpha_of(module, rank)?;
        if alpha == 0.0 {
            return Err(Error::usage(format!("{module} has alpha 0, which llama.cpp reads as none given")));
        }
        let factor = alpha / *file_alpha.get_or_insert(alpha);
        let mut values = tensor.values.clone();
        if matrix == 'B' && factor != 1.0 {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        let name = format!("{}.weight.lora_{}", layer(module)?, matrix.to_ascii_lowercase());
        tensors.insert(name, (tensor.shape, values));
    }
    Ok(encode(family, file_alpha.unwrap_or(1.0), &tensors))
}

/// ggml's name of a module, `model.layers.3.mlp.up_proj` or `transformer.h.3.mlp.w1`.
fn layer(module: &str) -> Result<String> {
    let unknown = || Error::usage(format!("llama.cpp has no name for an adapter of {module}"));
    let numbered = ["model.layers.", "transformer.h."].iter().find_map(|prefix| {
        let at = module.find(prefix)? + prefix.len();
        module[at..].split_once('.')
    });
    let Some((number, rest)) = numbered else { return Err(unknown()) };
    let found = LAYERS.iter().find(|(theirs, _)| *theirs == rest);
    match (number.parse::<u32>(), found) {
        (Ok(number), Some((_, name))) => Ok(format!("blk.{number}.{name}")),
        _ => Err(unknown()),
    }
}

fn text(value: &str, out: &mut Vec<u8>) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

fn encode(architecture: &str, alpha: f64, tensors: &BTreeMap<String, ([usize; 2], Vec<f32>)>) -> Vec<u8> {
    let texts =
        [("general.architecture", architecture), ("general.type", "adapter"), ("adapter.type", "lora")];
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((texts.len() as u64 + 1).to_le_bytes());
    for (key, value) in texts {
        text(key, &mut out);
        out.extend(TEXT.to_le_bytes());
        text(value, &mut out);
    }
    text("adapter.lora.alpha", &mut out);
    out.extend(FLOAT.to_le_bytes());
    out.extend((alpha as f32).to_le_bytes());
    let mut offset = 0u64;
    for (name, ([rows, columns], values)) in tensors {
        text(name, &mut out);
        out.extend(2u32.to_le_bytes());
        // The innermost dimension comes first.
        for size in [*columns, *rows] {
            out.extend((size as u64).to_le_bytes());
        }
        out.extend(F32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (4 * values.len()).next_multiple_of(ALIGNMENT) as u64;
    }
    for (_, values) in tensors.values() {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    out
}
