//! Reading of a `config.json`: typed keys with their limits, and what no family supports.

use super::arch;
use crate::encoding;
use crate::error::{Error, Result};
use crate::formats::json::{self, Object};
use crate::formats::weight_map::WeightMap;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Largest `config.json` that is read.
pub const MAX_BYTES: u64 = 1 << 20;

/// Largest sizes that are read: what is beyond them is damage or an attack.
pub mod most {
    pub const HIDDEN: u64 = 1 << 16;
    pub const INTERMEDIATE: u64 = 1 << 20;
    pub const LAYERS: u64 = 1024;
    pub const HEADS: u64 = 1024;
    pub const HEAD_DIM: u64 = 1024;
    pub const VOCAB: u64 = 1 << 24;
    pub const POSITIONS: u64 = 1 << 24;
}

/// The keys of a `config.json`, or of an object within it.
pub struct Config {
    path: PathBuf,
    /// The object within the file, for messages.
    within: Option<&'static str>,
    keys: Object,
    /// The keys that were asked for.
    known: RefCell<BTreeSet<String>>,
}

/// Keys that change nothing of what a language model computes when it is trained or generates: where it comes from,
/// how it was initialised, how it is run, what transformers saves with every configuration.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "adapted_from",
    "attn_implementation",
    "auto_map",
    "bf16",
    "bias_dropout_fusion",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "dtype",
    "finetuning_task",
    "forced_bos_token_id",
    "fp16",
    "fp32",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "kv_cache_dtype",
    "label2id",
    "max_window_layers",
    "model_max_length",
    "onnx_safe",
    "output_attentions",
    "output_hidden_states",
    "params_dtype",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "sliding_window",
    "softmax_in_fp32",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "tokenizer_type",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
    "use_cache_kernel",
    "use_cache_quantization",
    "use_bfloat16",
    "use_flash_attn",
];

/// What transformers saved with a configuration before there were files for generation.
const GENERATION: &[&str] = &[
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Beginnings of keys that tools write for themselves.
const TOOLS: &[&str] = &["unsloth_", "transformers.js", "_unsloth"];

impl Config {
    /// Reads `folder/config.json`.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let keys = json::read_object(&path, MAX_BYTES)?;
        Ok(Config { path, within: None, keys, known: RefCell::default() })
    }

    /// Keys that stand in no file; `name` takes a path's place in messages.
    pub fn given(name: &str, keys: Object) -> Self {
        Config { path: PathBuf::from(name), within: None, keys, known: RefCell::default() }
    }

    pub fn fault(&self, what: impl std::fmt::Display) -> Error {
        let path = self.path.display();
        Error::input(match self.within {
            None => format!("{path}: {what}"),
            Some(within) => format!("{path}: {within}: {what}"),
        })
    }

    /// The object under the key, where there is one.
    pub fn object(&self, key: &'static str) -> Result<Option<Config>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(Config {
                path: self.path.clone(),
                within: Some(key),
                keys: keys.clone(),
                known: RefCell::default(),
            })),
            Some(other) => Err(self.fault(format_args!("{key} is {}, expected an object", brief(other)))),
        }
    }

    /// Whether the folder has tensors whose names begin with `prefix`; `default` where it has none at all.
    pub fn has_tensors(&self, prefix: &str, default: bool) -> bool {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        // A folder that cannot be opened is refused when its weights are.
        let names = WeightMap::open(folder).map(|map| map.names()).unwrap_or_default();
        if names.is_empty() { default } else { names.iter().any(|name| name.starts_with(prefix)) }
    }

    /// The value of the key, where it is there and not null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.known.borrow_mut().insert(key.to_owned());
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// The value under any of its spellings; two that disagree are refused.
    pub fn spelled(&self, spellings: &[&'static str]) -> Result<Option<(&'static str, &Value)>> {
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
    pub fn size(&self, spellings: &[&'static str], most: u64, default: Option<usize>) -> Result<usize> {
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

    pub fn number(&self, spellings: &[&'static str], least: f64, most: f64, default: f64) -> Result<f64> {
        let Some((key, value)) = self.spelled(spellings)? else {
            return Ok(default);
        };
        self.number_within(key, value, least, most)
    }

    pub fn number_within(&self, key: &str, value: &Value, least: f64, most: f64) -> Result<f64> {
        match value.as_f64() {
            Some(n) if (least..=most).contains(&n) => Ok(n),
            _ => Err(self
                .fault(format_args!("{key} is {}, expected a number from {least} to {most}", brief(value)))),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.fault(format_args!("{key} is {}, expected true or false", brief(other)))),
        }
    }

    /// Refuses the model unless the flag has the one value that is supported; absent means that value.
    pub fn only(&self, key: &str, supported: bool, why: &str) -> Result<()> {
        if self.flag(key, supported)? == supported {
            return Ok(());
        }
        Err(self.fault(format_args!("{key} is {}: {why}", !supported)))
    }

    /// Refuses dropout of the base model, which the released models do not have.
    pub fn no_dropout(&self, keys: &[&'static str]) -> Result<()> {
        for &key in keys {
            if self.number(&[key], 0.0, 1.0, 0.0)? != 0.0 {
                return Err(self
                    .fault(format_args!("{key} is not 0: dropout in the base model is not supported"))
                    .hint("set it to 0; --lora-dropout drops adapter inputs"));
            }
        }
        Ok(())
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.fault(format_args!("{key} is {}, expected a string", brief(other)))),
        }
    }
}

// ---- what is not known ------------------------------------------------------------------------------------

impl Config {
    /// Refuses a key that nobody has asked for and that is not known to change nothing: it may change the arithmetic.
    /// To be called when the family has read its own.
    pub fn refuse_unknown(&self) -> Result<()> {
        let known = self.known.borrow();
        let harmless = |key: &str| {
            known.contains(key)
                || HARMLESS.contains(&key)
                || GENERATION.contains(&key)
                || TOOLS.iter().any(|start| key.starts_with(start))
        };
        match self.keys.iter().find(|(key, value)| !is_off(value) && !harmless(key)) {
            None => Ok(()),
            Some((key, value)) => {
                let key = crate::formats::safetensors::printable(key);
                Err(self
                    .fault(format_args!(
                        "{key} {} is not known here and may change what is computed",
                        brief(value)
                    ))
                    .hint("remove the key if the model is computed as the released Qwen models are"))
            }
        }
    }
}

/// Whether the value of a key switches its feature off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

// ---- what no family supports ------------------------------------------------------------------------------

impl Config {
    /// Refuses every way of quantising but float8 in blocks, which the files themselves tell: here it is only confirmed.
    /// Rows of activations stay as they are, whatever `activation_scheme` says for inference.
    fn check_quantisation(&self) -> Result<()> {
        let Some(value) = self.value("quantization_config") else { return Ok(()) };
        let fault = |what: String| {
            self.fault(format_args!("quantization_config: {what}"))
                .hint("use the unquantised model, or one in float8 with blocks of 128 x 128")
        };
        let wanted: [(&str, Value); 2] =
            [("quant_method", "fp8".into()), ("weight_block_size", vec![encoding::BLOCK; 2].into())];
        for (key, wanted) in &wanted {
            if value.get(key) != Some(wanted) {
                let found = value.get(key).map_or("missing".into(), brief);
                return Err(fault(format!("{key} is {found}, {wanted} is supported")));
            }
        }
        for (key, value) in value.as_object().into_iter().flatten() {
            let known = match key.as_str() {
                "fmt" => value == "e4m3",
                "activation_scheme" => value == "dynamic",
                "modules_to_not_convert" | "ignored_layers" => true,
                other => wanted.iter().any(|(key, _)| *key == other),
            };
            if !known {
                return Err(fault(format!("{key} {} is not supported", brief(value))));
            }
        }
        Ok(())
    }

    /// Refuses, by name, what none of the families of language models has.
    pub fn refuse_unsupported(&self) -> Result<()> {
        let supported = arch::supported();
        let supported = supported.as_str();
        let named = [
            ("num_experts", "mixture of experts is not supported", supported),
            ("num_local_experts", "mixture of experts is not supported", supported),
            ("vision_config", "vision models are not supported", supported),
            ("visual", "vision models are not supported", supported),
            ("audio_config", "audio models are not supported", supported),
        ];
        for (key, why, remedy) in named {
            if self.value(key).is_some() {
                return Err(self.fault(format_args!("{key}: {why}")).hint(remedy));
            }
        }
        self.check_quantisation()?;
        self.only("use_sliding_window", false, "sliding-window attention is not supported")?;
        self.only("mlp_bias", false, "biases in the MLP are not supported")?;
        self.only("is_causal", true, "attention that looks ahead is not supported")?;
        self.only("is_encoder_decoder", false, "encoders with decoders are not supported")?;
        self.only("add_cross_attention", false, "cross-attention is not supported")?;
        self.only("use_mrope", false, "rotary embeddings of several axes are not supported")?;
        match self.text("pos_emb")? {
            None | Some("rotary") => {}
            Some(other) => {
                return Err(self.fault(format_args!("pos_emb {other:?} is not supported, rotary is")));
            }
        }
        for key in ["hidden_act", "activation"] {
            match self.text(key)? {
                None | Some("silu" | "swish" | "swiglu") => {}
                Some(other) => {
                    return Err(self.fault(format_args!("{key} {other:?} is not supported, silu is")));
                }
            }
        }
        self.plain_rope("rope_scaling").map(|_| ())
    }

    /// Passes over keys that have nothing to do with the text.
    pub fn ignore(&self, keys: &[&str]) {
        self.known.borrow_mut().extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Refuses every way of quantising, for a family of which none was tried.
    pub fn refuse_quantised(&self) -> Result<()> {
        if self.value("quantization_config").is_none() {
            return Ok(());
        }
        let what = "quantization_config: quantised weights are not supported";
        Err(self.fault(what).hint("use the unquantised model"))
    }

    /// The object of that key, which describes plain rotary embeddings; `None` where there is none.
    fn plain_rope(&self, name: &str) -> Result<Option<&Object>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(keys)) => self.default_rope(name, keys).map(|()| Some(keys)),
            Some(_) => Err(self.fault(format_args!("{name} is not an object"))),
        }
    }

    /// Whether the object describes plain rotary embeddings and nothing that changes them.
    fn default_rope(&self, name: &str, keys: &Object) -> Result<()> {
        for (key, value) in keys {
            let fine = match key.as_str() {
                "rope_type" | "type" => value == "default" || value.is_null(),
                "rope_theta" => true,
                "partial_rotary_factor" => value.as_f64() == Some(1.0),
                _ => value.is_null(),
            };
            if !fine {
                let kind = keys.get("rope_type").or_else(|| keys.get("type")).and_then(Value::as_str);
                let kind = kind.filter(|kind| *kind != "default").map(|kind| format!(" ({kind})"));
                return Err(self
                    .fault(format_args!(
                        "{name}{}: {key} {} is not supported, only rope_type \"default\" is",
                        kind.unwrap_or_default(),
                        brief(value)
                    ))
                    .hint(format!(
                        "models are trained here with the rotary embeddings of their pre-training: remove {name} \
                         from config.json (it only stretches texts beyond that length)"
                    )));
            }
        }
        Ok(())
    }
}

// ---- what families share ----------------------------------------------------------------------------------

impl Config {
    /// `default` for a key that is there with the value null, nothing for one that is absent.
    fn null_means(&self, key: &str, default: usize) -> Option<usize> {
        self.keys.get(key).is_some_and(Value::is_null).then_some(default)
    }

    /// Query heads and key/value heads.
    pub fn heads(&self) -> Result<[usize; 2]> {
        let heads = self.size(&["num_attention_heads"], most::HEADS, None)?;
        let default = self.null_means("num_key_value_heads", heads);
        let kv_heads = self.size(&["num_key_value_heads"], most::HEADS, default)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(self.fault(format_args!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        Ok([heads, kv_heads])
    }

    pub fn head_dim(
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
        let size = self.size(&[key], most::HEAD_DIM, Some(default))?;
        if size == 0 || !size.is_multiple_of(2) || size as u64 > most::HEAD_DIM {
            return Err(self.fault(format_args!(
                "head size {size}: rotary embeddings need an even one up to {}",
                most::HEAD_DIM
            )));
        }
        Ok(size)
    }

    /// `layer_types` of newer files, one for each layer.
    pub fn layer_types(&self, layers: usize) -> Result<Option<&[Value]>> {
        let types = match self.value("layer_types") {
            None => return Ok(None),
            Some(Value::Array(types)) => types,
            Some(_) => return Err(self.fault("layer_types is not a list")),
        };
        if types.len() != layers {
            let count = types.len();
            let what = format!("layer_types has {count} entries, num_hidden_layers is {layers}");
            return Err(self.fault(what));
        }
        Ok(Some(types))
    }

    /// Checks that all layers attend to everything.
    pub fn full_attention(&self, layers: usize) -> Result<()> {
        let types = self.layer_types(layers)?.unwrap_or_default();
        match types.iter().find(|t| *t != "full_attention") {
            None => Ok(()),
            Some(other) => Err(self.fault(format_args!(
                "layer_types: {} is not supported, only \"full_attention\" is",
                brief(other)
            ))),
        }
    }

    /// `rope_theta` of older files, that inside `rope_parameters` of newer ones, or inside `rope_scaling`, which
    /// transformers takes for `rope_parameters`.
    pub fn rope_theta(&self) -> Result<f64> {
        let mut found: Option<(String, f64)> = None;
        let outer = self.value("rope_theta").map(|value| ("rope_theta".to_owned(), value));
        let mut inner = Vec::new();
        for name in ["rope_parameters", "rope_scaling"] {
            let theta =
                self.plain_rope(name)?.and_then(|keys| keys.get("rope_theta")).filter(|v| !v.is_null());
            inner.extend(theta.map(|value| (format!("{name}.rope_theta"), value)));
        }
        for (name, value) in outer.into_iter().chain(inner) {
            let theta = self.number_within(&name, value, 1.0, 1e12)?;
            match &found {
                Some((first, other)) if *other != theta => {
                    return Err(self.fault(format_args!("{first} is {other} but {name} is {theta}")));
                }
                _ => found = Some((name, theta)),
            }
        }
        Ok(found.map_or(10000.0, |(_, theta)| theta))
    }

    pub fn eos(&self) -> Result<Vec<u32>> {
        match self.value("eos_token_id") {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|id| self.token("eos_token_id", id)).collect(),
            Some(id) => Ok(vec![self.token("eos_token_id", id)?]),
        }
    }

    pub fn pad(&self) -> Result<Option<u32>> {
        self.value("pad_token_id").map(|id| self.token("pad_token_id", id)).transpose()
    }

    fn token(&self, key: &str, id: &Value) -> Result<u32> {
        let token = id.as_u64().and_then(|n| u32::try_from(n).ok());
        token.ok_or_else(|| self.fault(format_args!("{key} is {}, expected a token id", brief(id))))
    }
}

/// The value as it may be printed in one line.
pub fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("…".chars()).collect() }
}
