//! Memory-mapped weights of a model folder: a single `model.safetensors` or the shards of its index.

use super::digest_cache::DigestCache;
use super::json;
use super::publish::MadeFrom;
use super::safetensors::{self, Header, printable};
use crate::element::Element;
use crate::error::{Error, Kind, Result};
use crate::{files, sys};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Largest index that is read; that of the largest Qwen is below 200 kB.
const MAX_INDEX_BYTES: u64 = 8 << 20;

/// Bytes one thread looks at before it takes the next part; a multiple of every element size.
const PART: usize = 1 << 20;

/// Bytes digested between two calls of `progress`.
const DIGEST_STEP: usize = 64 << 20;

/// What identifies a file's content as long as nobody forges times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Stamp {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    fn same_content(&self, other: &Stamp) -> bool {
        (self.size, self.modified) == (other.size, other.modified)
    }

    /// The name of the digest's cache file.
    fn key(&self) -> String {
        let Stamp { device, inode, size, modified, changed } = self;
        format!(
            "{device:x}-{inode:x}-{size:x}-{:x}.{:x}-{:x}.{:x}",
            modified.0, modified.1, changed.0, changed.1
        )
    }
}

impl MadeFrom for WeightMap {
    /// Whether every mapped file still has the size and mtime it was mapped with: [`Kind::Io`] names the one that was
    /// edited in place or replaced by another.
    fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged())
    }
}

/// One mapped file. Derefs to its bytes through `AsRef`.
pub struct MappedFile {
    // Dropped before the map, in this order: see `sys::Watch`.
    _watch: sys::Watch,
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
    stamp: Stamp,
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl std::fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedFile({})", self.path.display())
    }
}

impl MappedFile {
    /// Checks the header against the file's size and then maps it.
    fn open(path: &Path) -> Result<(Self, Header)> {
        let file = files::open(path)?;
        let found = file.metadata().map_err(|e| Error::reading(path, e))?;
        let header = read_header(path, &file, found.len())?;
        // SAFETY: the map is read-only and lives as long as `file` is open. Another process may still write to
        // the file: `check_unchanged` finds edits, and `sys::watch_mapping` ends the process when it shrinks.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("mapping", path, e))?;
        if map.len() as u64 != found.len() {
            return Err(Error::new(Kind::Io, format!("{} changed while it was opened", path.display())));
        }
        let watch = sys::watch_mapping(&map, path)?;
        let mapped = MappedFile { _watch: watch, map, file, path: path.to_owned(), stamp: Stamp::of(&found) };
        Ok((mapped, header))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_unchanged(&self) -> Result<()> {
        let open = self.file.metadata().map_err(|e| Error::io("reading", &self.path, e))?;
        let edited = !self.stamp.same_content(&Stamp::of(&open));
        // A file that is gone by now is still mapped, and may be put back before a resume needs it.
        let replaced =
            files::look(&self.path)?.is_some_and(|found| !self.stamp.same_content(&Stamp::of(&found)));
        if edited || replaced {
            let how = if edited { "was edited in place" } else { "was replaced" };
            return Err(Error::new(Kind::Io, format!("{} {how} while it was in use", self.path.display()))
                .hint("put the original file back, then resume from the last checkpoint"));
        }
        Ok(())
    }

    fn digest(&self, mut advance: impl FnMut(u64)) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in self.map.chunks(DIGEST_STEP) {
            hasher.update_rayon(part);
            advance(part.len() as u64);
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn read_header(path: &Path, file: &File, file_len: u64) -> Result<Header> {
    let read = |bytes: &mut [u8]| file.read_exact_at(bytes, 0).map_err(|e| Error::reading(path, e));
    let mut prefix = [0; 8];
    if file_len < 8 {
        return safetensors::parse_header(path, &[], file_len);
    }
    read(&mut prefix)?;
    let mut head = vec![0; safetensors::header_end(path, prefix, file_len)?];
    read(&mut head)?;
    safetensors::parse_header(path, &head, file_len)
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
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

impl Tensor {
    /// Its bytes, row-major and little endian, at any alignment.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let len = self.shape.iter().product::<usize>() * self.element.bytes();
        &self.file.map[self.offset..self.offset + len]
    }

    /// Whether both hold the same matrix in the same encoding.
    #[must_use]
    pub fn same_values(&self, other: &Tensor) -> bool {
        let (mine, theirs) = (self.bytes().par_chunks(PART), other.bytes().par_chunks(PART));
        (self.element, &self.shape) == (other.element, &other.shape) && mine.zip(theirs).all(|(a, b)| a == b)
    }
}

/// Where a matrix of float8 (e4m3) codes lies; its scales are a tensor of their own.
#[derive(Clone, Debug)]
pub struct Codes {
    /// The mapped file.
    pub file: Arc<MappedFile>,
    /// First byte in it; a code is a byte.
    pub offset: usize,
    /// Dimensions.
    pub shape: Vec<usize>,
}

/// The dtype of [`Codes`].
const CODES: &str = "F8_E4M3";

/// All weight files of a model folder.
#[derive(Debug)]
pub struct WeightMap {
    files: Vec<Arc<MappedFile>>,
    tensors: BTreeMap<String, Tensor>,
    codes: BTreeMap<String, Codes>,
}

impl WeightMap {
    /// No files, for weights that come from elsewhere.
    #[must_use]
    pub fn empty() -> Self {
        WeightMap { files: Vec::new(), tensors: BTreeMap::new(), codes: BTreeMap::new() }
    }

    /// Maps the folder's safetensors after checking headers, sizes and index against each other.
    ///
    /// # Errors
    /// Names the file or tensor; `.bin`-only folders are refused with the command that converts them.
    pub fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        match (files::exists(&single)?, files::exists(&index)?) {
            (single, true) => Self::open_shards(folder, &index, single),
            (true, false) => Self::open_files(folder, &BTreeSet::from([SINGLE.to_owned()]), None),
            (false, false) => Err(no_weights(folder)),
        }
    }

    fn open_shards(folder: &Path, index: &Path, single_too: bool) -> Result<Self> {
        let listed = read_index(index)?;
        let files: BTreeSet<String> = listed.values().cloned().collect();
        if single_too && !files.contains(SINGLE) {
            return Err(Error::input(format!(
                "{} and {} are two sets of weights",
                folder.join(SINGLE).display(),
                INDEX
            ))
            .hint("remove the one that is not wanted"));
        }
        Self::open_files(folder, &files, Some((index, &listed)))
    }

    fn open_files(
        folder: &Path,
        names: &BTreeSet<String>,
        index: Option<(&Path, &BTreeMap<String, String>)>,
    ) -> Result<Self> {
        let mut map = Self::empty();
        for name in names {
            let path = folder.join(name);
            if let (false, Some((index, _))) = (files::exists(&path)?, index) {
                return Err(Error::input(format!(
                    "{}: missing, {} names it",
                    path.display(),
                    index.display()
                ))
                .hint("download the rest of the model's files"));
            }
            map.add_file(&path)?;
        }
        if let Some((index, listed)) = index {
            map.check_index(index, listed)?;
        }
        map.complete_names();
        Ok(map)
    }

    /// Gives the tensor `name`, where it is there, another name besides.
    pub fn alias(&mut self, name: &str, other: &str) {
        if let Some(tensor) = self.tensors.get(name).cloned() {
            self.tensors.insert(other.to_owned(), tensor);
        }
    }

    /// Files that were saved from the model without its head (transformers' `AutoModel`) lack the prefix that the
    /// model with a head has.
    fn complete_names(&mut self) {
        for (prefix, table) in [("model.", "embed_tokens.weight"), ("transformer.", "wte.weight")] {
            let prefixed = self.tensors.keys().any(|name| name.starts_with(prefix));
            if prefixed || !self.tensors.contains_key(table) {
                continue;
            }
            let complete = |name: String| {
                if name.starts_with("lm_head.") { name } else { format!("{prefix}{name}") }
            };
            let tensors = std::mem::take(&mut self.tensors).into_iter();
            self.tensors = tensors.map(|(name, tensor)| (complete(name), tensor)).collect();
            let codes = std::mem::take(&mut self.codes).into_iter();
            self.codes = codes.map(|(name, codes)| (complete(name), codes)).collect();
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let (file, header) = MappedFile::open(path)?;
        let file = Arc::new(file);
        for (name, other) in header.others.into_iter().filter(|(name, _)| !is_buffer(name)) {
            if other.dtype != CODES {
                return Err(Error::input(format!(
                    "{}: tensor {} is {}; weights must be F32, F16, BF16, or {CODES} with scales",
                    path.display(),
                    printable(&name),
                    other.dtype
                ))
                .hint("other quantised weights are not supported; use the unquantised model"));
            }
            self.refuse_twice(&name, path)?;
            let (offset, shape) = (other.bytes.start, other.shape);
            self.codes.insert(name, Codes { file: Arc::clone(&file), offset, shape });
        }
        for (name, info) in header.tensors {
            if is_buffer(&name) {
                continue;
            }
            self.refuse_twice(&name, path)?;
            let offset = info.bytes.start;
            let tensor = Tensor { file: Arc::clone(&file), offset, element: info.element, shape: info.shape };
            self.tensors.insert(name, tensor);
        }
        self.files.push(file);
        Ok(())
    }

    fn refuse_twice(&self, name: &str, path: &Path) -> Result<()> {
        let Some(other) = self.file_of(name) else { return Ok(()) };
        let (here, there) = (path.display(), other.path.display());
        Err(Error::input(format!("{here}: tensor {} is in {there} too", printable(name))))
    }

    /// The file that holds the tensor called `name`.
    fn file_of(&self, name: &str) -> Option<&Arc<MappedFile>> {
        let elements = self.tensors.get(name).map(|tensor| &tensor.file);
        elements.or_else(|| self.codes.get(name).map(|codes| &codes.file))
    }

    /// Every tensor the index lists is in the shard it names, and no shard holds others.
    fn check_index(&self, index: &Path, listed: &BTreeMap<String, String>) -> Result<()> {
        let fault = |what: String| {
            Error::input(format!("{}: {what}", index.display()))
                .hint("index and shards do not belong together; download the model again")
        };
        for (name, shard) in listed.iter().filter(|(name, _)| !is_buffer(name)) {
            let found = self.file_of(name).and_then(|file| file.path.file_name());
            if found.is_none_or(|file| file != shard.as_str()) {
                return Err(fault(format!("tensor {} is not in {shard}", printable(name))));
            }
        }
        let found = self.names().into_iter().find(|name| !listed.contains_key(name));
        match found.and_then(|name| self.file_of(&name).map(|file| (printable(&name), file))) {
            None => Ok(()),
            Some((name, file)) => {
                Err(fault(format!("tensor {name} of {} is not listed", file.path.display())))
            }
        }
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).cloned()
    }

    /// The codes of the matrix called `name`, where it is stored in them.
    #[must_use]
    pub fn codes(&self, name: &str) -> Option<&Codes> {
        self.codes.get(name)
    }

    /// All names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors.keys().chain(self.codes.keys()).cloned().collect();
        names.sort();
        names
    }

    /// The mapped files, sorted by name.
    #[must_use]
    pub fn files(&self) -> &[Arc<MappedFile>] {
        &self.files
    }

    /// Bytes of all files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.stamp.size).sum()
    }

    /// BLAKE3 of every file, by file name, hex; where there is a `cache`, one that is kept there under the file's device,
    /// inode, size, mtime and ctime. `progress` gets bytes done and bytes in all.
    ///
    /// Not seen by a cached digest: a change that leaves those five as they are, such as one made through a memory map
    /// whose pages had been written to before, or on a disk that was taken out.
    ///
    /// # Errors
    /// [`Kind::Io`] naming a file that changed while it was read.
    pub fn digests(
        &self,
        cache: Option<&DigestCache>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BTreeMap<String, String>> {
        let (total, mut done) = (self.file_bytes(), 0);
        let mut digests = BTreeMap::new();
        for file in &self.files {
            let key = file.stamp.key();
            let known = cache.and_then(|cache| cache.get(&key));
            let digest = match known {
                Some(digest) => {
                    done += file.stamp.size;
                    progress(done, total);
                    digest
                }
                None => {
                    let digest = file.digest(|bytes| {
                        done += bytes;
                        progress(done, total);
                    });
                    file.check_unchanged()?;
                    if let Some(cache) = cache {
                        cache.keep(&key, &digest);
                    }
                    digest
                }
            };
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            digests.insert(name, digest);
        }
        Ok(digests)
    }

    /// Counts non-finite elements of a tensor.
    #[must_use]
    pub fn non_finite(tensor: &Tensor) -> usize {
        // All exponent bits set: infinite or not a number.
        match tensor.element {
            Element::F32 => count_with_bits(tensor.bytes(), u32::from_le_bytes, 0x7f80_0000),
            Element::F16 => count_with_bits(tensor.bytes(), |b| u32::from(u16::from_le_bytes(b)), 0x7c00),
            Element::Bf16 => count_with_bits(tensor.bytes(), |b| u32::from(u16::from_le_bytes(b)), 0x7f80),
        }
    }
}

fn count_with_bits<const N: usize>(bytes: &[u8], bits: impl Fn([u8; N]) -> u32 + Sync, mask: u32) -> usize {
    let count = |part: &[u8]| {
        let (elements, _) = part.as_chunks::<N>();
        elements.iter().filter(|e| bits(**e) & mask == mask).count()
    };
    bytes.par_chunks(PART).map(count).sum()
}

/// Buffers that older folders store beside the weights and that are computed here: rotary frequencies, causal
/// masks.
fn is_buffer(name: &str) -> bool {
    [".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias"].iter().any(|end| name.ends_with(end))
}

/// Tensor to file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let fault = |what: String| Error::input(format!("{}: {what}", path.display()));
    let index = json::read_object(path, MAX_INDEX_BYTES)?;
    let Some(serde_json::Value::Object(listed)) = index.get("weight_map") else {
        return Err(fault("no object weight_map".into()));
    };
    if listed.is_empty() || listed.len() > safetensors::MAX_TENSORS {
        return Err(fault(format!("weight_map has {} tensors", listed.len())));
    }
    let mut files = BTreeMap::new();
    for (name, file) in listed {
        match file.as_str() {
            Some(file) if is_plain_name(file) => files.insert(name.clone(), file.to_owned()),
            _ => {
                let file = printable(&file.to_string());
                return Err(fault(format!(
                    "tensor {}: {file} is not a .safetensors file name",
                    printable(name)
                )));
            }
        };
    }
    Ok(files)
}

/// A file of the folder itself: the index may not point elsewhere.
fn is_plain_name(file: &str) -> bool {
    file.ends_with(".safetensors")
        && file.len() <= 255
        && !file.starts_with('.')
        && !file.contains(['/', '\\'])
        && !file.chars().any(char::is_control)
}

fn no_weights(folder: &Path) -> Error {
    let shown = folder.display();
    let has_bin = std::fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json"))
        })
    });
    if has_bin {
        return Error::input(format!("{shown}: weights are pickled .bin files, only safetensors are read"))
            .hint(format!(
                "convert them: python3 -c \"from transformers import AutoModelForCausalLM as M; \
             M.from_pretrained('{shown}', torch_dtype='auto', trust_remote_code=True)\
             .save_pretrained('{shown}-safetensors')\", then copy the tokenizer files there"
            ));
    }
    Error::input(format!("{shown}: neither {SINGLE} nor {INDEX} is there"))
        .hint("--model-name-or-path takes a downloaded model folder")
}
