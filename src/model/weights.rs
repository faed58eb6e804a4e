//! The frozen weights of a model folder, tensor by tensor checked against its shapes.

use super::spec::{LinearSpec, STORED_HEAD, Spec, TensorSpec};
use crate::device::Matrix;
use crate::device::matrix::SharedBytes;
use crate::element::Element;
use crate::encoding::{Encoding, Scales, e4m3_not_numbers};
use crate::error::{Error, Result};
use crate::formats::weight_map::{Codes, Tensor, WeightMap};
use crate::philox::{Stream, uniform};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// A linear layer's frozen part.
pub struct LinearWeights {
    /// [out, in].
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
}

/// All frozen weights; matrices stay in the map.
pub struct Weights {
    /// The mapped files.
    pub map: WeightMap,
    /// Embedding table [V, H].
    pub embedding: Matrix,
    /// Output head [V, H].
    pub head: Matrix,
    /// Linear layers by module.
    pub linears: BTreeMap<String, LinearWeights>,
    /// Small tensors by name, as f32.
    small: BTreeMap<String, Vec<f32>>,
    /// Bytes of all tensors used, mapped or owned.
    pub bytes: u64,
}

/// Where weights come from.
trait Source {
    /// The matrix of that name, [rows, cols].
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix>;

    /// A small tensor's values.
    fn small(&mut self, spec: &TensorSpec) -> Result<Vec<f32>>;

    fn linear(&mut self, spec: &LinearSpec) -> Result<LinearWeights> {
        let [output, input] = spec.shape;
        let weight = self.matrix(&format!("{}.weight", spec.module), output, input)?;
        let name = format!("{}.bias", spec.module);
        let bias = spec.bias.then(|| self.small(&TensorSpec { name, shape: vec![output] })).transpose()?;
        Ok(LinearWeights { weight, bias })
    }
}

/// The files of a model folder, each tensor checked as it is asked for.
struct Loader {
    map: WeightMap,
    bytes: u64,
}

impl Loader {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if self.map.codes(name).is_some() {
            return Err(Error::input(format!(
                "model: {name} is stored in float8 codes; only the matrices of layers may be"
            ))
            .hint("use the unquantised model"));
        }
        let tensor = self.map.get(name).ok_or_else(|| missing(name))?;
        if tensor.shape != shape {
            return Err(other_shape(name, &tensor.shape, shape));
        }
        let bad = WeightMap::non_finite(&tensor);
        if bad > 0 {
            return Err(not_finite(name, bad));
        }
        self.bytes += (shape.iter().product::<usize>() * tensor.element.bytes()) as u64;
        Ok(tensor)
    }
}

impl Loader {
    /// A matrix of float8 codes with the scales that belong to it.
    fn coded(&mut self, name: &str, codes: &Codes, rows: usize, cols: usize) -> Result<Matrix> {
        if codes.shape != [rows, cols] {
            return Err(other_shape(name, &codes.shape, &[rows, cols]));
        }
        let file: SharedBytes = codes.file.clone();
        let bad = e4m3_not_numbers(&(*file).as_ref()[codes.offset..][..rows * cols]);
        if bad > 0 {
            return Err(not_finite(name, bad));
        }
        let shape = Scales::shape(rows, cols);
        let values = self.small(&TensorSpec { name: scales_of(name), shape: shape.to_vec() })?;
        self.bytes += (rows * cols) as u64;
        let encoding = Encoding::E4m3(Arc::new(Scales::new(values, rows, cols)));
        Ok(Matrix::encoded(file, codes.offset, encoding, rows, cols))
    }
}

/// The tensor that holds the scales of a matrix of codes.
fn scales_of(name: &str) -> String {
    format!("{name}_scale_inv")
}

fn other_shape(name: &str, found: &[usize], shape: &[usize]) -> Error {
    Error::input(format!("model: {name} has shape {found:?}, config.json says {shape:?}"))
}

fn not_finite(name: &str, bad: usize) -> Error {
    Error::input(format!("model: {name} has {bad} elements that are NaN or infinite"))
        .hint("the file is damaged or was saved from a diverged run; get it again")
}

impl Source for Loader {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        if let Some(codes) = self.map.codes(name).cloned() {
            return self.coded(name, &codes, rows, cols);
        }
        if self.map.get(&scales_of(name)).is_some() {
            let what = format!("model: {} is there, but {name} is not stored in codes", scales_of(name));
            return Err(Error::input(what).hint("the file was saved by a tool that mixes both; get it again"));
        }
        let t = self.tensor(name, &[rows, cols])?;
        Ok(Matrix::new(t.file, t.offset, t.element, rows, cols))
    }

    fn small(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let t = self.tensor(&spec.name, &spec.shape)?;
        let len = spec.shape.iter().product();
        let mut values = vec![0.0; len];
        Matrix::new(t.file, t.offset, t.element, 1, len).read_row(0, &mut values);
        Ok(values)
    }
}

/// Values that no file holds, for benchmarks: matrices keep about the size of what they are multiplied with, norms are about
/// one. A tensor's numbers depend on its name and the seed alone.
struct Random {
    seed: u64,
    bytes: u64,
}

impl Random {
    /// `len` values in bf16 between `centre` ± `spread`.
    fn values(&mut self, name: &str, len: usize, centre: f32, spread: f32) -> Vec<u8> {
        let digest = blake3::hash(name.as_bytes());
        let seed = self.seed ^ u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("32 bytes"));
        let mut bytes = vec![0; 2 * len];
        bytes.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, bytes)| {
            for (i, pair) in bytes.chunks_exact_mut(2).enumerate() {
                let draw = uniform(seed, Stream::Benchmark, (chunk << 15 | i) as u64) as f32;
                let value = centre + (2.0 * draw - 1.0) * spread;
                pair.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
            }
        });
        self.bytes += bytes.len() as u64;
        bytes
    }
}

impl Source for Random {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let bytes = self.values(name, rows * cols, 0.0, (3.0 / cols as f32).sqrt());
        Ok(Matrix::new(Arc::new(bytes), 0, Element::Bf16, rows, cols))
    }

    fn small(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let centre = if spec.name.ends_with(".bias") { 0.0 } else { 1.0 };
        let bytes = self.values(&spec.name, spec.shape.iter().product(), centre, 0.1);
        let value = |b: &[u8]| half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
        Ok(bytes.chunks_exact(2).map(value).collect())
    }
}

fn missing(name: &str) -> Error {
    Error::input(format!("model: tensor {name} is missing"))
        .hint("the folder's config.json and its safetensors files do not belong together")
}

impl Weights {
    /// What is lost on a device that keeps its copies in bf16; `None` for weights stored in it.
    #[must_use]
    pub fn rounding(&self) -> Option<String> {
        let rounded = self.matrices().find(|m| m.encoding().plain() != Some(Element::Bf16))?;
        Some(format!("the model's {} weights are rounded to bf16 on this device", rounded.encoding()))
    }

    /// All matrices.
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        [&self.embedding, &self.head].into_iter().chain(self.linears.values().map(|linear| &linear.weight))
    }

    /// The names of the encodings of its matrices.
    #[must_use]
    pub fn encodings(&self) -> BTreeSet<String> {
        self.matrices().map(|matrix| matrix.encoding().to_string()).collect()
    }

    /// Maps `folder` and checks every tensor `spec` needs: presence, shape, finite values.
    ///
    /// # Errors
    /// Names the file or tensor.
    pub fn open(folder: &Path, spec: &Spec) -> Result<Self> {
        let mut loader = Loader { map: WeightMap::open(folder)?, bytes: 0 };
        // Some tools save the one table of a tied model under the head's name alone.
        if spec.tied && loader.map.get(&spec.embedding).is_none() {
            loader.map.alias(STORED_HEAD, &spec.embedding);
        }
        check_stored_head(spec, &loader.map)?;
        let gathered = Self::gather(spec, &mut loader)?;
        Ok(Weights { map: loader.map, bytes: loader.bytes, ..gathered })
    }

    /// Random bf16 weights of the model's shapes, in memory.
    ///
    /// # Errors
    /// None; as [`Weights::open`] for one signature.
    pub fn random(spec: &Spec, seed: u64) -> Result<Self> {
        let mut random = Random { seed, bytes: 0 };
        let gathered = Self::gather(spec, &mut random)?;
        Ok(Weights { bytes: random.bytes, ..gathered })
    }

    fn gather(spec: &Spec, loader: &mut dyn Source) -> Result<Self> {
        let embedding = loader.matrix(&spec.embedding, spec.vocab, spec.hidden)?;
        let head = if spec.tied {
            embedding.clone()
        } else {
            loader.matrix(spec.head(), spec.vocab, spec.hidden)?
        };
        let mut small = BTreeMap::new();
        let mut linears = BTreeMap::new();
        small.insert(spec.norm.weight.name.clone(), loader.small(&spec.norm.weight)?);
        for layer in &spec.layers {
            for tensor in layer.tensors() {
                small.insert(tensor.name.clone(), loader.small(tensor)?);
            }
            for linear in layer.linears() {
                linears.insert(linear.module.clone(), loader.linear(linear)?);
            }
        }
        Ok(Weights { map: WeightMap::empty(), embedding, head, linears, small, bytes: 0 })
    }

    /// The linear layer of that module.
    ///
    /// # Errors
    /// [`crate::error::Kind::Input`] where these are not the weights of the module's model.
    pub fn linear(&self, module: &str) -> Result<&LinearWeights> {
        self.linears.get(module).ok_or_else(|| missing(module))
    }

    /// The values of a small tensor.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn small(&self, name: &str) -> Result<&[f32]> {
        self.small.get(name).map(Vec::as_slice).ok_or_else(|| missing(name))
    }
}

/// Checks that a tied model's folder, where it stores an output head all the same, stores a copy of the
/// embedding: nothing else is trained or read as the head.
///
/// # Errors
/// [`crate::error::Kind::Input`] naming both tensors.
pub fn check_stored_head(spec: &Spec, weights: &WeightMap) -> Result<()> {
    let (Some(head), Some(embedding)) = (weights.get(STORED_HEAD), weights.get(&spec.embedding)) else {
        return Ok(());
    };
    if !spec.tied || head.same_values(&embedding) {
        return Ok(());
    }
    let (path, table) = (head.file.path().display(), &spec.embedding);
    Err(Error::input(format!("{path}: {STORED_HEAD} differs from {table}, but tie_word_embeddings is true"))
        .hint("set tie_word_embeddings to false in config.json if the head was trained on its own"))
}
