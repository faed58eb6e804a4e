//! A run folder: the lock on it, and its files beside the checkpoints. Names are resolved in the open folder, so that a
//! run whose folder is moved goes on writing there and never into what took its name.

use super::event_file;
use super::run_file::{self, RunFile};
use crate::checkpoint::shelf::step_of;
use crate::checkpoint::storage::{self, Disk, Entry, Tree};
use crate::checkpoint::store::{self, RunLock, Store};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::formats::peft;
use crate::formats::publish::MadeFrom;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The files of a run, in the order in which they are moved aside: while `run.json` is there, the folder names itself
/// a run.
const FILES: [&str; 9] = [
    REPORT,
    SAVED_BEST,
    BEST,
    "adapter",
    "checkpoints",
    "metrics.jsonl",
    "metrics.jsonl.old",
    event_file::NAME,
    run_file::NAME,
];
/// The adapter of the best evaluation.
pub const BEST: &str = "best";
/// That of the evaluation that the newest saved state names, while `best` is of a later one.
pub const SAVED_BEST: &str = "best.old";
/// The run's page.
pub const REPORT: &str = "report.html";
/// Where they lie while they are being moved.
const MOVING: &str = ".replaced-run.tmp";

/// A run folder that this process holds the lock of.
pub struct RunFolder {
    lock: RunLock,
}

impl RunFolder {
    /// Takes the lock of the folder `path`, creating the folder where it is missing. Nothing else in it is touched.
    ///
    /// # Errors
    /// [`crate::error::Kind::Output`] when it is locked by another run or cannot be used.
    pub fn lock(disk: &dyn Disk, path: &Path) -> Result<Self> {
        Ok(RunFolder { lock: RunLock::take(disk, path)? })
    }

    /// Its name, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.lock.path
    }

    /// The open folder.
    #[must_use]
    pub fn tree(&self) -> &dyn Tree {
        &*self.lock.folder
    }

    /// Opens its checkpoints; `keep` is the retention.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn store(&self, keep: usize) -> Result<Store> {
        Store::open(&self.lock, keep)
    }

    /// The bytes of one of its files; `None` when it is missing.
    ///
    /// # Errors
    /// As [`Error::reading`].
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        storage::read_file(self.tree(), name, limit).map_err(|e| Error::reading(&self.shown(name), e))
    }

    /// Puts a file in place whole.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let put = storage::put_file(self.tree(), name, bytes);
        put.map(drop).map_err(|e| Error::io("writing", &self.shown(name), e))
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write_run_file(&self, run: &RunFile) -> Result<()> {
        self.put(run_file::NAME, run.to_json().as_bytes())
    }

    /// The text of `run.json`.
    ///
    /// # Errors
    /// As [`RunFolder::read`].
    pub fn run_json(&self) -> Result<String> {
        let bytes = self.read(run_file::NAME, run_file::MAX_BYTES)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Publishes an adapter (`adapter` or `best`) that was trained on `base`, and gives where it is.
    ///
    /// # Errors
    /// The base changed meanwhile; I/O errors.
    pub fn write_adapter(&self, name: &str, adapter: &peft::Adapter, base: &dyn MadeFrom) -> Result<PathBuf> {
        let files = peft::encode(adapter);
        let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
        storage::put_folder(self.tree(), name, &files, base)?;
        Ok(self.shown(name))
    }

    /// The adapter in one of its folders; `None` when there is none.
    ///
    /// # Errors
    /// As [`read_adapter`].
    pub fn read_adapter(&self, name: &str) -> Result<Option<peft::Adapter>> {
        read_adapter(self.tree(), name)
    }

    /// Where one of its files is, for messages.
    #[must_use]
    pub fn shown(&self, name: &str) -> PathBuf {
        self.tree().path().join(name)
    }

    /// Moves the files of an earlier run to `replaced-run-N` inside the folder, where they are a run as before; nothing
    /// is deleted. Returns where they went. One that was interrupted is ended by the next.
    ///
    /// # Errors
    /// I/O errors.
    pub fn move_aside(&self) -> Result<Option<PathBuf>> {
        let moved = self.try_move_aside();
        moved.map_err(|e| Error::io("moving the earlier run's files in", &self.tree().path(), e))
    }

    fn try_move_aside(&self) -> io::Result<Option<PathBuf>> {
        let folder = self.tree();
        let mut present = Vec::new();
        for name in FILES {
            present.extend(folder.entry(name)?.map(|_| name));
        }
        let interrupted = folder.entry(MOVING)?.is_some();
        if present.is_empty() && !interrupted {
            return Ok(None);
        }
        if !interrupted {
            folder.create_subfolder(MOVING)?;
        }
        for name in present {
            folder.rename(name, &format!("{MOVING}/{name}"), false)?;
        }
        folder.subfolder(MOVING)?.sync()?;
        let mut number = 1;
        while folder.entry(&format!("replaced-run-{number}"))?.is_some() {
            number += 1;
        }
        let target = format!("replaced-run-{number}");
        folder.rename(MOVING, &target, false)?;
        folder.sync()?;
        Ok(Some(folder.path().join(target)))
    }

    /// Ends a moving aside that was interrupted, before anybody looks at what is here. While nothing was moved yet, the
    /// folder is as it was.
    ///
    /// # Errors
    /// As [`RunFolder::move_aside`].
    pub fn end_interrupted_move(disk: &dyn Disk, path: &Path) -> Result<Option<PathBuf>> {
        let folder = match disk.open(path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            opened => opened.map_err(|e| Error::reading(path, e))?,
        };
        let begun = || match folder.entry(MOVING)? {
            Some(Entry::Folder) => Ok(!folder.subfolder(MOVING)?.list()?.is_empty()),
            _ => Ok(false),
        };
        if begun().map_err(|e: io::Error| Error::reading(path, e))? {
            return Self::lock(disk, path)?.move_aside();
        }
        Ok(None)
    }
}

/// The adapter in the folder `name` of a run folder; `None` when there is none.
///
/// # Errors
/// As [`peft::parse`]; I/O errors.
pub fn read_adapter(run: &dyn Tree, name: &str) -> Result<Option<peft::Adapter>> {
    let path = run.path().join(name);
    let failed = |e: io::Error| Error::reading(&path, e);
    if run.entry(name).map_err(failed)?.is_none() {
        return Ok(None);
    }
    let inside = run.subfolder(name).map_err(failed)?;
    let file = |name: &str, limit: u64| storage::read_file(&*inside, name, limit).map_err(failed);
    match (file(peft::CONFIG, peft::MAX_CONFIG_BYTES)?, file(peft::WEIGHTS, peft::MAX_WEIGHT_BYTES)?) {
        (Some(config), Some(weights)) => peft::parse(&path, &config, &weights).map(Some),
        _ => Ok(None),
    }
}

/// The names of the checkpoints in a run folder, whole or not; none when there is no folder.
///
/// # Errors
/// When it cannot be looked at.
pub fn checkpoints_in(disk: &dyn Disk, run: &Path) -> Result<Vec<String>> {
    match disk.open(run) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        Ok(tree) => checkpoints(&*tree).map_err(|e| Error::reading(run, e)),
        Err(e) => Err(Error::reading(run, e)),
    }
}

/// As [`checkpoints_in`], of an open folder.
///
/// # Errors
/// The storage's own.
pub fn checkpoints(run: &dyn Tree) -> io::Result<Vec<String>> {
    if run.entry(store::FOLDER)? != Some(Entry::Folder) {
        return Ok(Vec::new());
    }
    let mut names = run.subfolder(store::FOLDER)?.list()?;
    names.retain(|name| step_of(name).is_some());
    Ok(names)
}

/// The base model's name as it is written into an adapter: the folder as the user gave it.
#[must_use]
pub fn base_name(settings: &Settings) -> String {
    settings.model.display().to_string()
}
