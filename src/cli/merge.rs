//! `merge`: an adapter folded into its base.

use super::option;
use super::training::size;
use crate::config::model_folder::{self, expand_home};
use crate::error::Result;
use crate::report::console::{Console, say};
use crate::train::merge::merge as merge_folders;
use clap::ArgMatches;
use std::path::PathBuf;

/// `qwentune merge`.
pub fn merge(matches: &ArgMatches) -> Result<()> {
    let path = |name: &str| expand_home(option(matches, name).unwrap_or_default()).map(PathBuf::from);
    let (model, out) = (model_folder::find(&path("model_name_or_path")?)?, path("out")?);
    let mut console = Console::new(false);
    let merged = merge_folders(&model, &path("adapter")?, &out, &mut console)?;
    drop(console);
    let (folder, bytes) = (out.display(), size(merged.bytes));
    if !merged.ends.is_empty() {
        let ids: Vec<String> = merged.ends.iter().map(u32::to_string).collect();
        say(&format!("a text of the new model ends with token {} too, as in training", ids.join(" and ")));
    }
    say(&format!("{folder}: {} matrices merged, {} weight files, {bytes}", merged.matrices, merged.shards));
    Ok(())
}
