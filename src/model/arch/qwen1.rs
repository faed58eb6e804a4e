//! Qwen-7B v1 and its sizes, `QWenLMHeadModel`: keys, names and defaults of `modeling_qwen.py`.

use super::Family;
use crate::error::Result;
use crate::model::config::{Config, most};
use crate::model::rotary::Rotary;
use crate::model::spec::{
    AttentionSpec, LayerSpec, LinearSpec, MixerSpec, MlpSpec, NormSpec, Spec, SwiGluSpec,
};

pub(super) const FAMILY: Family = Family {
    name: "qwen",
    model_types: &["qwen"],
    architectures: &["QWenLMHeadModel"],
    models: "Qwen v1",
    read,
};

/// Positions for which `modeling_qwen.py` has a logarithm.
const LONGEST: usize = 32767;

fn read(config: &Config) -> Result<Spec> {
    config.refuse_unsupported()?;
    config.only("no_bias", true, "biases outside c_attn are not supported")?;
    config.only("scale_attn_weights", true, "unscaled attention is not supported")?;
    config.only(
        "apply_residual_connection_post_layernorm",
        false,
        "residuals after the norm are not supported",
    )?;
    config.no_dropout(&[
        "attn_dropout_prob",
        "emb_dropout_prob",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
    ])?;
    config.number(&["rotary_pct"], 1.0, 1.0, 1.0)?;
    let doubled = config.size(&["intermediate_size", "ffn_hidden_size"], most::INTERMEDIATE, None)?;
    if !doubled.is_multiple_of(2) {
        return Err(
            config.fault(format_args!("intermediate_size is {doubled}, odd; w1 and w2 are half of it each"))
        );
    }
    let hidden = config.size(&["hidden_size", "n_embd"], most::HIDDEN, None)?;
    let heads = config.size(&["num_attention_heads", "n_head"], most::HEADS, None)?;
    let head_dim = config.head_dim("kv_channels", hidden, heads, None)?;
    if head_dim * heads != hidden {
        return Err(config
            .fault(format_args!("kv_channels {head_dim} times {heads} heads is not hidden_size {hidden}")));
    }
    // Beyond seq_length the position encoding changes (NTK, log n); training stays within it.
    let positions = config.size(&["max_position_embeddings", "n_positions"], most::POSITIONS, Some(8192))?;
    let max_positions = config.size(&["seq_length"], most::POSITIONS, Some(positions))?;
    let eps = config.number(&["layer_norm_epsilon"], 1e-12, 0.1, 1e-6)? as f32;
    let dynamic_ntk = config.flag("use_dynamic_ntk", true)?;
    let shape = Shape {
        hidden,
        inner: doubled / 2,
        heads,
        head_dim,
        eps,
        rotary: Rotary {
            dims: head_dim,
            theta: config.number(&["rotary_emb_base"], 1.0, 1e12, 10000.0)?,
            dynamic_ntk: dynamic_ntk.then_some(max_positions),
        },
        logn: config.flag("use_logn_attn", true)?.then_some(max_positions),
    };
    let layers = config.size(&["num_hidden_layers", "n_layer"], most::LAYERS, None)?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let embedding = "transformer.wte.weight";
    Ok(Spec {
        family: FAMILY.name,
        hidden,
        vocab: config.size(&["vocab_size", "padded_vocab_size"], most::VOCAB, None)?,
        embedding: embedding.into(),
        layers: (0..layers).map(|layer| shape.layer(layer)).collect(),
        norm: NormSpec::new("transformer.ln_f.weight".into(), hidden, eps),
        tied,
        max_positions,
        longest_text: dynamic_ntk.then_some(LONGEST),
        eos: config.eos()?,
        pad: config.pad()?,
    })
}

/// What every layer has.
struct Shape {
    hidden: usize,
    /// Half of `intermediate_size`.
    inner: usize,
    heads: usize,
    head_dim: usize,
    eps: f32,
    rotary: Rotary,
    logn: Option<usize>,
}

impl Shape {
    fn layer(&self, layer: usize) -> LayerSpec {
        let name = |part: &str| format!("transformer.h.{layer}.{part}");
        let Shape { hidden, inner, heads, head_dim, eps, .. } = *self;
        let q = heads * head_dim;
        LayerSpec {
            mixer_norm: NormSpec::new(name("ln_1.weight"), hidden, eps),
            mixer: MixerSpec::Attention(AttentionSpec {
                heads,
                kv_heads: heads,
                head_dim,
                rotary: self.rotary,
                logn: self.logn,
                qk_norm: None,
                // One layer for q, k and v.
                input: vec![LinearSpec::new(name("attn.c_attn"), [3 * q, hidden]).with_bias(true)],
                output: LinearSpec::new(name("attn.c_proj"), [hidden, q]),
            }),
            mlp_norm: NormSpec::new(name("ln_2.weight"), hidden, eps),
            mlp: MlpSpec::SwiGlu(SwiGluSpec {
                width: inner,
                // `w2` is the gate: `c_proj(w1(x) * silu(w2(x)))`.
                input: vec![
                    LinearSpec::new(name("mlp.w1"), [inner, hidden]).at(inner),
                    LinearSpec::new(name("mlp.w2"), [inner, hidden]),
                ],
                output: LinearSpec::new(name("mlp.c_proj"), [hidden, inner]),
            }),
        }
    }
}
