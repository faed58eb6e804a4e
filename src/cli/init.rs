//! `init`: a configuration file to begin with.

use super::option;
use crate::config;
use crate::error::Result;
use crate::formats::publish::{FileDraft, Memory, Over};
use crate::report::console::say;
use clap::ArgMatches;
use std::path::Path;

/// `qwentune init`.
pub fn init(matches: &ArgMatches) -> Result<()> {
    let text = config::init::commented();
    let Some(out) = option(matches, "out").map(Path::new) else {
        say(text.trim_end());
        return Ok(());
    };
    let mut draft = FileDraft::beside(out)?;
    draft.write(text.as_bytes())?;
    draft.publish(Over::Nothing, &Memory)?;
    say(&format!("{}: every setting with its default; fill in model, data and output", out.display()));
    Ok(())
}
