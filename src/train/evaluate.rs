//! Loss and perplexity of a file: the base model's, and an adapter's beside it.

use super::engine::Engine;
use super::setup::{Ready, Setup};
use super::start::weights_in;
use super::trainer::{Source, mean_loss};
use crate::checkpoint::storage::FileSystem;
use crate::config::Settings;
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::formats::publish::MadeFrom;
use crate::report::event::{Event, Observer};

/// How well a model predicts the scored tokens.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Fit {
    /// Sum of the scored tokens' losses over their number, nats.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
}

impl Fit {
    fn of(engine: &mut dyn Engine, source: &mut Source) -> Result<Self> {
        let loss = mean_loss(engine, source, &|| false)?
            .filter(|loss| loss.is_finite())
            .ok_or_else(|| Error::diverged("the loss is not finite"))?;
        Ok(Fit { loss, perplexity: libm::exp(loss) })
    }
}

/// What [`evaluate`] found.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    /// Rows evaluated.
    pub rows: u64,
    /// Tokens scored.
    pub tokens: u64,
    /// The base model.
    pub base: Fit,
    /// The base model with the adapter, where there is one.
    pub adapter: Option<Fit>,
}

/// Evaluates `valid_file` with the model, and with the adapter `init_adapter` (or a run's) when it is given. Settings of the
/// optimizer, the schedule and the output have no part in it.
///
/// # Errors
/// Wrong settings or inputs, each named; [`crate::error::Kind::Diverged`] when a loss is not finite.
pub fn evaluate(settings: &Settings, observer: &mut dyn Observer) -> Result<Report> {
    let Some(file) = settings.valid_file.clone() else {
        return Err(Error::usage("there are no rows to evaluate").hint("name them with --valid-file FILE"));
    };
    let init_adapter =
        settings.init_adapter.as_deref().map(|path| weights_in(&FileSystem, path)).transpose()?;
    let rows = Settings { train_files: vec![file], valid_file: None, val_set_size: 0.0, ..settings.clone() };
    let device = Devices::default().choose(settings, None)?;
    let setup = Setup::for_evaluation(&Settings { init_adapter, ..rows }, device, observer)?;
    let Ready { mut engine, eval, weights, .. } = setup.allocate(observer)?;
    let mut source = eval.ok_or_else(|| Error::check("there are no rows to evaluate"))?;
    let (rows, mut tokens) = (source.rows.len(), 0);
    for row in 0..rows {
        tokens += source.rows.row(row)?.scored() as u64;
    }
    observer.on_event(&Event::Note(format!("{rows} rows, {tokens} scored tokens")));
    let with_adapter = engine.parameters()?;
    engine.set_parameters(&vec![0.0; with_adapter.len()])?;
    let base = Fit::of(&mut engine, &mut source)?;
    let mut adapter = None;
    if settings.init_adapter.is_some() {
        engine.set_parameters(&with_adapter)?;
        adapter = Some(Fit::of(&mut engine, &mut source)?);
    }
    weights.map.check_unchanged()?;
    Ok(Report { rows: rows as u64, tokens, base, adapter })
}
