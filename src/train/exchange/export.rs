//! A checkpoint of a run as a PEFT adapter, or as a checkpoint that Hugging Face's Trainer resumes. The bytes are a
//! function of the checkpoint and the base model's name.

use super::import::trainer_epoch;
use crate::checkpoint::inspect;
use crate::checkpoint::state::{State, TensorEntry};
use crate::checkpoint::storage::FileSystem;
use crate::config::fields::{FIELDS, Group as Heading};
use crate::config::{self, Layer, Settings, Targets, value};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::formats::gguf;
use crate::formats::hf_trainer::{self, Every, Group, MomentsOf, Progress, Schedule as TorchSchedule};
use crate::formats::peft::{self, Adapter, AdapterConfig, AdapterTensor};
use crate::formats::publish::{FileDraft, FolderDraft, Memory, Over, check_free};
use crate::identity::Identity;
use crate::model::patterns::Patterns;
use crate::model::{Spec, names};
use crate::report::event::{Event, Observer};
use crate::report::line::{EvalLine, LogLine, StepLine};
use crate::train::folder;
use crate::train::run_file::RunFile;
use crate::train::schedule::Schedule;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The adapter alone.
    Peft,
    /// Adapter, optimizer, schedule, progress.
    HfTrainer,
    /// The adapter alone, one file for llama.cpp.
    Gguf,
}

/// What an export wrote.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The checkpoint it was made from.
    pub source: PathBuf,
    /// Its step.
    pub step: u64,
}

/// PEFT's learning rate for embeddings among the groups of LoRA+ (`create_loraplus_optimizer`); here it has none.
const EMBEDDING_RATE: f64 = 1e-6;

/// Writes a checkpoint file, or the newest whole one of a run folder, into the folder `out`, which must be new or
/// empty, or into the new file `out`. The run's lock is not needed.
///
/// # Errors
/// No whole checkpoint; [`crate::error::Kind::Output`] where `out` holds something; I/O errors.
pub fn export(from: &Path, out: &Path, form: Form, observer: &mut dyn Observer) -> Result<Exported> {
    let (source, state) = load(from, observer)?;
    if form != Form::Gguf {
        check_free(out)?;
    }
    let settings = settings_of(&state.identity).map_err(|e| e.at(source.display()))?;
    let run = run_around(&source)?;
    let base = run.as_ref().map_or_else(String::new, |run| folder::base_name(&run.settings));
    let adapter = adapter_of(&state, &settings, base);
    if !state.identity.adapter.folded.is_empty() {
        let text =
            "the run trained on a base with --fold-adapters folded in: what is exported belongs to that base";
        observer.on_event(&Event::Warning(text.into()));
    }
    if form == Form::Gguf {
        let mut draft = FileDraft::beside(out)?;
        draft.write(&gguf_of(&adapter, &settings, run.as_ref())?)?;
        draft.publish(Over::Nothing, &Memory)?;
        return Ok(Exported { source, step: state.step });
    }
    let mut parts = Vec::from(peft::encode(&adapter));
    if form == Form::HfTrainer {
        let (optimizer, scheduler) = optimizer_of(&state, &settings)?;
        let progress = progress_of(&state, &settings, run.as_ref())?;
        let log = state.log.iter().map(log_entry).collect();
        parts.push((hf_trainer::OPTIMIZER, optimizer));
        parts.push((hf_trainer::SCHEDULER, scheduler));
        parts.push((hf_trainer::STATE, hf_trainer::state_text(&progress, log).into_bytes()));
        notes(&state, &settings).into_iter().for_each(|text| observer.on_event(&Event::Note(text)));
    }
    let folder = FolderDraft::beside(out)?;
    for (name, bytes) in parts {
        folder.file(name, |sink| sink.write(&bytes))?;
    }
    folder.publish(&Memory)?;
    Ok(Exported { source, step: state.step })
}

/// The file itself, or the newest whole checkpoint of a run folder.
fn load(from: &Path, observer: &mut dyn Observer) -> Result<(PathBuf, State)> {
    if !files::is_folder(from)? {
        return Ok((from.to_owned(), inspect::load(from)?));
    }
    let files = inspect::list(from)?;
    for listed in &files {
        match inspect::load(&listed.path) {
            Ok(state) => return Ok((listed.path.clone(), state)),
            // One that cannot be read now may be read later: only damage makes an older one the newest.
            Err(e) if !inspect::is_damage(&e) => return Err(e),
            Err(e) => observer.on_event(&Event::Warning(e.what)),
        }
    }
    let count = files.len();
    Err(Error::input(format!("{}: no whole checkpoint among the {count} in this folder", from.display()))
        .hint("give a .qckpt file or the folder of a run"))
}

/// The run that the checkpoint lies in.
fn run_around(source: &Path) -> Result<Option<RunFile>> {
    let source = std::path::absolute(source).map_err(|e| Error::reading(source, e))?;
    match source.parent().and_then(Path::parent) {
        Some(run) => RunFile::find(&FileSystem, run),
        None => Ok(None),
    }
}

/// The settings of batches, optimizer and LoRA that the checkpoint was made with.
fn settings_of(identity: &Identity) -> Result<Settings> {
    let wanted = [Heading::Batches, Heading::Optimizer, Heading::Lora];
    let mut layer = Layer::default();
    for field in FIELDS.iter().filter(|f| f.class.decides_numbers() && wanted.contains(&f.group)) {
        let known = identity.settings.get(field.key);
        let text = known.ok_or_else(|| Error::input(format!("it does not say settings.{}", field.key)))?;
        layer.set(field, value::from_text(field, text).map_err(|e| e.of_kind(Kind::Input))?);
    }
    config::resolve(&layer).map_err(|e| e.of_kind(Kind::Input))
}

fn adapter_of(state: &State, s: &Settings, base_model_name_or_path: String) -> Adapter {
    let tensor = |t: &TensorEntry| AdapterTensor {
        name: t.name.clone(),
        shape: t.shape,
        values: state.weights[t.offset..t.offset + t.shape[0] * t.shape[1]].to_vec(),
    };
    let mut tensors: Vec<AdapterTensor> = state.tensors.iter().map(tensor).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let modules = tensors.iter().filter_map(|t| peft::split_name(&t.name)).map(|(module, _)| module);
    let config = AdapterConfig {
        r: s.lora_r,
        lora_alpha: s.lora_alpha,
        lora_dropout: s.lora_dropout,
        target_modules: match &s.lora_target_modules {
            // Names of single blocks mean what they mean in PEFT; short ones would mean more.
            Targets::Names(names) if names.iter().any(|name| is_of_one_block(name)) => {
                Targets::Names(names.clone())
            }
            Targets::Pattern(pattern) => Targets::Pattern(pattern.clone()),
            _ => Targets::Names(names::target_names(modules)),
        },
        exclude_modules: s.lora_exclude_modules.clone(),
        use_rslora: s.use_rslora,
        rank_pattern: s.lora_rank_pattern.clone(),
        alpha_pattern: s.lora_alpha_pattern.clone(),
        layers_to_transform: s.layers_to_transform.clone(),
        base_model_name_or_path,
    };
    Adapter { config, tensors }
}

/// The adapter as llama.cpp reads it.
fn gguf_of(adapter: &Adapter, s: &Settings, run: Option<&RunFile>) -> Result<Vec<u8>> {
    let run = run.ok_or_else(|| {
        Error::usage("a GGUF file says which model it is for, and only the folder of the run names that")
            .hint("give the folder of the run, or a checkpoint inside it")
    })?;
    let spec = Spec::read(&run.settings.model)?;
    let alphas = Patterns::new("lora_alpha_pattern", &s.lora_alpha_pattern)?;
    // The alpha of alpha / rank: RS-LoRA counts alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).
    let alpha_of = |module: &str, rank: usize| -> Result<f64> {
        let alpha = alphas.get(module)?.unwrap_or(s.lora_alpha);
        Ok(if s.use_rslora { alpha * (rank as f64).sqrt() } else { alpha })
    };
    gguf::encode_adapter(adapter, spec.family, &alpha_of)
}

/// Whether a target's name has a block's number in it.
fn is_of_one_block(target: &str) -> bool {
    target.split('.').any(|part| part.parse::<usize>().is_ok())
}

/// `optimizer.pt` and `scheduler.pt`. Groups are Trainer's own two (with and without weight decay; every LoRA matrix
/// decays), or with LoRA+ PEFT's four.
fn optimizer_of(state: &State, s: &Settings) -> Result<(Vec<u8>, Vec<u8>)> {
    let behind = state.cursor.updates_behind;
    let next = Schedule::new(s)?.learning_rate(state.step, &state.history.lengths);
    let factor = if s.learning_rate > 0.0 { next / s.learning_rate } else { 0.0 };
    let plus = s.loraplus_lr_ratio != 1.0;
    let count = state.tensors.len();
    let of = |initial_lr: f64, lr: f64, weight_decay: f64, params: usize| {
        let betas = [s.adam_beta1, s.adam_beta2];
        Group { lr, initial_lr, betas, epsilon: s.adam_epsilon, weight_decay, params }
    };
    let fast =
        |params, decay| of(s.learning_rate * s.loraplus_lr_ratio, next * s.loraplus_lr_ratio, decay, params);
    let groups = if plus {
        vec![
            of(s.learning_rate, next, s.weight_decay, count / 2),
            of(EMBEDDING_RATE, EMBEDDING_RATE * factor, s.weight_decay, 0),
            fast(count / 2, s.weight_decay),
            fast(0, 0.0),
        ]
    } else {
        vec![of(s.learning_rate, next, s.weight_decay, count), of(s.learning_rate, next, 0.0, 0)]
    };
    let moments = |t: &TensorEntry| -> MomentsOf<'_> {
        let range = t.offset..t.offset + t.shape[0] * t.shape[1];
        (t.shape, &state.m[range.clone()], &state.v[range])
    };
    let all = state.tensors.iter().map(moments);
    let parameters: Vec<MomentsOf<'_>> =
        if plus { all.clone().step_by(2).chain(all.skip(1).step_by(2)).collect() } else { all.collect() };
    let optimizer = hf_trainer::encode_optimizer(&groups, state.step - behind, &parameters)?;
    let schedule = TorchSchedule {
        base_lrs: groups.iter().map(|g| g.initial_lr).collect(),
        last_lr: groups.iter().map(|g| g.lr).collect(),
        steps: state.step,
    };
    Ok((optimizer, hf_trainer::encode_schedule(&schedule)?))
}

fn progress_of(state: &State, s: &Settings, run: Option<&RunFile>) -> Result<Progress> {
    let rows = Some(state.identity.data.train.rows).filter(|rows| *rows > 0);
    let rows =
        rows.ok_or_else(|| Error::input("the checkpoint does not say how many rows it was trained on"))?;
    let max_steps = state.history.length().map_or(state.step, |length| length.total_steps);
    let (batch, accumulation) = (s.per_device_train_batch_size as u64, s.gradient_accumulation_steps as u64);
    let packed = state.identity.settings.get("packing").is_some_and(|text| text == "true");
    let (epoch, epochs) = if packed {
        // Micro-batches of Trainer's size do not exist.
        let epoch = state.cursor.samples as f64 / rows as f64;
        (epoch, epoch * max_steps as f64 / state.step.max(1) as f64)
    } else {
        let steps = rows.div_ceil(batch).div_ceil(accumulation);
        (trainer_epoch(rows, batch, accumulation, state.step), max_steps as f64 / steps as f64)
    };
    let num_train_epochs = epochs.ceil().max(1.0) as u64;
    let best = state.cursor.best.map(|best| (best.loss, Some(best.step)));
    let every = run.map_or(Every::default(), |run| every(&run.settings));
    Ok(Progress {
        step: state.step,
        max_steps,
        epoch,
        num_train_epochs,
        batch_size: Some(batch),
        best,
        every,
    })
}

/// How often the run logs, saves and evaluates; Trainer takes these from the file.
fn every(s: &Settings) -> Every {
    let eval = s.eval_steps.unwrap_or(s.logging_steps as f64);
    Every { logging: s.logging_steps as f64, save: s.save_steps, eval }
}

/// A line of Trainer's `log_history`.
fn log_entry(line: &LogLine) -> serde_json::Value {
    match *line {
        LogLine::Step(StepLine { step, epoch, loss, grad_norm, lr, .. }) => {
            json!({ "epoch": epoch, "grad_norm": grad_norm, "learning_rate": lr, "loss": loss, "step": step })
        }
        LogLine::Eval(EvalLine { step, epoch, eval_loss }) => {
            json!({ "epoch": epoch, "eval_loss": eval_loss, "step": step })
        }
    }
}

/// What Trainer has to be told, since its checkpoints do not say it.
fn notes(state: &State, s: &Settings) -> Vec<String> {
    let text = |key: &str| state.identity.settings.get(key).cloned().unwrap_or_default();
    let last = state.history.length();
    let (total, warmup) = last.map_or((state.step, 0), |length| (length.total_steps, length.warmup_steps));
    let mut notes = vec![format!(
        "Trainer's arguments to resume it with: max_steps {total}, per_device_train_batch_size {}, gradient_accumulation_steps {}, learning_rate {}, lr_scheduler_type {}, lr_scheduler_kwargs {}, warmup_steps {warmup}, max_grad_norm {}, seed {}",
        s.per_device_train_batch_size,
        s.gradient_accumulation_steps,
        s.learning_rate,
        text("lr_scheduler_type"),
        text("lr_scheduler_kwargs"),
        s.max_grad_norm,
        s.seed
    )];
    if s.loraplus_lr_ratio != 1.0 {
        notes.push(format!(
            "its optimizer is that of peft.optimizers.create_loraplus_optimizer with loraplus_lr_ratio {}",
            s.loraplus_lr_ratio
        ));
    }
    notes.push("order of the rows and dropout are Trainer's own from there on".into());
    notes
}
