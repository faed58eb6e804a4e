//! A run folder's checkpoints: lock, durable writes, retention, fallback.

use super::state::State;
use crate::error::Result;
use std::path::{Path, PathBuf};

/// The checkpoints of one run folder, locked by this process.
pub struct Store {}

/// What looking for a checkpoint found.
pub struct Found {
    /// The newest valid checkpoint, if any.
    pub newest: Option<(PathBuf, State)>,
    /// Damaged files set aside, with the reason, to be reported.
    pub set_aside: Vec<String>,
    /// How many checkpoint files there were in all.
    pub seen: usize,
}

/// How a save behaves while another is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Skip this save.
    Skip,
    /// Wait for the other and for this one (last step, signals).
    Block,
}

/// What became of saves since the last call.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Durable.
    Saved {
        /// Its step.
        step: u64,
        /// Its file.
        path: PathBuf,
    },
    /// Not written; training goes on. The text says why and what to do.
    Skipped {
        /// Its step.
        step: u64,
        /// Why.
        why: String,
    },
}

impl Store {
    /// Takes the lock of `run_folder` (creating the folder), probes that it can be written, synced and
    /// renamed in, removes leftovers of an interrupted save, starts the writer thread.
    /// `keep` is the retention (below 2 counts as 2).
    ///
    /// # Errors
    /// [`crate::error::Kind::Output`] when locked by another run or not writable.
    pub fn open(run_folder: &Path, keep: usize) -> Result<Self> {
        let _ = (run_folder, keep);
        todo!()
    }

    /// The newest valid checkpoint; damaged newer ones are renamed to `.bad`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] when there are files and none is whole.
    pub fn newest(&mut self) -> Result<Found> {
        todo!()
    }

    /// Hands `state` to the writer thread.
    ///
    /// # Errors
    /// With [`Wait::Block`], the failure to write; never with [`Wait::Skip`].
    pub fn save(&mut self, state: State, wait: Wait) -> Result<()> {
        let _ = (state, wait);
        todo!()
    }

    /// Saves that ended since the last call. `protect` (the best checkpoint's step) is never pruned.
    pub fn outcomes(&mut self) -> Vec<Outcome> {
        todo!()
    }

    /// The step whose checkpoint is never pruned (the best), beside the newest ones.
    pub fn protect(&mut self, step: Option<u64>) {
        let _ = step;
        todo!()
    }
}
