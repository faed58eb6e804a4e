//! Where a run begins: new, from an adapter's weights, or from a checkpoint; and what is refused.

use crate::checkpoint::inspect;
use crate::checkpoint::state::State;
use crate::checkpoint::store::Store;
use crate::config::{ResumeFrom, Settings};
use crate::error::{Error, Result};
use crate::formats::{hf_trainer, peft};
use crate::identity::{Difference, Identity};
use crate::report::event::{Event, Observer};
use crate::train::Request;
use crate::train::folder::RunFolder;
use std::path::{Path, PathBuf};

/// The state a run continues from, and where it was found.
pub struct Start {
    /// `None`: step 0.
    pub state: Option<State>,
    /// Where it came from, for the first lines of the run.
    pub origin: String,
}

/// Refuses a folder that holds a run nobody asked to continue; with `--overwrite-output-dir` the old files
/// are moved aside. Called under the run's lock.
///
/// # Errors
/// [`crate::error::Kind::Output`] naming both continuations.
pub fn claim(request: &Request, folder: &RunFolder, observer: &mut dyn Observer) -> Result<()> {
    let s = &request.settings;
    let (continuation, shown) = (request.continuation(None), folder.path());
    let shown = shown.display();
    if !folder.holds_run()? || request.must_resume {
        return Ok(());
    }
    match &s.resume_from_checkpoint {
        Some(ResumeFrom::Path(path)) if !is_inside(path, &folder.path()) && !s.overwrite_output_dir => {
            return Err(Error::output(format!("{shown} already holds a run, {} is another", path.display()))
                .hint(format!(
                    "continue the one that is here: {continuation}   or choose a new --output-dir"
                )));
        }
        Some(ResumeFrom::Path(path)) if !is_inside(path, &folder.path()) => {}
        Some(_) => return Ok(()),
        None => {}
    }
    if !s.overwrite_output_dir {
        return Err(Error::output(format!("{shown} already holds a run"))
            .hint(format!("continue it: {continuation}   start another: choose a new --output-dir, or --overwrite-output-dir to move the old run's files aside")));
    }
    if let Some(target) = folder.move_aside()? {
        let note = format!("the earlier run's files were moved to {}", target.display());
        observer.on_event(&Event::Note(note));
    }
    Ok(())
}

/// Finds the state to continue from.
///
/// # Errors
/// Damaged or missing checkpoints that were asked for by name; no whole one among several.
pub fn find(request: &Request, store: &mut Store, observer: &mut dyn Observer) -> Result<Start> {
    let s = &request.settings;
    match &s.resume_from_checkpoint {
        Some(ResumeFrom::Step(step)) => named(&inspect::path_of_step(&s.output_dir, *step)),
        Some(ResumeFrom::Path(path)) if path.is_file() || !is_inside(path, &s.output_dir) => {
            elsewhere(path, observer)
        }
        Some(ResumeFrom::Auto | ResumeFrom::Path(_)) => newest(store, s, observer),
        None if request.must_resume => newest(store, s, observer),
        None => Ok(Start { state: None, origin: String::new() }),
    }
}

/// Whether `path` is the folder or lies below it.
pub fn is_inside(path: &Path, folder: &Path) -> bool {
    match (path.canonicalize(), folder.canonicalize()) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        _ => path.starts_with(folder),
    }
}

fn named(path: &Path) -> Result<Start> {
    let state = inspect::load(path)?;
    Ok(Start { origin: path.display().to_string(), state: Some(state) })
}

fn newest(store: &mut Store, s: &Settings, observer: &mut dyn Observer) -> Result<Start> {
    let found = store.newest()?;
    for text in found.set_aside {
        observer.on_event(&Event::Warning(text));
    }
    Ok(match found.newest {
        Some((path, state)) => Start { origin: path.display().to_string(), state: Some(state) },
        None => Start {
            state: None,
            origin: format!("nothing to resume: no checkpoint in {}", s.output_dir.display()),
        },
    })
}

/// A checkpoint file or a run folder other than the output folder.
fn elsewhere(path: &Path, observer: &mut dyn Observer) -> Result<Start> {
    if path.is_file() {
        return named(path);
    }
    if path.join(peft::CONFIG).exists() {
        return Err(Error::input(format!(
            "{} is an adapter without a state to continue ({} is missing)",
            path.display(),
            hf_trainer::STATE
        ))
        .hint(format!("--init-adapter {} starts at step 0 from its weights", path.display())));
    }
    if !path.join("checkpoints").is_dir() {
        return Err(Error::input(format!(
            "--resume-from-checkpoint {}: neither a checkpoint file nor a run folder",
            path.display()
        ))
        .hint("give a .qckpt file, the folder of a run, or `auto` for the output folder's own"));
    }
    let files: Vec<PathBuf> = inspect::list(path)?.into_iter().map(|l| l.path).collect();
    for file in &files {
        match inspect::load(file) {
            Ok(state) => return Ok(Start { origin: file.display().to_string(), state: Some(state) }),
            Err(e) => observer.on_event(&Event::Warning(e.what)),
        }
    }
    Err(Error::input(format!("no usable checkpoint among the {} in {}", files.len(), path.display())))
}

/// Compares what decided the checkpoint's result with what is here now. Returns whether the run is inexact
/// from now on.
///
/// # Errors
/// [`crate::error::Kind::Refused`] listing every field, old and new.
pub fn compare(old: &Identity, now: &Identity, s: &Settings) -> Result<bool> {
    let differences = old.differences(now);
    let forgivable = |d: &Difference| d.field.starts_with("engine.");
    if differences.is_empty() || (s.allow_inexact && differences.iter().all(forgivable)) {
        return Ok(!differences.is_empty());
    }
    let shown = |v: &Option<String>| v.clone().unwrap_or_else(|| "absent".into());
    let list: Vec<String> =
        differences.iter().map(|d| format!("{} {} -> {}", d.field, shown(&d.old), shown(&d.new))).collect();
    let remedy = if differences.iter().all(forgivable) {
        "--allow-inexact continues all the same, and the run is marked inexact for ever"
    } else {
        "give the run its own settings and files back (`qwentune resume RUN` does), or start a new run with --init-adapter"
    };
    Err(Error::refused(format!("the checkpoint does not belong to this run: {}", list.join("; ")))
        .hint(remedy))
}
