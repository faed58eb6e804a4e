//! The frozen weights of a model folder, tensor by tensor checked against its shapes.

use super::names::{self, LinearName};
use super::spec::Spec;
use crate::device::Matrix;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::formats::weight_map::{Tensor, WeightMap};
use std::path::Path;

/// A linear layer's frozen part.
pub struct LinearWeights {
    /// Its names.
    pub name: LinearName,
    /// [out, in].
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
}

/// A block's frozen weights.
pub struct BlockWeights {
    /// Norm before attention, `[H]`.
    pub attention_norm: Vec<f32>,
    /// Layers reading the normalised attention input.
    pub qkv: Vec<LinearWeights>,
    /// q and k norm, each `[D]`.
    pub qk_norm: Option<[Vec<f32>; 2]>,
    /// Attention output projection.
    pub attention_out: LinearWeights,
    /// Norm before the MLP, `[H]`.
    pub mlp_norm: Vec<f32>,
    /// Layers reading the normalised MLP input.
    pub gate_up: Vec<LinearWeights>,
    /// Down projection.
    pub down: LinearWeights,
}

/// All frozen weights; matrices stay in the map.
pub struct Weights {
    /// The mapped files.
    pub map: WeightMap,
    /// Embedding table [V, H].
    pub embedding: Matrix,
    /// Output head [V, H].
    pub head: Matrix,
    /// Final norm, `[H]`.
    pub norm: Vec<f32>,
    /// Blocks.
    pub blocks: Vec<BlockWeights>,
    /// Bytes of all tensors used, mapped or owned.
    pub bytes: u64,
}

struct Loader {
    map: WeightMap,
    bytes: u64,
}

impl Loader {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.map.get(name).ok_or_else(|| {
            Error::input(format!("model: tensor {name} is missing"))
                .hint("the folder's config.json and its safetensors files do not belong together")
        })?;
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

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let t = self.tensor(name, &[len])?;
        let mut values = vec![0.0; len];
        Matrix::new(t.file, t.offset, t.element, 1, len).read_row(0, &mut values);
        Ok(values)
    }

    fn linear(&mut self, name: LinearName) -> Result<LinearWeights> {
        let [output, input] = name.shape;
        let weight = self.matrix(&format!("{}.weight", name.module), output, input)?;
        let bias =
            if name.bias { Some(self.vector(&format!("{}.bias", name.module), output)?) } else { None };
        Ok(LinearWeights { name, weight, bias })
    }

    fn block(&mut self, spec: &Spec, layer: usize) -> Result<BlockWeights> {
        let names = names::block(spec, layer);
        let qk_norm = match &names.qk_norm {
            Some([q, k]) => Some([self.vector(q, spec.head_dim)?, self.vector(k, spec.head_dim)?]),
            None => None,
        };
        Ok(BlockWeights {
            attention_norm: self.vector(&names.attention_norm, spec.hidden)?,
            qkv: names.qkv.into_iter().map(|n| self.linear(n)).collect::<Result<_>>()?,
            qk_norm,
            attention_out: self.linear(names.attention_out)?,
            mlp_norm: self.vector(&names.mlp_norm, spec.hidden)?,
            gate_up: names.gate_up.into_iter().map(|n| self.linear(n)).collect::<Result<_>>()?,
            down: self.linear(names.down)?,
        })
    }
}

impl Weights {
    /// What is lost on a device that keeps its copies in bf16; `None` for weights stored in it.
    #[must_use]
    pub fn rounding(&self) -> Option<String> {
        let blocks = self.blocks.iter().flat_map(|b| {
            b.qkv.iter().chain([&b.attention_out]).chain(&b.gate_up).chain([&b.down]).map(|l| &l.weight)
        });
        let rounded = |m: &&Matrix| m.element() != Element::Bf16;
        let element = blocks.chain([&self.embedding, &self.head]).find(rounded)?.element();
        Some(format!("the model's {element:?} weights are rounded to bf16 on this device"))
    }

    /// Maps `folder` and checks every tensor `spec` needs: presence, shape, finite values.
    ///
    /// # Errors
    /// Names the file or tensor.
    pub fn open(folder: &Path, spec: &Spec) -> Result<Self> {
        let mut loader = Loader { map: WeightMap::open(folder)?, bytes: 0 };
        let top = names::top(spec);
        let embedding = loader.matrix(&top.embedding, spec.vocab, spec.hidden)?;
        let head = if top.head == top.embedding {
            embedding.clone()
        } else {
            loader.matrix(&top.head, spec.vocab, spec.hidden)?
        };
        names::check_stored_head(spec, &loader.map)?;
        let norm = loader.vector(&top.norm, spec.hidden)?;
        let blocks = (0..spec.layers).map(|l| loader.block(spec, l)).collect::<Result<_>>()?;
        Ok(Weights { map: loader.map, embedding, head, norm, blocks, bytes: loader.bytes })
    }
}
