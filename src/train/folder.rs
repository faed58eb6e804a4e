//! The files of a run folder beside its checkpoints: `run.json`, adapters, the report.

use crate::checkpoint::storage::{self, FileSystem, Tree};
use crate::checkpoint::store::{self, RunLock};
use crate::config::{self, RunFile, Settings};
use crate::error::{Error, Result};
use crate::files;
use crate::formats::{peft, publish};
use crate::identity::Identity;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Whether a run has been in the folder `path`.
///
/// # Errors
/// When the folder cannot be looked into.
pub fn holds_run(path: &Path) -> Result<bool> {
    files::exists(&path.join(RUN_FILE))
}

/// The name of the file that says of which run a folder is.
pub const RUN_FILE: &str = "run.json";

/// A run folder whose lock this process holds. Every name is one in the open folder: what is moved elsewhere while the
/// run goes on is written there, and whatever took its old path is left alone.
#[derive(Clone)]
pub struct RunFolder(Rc<RunLock>);

impl RunFolder {
    /// Takes the lock of the folder `path`, creating it.
    ///
    /// # Errors
    /// As [`RunLock::take`].
    pub fn lock(path: &Path) -> Result<Self> {
        Ok(RunFolder(Rc::new(RunLock::take(&FileSystem, path)?)))
    }

    /// Its lock.
    #[must_use]
    pub fn run_lock(&self) -> &RunLock {
        &self.0
    }

    /// The open folder.
    #[must_use]
    pub fn open(&self) -> &dyn Tree {
        &*self.0.folder
    }

    /// Where it is now, for messages.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.open().path()
    }

    /// Where the file or folder `name` of it is now.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Whether a run has been here.
    ///
    /// # Errors
    /// When the folder cannot be looked into.
    pub fn holds_run(&self) -> Result<bool> {
        self.look(RUN_FILE)
    }

    fn look(&self, name: &str) -> Result<bool> {
        let found = self.open().entry(name).map_err(|e| Error::reading(&self.join(name), e))?;
        Ok(found.is_some())
    }

    /// The text of its `run.json`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn run_file(&self) -> Result<Option<String>> {
        let path = self.join(RUN_FILE);
        let bytes = storage::read_file(self.open(), RUN_FILE, config::run_file::MAX_BYTES);
        let bytes = bytes.map_err(|e| Error::reading(&path, e))?;
        bytes.map(|bytes| files::text(bytes, &path)).transpose()
    }

    /// What decided the result of the run that is here, as its `run.json` says; `None` when there is none.
    ///
    /// # Errors
    /// When the file is not what the program writes.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let Some(text) = self.run_file()? else { return Ok(None) };
        Ok(Some(RunFile::parse(&self.join(RUN_FILE), &text)?.identity))
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&self, settings: &Settings, identity: &Identity, command_line: &[String]) -> Result<()> {
        let engine = &identity.engine;
        let versions = BTreeMap::from([
            ("qwentune".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("arithmetic".to_owned(), engine.version.clone()),
        ]);
        let text = config::run_json(settings, command_line, &versions, identity);
        self.put(RUN_FILE, text.as_bytes())
    }

    /// Moves the files of an earlier run to `replaced-run-N` inside the folder; nothing is deleted.
    /// Returns where they went.
    ///
    /// # Errors
    /// I/O errors.
    pub fn move_aside(&self) -> Result<Option<PathBuf>> {
        let names = [RUN_FILE, METRICS, store::FOLDER, "adapter", "best", REPORT];
        let mut present = Vec::new();
        for name in names {
            if self.look(name)? {
                present.push(name);
            }
        }
        if present.is_empty() {
            return Ok(None);
        }
        let target = self.new_aside()?;
        // run.json goes last: until then the folder still names itself a run.
        for name in present.iter().rev() {
            let moved = self.open().rename(name, &format!("{target}/{name}"), false);
            moved.map_err(|e| Error::io("moving", &self.join(name), e))?;
        }
        Ok(Some(self.join(&target)))
    }

    fn new_aside(&self) -> Result<String> {
        let mut number = 1;
        loop {
            let name = format!("replaced-run-{number}");
            match self.open().create_subfolder(&name) {
                Ok(()) => return Ok(name),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(Error::io("creating", &self.join(&name), e)),
            }
        }
    }

    /// Publishes the run's page.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write_report(&self, page: &str) -> Result<()> {
        self.put(REPORT, page.as_bytes())
    }

    /// Publishes an adapter (`adapter` or `best`) that was trained on `base`.
    ///
    /// # Errors
    /// The base changed meanwhile; I/O errors.
    pub fn write_adapter(
        &self,
        name: &str,
        adapter: &peft::Adapter,
        base: &dyn publish::MadeFrom,
    ) -> Result<PathBuf> {
        let files = peft::encode(adapter);
        let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
        storage::put_folder(self.open(), name, &files, base)?;
        Ok(self.join(name))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let put = storage::put_file(self.open(), name, bytes);
        put.map(drop).map_err(|e| Error::io("writing", &self.join(name), e))
    }
}

/// The run's log.
pub const METRICS: &str = "metrics.jsonl";
/// The run's page.
pub const REPORT: &str = "report.html";

/// The base model's name as it is written into an adapter: the folder as the user gave it.
#[must_use]
pub fn base_name(settings: &Settings) -> String {
    settings.model.display().to_string()
}
