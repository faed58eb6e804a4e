//! The table of settings. The flag parser, the configuration file, `--help`, the README, `run.json` and the
//! rules of resuming all follow from it.

use serde_json::Value;

/// How a value is written on the command line and in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A boolean; the flag alone means true.
    Switch,
    /// A boolean or nothing (`none`).
    OptionalSwitch,
    /// A whole number.
    Count,
    /// A whole number or nothing (`none`, or Hugging Face's `-1`).
    OptionalCount,
    /// A finite number.
    Number,
    /// A finite number or nothing.
    OptionalNumber,
    /// Any text.
    Text,
    /// A file or folder.
    Path,
    /// One file or several.
    Paths,
    /// One folder, or several separated by commas; or nothing.
    Folders,
    /// One of these names; dashes and underscores are the same.
    Choice(&'static [&'static str]),
    /// Module names, `all-linear`, or a regular expression.
    Modules,
    /// The same, or nothing.
    OptionalModules,
    /// Whole numbers separated by commas or spaces, or nothing.
    Counts,
    /// `auto`, `cpu`, `cuda`, `cuda:N`.
    Device,
    /// `auto`, a step, or a path.
    Resume,
    /// A JSON object.
    Json,
    /// Pairs `NAME=KEY`, separated by commas; the names are these.
    Pairs(&'static [&'static str]),
    /// Names of signals separated by commas, or nothing.
    Signals,
}

impl Kind {
    /// Whether it names files or folders.
    #[must_use]
    pub fn is_path(self) -> bool {
        matches!(self, Kind::Path | Kind::Paths | Kind::Folders)
    }
}

/// What a run that goes on may do with a setting. `resume`, `train` and `import`, their help, the README and the
/// identity of a run follow from this one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May change at any time: no result depends on it. What the files it names hold is compared by content.
    Free,
    /// May change too, but what is evaluated, which adapter is chosen or when the run ends early depends on it: the
    /// step from which the change counts is recorded.
    Recorded,
    /// How long the run is: may change, and is recorded with its step.
    Length,
    /// Decides the numbers, so a run keeps it; a branch may change it.
    Branch,
    /// Decides what the state is: a branch keeps it too.
    Refused,
    /// How this process starts; no part of the run, and not in `run.json`.
    Start,
}

impl Class {
    /// Whether the setting is part of what decides a run's numbers.
    #[must_use]
    pub fn decides_numbers(self) -> bool {
        matches!(self, Class::Branch | Class::Refused)
    }

    /// What the tables call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Class::Free => "free",
            Class::Recorded => "free, recorded",
            Class::Length => "length",
            Class::Branch => "branch",
            Class::Refused => "refused",
            Class::Start => "",
        }
    }
}

/// Heading under which a setting is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Model and data.
    Data,
    /// Length and batches.
    Batches,
    /// Optimizer and schedule.
    Optimizer,
    /// LoRA.
    Lora,
    /// Output, saving, evaluation.
    Output,
    /// Device.
    Device,
    /// Start and resume.
    Start,
}

impl Group {
    /// All groups, in the order they are shown.
    pub const ALL: [Group; 7] = [
        Group::Data,
        Group::Batches,
        Group::Optimizer,
        Group::Lora,
        Group::Output,
        Group::Device,
        Group::Start,
    ];

    /// The heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Group::Data => "Model and data",
            Group::Batches => "Length and batches",
            Group::Optimizer => "Optimizer",
            Group::Lora => "LoRA",
            Group::Output => "Output, saving, evaluation",
            Group::Device => "Device",
            Group::Start => "Start and resume",
        }
    }
}

/// One setting.
#[derive(Debug)]
pub struct Field {
    /// The flag, with underscores (`learning_rate` is `--learning-rate`).
    pub name: &'static str,
    /// The field of [`crate::config::Settings`].
    pub key: &'static str,
    /// Other names it is known by in Hugging Face, DeepKE and LLaMA-Factory.
    pub aliases: &'static [&'static str],
    /// How its value is written.
    pub kind: Kind,
    /// What a run that goes on may do with it.
    pub class: Class,
    /// Where it is listed.
    pub group: Group,
    /// Shown as the default where the plain value would not say it; empty: the value itself.
    pub default_note: &'static str,
    /// One line.
    pub doc: &'static str,
}

impl Field {
    /// The default as help and README show it.
    #[must_use]
    pub fn default_text(&self) -> String {
        if !self.default_note.is_empty() {
            return self.default_note.to_owned();
        }
        let all = serde_json::to_value(super::Settings::default()).unwrap_or(Value::Null);
        super::value::to_text(self.kind, &all[self.key])
    }

    /// The flag with dashes, without the leading `--`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }
}

/// The setting called `name`, by its own name, its field or an alias; dashes and underscores are the same.
#[must_use]
pub fn find(name: &str) -> Option<&'static Field> {
    let name = name.replace('-', "_");
    FIELDS.iter().find(|f| f.name == name || f.key == name || f.aliases.contains(&name.as_str()))
}

#[cfg(feature = "internals")]
/// The table of all settings, as the README has it.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| flag | default | meaning | on a resume |\n| --- | --- | --- | --- |\n");
    for group in Group::ALL {
        text += &format!("| **{}** | | | |\n", group.title());
        for field in FIELDS.iter().filter(|field| field.group == group) {
            let choices = match field.kind {
                Kind::Choice(names) => format!(": {}", names.join(", ")),
                _ => String::new(),
            };
            let (flag, default, class) = (field.flag(), field.default_text(), field.class.word());
            text += &format!("| `--{flag}` | {default} | {}{choices} | {class} |\n", field.doc);
        }
    }
    text
}

#[allow(clippy::too_many_arguments)]
const fn field(
    name: &'static str,
    key: &'static str,
    aliases: &'static [&'static str],
    kind: Kind,
    class: Class,
    group: Group,
    default_note: &'static str,
    doc: &'static str,
) -> Field {
    Field { name, key, aliases, kind, class, group, default_note, doc }
}

const FORMATS: &[&str] =
    &["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "tokenized"];
const TEMPLATES: &[&str] =
    &["auto", "qwen", "qwen1.5", "qwen2.5", "qwen3", "qwen3-nothink", "deepke", "none"];
const TRAIN_ON: &[&str] = &["assistant", "last-turn", "all", "qwen-official", "template"];
const SCHEDULERS: &[&str] = &[
    "linear",
    "cosine",
    "constant",
    "constant_with_warmup",
    "polynomial",
    "cosine_with_restarts",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
];
/// The names of columns and tags in LLaMA-Factory's `dataset_info.json`.
const COLUMNS: &[&str] = &[
    "prompt",
    "query",
    "response",
    "history",
    "messages",
    "system",
    "tools",
    "text",
    "role_tag",
    "content_tag",
    "user_tag",
    "assistant_tag",
    "observation_tag",
    "function_tag",
    "system_tag",
];
const STRATEGIES: &[&str] = &["steps", "epoch", "no"];

use Class::{Branch, Free, Length, Recorded, Refused, Start};
use Kind::{
    Choice, Count, Counts, Folders, Json, Modules, Number, OptionalCount, OptionalModules, OptionalNumber,
    OptionalSwitch, Pairs, Path, Paths, Resume, Signals, Switch, Text,
};

/// Every setting, in the order it is shown.
#[rustfmt::skip]
pub static FIELDS: &[Field] = &[
    field("model_name_or_path", "model", &["model", "base_model", "model_path"], Path, Free, Group::Data, "required",
        "Folder of the base model, as Hugging Face lays it out"),
    field("train_file", "train_files", &["data", "train_data", "data_path", "train_path"], Paths, Free, Group::Data, "required",
        "Training rows: one JSON Lines or JSON file, or several"),
    field("valid_file", "valid_file", &["validation_file", "eval_file", "dev_file", "eval_data_path", "valid_path"], Path, Free, Group::Data, "",
        "Rows to evaluate on"),
    field("val_set_size", "val_set_size", &["val_size"], Number, Branch, Group::Data, "",
        "Without a valid file: rows (or, below 1, fraction of rows) moved from training to evaluation"),
    field("format", "format", &[], Choice(FORMATS), Branch, Group::Data, "",
        "Row format; auto recognises it for each file"),
    field("columns", "columns", &[], Pairs(COLUMNS), Branch, Group::Data, "none",
        "What the keys of rows are called, such as prompt=question,response=answer"),
    field("max_samples", "max_samples", &[], OptionalCount, Branch, Group::Data, "all",
        "Rows taken from the beginning of each file"),
    field("template", "template", &[], Choice(TEMPLATES), Branch, Group::Data, "",
        "Chat template; auto runs the model folder's own"),
    field("chat_template", "chat_template", &["chat_template_path"], Path, Free, Group::Data, "",
        "A file with a Jinja chat template, in place of the model folder's own"),
    field("thinking", "thinking", &["enable_thinking"], OptionalSwitch, Branch, Group::Data, "the template's",
        "Whether the chat template is told to think (`enable_thinking`)"),
    field("system_prompt", "system_prompt", &["default_system"], Text, Branch, Group::Data, "the template's",
        "System text of rows that have none"),
    field("train_on", "train_on", &[], Choice(TRAIN_ON), Branch, Group::Data, "",
        "Which tokens are scored"),
    field("cutoff_len", "cutoff_len", &["max_seq_len", "max_seq_length", "max_length", "model_max_length"], Count, Branch, Group::Data, "",
        "Longest row, tokens"),
    field("max_source_length", "max_source_length", &[], OptionalCount, Branch, Group::Data, "",
        "Longest prompt, tokens"),
    field("max_target_length", "max_target_length", &[], OptionalCount, Branch, Group::Data, "",
        "Longest answer, tokens"),
    field("too_long", "too_long", &[], Choice(&["drop", "truncate", "error"]), Branch, Group::Data, "",
        "What happens to a longer row: left out and counted, cut behind its headers, or an error"),
    field("packing", "packing", &["neat_packing"], Switch, Branch, Group::Data, "",
        "Put several rows into one sequence; they never see each other"),
    field("skip_bad_rows", "skip_bad_rows", &[], Count, Branch, Group::Data, "",
        "Bad rows to leave out; one more stops the run"),
    field("cache_dir", "cache_dir", &["cache_path"], Path, Free, Group::Data, "the user's cache folder",
        "Where tokenised rows are kept"),

    field("per_device_train_batch_size", "per_device_train_batch_size",
        &["per_gpu_train_batch_size", "train_batch_size", "micro_batch_size", "batch_size"], Count, Branch, Group::Batches, "",
        "Rows of one micro-batch"),
    field("per_device_eval_batch_size", "per_device_eval_batch_size", &["per_gpu_eval_batch_size", "eval_batch_size"],
        Count, Recorded, Group::Batches, "", "Rows of one evaluation micro-batch"),
    field("gradient_accumulation_steps", "gradient_accumulation_steps", &["grad_accumulation_steps"], Count, Branch, Group::Batches, "",
        "Micro-batches of one optimizer step"),
    field("tokens_per_micro_batch", "tokens_per_micro_batch", &[], Count, Branch, Group::Batches, "8192, with --packing",
        "Tokens of one packed micro-batch"),
    field("num_train_epochs", "num_train_epochs", &["num_epochs", "epochs"], Number, Length, Group::Batches, "",
        "Passes over the training rows; may be a fraction"),
    field("max_steps", "max_steps", &[], OptionalCount, Length, Group::Batches, "",
        "Optimizer steps, whatever the epochs say"),
    field("shuffle", "shuffle", &[], Switch, Branch, Group::Batches, "",
        "New order of the rows in every epoch"),
    field("seed", "seed", &[], Count, Branch, Group::Batches, "",
        "Decides order, initialisation and dropout"),

    field("learning_rate", "learning_rate", &["lr"], Number, Branch, Group::Optimizer, "0.0001",
        "Peak learning rate of AdamW"),
    field("lr_scheduler_type", "lr_scheduler_type", &["lr_scheduler", "scheduler"], Choice(SCHEDULERS), Branch, Group::Optimizer, "",
        "Shape of the learning rate over the run; wsd means warmup_stable_decay"),
    field("lr_scheduler_kwargs", "lr_scheduler_kwargs", &[], Json, Branch, Group::Optimizer, "",
        "Its parameters, as Hugging Face names them"),
    field("warmup_steps", "warmup_steps", &[], Number, Branch, Group::Optimizer, "",
        "Steps of rising learning rate; below 1 a share of all steps"),
    field("warmup_ratio", "warmup_ratio", &[], OptionalNumber, Branch, Group::Optimizer, "",
        "The same as a share of all steps; used when warmup_steps is 0"),
    field("weight_decay", "weight_decay", &[], Number, Branch, Group::Optimizer, "",
        "Decoupled weight decay"),
    field("adam_beta1", "adam_beta1", &[], Number, Branch, Group::Optimizer, "", "Decay of the first moment"),
    field("adam_beta2", "adam_beta2", &[], Number, Branch, Group::Optimizer, "", "Decay of the second moment"),
    field("adam_epsilon", "adam_epsilon", &["adam_eps"], Number, Branch, Group::Optimizer, "1e-8", "Added to the divisor"),
    field("max_grad_norm", "max_grad_norm", &["gradient_clipping"], Number, Branch, Group::Optimizer, "",
        "Longer gradients are scaled to this norm; 0 turns it off"),

    field("lora_r", "lora_r", &["lora_rank", "rank"], Count, Refused, Group::Lora, "", "Rank"),
    field("lora_alpha", "lora_alpha", &[], Number, Refused, Group::Lora, "2 x lora_r",
        "Scale: the adapter counts alpha / rank times"),
    field("lora_dropout", "lora_dropout", &[], Number, Branch, Group::Lora, "", "Share of adapter inputs dropped"),
    field("lora_target_modules", "lora_target_modules", &["lora_target", "target_modules"], Modules, Refused, Group::Lora, "",
        "Adapted layers: all-linear, names separated by commas or spaces, or a regular expression of whole names"),
    field("lora_exclude_modules", "lora_exclude_modules", &["exclude_modules"], OptionalModules, Refused, Group::Lora, "none",
        "Layers that get no adapter although the targets name them, PEFT's exclude_modules"),
    field("lora_rank_pattern", "lora_rank_pattern", &["rank_pattern"], Json, Refused, Group::Lora, "",
        "Ranks of layers that have their own, PEFT's rank_pattern: a JSON object of patterns that the ends of their names match"),
    field("lora_alpha_pattern", "lora_alpha_pattern", &["alpha_pattern"], Json, Refused, Group::Lora, "",
        "The same for alpha, PEFT's alpha_pattern"),
    field("layers_to_transform", "layers_to_transform", &["lora_layers_to_transform"], Counts, Refused, Group::Lora, "all",
        "Blocks whose layers are adapted, by number, the first is 0"),
    field("use_rslora", "use_rslora", &["rslora"], Switch, Refused, Group::Lora, "", "Scale by alpha / sqrt(rank)"),
    field("loraplus_lr_ratio", "loraplus_lr_ratio", &["lorap_lr_ratio"], Number, Branch, Group::Lora, "",
        "LoRA+: learning rate of B over that of A"),

    field("output_dir", "output_dir", &[], Path, Free, Group::Output, "required", "Folder of the run"),
    field("save_strategy", "save_strategy", &[], Choice(STRATEGIES), Free, Group::Output, "",
        "When checkpoints are written; the last step always is"),
    field("save_steps", "save_steps", &[], Number, Free, Group::Output, "",
        "Steps between checkpoints; below 1 a share of all steps"),
    field("save_total_limit", "save_total_limit", &[], Count, Free, Group::Output, "",
        "Checkpoints kept; 1 counts as 2, 0 keeps all"),
    field("logging_steps", "logging_steps", &[], Count, Free, Group::Output, "",
        "Steps between console lines; metrics.jsonl has every step"),
    field("report_to", "report_to", &[], Choice(&["none", "tensorboard"]), Free, Group::Output, "",
        "Where else the numbers go: tensorboard writes an event file into output_dir"),
    field("eval_strategy", "eval_strategy", &["evaluation_strategy"], Choice(STRATEGIES), Recorded, Group::Output, "",
        "When the valid rows are evaluated"),
    field("eval_steps", "eval_steps", &[], OptionalNumber, Recorded, Group::Output, "logging_steps",
        "Steps between evaluations; below 1 a share of all steps"),
    field("eval_on_start", "eval_on_start", &[], Switch, Recorded, Group::Output, "",
        "Evaluate before the first step too"),
    field("load_best_model_at_end", "load_best_model_at_end", &["load_best"], Switch, Recorded, Group::Output, "",
        "The final adapter is that of the best evaluation"),
    field("early_stopping_patience", "early_stopping_patience", &["early_stopping_steps"], OptionalCount, Recorded, Group::Output, "",
        "Stop after this many evaluations without a better one"),

    field("device", "device", &[], Kind::Device, Free, Group::Device, "", "auto, cpu, cuda or cuda:N"),
    field("dtype", "dtype", &["torch_dtype", "compute_dtype"], Choice(&["auto", "bf16", "f32"]), Free, Group::Device, "",
        "Arithmetic of products with the model's weights; CUDA has bf16 alone"),
    field("cpu_isa", "cpu_isa", &[], Choice(&["auto", "portable", "avx2", "avx512", "avx512bf16"]), Free, Group::Device, "",
        "Vector instructions of the CPU; the numbers are the same with all of them"),
    field("recompute", "recompute", &[], Choice(&["auto", "none", "mlp", "full"]), Free, Group::Device, "",
        "Activations computed again instead of kept: less memory, more time, the same numbers"),
    field("threads", "threads", &["num_threads"], OptionalCount, Free, Group::Device, "all cores",
        "Threads; the numbers are the same for any number of them"),

    field("resume_from_checkpoint", "resume_from_checkpoint", &[], Resume, Start, Group::Start, "",
        "Continue with the complete state: auto, a step, or a path, also of a Hugging Face checkpoint-N"),
    field("branch", "branch", &[], Switch, Start, Group::Start, "",
        "With resume_from_checkpoint and a new output_dir: a run of its own that begins with that state and changes settings"),
    field("init_adapter", "init_adapter", &["checkpoint_dir", "adapter_name_or_path", "lora_weights"], Path, Free, Group::Start, "",
        "Begin with the weights of a PEFT adapter; step, optimizer and schedule start new. Of several, separated by commas, all but the last are folded"),
    field("fold_adapters", "fold_adapters", &[], Folders, Free, Group::Start, "none",
        "PEFT adapters that are folded into the base before training, separated by commas"),
    field("overwrite_output_dir", "overwrite_output_dir", &[], Switch, Start, Group::Start, "",
        "Start over in a folder that holds a run; its files are moved aside"),
    field("allow_inexact", "allow_inexact", &[], Switch, Start, Group::Start, "",
        "Resume although engine or device differ; recorded in the run for ever"),
    field("verify_base", "verify_base", &[], Switch, Start, Group::Start, "",
        "Read and digest the whole base model again, in place of the digest kept for an unchanged file"),
    field("fresh_optimizer", "fresh_optimizer", &[], Switch, Start, Group::Start, "",
        "For a Hugging Face checkpoint without moments: they begin at zero; recorded in the run for ever"),
    field("stop_signal", "stop_signals", &[], Signals, Start, Group::Start, "none",
        "Further signals that save and stop, such as USR1, separated by commas"),
    field("quiet", "quiet", &[], Switch, Start, Group::Start, "", "Print nothing but warnings and errors"),
];
