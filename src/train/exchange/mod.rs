//! Runs that come from Hugging Face's Trainer, and go back to it.

mod export;
mod foreign;
mod import;

pub use export::{Exported, Form, export};
pub use foreign::Foreign;
pub use import::{Imported, import};

use super::origin;
use crate::config::{Layer, ResumeFrom, Settings, fields};
use crate::error::Result;
use crate::formats::hf_trainer;
use std::path::{Path, PathBuf};

/// Whether a folder is a checkpoint of Trainer.
#[must_use]
pub fn is_trainer_checkpoint(folder: &Path) -> bool {
    folder.join(hf_trainer::STATE).is_file()
}

/// The checkpoint of Trainer that these settings continue from, if it is one.
#[must_use]
pub fn trainer_checkpoint(settings: &Settings) -> Option<&Path> {
    match &settings.resume_from_checkpoint {
        Some(ResumeFrom::Path(path)) if is_trainer_checkpoint(path) => Some(path),
        _ => None,
    }
}

/// The newest `checkpoint-N` of Trainer in a folder.
#[must_use]
pub fn newest_in(folder: &Path) -> Option<PathBuf> {
    let names =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let steps = names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse::<u64>().ok());
    let path = |step: u64| folder.join(format!("checkpoint-{step}"));
    steps.filter(|step| is_trainer_checkpoint(&path(*step))).max().map(path)
}

/// The checkpoint of Trainer that settings continue from, `auto` as `super::origin` understands it.
fn meant(given: &Layer) -> Option<PathBuf> {
    let text = |key: &str| given.get(key).and_then(|v| v.as_str()).map(PathBuf::from);
    let resume = given.get("resume_from_checkpoint").cloned().unwrap_or_default();
    let path = match serde_json::from_value(resume).ok().flatten()? {
        ResumeFrom::Path(path) => Some(path),
        ResumeFrom::Auto => {
            let out = text("output_dir").filter(|out| !out.join("run.json").exists())?;
            text("init_adapter").map_or_else(|| newest_in(&out), |folder| origin::complete_state(&folder))
        }
        ResumeFrom::Step(_) => None,
    };
    path.filter(|path| is_trainer_checkpoint(path))
}

/// Puts what a checkpoint of Trainer says of its run below the settings that were given, when they continue one.
///
/// # Errors
/// As [`Foreign::read`].
pub fn complete(given: &mut Layer) -> Result<()> {
    let Some(path) = meant(given) else { return Ok(()) };
    let mut layer = Foreign::read(&path, given.is_true("fresh_optimizer"))?.implied(given);
    layer.cover(given);
    *given = layer;
    Ok(())
}

/// Sets a field of the table by its key.
fn set(layer: &mut Layer, key: &str, value: serde_json::Value) {
    if let Some(field) = fields::find(key) {
        layer.set(field, value);
    }
}
