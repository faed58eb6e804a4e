//! Memory-mapped weights of a model folder: a single `model.safetensors` or the shards of its index.

use crate::element::Element;
use crate::error::Result;
use std::path::Path;
use std::sync::Arc;

/// One mapped file. Derefs to its bytes through `AsRef`.
pub struct MappedFile {}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        todo!()
    }
}

/// Where a tensor lies.
#[derive(Clone)]
pub struct Tensor {
    /// The mapped file.
    pub file: Arc<MappedFile>,
    /// First byte in it.
    pub offset: usize,
    /// Element type.
    pub element: Element,
    /// Dimensions.
    pub shape: Vec<usize>,
}

/// All weight files of a model folder.
pub struct WeightMap {}

impl WeightMap {
    /// Maps the folder's safetensors after checking headers, sizes and index against each other.
    ///
    /// # Errors
    /// Names the file or tensor; `.bin`-only folders are refused with the command that converts them.
    pub fn open(folder: &Path) -> Result<Self> {
        let _ = folder;
        todo!()
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let _ = name;
        todo!()
    }

    /// All names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        todo!()
    }

    /// BLAKE3 of every file, by file name, hex; cached by (device, inode, size, mtime, ctime) under `cache`.
    /// `progress` gets bytes done and bytes in all.
    ///
    /// # Errors
    /// I/O errors, naming the file.
    pub fn digests(
        &self,
        cache: Option<&Path>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<std::collections::BTreeMap<String, String>> {
        let _ = (cache, progress);
        todo!()
    }

    /// Whether every mapped file still has the size and mtime it was mapped with.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] naming the file that was edited in place or replaced by a shorter one.
    pub fn check_unchanged(&self) -> Result<()> {
        todo!()
    }

    /// Counts non-finite elements of a tensor.
    #[must_use]
    pub fn non_finite(tensor: &Tensor) -> usize {
        let _ = tensor;
        todo!()
    }
}
