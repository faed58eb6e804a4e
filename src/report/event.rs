//! Everything a run tells, as plain values. Training emits events and nothing else; consoles, files and
//! reports are observers.

pub use super::line::{EvalLine, StepLine};
use std::path::PathBuf;

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A line of the run's introduction (what it is, what `auto` resolved to, where output goes).
    Note(String),
    /// Something the user should know but that stops nothing.
    Warning(String),
    /// A long preparation moved on: `what` is a phase such as "hashing model", amounts in bytes or rows.
    Progress {
        /// The phase.
        what: &'static str,
        /// Done so far.
        done: u64,
        /// All there is; 0 when unknown.
        total: u64,
    },
    /// All rows of a file were tokenised; the first progress of `tokenising` was at their beginning.
    Tokenised {
        /// The file.
        path: PathBuf,
        /// Its rows.
        rows: u64,
    },
    /// Training starts now.
    Started {
        /// Steps already done (0 for a new run).
        step: u64,
        /// Steps in all.
        total: u64,
        /// Steps between lines on a console.
        logging_steps: u64,
    },
    /// A step is done.
    Step {
        /// What `metrics.jsonl` holds.
        line: StepLine,
        /// Wall-clock seconds it took.
        seconds: f64,
        /// Tokens processed, padding left out.
        real_tokens: u64,
    },
    /// An evaluation is done.
    Eval {
        /// What `metrics.jsonl` holds.
        line: EvalLine,
        /// Wall-clock seconds it took.
        seconds: f64,
    },
    /// A checkpoint is durable: written, synced, named.
    Saved {
        /// Its step.
        step: u64,
        /// Where it is.
        path: PathBuf,
    },
    /// Steps logged before the interruption were computed again and are bit-identical.
    Repeated {
        /// First step compared.
        first: u64,
        /// Last step compared.
        last: u64,
    },
    /// The run ended; all files are in place.
    Finished {
        /// The last step.
        step: u64,
    },
}

/// Receives a run's events, in order, on the training thread.
pub trait Observer {
    /// Called once per event. Must not block for long; cannot fail a run.
    fn on_event(&mut self, event: &Event);
}

impl<F: FnMut(&Event)> Observer for F {
    fn on_event(&mut self, event: &Event) {
        self(event);
    }
}
