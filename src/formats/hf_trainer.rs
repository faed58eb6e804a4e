//! What a checkpoint of Hugging Face's Trainer holds beside the adapter: `trainer_state.json`, `optimizer.pt`,
//! `scheduler.pt`. Nothing in them is executed; `rng_state.pth` and `training_args.bin` are never opened.
//!
//! Fields are those of transformers 5.23 and PyTorch 2.15. Older files, which have fewer, are read too.

use super::json;
use super::pickle::Value;
use super::safetensors::printable;
use super::torch_file::{self, TorchFile, Tree};
use crate::error::{Error, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Where Trainer notes how far it is; written last, so a folder without it is no whole checkpoint.
pub const STATE: &str = "trainer_state.json";
/// AdamW's moments.
pub const OPTIMIZER: &str = "optimizer.pt";
/// The learning-rate schedule.
pub const SCHEDULER: &str = "scheduler.pt";

/// Largest `trainer_state.json` that is read: a line of its log takes about 200 bytes.
const MAX_STATE_BYTES: u64 = 64 << 20;
/// Most steps a run may claim.
const MAX_STEPS: u64 = 100_000_000;

// ---- trainer_state.json -----------------------------------------------------------------------------------

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Optimizer steps done, at least 1.
    pub step: u64,
    /// Steps of the run, not below `step`.
    pub max_steps: u64,
    /// Epochs done, as a fraction counted in micro-batches.
    pub epoch: f64,
    /// Epochs of the run, rounded up.
    pub num_train_epochs: u64,
    /// Rows of a micro-batch on all GPUs of a process; older files do not say.
    pub batch_size: Option<u64>,
    /// Value and, where the file says it, step of the best evaluation.
    pub best: Option<(f64, Option<u64>)>,
    /// How often it logs, saves and evaluates.
    pub every: Every,
}

/// Steps between log lines, saves and evaluations; below 1 a fraction of all steps. Trainer goes on with those of the
/// file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Every {
    /// Between log lines.
    pub logging: f64,
    /// Between saves.
    pub save: f64,
    /// Between evaluations.
    pub eval: f64,
}

impl Default for Every {
    /// Trainer's own.
    fn default() -> Self {
        Every { logging: 500.0, save: 500.0, eval: 500.0 }
    }
}

impl Every {
    /// As Trainer writes it: a whole number, or a fraction below 1.
    fn json(steps: f64) -> serde_json::Value {
        if steps.fract() == 0.0 { json!(steps as u64) } else { json!(steps) }
    }
}

/// Reads `trainer_state.json`.
///
/// # Errors
/// Names the file and the field.
pub fn read_progress(path: &Path) -> Result<Progress> {
    let keys = json::read_python_scalars(path, MAX_STATE_BYTES)?;
    let fault = |what: String| Error::input(format!("{}: {what}", path.display()));
    let get = |key: &str| keys.get(key).filter(|v| !v.is_null());
    let count = |key: &str, least: u64| {
        let value = get(key).ok_or_else(|| fault(format!("{key} is missing")))?;
        let number = value.as_u64().filter(|n| (least..=MAX_STEPS).contains(n));
        number.ok_or_else(|| fault(format!("{key} is {}", printable(&value.to_string()))))
    };
    let (step, max_steps) = (count("global_step", 1)?, count("max_steps", 1)?);
    if step > max_steps {
        return Err(fault(format!("global_step {step} is beyond max_steps {max_steps}")));
    }
    let epoch = get("epoch").and_then(serde_json::Value::as_f64).filter(|e| *e >= 0.0 && *e <= 1e12);
    let epoch = epoch.ok_or_else(|| fault("epoch is missing or no number".into()))?;
    let num_train_epochs = count("num_train_epochs", 1)?;
    let batch_size = get("train_batch_size").map(|_| count("train_batch_size", 1)).transpose()?;
    let best = get("best_metric").and_then(serde_json::Value::as_f64);
    let best = best.map(|value| (value, get("best_global_step").and_then(serde_json::Value::as_u64)));
    let steps = |key: &str| get(key).and_then(serde_json::Value::as_f64).filter(|steps| *steps > 0.0);
    let usual = Every::default();
    let every = Every {
        logging: steps("logging_steps").unwrap_or(usual.logging),
        save: steps("save_steps").unwrap_or(usual.save),
        eval: steps("eval_steps").unwrap_or(usual.eval),
    };
    Ok(Progress { step, max_steps, epoch, num_train_epochs, batch_size, best, every })
}

/// The text of a `trainer_state.json`: every field, sorted, as Trainer writes it. `log_history` holds Trainer's
/// own lines.
#[must_use]
pub fn state_text(p: &Progress, log_history: Vec<serde_json::Value>) -> String {
    let control = json!({
        "should_epoch_stop": false, "should_evaluate": false, "should_log": false, "should_save": false,
        "should_training_stop": false,
    });
    let fields = json!({
        "best_global_step": p.best.and_then(|(_, step)| step), "best_metric": p.best.map(|(value, _)| value),
        "best_model_checkpoint": null, "epoch": p.epoch, "eval_steps": Every::json(p.every.eval), "global_step": p.step,
        "is_hyper_param_search": false, "is_local_process_zero": true, "is_world_process_zero": true,
        "log_history": log_history, "logging_steps": Every::json(p.every.logging), "max_steps": p.max_steps,
        "num_input_tokens_seen": 0, "num_train_epochs": p.num_train_epochs, "save_steps": Every::json(p.every.save),
        "stateful_callbacks": { "TrainerControl": { "args": control, "attributes": {} } }, "total_flos": 0.0, "train_batch_size": p.batch_size, "trial_name": null,
        "trial_params": null,
    });
    format!("{fields:#}\n")
}

// ---- optimizer.pt -----------------------------------------------------------------------------------------

/// A parameter group of AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Learning rate of the next step.
    pub lr: f64,
    /// Learning rate that the schedule scales.
    pub initial_lr: f64,
    /// Decay of the first and of the second moment.
    pub betas: [f64; 2],
    /// Added to the divisor.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// How many parameters; they are numbered through all groups.
    pub params: usize,
}

/// The moments of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Updates made.
    pub steps: u64,
    /// First moments, row by row.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
}

/// An open `optimizer.pt` of AdamW. Moments are read when asked for.
#[derive(Debug)]
pub struct Optimizer {
    file: TorchFile,
    /// The groups, in the optimizer's order.
    pub groups: Vec<Group>,
    /// `step`, `exp_avg`, `exp_avg_sq` of each parameter.
    states: Vec<[Value; 3]>,
}

/// Options of a group that only say how the same numbers are computed.
const HOW: &[&str] = &["capturable", "differentiable", "foreach", "fused", "param_names"];
/// Options that must be on, where they are there.
const ON: &[&str] = &["correct_bias", "decoupled_weight_decay"];
const READ: &[&str] = &["betas", "eps", "initial_lr", "lr", "params", "weight_decay"];

impl Optimizer {
    /// Opens and checks the file's structure.
    ///
    /// # Errors
    /// Names the file and what is not AdamW's.
    pub fn open(path: &Path) -> Result<Self> {
        let mut optimizer =
            Optimizer { file: TorchFile::open(path)?, groups: Vec::new(), states: Vec::new() };
        let pickle = &optimizer.file.pickle;
        let root = pickle.by_text(pickle.root).unwrap_or_default();
        let (Some(state), Some(groups), 2) = (root.get("state"), root.get("param_groups"), root.len()) else {
            return Err(optimizer.file.fault("not the state of an optimizer (state and param_groups)"));
        };
        let mut next = 0;
        let mut read = Vec::new();
        for group in pickle.items(*groups).unwrap_or_default() {
            read.push(optimizer.group(*group, next)?);
            next += read[read.len() - 1].params;
        }
        let states = optimizer.states(*state, next)?;
        (optimizer.groups, optimizer.states) = (read, states);
        Ok(optimizer)
    }

    /// Number of parameters.
    #[must_use]
    pub fn params(&self) -> usize {
        self.states.len()
    }

    /// An error in this file.
    pub fn fault(&self, what: impl std::fmt::Display) -> Error {
        self.file.fault(what)
    }

    /// One group, whose parameters are numbered from `first`.
    fn group(&self, value: Value, first: usize) -> Result<Group> {
        let pickle = &self.file.pickle;
        let map = pickle.by_text(value).ok_or_else(|| self.fault("a parameter group is no dictionary"))?;
        for (key, value) in &map {
            let off = matches!(value, Value::None | Value::Bool(false));
            let fine = READ.contains(key)
                || HOW.contains(key)
                || if ON.contains(key) { *value == Value::Bool(true) } else { off };
            if !fine {
                return Err(self
                    .fault(format!("the optimizer's option {} is not one of plain AdamW", printable(key))));
            }
        }
        let number = |key: &str| self.number(&map, key);
        let betas = map.get("betas").and_then(|v| pickle.items(*v)).unwrap_or_default();
        let betas: Vec<f64> =
            betas.iter().filter_map(|b| pickle.number(*b)).filter(|b| (0.0..1.0).contains(b)).collect();
        let betas =
            <[f64; 2]>::try_from(betas).map_err(|_| self.fault("betas are not two shares below 1"))?;
        let params = map.get("params").and_then(|v| pickle.items(*v)).unwrap_or_default();
        if params.iter().zip(first as i64..).any(|(found, expected)| *found != Value::Int(expected)) {
            return Err(self.fault("its parameters are not numbered through"));
        }
        let lr = number("lr")?;
        let initial_lr = if map.contains_key("initial_lr") { number("initial_lr")? } else { lr };
        let (epsilon, weight_decay) = (number("eps")?, number("weight_decay")?);
        Ok(Group { lr, initial_lr, betas, epsilon, weight_decay, params: params.len() })
    }

    fn number(&self, map: &BTreeMap<&str, Value>, key: &str) -> Result<f64> {
        let number = map.get(key).and_then(|v| self.file.pickle.number(*v));
        let number = number.filter(|n| n.is_finite() && *n >= 0.0);
        number.ok_or_else(|| self.fault(format!("{key} of a parameter group is missing or no number")))
    }

    fn states(&self, value: Value, params: usize) -> Result<Vec<[Value; 3]>> {
        let map = self.file.pickle.by_int(value);
        let map = map.ok_or_else(|| self.fault("state is not a dictionary by parameter"))?;
        if let Some(extra) = map.keys().find(|key| usize::try_from(**key).map_or(true, |k| k >= params)) {
            return Err(self.fault(format!("state of parameter {extra}, which is in no group")));
        }
        let mut states = Vec::with_capacity(map.len());
        for index in 0..params {
            let state = map.get(&(index as i64));
            let state = state.ok_or_else(|| self.fault(format!("parameter {index} has no state")))?;
            let entries = self.file.pickle.by_text(*state).unwrap_or_default();
            let found = ["step", "exp_avg", "exp_avg_sq"].map(|key| entries.get(key).copied());
            let ([Some(step), Some(m), Some(v)], 3) = (found, entries.len()) else {
                let keys: Vec<String> = entries.keys().take(8).map(|key| printable(key)).collect();
                let keys = keys.join(", ");
                return Err(self
                    .fault(format!("parameter {index} has {keys}, where AdamW has step, exp_avg, exp_avg_sq"))
                    .hint("only the state of AdamW in full precision can be continued"));
            };
            states.push([step, m, v]);
        }
        Ok(states)
    }

    /// The moments of parameter `index`, which must have `shape`; `name` is for errors.
    ///
    /// # Errors
    /// Names the parameter: another shape, not finite, second moments below 0.
    pub fn moments(&self, index: usize, name: &str, shape: [usize; 2]) -> Result<Moments> {
        let fault = |what: String| self.fault(format!("parameter {index} ({}): {what}", printable(name)));
        let [step, m, v] = self.states[index];
        let values = |key: &str, value: Value, least: f32| {
            let tensor = self.file.pickle.tensor(value);
            let tensor = tensor.ok_or_else(|| fault(format!("{key} is no tensor")))?;
            if tensor.shape != shape {
                return Err(fault(format!("{key} has shape {:?}, the adapter {shape:?}", tensor.shape)));
            }
            if self.file.pickle.storages[tensor.storage].len != tensor.elements {
                return Err(fault(format!("{key} is a part of something larger")));
            }
            let values = self.file.values(tensor)?;
            match values.iter().find(|x| !(**x >= least && **x <= f32::MAX)) {
                Some(bad) => Err(fault(format!("{key} holds {bad}"))),
                None => Ok(values),
            }
        };
        let steps = self.steps(step).ok_or_else(|| fault("step is no whole number".into()))?;
        Ok(Moments { steps, m: values("exp_avg", m, f32::MIN)?, v: values("exp_avg_sq", v, 0.0)? })
    }

    /// A count: an f32 tensor of one element, in older PyTorch an integer.
    fn steps(&self, value: Value) -> Option<u64> {
        let number = match (self.file.pickle.tensor(value), self.file.pickle.number(value)) {
            (Some(tensor), _) if tensor.elements == 1 => {
                let alone = self.file.pickle.storages[tensor.storage].len == 1;
                f64::from(*self.file.values(tensor).ok().filter(|_| alone)?.first()?)
            }
            (_, number) => number?,
        };
        (number >= 0.0 && number <= MAX_STEPS as f64 && number.fract() == 0.0).then_some(number as u64)
    }
}

/// One parameter's moments to be written: shape, first, second.
pub type MomentsOf<'a> = ([usize; 2], &'a [f32], &'a [f32]);

/// The bytes of an `optimizer.pt` after `steps` updates of `parameters`, which the groups share out in order.
///
/// # Errors
/// Usage: more than 4 GiB.
pub fn encode_optimizer(groups: &[Group], steps: u64, parameters: &[MomentsOf<'_>]) -> Result<Vec<u8>> {
    let steps = [steps as f32];
    let state =
        parameters.iter().zip(0..).map(|(p, index)| (Tree::Int(index), state_tree(&steps, p))).collect();
    let mut next = 0;
    let mut trees = Vec::with_capacity(groups.len());
    for group in groups {
        trees.push(group_tree(group, next));
        next += group.params as i64;
    }
    let root = Tree::Dict(vec![
        (Tree::Text("state"), Tree::Dict(state)),
        (Tree::Text("param_groups"), Tree::List(trees)),
    ]);
    torch_file::encode("optimizer", &root)
}

fn state_tree<'a>(steps: &'a [f32; 1], (shape, m, v): &MomentsOf<'a>) -> Tree<'a> {
    Tree::Dict(vec![
        (Tree::Text("step"), Tree::Tensor(vec![], steps)),
        (Tree::Text("exp_avg"), Tree::Tensor(shape.to_vec(), m)),
        (Tree::Text("exp_avg_sq"), Tree::Tensor(shape.to_vec(), v)),
    ])
}

fn group_tree(group: &Group, first: i64) -> Tree<'static> {
    let params = (first..first + group.params as i64).map(Tree::Int).collect();
    Tree::Dict(vec![
        (Tree::Text("weight_decay"), Tree::Float(group.weight_decay)),
        (Tree::Text("lr"), Tree::Float(group.lr)),
        (Tree::Text("betas"), Tree::Tuple(group.betas.map(Tree::Float).to_vec())),
        (Tree::Text("eps"), Tree::Float(group.epsilon)),
        (Tree::Text("amsgrad"), Tree::Bool(false)),
        (Tree::Text("maximize"), Tree::Bool(false)),
        (Tree::Text("foreach"), Tree::None),
        (Tree::Text("capturable"), Tree::Bool(false)),
        (Tree::Text("differentiable"), Tree::Bool(false)),
        (Tree::Text("fused"), Tree::None),
        (Tree::Text("decoupled_weight_decay"), Tree::Bool(true)),
        (Tree::Text("initial_lr"), Tree::Float(group.initial_lr)),
        (Tree::Text("params"), Tree::List(params)),
    ])
}

// ---- scheduler.pt -----------------------------------------------------------------------------------------

/// Where PyTorch's LambdaLR stands. Its functions are not in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The learning rate of each group that the function scales.
    pub base_lrs: Vec<f64>,
    /// Learning rate of each group at the next step.
    pub last_lr: Vec<f64>,
    /// Steps it was moved on.
    pub steps: u64,
}

/// Reads `scheduler.pt`.
///
/// # Errors
/// Names the file and what is missing.
pub fn read_schedule(path: &Path) -> Result<Schedule> {
    let file = TorchFile::open(path)?;
    let pickle = &file.pickle;
    let map = pickle.by_text(pickle.root).ok_or_else(|| file.fault("not the state of a scheduler"))?;
    let rates = |key: &str| {
        let items = map.get(key).and_then(|v| pickle.items(*v)).unwrap_or_default();
        let rates: Vec<f64> =
            items.iter().filter_map(|v| pickle.number(*v)).filter(|r| r.is_finite() && *r >= 0.0).collect();
        let whole = !rates.is_empty() && rates.len() == items.len();
        if whole { Ok(rates) } else { Err(file.fault(format!("{key} is not a list of learning rates"))) }
    };
    let steps = match map.get("last_epoch") {
        Some(Value::Int(steps)) if (0..=MAX_STEPS as i64).contains(steps) => *steps as u64,
        _ => return Err(file.fault("last_epoch is missing or no whole number")),
    };
    let schedule = Schedule { base_lrs: rates("base_lrs")?, last_lr: rates("_last_lr")?, steps };
    if schedule.base_lrs.len() != schedule.last_lr.len() {
        return Err(file.fault("base_lrs and _last_lr have another number of groups"));
    }
    Ok(schedule)
}

/// The bytes of a `scheduler.pt`.
///
/// # Errors
/// Never in practice: it is small.
pub fn encode_schedule(schedule: &Schedule) -> Result<Vec<u8>> {
    let rates = |rates: &[f64]| Tree::List(rates.iter().map(|r| Tree::Float(*r)).collect());
    let functions = schedule.base_lrs.iter().map(|_| Tree::Dict(Vec::new())).collect();
    let root = Tree::Dict(vec![
        (Tree::Text("base_lrs"), rates(&schedule.base_lrs)),
        (Tree::Text("last_epoch"), Tree::Int(schedule.steps as i64)),
        (Tree::Text("_step_count"), Tree::Int(schedule.steps as i64 + 1)),
        (Tree::Text("_is_initial"), Tree::Bool(false)),
        (Tree::Text("_get_lr_called_within_step"), Tree::Bool(false)),
        (Tree::Text("_last_lr"), rates(&schedule.last_lr)),
        (Tree::Text("lr_lambdas"), Tree::List(functions)),
    ]);
    torch_file::encode("scheduler", &root)
}
