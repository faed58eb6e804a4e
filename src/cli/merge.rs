//! `merge`: an adapter folded into its base.

use super::option;
use super::training::size;
use crate::config::model_folder::{self, expand_home};
use crate::error::Result;
use crate::model::{Adapter, Spec, merge as fold};
use crate::report::console::{Console, say};
use clap::ArgMatches;
use std::path::PathBuf;

/// `qwentune merge`.
pub fn merge(matches: &ArgMatches) -> Result<()> {
    let path = |name: &str| expand_home(option(matches, name).unwrap_or_default()).map(PathBuf::from);
    let (model, out) = (model_folder::find(&path("model_name_or_path")?)?, path("out")?);
    let spec = Spec::read(&model)?;
    let adapter = Adapter::read(&path("adapter")?, &spec)?;
    let mut console = Console::new(false, 1);
    let merged = fold::merge(&model, &spec, &adapter, &out, &mut console)?;
    drop(console);
    let (folder, bytes) = (out.display(), size(merged.bytes));
    say(&format!("{folder}: {} matrices merged, {} weight files, {bytes}", merged.matrices, merged.shards));
    Ok(())
}
