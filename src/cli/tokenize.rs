//! `tokenize`: ids of a text, or the text of ids.

use super::option;
use crate::config::model_folder;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::report::console::say;
use clap::ArgMatches;
use std::io::Read;
use std::path::Path;

/// `qwentune tokenize`.
pub fn tokenize(matches: &ArgMatches) -> Result<()> {
    let name = model_folder::expand_home(option(matches, "model_name_or_path").unwrap_or_default())?;
    let tokenizer = Tokenizer::open(&model_folder::find(Path::new(&name))?)?;
    let text = input(matches)?;
    let pieces: Vec<&str> = if matches.get_flag("lines") { text.lines().collect() } else { vec![&text] };
    for piece in pieces {
        if matches.get_flag("decode") {
            say(&tokenizer.decode(&ids(piece)?));
        } else {
            let ids = tokenizer.encode(piece)?;
            say(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
        }
    }
    Ok(())
}

/// The words of the command line, or all of standard input, as it is.
fn input(matches: &ArgMatches) -> Result<String> {
    if let Some(words) = matches.get_many::<String>("text") {
        return Ok(words.map(String::as_str).collect::<Vec<_>>().join(" "));
    }
    standard_input()
}

/// All of standard input.
pub(super) fn standard_input() -> Result<String> {
    let mut bytes = Vec::new();
    let path = Path::new("standard input");
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::input(format!("standard input is not UTF-8 at byte {}", e.utf8_error().valid_up_to()))
    })
}

/// Ids separated by spaces, commas or line ends; brackets of a list do no harm.
fn ids(text: &str) -> Result<Vec<u32>> {
    let words = text.split(|c: char| c.is_whitespace() || ",[]".contains(c)).filter(|w| !w.is_empty());
    words.map(|w| w.parse().map_err(|_| Error::input(format!("'{w}' is no token id")))).collect()
}
