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
use crate::formats::json;
use crate::formats::publish::{FolderDraft, Sink, check_free};
use crate::formats::weight_map::{MappedFile, Tensor, WeightMap};
use crate::report::event::{Event, Observer};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// Bytes written at a time.
const STEP: usize = 16 << 20;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Matrices that took in an adapter.
    pub matrices: usize,
    /// Shards.
    pub shards: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Tokens that end a text now and did not before.
    pub ends: Vec<u32>,
}

/// Where a model's tokens that end a text are.
const GENERATION: &str = "generation_config.json";

/// Largest configuration that is read.
const MAX_CONFIG: u64 = 1 << 20;

/// The configuration with these tokens among its `eos_token_id`; its own bytes where they are there already. New
/// ones are put before the others and into `added`: the first is the one that most programs look at.
fn with_ends(path: &Path, ends: &[u32], added: &mut BTreeSet<u32>) -> Result<Vec<u8>> {
    let there = files::exists(path)?;
    let mut keys = if there { json::read_object(path, MAX_CONFIG)? } else { json::Object::new() };
    let known: Vec<Value> = match keys.get("eos_token_id") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list.clone(),
        Some(one) => vec![one.clone()],
    };
    let new: Vec<u32> = ends.iter().copied().filter(|id| !known.contains(&Value::from(*id))).collect();
    if new.is_empty() && there {
        return files::read(path, MAX_CONFIG);
    }
    added.extend(&new);
    let all: Vec<Value> = new.into_iter().map(Value::from).chain(known).collect();
    keys.insert("eos_token_id".to_owned(), Value::Array(all));
    Ok(format!("{:#}\n", Value::Object(keys)).into_bytes())
}

/// Writes the folder `out`: the model of `folder` with `adapter` folded in, and the small files (configuration,
/// tokenizer, code, licence) beside its weights. `ends` are the tokens that end an answer in what the adapter was
/// trained on: the model's configurations name them too. `out` is complete when it has its name.
///
/// # Errors
/// `out` is taken; a merged element is not finite; a file of the base changed meanwhile; I/O.
pub fn merge(
    folder: &Path,
    spec: &Spec,
    adapter: &Adapter,
    ends: &[u32],
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Merged> {
    check_free(out)?;
    let weights = Weights::open(folder, spec)?;
    if let Some(encoding) = weights.encodings().iter().find(|name| name.contains("blocks")) {
        return Err(Error::input(format!(
            "{}: weights that are stored as {encoding} are not merged into",
            folder.display()
        ))
        .hint("merge into the model that is not quantised, or serve the adapter beside its base"));
    }
    let target = FolderDraft::beside(out)?;
    let map = &weights.map;
    let mut names = carried(folder)?;
    if !ends.is_empty() && !names.iter().any(|name| name == GENERATION) {
        names.push(GENERATION.to_owned());
    }
    let mut added = BTreeSet::new();
    for name in names {
        let from = folder.join(&name);
        let bytes = if [GENERATION, "config.json"].contains(&name.as_str()) {
            with_ends(&from, ends, &mut added)?
        } else {
            files::read(&from, MAX_CARRIED)?
        };
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
    let ends = added.into_iter().collect();
    Ok(Merged { matrices, shards: map.files().len(), bytes: map.file_bytes(), ends })
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
        let Some(size) = files::size(&path)? else { continue };
        if size > MAX_CARRIED {
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
