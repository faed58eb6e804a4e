//! What was asked for, in one form, before anything is looked at.

use crate::config::fields::{self, Class, FIELDS};
use crate::config::{self, Layer, ResumeFrom, Settings};
use crate::data::dataset::Rows;
use crate::device::Devices;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// What a run is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The settings that are given. A new run takes the others from the defaults, one that goes on from the run it goes
    /// on with.
    pub given: Layer,
    /// Rows in memory, in place of the settings' data files. A resume needs the same rows again.
    pub rows: Option<Rows>,
    /// The command line, for `run.json` and for the commands that messages offer; empty where there was none.
    pub command_line: Vec<String>,
    /// How GPUs are found.
    pub devices: Devices,
}

impl Request {
    /// A request in which every setting is given.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Request { given: Layer::from_settings(settings), ..Request::default() }
    }
}

/// Where the state is to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::train) enum Source {
    /// The output folder's own run where there is one; else what else is found there; else none.
    Auto,
    /// The run in the output folder, which must be there.
    Run,
    /// The checkpoint of that step in the output folder.
    Step(u64),
    /// A checkpoint, a run folder, or a checkpoint of Hugging Face's Trainer.
    Path(PathBuf),
}

/// The ways to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::train) enum Beginning {
    /// At step 0.
    New,
    /// With a complete state, as the run it belongs to.
    Continue(Source),
    /// With a complete state, as a run of its own.
    Branch(Source),
}

/// A request in the form that the decision is made from.
#[derive(Clone, Debug)]
pub(in crate::train) struct Asked {
    pub beginning: Beginning,
    /// The settings that are given, those that only say how this process starts left out.
    pub given: Layer,
    pub output: PathBuf,
    pub overwrite: bool,
    pub allow_inexact: bool,
    pub fresh_optimizer: bool,
    pub rows: Option<Rows>,
    pub command_line: Vec<String>,
    pub devices: Devices,
}

impl Asked {
    /// `train`.
    pub fn to_train(request: Request) -> Result<Self> {
        let given = &request.given;
        let resume: Option<ResumeFrom> = value(given, "resume_from_checkpoint")?.unwrap_or_default();
        let adapter = value::<Option<PathBuf>>(given, "init_adapter")?.flatten();
        config::check::one_beginning(resume.as_ref(), adapter.is_some())?;
        let source = resume.map(|from| match from {
            ResumeFrom::Auto => Source::Auto,
            ResumeFrom::Step(step) => Source::Step(step),
            ResumeFrom::Path(path) => Source::Path(path),
        });
        let beginning = match (given.is_true("branch"), source) {
            (false, None) => Beginning::New,
            (false, Some(source)) => Beginning::Continue(source),
            (true, Some(Source::Path(path))) => Beginning::Branch(Source::Path(path)),
            (true, _) => {
                return Err(Error::usage(
                    "--branch begins a run of its own with the state of another: name that one",
                )
                .hint("train --branch --resume-from-checkpoint RUN --output-dir NEW [changes]"));
            }
        };
        let output: PathBuf = value(given, "output_dir")?.unwrap_or_default();
        Ok(Self::new(beginning, output, request))
    }

    /// `resume`: the run in `folder` goes on, with changes.
    pub fn to_resume(folder: &Path, request: Request) -> Result<Self> {
        let from: Option<ResumeFrom> = value(&request.given, "resume_from_checkpoint")?.unwrap_or_default();
        let source = match from {
            None | Some(ResumeFrom::Auto) => Source::Run,
            Some(ResumeFrom::Step(step)) => Source::Step(step),
            Some(ResumeFrom::Path(path)) => Source::Path(path),
        };
        Ok(Self::new(Beginning::Continue(source), folder.to_owned(), request))
    }

    /// After the checkpoint of another trainer that it was for has become a run: that run goes on.
    pub fn imported(mut self) -> Self {
        self.beginning = Beginning::Continue(Source::Run);
        self.fresh_optimizer = false;
        self
    }

    fn new(beginning: Beginning, output: PathBuf, request: Request) -> Self {
        let Request { mut given, rows, command_line, devices } = request;
        let [overwrite, allow_inexact, fresh_optimizer] =
            ["overwrite_output_dir", "allow_inexact", "fresh_optimizer"].map(|key| given.is_true(key));
        FIELDS.iter().filter(|f| f.class == Class::Start).for_each(|field| given.forget(field.key));
        set(&mut given, "output_dir", &output);
        Asked {
            beginning,
            given,
            output,
            overwrite,
            allow_inexact,
            fresh_optimizer,
            rows,
            command_line,
            devices,
        }
    }

    /// The program as it was called, for commands a message offers.
    pub fn program(&self) -> &str {
        self.command_line.first().map_or("qwentune", String::as_str)
    }
}

/// A setting's value, where it is given.
pub(super) fn value<T: DeserializeOwned>(given: &Layer, key: &str) -> Result<Option<T>> {
    let value = given.get(key).cloned().map(serde_json::from_value).transpose();
    value.map_err(|e| Error::usage(format!("{key}: {e}")))
}

/// Sets a setting of the table by its key.
pub(super) fn set(layer: &mut Layer, key: &str, path: &Path) {
    if let Some(field) = fields::find(key) {
        layer.set(field, serde_json::json!(path));
    }
}
