//! What can be asked about checkpoints without the run's lock; nothing is changed.

use super::decode::Source;
use super::format::{Fault, Header, Reading, read};
use super::shelf::step_of;
use super::state::State;
use super::storage::RealFile;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::formats::open_folder::OpenFolder;
use std::io;
use std::path::{Path, PathBuf};

/// A file in a checkpoint folder.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The file.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
    /// What its header says, or why it says nothing. Only the header was read: see [`verify`].
    pub header: std::result::Result<Header, String>,
    /// Name and content differ in the step.
    pub misnamed: bool,
}

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Sections, lengths, digests, step.
    pub header: Header,
    /// The state without the values of its arrays: `weights`, `m` and `v` are empty.
    pub state: State,
    /// Trainable parameters.
    pub parameters: u64,
}

/// Loads the file `path` as the user named it: no other is tried.
///
/// # Errors
/// [`Kind::Input`] when it is missing, damaged, or of another format; [`Kind::Io`] when reading fails.
pub fn load(path: &Path) -> Result<State> {
    read_file(path, Reading::Load).map(|(_, state)| state).map_err(|fault| fault.at(path))
}

/// Whether an error of this module says that a file is damaged, and not that it could not be read.
#[must_use]
pub fn is_damage(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Fault>());
    matches!(source, Some(Fault::Damaged(_)))
}

/// What is inside `path`; every byte is checked on the way.
///
/// # Errors
/// As [`load`].
pub fn show(path: &Path) -> Result<Shown> {
    let (header, state) = read_file(path, Reading::Verify).map_err(|fault| fault.at(path))?;
    let parameters = state.tensors.iter().filter_map(|t| t.elements()).sum::<usize>() as u64;
    Ok(Shown { header, state, parameters })
}

/// Checks every byte of `path`.
///
/// # Errors
/// [`Kind::Check`] when it is damaged, naming section and offset; [`Kind::Input`] when it is missing or of another format; [`Kind::Io`] when reading fails.
pub fn verify(path: &Path) -> Result<Header> {
    match read_file(path, Reading::Verify) {
        Ok((header, _)) => Ok(header),
        Err(Fault::Damaged(what)) => Err(Error::new(Kind::Check, format!("{}: {what}", path.display()))),
        Err(other) => Err(other.at(path)),
    }
}

fn read_file(path: &Path, reading: Reading) -> std::result::Result<(Header, State), Fault> {
    read(&RealFile::open(path)?, reading)
}

/// The checkpoint files of a run folder (or of its `checkpoints` folder), newest first. Files set aside are not
/// among them.
///
/// # Errors
/// [`Kind::Input`] when the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<Listed>> {
    let folder = checkpoint_folder(folder)?;
    let reading = |e: io::Error| Error::reading(&folder, e);
    let names = OpenFolder::open(&folder).and_then(|f| f.list()).map_err(reading)?;
    let mut all: Vec<(u64, Listed)> = Vec::new();
    for name in names.iter().filter_map(|name| name.to_str()) {
        let Some(named) = step_of(name) else { continue };
        let path = folder.join(name);
        let listed = list_one(&path, named);
        all.push((listed.header.as_ref().map_or(named, |h| h.step), listed));
    }
    all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(all.into_iter().map(|(_, listed)| listed).collect())
}

fn list_one(path: &Path, named: u64) -> Listed {
    let opened = RealFile::open(path).map_err(Fault::Io);
    let bytes = opened.as_ref().map_or(0, |file| file.size().unwrap_or(0));
    let header = opened.and_then(|file| super::decode::read_header(&file));
    let header = header.map_err(|fault| match fault {
        Fault::Damaged(what) | Fault::OtherVersion(what) => what,
        Fault::Io(e) => e.to_string(),
    });
    let misnamed = header.as_ref().is_ok_and(|h| h.step != named);
    Listed { path: path.to_path_buf(), bytes, header, misnamed }
}

/// The folder of a run's checkpoints; a path that has no such folder inside is taken for it.
///
/// # Errors
/// When it cannot be looked at.
pub fn checkpoint_folder(path: &Path) -> Result<PathBuf> {
    let inside = path.join(super::store::FOLDER);
    Ok(if files::is_folder(&inside)? { inside } else { path.to_path_buf() })
}

/// Where the checkpoint of `step` is, or would be, in the run folder `run`.
#[must_use]
pub fn path_of_step(run: &Path, step: u64) -> PathBuf {
    run.join(super::store::FOLDER).join(super::shelf::file_name(step))
}
