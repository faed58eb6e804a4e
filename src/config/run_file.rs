//! `run.json`: the resolved settings of a run, its command line and its versions.

use super::Settings;
use super::fields::{Class, FIELDS};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::identity::Identity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What `run.json` holds. Read strictly: an unknown field or a value out of range is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Version of this layout.
    pub format: u32,
    /// The resolved settings, without those that only say how a process starts.
    pub settings: Settings,
    /// The command that started the run.
    pub command_line: Vec<String>,
    /// The folder relative paths refer to.
    pub working_directory: String,
    /// Versions and the machine, by name.
    pub versions: BTreeMap<String, String>,
    /// What decides its result.
    pub identity: Identity,
}

/// Largest `run.json` that is read: settings and digests make some kilobytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// The layout this build writes and reads.
pub const FORMAT: u32 = 2;

/// The contents of `run.json`, ending in a newline.
///
/// `versions` and `identity` are the caller's: versions of program and arithmetic; what decides the result.
#[must_use]
pub fn run_json(
    settings: &Settings,
    command_line: &[String],
    versions: &BTreeMap<String, String>,
    identity: &Identity,
) -> String {
    let run = RunFile {
        format: FORMAT,
        settings: settings.clone(),
        command_line: command_line.to_vec(),
        working_directory: std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default(),
        versions: versions.clone(),
        identity: identity.clone(),
    };
    let mut value = serde_json::to_value(&run).unwrap_or_default();
    if let Some(map) = value["settings"].as_object_mut() {
        for field in FIELDS.iter().filter(|field| field.class == Class::Start) {
            map.remove(field.key);
        }
    }
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}

impl RunFile {
    /// Reads the `run.json` of a run folder.
    ///
    /// # Errors
    /// Input: it is not there, damaged, or says something this build does not know.
    pub fn read(run_folder: &Path) -> Result<Self> {
        let path = run_folder.join("run.json");
        if !files::exists(&path)? {
            let folder = run_folder.display();
            return Err(Error::input(format!("{folder}: no run in this folder (run.json is missing)")));
        }
        Self::parse(&path, &files::read_text(&path, MAX_BYTES)?)
    }

    /// The text of the `run.json` that is called `path` in messages.
    ///
    /// # Errors
    /// Input: it is damaged, or says something this build does not know.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |e: serde_json::Error| Error::input(format!("{}: {e}", path.display())).caused_by(e);
        let value: Value = serde_json::from_str(text).map_err(wrong)?;
        // First: a layout of another version may have any fields.
        if let Some(format) = value["format"].as_u64().filter(|format| *format != u64::from(FORMAT)) {
            return Err(Error::input(format!(
                "{}: format {format}, this build reads {FORMAT}",
                path.display()
            ))
            .hint("use the version of this program that wrote it"));
        }
        // From the text: a value would have lost keys that come twice.
        let run: RunFile = serde_json::from_str(text).map_err(wrong)?;
        // Combinations are left to the start: evaluation rows, for one, may have come from memory.
        super::check_values(&run.settings).map_err(|e| e.at(path.display()).of_kind(Kind::Input))?;
        Ok(run)
    }
}
