//! Shapes of released models, as their `config.json` has them: what a benchmark without files is made from.

use crate::config::read::edit_distance;
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// A released size of one family.
struct Shape {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    tied: bool,
    family: Family,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Qwen-7B and its kin (`intermediate_size` is that of both halves together).
    Qwen1,
    /// Qwen1.5, 2 and 2.5.
    Qwen2,
    /// Qwen3, heads of 128.
    Qwen3,
}

macro_rules! shapes {
    ($($name:literal $family:ident $hidden:literal $intermediate:literal $layers:literal $heads:literal $kv:literal $vocab:literal $tied:literal;)*) => {
        &[$(Shape {
            name: $name, hidden: $hidden, intermediate: $intermediate, layers: $layers, heads: $heads, kv_heads: $kv,
            vocab: $vocab, tied: $tied, family: Family::$family,
        }),*]
    };
}

/// Sizes as the models' own configurations give them; `tiny` is none of them and takes a moment.
#[rustfmt::skip]
const SHAPES: &[Shape] = shapes! {
    "tiny"          Qwen2  256   704  2  4  2   1024 true;
    "qwen-1.8b"     Qwen1 2048 11008 24 16 16 151936 false;
    "qwen-7b"       Qwen1 4096 22016 32 32 32 151936 false;
    "qwen1.5-0.5b"  Qwen2 1024  2816 24 16 16 151936 true;
    "qwen1.5-7b"    Qwen2 4096 11008 32 32 32 151936 false;
    "qwen2.5-0.5b"  Qwen2  896  4864 24 14  2 151936 true;
    "qwen2.5-1.5b"  Qwen2 1536  8960 28 12  2 151936 true;
    "qwen2.5-3b"    Qwen2 2048 11008 36 16  2 151936 true;
    "qwen2.5-7b"    Qwen2 3584 18944 28 28  4 152064 false;
    "qwen2.5-14b"   Qwen2 5120 13824 48 40  8 152064 false;
    "qwen2.5-32b"   Qwen2 5120 27648 64 40  8 152064 false;
    "qwen2.5-72b"   Qwen2 8192 29568 80 64  8 152064 false;
    "qwen3-0.6b"    Qwen3 1024  3072 28 16  8 151936 true;
    "qwen3-1.7b"    Qwen3 2048  6144 28 16  8 151936 true;
    "qwen3-4b"      Qwen3 2560  9728 36 32  8 151936 true;
    "qwen3-8b"      Qwen3 4096 12288 36 32  8 151936 false;
    "qwen3-14b"     Qwen3 5120 17408 40 40  8 151936 false;
    "qwen3-32b"     Qwen3 5120 25600 64 64  8 151936 false;
};

/// The names, smallest first within a family.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The `config.json` of a released size.
///
/// # Errors
/// An unknown name, with the nearest known one.
pub fn config(name: &str) -> Result<Value> {
    let wanted = name.to_ascii_lowercase();
    let shape = SHAPES.iter().find(|shape| shape.name == wanted).ok_or_else(|| {
        let near = names().min_by_key(|known| edit_distance(&wanted, known)).unwrap_or_default();
        let all: Vec<&str> = names().collect();
        Error::usage(format!("--shape {name} is not known"))
            .hint(format!("did you mean {near}? Known are {}", all.join(", ")))
    })?;
    Ok(match shape.family {
        Family::Qwen1 => qwen1(shape),
        Family::Qwen2 => llama_like(shape, "qwen2", "Qwen2ForCausalLM"),
        Family::Qwen3 => {
            let mut config = llama_like(shape, "qwen3", "Qwen3ForCausalLM");
            config["head_dim"] = json!(128);
            config["attention_bias"] = json!(false);
            config
        }
    })
}

fn llama_like(shape: &Shape, model_type: &str, architecture: &str) -> Value {
    json!({
        "architectures": [architecture], "model_type": model_type, "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocab,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "max_position_embeddings": 32768,
        "tie_word_embeddings": shape.tied, "torch_dtype": "bfloat16",
    })
}

fn qwen1(shape: &Shape) -> Value {
    json!({
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "kv_channels": shape.hidden / shape.heads, "vocab_size": shape.vocab,
        "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0, "seq_length": 8192,
        "max_position_embeddings": 8192, "use_dynamic_ntk": true, "use_logn_attn": true, "no_bias": true,
        "tie_word_embeddings": shape.tied,
    })
}
