//! DeepKE's inference lines: given to `train`, they are answered with the `generate` line that does the same.

use crate::config::fields;
use crate::error::{Error, Result};
use crate::train::start::commands::shell_word;
use std::collections::BTreeMap;

/// Flags that only inference has.
const INFERENCE: &[&str] = &["input_file", "output_file"];

/// The flags that `generate` needs of such a line: its own name, ours for it, and what stands where none is given.
const CARRIED: &[(&str, &str, &str)] = &[
    ("model", "model_name_or_path", "DIR"),
    ("adapter", "init_adapter", ""),
    ("template", "template", ""),
    ("input-file", "input_file", "FILE"),
    ("output-file", "output_file", "FILE"),
    ("max-new-tokens", "max_new_tokens", ""),
];

/// Refuses a `train` line that asks for answers and not for training; `words` are as they were given.
///
/// # Errors
/// Usage, with the line to run instead.
pub fn refuse(words: &[String]) -> Result<()> {
    let flags = flags(words);
    let on = |name: &str| flags.get(name).is_some_and(|value| !value.eq_ignore_ascii_case("false"));
    let only_predicts = on("do_predict") && !on("do_train");
    if !only_predicts && !INFERENCE.iter().any(|name| flags.contains_key(*name)) {
        return Ok(());
    }
    let mut line = "qwentune generate".to_owned();
    for (flag, name, missing) in CARRIED {
        match flags.get(*name) {
            Some(value) => line += &format!(" --{flag} {}", shell_word(value)),
            None if missing.is_empty() => {}
            None => line += &format!(" --{flag} {missing}"),
        }
    }
    Err(Error::usage("this line asks for answers (--do_predict, --input_file); `train` only trains")
        .hint(format!("write the answers: {line}")))
}

/// Flags and the words behind them, settings under their own names.
fn flags(words: &[String]) -> BTreeMap<String, &str> {
    let mut flags = BTreeMap::new();
    for (word, next) in words.iter().zip(words.iter().skip(1).map(Some).chain([None])) {
        let Some(flag) = word.strip_prefix("--") else { continue };
        let behind = next.filter(|next| !next.starts_with("--")).map_or("", String::as_str);
        let (name, value) = flag.split_once('=').unwrap_or((flag, behind));
        let name = fields::find(name).map_or_else(|| name.replace('-', "_"), |field| field.name.to_owned());
        flags.insert(name, value);
    }
    flags
}
