//! A run folder's checkpoints and its lock.

use super::shelf::Shelf;
#[cfg(feature = "internals")]
pub use super::shelf::{Found, file_name};
use super::state::State;
use super::storage::{self, Disk, Held, Locked, Tree};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The folder of the checkpoints inside a run folder.
pub const FOLDER: &str = "checkpoints";
/// The file inside a run folder whose lock a run holds.
pub const LOCK: &str = ".lock";

/// The checkpoints of one run folder, locked by this process.
pub struct Store {
    shelf: Shelf,
    /// Held for the store's life: a save under way is in it.
    _lock: Held,
}

/// A run folder that is this process's alone; nothing else in it was touched.
pub struct RunLock {
    /// The folder as it was named.
    pub path: PathBuf,
    /// The folder; names are resolved in it, wherever it is moved to.
    pub folder: Box<dyn Tree>,
    held: Held,
}

impl RunLock {
    /// Takes the lock of `run_folder`, creating the folder.
    ///
    /// # Errors
    /// [`crate::error::Kind::Output`] when it is locked by another run or cannot be used.
    pub fn take(disk: &dyn Disk, run_folder: &Path) -> Result<Self> {
        crate::sys::ignore_file_size_signal();
        let folder = disk.create(run_folder).map_err(|e| {
            Error::output(format!("cannot use {} as the output folder: {e}", run_folder.display()))
                .hint("choose another --output-dir, or make this one writable")
                .caused_by(e)
        })?;
        match folder.lock(LOCK) {
            Ok(Locked::Held(held)) => Ok(RunLock { path: run_folder.to_path_buf(), folder, held }),
            Ok(Locked::By(holder)) => {
                let holder =
                    if holder.is_empty() { "another process".into() } else { format!("process {holder}") };
                Err(Error::output(format!("{} is in use by {holder}", run_folder.display()))
                    .hint("wait until it ends, or stop it; the lock ends with the process that holds it"))
            }
            Err(e) => {
                let what = format!("cannot lock {}: {e}", run_folder.join(LOCK).display());
                Err(Error::output(what).caused_by(e))
            }
        }
    }
}

impl Store {
    /// Opens the checkpoints of the folder whose lock is held: probes that it can be written, synced and renamed in,
    /// removes leftovers of an interrupted save. `keep` is the retention (0: all; 1 counts as 2).
    ///
    /// # Errors
    /// [`crate::error::Kind::Output`] when not writable.
    pub fn open(lock: &RunLock, keep: usize) -> Result<Self> {
        let folder = storage::subfolder(&*lock.folder, FOLDER).map_err(|e| {
            let path = lock.path.join(FOLDER);
            Error::output(format!("cannot use {}: {e} (a link is not followed)", path.display()))
        })?;
        let mut shelf = Shelf::new(folder, keep);
        shelf.prepare()?;
        shelf.warnings.extend(lock.folder.remark());
        Ok(Self::of(shelf, Held::clone(&lock.held)))
    }

    /// Of a shelf that was prepared; `lock` is held as long as the store. For tests with a folder of their own; everything
    /// else uses [`Store::open`].
    #[doc(hidden)]
    #[must_use]
    pub fn of(shelf: Shelf, lock: Held) -> Self {
        Store { shelf, _lock: lock }
    }

    #[cfg(feature = "internals")]
    /// The newest valid checkpoint; damaged newer ones are renamed to `.bad`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] when there are files and none is whole, or the newest is of a newer format.
    pub fn newest(&mut self) -> Result<Found> {
        self.shelf.newest()
    }

    /// Renames damaged files that a look told of, name and reason, to `.bad`, and says so.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it cannot be done.
    pub fn set_aside_damaged(&mut self, damaged: &[(String, String)]) -> Result<Vec<String>> {
        self.shelf.set_aside_damaged(damaged)
    }

    /// Renames the checkpoints of later steps than `step` to `.old` and says so: for a run that goes on from an
    /// older checkpoint and may come to other results.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it cannot be done.
    pub fn set_aside_newer(&mut self, step: u64) -> Result<Vec<String>> {
        self.shelf.set_aside_newer(step)
    }

    /// Saves `state`; when this returns a path, the checkpoint is durable and was read back whole.
    ///
    /// # Errors
    /// [`crate::error::Kind::Diverged`] for a state that is not finite, [`crate::error::Kind::Check`] for an inconsistent one, [`crate::error::Kind::Io`] for a full
    /// disk or a failure to write; the checkpoints that were there are as before.
    pub fn save(&mut self, state: &State) -> Result<PathBuf> {
        self.shelf.save(state)
    }

    /// The checkpoint of `step`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] when it is missing or damaged.
    pub fn load(&self, step: u64) -> Result<State> {
        self.shelf.load(step)
    }

    /// The newest step before `limit` whose checkpoint is whole.
    #[must_use]
    pub fn whole_before(&self, limit: u64) -> Option<u64> {
        self.shelf.whole_before(limit)
    }

    /// What is to be reported and is no error, since the last call.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.shelf.take_warnings()
    }

    /// Says so when the disk has no room for the checkpoints to come, each of `bytes`: one more than are kept,
    /// and a tenth.
    #[must_use]
    pub fn space_warning(&self, bytes: u64) -> Option<String> {
        let shelf = &self.shelf;
        if shelf.keep == usize::MAX {
            return None;
        }
        let need = bytes.saturating_mul(shelf.keep as u64 + 1).saturating_mul(11) / 10;
        let free = shelf.free_bytes().filter(|free| *free < need)?;
        Some(format!(
            "checkpoints may not fit: {} of {} MB each need {} MB, {} MB free",
            shelf.keep + 1,
            bytes.div_ceil(1_000_000),
            need.div_ceil(1_000_000),
            free / 1_000_000
        ))
    }

    /// Leaves the loss of the forward passes after `step` beside its checkpoint.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it cannot be written.
    pub fn write_next_loss(&mut self, step: u64, losses: &[f64]) -> Result<()> {
        self.shelf.write_next_loss(step, losses)
    }

    /// What [`Store::write_next_loss`] left for `step`.
    ///
    /// # Errors
    /// As [`Error::reading`], when the file is there and cannot be read; a damaged one is a warning.
    pub fn read_next_loss(&mut self, step: u64) -> Result<Option<Vec<f64>>> {
        self.shelf.read_next_loss(step)
    }
}
