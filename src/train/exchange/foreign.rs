//! A checkpoint of Trainer as it is read: its adapter, optimizer, schedule and progress, checked against each
//! other and against the settings it is to continue with.

use super::set;
use crate::config::{Layer, Settings, Targets};
use crate::error::{Error, Result};
use crate::files;
use crate::formats::hf_trainer::{self, Group, Optimizer, Progress, Schedule};
use crate::formats::peft::{self, Adapter};
use crate::model::Layout;
use serde_json::json;
use std::path::{Path, PathBuf};

/// A checkpoint of Trainer, checked as far as it can be without the model and the rows.
pub struct Foreign {
    /// Its folder.
    pub folder: PathBuf,
    /// The adapter.
    pub adapter: Adapter,
    /// How far it is.
    pub progress: Progress,
    /// Moments and schedule; `None` with `--fresh-optimizer`.
    pub optimizer: Option<(Optimizer, Schedule)>,
}

/// The flat first and second moments in the layout's order, and how often AdamW was applied.
pub(super) struct Flat {
    pub m: Vec<f32>,
    pub v: Vec<f32>,
    pub updates: u64,
}

/// The names that mean every linear layer: Qwen v1's, later models'.
const EVERY_LINEAR: [&[&str]; 2] = [
    &["attn.c_proj", "c_attn", "mlp.c_proj", "w1", "w2"],
    &["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
];

/// What the optimizer and schedule say of the run's settings.
struct Rates {
    learning_rate: f64,
    ratio: f64,
    group: Group,
}

impl Foreign {
    /// Reads a folder. With `fresh`, there must be no optimizer in it.
    ///
    /// # Errors
    /// Names the file and what is wrong with it; nothing in any of them is executed.
    pub fn read(folder: &Path, fresh: bool) -> Result<Self> {
        let shown = folder.display();
        let progress = hf_trainer::read_progress(&folder.join(hf_trainer::STATE))?;
        if !files::exists(&folder.join(peft::CONFIG))? {
            return Err(Error::input(format!("{shown}: no {}, so no LoRA adapter", peft::CONFIG))
                .hint("a checkpoint of full fine-tuning cannot be continued with LoRA; use it as --model-name-or-path"));
        }
        let adapter = peft::read(folder)?;
        let [optimizer, scheduler] = [hf_trainer::OPTIMIZER, hf_trainer::SCHEDULER].map(|f| folder.join(f));
        let optimizer = match (fresh, files::exists(&optimizer)?, files::exists(&scheduler)?) {
            (true, false, _) => None,
            (true, true, _) => {
                return Err(Error::usage(format!(
                    "{shown} holds its optimizer, which --fresh-optimizer would drop"
                ))
                .hint("leave --fresh-optimizer out"));
            }
            (false, true, true) => {
                Some((Optimizer::open(&optimizer)?, hf_trainer::read_schedule(&scheduler)?))
            }
            (false, there, _) => {
                let file = if there { hf_trainer::SCHEDULER } else { hf_trainer::OPTIMIZER };
                return Err(Error::input(format!("{shown}: {file} is missing")).hint(if there {
                    "the checkpoint is not whole; take an earlier one"
                } else {
                    "--fresh-optimizer goes on from its step with moments that begin at zero, and records it"
                }));
            }
        };
        let foreign = Foreign { folder: folder.to_owned(), adapter, progress, optimizer };
        foreign.rates()?;
        Ok(foreign)
    }

    /// The settings the checkpoint tells of its run, to lie below those that were `given`.
    #[must_use]
    pub fn implied(&self, given: &Layer) -> Layer {
        let mut layer = Layer::default();
        let mut put = |key: &str, value| set(&mut layer, key, value);
        let config = &self.adapter.config;
        put("lora_r", json!(config.r));
        put("lora_alpha", json!(config.lora_alpha));
        put("lora_dropout", json!(config.lora_dropout));
        put("use_rslora", json!(config.use_rslora));
        put("lora_rank_pattern", json!(config.rank_pattern));
        put("lora_alpha_pattern", json!(config.alpha_pattern));
        put("layers_to_transform", json!(config.layers_to_transform));
        // Of all linear layers the default speaks, so that the same command line goes on with the run later.
        let every = match &config.target_modules {
            Targets::AllLinear => true,
            Targets::Names(found) => EVERY_LINEAR.iter().any(|names| found == names),
            Targets::Pattern(_) => false,
        };
        if !every {
            put("lora_target_modules", json!(config.target_modules));
        }
        put("lora_exclude_modules", json!(config.exclude_modules));
        let progress = &self.progress;
        put("num_train_epochs", json!(progress.num_train_epochs as f64));
        // Trainer rounds the epochs up; given epochs that round to the same are those of this run.
        let epochs = given.get("num_train_epochs").and_then(serde_json::Value::as_f64);
        if epochs.is_none_or(|e| e.ceil() == progress.num_train_epochs as f64) {
            put("max_steps", json!(progress.max_steps));
        }
        if let Some(rows) = progress.batch_size {
            put("per_device_train_batch_size", json!(rows));
        }
        if let Ok(Some(rates)) = self.rates() {
            put("learning_rate", json!(rates.learning_rate));
            put("loraplus_lr_ratio", json!(rates.ratio));
            put("weight_decay", json!(rates.group.weight_decay));
            put("adam_beta1", json!(rates.group.betas[0]));
            put("adam_beta2", json!(rates.group.betas[1]));
            put("adam_epsilon", json!(rates.group.epsilon));
        }
        layer
    }

    /// Refuses settings that contradict the checkpoint.
    ///
    /// # Errors
    /// [`crate::error::Kind::Refused`] listing every setting, the checkpoint's value and the given one.
    pub fn check_settings(&self, s: &Settings) -> Result<()> {
        let config = &self.adapter.config;
        let mut pairs = vec![
            ("lora_r", config.r as f64, s.lora_r as f64),
            ("lora_alpha", config.lora_alpha, s.lora_alpha),
            ("lora_dropout", config.lora_dropout, s.lora_dropout),
            ("use_rslora", f64::from(u8::from(config.use_rslora)), f64::from(u8::from(s.use_rslora))),
        ];
        if let Some(rates) = self.rates()? {
            pairs.extend([
                ("learning_rate", rates.learning_rate, s.learning_rate),
                ("loraplus_lr_ratio", rates.ratio, s.loraplus_lr_ratio),
                ("weight_decay", rates.group.weight_decay, s.weight_decay),
                ("adam_beta1", rates.group.betas[0], s.adam_beta1),
                ("adam_beta2", rates.group.betas[1], s.adam_beta2),
                ("adam_epsilon", rates.group.epsilon, s.adam_epsilon),
            ]);
        }
        let mut wrong: Vec<String> = pairs
            .into_iter()
            .filter(|(_, theirs, given)| !close(*theirs, *given, 1e-9))
            .map(|(name, theirs, given)| format!("{name} is {theirs} in it, {given} was asked for"))
            .collect();
        let per_layer = [
            ("lora_rank_pattern", config.rank_pattern == s.lora_rank_pattern),
            ("lora_alpha_pattern", config.alpha_pattern == s.lora_alpha_pattern),
            ("layers_to_transform", config.layers_to_transform == s.layers_to_transform),
        ];
        wrong.extend(
            per_layer.iter().filter(|(_, same)| !same).map(|(name, _)| format!("{name} is another in it")),
        );
        if wrong.is_empty() {
            return Ok(());
        }
        let what = format!("{} belongs to another run: {}", self.folder.display(), wrong.join("; "));
        Err(Error::refused(what).hint("leave these settings out: they are read from the checkpoint"))
    }

    /// The groups that hold parameters, with their place among all groups.
    fn groups(&self) -> Vec<(usize, &Group)> {
        let all = self.optimizer.iter().flat_map(|(optimizer, _)| optimizer.groups.iter().enumerate());
        all.filter(|(_, group)| group.params > 0).collect()
    }

    /// Trainer puts all LoRA matrices into one group (they decay); LoRA+ (PEFT's and LLaMA-Factory's) puts the A
    /// matrices into one and the B matrices, which learn faster, into another.
    fn rates(&self) -> Result<Option<Rates>> {
        let Some((optimizer, schedule)) = &self.optimizer else { return Ok(None) };
        if optimizer.groups.len() != schedule.base_lrs.len() {
            let (groups, rates) = (optimizer.groups.len(), schedule.base_lrs.len());
            return Err(
                optimizer.fault(format!("{groups} parameter groups, {} has {rates}", hf_trainer::SCHEDULER))
            );
        }
        let groups = self.groups();
        let (&(first, group), last) = match &groups[..] {
            [one] => (one, one.0),
            [a, b] if a.1.params == b.1.params => (a, b.0),
            _ => {
                let sizes: Vec<String> = groups.iter().map(|(_, g)| g.params.to_string()).collect();
                return Err(optimizer
                    .fault(format!(
                        "groups of {} parameters: neither Trainer's nor LoRA+'s",
                        sizes.join(" + ")
                    ))
                    .hint("which matrix is which cannot be told"));
            }
        };
        let rest = |g: &Group| (g.betas, g.epsilon, g.weight_decay);
        if groups.iter().any(|(_, other)| rest(other) != rest(group)) {
            return Err(optimizer.fault("its two groups differ in more than the learning rate"));
        }
        let [slow, fast] = [schedule.base_lrs[first], schedule.base_lrs[last]];
        let ratio = if groups.len() == 1 { 1.0 } else { fast / slow };
        let ratio = if close(ratio, ratio.round(), 1e-12) { ratio.round() } else { ratio };
        if !ratio.is_finite() || ratio <= 0.0 {
            return Err(optimizer.fault(format!("learning rates {slow} and {fast}")));
        }
        Ok(Some(Rates { learning_rate: slow, ratio, group: group.clone() }))
    }

    /// Learning rate of the next step as the checkpoint has it.
    pub(super) fn next_rate(&self) -> Option<f64> {
        let (first, _) = *self.groups().first()?;
        self.optimizer.as_ref().map(|(_, schedule)| schedule.last_lr[first])
    }

    /// The moments in the layout's order, every shape checked.
    ///
    /// # Errors
    /// Names the parameter that does not fit the adapter's matrix.
    pub(super) fn moments(&self, layout: &Layout) -> Result<Flat> {
        let mut flat = Flat { m: vec![0.0; layout.len], v: vec![0.0; layout.len], updates: 0 };
        let Some((optimizer, schedule)) = &self.optimizer else { return Ok(flat) };
        let tensors = layout.tensors();
        if optimizer.params() != tensors.len() {
            let (found, expected) = (optimizer.params(), tensors.len());
            return Err(optimizer
                .fault(format!("moments of {found} parameters, the adapter has {expected} matrices")));
        }
        let in_pairs: Vec<usize> = if self.groups().len() == 1 {
            (0..tensors.len()).collect()
        } else {
            (0..tensors.len()).step_by(2).chain((1..tensors.len()).step_by(2)).collect()
        };
        for (parameter, place) in in_pairs.into_iter().enumerate() {
            let (name, shape, start) = &tensors[place];
            let moments = optimizer.moments(parameter, name, *shape)?;
            if parameter > 0 && moments.steps != flat.updates {
                let (one, other) = (moments.steps, flat.updates);
                return Err(
                    optimizer.fault(format!("{name} was updated {one} times, parameters before it {other}"))
                );
            }
            flat.updates = moments.steps;
            let range = *start..*start + moments.m.len();
            flat.m[range.clone()].copy_from_slice(&moments.m);
            flat.v[range].copy_from_slice(&moments.v);
        }
        for (what, steps) in [("AdamW was applied", flat.updates), ("the schedule moved on", schedule.steps)]
        {
            if steps > self.progress.step {
                let step = self.progress.step;
                return Err(
                    optimizer.fault(format!("{what} {steps} times, {} is at step {step}", hf_trainer::STATE))
                );
            }
        }
        Ok(flat)
    }
}

/// Whether two numbers are the same but for rounding.
pub(super) fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs())
}
