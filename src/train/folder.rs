//! The files of a run folder beside its checkpoints: `run.json`, adapters, the report.

use crate::config::{self, RunFile, Settings};
use crate::error::{Error, Result};
use crate::formats::{atomic_file, peft};
use crate::identity::Identity;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Paths of one run folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// The folder.
    pub path: PathBuf,
}

impl RunFolder {
    /// The folder at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        RunFolder { path: path.to_owned() }
    }

    /// A file or folder in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether a run has been here.
    #[must_use]
    pub fn holds_run(&self) -> bool {
        self.join("run.json").exists()
    }

    /// What decided the result of the run that is here, as its `run.json` says; `None` when there is none.
    ///
    /// # Errors
    /// When the file is not what the program writes.
    pub fn identity(&self) -> Result<Option<Identity>> {
        if !self.holds_run() {
            return Ok(None);
        }
        Ok(Some(RunFile::read(&self.path)?.identity))
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
        atomic_file::write(&self.join("run.json"), text.as_bytes())
    }

    /// Moves the files of an earlier run to `replaced-run-N` inside the folder; nothing is deleted.
    /// Returns where they went.
    ///
    /// # Errors
    /// I/O errors.
    pub fn move_aside(&self) -> Result<Option<PathBuf>> {
        let names = ["run.json", "metrics.jsonl", "checkpoints", "adapter", "best", "report.html"];
        let present: Vec<&str> = names.into_iter().filter(|n| self.join(n).exists()).collect();
        if present.is_empty() {
            return Ok(None);
        }
        let free = (1..).map(|n| self.join(&format!("replaced-run-{n}"))).find(|p| !p.exists());
        let target = free.unwrap_or_else(|| self.join("replaced-run"));
        std::fs::create_dir(&target).map_err(|e| Error::io("creating", &target, e))?;
        // run.json goes last: until then the folder still names itself a run.
        for name in present.iter().rev() {
            let from = self.join(name);
            std::fs::rename(&from, target.join(name)).map_err(|e| Error::io("moving", &from, e))?;
        }
        Ok(Some(target))
    }

    /// Writes an adapter folder (`adapter` or `best`).
    ///
    /// # Errors
    /// I/O errors.
    pub fn write_adapter(&self, name: &str, adapter: &peft::Adapter) -> Result<PathBuf> {
        let folder = self.join(name);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("creating", &folder, e))?;
        peft::write(&folder, adapter)?;
        Ok(folder)
    }
}

/// The base model's name as it is written into an adapter: the folder as the user gave it.
#[must_use]
pub fn base_name(settings: &Settings) -> String {
    settings.model.display().to_string()
}
