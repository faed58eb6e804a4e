//! Runs: new, continued, extended; the loop, its schedule, its evaluation and its files.

pub mod devices;
pub mod engine;
pub mod evaluate;
pub mod exchange;
pub mod folder;
mod initial;
pub mod metrics;
pub mod objective;
pub mod origin;
pub mod publish;
pub mod report;
mod run;
pub mod saver;
pub mod schedule;
pub mod setup;
pub mod start;
pub mod trainer;

pub use devices::Devices;
pub use start::{plan, run, run_on};

use crate::config::Settings;
use crate::data::dataset::Rows;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a run is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The resolved settings. For a resume they are the run's own, frozen in `run.json`, with permitted changes.
    pub settings: Settings,
    /// Rows in memory, in place of the settings' data files. A resume needs the same rows again.
    pub rows: Option<Rows>,
    /// The command line, for `run.json`; empty where there was none.
    pub command_line: Vec<String>,
    /// `resume OUTPUT_DIR`: there must be a run in the folder.
    pub must_resume: bool,
}

impl Request {
    /// The program as it was called, for commands a message offers.
    #[must_use]
    pub fn program(&self) -> &str {
        self.command_line.first().map_or("qwentune", String::as_str)
    }

    /// How the run is continued, up to another step where one is given; for messages. The command line cannot
    /// continue a run whose rows it does not have.
    #[must_use]
    pub fn continuation(&self, max_steps: Option<u64>) -> String {
        let folder = self.settings.output_dir.display();
        match (&self.rows, max_steps) {
            (None, None) => format!("{} resume {folder}", self.program()),
            (None, Some(n)) => format!("{} resume {folder} --max-steps {n}", self.program()),
            (Some(_), None) => "the same request with resume_from_checkpoint: Some(ResumeFrom::Auto)".into(),
            (Some(_), Some(n)) => format!("{} and max_steps: Some({n})", self.continuation(None)),
        }
    }
}

/// Asks a run to stop or save; shared with signal handlers.
#[derive(Clone, Debug, Default)]
pub struct Control {
    stop: Arc<AtomicBool>,
    save: Arc<AtomicBool>,
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

    /// The flags themselves, for signal handlers: (stop, save).
    #[must_use]
    pub fn flags(&self) -> (Arc<AtomicBool>, Arc<AtomicBool>) {
        (Arc::clone(&self.stop), Arc::clone(&self.save))
    }
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// First and last evaluation loss, when it was evaluated.
    pub eval_loss: Option<(f64, f64)>,
    /// First and last training loss of this process.
    pub loss: Option<(f64, f64)>,
    /// The final adapter's folder.
    pub adapter: PathBuf,
    /// Imported, or continued inexactly at some time.
    pub tainted: bool,
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
}
