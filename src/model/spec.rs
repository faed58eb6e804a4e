//! `config.json` of a Qwen folder, checked and reduced to what the engine needs.
//!
//! Keys, defaults and the tensors they imply are those of the released folders and of the model files that
//! read them: `modeling_qwen.py` for Qwen v1, transformers' `qwen2` and `qwen3`.

use crate::error::{Error, Result};
use crate::formats::json::{self, Object};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest `config.json` that is read.
pub const MAX_BYTES: u64 = 1 << 20;

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
    /// Beyond `max_positions` the rotary base grows with the length (Qwen v1's dynamic NTK), in generation.
    pub dynamic_ntk: bool,
    /// Beyond `max_positions` queries grow with the logarithm of their position (Qwen v1), in generation.
    pub logn: bool,
    /// `eos_token_id`: ids that end a text; empty when the file names none.
    pub eos: Vec<u32>,
    /// `pad_token_id`, where the file has one.
    pub pad: Option<u32>,
}

/// Positions for which Qwen v1's modeling_qwen.py has a logarithm.
const LONGEST_V1: usize = 32767;

impl Spec {
    /// Longest text, prompt and answer together, that can be generated.
    #[must_use]
    pub fn longest_text(&self) -> usize {
        if self.dynamic_ntk { self.max_positions.max(LONGEST_V1) } else { self.max_positions }
    }

    /// Elements of the base model's weights, a tied head counted once.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        let n = |count: usize| count as u64;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = n(q + 2 * kv) * n(self.hidden + usize::from(self.qkv_bias)) + n(q) * n(self.hidden);
        let qk_norm = if self.qk_norm { 2 * n(self.head_dim) } else { 0 };
        let block = attention + qk_norm + 3 * n(self.hidden) * n(self.intermediate) + 2 * n(self.hidden);
        let tables = if self.tied { 1 } else { 2 };
        tables * n(self.vocab) * n(self.hidden) + n(self.layers) * block + n(self.hidden)
    }
}

/// Reads `folder/config.json`.
///
/// # Errors
/// Names the key, what is wrong with it, and what is not supported (MoE, sliding window, vision, quantised).
pub fn read(folder: &Path) -> Result<Spec> {
    let path = folder.join("config.json");
    let keys = json::read_object(&path, MAX_BYTES)?;
    let config = Config { path, keys };
    let family = config.family()?;
    config.refuse_unsupported()?;
    match family {
        Family::QwenV1 => config.qwen_v1(),
        Family::Qwen2 | Family::Qwen3 => config.qwen2_or_3(family),
    }
}

struct Config {
    path: PathBuf,
    keys: Object,
}

impl Config {
    fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{}: {what}", self.path.display()))
    }

    /// The value of the key, where it is there and not null.
    fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// The value under any of its spellings; two that disagree are refused.
    fn spelled(&self, spellings: &[&'static str]) -> Result<Option<(&'static str, &Value)>> {
        let mut found: Option<(&'static str, &Value)> = None;
        for &key in spellings {
            match (found, self.value(key)) {
                (Some((first, one)), Some(two)) if one.as_f64() != two.as_f64() => {
                    return Err(self.fault(format_args!(
                        "{first} is {} but {key} is {}",
                        brief(one),
                        brief(two)
                    )));
                }
                (None, Some(value)) => found = Some((key, value)),
                _ => {}
            }
        }
        Ok(found)
    }

    /// An integer within 1..=most; absent: `default`, and without one an error.
    fn size(&self, spellings: &[&'static str], most: u64, default: Option<usize>) -> Result<usize> {
        let Some((key, value)) = self.spelled(spellings)? else {
            return default.ok_or_else(|| self.fault(format_args!("{} is missing", spellings[0])));
        };
        match value.as_u64() {
            Some(n) if (1..=most).contains(&n) => Ok(n as usize),
            _ => {
                Err(self
                    .fault(format_args!("{key} is {}, expected an integer from 1 to {most}", brief(value))))
            }
        }
    }

    fn number(&self, spellings: &[&'static str], least: f64, most: f64, default: f64) -> Result<f64> {
        let Some((key, value)) = self.spelled(spellings)? else {
            return Ok(default);
        };
        self.number_within(key, value, least, most)
    }

    fn number_within(&self, key: &str, value: &Value, least: f64, most: f64) -> Result<f64> {
        match value.as_f64() {
            Some(n) if (least..=most).contains(&n) => Ok(n),
            _ => Err(self
                .fault(format_args!("{key} is {}, expected a number from {least} to {most}", brief(value)))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.fault(format_args!("{key} is {}, expected true or false", brief(other)))),
        }
    }

    /// Refuses the model unless the flag has the one value that is supported; absent means that value.
    fn only(&self, key: &str, supported: bool, why: &str) -> Result<()> {
        if self.flag(key, supported)? == supported {
            return Ok(());
        }
        Err(self.fault(format_args!("{key} is {}: {why}", !supported)))
    }

    /// Refuses dropout of the base model, which the released models do not have.
    fn no_dropout(&self, keys: &[&'static str]) -> Result<()> {
        for &key in keys {
            if self.number(&[key], 0.0, 1.0, 0.0)? != 0.0 {
                return Err(self
                    .fault(format_args!("{key} is not 0: dropout in the base model is not supported"))
                    .hint("set it to 0; --lora-dropout drops adapter inputs"));
            }
        }
        Ok(())
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.fault(format_args!("{key} is {}, expected a string", brief(other)))),
        }
    }
}

// ---- family and refusals ----------------------------------------------------------------------------------

const SUPPORTED: &str = "supported are QWenLMHeadModel (Qwen v1), Qwen2ForCausalLM (Qwen1.5, 2, 2.5) and \
                         Qwen3ForCausalLM (dense)";

impl Config {
    fn family(&self) -> Result<Family> {
        let architecture = match self.value("architectures") {
            None => None,
            Some(Value::Array(list)) => match list.as_slice() {
                [Value::String(one)] => Some(one.as_str()),
                [] => None,
                _ => return Err(self.fault("architectures names more than one, or something not a string")),
            },
            Some(_) => return Err(self.fault("architectures is not a list")),
        };
        let by_architecture = architecture.map(|name| match name {
            "QWenLMHeadModel" => Ok(Family::QwenV1),
            "Qwen2ForCausalLM" => Ok(Family::Qwen2),
            "Qwen3ForCausalLM" => Ok(Family::Qwen3),
            other => Err(self.unsupported("architecture", other)),
        });
        let by_type = self.text("model_type")?.map(|name| match name {
            "qwen" => Ok(Family::QwenV1),
            "qwen2" => Ok(Family::Qwen2),
            "qwen3" => Ok(Family::Qwen3),
            other => Err(self.unsupported("model_type", other)),
        });
        match (by_architecture.transpose()?, by_type.transpose()?) {
            (Some(a), Some(b)) if a != b => {
                Err(self.fault("architectures and model_type name different families"))
            }
            (Some(family), _) | (None, Some(family)) => Ok(family),
            (None, None) => Err(self.fault("neither architectures nor model_type is there").hint(SUPPORTED)),
        }
    }

    fn unsupported(&self, key: &str, name: &str) -> Error {
        let lower = name.to_ascii_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|p| lower.contains(p));
        let kind = if has(&["moe"]) {
            " (mixture of experts)"
        } else if has(&["vl", "vision", "omni"]) {
            " (vision)"
        } else if has(&["audio"]) {
            " (audio)"
        } else {
            ""
        };
        self.fault(format_args!("{key} {}{kind} is not supported", brief(&Value::from(name)))).hint(SUPPORTED)
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let named = [
            ("quantization_config", "quantised weights are not supported", "use the unquantised model"),
            ("num_experts", "mixture of experts is not supported", SUPPORTED),
            ("num_local_experts", "mixture of experts is not supported", SUPPORTED),
            ("vision_config", "vision models are not supported", SUPPORTED),
            ("visual", "vision models are not supported", SUPPORTED),
            ("audio_config", "audio models are not supported", SUPPORTED),
        ];
        for (key, why, remedy) in named {
            if self.value(key).is_some() {
                return Err(self.fault(format_args!("{key}: {why}")).hint(remedy));
            }
        }
        self.only("use_sliding_window", false, "sliding-window attention is not supported")?;
        self.only("mlp_bias", false, "biases in the MLP are not supported")?;
        for key in ["hidden_act", "activation"] {
            match self.text(key)? {
                None | Some("silu" | "swish" | "swiglu") => {}
                Some(other) => {
                    return Err(self.fault(format_args!("{key} {other:?} is not supported, silu is")));
                }
            }
        }
        self.refuse_rope_scaling()
    }

    fn refuse_rope_scaling(&self) -> Result<()> {
        match self.value("rope_scaling") {
            None => Ok(()),
            Some(Value::Object(keys)) if keys.is_empty() => Ok(()),
            Some(Value::Object(keys)) => self.default_rope("rope_scaling", keys),
            Some(_) => Err(self.fault("rope_scaling is not an object")),
        }
    }

    /// Whether the object describes plain rotary embeddings and nothing that changes them.
    fn default_rope(&self, name: &str, keys: &Object) -> Result<()> {
        for (key, value) in keys {
            let fine = match key.as_str() {
                "rope_type" | "type" => value == "default",
                "rope_theta" => true,
                "partial_rotary_factor" => value.as_f64() == Some(1.0),
                _ => value.is_null(),
            };
            if !fine {
                return Err(self
                    .fault(format_args!(
                        "{name}: {key} {} is not supported, only rope_type \"default\" is",
                        brief(value)
                    ))
                    .hint("models are trained here with the rotary embeddings of their pre-training"));
            }
        }
        Ok(())
    }
}

// ---- the families -----------------------------------------------------------------------------------------

const MAX_HIDDEN: u64 = 1 << 16;
const MAX_INTERMEDIATE: u64 = 1 << 20;
const MAX_LAYERS: u64 = 1024;
const MAX_HEADS: u64 = 1024;
const MAX_HEAD_DIM: u64 = 1024;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_POSITIONS: u64 = 1 << 24;

impl Config {
    fn qwen_v1(&self) -> Result<Spec> {
        self.only("no_bias", true, "biases outside c_attn are not supported")?;
        self.only("scale_attn_weights", true, "unscaled attention is not supported")?;
        self.only(
            "apply_residual_connection_post_layernorm",
            false,
            "residuals after the norm are not supported",
        )?;
        self.no_dropout(&[
            "attn_dropout_prob",
            "emb_dropout_prob",
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
        ])?;
        self.number(&["rotary_pct"], 1.0, 1.0, 1.0)?;
        let doubled = self.size(&["intermediate_size", "ffn_hidden_size"], MAX_INTERMEDIATE, None)?;
        if !doubled.is_multiple_of(2) {
            return Err(self
                .fault(format_args!("intermediate_size is {doubled}, odd; w1 and w2 are half of it each")));
        }
        let hidden = self.size(&["hidden_size", "n_embd"], MAX_HIDDEN, None)?;
        let heads = self.size(&["num_attention_heads", "n_head"], MAX_HEADS, None)?;
        let head_dim = self.head_dim("kv_channels", hidden, heads, None)?;
        if head_dim * heads != hidden {
            return Err(self.fault(format_args!(
                "kv_channels {head_dim} times {heads} heads is not hidden_size {hidden}"
            )));
        }
        let spec = Spec {
            family: Family::QwenV1,
            hidden,
            intermediate: doubled / 2,
            layers: self.size(&["num_hidden_layers", "n_layer"], MAX_LAYERS, None)?,
            heads,
            kv_heads: heads,
            head_dim,
            vocab: self.size(&["vocab_size", "padded_vocab_size"], MAX_VOCAB, None)?,
            norm_eps: self.number(&["layer_norm_epsilon"], 1e-12, 0.1, 1e-6)? as f32,
            rope_theta: self.number(&["rotary_emb_base"], 1.0, 1e12, 10000.0)?,
            // Beyond seq_length the position encoding changes (NTK, log n); training stays within it.
            max_positions: match self.value("seq_length") {
                Some(_) => self.size(&["seq_length"], MAX_POSITIONS, None)?,
                None => self.size(&["max_position_embeddings", "n_positions"], MAX_POSITIONS, Some(8192))?,
            },
            tied: self.flag("tie_word_embeddings", false)?,
            qkv_bias: true,
            qk_norm: false,
            dynamic_ntk: self.flag("use_dynamic_ntk", true)?,
            logn: self.flag("use_logn_attn", true)?,
            eos: self.eos()?,
            pad: self.pad()?,
        };
        Ok(spec)
    }

    fn qwen2_or_3(&self, family: Family) -> Result<Spec> {
        let qwen3 = family == Family::Qwen3;
        let why = if qwen3 {
            "Qwen3 with biases is not supported"
        } else {
            "Qwen2 without biases is not supported"
        };
        self.only("attention_bias", !qwen3, why)?;
        self.no_dropout(&["attention_dropout"])?;
        let layers = self.size(&["num_hidden_layers"], MAX_LAYERS, None)?;
        self.full_attention(layers)?;
        let hidden = self.size(&["hidden_size"], MAX_HIDDEN, None)?;
        let heads = self.size(&["num_attention_heads"], MAX_HEADS, None)?;
        let kv_heads =
            self.size(&["num_key_value_heads"], MAX_HEADS, self.null_means("num_key_value_heads", heads))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.fault(format_args!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        // transformers' Qwen3Config gives 128 where the file gives nothing, Qwen2 divides.
        let absent = if qwen3 { Some(128) } else { None };
        let spec = Spec {
            family,
            hidden,
            intermediate: self.size(&["intermediate_size"], MAX_INTERMEDIATE, None)?,
            layers,
            heads,
            kv_heads,
            head_dim: self.head_dim("head_dim", hidden, heads, absent)?,
            vocab: self.size(&["vocab_size"], MAX_VOCAB, None)?,
            norm_eps: self.number(&["rms_norm_eps"], 1e-12, 0.1, 1e-6)? as f32,
            rope_theta: self.rope_theta()?,
            max_positions: self.size(&["max_position_embeddings"], MAX_POSITIONS, Some(32768))?,
            tied: self.flag("tie_word_embeddings", false)?,
            qkv_bias: !qwen3,
            qk_norm: qwen3,
            dynamic_ntk: false,
            logn: false,
            eos: self.eos()?,
            pad: self.pad()?,
        };
        Ok(spec)
    }

    /// `default` for a key that is there with the value null, nothing for one that is absent.
    fn null_means(&self, key: &str, default: usize) -> Option<usize> {
        self.keys.get(key).is_some_and(Value::is_null).then_some(default)
    }

    fn head_dim(
        &self,
        key: &'static str,
        hidden: usize,
        heads: usize,
        absent: Option<usize>,
    ) -> Result<usize> {
        let default = match absent {
            Some(size) => size,
            None if self.value(key).is_none() && !hidden.is_multiple_of(heads) => {
                return Err(self.fault(format_args!(
                    "hidden_size {hidden} is not a multiple of {heads} attention heads"
                )));
            }
            None => hidden / heads,
        };
        let size = self.size(&[key], MAX_HEAD_DIM, Some(default))?;
        if size == 0 || !size.is_multiple_of(2) || size as u64 > MAX_HEAD_DIM {
            return Err(self.fault(format_args!(
                "head size {size}: rotary embeddings need an even one up to {MAX_HEAD_DIM}"
            )));
        }
        Ok(size)
    }

    /// `layer_types` of newer files: all layers attend to everything.
    fn full_attention(&self, layers: usize) -> Result<()> {
        let Some(types) = self.value("layer_types") else {
            return Ok(());
        };
        let Value::Array(types) = types else {
            return Err(self.fault("layer_types is not a list"));
        };
        if types.len() != layers {
            return Err(self.fault(format_args!(
                "layer_types has {} entries, num_hidden_layers is {layers}",
                types.len()
            )));
        }
        match types.iter().find(|t| *t != "full_attention") {
            None => Ok(()),
            Some(other) => Err(self.fault(format_args!(
                "layer_types: {} is not supported, only \"full_attention\" is",
                brief(other)
            ))),
        }
    }

    /// `rope_theta` of older files, `rope_parameters` of newer ones.
    fn rope_theta(&self) -> Result<f64> {
        let inner = match self.value("rope_parameters") {
            None => None,
            Some(Value::Object(keys)) => {
                self.default_rope("rope_parameters", keys)?;
                keys.get("rope_theta").filter(|v| !v.is_null())
            }
            Some(_) => return Err(self.fault("rope_parameters is not an object")),
        };
        let outer = self.number(&["rope_theta"], 1.0, 1e12, 10000.0)?;
        let Some(inner) = inner else {
            return Ok(outer);
        };
        let theta = self.number_within("rope_parameters.rope_theta", inner, 1.0, 1e12)?;
        if self.value("rope_theta").is_some() && outer != theta {
            return Err(
                self.fault(format_args!("rope_theta is {outer} but rope_parameters.rope_theta is {theta}"))
            );
        }
        Ok(theta)
    }

    fn eos(&self) -> Result<Vec<u32>> {
        match self.value("eos_token_id") {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|id| self.token("eos_token_id", id)).collect(),
            Some(id) => Ok(vec![self.token("eos_token_id", id)?]),
        }
    }

    fn pad(&self) -> Result<Option<u32>> {
        self.value("pad_token_id").map(|id| self.token("pad_token_id", id)).transpose()
    }

    fn token(&self, key: &str, id: &Value) -> Result<u32> {
        let token = id.as_u64().and_then(|n| u32::try_from(n).ok());
        token.ok_or_else(|| self.fault(format_args!("{key} is {}, expected a token id", brief(id))))
    }
}

/// The value as it may be printed in one line.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("…".chars()).collect() }
}
