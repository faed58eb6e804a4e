//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, or the pickled
//! `adapter_model.bin` of older versions where there is no other.
//!
//! Fields, key names and text are those of PEFT 0.21 (`LoraConfig.save_pretrained`).

use super::json;
#[cfg(feature = "internals")]
use super::publish;
use super::safetensors::{self, F32Tensor, TensorInfo, printable};
use super::torch_file::TorchFile;
use crate::config::Targets;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The file that says what an adapter is.
pub const CONFIG: &str = "adapter_config.json";
/// The file with the tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLED: &str = "adapter_model.bin";

/// Largest adapter that is read: about 2 billion parameters in f32, which stay in memory.
pub const MAX_WEIGHT_BYTES: u64 = 8 << 30;
/// Largest `adapter_config.json` that is read.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Stands for every linear layer of the blocks.
const ALL_LINEAR: &str = "all-linear";

/// Highest rank that is read.
pub const MAX_RANK: usize = 4096;

/// One adapter tensor, f32.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// PEFT's name, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// [r, in] or [out, r].
    pub shape: [usize; 2],
    /// Elements, row-major.
    pub values: Vec<f32>,
}

/// What `adapter_config.json` says that matters to training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// Alpha.
    pub lora_alpha: f64,
    /// Dropout.
    pub lora_dropout: f64,
    /// Module names, sorted; every linear layer; or a regular expression of whole names.
    pub target_modules: Targets,
    /// Modules that have no adapter although they are targets.
    pub exclude_modules: Option<Targets>,
    /// Scale by alpha / sqrt(r).
    pub use_rslora: bool,
    /// Pattern to rank, for layers that have their own. How a pattern matches: [`crate::config::Settings`].
    pub rank_pattern: BTreeMap<String, usize>,
    /// Pattern to alpha.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Blocks whose layers are adapted, ascending; `None`: all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// The base as written; never followed.
    pub base_model_name_or_path: String,
}

/// An adapter folder's content.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The configuration.
    pub config: AdapterConfig,
    /// Tensors sorted by name.
    pub tensors: Vec<AdapterTensor>,
}

/// Reads an adapter folder strictly.
///
/// # Errors
/// Names the file and field or tensor.
pub fn read(folder: &Path) -> Result<Adapter> {
    let config = read_config(&folder.join(CONFIG))?;
    let safe = folder.join(WEIGHTS);
    let pickled = folder.join(PICKLED);
    if !files::exists(&safe)? && files::exists(&pickled)? {
        return Ok(Adapter { tensors: read_pickled(pickled, config.one_rank())?, config });
    }
    let tensors = read_safetensors(safe, config.one_rank())?;
    Ok(Adapter { config, tensors })
}

/// Reads the two files of an adapter folder, whose name is for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(folder: &Path, config: &[u8], weights: &[u8]) -> Result<Adapter> {
    let path = folder.join(CONFIG);
    let config = config_of(&path, json::object_of(&path, config)?)?;
    let tensors = parse_safetensors(folder.join(WEIGHTS), weights, config.one_rank())?;
    Ok(Adapter { config, tensors })
}

fn read_safetensors(path: PathBuf, rank: Option<usize>) -> Result<Vec<AdapterTensor>> {
    let bytes = files::read(&path, MAX_WEIGHT_BYTES)?;
    parse_safetensors(path, &bytes, rank)
}

fn parse_safetensors(path: PathBuf, bytes: &[u8], rank: Option<usize>) -> Result<Vec<AdapterTensor>> {
    let header = safetensors::parse_header(&path, bytes, bytes.len() as u64)?;
    let reader = TensorReader { path, rank };
    if let Some((name, other)) = header.others.first_key_value() {
        let dtype = &other.dtype;
        return Err(reader.fault(name, format!("dtype {dtype} is not supported; F32, F16 and BF16 are")));
    }
    let decoded = |info: &TensorInfo| Ok(decode(info.element, &bytes[info.bytes.clone()]));
    let tensors =
        header.tensors.iter().map(|(name, info)| reader.tensor(name, &info.shape, || decoded(info)));
    reader.checked(tensors.collect::<Result<_>>()?)
}

/// The pickled dictionary of tensors that PEFT wrote before 0.6. Nothing in it is executed.
fn read_pickled(path: PathBuf, rank: Option<usize>) -> Result<Vec<AdapterTensor>> {
    let file = TorchFile::open(&path)?;
    let entries = file.pickle.by_text(file.pickle.root);
    let entries = entries.ok_or_else(|| file.fault("not a dictionary of named tensors"))?;
    let reader = TensorReader { path, rank };
    let tensors = entries.iter().map(|(name, value)| {
        let tensor = file.pickle.tensor(*value).ok_or_else(|| reader.fault(name, "not a tensor".into()))?;
        reader.tensor(name, &tensor.shape, || file.values(tensor))
    });
    reader.checked(tensors.collect::<Result<_>>()?)
}

#[cfg(feature = "internals")]
/// Writes the files into the folder `folder`, each whole, the config last.
///
/// # Errors
/// I/O errors, naming the path.
pub fn write(folder: &Path, adapter: &Adapter) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    let files = encode(adapter);
    files.iter().try_for_each(|(name, bytes)| publish::replace_file(&folder.join(name), bytes))
}

/// The folder's files: names and bytes, which are a function of the adapter alone.
#[must_use]
pub fn encode(adapter: &Adapter) -> [(&'static str, Vec<u8>); 2] {
    let tensors: Vec<F32Tensor<'_>> = adapter
        .tensors
        .iter()
        .map(|t| F32Tensor { name: &t.name, shape: &t.shape, values: &t.values })
        .collect();
    [(WEIGHTS, safetensors::encode_f32(&tensors)), (CONFIG, config_text(&adapter.config).into_bytes())]
}

// ---- tensors ----------------------------------------------------------------------------------------------

impl AdapterConfig {
    /// The rank of every tensor, where all have the same.
    fn one_rank(&self) -> Option<usize> {
        self.rank_pattern.is_empty().then_some(self.r)
    }
}

struct TensorReader {
    path: PathBuf,
    /// The rank of every tensor, where it is known before the model is.
    rank: Option<usize>,
}

impl TensorReader {
    fn fault(&self, name: &str, what: String) -> Error {
        Error::input(format!("{}: tensor {}: {what}", self.path.display(), printable(name)))
    }

    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        values: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<AdapterTensor> {
        let Some((_, matrix)) = split_name(name) else {
            let what = if name.contains("lora_magnitude_vector") {
                "DoRA is not supported"
            } else if name.contains("lora_embedding_") {
                "adapters of embeddings are not supported"
            } else {
                "not named like PEFT's base_model.model.MODULE.lora_A.weight or lora_B.weight"
            };
            return Err(self.fault(name, what.into()));
        };
        let Ok(shape) = <[usize; 2]>::try_from(shape) else {
            return Err(self.fault(name, format!("shape {shape:?}, expected a matrix")));
        };
        let (side, found) = if matrix == 'A' { ("rows", shape[0]) } else { ("columns", shape[1]) };
        if let Some(rank) = self.rank.filter(|rank| *rank != found) {
            return Err(self.fault(name, format!("shape {shape:?}, expected {rank} {side} as {CONFIG}'s r")));
        }
        let values = values()?;
        let bad = values.iter().filter(|v| !v.is_finite()).count();
        if bad > 0 {
            return Err(self.fault(name, format!("{bad} elements are NaN or infinite")));
        }
        Ok(AdapterTensor { name: name.to_owned(), shape, values })
    }

    fn checked(&self, tensors: Vec<AdapterTensor>) -> Result<Vec<AdapterTensor>> {
        if tensors.is_empty() {
            return Err(Error::input(format!("{}: no tensors", self.path.display())));
        }
        self.check_pairs(&tensors)?;
        Ok(tensors)
    }

    /// Every module has both matrices. Sorted names put A directly before B.
    fn check_pairs(&self, tensors: &[AdapterTensor]) -> Result<()> {
        for pair in tensors.chunks(2) {
            let modules: Vec<_> = pair.iter().filter_map(|t| split_name(&t.name)).collect();
            if let [(one, 'A'), (two, 'B')] = modules[..]
                && one == two
            {
                continue;
            }
            let name = &pair[0].name;
            let other = if name.ends_with("lora_A.weight") { "lora_B" } else { "lora_A" };
            return Err(self.fault(name, format!("the module has no {other}")));
        }
        Ok(())
    }
}

/// Module and matrix (`A` or `B`) of an adapter tensor's name.
#[must_use]
pub fn split_name(name: &str) -> Option<(&str, char)> {
    let rest = name.strip_prefix("base_model.model.")?;
    let (module, matrix) = match rest.strip_suffix(".lora_A.weight") {
        Some(module) => (module, 'A'),
        None => (rest.strip_suffix(".lora_B.weight")?, 'B'),
    };
    (!module.is_empty()).then_some((module, matrix))
}

/// Little-endian elements, widened to f32.
pub(super) fn decode(element: Element, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / element.bytes()];
    element.widen_all(bytes, &mut values);
    values
}

// ---- adapter_config.json ----------------------------------------------------------------------------------

/// Keys that change nothing of what is computed.
const COSMETIC: &[&str] = &[
    "auto_mapping",
    "base_model_class",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "parent_library",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Keys read by [`ConfigReader::config`].
const READ: &[&str] = &[
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// What helps where an adapter is more than LoRA matrices of linear layers.
const MERGE_FIRST: &str =
    "merge the adapter into its base with PEFT (merge_and_unload), save that model, and train on it";

/// What helps with a key that is not supported.
const REMEDIES: &[(&str, &str)] = &[
    ("modules_to_save", "only LoRA matrices are trained; train without modules_to_save"),
    ("trainable_token_indices", "only LoRA matrices are trained; train without them"),
    ("fan_in_fan_out", "the linear layers of Qwen are stored [out, in]; the adapter is for another model"),
];

/// Initialisations that leave the base model's weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ ...)
/// train against a changed base.
const PLAIN_INITIALISATIONS: &[&str] = &["gaussian", "orthogonal", "eva"];

struct ConfigReader<'a> {
    path: &'a Path,
    keys: json::Object,
}

fn read_config(path: &Path) -> Result<AdapterConfig> {
    config_of(path, json::read_object(path, MAX_CONFIG_BYTES)?)
}

fn config_of(path: &Path, keys: json::Object) -> Result<AdapterConfig> {
    let reader = ConfigReader { path, keys };
    reader.refuse_unsupported()?;
    reader.config()
}

impl ConfigReader<'_> {
    fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{}: {what}", self.path.display()))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// Fails closed: a key that is not known must have a value that switches its feature off.
    fn refuse_unsupported(&self) -> Result<()> {
        for (key, value) in &self.keys {
            let known = READ.contains(&key.as_str()) || COSMETIC.contains(&key.as_str());
            if !known && !is_off(value) {
                let remedy =
                    REMEDIES.iter().find(|(name, _)| name == key).map_or(MERGE_FIRST, |(_, hint)| hint);
                let what = format_args!("{} {} is not supported", printable(key), brief(value));
                return Err(self.fault(what).hint(remedy));
            }
        }
        self.expect_text("peft_type", "LORA", true)?;
        self.expect_text("task_type", "CAUSAL_LM", false)?;
        self.expect_text("bias", "none", false)?;
        self.check_layers_pattern()?;
        match self.value("init_lora_weights") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::String(name)) if PLAIN_INITIALISATIONS.contains(&name.as_str()) => Ok(()),
            Some(other) => Err(self
                .fault(format_args!("init_lora_weights {} is not supported", brief(other)))
                .hint("it changes the base model's weights; convert the adapter with PEFT first")),
        }
    }

    fn expect_text(&self, key: &str, expected: &str, required: bool) -> Result<()> {
        match self.value(key) {
            None if required => Err(self.fault(format_args!("{key} is missing"))),
            None => Ok(()),
            Some(Value::String(text)) if text == expected => Ok(()),
            Some(other) => {
                let what = format_args!("{key} {} is not supported, {expected} is", brief(other));
                Err(self.fault(what).hint(MERGE_FIRST))
            }
        }
    }

    /// PEFT looks for a list of blocks of that name; those of Qwen are `layers`, and `h` in v1.
    fn check_layers_pattern(&self) -> Result<()> {
        let known = |name: &Value| name == "layers" || name == "h";
        match self.value("layers_pattern").filter(|value| !is_off(value)) {
            None => Ok(()),
            Some(Value::Array(names)) if names.iter().all(known) => Ok(()),
            Some(name) if known(name) => Ok(()),
            Some(other) => Err(self
                .fault(format_args!("layers_pattern {} is not supported, layers is", brief(other)))
                .hint("remove the key: the blocks of a Qwen model are known")),
        }
    }

    /// The blocks of `layers_to_transform`: a number or a list of them.
    fn layers(&self) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.value("layers_to_transform").filter(|value| !is_off(value)) else {
            return Ok(None);
        };
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let number = |item: &Value| item.as_u64().and_then(|n| usize::try_from(n).ok());
        let layers: Option<BTreeSet<usize>> = items.iter().map(number).collect();
        let wanted = "expected the numbers of blocks";
        let layers = layers
            .ok_or_else(|| self.fault(format_args!("layers_to_transform is {}, {wanted}", brief(value))))?;
        Ok(Some(layers.into_iter().collect()))
    }

    /// A dictionary of patterns and numbers that `read` accepts.
    fn pattern<T>(
        &self,
        key: &str,
        read: impl Fn(&Value) -> Option<T>,
        wanted: &str,
    ) -> Result<BTreeMap<String, T>> {
        let Some(value) = self.value(key) else { return Ok(BTreeMap::new()) };
        let Value::Object(entries) = value else {
            return Err(self.fault(format_args!("{key} is {}, expected an object", brief(value))));
        };
        let entry = |(pattern, value): (&String, &Value)| {
            let number = read(value).ok_or_else(|| {
                let (name, found) = (printable(pattern), brief(value));
                self.fault(format_args!("{key} gives {name} {found}, expected {wanted}"))
            })?;
            Ok((pattern.clone(), number))
        };
        entries.iter().map(entry).collect()
    }

    fn config(&self) -> Result<AdapterConfig> {
        let required =
            |key: &str| self.value(key).ok_or_else(|| self.fault(format_args!("{key} is missing")));
        let r = required("r")?;
        let rank_wanted = format!("an integer from 1 to {MAX_RANK}");
        let Some(r) = rank(r) else {
            return Err(self.fault(format_args!("r is {}, expected {rank_wanted}", brief(r))));
        };
        let alpha_wanted = "a number above 0 up to 1e6";
        let value = required("lora_alpha")?;
        let Some(lora_alpha) = alpha(value) else {
            return Err(self.fault(format_args!("lora_alpha is {}, expected {alpha_wanted}", brief(value))));
        };
        let lora_dropout = match self.value("lora_dropout") {
            None => 0.0,
            Some(value) => value.as_f64().filter(|d| (0.0..1.0).contains(d)).ok_or_else(|| {
                self.fault(format_args!(
                    "lora_dropout is {}, expected a number from 0 to below 1",
                    brief(value)
                ))
            })?,
        };
        let use_rslora = match self.value("use_rslora") {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => return Err(self.fault(format_args!("use_rslora is {}", brief(other)))),
        };
        let base_model_name_or_path = match self.value("base_model_name_or_path") {
            None => String::new(),
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                return Err(self.fault(format_args!("base_model_name_or_path is {}", brief(other))));
            }
        };
        let target_modules = self.targets("target_modules", required("target_modules")?)?;
        let excluded = self.value("exclude_modules").filter(|value| !is_off(value));
        let exclude_modules = excluded.map(|value| self.targets("exclude_modules", value)).transpose()?;
        let layers_to_transform = self.layers()?;
        if layers_to_transform.is_some() && !matches!(target_modules, Targets::Names(_)) {
            return Err(self
                .fault("layers_to_transform beside target_modules that is one string is not supported, nor is it by PEFT")
                .hint("write the module names as a list"));
        }
        Ok(AdapterConfig {
            r,
            lora_alpha,
            lora_dropout,
            target_modules,
            exclude_modules,
            use_rslora,
            rank_pattern: self.pattern("rank_pattern", rank, &rank_wanted)?,
            alpha_pattern: self.pattern("alpha_pattern", alpha, alpha_wanted)?,
            layers_to_transform,
            base_model_name_or_path,
        })
    }

    /// `all-linear`, a list of names, or a string that PEFT takes for a regular expression.
    fn targets(&self, key: &str, value: &Value) -> Result<Targets> {
        let plain = |name: &str| !name.is_empty() && !name.chars().any(char::is_control);
        let list = match value {
            Value::String(text) if text == ALL_LINEAR && key == "target_modules" => {
                return Ok(Targets::AllLinear);
            }
            Value::String(pattern) if plain(pattern) => return Ok(Targets::Pattern(pattern.clone())),
            Value::Array(list) if !list.is_empty() => list,
            other => {
                return Err(self.fault(format_args!("{key} is {}, expected a list of names", brief(other))));
            }
        };
        let mut names = Vec::with_capacity(list.len());
        for item in list {
            match item.as_str() {
                Some(name) if plain(name) => names.push(name.to_owned()),
                _ => return Err(self.fault(format_args!("{key} holds {}", brief(item)))),
            }
        }
        names.sort();
        names.dedup();
        Ok(Targets::Names(names))
    }
}

fn rank(value: &Value) -> Option<usize> {
    value.as_u64().filter(|r| (1..=MAX_RANK as u64).contains(r)).map(|r| r as usize)
}

fn alpha(value: &Value) -> Option<f64> {
    value.as_f64().filter(|a| *a > 0.0 && *a <= 1e6)
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

/// The value as it may be printed in one line.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("…".chars()).collect() }
}

/// The text of `adapter_config.json`: sorted, indented by 2, ASCII only (Python reads it in any locale). The fields
/// are those that every PEFT since 0.5 knows; a later one is written only where it says something, since older
/// versions (0.7 to 0.13) refuse a field they don't know even when it has its default.
fn config_text(config: &AdapterConfig) -> String {
    // Whole numbers as PEFT's users write them, without a point.
    let number = |value: f64| {
        let whole = value.fract() == 0.0 && value.abs() <= 1e6;
        if whole { json!(value as i64) } else { json!(value) }
    };
    let modules = |targets: &Targets| match targets {
        Targets::AllLinear => json!(ALL_LINEAR),
        Targets::Names(names) => json!(names),
        Targets::Pattern(pattern) => json!(pattern),
    };
    let base = &config.base_model_name_or_path;
    let mut fields = json!({
        "base_model_name_or_path": if base.is_empty() { Value::Null } else { json!(base) },
        "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        "lora_alpha": number(config.lora_alpha), "lora_dropout": config.lora_dropout, "modules_to_save": null,
        "peft_type": "LORA", "r": config.r, "target_modules": modules(&config.target_modules),
        "task_type": "CAUSAL_LM",
    });
    if !config.rank_pattern.is_empty() {
        fields["rank_pattern"] = json!(config.rank_pattern);
    }
    if !config.alpha_pattern.is_empty() {
        let alphas = config.alpha_pattern.iter().map(|(pattern, alpha)| (pattern.clone(), number(*alpha)));
        fields["alpha_pattern"] = Value::Object(alphas.collect());
    }
    if let Some(layers) = &config.layers_to_transform {
        fields["layers_to_transform"] = json!(layers);
    }
    if let Some(excluded) = &config.exclude_modules {
        fields["exclude_modules"] = modules(excluded);
    }
    if config.use_rslora {
        fields["use_rslora"] = json!(true);
    }
    ascii(&format!("{fields:#}"))
}

fn ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut units = [0; 2];
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}
