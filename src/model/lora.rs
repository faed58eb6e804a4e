//! Which linear layers have an adapter, and where each lies in the flat buffers.

use super::names::{self, Modules};
use super::patterns::Patterns;
use super::spec::{LinearSpec, Spec};
use crate::config::{Settings, Targets};
use crate::error::{Error, Result};
use crate::formats::peft::{Adapter, AdapterConfig, AdapterTensor};
use crate::philox;
use std::collections::BTreeMap;

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
    /// Modules that get no adapter although they are targets.
    pub exclude: Option<Targets>,
    /// Scale by alpha / sqrt(r) (Kalajdzievski 2023) instead of alpha / r.
    pub rslora: bool,
    /// Ranks of layers that have their own, by pattern: see [`super::patterns`].
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of layers that have their own, by pattern.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Blocks whose layers are adapted, ascending; `None`: all.
    pub layers: Option<Vec<usize>>,
}

impl AdapterSpec {
    /// What the settings ask for.
    #[must_use]
    pub fn from_settings(s: &Settings) -> Self {
        AdapterSpec {
            rank: s.lora_r,
            alpha: s.lora_alpha,
            dropout: s.lora_dropout,
            targets: s.lora_target_modules.clone(),
            exclude: s.lora_exclude_modules.clone(),
            rslora: s.use_rslora,
            rank_pattern: s.lora_rank_pattern.clone(),
            alpha_pattern: s.lora_alpha_pattern.clone(),
            layers: s.layers_to_transform.clone(),
        }
    }

    /// Writes it into the settings of a run that begins with it; the run's dropout stays its own.
    pub fn into_settings(self, s: &mut Settings) {
        s.lora_r = self.rank;
        s.lora_alpha = self.alpha;
        s.lora_target_modules = self.targets;
        s.lora_exclude_modules = self.exclude;
        s.use_rslora = self.rslora;
        s.lora_rank_pattern = self.rank_pattern;
        s.lora_alpha_pattern = self.alpha_pattern;
        s.layers_to_transform = self.layers;
    }

    /// The factor of B·A at a rank and alpha, rounded once to f32.
    fn scale(&self, rank: usize, alpha: f64) -> f32 {
        let rank = rank as f64;
        (alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Which layers get an adapter.
    fn selection(&self) -> Result<Selection<'_>> {
        if self.layers.is_some() && matches!(self.targets, Targets::Pattern(_)) {
            return Err(Error::usage(
                "layers_to_transform beside a pattern of target_modules is not supported, nor is it by PEFT",
            )
            .hint("say the blocks in the pattern: .*\\.(0|1)\\..*q_proj"));
        }
        let excluded =
            self.exclude.as_ref().map(|names| Modules::new("exclude_modules", names)).transpose()?;
        let targets = Modules::new("target_modules", &self.targets)?;
        Ok(Selection { spec: self, targets, excluded })
    }

    fn check_layers(&self, spec: &Spec) -> Result<()> {
        let outside = self.layers.iter().flatten().find(|layer| **layer >= spec.layers.len());
        match outside {
            None => Ok(()),
            Some(layer) => {
                let (count, last) = (spec.layers.len(), spec.layers.len() - 1);
                Err(Error::usage(format!("layers_to_transform names block {layer}, the model has {count}"))
                    .hint(format!("they are numbered 0 to {last}")))
            }
        }
    }
}

/// The layers that an [`AdapterSpec`] adapts, ready to be asked for.
struct Selection<'a> {
    spec: &'a AdapterSpec,
    targets: Modules<'a>,
    excluded: Option<Modules<'a>>,
}

impl Selection<'_> {
    /// Whether `module` of block `layer` gets an adapter. In PEFT a whole name counts in every block.
    fn adapts(&self, layer: usize, module: &str) -> bool {
        if self.excluded.as_ref().is_some_and(|excluded| excluded.has(module)) {
            return false;
        }
        let whole =
            matches!(&self.spec.targets, Targets::Names(names) if names.iter().any(|name| name == module));
        let in_layer = self.spec.layers.as_ref().is_none_or(|layers| layers.contains(&layer));
        whole || in_layer && self.targets.has(module)
    }
}

/// One adapted layer: its two matrices' places in the flat buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Block index.
    pub layer: usize,
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Output and input features.
    pub shape: [usize; 2],
    /// Rank.
    pub rank: usize,
    /// The factor of B·A.
    pub scale: f32,
    /// First element of A [r, in].
    pub a: usize,
    /// First element of B [out, r].
    pub b: usize,
}

impl Slot {
    /// Elements of A and of B.
    #[must_use]
    pub fn lens(&self) -> [usize; 2] {
        [self.rank * self.shape[1], self.shape[0] * self.rank]
    }
}

/// All adapters of a model in canonical order (PyTorch's `named_parameters`), without gaps: A then B of
/// each module, layer after layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Adapted layers.
    pub slots: Vec<Slot>,
    /// Elements in all.
    pub len: usize,
    /// PEFT's `target_modules` for exactly these layers, sorted.
    targets: Vec<String>,
}

impl Layout {
    /// Lays out the adapters of `spec` that the targets name.
    ///
    /// # Errors
    /// A target, block or pattern that matches no layer, or a pattern that cannot be honoured; a rank above the
    /// smaller side of every layer is allowed, as in PEFT.
    pub fn new(spec: &Spec, adapter: &AdapterSpec) -> Result<Self> {
        let all: Vec<(usize, &LinearSpec)> = spec.linears().collect();
        names::check_targets(&adapter.targets, all.iter().map(|(_, linear)| *linear))?;
        adapter.check_layers(spec)?;
        let ranks = Patterns::new("rank_pattern", &adapter.rank_pattern)?;
        let alphas = Patterns::new("alpha_pattern", &adapter.alpha_pattern)?;
        let mut layout = Layout::default();
        let selection = adapter.selection()?;
        for (layer, linear) in all.iter().filter(|(layer, l)| selection.adapts(*layer, &l.module)) {
            let rank = ranks.get(&linear.module)?.unwrap_or(adapter.rank);
            let alpha = alphas.get(&linear.module)?.unwrap_or(adapter.alpha);
            layout.push(*layer, linear, rank, adapter.scale(rank, alpha));
        }
        let modules = layout.slots.iter().map(|slot| slot.module.as_str());
        ranks.check_used(modules.clone())?;
        alphas.check_used(modules)?;
        if layout.slots.is_empty() && adapter.exclude.is_some() {
            return Err(Error::usage("exclude_modules leaves no layer to adapt"));
        }
        layout.targets = layout.target_names(adapter, &selection, &all)?;
        Ok(layout)
    }

    fn push(&mut self, layer: usize, linear: &LinearSpec, rank: usize, scale: f32) {
        let (module, shape) = (linear.module.clone(), linear.shape);
        let slot = Slot { layer, module, shape, rank, scale, a: self.len, b: self.len + rank * shape[1] };
        self.len = slot.b + slot.lens()[1];
        self.slots.push(slot);
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
            out.push((names::adapter_tensor(&slot.module, 'A'), [slot.rank, input], slot.a));
            out.push((names::adapter_tensor(&slot.module, 'B'), [output, slot.rank], slot.b));
        }
        out
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
    pub fn values_of(&self, adapter: &Adapter) -> Result<Vec<f32>> {
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
            target_modules: Targets::Names(self.targets.clone()),
            exclude_modules: None,
            use_rslora: spec.rslora,
            rank_pattern: spec.rank_pattern.clone(),
            alpha_pattern: spec.alpha_pattern.clone(),
            layers_to_transform: spec.layers.clone(),
            base_model_name_or_path: base.to_owned(),
        };
        Adapter { config, tensors }
    }

    /// The distinct module names below the block, sorted, as PEFT lists them; `c_proj` of Qwen v1 keeps its
    /// parent (`attn.c_proj`), because it names two layers. Where these would name further layers too, the whole
    /// names.
    fn target_names(
        &self,
        adapter: &AdapterSpec,
        selection: &Selection<'_>,
        all: &[(usize, &LinearSpec)],
    ) -> Result<Vec<String>> {
        let found = names::target_names(self.slots.iter().map(|slot| slot.module.as_str()));
        let short = AdapterSpec { targets: Targets::Names(found.clone()), exclude: None, ..adapter.clone() };
        let short = short.selection()?;
        let alike = |(layer, linear): &(usize, &LinearSpec)| {
            short.adapts(*layer, &linear.module) == selection.adapts(*layer, &linear.module)
        };
        if all.iter().all(alike) {
            return Ok(found);
        }
        let mut whole: Vec<String> = self.slots.iter().map(|slot| slot.module.clone()).collect();
        whole.sort();
        Ok(whole)
    }
}
