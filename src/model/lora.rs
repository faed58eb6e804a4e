//! Which linear layers have an adapter, and where each lies in the flat buffers.

use super::names::{self, LinearName};
use super::spec::Spec;
use crate::config::Targets;
use crate::error::{Error, Result};
use crate::formats::peft::{Adapter, AdapterConfig, AdapterTensor};
use crate::philox;

/// What an adapter is, beside its values.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    /// Rank.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
    /// Dropout of the adapters' input.
    pub dropout: f64,
    /// Target modules.
    pub targets: Targets,
    /// Scale by alpha / sqrt(r) (Kalajdzievski 2023) instead of alpha / r.
    pub rslora: bool,
}

impl AdapterSpec {
    /// The factor of B·A, rounded once to f32.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// One adapted layer: its two matrices' places in the flat buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Block index.
    pub layer: usize,
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Output and input features.
    pub shape: [usize; 2],
    /// First element of A [r, in].
    pub a: usize,
    /// First element of B [out, r].
    pub b: usize,
}

/// All adapters of a model in canonical order (PyTorch's `named_parameters`), without gaps: A then B of
/// each module, layer after layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rank of every adapter.
    pub rank: usize,
    /// Adapted layers.
    pub slots: Vec<Slot>,
    /// Elements in all.
    pub len: usize,
}

/// The linear layers of one block in canonical order.
fn linears(spec: &Spec, layer: usize) -> Vec<LinearName> {
    let block = names::block(spec, layer);
    let mut all = block.qkv;
    all.push(block.attention_out);
    all.extend(block.gate_up);
    all.push(block.down);
    all
}

impl Layout {
    /// Lays out the adapters of `spec` that the targets name.
    ///
    /// # Errors
    /// A target that matches no layer; a rank above the smaller side of every layer is allowed, as in PEFT.
    pub fn new(spec: &Spec, adapter: &AdapterSpec) -> Result<Self> {
        let mut layout = Layout { rank: adapter.rank, slots: Vec::new(), len: 0 };
        let modules: Vec<LinearName> = linears(spec, 0);
        names::check_targets(&adapter.targets, &modules)?;
        for layer in 0..spec.layers {
            for linear in linears(spec, layer) {
                if names::is_target(&adapter.targets, &linear.module) {
                    layout.push(layer, linear);
                }
            }
        }
        Ok(layout)
    }

    fn push(&mut self, layer: usize, linear: LinearName) {
        let [output, input] = linear.shape;
        let a = self.len;
        let b = a + self.rank * input;
        self.len = b + output * self.rank;
        self.slots.push(Slot { layer, module: linear.module, shape: linear.shape, a, b });
    }

    /// The slot of `module`.
    #[must_use]
    pub fn slot(&self, module: &str) -> Option<&Slot> {
        self.slots.iter().find(|s| s.module == module)
    }

    /// (PEFT name, shape, first element) of every tensor, in flat order.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, [usize; 2], usize)> {
        let mut out = Vec::with_capacity(2 * self.slots.len());
        for slot in &self.slots {
            let [output, input] = slot.shape;
            out.push((names::adapter_tensor(&slot.module, 'A'), [self.rank, input], slot.a));
            out.push((names::adapter_tensor(&slot.module, 'B'), [output, self.rank], slot.b));
        }
        out
    }

    /// Ranges of the B matrices (LoRA+ trains them at a higher rate), as (first, length) in flat order.
    #[must_use]
    pub fn b_ranges(&self) -> Vec<(usize, usize)> {
        self.slots.iter().map(|s| (s.b, s.shape[0] * self.rank)).collect()
    }

    /// PyTorch's initial values: A uniform within ±1/sqrt(in) (kaiming-uniform with a = sqrt 5), B zero.
    /// Element i of the flat buffer draws from (seed, i): independent of everything else.
    #[must_use]
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.len];
        for slot in &self.slots {
            let bound = 1.0 / (slot.shape[1] as f64).sqrt();
            for (i, value) in values[slot.a..slot.b].iter_mut().enumerate() {
                let uniform = philox::uniform(seed, philox::Stream::LoraInit, (slot.a + i) as u64);
                *value = ((2.0 * uniform - 1.0) * bound) as f32;
            }
        }
        values
    }

    /// Flat values of a PEFT adapter.
    ///
    /// # Errors
    /// Names the tensor that is missing, unexpected or of another shape.
    pub fn from_peft(&self, adapter: &Adapter) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.len];
        let expected = self.tensors();
        for (name, shape, start) in &expected {
            let tensor = adapter
                .tensors
                .iter()
                .find(|t| t.name == *name)
                .ok_or_else(|| Error::input(format!("adapter: tensor {name} is missing")))?;
            if tensor.shape != *shape {
                let found = tensor.shape;
                return Err(Error::input(format!("adapter: {name} has shape {found:?}, expected {shape:?}")));
            }
            values[*start..*start + tensor.values.len()].copy_from_slice(&tensor.values);
        }
        if let Some(extra) = adapter.tensors.iter().find(|t| !expected.iter().any(|e| e.0 == t.name)) {
            return Err(Error::input(format!("adapter: tensor {} belongs to no target module", extra.name)));
        }
        Ok(values)
    }

    /// The PEFT adapter with these flat values.
    #[must_use]
    pub fn to_peft(&self, spec: &AdapterSpec, base: &str, values: &[f32]) -> Adapter {
        let mut tensors: Vec<AdapterTensor> = self
            .tensors()
            .into_iter()
            .map(|(name, shape, start)| AdapterTensor {
                name,
                shape,
                values: values[start..start + shape[0] * shape[1]].to_vec(),
            })
            .collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let config = AdapterConfig {
            r: spec.rank,
            lora_alpha: spec.alpha,
            lora_dropout: spec.dropout,
            target_modules: names::target_names(self.slots.iter().map(|s| s.module.as_str())),
            use_rslora: spec.rslora,
            base_model_name_or_path: base.to_owned(),
        };
        Adapter { config, tensors }
    }
}
