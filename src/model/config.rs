//! Reading of a `config.json`: typed keys with their limits, and what no family supports.

use super::arch;
use crate::error::{Error, Result};
use crate::formats::json::{self, Object};
use serde_json::Value;
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
    keys: Object,
}

impl Config {
    /// Reads `folder/config.json`.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let keys = json::read_object(&path, MAX_BYTES)?;
        Ok(Config { path, keys })
    }

    /// Keys that stand in no file; `name` takes a path's place in messages.
    pub fn given(name: &str, keys: Object) -> Self {
        Config { path: PathBuf::from(name), keys }
    }

    pub fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{}: {what}", self.path.display()))
    }

    /// The value of the key, where it is there and not null.
    pub fn value(&self, key: &str) -> Option<&Value> {
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

// ---- what no family supports ------------------------------------------------------------------------------

impl Config {
    /// Refuses, by name, what none of the families of language models has.
    pub fn refuse_unsupported(&self) -> Result<()> {
        let supported = arch::supported();
        let supported = supported.as_str();
        let named = [
            ("quantization_config", "quantised weights are not supported", "use the unquantised model"),
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

    /// `layer_types` of newer files: all layers attend to everything.
    pub fn full_attention(&self, layers: usize) -> Result<()> {
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
    pub fn rope_theta(&self) -> Result<f64> {
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
