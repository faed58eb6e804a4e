//! What can be measured: each file builds one workload for one combination of its parameters.

use super::sampling::Workload;
use crate::config::{DeviceChoice, Dtype, Recompute};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Names of the workloads, and what each measures.
pub const NAMES: [(&str, &str); 7] = [
    ("train", "training steps: tokens per second"),
    ("ops", "each operation at the model's shapes: seconds of a launch"),
    ("load", "a model folder to a device that is ready: seconds"),
    ("checkpoint", "one save: seconds until it is durable, and what a step waits for it"),
    ("resume", "a stopped run to its first new step: seconds"),
    ("generate", "prefill and decoding: tokens per second"),
    ("tokenize", "text to ids: bytes per second"),
];

/// What is asked for; lists are measured in every combination.
#[derive(Clone, Debug)]
pub struct Options {
    /// One of [`NAMES`].
    pub workload: String,
    /// Folder of a model.
    pub model: Option<PathBuf>,
    /// A released size with random weights.
    pub shape: Option<String>,
    /// Tokens of a micro-batch or a prompt.
    pub tokens: Vec<usize>,
    /// LoRA ranks.
    pub ranks: Vec<usize>,
    /// The device.
    pub device: DeviceChoice,
    /// Arithmetic, as `train` takes it.
    pub dtype: Dtype,
    /// Which activations are computed again, as `train` takes it.
    pub recompute: Recompute,
    /// Threads of the CPU device.
    pub threads: Option<usize>,
}

/// One combination of the parameters.
#[derive(Clone, Debug)]
pub struct Case {
    /// Everything that was asked for, with lists of one value.
    pub options: Options,
    /// Tokens of a micro-batch or a prompt.
    pub tokens: usize,
    /// LoRA rank.
    pub rank: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = &self.options;
        let model = o.model.as_ref().map(|path| path.display().to_string());
        let model = model.or_else(|| o.shape.clone()).unwrap_or_default();
        write!(f, "{} {model}, {} tokens, rank {}", o.workload, self.tokens, self.rank)
    }
}
