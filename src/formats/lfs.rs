//! Git LFS: what a clone has in place of a large file until `git lfs pull`.

use crate::error::Error;
use std::path::Path;

/// Whether the file that begins so is a pointer (the specification of Git LFS, "The Pointer").
#[must_use]
pub fn is_pointer(head: &[u8]) -> bool {
    head.starts_with(b"version https://git-lfs")
}

/// What is said of one.
#[must_use]
pub fn pointer(path: &Path) -> Error {
    Error::input(format!("{} is a Git LFS pointer, not the file it stands for", path.display()))
        .hint("get the files, in the folder that was cloned: git lfs pull")
}
