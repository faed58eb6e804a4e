//! A trained adapter, read for the model it is to be used with.

use super::lora::{AdapterSpec, Layout};
use super::spec::Spec;
use crate::config::Targets;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::formats::peft;
use std::collections::BTreeMap;
use std::path::Path;

/// An adapter whose every matrix fits the model.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Ranks, scales, targets.
    pub spec: AdapterSpec,
    /// Where each matrix lies in `values`.
    pub layout: Layout,
    /// All matrices, flat.
    pub values: Vec<f32>,
}

impl Adapter {
    /// Reads a PEFT folder for a model of shape `model`.
    ///
    /// # Errors
    /// [`Kind::Input`], naming the folder and the module or tensor that does not fit.
    pub fn read(folder: &Path, model: &Spec) -> Result<Self> {
        let peft = peft::read(folder).map_err(|error| run_hint(folder, error))?;
        let spec = AdapterSpec::from_peft(&peft.config);
        let fitted = Layout::new(model, &spec).and_then(|layout| Ok((layout.values_of(&peft)?, layout)));
        let (values, layout) = fitted.map_err(|error| unfit(folder, error))?;
        Ok(Adapter { spec, layout, values })
    }

    /// No adapter: a layout without matrices.
    #[must_use]
    pub fn none() -> Self {
        let spec = AdapterSpec {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            targets: Targets::Names(Vec::new()),
            exclude: None,
            rslora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            layers: None,
        };
        Adapter { spec, layout: Layout::default(), values: Vec::new() }
    }

    /// BLAKE3 of all that the adapter adds to a base: each module with its ranks, scale and values. Hex.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for slot in &self.layout.slots {
            hasher.update(format!("{} {} {:08x}\n", slot.module, slot.rank, slot.scale.to_bits()).as_bytes());
        }
        self.values.iter().for_each(|value| _ = hasher.update(&value.to_le_bytes()));
        hasher.finalize().to_hex().to_string()
    }
}

impl AdapterSpec {
    /// What an adapter's `adapter_config.json` says.
    #[must_use]
    pub fn from_peft(config: &peft::AdapterConfig) -> Self {
        AdapterSpec {
            rank: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            targets: config.target_modules.clone(),
            exclude: config.exclude_modules.clone(),
            rslora: config.use_rslora,
            rank_pattern: config.rank_pattern.clone(),
            alpha_pattern: config.alpha_pattern.clone(),
            layers: config.layers_to_transform.clone(),
        }
    }
}

/// The folder is what is wrong, not the command line.
fn unfit(folder: &Path, error: Error) -> Error {
    let error = error.at(format_args!("{} does not fit the model", folder.display())).of_kind(Kind::Input);
    if error.remedy.is_empty() { error.hint("is it an adapter of this model?") } else { error }
}

/// A run's folder given in place of its adapter's.
fn run_hint(folder: &Path, error: Error) -> Error {
    let inner = folder.join("adapter");
    // Only a remedy: where it cannot be looked, it is not offered.
    if files::exists(&inner.join(peft::CONFIG)).unwrap_or(false) {
        return error.hint(format!("the adapter of this run is {}", inner.display()));
    }
    error
}
