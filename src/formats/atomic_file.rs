//! Files that are whole or absent: temporary name, write, sync, rename, sync of the folder.

use crate::error::Result;
use std::path::Path;

/// Writes `bytes` to `path` so that after a crash the old content or the new one is there, never a mixture,
/// and after a return the new one survives a power cut. Mode 0666 & ~umask.
///
/// # Errors
/// I/O errors, naming the path.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let _ = (path, bytes);
    todo!()
}
