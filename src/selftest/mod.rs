//! Whether this machine's device computes what it should: every operation against plain f64 forms, the same bits when
//! asked again, short training runs beside the CPU device, and an interrupted run against an uninterrupted one.

mod operations;
pub mod tiny;
mod training;

use crate::config::DeviceChoice;
use crate::device::{Chosen, Devices};
use crate::error::Result;
use crate::identity::Engine;
use std::path::Path;

/// What is tested.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How GPUs are found.
    pub devices: Devices,
    /// The device.
    pub choice: DeviceChoice,
    /// How often each operation is asked for the same again.
    pub repeats: usize,
    /// Steps of the runs beside the CPU device; 20 without.
    pub steps: Option<u64>,
}

impl Settings {
    fn chosen(&self) -> Result<Chosen> {
        let settings = crate::config::Settings { device: self.choice, ..crate::config::Settings::default() };
        self.devices.choose(&settings, None)
    }
}

/// The device that is tested, in words.
///
/// # Errors
/// A device that is not there.
pub fn device(settings: &Settings) -> Result<String> {
    Ok(settings.chosen()?.describe())
}

/// What decides the device's bits, as it stands in checkpoints.
///
/// # Errors
/// A device that is not there or cannot run the kernels.
pub fn engine(settings: &Settings) -> Result<Engine> {
    settings.chosen()?.engine()
}

/// One thing that was checked.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// The operation, or `training`.
    pub operation: &'static str,
    /// Its shape, or what was compared.
    pub case: String,
    /// ‖got − want‖ / ‖want‖; `None` where bits were compared.
    pub error: Option<f64>,
    /// The largest error that is right.
    pub limit: Option<f64>,
    /// Whether all repetitions gave the same bits; `None` where nothing was repeated.
    pub identical: Option<bool>,
    /// Digest of the result, to be compared between devices of one kind; empty where there is none.
    pub bits: String,
}

impl Row {
    fn compared(operation: &'static str, case: String, error: f64, limit: f64) -> Self {
        Row { operation, case, error: Some(error), limit: Some(limit), identical: None, bits: String::new() }
    }

    fn identical(operation: &'static str, case: String, identical: bool) -> Self {
        Row { operation, case, error: None, limit: None, identical: Some(identical), bits: String::new() }
    }

    /// Whether it is as it should be.
    #[must_use]
    pub fn passed(&self) -> bool {
        let close = self.error.zip(self.limit).is_none_or(|(error, limit)| error <= limit);
        close && self.identical != Some(false)
    }
}

/// Checks the operations.
///
/// # Errors
/// A device that is not there or failed.
pub fn operations(settings: &Settings) -> Result<Vec<Row>> {
    operations::check(settings)
}

/// A part of the checks of training runs; the folder takes its files.
pub type TrainingCheck = fn(&Settings, &Path) -> Result<Vec<Row>>;

/// The checks of training runs, with what each of them does.
pub const TRAINING: &[(&str, TrainingCheck)] = &[
    ("tiny models beside the CPU device", training::beside_the_cpu),
    ("recomputation and recorded work", training::policies),
    ("an interrupted run", training::resume),
    ("generation", training::generation),
];
