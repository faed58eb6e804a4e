//! `import` and `export`: to and from Hugging Face's Trainer and PEFT.

use super::{commands, option, show, training};
use crate::error::{Error, Result};
use crate::files;
use crate::report::console::{Console, say};
use crate::train::exchange::{self, Form};
use crate::train::start::commands::shell_word;
use crate::train::{self, Request};
use clap::ArgMatches;
use std::path::{Path, PathBuf};

/// `qwentune import`.
pub fn import(matches: &ArgMatches, warnings: &mut Vec<String>, command_line: Vec<String>) -> Result<()> {
    let [from, out] = ["from", "out"].map(|name| PathBuf::from(option(matches, name).unwrap_or_default()));
    let given = training::given(matches, warnings)?;
    commands::refuse(&given, "import", commands::NOT_ON_IMPORT)?;
    show(warnings);
    let quiet = given.is_true("quiet");
    let program = command_line.first().map_or("qwentune", String::as_str).to_owned();
    let request = Request { given, command_line, ..Request::default() };
    let mut console = Console::new(quiet);
    let imported = train::import(&from, &out, request, &mut console)?;
    drop(console);
    if !quiet {
        let out = out.display().to_string();
        say(&format!("saved {}", imported.checkpoint.display()));
        say(&format!("to continue: {} resume {}", shell_word(&program), shell_word(&out)));
    }
    Ok(())
}

/// `qwentune export`.
pub fn export(matches: &ArgMatches) -> Result<()> {
    let [from, out] = ["from", "out"].map(|name| PathBuf::from(option(matches, name).unwrap_or_default()));
    let form = match option(matches, "format").unwrap_or_default().replace('_', "-").as_str() {
        "peft" => Form::Peft,
        "hf-trainer" => Form::HfTrainer,
        "gguf" => Form::Gguf,
        other => return Err(Error::usage(format!("--format {other}: peft, hf-trainer or gguf"))),
    };
    if files::exists(&from.join("adapter_config.json"))? {
        return Err(Error::usage(format!("{} is an adapter in PEFT's format already", from.display()))
            .hint("export takes a .qckpt file or the folder of a run"));
    }
    let mut console = Console::new(false);
    let exported = exchange::export(&from, &out, form, &mut console)?;
    drop(console);
    say(&ending(&exported, &out, form));
    Ok(())
}

fn ending(exported: &exchange::Exported, out: &Path, form: Form) -> String {
    let what = match form {
        Form::Peft => "the adapter, PEFT's format",
        Form::HfTrainer => "a checkpoint of Hugging Face's Trainer",
        Form::Gguf => "the adapter, for llama.cpp",
    };
    let (source, out) = (exported.source.display(), out.display());
    format!("step {} of {source} is in {out}: {what}", exported.step)
}
