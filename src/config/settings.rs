//! The resolved settings of a run. Names, defaults and meanings are the command line's contract.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Row format of a data file; `Auto` recognises it per file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum RowFormat {
    Auto,
    Messages,
    Sharegpt,
    Alpaca,
    PromptCompletion,
    Text,
    Tokenized,
}

/// Chat template; `Auto` runs the model folder's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Template {
    #[serde(rename = "auto")]
    Auto,
    #[serde(rename = "qwen")]
    Qwen,
    #[serde(rename = "qwen1.5")]
    Qwen15,
    #[serde(rename = "qwen2.5")]
    Qwen25,
    #[serde(rename = "qwen3")]
    Qwen3,
    #[serde(rename = "qwen3-nothink")]
    Qwen3NoThink,
    #[serde(rename = "deepke")]
    Deepke,
    #[serde(rename = "none")]
    None,
}

/// Which tokens of a rendered row are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// Each assistant turn's content and its `<|im_end|>`.
    Assistant,
    /// Only the last assistant turn.
    LastTurn,
    /// Every token.
    All,
    /// The mask of the official Qwen fine-tuning script.
    QwenOfficial,
    /// What the chat template marks with `{% generation %}`.
    Template,
}

/// What happens to a row longer than the cutoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TooLong {
    /// Left out and counted.
    Drop,
    /// Cut; template headers are kept.
    Truncate,
    /// Stops the run.
    Error,
}

/// Learning-rate schedule, with the values of Hugging Face's `get_scheduler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Scheduler {
    Linear,
    Cosine,
    Constant,
    ConstantWithWarmup,
    Polynomial,
    CosineWithRestarts,
    InverseSqrt,
    CosineWithMinLr,
    CosineWarmupWithMinLr,
    WarmupStableDecay,
}

/// When something periodic happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Strategy {
    Steps,
    Epoch,
    No,
}

/// Device asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(u32),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceChoice {
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            other => other.strip_prefix("cuda:")?.parse().ok().map(DeviceChoice::Cuda),
        }
    }
}

/// Arithmetic of products with frozen weights. CUDA has bf16 alone, with activations in bf16 as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Dtype {
    Auto,
    Bf16,
    F32,
}

/// Vector instructions of the CPU; all give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum CpuIsa {
    Auto,
    Portable,
    Avx2,
    Avx512,
    Avx512Bf16,
}

impl CpuIsa {
    /// Its name; `None` for the best there is.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            CpuIsa::Auto => None,
            CpuIsa::Portable => Some("portable"),
            CpuIsa::Avx2 => Some("avx2"),
            CpuIsa::Avx512 => Some("avx512"),
            CpuIsa::Avx512Bf16 => Some("avx512bf16"),
        }
    }
}

/// Which activations are computed again in the backward pass instead of kept. Never changes bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Recompute {
    Auto,
    None,
    Mlp,
    Full,
}

/// Where else a run's numbers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    /// Nowhere: `metrics.jsonl` and `report.html` have them.
    None,
    /// An event file of TensorBoard.
    Tensorboard,
}

/// Which linear layers get an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Targets {
    /// Every linear layer of the blocks; never the output head.
    #[default]
    AllLinear,
    /// Module names or dotted suffixes (`q_proj`, `attn.c_proj`).
    Names(Vec<String>),
    /// A regular expression that whole module names match, as in PEFT.
    Pattern(String),
}

/// Where a run's state comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResumeFrom {
    /// The newest valid checkpoint of the output folder; a new run when there is none.
    Auto,
    /// The checkpoint of that step in the output folder.
    Step(u64),
    /// A native checkpoint, a run folder, or a Hugging Face `checkpoint-N`.
    Path(PathBuf),
}

/// Everything `train` can be told, resolved: defaults filled in, values checked one by one. What each means is in
/// the README's table; lengths are in tokens, learning rates are those of one step.
/// Serialises to the `settings` object of `run.json` and is read back from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    // model, data
    /// Folder of the base model, as Hugging Face lays it out.
    pub model: PathBuf,
    /// Training rows: one JSON Lines or JSON file, or several.
    pub train_files: Vec<PathBuf>,
    /// Rows to evaluate on.
    pub valid_file: Option<PathBuf>,
    /// A fraction below 1, or a number of rows, moved from training to evaluation.
    pub val_set_size: f64,
    /// Row format; auto recognises it for each file.
    pub format: RowFormat,
    /// LLaMA-Factory's name of a column to the key that the rows have for it; an empty key: they have none.
    pub columns: BTreeMap<String, String>,
    /// Rows taken from the beginning of each file; `None`: all.
    pub max_samples: Option<usize>,
    /// Chat template; auto runs the model folder's own.
    pub template: Template,
    /// A file with a chat template, in place of the model folder's own.
    pub chat_template: Option<PathBuf>,
    /// `enable_thinking` of the chat template; `None`: not set.
    pub thinking: Option<bool>,
    /// System text of rows that have none.
    pub system_prompt: Option<String>,
    /// Which tokens are scored.
    pub train_on: TrainOn,
    /// Longest row, tokens.
    pub cutoff_len: usize,
    /// Longest prompt, tokens.
    pub max_source_length: Option<usize>,
    /// Longest answer, tokens.
    pub max_target_length: Option<usize>,
    /// What happens to a longer row: left out and counted, cut behind its headers, or an error.
    pub too_long: TooLong,
    /// Put several rows into one sequence; they never see each other.
    pub packing: bool,
    /// Bad rows to leave out; one more stops the run.
    pub skip_bad_rows: usize,
    /// Where tokenised rows are kept.
    pub cache_dir: Option<PathBuf>,
    // length, batches
    /// Rows of a micro-batch, where rows are not packed.
    pub per_device_train_batch_size: usize,
    /// Rows evaluated at once.
    pub per_device_eval_batch_size: usize,
    /// Micro-batches of one optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Tokens of one packed micro-batch.
    pub tokens_per_micro_batch: usize,
    /// Passes over the training rows; may be a fraction.
    pub num_train_epochs: f64,
    /// Optimizer steps, whatever the epochs say.
    pub max_steps: Option<u64>,
    /// New order of the rows in every epoch.
    pub shuffle: bool,
    /// Decides order, initialisation and dropout.
    pub seed: u64,
    // optimizer
    /// Peak learning rate of AdamW.
    pub learning_rate: f64,
    /// Shape of the learning rate over the run; wsd means warmup_stable_decay.
    pub lr_scheduler_type: Scheduler,
    /// Its parameters, as Hugging Face names them.
    pub lr_scheduler_kwargs: serde_json::Map<String, serde_json::Value>,
    /// A value below 1 is a ratio of all steps.
    pub warmup_steps: f64,
    /// The same as a share of all steps; used when warmup_steps is 0.
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the divisor.
    pub adam_epsilon: f64,
    /// 0 means no clipping.
    pub max_grad_norm: f64,
    // LoRA
    /// Rank.
    pub lora_r: usize,
    /// Filled in as 2 × rank when not given.
    pub lora_alpha: f64,
    /// Share of adapter inputs dropped.
    pub lora_dropout: f64,
    /// Adapted layers: all-linear, names separated by commas or spaces, or a regular expression of whole names.
    pub lora_target_modules: Targets,
    /// Layers that get none although the targets name them.
    pub lora_exclude_modules: Option<Targets>,
    /// Pattern to rank, for the layers the end of whose name matches; as PEFT's `rank_pattern`.
    pub lora_rank_pattern: BTreeMap<String, usize>,
    /// Pattern to alpha, as PEFT's `alpha_pattern`.
    pub lora_alpha_pattern: BTreeMap<String, f64>,
    /// Blocks whose layers are adapted, ascending; `None`: all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Scale by alpha / sqrt(rank).
    pub use_rslora: bool,
    /// LoRA+: learning rate of B over that of A.
    pub loraplus_lr_ratio: f64,
    // output
    /// Folder of the run.
    pub output_dir: PathBuf,
    /// When checkpoints are written; the last step always is.
    pub save_strategy: Strategy,
    /// A value below 1 is a ratio of all steps.
    pub save_steps: f64,
    /// Checkpoints kept; 1 counts as 2, 0 keeps all.
    pub save_total_limit: usize,
    /// Steps between console lines; metrics.jsonl has every step.
    pub logging_steps: u64,
    /// Where else the numbers go: tensorboard writes an event file into output_dir.
    pub report_to: ReportTo,
    /// When the valid rows are evaluated.
    pub eval_strategy: Strategy,
    /// `None`: as often as `logging_steps`, as in Hugging Face.
    pub eval_steps: Option<f64>,
    /// The final adapter is that of the best evaluation.
    pub load_best_model_at_end: bool,
    /// Stop after this many evaluations without a better one.
    pub early_stopping_patience: Option<u64>,
    /// Start over in a folder that holds a run; its files are moved aside.
    pub overwrite_output_dir: bool,
    /// Evaluate before the first step as well.
    pub eval_on_start: bool,
    // device
    /// Auto, cpu, cuda or cuda:N.
    pub device: DeviceChoice,
    /// Arithmetic of products with the model's weights; CUDA has bf16 alone.
    pub dtype: Dtype,
    /// Vector instructions of the CPU; the numbers are the same with all of them.
    pub cpu_isa: CpuIsa,
    /// Activations computed again instead of kept: less memory, more time, the same numbers.
    pub recompute: Recompute,
    /// Threads; the numbers are the same for any number of them.
    pub threads: Option<usize>,
    // start
    /// Continue with the complete state: auto, a step, or a path, also of a Hugging Face checkpoint-N.
    pub resume_from_checkpoint: Option<ResumeFrom>,
    /// Begin a run of its own with the state of `resume_from_checkpoint`, under changed settings.
    pub branch: bool,
    /// Begin with the weights of a PEFT adapter; step, optimizer and schedule start new. Of several, separated by commas, all but the last are folded.
    pub init_adapter: Option<PathBuf>,
    /// PEFT folders whose adapters are folded into the base, one after the other.
    pub fold_adapters: Vec<PathBuf>,
    /// Resume although engine or device differ; recorded in the run for ever.
    pub allow_inexact: bool,
    /// Digest the base again, whatever digest of it was kept.
    pub verify_base: bool,
    /// For a Hugging Face checkpoint without moments: they begin at zero; recorded in the run for ever.
    pub fresh_optimizer: bool,
    /// Signals that save and stop beside the usual ones, by name (`USR1`).
    pub stop_signals: Vec<String>,
    /// Print nothing but errors.
    pub quiet: bool,
}

impl Default for Settings {
    // Close to each other stands what belongs together, so that all defaults are seen at once.
    #[rustfmt::skip]
    fn default() -> Self {
        Settings {
            model: PathBuf::new(),
            train_files: Vec::new(),
            valid_file: None, val_set_size: 0.0,
            format: RowFormat::Auto,
            columns: BTreeMap::new(), max_samples: None,
            template: Template::Auto,
            chat_template: None,
            thinking: None,
            system_prompt: None,
            train_on: TrainOn::Assistant,
            cutoff_len: 2048,
            max_source_length: None, max_target_length: None,
            too_long: TooLong::Drop,
            packing: false,
            skip_bad_rows: 0,
            cache_dir: None,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            tokens_per_micro_batch: 8192,
            num_train_epochs: 3.0,
            max_steps: None,
            shuffle: true,
            seed: 42,
            learning_rate: 1e-4,
            lr_scheduler_type: Scheduler::Linear,
            lr_scheduler_kwargs: serde_json::Map::new(),
            warmup_steps: 0.0, warmup_ratio: None,
            weight_decay: 0.0,
            adam_beta1: 0.9, adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            lora_target_modules: Targets::AllLinear, lora_exclude_modules: None,
            lora_rank_pattern: BTreeMap::new(), lora_alpha_pattern: BTreeMap::new(),
            layers_to_transform: None,
            use_rslora: false,
            loraplus_lr_ratio: 1.0,
            output_dir: PathBuf::new(),
            save_strategy: Strategy::Steps,
            save_steps: 500.0,
            save_total_limit: 3,
            logging_steps: 10,
            report_to: ReportTo::None,
            eval_strategy: Strategy::No, eval_steps: None,
            load_best_model_at_end: false,
            early_stopping_patience: None,
            overwrite_output_dir: false,
            eval_on_start: false,
            device: DeviceChoice::Auto,
            dtype: Dtype::Auto,
            cpu_isa: CpuIsa::Auto,
            recompute: Recompute::Auto,
            threads: None,
            resume_from_checkpoint: None,
            branch: false, init_adapter: None, fold_adapters: Vec::new(),
            allow_inexact: false,
            verify_base: false,
            fresh_optimizer: false,
            stop_signals: Vec::new(),
            quiet: false,
        }
    }
}
