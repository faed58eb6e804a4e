//! What a checkpoint holds. Its bytes are a function of this alone.

use std::collections::BTreeMap;

/// Everything that decides the result of a run: name to value, both plain text. Keys are grouped by their
/// first word: `model.`, `tokenizer.`, `data.`, `settings.`, `adapter.`, `engine.`, `device.`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(pub BTreeMap<String, String>);

/// A difference between two identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub field: String,
    /// Value in the checkpoint, if it has one.
    pub old: Option<String>,
    /// Value now, if there is one.
    pub new: Option<String>,
}

/// One adapter tensor inside the flat arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// PEFT's name.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// First element in the flat arrays.
    pub offset: usize,
}

/// A piece of the learning-rate schedule: a run that was extended has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleSegment {
    /// Steps done when it began.
    pub first_step: u64,
    /// Steps of the run as planned then.
    pub total_steps: u64,
    /// Warm-up steps of the segment.
    pub warmup_steps: u64,
}

/// Where the run stands beside its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cursor {
    /// Rows consumed, over all epochs.
    pub samples: u64,
    /// Tokens processed, padding left out.
    pub tokens: u64,
    /// Best evaluation so far: its loss and step.
    pub best: Option<(f64, u64)>,
    /// Evaluations since the best.
    pub stale_evaluations: u64,
    /// The schedule's pieces, first to last; never empty in a valid checkpoint.
    pub schedule: Vec<ScheduleSegment>,
}

/// A line of `metrics.jsonl` without its clock.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum LogLine {
    /// A training step.
    Step { step: u64, epoch: f64, loss: f64, grad_norm: f64, lr: f64, tokens: u64 },
    /// An evaluation.
    Eval { step: u64, epoch: f64, eval_loss: f64 },
}

/// The state of a run between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Continued although engine, device or optimizer state differed, at any time in its past.
    pub tainted: bool,
    /// What decided the result so far.
    pub identity: Identity,
    /// Tensors, in canonical order, without gaps.
    pub tensors: Vec<TensorEntry>,
    /// LoRA parameters, f32.
    pub weights: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Counters, schedule, best.
    pub cursor: Cursor,
    /// Every line logged since the start.
    pub log: Vec<LogLine>,
}

impl Identity {
    /// All fields in which `self` (the checkpoint's) and `now` differ, sorted by field.
    #[must_use]
    pub fn differences(&self, now: &Identity) -> Vec<Difference> {
        let _ = now;
        todo!()
    }
}
