//! A run folder's checkpoints: the lock, and the thread that writes while training goes on.

use super::shelf::Shelf;
pub use super::shelf::{Found, file_name};
use super::state::State;
use super::storage::{self, Disk, Held, Locked, Tree};
use crate::error::{Error, Kind, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The folder of the checkpoints inside a run folder.
pub const FOLDER: &str = "checkpoints";
/// The file inside a run folder whose lock a run holds.
pub const LOCK: &str = ".lock";

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
        /// Why: a sentence that begins with "checkpoint skipped:".
        why: String,
    },
}

/// The checkpoints of one run folder, locked by this process. Dropping it waits for the save under way.
pub struct Store {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
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
    /// [`Kind::Output`] when it is locked by another run or cannot be used.
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

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
    shelf: Mutex<Shelf>,
}

/// What passes between the training thread and the writer.
#[derive(Default)]
struct Desk {
    /// To be written.
    waiting: Option<State>,
    /// Being written.
    writing: bool,
    /// Result of the last write, until it was looked at.
    ended: Option<(u64, Result<PathBuf>)>,
    outcomes: Vec<Outcome>,
    /// A state that was written, for its memory.
    spare: Option<State>,
    protected: Option<u64>,
    closing: bool,
}

impl Store {
    /// Opens the checkpoints of the folder whose lock is held: probes that it can be written, synced and renamed in,
    /// removes leftovers of an interrupted save, starts the writer thread. `keep` is the retention (0: all; 1 counts as 2).
    ///
    /// # Errors
    /// [`Kind::Output`] when not writable.
    pub fn open(lock: &RunLock, keep: usize) -> Result<Self> {
        let folder = storage::subfolder(&*lock.folder, FOLDER).map_err(|e| {
            let path = lock.path.join(FOLDER);
            Error::output(format!("cannot use {}: {e} (a link is not followed)", path.display()))
        })?;
        let mut shelf = Shelf::new(folder, keep);
        shelf.prepare()?;
        shelf.warnings.extend(lock.folder.remark());
        Self::start(shelf, Arc::clone(&lock.held))
    }

    /// Starts the writer thread on a shelf that was prepared; `lock` is held as long as the store. For tests
    /// with a folder of their own; everything else uses [`Store::open`].
    ///
    /// # Errors
    /// [`Kind::Io`] when there can be no further thread.
    #[doc(hidden)]
    pub fn start(shelf: Shelf, lock: Held) -> Result<Self> {
        let shared =
            Arc::new(Shared { desk: Mutex::default(), changed: Condvar::new(), shelf: Mutex::new(shelf) });
        let theirs = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("checkpoint-writer".into())
            .spawn(move || write_until_closed(&theirs))
            .map_err(|e| {
                Error::new(Kind::Io, format!("cannot start the checkpoint writer: {e}")).caused_by(e)
            })?;
        Ok(Store { shared, writer: Some(writer), _lock: lock })
    }

    /// The newest valid checkpoint; damaged newer ones are renamed to `.bad`.
    ///
    /// # Errors
    /// [`Kind::Input`] when there are files and none is whole, or the newest is of a newer format.
    pub fn newest(&mut self) -> Result<Found> {
        self.shelf().newest()
    }

    /// Renames the checkpoints of later steps than `step` to `.old` and says so: for a run that goes on from an
    /// older checkpoint and may come to other results.
    ///
    /// # Errors
    /// [`Kind::Io`] when it cannot be done.
    pub fn set_aside_newer(&mut self, step: u64) -> Result<Vec<String>> {
        self.shelf().set_aside_newer(step)
    }

    /// Hands `state` to the writer thread.
    ///
    /// # Errors
    /// With [`Wait::Block`], the failure to write; never with [`Wait::Skip`].
    pub fn save(&mut self, state: State, wait: Wait) -> Result<()> {
        let mut desk = self.desk();
        if wait == Wait::Skip && desk.is_busy() {
            let why = "checkpoint skipped: the one before is still being written".into();
            desk.outcomes.push(Outcome::Skipped { step: state.step, why });
            desk.spare = Some(state);
            return Ok(());
        }
        desk = self.wait_until_idle(desk);
        desk.collect();
        desk.waiting = Some(state);
        self.shared.changed.notify_all();
        if wait == Wait::Skip {
            return Ok(());
        }
        desk = self.wait_until_idle(desk);
        match desk.ended.take() {
            Some((step, Ok(path))) => {
                desk.outcomes.push(Outcome::Saved { step, path });
                Ok(())
            }
            Some((_, Err(error))) => Err(error),
            None => Err(Error::check("the checkpoint writer ended without an answer")),
        }
    }

    /// Waits until nothing is being written. The result is among the next [`Store::outcomes`].
    pub fn flush(&mut self) {
        let desk = self.desk();
        drop(self.wait_until_idle(desk));
    }

    /// Saves that ended since the last call.
    pub fn outcomes(&mut self) -> Vec<Outcome> {
        let mut desk = self.desk();
        desk.collect();
        std::mem::take(&mut desk.outcomes)
    }

    /// The memory of a state that was written, to be filled again instead of allocating; its content is old.
    pub fn take_buffer(&mut self) -> Option<State> {
        self.desk().spare.take()
    }

    /// A step whose checkpoint is never pruned, from the next save on, beside the newest ones and the best that
    /// the saved state names.
    pub fn protect(&mut self, step: Option<u64>) {
        self.desk().protected = step;
    }

    /// What is to be reported and is no error, since the last call.
    pub fn warnings(&mut self) -> Vec<String> {
        match self.shared.shelf.try_lock() {
            Ok(mut shelf) => shelf.take_warnings(),
            Err(_) => Vec::new(), // busy writing: the next call has them
        }
    }

    /// Says so when the disk has no room for the checkpoints to come, each of `bytes`: one more than are kept,
    /// and a tenth.
    pub fn space_warning(&mut self, bytes: u64) -> Option<String> {
        let shelf = self.shelf();
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
    /// [`Kind::Io`] when it cannot be written.
    pub fn write_next_loss(&mut self, step: u64, losses: &[f64]) -> Result<()> {
        self.shelf().write_next_loss(step, losses)
    }

    /// What [`Store::write_next_loss`] left for `step`.
    ///
    /// # Errors
    /// As [`Error::reading`], when the file is there and cannot be read; a damaged one is a warning.
    pub fn read_next_loss(&mut self, step: u64) -> Result<Option<Vec<f64>>> {
        self.shelf().read_next_loss(step)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shared.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.shared.desk()
    }

    fn wait_until_idle<'a>(&self, desk: MutexGuard<'a, Desk>) -> MutexGuard<'a, Desk> {
        self.shared.changed.wait_while(desk, |d| d.is_busy()).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.desk().closing = true;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    fn is_busy(&self) -> bool {
        self.writing || self.waiting.is_some()
    }

    /// Turns the result of a save nobody waited for into an outcome.
    fn collect(&mut self) {
        match self.ended.take() {
            Some((step, Ok(path))) => self.outcomes.push(Outcome::Saved { step, path }),
            Some((step, Err(error))) => {
                self.outcomes.push(Outcome::Skipped { step, why: format!("checkpoint skipped: {error}") });
            }
            None => {}
        }
    }
}

fn write_until_closed(shared: &Shared) {
    loop {
        let idle = |d: &mut Desk| d.waiting.is_none() && !d.closing;
        let mut desk = shared.changed.wait_while(shared.desk(), idle).unwrap_or_else(PoisonError::into_inner);
        let Some(state) = desk.waiting.take() else { return };
        desk.writing = true;
        let protected = desk.protected;
        drop(desk);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut shelf = shared.shelf.lock().unwrap_or_else(PoisonError::into_inner);
            shelf.protect(protected);
            shelf.save(&state)
        }));
        let result = result.unwrap_or_else(|_| Err(Error::check("the checkpoint writer failed (a bug)")));
        let mut desk = shared.desk();
        desk.writing = false;
        desk.ended = Some((state.step, result));
        desk.spare = Some(state);
        shared.changed.notify_all();
    }
}
