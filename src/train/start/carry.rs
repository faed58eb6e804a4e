//! The best adapter of a run that goes on in another folder: without it the new folder could not publish what its state
//! names as the best.

use super::locate::FoundState;
use crate::checkpoint::format::{Reading, read};
use crate::checkpoint::inspect;
use crate::checkpoint::state::{Best, digest_of};
use crate::checkpoint::storage::{Disk, Entry};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::formats::peft::Adapter;
use crate::formats::publish::Memory;
use crate::train::folder::{self, RunFolder};
use crate::train::trainer::Trainer;
use std::io::ErrorKind;
use std::path::Path;

/// What is taken over from the run that a state comes from.
pub(super) enum Carried {
    /// Nothing is needed.
    Nothing,
    /// The best adapter so far.
    Best(Box<Adapter>),
    /// It is not there any more, and not needed as things stand.
    Lost(u64),
}

/// The best adapter that the state names: that of the state itself, of its checkpoint, or of a folder of the run it lies in
/// or of `out`.
///
/// # Errors
/// Input: it is to be published at the end, and not there any more.
pub(super) fn best_of(
    disk: &dyn Disk,
    out: &Path,
    found: &FoundState,
    best: &Best,
    settings: &Settings,
    trainer: &mut Trainer,
) -> Result<Carried> {
    let base = folder::base_name(settings);
    let engine = trainer.engine();
    let as_adapter = |values: &[f32]| Carried::Best(Box::new(engine.to_peft(values, &base)));
    let is_best = |values: &Vec<f32>| digest_of(values) == best.adapter;
    if is_best(&found.state.weights) {
        return Ok(as_adapter(&found.state.weights));
    }
    let Some(run) = found.path.parent().and_then(Path::parent) else { return lost(best, settings) };
    if let Some(values) = of_checkpoint(disk, &inspect::path_of_step(run, best.step))?.filter(is_best) {
        return Ok(as_adapter(&values));
    }
    for (folder, name) in
        [run, out].into_iter().flat_map(|folder| [(folder, folder::BEST), (folder, folder::SAVED_BEST)])
    {
        let adapter = match disk.open(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            opened => {
                folder::read_adapter(&*opened.map_err(|e| Error::reading(folder, e))?, name).ok().flatten()
            }
        };
        let values = adapter.and_then(|adapter| engine.values_of(&adapter));
        if let Some(values) = values.filter(is_best) {
            return Ok(as_adapter(&values));
        }
    }
    lost(best, settings)
}

/// The weights of a checkpoint, if a whole one is there.
fn of_checkpoint(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<f32>>> {
    if disk.entry(path).map_err(|e| Error::reading(path, e))? != Some(Entry::File) {
        return Ok(None);
    }
    let file = disk.open_file(path).map_err(|e| Error::reading(path, e))?;
    Ok(read(&*file, Reading::Load).ok().map(|(_, state)| state.weights))
}

fn lost(best: &Best, settings: &Settings) -> Result<Carried> {
    if !settings.load_best_model_at_end {
        return Ok(Carried::Lost(best.step));
    }
    Err(Error::input(format!(
        "the best adapter so far, that of step {}, is not there any more, and --load-best-model-at-end would publish it",
        best.step
    ))
    .hint("continue in the folder that holds it, or add --load-best-model-at-end false"))
}

impl Carried {
    /// Puts it into the new folder.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(self, folder: &RunFolder, notes: &mut Vec<String>) -> Result<()> {
        match self {
            Carried::Nothing => {}
            Carried::Best(adapter) => {
                folder.write_adapter(folder::BEST, &adapter, &Memory)?;
            }
            Carried::Lost(step) => {
                notes.push(format!("the best adapter so far, that of step {step}, is not there any more"));
            }
        }
        Ok(())
    }
}
