//! What can be measured: each file builds one workload for one combination of its parameters.

mod generate;
mod load;
#[cfg(feature = "text")]
mod tokenize;
mod train;

use super::conditions;
use super::report::{Better, Measurement};
use super::sampling::Workload;
use super::shape;
use crate::config::{DeviceChoice, Dtype, Recompute, Settings};
use crate::device::{Chosen, Devices};
use crate::error::{Error, Result};
use crate::model::{Spec, Weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Names of the workloads, and what each measures.
pub const NAMES: [(&str, &str); 4] = [
    ("train", "training steps: tokens per second"),
    ("load", "a model's files, or random weights, to a device that is ready: seconds"),
    ("generate", "reading a prompt and writing an answer: tokens per second"),
    ("tokenize", "text to ids: bytes per second"),
];

/// Seed of weights and inputs.
const SEED: u64 = 1;

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
    /// What was asked for; its lists are not read.
    pub options: Options,
    /// Tokens of a micro-batch or a prompt.
    pub tokens: usize,
    /// LoRA rank.
    pub rank: usize,
}

/// A model to measure.
pub struct Model {
    /// Its shapes.
    pub spec: Spec,
    /// Its weights.
    pub weights: Weights,
    /// Its folder; `None` for random weights.
    pub folder: Option<PathBuf>,
}

/// The device as a report names it.
pub struct DeviceFacts {
    /// In words.
    pub device: String,
    /// Version of the GPU's driver.
    pub driver: Option<String>,
    /// Fingerprint of the GPU's kernels.
    pub kernels: Option<String>,
    /// Threads of the CPU device.
    pub threads: usize,
}

/// Every combination of the parameters.
#[must_use]
pub fn cases(options: &Options) -> Vec<Case> {
    let mut all = Vec::new();
    for &tokens in &options.tokens {
        for &rank in &options.ranks {
            all.push(Case { options: options.clone(), tokens, rank });
        }
    }
    all
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {} tokens, rank {}", self.options.workload, self.name(), self.tokens, self.rank)
    }
}

impl Case {
    /// Sets the workload up; what `generate` measures are two things, so there may be several.
    ///
    /// # Errors
    /// As the work itself.
    pub fn build(&self) -> Result<Vec<Box<dyn Workload>>> {
        Ok(match self.options.workload.as_str() {
            "train" => vec![Box::new(train::Train::build(self)?)],
            "load" => vec![Box::new(load::Load::build(self)?)],
            "generate" => generate::build(self)?,
            #[cfg(feature = "text")]
            "tokenize" => vec![Box::new(tokenize::Tokenize::build(self)?)],
            other => return Err(Error::usage(format!("bench {other} is not in this build"))),
        })
    }

    /// How many workloads [`Case::build`] gives.
    #[must_use]
    pub fn parts(&self) -> usize {
        if self.options.workload == "generate" { generate::PARTS } else { 1 }
    }

    /// The model's name in a report: that of its folder, or of its shape.
    fn name(&self) -> String {
        let folder = self.options.model.as_ref().map(|path| path.display().to_string());
        folder.or_else(|| self.options.shape.clone()).unwrap_or_default()
    }

    /// The words that make another process measure the same.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let o = &self.options;
        let mut words = vec!["bench".to_owned(), o.workload.clone()];
        let mut flag = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        if let Some(model) = &o.model {
            flag("model", model.display().to_string());
        }
        if let Some(shape) = &o.shape {
            flag("shape", shape.clone());
        }
        flag("tokens", self.tokens.to_string());
        flag("lora-r", self.rank.to_string());
        flag("device", o.device.to_string());
        let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
        flag("dtype", word(json!(o.dtype)));
        flag("recompute", word(json!(o.recompute)));
        if let Some(threads) = o.threads {
            flag("threads", threads.to_string());
        }
        words
    }

    /// A measurement without samples.
    fn labels(&self, name: &str, unit: &str, better: Better) -> Measurement {
        let o = &self.options;
        let mut parameters = BTreeMap::from([
            ("model".to_owned(), json!(self.name())),
            ("tokens".into(), json!(self.tokens)),
            ("device".into(), json!(o.device.to_string())),
            ("dtype".into(), json!(o.dtype)),
        ]);
        if o.workload == "train" {
            parameters.insert("lora_r".into(), json!(self.rank));
            parameters.insert("recompute".into(), json!(o.recompute));
        }
        Measurement { parameters, ..Measurement::empty(&o.workload, name, unit, better) }
    }

    /// The folder's model, or a released size with random weights.
    ///
    /// # Errors
    /// A folder that is no model, a shape that is not known, or neither.
    fn model(&self) -> Result<Model> {
        match (&self.options.model, &self.options.shape) {
            (Some(folder), _) => {
                let spec = Spec::read(folder)?;
                let weights = Weights::open(folder, &spec)?;
                Ok(Model { spec, weights, folder: Some(folder.clone()) })
            }
            (None, Some(name)) => {
                let Value::Object(config) = shape::config(name)? else {
                    unreachable!("a configuration is an object")
                };
                let spec = Spec::given(name, config.into_iter().collect())?;
                let weights = Weights::random(&spec, SEED)?;
                Ok(Model { spec, weights, folder: None })
            }
            (None, None) => {
                Err(Error::usage("bench needs a model").hint("give --model DIR, or --shape qwen2.5-0.5b"))
            }
        }
    }

    fn settings(&self) -> Settings {
        let o = &self.options;
        Settings { device: o.device, dtype: o.dtype, threads: o.threads, ..Settings::default() }
    }

    /// The device that was asked for.
    ///
    /// # Errors
    /// When it is not there.
    fn chosen(&self) -> Result<Chosen> {
        Devices::default().choose(&self.settings(), None)
    }
}

/// Number of the GPU that the options ask for by name.
#[must_use]
pub fn gpu(options: &Options) -> Option<u32> {
    match options.device {
        DeviceChoice::Cuda(index) => Some(index),
        DeviceChoice::Auto => {
            let chosen = Case { options: options.clone(), tokens: 0, rank: 0 }.chosen();
            chosen.is_ok_and(|chosen| chosen.capabilities().own_memory).then_some(0)
        }
        DeviceChoice::Cpu => None,
    }
}

/// What a report says of the device.
///
/// # Errors
/// When it is not there.
pub fn device_facts(options: &Options) -> Result<DeviceFacts> {
    let case = Case { options: options.clone(), tokens: 0, rank: 0 };
    let chosen = case.chosen()?;
    let engine = chosen.engine()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let device = match gpu(options) {
        Some(_) => chosen.describe(),
        None => conditions::processor(),
    };
    Ok(DeviceFacts {
        device,
        driver: chosen.driver(),
        kernels: engine.kernels,
        threads: options.threads.unwrap_or(cores),
    })
}
