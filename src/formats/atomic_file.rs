//! Files that are whole or absent: temporary name, write, sync, rename, sync of the folder.

use crate::error::{Error, Result};
use crate::failpoint;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes `bytes` to `path` so that after a crash the old content or the new one is there, never a mixture,
/// and after a return the new one survives a power cut. Mode 0666 & ~umask.
///
/// The temporary file is `.NAME.tmp` beside it; one left by an earlier crash is replaced. After a failure
/// nothing is left behind and the old content stands.
///
/// # Errors
/// I/O errors, naming the path.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_name(path)?;
    let done = write_synced(&temporary, bytes).and_then(|()| {
        failpoint::hit();
        std::fs::rename(&temporary, path)
    });
    if let Err(error) = done {
        // A failed sync is never repeated on the same file: the kernel may have dropped the pages already.
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::io("writing", path, error));
    }
    failpoint::hit();
    sync_folder(folder_of(path)).map_err(|e| Error::io("writing", path, e))
}

/// Makes the names in `folder` durable.
///
/// # Errors
/// I/O errors of the folder.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    Ok(rustix::fs::fsync(folder)?)
}

fn write_synced(temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    failpoint::hit();
    let mut file = create_new(temporary)?;
    if failpoint::hit_halfway() {
        file.write_all(&bytes[..bytes.len() / 2])?;
        failpoint::die_if_halfway();
    }
    file.write_all(bytes)?;
    failpoint::hit();
    file.sync_all()
}

/// Creates the file; a leftover with its name is removed first, a link is never followed.
fn create_new(temporary: &Path) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    let open = || rustix::fs::open(temporary, flags, Mode::from_raw_mode(0o666));
    let opened = match open() {
        Err(rustix::io::Errno::EXIST) => {
            std::fs::remove_file(temporary)?;
            open()
        }
        other => other,
    };
    Ok(File::from(opened?))
}

fn temporary_name(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::output(format!("{} does not name a file", path.display())));
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

/// The folder a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
