//! Where a state is. Only looks: nothing is opened for writing, locked or renamed, and a failure to look is never taken
//! for an absence.

use super::Fault;
use super::request::{Asked, Beginning, Source, value};
use crate::checkpoint::format::{Digest, Reading, read};
use crate::checkpoint::inspect;
use crate::checkpoint::shelf::Shelf;
use crate::checkpoint::state::State;
use crate::checkpoint::storage::{Disk, Entry};
use crate::checkpoint::store;
use crate::error::{Error, Result};
use crate::formats::hf_trainer;
use crate::train::folder::checkpoints_in;
use crate::train::run_file::{Origin, RunFile};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What there is to begin with.
pub(super) enum Located {
    /// No state. Why, where one was hoped for.
    Nothing { why: String },
    /// A run, or a checkpoint without one.
    Run(Box<FoundRun>),
    /// A checkpoint of Hugging Face's Trainer.
    Trainer(PathBuf),
}

/// A run that can go on.
pub(super) struct FoundRun {
    /// Its folder and `run.json`; `None` for a checkpoint that lies in no run folder.
    pub run: Option<(PathBuf, RunFile)>,
    /// Whether it is the output folder's own.
    pub here: bool,
    /// `None` when it was ended before its first save.
    pub state: Option<FoundState>,
    /// Damaged newer checkpoints, name and reason.
    pub damaged: Vec<(String, String)>,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// A state, read whole.
pub(super) struct FoundState {
    pub path: PathBuf,
    pub digest: Digest,
    pub state: State,
    /// It is that of another run, with which this one began and beyond which it has not saved.
    pub origin: Option<Origin>,
}

/// Looks on a disk, for one request.
pub(super) struct Look<'a> {
    pub disk: &'a dyn Disk,
    pub asked: &'a Asked,
    pub fault: Option<Fault>,
}

impl Look<'_> {
    /// Finds what was asked for.
    ///
    /// # Errors
    /// Damaged or missing states that were asked for by name; no whole one among several; a run whose state is gone.
    pub fn find(&self) -> Result<Located> {
        match &self.asked.beginning {
            Beginning::New => Ok(Located::Nothing { why: String::new() }),
            Beginning::Continue(Source::Auto) => self.auto(),
            Beginning::Continue(Source::Run) => self.run_to_resume(),
            Beginning::Continue(Source::Step(step)) => {
                let run = RunFile::read(self.disk, &self.asked.output)?;
                let path = inspect::path_of_step(&self.asked.output, *step);
                self.checkpoint(&path, Some((self.asked.output.clone(), run)), true)
            }
            Beginning::Continue(Source::Path(path)) => self.path(path),
            Beginning::Branch(Source::Path(path)) => match self.path(path)? {
                Located::Trainer(path) => Err(Error::usage(format!(
                    "--branch goes on from a run of this program, {} is a checkpoint of Hugging Face's Trainer",
                    path.display()
                ))
                .hint("import it first: qwentune import CHECKPOINT OUT")),
                found => Ok(found),
            },
            Beginning::Branch(_) => Err(Error::usage("--branch needs the run it begins with")),
        }
    }

    /// The output folder's own run; without one, the complete state in the folder given beside it with
    /// `--init-adapter` (`--checkpoint-dir`), or what another trainer left in the output folder.
    fn auto(&self) -> Result<Located> {
        let out = &self.asked.output;
        if let Some(run) = RunFile::find(self.disk, out)? {
            let mut found = self.newest(out, Some(run), true)?;
            if let Some(given) = self.init_adapter()? {
                found.notes.push(format!(
                    "the run in {} is continued; --init-adapter (--checkpoint-dir) {} has no part in it",
                    out.display(),
                    given.display()
                ));
            }
            return Ok(Located::Run(Box::new(found)));
        }
        if let Some(folder) = self.init_adapter()? {
            let Some(state) = complete_state(self.disk, &folder)? else {
                let what = format!(
                    "{}: weights only, no optimizer, schedule and step: nothing to resume from",
                    folder.display()
                );
                return Err(Error::input(what).hint(
                    "leave --resume-from-checkpoint out to begin at step 0 with these weights, or name the folder of a complete state",
                ));
            };
            let note = format!(
                "--resume-from-checkpoint auto beside --init-adapter (--checkpoint-dir) {}: the complete state in {} is continued",
                folder.display(),
                state.display()
            );
            return Ok(self.path(&state)?.noted(note));
        }
        match newest_of_trainer(self.disk, out)? {
            Some(path) => Ok(Located::Trainer(path)),
            None => {
                Ok(Located::Nothing { why: format!("nothing to resume: no checkpoint in {}", out.display()) })
            }
        }
    }

    fn init_adapter(&self) -> Result<Option<PathBuf>> {
        Ok(value::<Option<PathBuf>>(&self.asked.given, "init_adapter")?.flatten())
    }

    fn run_to_resume(&self) -> Result<Located> {
        let folder = &self.asked.output;
        let run = RunFile::read(self.disk, folder)?;
        Ok(Located::Run(Box::new(self.newest(folder, Some(run), true)?)))
    }

    /// A checkpoint file, a run folder, or a checkpoint of Trainer.
    fn path(&self, path: &Path) -> Result<Located> {
        if is_trainer_checkpoint(self.disk, path)? {
            return Ok(Located::Trainer(path.to_owned()));
        }
        let entry = self.disk.entry(path).map_err(|e| Error::reading(path, e))?;
        let out = &self.asked.output;
        if entry == Some(Entry::File) {
            let run = self.run_around(path)?;
            let here = run.as_ref().is_some_and(|(folder, _)| same(self.disk, folder, out));
            return self.checkpoint(path, run, here);
        }
        // The folder of the checkpoints stands for the run around it.
        let path = match path.file_name() {
            Some(name) if name == store::FOLDER => path.parent().unwrap_or(path),
            _ => path,
        };
        let here = same(self.disk, path, out);
        if here {
            return self.auto();
        }
        let run = RunFile::find(self.disk, path)?;
        if run.is_none() && checkpoints_in(self.disk, path)?.is_empty() {
            return Err(self.no_state(path)?);
        }
        if let Some(own) = self.begun_from(path)? {
            return Ok(own);
        }
        let mut found = self.newest(path, run, here)?;
        if found.state.is_none() {
            return Err(Error::input(format!("no checkpoint in {}: nothing to continue", path.display())));
        }
        found.damaged.clear();
        Ok(Located::Run(Box::new(found)))
    }

    /// The output folder's own run, when it is the one that began with the state of the run in `path`, be it one that
    /// run began with itself: the same command again.
    fn begun_from(&self, path: &Path) -> Result<Option<Located>> {
        let out = &self.asked.output;
        let Some(run) = RunFile::find(self.disk, out)? else { return Ok(None) };
        let branch = matches!(self.asked.beginning, Beginning::Branch(_));
        let theirs = RunFile::find(self.disk, path)?.and_then(|run| run.origin);
        let from_there = |origin: &Origin| {
            let around = origin.checkpoint.parent().and_then(Path::parent);
            let as_theirs = theirs.as_ref().is_some_and(|theirs| {
                theirs.digest == origin.digest && origin.branch == (branch || theirs.branch)
            });
            let in_it = around.is_some_and(|run| same(self.disk, run, path));
            as_theirs || origin.branch == branch && in_it
        };
        if self.asked.overwrite || !run.origin.as_ref().is_some_and(from_there) {
            return Ok(None);
        }
        let mut found = self.newest(out, Some(run), true)?;
        found.notes.push(format!("the run in {} began with that state already: it goes on", out.display()));
        Ok(Some(Located::Run(Box::new(found))))
    }

    fn no_state(&self, path: &Path) -> Result<Error> {
        let config = path.join("adapter_config.json");
        let adapter = self.disk.entry(&config).map_err(|e| Error::reading(&config, e))?.is_some();
        if adapter {
            return Ok(Error::input(format!(
                "{} is an adapter without a state to continue ({} is missing)",
                path.display(),
                hf_trainer::STATE
            ))
            .hint(format!("--init-adapter {} starts at step 0 from its weights", path.display())));
        }
        Ok(Error::input(format!(
            "--resume-from-checkpoint {}: neither a checkpoint file nor a run folder",
            path.display()
        ))
        .hint("give a .qckpt file, the folder of a run, or `auto` for the output folder's own"))
    }

    /// The run folder that a checkpoint file lies in.
    fn run_around(&self, file: &Path) -> Result<Option<(PathBuf, RunFile)>> {
        let absolute = std::path::absolute(file).map_err(|e| Error::reading(file, e))?;
        let Some(folder) = absolute.parent().and_then(Path::parent) else { return Ok(None) };
        Ok(RunFile::find(self.disk, folder)?.map(|run| (folder.to_owned(), run)))
    }

    /// A checkpoint that was named: no other is tried.
    fn checkpoint(&self, path: &Path, run: Option<(PathBuf, RunFile)>, here: bool) -> Result<Located> {
        let file = self.disk.open_file(path).map_err(|e| Error::reading(path, e))?;
        let (header, state) = read(&*file, Reading::Load).map_err(|fault| fault.at(path))?;
        let state = FoundState { path: path.to_owned(), digest: header.digest, state, origin: None };
        let found = FoundRun { run, here, state: Some(state), damaged: Vec::new(), notes: Vec::new() };
        Ok(Located::Run(Box::new(found)))
    }

    /// The newest whole checkpoint of a run folder; of a run that has none yet, the state it began with.
    fn newest(&self, folder: &Path, run: Option<RunFile>, here: bool) -> Result<FoundRun> {
        let reading = |e: std::io::Error| Error::reading(folder, e);
        let tree = self.disk.open(folder).map_err(reading)?;
        let mut found = FoundRun { run: None, here, state: None, damaged: Vec::new(), notes: Vec::new() };
        if tree.entry(store::FOLDER).map_err(reading)? == Some(Entry::Folder) {
            let mut shelf = Shelf::new(tree.subfolder(store::FOLDER).map_err(reading)?, 0);
            let seen = shelf.look()?;
            found.damaged = seen.damaged;
            found.notes = shelf.take_warnings();
            let digest = seen.digest;
            found.state = seen.newest.map(|(path, state)| FoundState { path, digest, state, origin: None });
        }
        if found.state.is_none()
            && let Some(origin) = run.as_ref().and_then(|run| run.origin.clone())
        {
            found.state = match self.origin(folder, origin) {
                Err(_) if self.fault == Some(Fault::BeginsAnew) => None,
                found => Some(found?),
            };
        }
        if found.state.is_none()
            && let Some(ancestor) = run.as_ref().and_then(|run| run.history.lineage.last())
        {
            return Err(Error::refused(format!(
                "{} began with a state of step {}, and all its checkpoints are gone",
                folder.display(),
                ancestor.step
            ))
            .hint("put a checkpoint back, or begin again in a new --output-dir"));
        }
        found.run = run.map(|run| (folder.to_owned(), run));
        Ok(found)
    }

    /// The very state that a run began with: by its digest, whatever its name is now, and no other.
    fn origin(&self, run: &Path, origin: Origin) -> Result<FoundState> {
        let gone = || {
            Error::refused(format!(
                "{} began with step {} of {}, which is not there any more, and has no checkpoint of its own yet",
                run.display(),
                origin.step,
                origin.checkpoint.display()
            ))
            .hint("put that checkpoint back, or begin again with another state in a new --output-dir")
        };
        let folder = origin.checkpoint.parent().unwrap_or(Path::new("."));
        let opened = match self.disk.open(folder) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(gone());
            }
            other => other.map_err(|e| Error::reading(folder, e))?,
        };
        let hex = |digest: &Digest| blake3::Hash::from_bytes(*digest).to_hex().to_string();
        let mut shelf = Shelf::new(opened, 0);
        let (path, digest, state) = shelf.find(|digest| hex(digest) == origin.digest)?.ok_or_else(gone)?;
        Ok(FoundState { path, digest, state, origin: Some(origin) })
    }
}

impl Located {
    fn noted(mut self, note: String) -> Self {
        if let Located::Run(found) = &mut self {
            found.notes.push(note);
        }
        self
    }
}

/// Whether two paths lead to one place.
pub(super) fn same(disk: &dyn Disk, a: &Path, b: &Path) -> bool {
    match (disk.canonical(a), disk.canonical(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// Whether `path` is the folder or lies below it.
pub(super) fn is_inside(disk: &dyn Disk, path: &Path, folder: &Path) -> bool {
    match (disk.canonical(path), disk.canonical(folder)) {
        (Ok(path), Ok(folder)) => path.starts_with(folder),
        _ => path.starts_with(folder),
    }
}

/// Whether a folder is a checkpoint of Trainer.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_trainer_checkpoint(disk: &dyn Disk, folder: &Path) -> Result<bool> {
    let state = folder.join(hf_trainer::STATE);
    let entry = disk.entry(&state).map_err(|e| Error::reading(&state, e))?;
    Ok(entry == Some(Entry::File))
}

/// The newest `checkpoint-N` of Trainer in a folder.
fn newest_of_trainer(disk: &dyn Disk, folder: &Path) -> Result<Option<PathBuf>> {
    let names = match disk.open(folder) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        opened => opened.and_then(|tree| tree.list()).map_err(|e| Error::reading(folder, e))?,
    };
    let mut steps: Vec<u64> =
        names.iter().filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect();
    steps.sort_unstable();
    for step in steps.into_iter().rev() {
        let path = folder.join(format!("checkpoint-{step}"));
        if is_trainer_checkpoint(disk, &path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Where the complete state is of which `folder` holds the weights: a run of ours around it, or a checkpoint of Hugging
/// Face's Trainer in it.
///
/// # Errors
/// When it cannot be looked at.
pub fn complete_state(disk: &dyn Disk, folder: &Path) -> Result<Option<PathBuf>> {
    let look = |path: &Path| disk.entry(path).map_err(|e| Error::reading(path, e));
    let is_run = |path: &Path| -> Result<bool> {
        let (run, checkpoints) = (look(&path.join("run.json"))?, look(&path.join(store::FOLDER))?);
        Ok(run == Some(Entry::File) && checkpoints == Some(Entry::Folder))
    };
    if is_run(folder)? || is_trainer_checkpoint(disk, folder)? {
        return Ok(Some(folder.to_owned()));
    }
    if let Some(newest) = newest_of_trainer(disk, folder)? {
        return Ok(Some(newest));
    }
    match folder.parent() {
        Some(run) if is_run(run)? => Ok(Some(run.to_owned())),
        _ => Ok(None),
    }
}

/// The adapter that a folder given as one stands for: itself, or the final adapter of a run of ours.
///
/// # Errors
/// Input: a run that has none yet.
pub fn weights_in(disk: &dyn Disk, folder: &Path) -> Result<PathBuf> {
    super::decide::adapter_folder(disk, folder)?;
    let look = |path: &Path| disk.entry(path).map_err(|e| Error::reading(path, e));
    let holds_adapter = |path: &Path| Ok::<_, Error>(look(&path.join("adapter_config.json"))?.is_some());
    if holds_adapter(folder)? || look(&folder.join("run.json"))?.is_none() {
        return Ok(folder.to_owned());
    }
    let adapter = folder.join("adapter");
    if holds_adapter(&adapter)? {
        return Ok(adapter);
    }
    let shown = folder.display();
    Err(Error::input(format!("{shown}: this run has no adapter yet to begin with"))
        .hint(format!("continue it: qwentune resume {shown}")))
}
