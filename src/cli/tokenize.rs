//! `tokenize`.

use super::option;
use crate::error::{Error, Result};
use clap::ArgMatches;

pub fn tokenize(matches: &ArgMatches) -> Result<()> {
    let _ = option(matches, "model_name_or_path");
    Err(Error::usage("`qwentune tokenize` is not in this version yet"))
}
