//! A trained adapter, read for the model it is to be used with.

use super::lora::{AdapterSpec, Layout};
use super::spec::Spec;
use crate::config::Targets;
use crate::error::{Error, Kind, Result};
use crate::formats::peft;
use std::path::Path;

/// An adapter whose every matrix fits the model.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Rank, scale, targets.
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
        let config = &peft.config;
        let all = config.target_modules == [peft::ALL_LINEAR];
        let spec = AdapterSpec {
            rank: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            targets: if all { Targets::AllLinear } else { Targets::Names(config.target_modules.clone()) },
            rslora: config.use_rslora,
        };
        let fitted = Layout::new(model, &spec).and_then(|layout| Ok((layout.from_peft(&peft)?, layout)));
        let (values, layout) = fitted.map_err(|error| unfit(folder, error))?;
        Ok(Adapter { spec, layout, values })
    }

    /// No adapter: a layout without matrices.
    #[must_use]
    pub fn none() -> Self {
        let targets = Targets::Names(Vec::new());
        let spec = AdapterSpec { rank: 1, alpha: 1.0, dropout: 0.0, targets, rslora: false };
        Adapter { spec, layout: Layout { rank: 1, slots: Vec::new(), len: 0 }, values: Vec::new() }
    }
}

/// The folder is what is wrong, not the command line.
fn unfit(folder: &Path, error: Error) -> Error {
    let what = format!("{} does not fit the model: {}", folder.display(), error.what);
    Error::new(Kind::Input, what).hint("is it an adapter of this model?")
}

/// A run's folder given in place of its adapter's.
fn run_hint(folder: &Path, error: Error) -> Error {
    let inner = folder.join("adapter");
    if inner.join("adapter_config.json").exists() {
        return error.hint(format!("the adapter of this run is {}", inner.display()));
    }
    error
}
