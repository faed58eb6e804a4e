//! `run.json`: what a run is, how it came to be, and how long it has been and will be.

use crate::checkpoint::state::History;
use crate::checkpoint::storage::{self, Disk, Folder};
use crate::config::fields::{Class, FIELDS};
use crate::config::{self, Layer, Settings};
use crate::error::{Error, Result};
use crate::identity::Identity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Its name in a run folder.
pub const NAME: &str = "run.json";
/// The layout this build writes and reads.
pub const FORMAT: u32 = 2;
/// Largest file that is read: settings and digests make some kilobytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// What `run.json` holds. Read strictly: an unknown field or a value out of range is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Version of this layout.
    pub format: u32,
    /// The resolved settings, without those that only say how a process starts.
    pub settings: Settings,
    /// The command that started the run, or continued it last.
    pub command_line: Vec<String>,
    /// The folder relative paths refer to.
    pub working_directory: PathBuf,
    /// Versions and the machine, by name.
    pub versions: BTreeMap<String, String>,
    /// What decides its result.
    pub identity: Identity,
    /// Its lengths and recorded settings with the steps from which they count, also those that lie ahead of the
    /// newest checkpoint; and the states it descends from.
    pub history: History,
    /// The state of another run it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// The state of another run that this one began with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Whether it goes on under other settings, as a run of its own.
    pub branch: bool,
    /// The checkpoint, as an absolute path.
    pub checkpoint: PathBuf,
    /// Its step.
    pub step: u64,
    /// The digest of its header, hex, which stands for all of it.
    pub digest: String,
    /// Of a branch: what it changed, from and to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<String, [String; 2]>,
}

/// Versions of program and arithmetic, for people.
#[must_use]
pub fn versions(identity: &Identity) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("qwentune".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("arithmetic".to_owned(), identity.engine.version.clone()),
    ])
}

impl RunFile {
    /// The file's text, ending in a newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Plain values always serialise.
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(map) = value["settings"].as_object_mut() {
            for field in FIELDS.iter().filter(|field| field.class == Class::Start) {
                map.remove(field.key);
            }
        }
        let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads the file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// Input: it is damaged, or says something this build does not know.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let wrong = |e: serde_json::Error| Error::input(format!("{}: {e}", path.display()));
        let value: Value = serde_json::from_slice(bytes).map_err(wrong)?;
        // First: a layout of another version may have any fields.
        if let Some(format) = value["format"].as_u64().filter(|format| *format != u64::from(FORMAT)) {
            return Err(Error::input(format!(
                "{}: format {format}, this build reads {FORMAT}",
                path.display()
            ))
            .hint("use the version of this program that wrote it"));
        }
        // From the text again: it refuses a key that comes twice.
        let run: RunFile = serde_json::from_slice(bytes).map_err(wrong)?;
        // Combinations are left to the start: evaluation rows, for one, may have come from memory.
        config::check_values(&run.settings)
            .map_err(|e| Error::input(format!("{}: {}", path.display(), e.what)))?;
        Ok(run)
    }

    /// That of an open folder; `None` when it holds no run.
    ///
    /// # Errors
    /// As [`RunFile::parse`]; a failure to read is never taken for a missing file.
    pub fn in_folder(folder: &dyn Folder) -> Result<Option<Self>> {
        let path = folder.path().join(NAME);
        let bytes = storage::read_file(folder, NAME, MAX_BYTES).map_err(|e| Error::reading(&path, e))?;
        bytes.map(|bytes| Self::parse(&path, &bytes)).transpose()
    }

    /// That of the folder at `path`; `None` when there is no folder, or no run in it.
    ///
    /// # Errors
    /// As [`RunFile::in_folder`].
    pub fn find(disk: &dyn Disk, path: &Path) -> Result<Option<Self>> {
        match disk.open(path) {
            Ok(folder) => Self::in_folder(&*folder),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::reading(path, e)),
        }
    }

    /// That of the run folder at `path`.
    ///
    /// # Errors
    /// Input, also when there is no run in it.
    pub fn read(disk: &dyn Disk, path: &Path) -> Result<Self> {
        Self::find(disk, path)?.ok_or_else(|| {
            Error::input(format!("{}: no run in this folder (run.json is missing)", path.display()))
        })
    }

    /// The settings with every relative path leading from here: one that is not found from the working directory is
    /// that of the directory in which the run was started.
    ///
    /// # Errors
    /// A path that cannot be looked at.
    pub fn settings_from_here(&self, disk: &dyn Disk) -> Result<Layer> {
        let mut layer = Layer::from_settings(&self.settings);
        layer.map_paths(|path| {
            let there = self.working_directory.join(path);
            let look = |path: &Path| disk.entry(path).map_err(|e| Error::reading(path, e));
            let only_there = path.is_relative() && look(path)?.is_none() && look(&there)?.is_some();
            Ok(if only_there { there } else { path.to_owned() })
        })?;
        Ok(layer)
    }
}
