//! Looking at what a user or a file names. That something could not be looked at is an error, never "it is not there";
//! pipes and devices are refused and not waited for; and what is read whole has a largest size.

use crate::error::{Error, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

/// What a path leads to; links are followed.
///
/// # Errors
/// Whatever hides the answer: permissions, a failing disk, a loop of links.
pub fn look(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::reading(path, e)),
    }
}

/// Whether there is anything.
///
/// # Errors
/// As [`look`].
pub fn exists(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some())
}

/// Whether there is a regular file.
///
/// # Errors
/// As [`look`].
pub fn is_file(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some_and(|found| found.is_file()))
}

/// Whether there is a folder.
///
/// # Errors
/// As [`look`].
pub fn is_folder(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some_and(|found| found.is_dir()))
}

/// The bytes of a regular file; `None` where there is none.
///
/// # Errors
/// As [`look`].
pub fn size(path: &Path) -> Result<Option<u64>> {
    Ok(look(path)?.filter(Metadata::is_file).map(|found| found.len()))
}

/// Opens a regular file for reading; links are followed. A pipe or a device is refused at once: it could be waited for
/// without end, has no size, and cannot be read twice.
///
/// # Errors
/// As [`Error::reading`]; or that it is no regular file.
pub fn open(path: &Path) -> Result<File> {
    // Without NONBLOCK the opening of a named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(opened.map_err(|e| Error::reading(path, e.into()))?);
    let kind = file.metadata().map_err(|e| Error::reading(path, e))?.file_type();
    if kind.is_dir() {
        return Err(Error::input(format!("{} is a folder, not a regular file", path.display())));
    }
    if !kind.is_file() {
        return Err(Error::input(format!("{} is a pipe or a device, not a regular file", path.display()))
            .hint("write its content to a file and name that"));
    }
    Ok(file)
}

/// The bytes of a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; or that it is larger.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    read_from(open(path)?, path, most)
}

/// As [`read`], of an open file; `path` is for messages.
///
/// # Errors
/// Reading; or that it is larger.
pub fn read_from(file: File, path: &Path, most: u64) -> Result<Vec<u8>> {
    let size = file.metadata().map_err(|e| Error::reading(path, e))?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(most)).unwrap_or(0));
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::reading(path, e))?;
    if bytes.len() as u64 > most {
        return Err(Error::input(format!(
            "{} is larger than the {most} bytes that are read",
            path.display()
        )));
    }
    Ok(bytes)
}

/// As [`read`], of a text in UTF-8.
///
/// # Errors
/// As [`read`]; or that it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    text(read(path, most)?, path)
}

/// The bytes as a text; `path` is for messages.
///
/// # Errors
/// That they are not UTF-8.
pub fn text(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|e| Error::input(format!("{} is not UTF-8: {e}", path.display())).caused_by(e))
}
