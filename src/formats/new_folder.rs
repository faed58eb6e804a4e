//! A folder of several files that is whole or absent: everything is written below a temporary name beside it,
//! synced, and renamed at the end.

use super::atomic_file;
use crate::error::{Error, Result};
use crate::failpoint;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A folder that is being written. Dropped before [`NewFolder::publish`], nothing of it stays.
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
    staged: PathBuf,
}

impl NewFolder {
    /// Begins the folder `path`, as `.NAME.tmp` beside it; one left by an earlier crash is replaced.
    ///
    /// # Errors
    /// [`crate::error::Kind::Output`] when `path` is there already and not an empty folder; I/O.
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(Error::output(format!("{} does not name a new folder", path.display())));
        };
        check_free(path)?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(".tmp");
        let staged = path.with_file_name(temporary);
        let make = || {
            match std::fs::remove_dir_all(&staged) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => failpoint::hit(),
            }
            std::fs::create_dir_all(&staged)
        };
        make().map_err(|e| Error::output(format!("cannot create {}: {e}", staged.display())).caused_by(e))?;
        Ok(NewFolder { path: path.to_owned(), staged })
    }

    /// Writes the file `name` of the folder; `write` gets it opened and empty. It is durable afterwards.
    ///
    /// # Errors
    /// Those of `write`; I/O, naming the file.
    pub fn file(&self, name: &str, write: impl FnOnce(&mut Sink) -> Result<()>) -> Result<()> {
        failpoint::hit();
        let path = self.staged.join(name);
        let file = File::create_new(&path).map_err(|e| Error::io("writing", &path, e))?;
        let mut sink = Sink { file, path };
        write(&mut sink)?;
        failpoint::hit();
        sink.file.sync_all().map_err(|e| Error::io("writing", &sink.path, e))
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// I/O; or something has taken the name meanwhile.
    pub fn publish(self) -> Result<()> {
        let fault = |e: io::Error| Error::io("writing", &self.path, e);
        atomic_file::sync_folder(&self.staged).map_err(fault)?;
        failpoint::hit();
        // An empty folder of that name is replaced, anything else makes this fail.
        std::fs::rename(&self.staged, &self.path).map_err(fault)?;
        failpoint::hit();
        atomic_file::sync_folder(atomic_file::folder_of(&self.path)).map_err(fault)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // After publishing there is nothing below this name.
        let _ = std::fs::remove_dir_all(&self.staged);
    }
}

/// One file of a folder that is being written.
#[derive(Debug)]
pub struct Sink {
    file: File,
    path: PathBuf,
}

impl Sink {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// I/O, naming the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let half = if failpoint::hit_halfway() { bytes.len() / 2 } else { bytes.len() };
        let written = self.file.write_all(&bytes[..half]);
        failpoint::die_if_halfway();
        written.map_err(|e| Error::io("writing", &self.path, e))
    }
}

/// Whether a new folder can have this name.
///
/// # Errors
/// [`crate::error::Kind::Output`] when something has it that is not an empty folder.
pub fn check_free(path: &Path) -> Result<()> {
    let taken = |what: &str| {
        Err(Error::output(format!("{} {what}", path.display())).hint("give a folder that is not there yet"))
    };
    if std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    match std::fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => taken("is not empty"),
        Err(_) => taken("is there already and no folder"),
    }
}
