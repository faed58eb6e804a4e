//! An adapter folded into its base: a model folder of the same files, in which the adapted matrices hold
//! `W + scale · B·A`.
//!
//! A shard of the result is the base's shard, byte for byte, but for the ranges of those matrices. So names,
//! shapes, element types, order and split are the base's, and one matrix at a time is in memory.

use super::adapter::Adapter;
use super::fold;
use super::lora::Slot;
use super::spec::Spec;
use super::weights::Weights;
use crate::device::Matrix;
use crate::error::{Error, Result};
use crate::files;
use crate::formats::publish::{FolderDraft, Sink, check_free};
use crate::formats::weight_map::{MappedFile, Tensor, WeightMap};
use crate::report::event::{Event, Observer};
use rayon::prelude::*;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// Bytes written at a time.
const STEP: usize = 16 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Matrices that took in an adapter.
    pub matrices: usize,
    /// Shards.
    pub shards: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Writes the folder `out`: the model of `folder` with `adapter` folded in, and the small files (configuration,
/// tokenizer, code, licence) beside its weights. `out` is complete when it has its name.
///
/// # Errors
/// `out` is taken; a merged element is not finite; a file of the base changed meanwhile; I/O.
pub fn merge(
    folder: &Path,
    spec: &Spec,
    adapter: &Adapter,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Merged> {
    check_free(out)?;
    let weights = Weights::open(folder, spec)?;
    let target = FolderDraft::beside(out)?;
    let map = &weights.map;
    for name in carried(folder)? {
        let from = folder.join(&name);
        let bytes = files::read(&from, MAX_CARRIED)?;
        target.file(&name, |sink| sink.write(&bytes))?;
    }
    let mut progress = Progress { observer, done: 0, total: map.file_bytes() };
    for file in map.files() {
        let name = file.path().file_name().unwrap_or_default().to_string_lossy();
        let parts = adapted(map, adapter, file)?;
        target.file(&name, |sink| write_shard(sink, file, &parts, adapter, &mut progress))?;
    }
    target.publish(map)?;
    let matrices = adapter.layout.slots.len();
    Ok(Merged { matrices, shards: map.files().len(), bytes: map.file_bytes() })
}

struct Progress<'a> {
    observer: &'a mut dyn Observer,
    done: u64,
    total: u64,
}

impl Progress<'_> {
    fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        self.observer.on_event(&Event::Progress { what: "merging", done: self.done, total: self.total });
    }
}

/// The adapted matrices of one file, in the order they lie in it.
fn adapted<'a>(
    map: &WeightMap,
    adapter: &'a Adapter,
    file: &Arc<MappedFile>,
) -> Result<Vec<(&'a Slot, Tensor)>> {
    let mut found = Vec::new();
    for slot in &adapter.layout.slots {
        let name = format!("{}.weight", slot.module);
        let tensor =
            map.get(&name).ok_or_else(|| Error::input(format!("model: tensor {name} is missing")))?;
        if Arc::ptr_eq(&tensor.file, file) {
            found.push((slot, tensor));
        }
    }
    found.sort_by_key(|(_, tensor)| tensor.offset);
    Ok(found)
}

fn write_shard(
    sink: &mut Sink,
    file: &MappedFile,
    parts: &[(&Slot, Tensor)],
    adapter: &Adapter,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let bytes: &[u8] = file.as_ref();
    let mut at = 0;
    for (slot, tensor) in parts {
        copy(sink, &bytes[at..tensor.offset], progress)?;
        write_merged(sink, slot, tensor, adapter, progress)?;
        at = tensor.offset + tensor.bytes().len();
    }
    copy(sink, &bytes[at..], progress)
}

fn copy(sink: &mut Sink, bytes: &[u8], progress: &mut Progress<'_>) -> Result<()> {
    for part in bytes.chunks(STEP) {
        sink.write(part)?;
        progress.advance(part.len());
    }
    Ok(())
}

/// Some rows of the matrix at a time.
fn write_merged(
    sink: &mut Sink,
    slot: &Slot,
    tensor: &Tensor,
    adapter: &Adapter,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let [rows, cols] = slot.shape;
    let weight = Matrix::new(tensor.file.clone(), tensor.offset, tensor.element, rows, cols);
    let width = cols * tensor.element.bytes();
    let band = (STEP / width).max(1);
    let mut bytes = Vec::new();
    for first in (0..rows).step_by(band) {
        let count = band.min(rows - first);
        bytes.resize(count * width, 0);
        let bad: usize = bytes
            .par_chunks_exact_mut(width)
            .enumerate()
            .map(|(i, out)| fold::row(&weight, slot, &adapter.values, first + i, out))
            .sum();
        if bad > 0 {
            let name = &slot.module;
            return Err(Error::input(format!("{name}: {bad} elements leave the range of the base's type"))
                .hint("the adapter's values are too large for it; use the adapter beside its base instead"));
        }
        sink.write(&bytes)?;
        progress.advance(bytes.len());
    }
    Ok(())
}

/// Largest file that is carried over; a tokenizer has about 11 MB.
const MAX_CARRIED: u64 = 64 << 20;

/// Names of the files that make the weights a model: configuration, tokenizer, Qwen v1's code, licence, index.
fn carried(folder: &Path) -> Result<Vec<String>> {
    let fault = |e: std::io::Error| Error::reading(folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let Some(name) = belongs(entry.file_name()) else { continue };
        let path = folder.join(&name);
        let Some(found) = files::look(&path)?.filter(|found| found.is_file()) else { continue };
        if found.len() > MAX_CARRIED {
            return Err(Error::input(format!("{}: larger than a model's small files are", path.display()))
                .hint("move it out of the model folder"));
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

/// The name, where such a file belongs to a model. Other indices are those of weights that are not read here.
fn belongs(name: OsString) -> Option<String> {
    let name = name.into_string().ok().filter(|name| !name.starts_with('.'))?;
    let other_index = name.ends_with(".index.json") && name != "model.safetensors.index.json";
    let kind = [".json", ".jinja", ".txt", ".tiktoken", ".py"].iter().any(|end| name.ends_with(end));
    let licence = ["LICENSE", "LICENCE", "NOTICE"].iter().any(|start| name.starts_with(start));
    ((kind || licence) && !other_index).then_some(name)
}
