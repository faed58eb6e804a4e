//! Which way to begin is meant where a command line names several, as those of DeepKE do: weights only, the
//! complete state, or anew. Only looks; nothing is written.

use super::start::locate::is_inside;
use super::{Request, exchange};
use crate::config::{ResumeFrom, RunFile, Settings};
use crate::error::{Error, Result};
use crate::report::event::{Event, Observer};
use std::path::{Path, PathBuf};

/// The request with one way to begin. What was chosen is told to the observer.
///
/// # Errors
/// Input: a folder that was to be continued holds no complete state, or one with weights holds none. Usage:
/// the adapter to begin with would be moved aside.
pub fn settle(mut request: Request, observer: &mut dyn Observer) -> Result<Request> {
    let must_resume = request.must_resume;
    let s = &mut request.settings;
    let mut note = |text: String| observer.on_event(&Event::Note(text));
    if s.resume_from_checkpoint == Some(ResumeFrom::Auto) && !must_resume {
        resolve_auto(s, &mut note)?;
    }
    if let Some(ResumeFrom::Path(path)) = &s.resume_from_checkpoint
        && s.init_adapter.is_none()
    {
        if let Some(run) = run_of(path) {
            take_over(s, run.settings);
        }
    } else if s.resume_from_checkpoint.is_none()
        && let Some(folder) = s.init_adapter.clone()
    {
        s.init_adapter = Some(weights_in(&folder)?);
    }
    keep_what_is_needed(s, &mut note)?;
    Ok(request)
}

/// `auto` is the output folder's own run; without one, the complete state in the folder given beside it with
/// `--init-adapter` (`--checkpoint-dir`), or what another trainer left in the output folder. Another path than
/// `auto` is settled already.
///
/// # Errors
/// Input: a `run.json` that cannot be read, or a folder given beside `auto` that holds weights alone.
pub fn resolve_auto(s: &mut Settings, note: &mut dyn FnMut(String)) -> Result<()> {
    let out = s.output_dir.clone();
    if out.join("run.json").exists() {
        let recorded = RunFile::read(&out)?.settings;
        match (s.init_adapter.take(), &recorded.init_adapter) {
            (Some(given), Some(_)) => s.init_adapter = Some(weights_in(&given)?),
            (Some(given), None) => note(format!(
                "the run in {} is continued; --init-adapter (--checkpoint-dir) {} has no part in it",
                out.display(),
                given.display()
            )),
            (None, _) => take_over(s, recorded),
        }
        return Ok(());
    }
    if let Some(folder) = s.init_adapter.take() {
        let Some(state) = complete_state(&folder) else {
            let what = format!(
                "{}: weights only, no optimizer, schedule and step: nothing to resume from",
                folder.display()
            );
            return Err(Error::input(what).hint(
                "leave --resume-from-checkpoint out to begin at step 0 with these weights, or name the folder of a complete state",
            ));
        };
        note(format!(
            "--resume-from-checkpoint auto beside --init-adapter (--checkpoint-dir) {}: the complete state in {} is continued",
            folder.display(),
            state.display()
        ));
        s.resume_from_checkpoint = Some(ResumeFrom::Path(state));
    } else if let Some(state) = exchange::newest_in(&out) {
        note(format!("--resume-from-checkpoint auto: {} is continued", state.display()));
        s.resume_from_checkpoint = Some(ResumeFrom::Path(state));
    }
    Ok(())
}

/// Adapters a run had begun with and on top of: they are part of its identity, and need not be given again.
fn take_over(s: &mut Settings, recorded: Settings) {
    s.init_adapter = recorded.init_adapter;
    if s.fold_adapters.is_empty() {
        s.fold_adapters = recorded.fold_adapters;
    }
}

/// Where the complete state is of which `folder` holds the weights: a run of ours around it, or a Hugging Face
/// checkpoint in it.
#[must_use]
pub fn complete_state(folder: &Path) -> Option<PathBuf> {
    let is_run = |path: &Path| path.join("run.json").exists() && path.join("checkpoints").is_dir();
    if is_run(folder) || exchange::is_trainer_checkpoint(folder) {
        return Some(folder.to_owned());
    }
    exchange::newest_in(folder).or_else(|| folder.parent().filter(|run| is_run(run)).map(Path::to_owned))
}

/// The adapter that a folder given as one stands for: itself, or the final adapter of a run of ours.
///
/// # Errors
/// Input: a run that has none yet.
pub fn weights_in(folder: &Path) -> Result<PathBuf> {
    let holds_adapter = |path: &Path| path.join("adapter_config.json").exists();
    if holds_adapter(folder) || !folder.join("run.json").exists() {
        return Ok(folder.to_owned());
    }
    let adapter = folder.join("adapter");
    if holds_adapter(&adapter) {
        return Ok(adapter);
    }
    let shown = folder.display();
    Err(Error::input(format!("{shown}: this run has no adapter yet to begin with"))
        .hint(format!("continue it: qwentune resume {shown}")))
}

/// The `run.json` that belongs to a run folder or to a checkpoint in one.
fn run_of(path: &Path) -> Option<RunFile> {
    let folder = if path.is_dir() { Some(path) } else { path.parent().and_then(Path::parent) };
    RunFile::read(folder?).ok()
}

/// `--overwrite-output-dir` never takes away what the run reads: the run that is resumed stays where it is, and
/// so does the adapter it begins with.
fn keep_what_is_needed(s: &mut Settings, note: &mut dyn FnMut(String)) -> Result<()> {
    if !s.overwrite_output_dir || !s.output_dir.join("run.json").exists() {
        return Ok(());
    }
    let out = s.output_dir.display();
    let resumed_here = match &s.resume_from_checkpoint {
        Some(ResumeFrom::Path(path)) => is_inside(path, &s.output_dir),
        resumed => resumed.is_some(),
    };
    if resumed_here {
        note(format!("--overwrite-output-dir has no effect: the run in {out} is continued"));
        s.overwrite_output_dir = false;
        return Ok(());
    }
    match &s.init_adapter {
        Some(adapter) if is_inside(adapter, &s.output_dir) => Err(Error::usage(format!(
            "--init-adapter {} lies in the run that --overwrite-output-dir would move aside",
            adapter.display()
        ))
        .hint(format!("choose a new --output-dir, or continue the run: qwentune resume {out}"))),
        _ => Ok(()),
    }
}
