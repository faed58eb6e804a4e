//! `init`: a configuration file to begin with.

use super::option;
use crate::config;
use crate::error::{Error, Result};
use crate::report::console::say;
use clap::ArgMatches;
use std::io::Write;
use std::path::Path;

/// `qwentune init`.
pub fn init(matches: &ArgMatches) -> Result<()> {
    let text = config::init::commented();
    let Some(out) = option(matches, "out").map(Path::new) else {
        say(text.trim_end());
        return Ok(());
    };
    let new = std::fs::OpenOptions::new().write(true).create_new(true).open(out);
    let mut file = new.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::output(format!("{} is there already", out.display())).hint("choose a new name")
        }
        _ => Error::io("creating", out, e),
    })?;
    file.write_all(text.as_bytes()).map_err(|e| Error::io("writing", out, e))?;
    say(&format!("{}: every setting with its default; fill in model, data and output", out.display()));
    Ok(())
}
