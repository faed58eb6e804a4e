//! Runs: new, continued, extended; the loop, its schedule, its evaluation and its files.

pub mod engine;
pub mod evaluate;
mod event_file;
pub mod exchange;
pub mod folder;
mod initial;
mod measure;
pub mod merge;
pub mod metrics;
pub mod objective;
pub mod publish;
pub mod report;
mod run;
pub mod run_file;
pub mod saver;
pub mod schedule;
pub mod setup;
pub mod start;
pub mod trainer;

pub use crate::device::Devices;
pub use measure::measure;
pub use start::{Request, import, plan, resume, settled, train};

use crate::config::Settings;
use crate::data::dataset::Row;
use crate::error::Result;
use crate::model::Spec;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a run to stop or save; shared with signal handlers.
#[derive(Clone, Debug, Default)]
pub struct Control {
    stop: Arc<AtomicBool>,
    save: Arc<AtomicBool>,
    begun: Arc<AtomicBool>,
}

impl Control {
    /// Save the last finished step and stop.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Save the last finished step and go on.
    pub fn request_save(&self) {
        self.save.store(true, Ordering::SeqCst);
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether a save was asked for; answers yes once per request.
    #[must_use]
    pub fn take_save_request(&self) -> bool {
        self.save.swap(false, Ordering::SeqCst)
    }

    /// Whether the run has a state to save on a stop: model and data are read, its folder is in order.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// From here on a stop saves.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::SeqCst);
    }
}

/// Each row as the tokens that it would be if a data file held it: a JSON object with `messages`, `prompt` and `completion`,
/// `text`, or `input_ids`, as `docs/data.md` says. Model, template, masks and length limits are those of `settings`.
///
/// # Errors
/// Names the row, counted from 1: it is wrong, too long, or nothing in it is scored; a model without tokenizer or template.
pub fn tokenise(settings: &Settings, rows: &[serde_json::Value]) -> Result<Vec<Row>> {
    crate::data::memory::tokenise(settings, Spec::read(&settings.model)?.vocab, rows)
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// Steps done by this call.
    pub trained: u64,
    /// First and last training loss of the run.
    pub loss: Option<(f64, f64)>,
    /// First and last evaluation loss, when it was evaluated.
    pub eval_loss: Option<(f64, f64)>,
    /// Step and loss of the best evaluation.
    pub best: Option<(u64, f64)>,
    /// Evaluations without a better one after which the run ended early; `None` when it did not.
    pub patience: Option<u64>,
    /// The final adapter's folder.
    pub adapter: PathBuf,
    /// The step that adapter is of.
    pub published: u64,
    /// The page on the run.
    pub report: PathBuf,
    /// Imported, or continued inexactly at some time.
    pub tainted: bool,
    /// The command that shows what was saved.
    pub look_in: String,
    /// The command that trains on.
    pub train_on: String,
}

/// The memory and work of a run that is not started.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PlanReport {
    /// The device, in words.
    pub device: String,
    /// (purpose, bytes) of the device arena.
    pub arena: Vec<(String, u64)>,
    /// Bytes of the device arena of `evaluate` with these rows: no gradients, no moments, nothing kept for them.
    pub evaluation: u64,
    /// Bytes of mapped base weights.
    pub base_weights: u64,
    /// Expected peak of resident memory, bytes.
    pub peak: u64,
    /// Bytes of one checkpoint.
    pub checkpoint: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Rows trained on.
    pub rows: u64,
    /// Tokens of one epoch, padding left out.
    pub tokens_per_epoch: u64,
    /// Trainable parameters.
    pub trainable: u64,
    /// Most tokens of one micro-batch, padding included.
    pub micro_batch_tokens: u64,
    /// Bytes that can be had now, on the device where it has memory of its own; `None` where nothing says.
    pub available: Option<u64>,
    /// Whether the device has memory of its own.
    pub own_memory: bool,
    /// Seconds of a step here: the median of the few that [`measure()`] ran.
    pub seconds_per_step: Option<f64>,
}
