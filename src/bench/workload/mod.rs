//! What can be measured: each file builds one workload for one combination of its parameters.

mod checkpoint;
mod generate;
mod load;
mod ops;
mod resume;
#[cfg(feature = "text")]
mod tokenize;
mod train;

use super::conditions;
use super::report::{Better, Measurement};
use super::roofline::{self, Card};
use super::sampling::Workload;
use super::shape;
use crate::config::{DeviceChoice, Dtype, Recompute, Settings};
use crate::device::{Capabilities, Chosen, Devices};
use crate::error::{Error, Result};
use crate::model::spec::{MixerSpec, MlpSpec};
use crate::model::{Spec, Weights};
use crate::ops::check::Shape;
use crate::train::setup::Base;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Names of the workloads, and what each measures.
pub const NAMES: [(&str, &str); 7] = [
    ("train", "training steps: tokens per second"),
    ("ops", "each operation at the model's shapes: seconds, beside the least a known device takes"),
    ("load", "a model's files, or random weights, to a device that is ready: seconds"),
    ("checkpoint", "a step that a save begins before, and how long until the save is durable: seconds"),
    ("resume", "from the start of a run that goes on to its first new step: seconds"),
    ("generate", "reading a prompt and writing an answer: tokens per second"),
    ("tokenize", "text to ids: bytes per second"),
];

/// Seed of weights and inputs.
const SEED: u64 = 1;

/// Longest row: longer micro-batches hold several.
const LONGEST_ROW: usize = 4096;

/// What is asked for; lists are measured in every combination.
#[derive(Clone, Debug)]
pub struct Options {
    /// One of [`NAMES`].
    pub workload: String,
    /// The models.
    pub models: Vec<Source>,
    /// Tokens of a micro-batch or a prompt.
    pub tokens: Vec<usize>,
    /// LoRA ranks.
    pub ranks: Vec<usize>,
    /// Arithmetics, as `train` takes them.
    pub dtypes: Vec<Dtype>,
    /// Which activations are computed again, as `train` takes it.
    pub recomputes: Vec<Recompute>,
    /// Threads of the CPU device; `None`: all.
    pub threads: Vec<Option<usize>>,
    /// Whether a GPU records work that comes again.
    pub graphs: Vec<bool>,
    /// Layers of a released size, where not all of them are wanted.
    pub layers: Option<usize>,
    /// Which operations, as `name` or `name:number`; all where the list is empty.
    pub operations: Vec<String>,
    /// The device.
    pub device: DeviceChoice,
    /// How GPUs are found.
    pub devices: Devices,
    /// Where checkpoints are written; the system's folder for temporary files where nothing is said.
    pub folder: Option<PathBuf>,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its folder.
    Folder(PathBuf),
    /// A released size with random weights.
    Shape(String),
}

/// One combination of the parameters; its fields are those of [`Options`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Case {
    pub workload: String,
    pub source: Source,
    pub tokens: usize,
    pub rank: usize,
    pub dtype: Dtype,
    pub recompute: Recompute,
    pub threads: Option<usize>,
    pub graphs: bool,
    pub layers: Option<usize>,
    pub device: DeviceChoice,
    pub devices: Devices,
    pub folder: Option<PathBuf>,
    /// Of the workload `ops`: an operation, by its place in the registry and the number of its case.
    pub operation: Option<(usize, usize)>,
}

/// The device as a report names it.
pub struct DeviceFacts {
    /// In words.
    pub device: String,
    /// Version of the GPU's driver.
    pub driver: Option<String>,
    /// Fingerprint of the GPU's kernels.
    pub kernels: Option<String>,
}

/// Every combination of the parameters.
///
/// # Errors
/// A model that cannot be read, or an operation that there is not.
pub fn cases(options: &Options) -> Result<Vec<Case>> {
    let mut all: Vec<Case> = options.models.iter().map(|source| Case::first(options, source)).collect();
    // Each parameter's values for every combination so far.
    each(&mut all, &options.tokens, |case, value| case.tokens = value);
    each(&mut all, &options.ranks, |case, value| case.rank = value);
    each(&mut all, &options.dtypes, |case, value| case.dtype = value);
    each(&mut all, &options.recomputes, |case, value| case.recompute = value);
    each(&mut all, &options.threads, |case, value| case.threads = value);
    each(&mut all, &options.graphs, |case, value| case.graphs = value);
    if options.workload != "ops" {
        return Ok(all);
    }
    let mut of_operations = Vec::new();
    for case in all {
        for operation in ops::chosen(&case, &options.operations)? {
            of_operations.push(Case { operation: Some(operation), ..case.clone() });
        }
    }
    Ok(of_operations)
}

fn each<T: Copy>(all: &mut Vec<Case>, values: &[T], set: impl Fn(&mut Case, T)) {
    let with = |case: &Case, value: T| {
        let mut case = case.clone();
        set(&mut case, value);
        case
    };
    *all = all
        .iter()
        .flat_map(|case| values.iter().map(move |value| (case, *value)))
        .map(|(c, v)| with(c, v))
        .collect();
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {} tokens, rank {}", self.workload, self.name(), self.tokens, self.rank)?;
        match self.operation {
            Some(operation) => write!(f, ", {}", ops::name(operation)),
            None => Ok(()),
        }
    }
}

impl Case {
    fn first(options: &Options, source: &Source) -> Self {
        Case {
            workload: options.workload.clone(),
            source: source.clone(),
            tokens: 0,
            rank: 0,
            dtype: Dtype::Auto,
            recompute: Recompute::Auto,
            threads: None,
            graphs: true,
            layers: options.layers,
            device: options.device,
            devices: options.devices,
            folder: options.folder.clone(),
            operation: None,
        }
    }

    /// Sets the workload up; some measure several things, each of which is one.
    ///
    /// # Errors
    /// As the work itself.
    pub fn build(&self) -> Result<Vec<Box<dyn Workload>>> {
        Ok(match self.workload.as_str() {
            "train" => vec![Box::new(train::Train::build(self)?)],
            "ops" => ops::build(self)?,
            "load" => vec![Box::new(load::Load::build(self)?)],
            "checkpoint" => checkpoint::build(self)?,
            "resume" => vec![Box::new(resume::Resume::build(self)?)],
            "generate" => generate::build(self)?,
            #[cfg(feature = "text")]
            "tokenize" => vec![Box::new(tokenize::Tokenize::build(self)?)],
            other => return Err(Error::usage(format!("bench {other} is not in this build"))),
        })
    }

    /// How many workloads [`Case::build`] gives.
    ///
    /// # Errors
    /// A model that cannot be read.
    pub fn parts(&self) -> Result<usize> {
        Ok(match self.workload.as_str() {
            "ops" => ops::parts(self)?,
            "checkpoint" => checkpoint::PARTS,
            "generate" => generate::PARTS,
            _ => 1,
        })
    }

    /// TFLOP/s of the largest product of this model's size that its layers' own code reaches on the device; `None` where the
    /// workload is no matter of products.
    ///
    /// # Errors
    /// When the device failed.
    pub fn matmul_peak(&self) -> Result<Option<f64>> {
        let of_products = ["train", "ops", "generate"].contains(&self.workload.as_str());
        if of_products { ops::matmul_peak(self).map(Some) } else { Ok(None) }
    }

    /// What decides [`Case::matmul_peak`].
    #[must_use]
    pub fn peak_key(&self) -> String {
        format!("{} {} {:?} {:?}", self.name(), self.tokens, self.dtype, self.threads)
    }

    /// The model's name in a report: that of its folder, or of its shape.
    fn name(&self) -> String {
        match &self.source {
            Source::Folder(path) => path.display().to_string(),
            Source::Shape(name) => name.clone(),
        }
    }

    fn model_folder(&self) -> Option<&PathBuf> {
        match &self.source {
            Source::Folder(path) => Some(path),
            Source::Shape(_) => None,
        }
    }

    /// The words that make another process measure the same.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut words = vec!["bench".to_owned(), self.workload.clone()];
        let mut flag = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        match &self.source {
            Source::Folder(path) => flag("model", path.display().to_string()),
            Source::Shape(name) => flag("shape", name.clone()),
        }
        flag("tokens", self.tokens.to_string());
        flag("lora-r", self.rank.to_string());
        flag("device", self.device.to_string());
        flag("dtype", word(json!(self.dtype)));
        flag("recompute", word(json!(self.recompute)));
        // What a build from before these flags knows nothing of is said only where it is asked for.
        if let Some(threads) = self.threads {
            flag("threads", threads.to_string());
        }
        if !self.graphs {
            flag("graphs", "off".into());
        }
        if let Some(layers) = self.layers {
            flag("layers", layers.to_string());
        }
        if let Some(folder) = &self.folder {
            flag("folder", folder.display().to_string());
        }
        if let Some(operation) = self.operation {
            flag("operations", ops::name(operation));
        }
        words
    }

    /// A measurement without samples.
    fn labels(&self, name: &str, unit: &str, better: Better) -> Measurement {
        let mut parameters = BTreeMap::from([
            ("model".to_owned(), json!(self.name())),
            ("tokens".into(), json!(self.tokens)),
            ("device".into(), json!(self.device.to_string())),
            ("dtype".into(), json!(self.dtype)),
            ("threads".into(), json!(self.threads.unwrap_or_else(cores))),
        ]);
        let mut more = |name: &str, value: Value| _ = parameters.insert(name.into(), value);
        if ["train", "ops", "checkpoint", "resume"].contains(&self.workload.as_str()) {
            more("lora_r", json!(self.rank));
        }
        if ["train", "checkpoint", "resume"].contains(&self.workload.as_str()) {
            more("recompute", json!(self.recompute));
        }
        if !self.graphs {
            more("graphs", json!("off"));
        }
        if let Some(layers) = self.layers {
            more("layers", json!(layers));
        }
        Measurement { parameters, ..Measurement::empty(&self.workload, name, unit, better) }
    }

    /// The model's shapes.
    ///
    /// # Errors
    /// A folder that is no model, a shape that is not known.
    fn spec(&self) -> Result<Spec> {
        let name = match &self.source {
            Source::Folder(folder) => return Spec::read(folder),
            Source::Shape(name) => name,
        };
        let mut config = shape::config(name)?;
        if let Some(layers) = self.layers {
            config["num_hidden_layers"] = json!(layers);
        }
        let Value::Object(config) = config else { unreachable!("a configuration is an object") };
        Spec::given(name, config.into_iter().collect())
    }

    /// The model with its weights.
    ///
    /// # Errors
    /// As [`Case::spec`]; weights that do not belong to it.
    fn model(&self) -> Result<Base> {
        let spec = self.spec()?;
        let weights = match &self.source {
            Source::Folder(folder) => Weights::open(folder, &spec)?,
            Source::Shape(_) => Weights::random(&spec, SEED)?,
        };
        Ok(Base { spec, weights })
    }

    /// What the model asks of its operations.
    ///
    /// # Errors
    /// As [`Case::spec`].
    pub fn shape(&self, device: &Capabilities) -> Result<Shape> {
        let spec = self.spec()?;
        let layer = spec.layers.first().ok_or_else(|| Error::usage("the model has no layers"))?;
        let (MixerSpec::Attention(attention), MlpSpec::SwiGlu(mlp)) = (&layer.mixer, &layer.mlp);
        Ok(Shape {
            tokens: self.tokens,
            row: split(self.tokens).0,
            chunk: device.logit_rows(spec.vocab, self.tokens),
            hidden: spec.hidden,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            intermediate: mlp.width,
            vocab: spec.vocab,
            rank: self.rank,
            layers: spec.layers.len(),
            head_norm: attention.qk_norm.is_some(),
        })
    }

    fn settings(&self) -> Settings {
        Settings { device: self.device, dtype: self.dtype, threads: self.threads, ..Settings::default() }
    }

    /// The device that was asked for.
    ///
    /// # Errors
    /// When it is not there.
    fn chosen(&self) -> Result<Chosen> {
        self.devices.choose(&self.settings(), None)
    }

    /// What is known of the device's speed.
    fn card(&self) -> Result<Option<Card>> {
        Ok(self.chosen()?.card().and_then(|name| roofline::card(&name)))
    }
}

/// A setting's value as it is given.
fn word(value: Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A micro-batch of `tokens` as equally long rows: (tokens of a row, rows).
fn split(tokens: usize) -> (usize, usize) {
    let rows = (tokens.div_ceil(LONGEST_ROW)..=tokens).find(|rows| tokens.is_multiple_of(*rows)).unwrap_or(1);
    (tokens / rows, rows)
}

/// A case that names no more than the device.
fn on_device(options: &Options) -> Case {
    Case::first(options, &Source::Shape("tiny".into()))
}

/// Number of the GPU that the options ask for by name.
#[must_use]
pub fn gpu(options: &Options) -> Option<u32> {
    match options.device {
        DeviceChoice::Cuda(index) => Some(index),
        DeviceChoice::Auto => {
            let chosen = on_device(options).chosen();
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
    let chosen = on_device(options).chosen()?;
    let engine = chosen.engine()?;
    let device = match gpu(options) {
        Some(_) => chosen.describe(),
        None => conditions::processor(),
    };
    Ok(DeviceFacts { device, driver: chosen.driver(), kernels: engine.kernels })
}

/// Threads that the machine runs at once.
#[must_use]
pub fn threads() -> usize {
    cores()
}
