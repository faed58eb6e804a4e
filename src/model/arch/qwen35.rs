//! Qwen3.5, 3.6 and 3.8 dense text models, `Qwen3_5ForCausalLM` and the language part of `Qwen3_5ForConditionalGeneration`:
//! keys and names of transformers' `qwen3_5`. Three layers of Gated DeltaNet, then one of gated attention.

use super::Family;
use super::qwen2::swiglu;
use crate::error::Result;
use crate::model::config::{Config, brief, most};
use crate::model::rotary::Rotary;
use crate::model::spec::{
    AttentionSpec, GatedDeltaSpec, LayerSpec, LinearSpec, MixerSpec, MlpSpec, NormSpec, Spec, TensorSpec,
};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_5",
    model_types: &["qwen3_5", "qwen3_5_text"],
    architectures: &["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"],
    models: "Qwen3.5, 3.6, 3.8 dense, their text",
    read,
};

/// What the language part's tensors begin with in models with towers. A text model that was loaded from such a folder keeps
/// the name when it is saved: which one it is, the tensors tell.
const STORED_PREFIX: &str = "model.language_model.";

/// What a model with towers says of them.
const TOWERS: &[&str] = &[
    "vision_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "language_model_only",
];

/// What the text part says of the prediction of further tokens, which is not trained, and of the types that engines
/// compute in.
const ELSEWHERE: &[&str] = &[
    "architectures",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "mamba_ssm_dtype",
    "model_type",
    "full_attention_interval",
];

fn read(root: &Config) -> Result<Spec> {
    let inner = root.object("text_config")?;
    let config = inner.as_ref().unwrap_or(root);
    root.refuse_quantised()?;
    config.refuse_quantised()?;
    config.refuse_unsupported()?;
    config.only("attn_output_gate", true, "attention without output gates is not supported")?;
    config.only("attention_bias", false, "Qwen3.5 with biases is not supported")?;
    config.no_dropout(&["attention_dropout"])?;
    refuse_variants(config)?;
    root.ignore(TOWERS);
    config.ignore(ELSEWHERE);
    let shape = Shape::read(config)?;
    let layers = config.size(&["num_hidden_layers"], most::LAYERS, None)?;
    let full = full_layers(config, layers)?;
    let spec = Spec {
        family: FAMILY.name,
        hidden: shape.hidden,
        vocab: config.size(&["vocab_size"], most::VOCAB, None)?,
        embedding: "model.embed_tokens.weight".into(),
        layers: full.iter().enumerate().map(|(layer, full)| shape.layer(layer, *full)).collect(),
        norm: shape.norm("model.norm.weight".into(), shape.hidden),
        tied: tied(root, inner.as_ref())?,
        stored_prefix: root.has_tensors(STORED_PREFIX, inner.is_some()).then_some(STORED_PREFIX),
        max_positions: config.size(&["max_position_embeddings"], most::POSITIONS, Some(32768))?,
        longest_text: None,
        eos: if config.value("eos_token_id").is_some() { config.eos()? } else { root.eos()? },
        pad: config.pad()?,
    };
    // The caller looks at the root.
    config.refuse_unknown()?;
    Ok(spec)
}

/// Keys of relatives, with the values that are supported.
fn refuse_variants(config: &Config) -> Result<()> {
    if config.value("mlp_only_layers").is_some_and(|v| v.as_array().is_none_or(|list| !list.is_empty())) {
        return Err(config.fault("mlp_only_layers: mixture of experts is not supported"));
    }
    match config.text("output_gate_type")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => {
            Err(config.fault(format_args!("output_gate_type {other:?} is not supported, silu is")))
        }
    }
}

/// Whether the head is the embedding; root and text part must agree.
fn tied(root: &Config, inner: Option<&Config>) -> Result<bool> {
    let key = "tie_word_embeddings";
    let Some(inner) = inner else { return root.flag(key, false) };
    match (root.value(key).is_some(), inner.value(key).is_some()) {
        (true, true) if root.flag(key, false)? != inner.flag(key, false)? => {
            Err(root.fault("tie_word_embeddings is not the same in text_config"))
        }
        (true, _) => root.flag(key, false),
        _ => inner.flag(key, false),
    }
}

/// Which layers attend; the others are linear.
fn full_layers(config: &Config, layers: usize) -> Result<Vec<bool>> {
    let Some(types) = config.layer_types(layers)? else {
        let interval = config.size(&["full_attention_interval"], most::LAYERS, Some(4))?;
        return Ok((1..=layers).map(|n| n.is_multiple_of(interval)).collect());
    };
    let kind = |kind: &serde_json::Value| match kind.as_str() {
        Some("full_attention") => Ok(true),
        Some("linear_attention") => Ok(false),
        _ => Err(config.fault(format_args!("layer_types: {} is not supported", brief(kind)))),
    };
    types.iter().map(kind).collect()
}

/// What the layers are made of.
struct Shape {
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f32,
    rotary: Rotary,
    key_heads: usize,
    value_heads: usize,
    key_dim: usize,
    value_dim: usize,
    taps: usize,
}

impl Shape {
    fn read(config: &Config) -> Result<Self> {
        let hidden = config.size(&["hidden_size"], most::HIDDEN, None)?;
        let [heads, kv_heads] = config.heads()?;
        let head_dim = config.head_dim("head_dim", hidden, heads, Some(256))?;
        let size = |key, most, default| config.size(&[key], most, Some(default));
        let (key_heads, value_heads) = (
            size("linear_num_key_heads", most::HEADS, 16)?,
            size("linear_num_value_heads", most::HEADS, 32)?,
        );
        if !value_heads.is_multiple_of(key_heads) {
            return Err(config.fault(format_args!(
                "linear_num_value_heads {value_heads} is not a multiple of linear_num_key_heads {key_heads}"
            )));
        }
        Ok(Shape {
            hidden,
            inner: config.size(&["intermediate_size"], most::INTERMEDIATE, None)?,
            heads,
            kv_heads,
            head_dim,
            eps: config.number(&["rms_norm_eps"], 1e-12, 0.1, 1e-6)? as f32,
            rotary: rotary(config, head_dim)?,
            key_heads,
            value_heads,
            key_dim: size("linear_key_head_dim", most::HEAD_DIM, 128)?,
            value_dim: size("linear_value_head_dim", most::HEAD_DIM, 128)?,
            taps: size("linear_conv_kernel_dim", 64, 4)?,
        })
    }

    /// Norms whose stored weight is the distance from 1.
    fn norm(&self, name: String, len: usize) -> NormSpec {
        NormSpec { offset: 1.0, ..NormSpec::new(name, len, self.eps) }
    }

    fn layer(&self, layer: usize, full: bool) -> LayerSpec {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let norm = |part: &str| self.norm(name(part), self.hidden);
        let mixer = if full {
            MixerSpec::Attention(self.attention(layer))
        } else {
            MixerSpec::GatedDelta(self.delta(layer))
        };
        LayerSpec {
            mixer_norm: norm("input_layernorm.weight"),
            mixer,
            mlp_norm: norm("post_attention_layernorm.weight"),
            mlp: MlpSpec::SwiGlu(swiglu(&name("mlp"), self.hidden, self.inner)),
        }
    }

    fn attention(&self, layer: usize) -> AttentionSpec {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let Shape { hidden, heads, kv_heads, head_dim, .. } = *self;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let norm = |part: &str| self.norm(name(part), head_dim);
        AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            rotary: self.rotary,
            logn: None,
            qk_norm: Some([norm("q_norm.weight"), norm("k_norm.weight")]),
            // Of each head first the query, then its output's gate.
            gated: true,
            input: vec![
                LinearSpec::new(name("q_proj"), [2 * q, hidden]),
                LinearSpec::new(name("k_proj"), [kv, hidden]).at(2 * q),
                LinearSpec::new(name("v_proj"), [kv, hidden]).at(2 * q + kv),
            ],
            output: LinearSpec::new(name("o_proj"), [hidden, q]),
        }
    }

    fn delta(&self, layer: usize) -> GatedDeltaSpec {
        let name = |part: &str| format!("model.layers.{layer}.linear_attn.{part}");
        let Shape { hidden, key_heads, value_heads, key_dim, value_dim, taps, eps, .. } = *self;
        let v = value_heads * value_dim;
        let qkv = 2 * key_heads * key_dim + v;
        let heads = |part: &str| TensorSpec { name: name(part), shape: vec![value_heads] };
        GatedDeltaSpec {
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            convolution: TensorSpec { name: name("conv1d.weight"), shape: vec![qkv, 1, taps] },
            a_log: heads("A_log"),
            dt_bias: heads("dt_bias"),
            // Not zero-centred, unlike the others.
            norm: NormSpec::new(name("norm.weight"), value_dim, eps),
            input: vec![
                LinearSpec::new(name("in_proj_qkv"), [qkv, hidden]),
                LinearSpec::new(name("in_proj_z"), [v, hidden]).at(qkv),
                LinearSpec::new(name("in_proj_b"), [value_heads, hidden]).at(qkv + v),
                LinearSpec::new(name("in_proj_a"), [value_heads, hidden]).at(qkv + v + value_heads),
            ],
            output: LinearSpec::new(name("out_proj"), [hidden, v]),
        }
    }
}

/// Rotary positions on the first part of a head. For text the three positions of `mrope_section` are equal, so it is plain.
fn rotary(config: &Config, head_dim: usize) -> Result<Rotary> {
    let inner = config.object("rope_parameters")?;
    let inner = inner.as_ref();
    if let Some(kind) = inner.map(|keys| keys.text("rope_type")).transpose()?.flatten()
        && kind != "default"
    {
        return Err(config
            .fault(format_args!("rope_parameters: rope_type {kind:?} is not supported"))
            .hint("models are trained here with the rotary embeddings of their pre-training"));
    }
    let from = |key: &'static str, least: f64, most: f64| -> Result<Option<f64>> {
        let place = inner.filter(|keys| keys.value(key).is_some()).unwrap_or(config);
        let there = place.value(key).is_some();
        place.number(&[key], least, most, least).map(|n| there.then_some(n))
    };
    let theta = from("rope_theta", 1.0, 1e12)?.ok_or_else(|| config.fault("rope_theta is missing"))?;
    let factor = from("partial_rotary_factor", 0.0, 1.0)?.unwrap_or(0.25);
    let dims = (head_dim as f64 * factor) as usize;
    if dims < 2 || !dims.is_multiple_of(2) {
        return Err(config.fault(format_args!(
            "partial_rotary_factor {factor} of heads of {head_dim} is {dims} elements, expected an even number"
        )));
    }
    Ok(Rotary { dims, theta, dynamic_ntk: None })
}
