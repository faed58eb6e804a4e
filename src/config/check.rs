//! Ranges and combinations, checked before anything is opened; then the inputs a run needs.

use super::model_folder;
use super::settings::{DeviceChoice, Dtype, ResumeFrom, Settings, Strategy, Targets, Template};
use crate::error::{Error, Result};
use crate::files;

/// Checks every setting by itself and the combinations that contradict each other.
///
/// # Errors
/// Usage, naming the setting and what it may be.
pub fn check(s: &Settings) -> Result<()> {
    check_values(s)?;
    check_combinations(s)
}

/// Checks every setting by itself.
///
/// # Errors
/// Usage, naming the setting and what it may be.
pub fn check_values(s: &Settings) -> Result<()> {
    check_counts(s)?;
    check_numbers(s)
}

fn need(holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::usage(message())) }
}

fn check_counts(s: &Settings) -> Result<()> {
    let at_least_one = [
        ("per_device_train_batch_size", Some(s.per_device_train_batch_size as u64)),
        ("per_device_eval_batch_size", Some(s.per_device_eval_batch_size as u64)),
        ("gradient_accumulation_steps", Some(s.gradient_accumulation_steps as u64)),
        ("tokens_per_micro_batch", Some(s.tokens_per_micro_batch as u64)),
        ("cutoff_len", Some(s.cutoff_len as u64)),
        ("max_source_length", s.max_source_length.map(|n| n as u64)),
        ("max_target_length", s.max_target_length.map(|n| n as u64)),
        ("max_steps", s.max_steps),
        ("max_samples", s.max_samples.map(|n| n as u64)),
        ("logging_steps", Some(s.logging_steps)),
        ("lora_r", Some(s.lora_r as u64)),
        ("early_stopping_patience", s.early_stopping_patience),
        ("threads", s.threads.map(|n| n as u64)),
    ];
    for (name, value) in at_least_one {
        need(value != Some(0), || format!("{name} must be at least 1"))?;
    }
    let small = [
        ("per_device_train_batch_size", s.per_device_train_batch_size),
        ("per_device_eval_batch_size", s.per_device_eval_batch_size),
        ("gradient_accumulation_steps", s.gradient_accumulation_steps),
        ("tokens_per_micro_batch", s.tokens_per_micro_batch),
        ("cutoff_len", s.cutoff_len),
    ];
    for (name, value) in small {
        need(value <= 1 << 24, || format!("{name} must be at most {}, it is {value}", 1 << 24))?;
    }
    need(s.lora_r <= 4096, || format!("lora_r must be at most 4096, it is {}", s.lora_r))?;
    for (pattern, rank) in &s.lora_rank_pattern {
        need((1..=4096).contains(rank), || {
            format!("lora_rank_pattern: the rank of {pattern:?} must be from 1 to 4096, it is {rank}")
        })?;
    }
    need(s.layers_to_transform.as_ref().is_none_or(|layers| !layers.is_empty()), || {
        "layers_to_transform names no block; without it all blocks are adapted".into()
    })?;
    need(s.threads.unwrap_or(1) <= 4096, || "threads must be at most 4096".into())
}

fn check_numbers(s: &Settings) -> Result<()> {
    let not_negative = [
        ("learning_rate", s.learning_rate),
        ("weight_decay", s.weight_decay),
        ("adam_epsilon", s.adam_epsilon),
        ("max_grad_norm", s.max_grad_norm),
        ("warmup_steps", s.warmup_steps),
        ("val_set_size", s.val_set_size),
    ];
    for (name, value) in not_negative {
        need(value.is_finite() && value >= 0.0, || {
            format!("{name} must be finite and not negative, it is {value}")
        })?;
    }
    let positive = [
        ("num_train_epochs", s.num_train_epochs),
        ("lora_alpha", s.lora_alpha),
        ("loraplus_lr_ratio", s.loraplus_lr_ratio),
        ("save_steps", s.save_steps),
        ("eval_steps", s.eval_steps.unwrap_or(1.0)),
    ];
    for (name, value) in positive {
        need(value.is_finite() && value > 0.0, || {
            format!("{name} must be finite and above 0, it is {value}")
        })?;
    }
    for (pattern, alpha) in &s.lora_alpha_pattern {
        need(alpha.is_finite() && *alpha > 0.0, || {
            format!("lora_alpha_pattern: the alpha of {pattern:?} must be finite and above 0, it is {alpha}")
        })?;
    }
    let below_one =
        [("lora_dropout", s.lora_dropout), ("adam_beta1", s.adam_beta1), ("adam_beta2", s.adam_beta2)];
    for (name, value) in below_one {
        need((0.0..1.0).contains(&value), || {
            format!("{name} must be at least 0 and below 1, it is {value}")
        })?;
    }
    need((0.0..=1.0).contains(&s.warmup_ratio.unwrap_or(0.0)), || "warmup_ratio must be from 0 to 1".into())?;
    let whole_or_share = [
        ("warmup_steps", s.warmup_steps),
        ("val_set_size", s.val_set_size),
        ("save_steps", s.save_steps),
        ("eval_steps", s.eval_steps.unwrap_or(1.0)),
    ];
    for (name, value) in whole_or_share {
        need(value < 1.0 || value.fract() == 0.0, || {
            format!("{name} must be a whole number, or a share below 1; it is {value}")
        })?;
    }
    Ok(())
}

fn check_combinations(s: &Settings) -> Result<()> {
    let evaluates = s.valid_file.is_some() || s.val_set_size > 0.0;
    need(evaluates || s.eval_strategy == Strategy::No, || {
        "eval_strategy needs rows to evaluate on: --valid-file FILE, or --val-set-size N".into()
    })?;
    need(evaluates || !s.eval_on_start, || {
        "eval_on_start needs rows to evaluate on: --valid-file FILE, or --val-set-size N".into()
    })?;
    for (name, given) in [
        ("load_best_model_at_end", s.load_best_model_at_end),
        ("early_stopping_patience", s.early_stopping_patience.is_some()),
    ] {
        need(!given || s.eval_strategy != Strategy::No, || {
            format!("{name} needs evaluations: --eval-strategy steps or epoch")
        })?;
    }
    need(s.lora_target_modules != Targets::Names(Vec::new()), || {
        "lora_target_modules names no module; all-linear adapts every linear layer".into()
    })?;
    need(s.chat_template.is_none() || s.template == Template::Auto, || {
        "chat_template is a template of its own: give it or template, not both".into()
    })?;
    one_beginning(s.resume_from_checkpoint.as_ref(), s.init_adapter.is_some())?;
    check_device(s)
}

/// A complete state and weights alone exclude each other; but beside `auto` an adapter's folder stands for the complete
/// state in it.
///
/// # Errors
/// Usage.
pub fn one_beginning(resume: Option<&ResumeFrom>, adapter: bool) -> Result<()> {
    need(!adapter || resume.is_none_or(|from| *from == ResumeFrom::Auto), || {
        "resume_from_checkpoint continues a complete state, init_adapter (checkpoint_dir) begins anew with weights only: give one of them".into()
    })
}

fn check_device(s: &Settings) -> Result<()> {
    need(!matches!(s.device, DeviceChoice::Cuda(_)) || s.dtype != Dtype::F32, || {
        "dtype f32 is the CPU's; CUDA computes in bf16 with f32 accumulation (--dtype auto or bf16)".into()
    })
}

/// Checks that the inputs a run names are there, and finds the model's folder where its name is that of the hub.
/// `needs_output` is false where nothing is written.
///
/// # Errors
/// Usage when a required setting is missing, input when a file or folder is.
pub fn check_inputs(s: &mut Settings, needs_output: bool) -> Result<()> {
    let missing =
        |what: &str, how: &str| Err(Error::usage(format!("{what} is missing")).hint(how.to_owned()));
    if s.model.as_os_str().is_empty() {
        return missing(
            "the model",
            "give its folder: --model-name-or-path DIR, or model = \"DIR\" in the --config file",
        );
    }
    if s.train_files.is_empty() {
        return missing(
            "the training data",
            "give it: --train-file FILE, or train_file = \"FILE\" in the --config file",
        );
    }
    if needs_output && s.output_dir.as_os_str().is_empty() {
        return missing("the output folder", "give it: --output-dir DIR");
    }
    s.model = model_folder::find(&s.model)?;
    for file in s.train_files.iter().chain(&s.valid_file) {
        if !files::exists(file)? {
            return Err(Error::input(format!("{}: no such data file", file.display())));
        }
        files::open(file)?;
    }
    for adapter in &s.fold_adapters {
        if !files::is_folder(adapter)? {
            return Err(Error::input(format!("{}: no such adapter folder", adapter.display())));
        }
    }
    Ok(())
}
