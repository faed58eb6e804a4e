//! `merge`: an adapter folded into its base.

use super::option;
use super::training::size;
use crate::config::check::model_folder;
use crate::error::Result;
use crate::model::{Adapter, Spec, merge as fold};
use crate::report::console::{Console, say};
use clap::ArgMatches;
use std::path::Path;

/// `qwentune merge`.
pub fn merge(matches: &ArgMatches) -> Result<()> {
    let path = |name: &str| Path::new(option(matches, name).unwrap_or_default());
    let (model, out) = (path("model_name_or_path"), path("out"));
    model_folder(model)?;
    let spec = Spec::read(model)?;
    let adapter = Adapter::read(path("adapter"), &spec)?;
    let mut console = Console::new(false);
    let merged = fold::merge(model, &spec, &adapter, out, &mut console)?;
    drop(console);
    let (folder, bytes) = (out.display(), size(merged.bytes));
    say(&format!("{folder}: {} matrices merged, {} weight files, {bytes}", merged.matrices, merged.shards));
    Ok(())
}
