//! Qwen1.5, 2 and 2.5, `Qwen2ForCausalLM`; and what later families share with them: the keys and names of transformers'
//! dense models.

use super::Family;
use crate::error::Result;
use crate::model::config::{Config, most};
use crate::model::rotary::Rotary;
use crate::model::spec::{
    AttentionSpec, LayerSpec, LinearSpec, MixerSpec, MlpSpec, NormSpec, Spec, SwiGluSpec,
};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    architectures: &["Qwen2ForCausalLM"],
    models: "Qwen1.5, 2, 2.5",
    read,
};

fn read(config: &Config) -> Result<Spec> {
    config.only("attention_bias", true, "Qwen2 without biases is not supported")?;
    let variant = Variant { qkv_bias: true, qk_norm: false, head_dim: None };
    dense(config, FAMILY.name, variant)
}

/// Where the dense families differ.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// RMSNorm of each head of q and k.
    pub qk_norm: bool,
    /// Head size where the file gives none; `None`: `hidden_size` divided by the heads.
    pub head_dim: Option<usize>,
}

/// The keys of `modeling_qwen2.py` and `modeling_qwen3.py`.
pub(super) fn dense(config: &Config, family: &'static str, variant: Variant) -> Result<Spec> {
    config.refuse_unsupported()?;
    config.no_dropout(&["attention_dropout"])?;
    let layers = config.size(&["num_hidden_layers"], most::LAYERS, None)?;
    config.full_attention(layers)?;
    let hidden = config.size(&["hidden_size"], most::HIDDEN, None)?;
    let [heads, kv_heads] = config.heads()?;
    let head_dim = config.head_dim("head_dim", hidden, heads, variant.head_dim)?;
    let eps = config.number(&["rms_norm_eps"], 1e-12, 0.1, 1e-6)? as f32;
    let shape = Dense {
        variant,
        hidden,
        inner: config.size(&["intermediate_size"], most::INTERMEDIATE, None)?,
        heads,
        kv_heads,
        head_dim,
        eps,
        rotary: Rotary { dims: head_dim, theta: config.rope_theta()?, dynamic_ntk: None },
    };
    Ok(Spec {
        family,
        hidden,
        vocab: config.size(&["vocab_size"], most::VOCAB, None)?,
        embedding: "model.embed_tokens.weight".into(),
        layers: (0..layers).map(|layer| shape.layer(layer)).collect(),
        norm: NormSpec::new("model.norm.weight".into(), hidden, eps),
        tied: config.flag("tie_word_embeddings", false)?,
        max_positions: config.size(&["max_position_embeddings"], most::POSITIONS, Some(32768))?,
        longest_text: None,
        eos: config.eos()?,
        pad: config.pad()?,
    })
}

/// What every layer has.
struct Dense {
    variant: Variant,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f32,
    rotary: Rotary,
}

impl Dense {
    fn layer(&self, layer: usize) -> LayerSpec {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let norm = |part: &str, len| NormSpec::new(name(part), len, self.eps);
        LayerSpec {
            mixer_norm: norm("input_layernorm.weight", self.hidden),
            mixer: MixerSpec::Attention(self.attention(layer)),
            mlp_norm: norm("post_attention_layernorm.weight", self.hidden),
            mlp: MlpSpec::SwiGlu(swiglu(&name("mlp"), self.hidden, self.inner)),
        }
    }

    fn attention(&self, layer: usize) -> AttentionSpec {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let Dense { hidden, heads, kv_heads, head_dim, eps, .. } = *self;
        let Variant { qkv_bias, qk_norm, .. } = self.variant;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let norm = |part: &str| NormSpec::new(name(part), head_dim, eps);
        AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            rotary: self.rotary,
            logn: None,
            qk_norm: qk_norm.then(|| [norm("q_norm.weight"), norm("k_norm.weight")]),
            input: vec![
                LinearSpec::new(name("q_proj"), [q, hidden]).with_bias(qkv_bias),
                LinearSpec::new(name("k_proj"), [kv, hidden]).with_bias(qkv_bias).at(q),
                LinearSpec::new(name("v_proj"), [kv, hidden]).with_bias(qkv_bias).at(q + kv),
            ],
            output: LinearSpec::new(name("o_proj"), [hidden, q]),
        }
    }
}

/// The MLP that all of transformers' dense Qwen have.
pub(super) fn swiglu(module: &str, hidden: usize, inner: usize) -> SwiGluSpec {
    let name = |part: &str| format!("{module}.{part}");
    SwiGluSpec {
        width: inner,
        input: vec![
            LinearSpec::new(name("gate_proj"), [inner, hidden]),
            LinearSpec::new(name("up_proj"), [inner, hidden]).at(inner),
        ],
        output: LinearSpec::new(name("down_proj"), [hidden, inner]),
    }
}
