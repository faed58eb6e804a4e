//! `generation_config.json`: what a model folder says about generating with it.

use crate::error::{Error, Result};
use crate::files;
use crate::formats::json::{self, Object};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest `generation_config.json` that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What is taken from it, and what is only told.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Tokens that end a text.
    pub ends: Vec<u32>,
    /// Divides what was said already; 1: nothing.
    pub repetition_penalty: f32,
    /// What transformers would do by this file and is not done here, a line each.
    pub notes: Vec<String>,
}

/// Keys that change no token, or that flags and defaults of this program decide.
const HARMLESS: &[&str] = &[
    "_from_model_config",
    "_commit_hash",
    "assistant_token_id",
    "bos_token_id",
    "cache_implementation",
    "chat_format",
    "decoder_start_token_id",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "max_window_size",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "repetition_penalty",
    "return_dict_in_generate",
    "stop_words_type",
    "transformers_version",
    "use_cache",
];

/// Keys that draw: the flag that asks for it here, and the value that asks for nothing.
const DRAWING: &[(&str, &str, f64)] =
    &[("temperature", "--temperature", 0.0), ("top_k", "--top-k", 0.0), ("top_p", "--top-p", 1.0)];

/// Values with which a key does nothing, whatever it is.
fn does_nothing(key: &str, value: &Value) -> bool {
    let ones = ["typical_p", "guidance_scale", "length_penalty", "num_beams", "num_beam_groups"];
    let ones = ones.contains(&key) || key == "encoder_repetition_penalty";
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(if ones { 1.0 } else { 0.0 }),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

impl Defaults {
    /// Reads the folder's file, where there is one.
    ///
    /// # Errors
    /// Names the key that cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("generation_config.json");
        if !files::exists(&path)? {
            return Ok(Defaults { ends: Vec::new(), repetition_penalty: 1.0, notes: Vec::new() });
        }
        let file = File { keys: json::read_object(&path, MAX_BYTES)?, path };
        Ok(Defaults {
            ends: file.ends()?,
            repetition_penalty: file.repetition_penalty()?,
            notes: file.drawing().into_iter().chain(file.others()).collect(),
        })
    }
}

struct File {
    path: PathBuf,
    keys: Object,
}

impl File {
    fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{}: {what}", self.path.display()))
    }

    /// `eos_token_id`: one id, several, or none.
    fn ends(&self) -> Result<Vec<u32>> {
        let wrong = || self.fault("eos_token_id is no token id or list of them");
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.keys.get("eos_token_id") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect::<Option<_>>().ok_or_else(wrong),
            Some(one) => Ok(vec![id(one).ok_or_else(wrong)?]),
        }
    }

    fn repetition_penalty(&self) -> Result<f32> {
        match self.keys.get("repetition_penalty") {
            None | Some(Value::Null) => Ok(1.0),
            Some(value) => match value.as_f64() {
                Some(penalty) if (1e-3..=1e3).contains(&penalty) => Ok(penalty as f32),
                _ => {
                    Err(self.fault(format_args!("repetition_penalty is {value}, expected a number above 0")))
                }
            },
        }
    }

    /// What is said of a file that asks for drawing.
    fn drawing(&self) -> Option<String> {
        if self.keys.get("do_sample") != Some(&Value::Bool(true)) {
            return None;
        }
        let asked = DRAWING.iter().filter_map(|(key, flag, nothing)| {
            let value = self.keys.get(*key).filter(|value| value.as_f64().is_some_and(|v| v != *nothing))?;
            Some(format!("{flag} {value}"))
        });
        let asked: Vec<String> = asked.collect();
        let flags = if asked.is_empty() { "--temperature 1".to_owned() } else { asked.join(" ") };
        Some(format!("the model's generation_config.json draws tokens; say so to draw here: {flags}"))
    }

    fn others(&self) -> Vec<String> {
        let drawing = |key: &str| key == "do_sample" || DRAWING.iter().any(|(name, _, _)| *name == key);
        let left = self.keys.iter().filter(|(key, value)| {
            !HARMLESS.contains(&key.as_str()) && !drawing(key) && !does_nothing(key, value)
        });
        left.map(|(key, value)| format!("generation_config.json: {key} {value} is not applied")).collect()
    }
}
