//! A run folder's checkpoints and its lock.

use super::shelf::Shelf;
pub use super::shelf::{Found, file_name};
use super::state::State;
use super::storage::RealFolder;
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder of the checkpoints inside a run folder.
pub const FOLDER: &str = "checkpoints";
/// The file inside a run folder whose lock a run holds.
pub const LOCK: &str = ".lock";

/// The checkpoints of one run folder, locked by this process.
pub struct Store {
    shelf: Shelf,
    /// Held for the store's life; the lock ends with it, or with the process.
    _lock: File,
}

/// A run folder that is this process's alone; nothing else in it was touched.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    folder: RealFolder,
    file: File,
}

impl RunLock {
    /// Takes the lock of `run_folder`, creating the folder.
    ///
    /// # Errors
    /// [`crate::error::Kind::Output`] when it is locked by another run or cannot be used.
    pub fn take(run_folder: &Path) -> Result<Self> {
        crate::sys::ignore_file_size_signal();
        let unusable = |e: io::Error| {
            Error::output(format!("cannot use {} as the output folder: {e}", run_folder.display()))
                .hint("choose another --output-dir, or make this one writable")
        };
        refuse_foreign_link(run_folder)?;
        create_durably(run_folder).map_err(unusable)?;
        let folder = RealFolder::open(run_folder).map_err(unusable)?;
        let file = take_lock(&folder, run_folder)?;
        Ok(RunLock { path: run_folder.to_path_buf(), folder, file })
    }
}

impl Store {
    /// Opens the checkpoints of the folder whose lock is held: probes that it can be written, synced and renamed in,
    /// removes leftovers of an interrupted save. `keep` is the retention (below 2 counts as
    /// 2).
    ///
    /// # Errors
    /// [`crate::error::Kind::Output`] when not writable.
    pub fn open(lock: RunLock, keep: usize) -> Result<Self> {
        let folder = lock.folder.subfolder(FOLDER).map_err(|e| {
            let path = lock.path.join(FOLDER);
            Error::output(format!("cannot use {}: {e} (a link is not followed)", path.display()))
        })?;
        let mut shelf = Shelf::new(Box::new(folder), keep);
        shelf.prepare()?;
        shelf.warnings.extend(open_to_all(&lock.path));
        Ok(Self::of(shelf, lock.file))
    }

    /// Of a shelf that was prepared; `lock` is held as long as the store. For tests with a folder of their own; everything
    /// else uses [`Store::open`].
    #[doc(hidden)]
    #[must_use]
    pub fn of(shelf: Shelf, lock: File) -> Self {
        Store { shelf, _lock: lock }
    }

    /// The newest valid checkpoint; damaged newer ones are renamed to `.bad`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] when there are files and none is whole, or the newest is of a newer format.
    pub fn newest(&mut self) -> Result<Found> {
        self.shelf.newest()
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

    /// What is to be reported and is no error, since the last call.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.shelf.take_warnings()
    }

    /// Says so when the disk has no room for the checkpoints to come, each of `bytes`: one more than are kept,
    /// and a tenth.
    #[must_use]
    pub fn space_warning(&self, bytes: u64) -> Option<String> {
        let shelf = &self.shelf;
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

fn refuse_foreign_link(run_folder: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(run_folder) else { return Ok(()) };
    if found.is_symlink() && found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::output(format!("{} is a symbolic link of another user", run_folder.display()))
            .hint("name the folder it leads to"));
    }
    Ok(())
}

fn open_to_all(run_folder: &Path) -> Option<String> {
    let mode = std::fs::metadata(run_folder).ok()?.mode();
    let (world_writable, sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
    (world_writable && !sticky)
        .then(|| format!("{} is writable for every user of this machine", run_folder.display()))
}

/// Creates the folder and what is missing above it, each synced into the one above.
fn create_durably(folder: &Path) -> io::Result<()> {
    let above = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_path_buf(),
        None => PathBuf::from("/"),
    };
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    std::fs::create_dir_all(folder)?;
    for created in missing {
        File::open(above(created))?.sync_all()?;
    }
    Ok(())
}

/// Tries for a second: a process that was just killed, or a child between fork and exec, may hold it for a moment.
fn lock_soon(file: &File) -> rustix::io::Result<()> {
    for _ in 0..20 {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(std::time::Duration::from_millis(50)),
            other => return other,
        }
    }
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

fn take_lock(run: &RealFolder, run_folder: &Path) -> Result<File> {
    let path = run_folder.join(LOCK);
    let failed = |e: io::Error| Error::output(format!("cannot lock {}: {e}", path.display()));
    let mut file = run.open_or_create(LOCK).map_err(failed)?;
    match lock_soon(&file) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = (&mut file).take(64).read_to_string(&mut text);
            let holder = if text.trim().is_empty() {
                "another process".into()
            } else {
                format!("process {}", text.trim())
            };
            return Err(Error::output(format!("{} is in use by {holder}", run_folder.display()))
                .hint("wait until it ends, or stop it; the lock ends with the process that holds it"));
        }
        Err(e) => return Err(failed(e.into())),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}
