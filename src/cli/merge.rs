//! `merge`: an adapter folded into its base.

use super::option;
use super::training::size;
use crate::config::model_folder::{self, expand_home};
use crate::error::Result;
use crate::model::{Adapter, Spec, merge as fold};
use crate::report::console::{Console, say};
use clap::ArgMatches;
use std::path::{Path, PathBuf};

/// `qwentune merge`.
pub fn merge(matches: &ArgMatches) -> Result<()> {
    let path = |name: &str| expand_home(option(matches, name).unwrap_or_default()).map(PathBuf::from);
    let (model, out) = (model_folder::find(&path("model_name_or_path")?)?, path("out")?);
    let spec = Spec::read(&model)?;
    let folder = path("adapter")?;
    let adapter = Adapter::read(&folder, &spec)?;
    let ends = ends(&model, &folder, spec.vocab)?;
    let mut console = Console::new(false);
    let merged = fold::merge(&model, &spec, &adapter, &ends, &out, &mut console)?;
    drop(console);
    let (folder, bytes) = (out.display(), size(merged.bytes));
    if !merged.ends.is_empty() {
        let ids: Vec<String> = merged.ends.iter().map(u32::to_string).collect();
        say(&format!("a text of the new model ends with token {} too, as in training", ids.join(" and ")));
    }
    say(&format!("{folder}: {} matrices merged, {} weight files, {bytes}", merged.matrices, merged.shards));
    Ok(())
}

/// The tokens that end an answer: by the template of the run whose adapter it is, else by the model's own. None where
/// the folder has no tokenizer.
#[cfg(feature = "text")]
fn ends(model: &Path, adapter: &Path, vocab: usize) -> Result<Vec<u32>> {
    use crate::checkpoint::storage::FileSystem;
    use crate::config::Settings;
    use crate::data::prompts::Prompter;
    use crate::files;
    use crate::train::run_file::RunFile;
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
