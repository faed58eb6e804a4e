//! Files of `torch.save`: a zip archive whose `data.pkl` refers to tensors in `data/0`, `data/1`, ... (format
//! version 3, as PyTorch 1.6 and newer write it). Read without running anything; written with the same bytes
//! for the same content.

use super::peft;
use super::pickle::{self, Element, Pickle, Tensor};
use super::zip::{self, Archive};
use crate::error::{Error, Result};
use std::path::Path;

/// Longest of the small entries beside pickle and data, bytes.
const SMALL: u64 = 4096;
/// Largest tensor memory that is read at once, bytes.
const MAX_STORAGE_BYTES: u64 = 16 << 30;

/// An open file whose structure was checked; tensors are read when asked for.
#[derive(Debug)]
pub struct TorchFile {
    archive: Archive,
    folder: String,
    /// What it holds.
    pub pickle: Pickle,
}

impl TorchFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// Names the file and what is refused: see [`zip`] and [`pickle`] for the rules.
    pub fn open(path: &Path) -> Result<Self> {
        let archive = Archive::open(path)?;
        let fault = |rule: String| Error::input(format!("{}: {rule}", path.display()));
        let folder =
            archive.names().next().and_then(|n| n.split_once('/')).map(|(folder, _)| folder.to_owned());
        let folder = folder.ok_or_else(|| fault("the archive has no folder".into()))?;
        for name in archive.names() {
            if !name.strip_prefix(&folder).and_then(|n| n.strip_prefix('/')).is_some_and(is_known) {
                return Err(fault(format!(
                    "entry {} is not one that torch.save writes",
                    name.escape_debug()
                )));
            }
        }
        let order = format!("{folder}/byteorder");
        if archive.size(&order).is_some() && archive.read(&order, SMALL)? != b"little" {
            return Err(fault("written on a big-endian machine, which is not supported".into()));
        }
        let text = archive.read(&format!("{folder}/data.pkl"), pickle::MAX_BYTES)?;
        let pickle = pickle::parse(&text).map_err(fault)?;
        let file = TorchFile { archive, folder, pickle };
        file.check_storages()?;
        Ok(file)
    }

    /// An error in this file.
    pub fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("{}: {what}", self.archive.path().display()))
    }

    /// Every storage has an entry of its length.
    fn check_storages(&self) -> Result<()> {
        for storage in &self.pickle.storages {
            let expected = storage.len.checked_mul(storage.element.bytes());
            let found = self.archive.size(&self.entry(&storage.key));
            if expected.is_none() || expected != found {
                return Err(self.fault(format!(
                    "storage {} has {} elements of {} bytes, its entry {} bytes",
                    storage.key,
                    storage.len,
                    storage.element.bytes(),
                    found.map_or_else(|| "is missing, 0".into(), |n| n.to_string())
                )));
            }
        }
        Ok(())
    }

    fn entry(&self, key: &str) -> String {
        format!("{}/data/{key}", self.folder)
    }

    /// The elements of a tensor as f32.
    ///
    /// # Errors
    /// The data is damaged; an element type other than f32, f16 and bf16.
    pub fn values(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let storage = &self.pickle.storages[tensor.storage];
        let element = match storage.element {
            Element::F32 => crate::element::Element::F32,
            Element::F16 => crate::element::Element::F16,
            Element::Bf16 => crate::element::Element::Bf16,
            other => {
                return Err(self.fault(format!("a tensor of {other:?}; F32, F16 and BF16 are supported")));
            }
        };
        let bytes = self.archive.read(&self.entry(&storage.key), MAX_STORAGE_BYTES)?;
        let width = storage.element.bytes();
        // Within the storage: checked when the tensor was made.
        let range = (tensor.offset * width) as usize..((tensor.offset + tensor.elements) * width) as usize;
        Ok(peft::decode(element, &bytes[range]))
    }
}

/// Whether an entry, without the folder, is one of those torch.save writes.
fn is_known(name: &str) -> bool {
    let data = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
    ["data.pkl", "byteorder", "version", ".format_version", ".storage_alignment"].contains(&name)
        || name.strip_prefix("data/").is_some_and(data)
        || name.strip_prefix(".data/").is_some_and(|rest| !rest.contains('/'))
}

// ---- the writer -------------------------------------------------------------------------------------------

/// A value to be written.
#[derive(Clone, Debug)]
pub enum Tree<'a> {
    /// `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(&'a str),
    /// A tuple.
    Tuple(Vec<Tree<'a>>),
    /// A list.
    List(Vec<Tree<'a>>),
    /// A dict, in this order.
    Dict(Vec<(Tree<'a>, Tree<'a>)>),
    /// An f32 tensor: dimensions and elements.
    Tensor(Vec<usize>, &'a [f32]),
}

/// The bytes of a file that `torch.load(..., weights_only=True)` reads as `tree`. `folder` is the name inside
/// the archive, in torch the file's own without its ending.
///
/// # Errors
/// Usage: more than 4 GiB.
pub fn encode(folder: &str, tree: &Tree<'_>) -> Result<Vec<u8>> {
    let mut writer = Writer { bytes: vec![0x80, 2], storages: Vec::new() };
    writer.value(tree);
    writer.bytes.push(b'.');
    let mut entries = vec![
        (format!("{folder}/data.pkl"), writer.bytes),
        (format!("{folder}/byteorder"), b"little".to_vec()),
    ];
    for (key, values) in writer.storages.into_iter().enumerate() {
        entries.push((format!("{folder}/data/{key}"), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }
    entries.push((format!("{folder}/version"), b"3\n".to_vec()));
    zip::encode(&entries)
}

/// Writes values in full, with no memo: longer than Python's, with fewer ways to write the same.
struct Writer<'a> {
    bytes: Vec<u8>,
    storages: Vec<&'a [f32]>,
}

impl<'a> Writer<'a> {
    fn value(&mut self, tree: &Tree<'a>) {
        match tree {
            Tree::None => self.bytes.push(b'N'),
            Tree::Bool(true) => self.bytes.push(0x88),
            Tree::Bool(false) => self.bytes.push(0x89),
            Tree::Int(i) => self.int(*i),
            Tree::Float(f) => {
                self.bytes.push(b'G');
                self.bytes.extend(f.to_be_bytes());
            }
            Tree::Text(text) => self.text(text),
            Tree::Tuple(items) => {
                self.bytes.push(b'(');
                items.iter().for_each(|item| self.value(item));
                self.bytes.push(b't');
            }
            Tree::List(items) => {
                self.bytes.extend(b"](");
                items.iter().for_each(|item| self.value(item));
                self.bytes.push(b'e');
            }
            Tree::Dict(entries) => {
                self.bytes.extend(b"}(");
                for (key, value) in entries {
                    self.value(key);
                    self.value(value);
                }
                self.bytes.push(b'u');
            }
            Tree::Tensor(shape, values) => self.tensor(shape, values),
        }
    }

    /// BININT where it fits, else LONG1 of 8 bytes.
    fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(small) => {
                self.bytes.push(b'J');
                self.bytes.extend(small.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`.
    fn tensor(&mut self, shape: &[usize], values: &'a [f32]) {
        let key = self.storages.len().to_string();
        self.storages.push(values);
        self.bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.bytes.extend(b"ctorch\nFloatStorage\n");
        self.text(&key);
        self.text("cpu");
        self.int(values.len() as i64);
        self.bytes.extend(b"tQ");
        self.int(0);
        let mut strides = vec![1usize; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        for sizes in [shape, &strides] {
            let items = sizes.iter().map(|s| Tree::Int(*s as i64)).collect();
            self.value(&Tree::Tuple(items));
        }
        self.bytes.push(0x89);
        self.bytes.extend(b"ccollections\nOrderedDict\n)RtR");
    }
}
