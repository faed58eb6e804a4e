//! The frozen weights of a model folder, tensor by tensor checked against its shapes.

use super::spec::{LinearSpec, STORED_HEAD, Spec, TensorSpec};
use crate::device::Matrix;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::formats::weight_map::{Tensor, WeightMap};
use std::collections::BTreeMap;
use std::path::Path;

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

struct Loader {
    map: WeightMap,
    bytes: u64,
}

impl Loader {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.map.get(name).ok_or_else(|| missing(name))?;
        if tensor.shape != shape {
            let found = &tensor.shape;
            return Err(Error::input(format!(
                "model: {name} has shape {found:?}, config.json says {shape:?}"
            )));
        }
        let bad = WeightMap::non_finite(&tensor);
        if bad > 0 {
            return Err(Error::input(format!("model: {name} has {bad} elements that are NaN or infinite"))
                .hint("the file is damaged or was saved from a diverged run; get it again"));
        }
        self.bytes += (shape.iter().product::<usize>() * tensor.element.bytes()) as u64;
        Ok(tensor)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
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

    fn linear(&mut self, spec: &LinearSpec) -> Result<LinearWeights> {
        let [output, input] = spec.shape;
        let weight = self.matrix(&format!("{}.weight", spec.module), output, input)?;
        let name = format!("{}.bias", spec.module);
        let bias = spec.bias.then(|| self.small(&TensorSpec { name, shape: vec![output] })).transpose()?;
        Ok(LinearWeights { weight, bias })
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
        let mut matrices = self.linears.values().map(|l| &l.weight).chain([&self.embedding, &self.head]);
        let rounded = |m: &&Matrix| m.element() != Element::Bf16;
        let element = matrices.find(rounded)?.element();
        Some(format!("the model's {element:?} weights are rounded to bf16 on this device"))
    }

    /// Maps `folder` and checks every tensor `spec` needs: presence, shape, finite values.
    ///
    /// # Errors
    /// Names the file or tensor.
    pub fn open(folder: &Path, spec: &Spec) -> Result<Self> {
        let mut loader = Loader { map: WeightMap::open(folder)?, bytes: 0 };
        let embedding = loader.matrix(&spec.embedding, spec.vocab, spec.hidden)?;
        let head = if spec.tied {
            embedding.clone()
        } else {
            loader.matrix(spec.head(), spec.vocab, spec.hidden)?
        };
        check_stored_head(spec, &loader.map)?;
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
        Ok(Weights { map: loader.map, embedding, head, linears, small, bytes: loader.bytes })
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
