//! An adapter merged into its base: a model folder of its own.

use crate::error::Result;
use crate::model::merge::{self, Merged};
use crate::model::{Adapter, Spec};
use crate::report::event::Observer;
use std::path::Path;

/// Writes the folder `out`: the model in `model` with the PEFT adapter in `adapter` merged into its matrices, and the small
/// files beside its weights. The tokens that ended an answer in training end one in the new model too. `out` is complete when
/// it has its name.
///
/// # Errors
/// Model and adapter do not belong together; [`crate::error::Kind::Output`] where `out` is taken; a merged element is not
/// finite; a file of the base changed meanwhile; I/O.
pub fn merge(model: &Path, adapter: &Path, out: &Path, observer: &mut dyn Observer) -> Result<Merged> {
    let spec = Spec::read(model)?;
    let read = Adapter::read(adapter, &spec)?;
    merge::merge(model, &spec, &read, &ends(model, adapter, spec.vocab)?, out, observer)
}

/// The tokens that end an answer: by the template of the run whose adapter it is, else by the model's own. None where
/// the folder has no tokenizer.
#[cfg(feature = "text")]
fn ends(model: &Path, adapter: &Path, vocab: usize) -> Result<Vec<u32>> {
    use super::run_file::RunFile;
    use crate::checkpoint::storage::FileSystem;
    use crate::config::Settings;
    use crate::data::prompts::Prompter;
    use crate::files;
    let run = adapter.parent().map(|run| RunFile::find(&FileSystem, run)).transpose()?.flatten();
    let settings = run.map_or_else(Settings::default, |run| run.settings);
    if !files::exists(&model.join("tokenizer.json"))? && !files::exists(&model.join("qwen.tiktoken"))? {
        return Ok(Vec::new());
    }
    let settings = Settings { model: model.to_path_buf(), ..settings };
    Ok(Prompter::open(&settings, vocab)?.ends())
}

/// A build without tokenizers trains on tokens, whose ends are the model's own.
#[cfg(not(feature = "text"))]
fn ends(_: &Path, _: &Path, _: usize) -> Result<Vec<u32>> {
    Ok(Vec::new())
}
