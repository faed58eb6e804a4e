//! The decision: one value, made from what was asked and what is there, which everything after reads.

use super::World;
use super::locate::{FoundRun, FoundState, Located, Look, is_inside, weights_in};
use super::policy::{self, As};
use super::request::{Asked, Beginning, value};
use crate::checkpoint::storage::{self, Disk};
use crate::config::fields::{self, Class, FIELDS};
use crate::config::{self, Layer, Settings};
use crate::error::{Error, Result};
use crate::train::exchange::{self, Foreign};
use crate::train::folder::{RunFolder, checkpoints};
use crate::train::run_file::{self, Origin, RunFile};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// How a run starts. Nobody asks the disk again.
pub struct Start {
    pub(super) asked: Asked,
    /// The settings, their paths as they lead from here.
    pub settings: Settings,
    /// The settings as `run.json` keeps them.
    pub(super) recorded: Settings,
    /// What relative paths of those refer to.
    pub(super) working_directory: PathBuf,
    pub(super) from: From,
    /// Where the state comes from when it is another run's, for `run.json`.
    pub(super) origin: Option<Origin>,
    /// An earlier run's files in the output folder are moved aside.
    pub(super) moves_aside: bool,
    /// Damaged checkpoints of the output folder, name and reason: they are set aside.
    pub(super) damaged: Vec<(String, String)>,
    /// For the first lines.
    pub(super) notes: Vec<String>,
    /// What the output folder held when this was decided.
    pub(super) seen: Seen,
}

/// What a run begins with.
pub(super) enum From {
    /// Step 0. Why, where a state was hoped for; the output folder's own run, when that is begun again.
    Beginning { why: String, run: Option<Box<RunFile>> },
    /// A complete state.
    State {
        /// The state.
        found: Box<FoundState>,
        /// The run it goes on as, or leaves as a branch; `None` for a checkpoint that lies in no run folder.
        run: Option<Box<RunFile>>,
        /// Whether that run is the output folder's own.
        here: bool,
        /// Whether it goes on as that run.
        how: As,
    },
}

/// What decides whether an output folder is still as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    run: Option<blake3::Hash>,
    checkpoints: Vec<String>,
}

/// A decision, or what has to be done before one can be made.
pub(super) enum Decision {
    Start(Box<Start>),
    /// The checkpoint of Hugging Face's Trainer becomes a run first.
    Import(Asked, PathBuf),
}

impl Seen {
    /// What the folder at `path` holds now.
    pub fn now(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let reading = |e| Error::reading(path, e);
        let mut seen = Seen { run: None, checkpoints: Vec::new() };
        let tree = match disk.open(path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(seen),
            opened => opened.map_err(reading)?,
        };
        let bytes = storage::read_file(&*tree, run_file::NAME, run_file::MAX_BYTES).map_err(reading)?;
        seen.run = bytes.map(|bytes| blake3::hash(&bytes));
        seen.checkpoints = checkpoints(&*tree).map_err(reading)?;
        Ok(seen)
    }

    fn is_empty(&self) -> bool {
        self.run.is_none() && self.checkpoints.is_empty()
    }
}

/// Decides how the run that was asked for starts. Only looks, but for ending a moving aside that was interrupted.
///
/// # Errors
/// Each of [`crate::error::Kind`] that a wrong request, setting, state or folder has.
pub(super) fn decide(world: &World<'_>, asked: Asked) -> Result<Decision> {
    let disk = world.disk;
    if asked.output.as_os_str().is_empty() {
        // What else is missing or wrong is told first: model, data, settings.
        settled(disk, asked)?;
        return Err(Error::usage("the output folder is missing").hint("give it: --output-dir DIR"));
    }
    let ended = RunFolder::end_interrupted_move(disk, &asked.output)?;
    let seen = Seen::now(disk, &asked.output)?;
    let located = Look { disk, asked: &asked, fault: world.fault }.find()?;
    let found = match located {
        Located::Trainer(path) => return Ok(Decision::Import(asked, path)),
        Located::Nothing { why } => Err(why),
        Located::Run(found) => Ok(found),
    };
    if asked.fresh_optimizer {
        return Err(Error::usage("--fresh-optimizer is for a Hugging Face checkpoint without moments")
            .hint("give its folder with --resume-from-checkpoint, or start at step 0 from its weights with --init-adapter"));
    }
    let here = found.as_ref().is_ok_and(|found| found.here);
    let mut notes: Vec<String> = ended.iter().map(|target| moved(target)).collect();
    let moves_aside = place(disk, &asked, &seen, here, &mut notes)?;
    let mut start = match found {
        Ok(found) => going_on(disk, asked, *found, seen)?,
        Err(why) => beginning(disk, asked, why, seen)?,
    };
    start.moves_aside = moves_aside;
    start.notes.splice(0..0, notes);
    Ok(Decision::Start(Box::new(start)))
}

/// The line on files that were moved aside.
pub(super) fn moved(target: &Path) -> String {
    format!("the earlier run's files were moved to {}", target.display())
}

/// Whether an earlier run in the output folder is moved aside.
fn place(disk: &dyn Disk, asked: &Asked, seen: &Seen, here: bool, notes: &mut Vec<String>) -> Result<bool> {
    let out = asked.output.display();
    let branch = matches!(asked.beginning, Beginning::Branch(_));
    if here {
        if asked.overwrite {
            notes.push(format!("--overwrite-output-dir has no effect: the run in {out} is continued"));
        }
        return Ok(false);
    }
    if seen.is_empty() {
        return Ok(false);
    }
    let program = asked.program();
    if !asked.overwrite {
        let (what, hint) = if seen.run.is_none() {
            (
                format!("{out} holds checkpoints of a run that has no run.json here"),
                "choose a new --output-dir; --overwrite-output-dir moves them aside, --resume-from-checkpoint FILE --output-dir NEW continues one".to_owned(),
            )
        } else if asked.beginning == Beginning::New {
            (
                format!("{out} already holds a run"),
                format!(
                    "continue it: {program} resume {out}   start another: choose a new --output-dir, or --overwrite-output-dir to move the old run's files aside"
                ),
            )
        } else {
            let another = if branch {
                "a branch is a run of its own"
            } else {
                "the state that was named is of another"
            };
            (
                format!("{out} already holds a run, {another}"),
                format!(
                    "continue the one that is here: {program} resume {out}   or choose a new --output-dir"
                ),
            )
        };
        return Err(Error::output(what).hint(hint));
    }
    let adapter: Option<PathBuf> = value::<Option<PathBuf>>(&asked.given, "init_adapter")?.flatten();
    match adapter {
        Some(adapter) if is_inside(disk, &adapter, &asked.output) => Err(Error::usage(format!(
            "--init-adapter {} lies in the run that --overwrite-output-dir would move aside",
            adapter.display()
        ))
        .hint(format!("choose a new --output-dir, or continue the run: {program} resume {out}"))),
        _ => Ok(true),
    }
}

/// A run at step 0.
fn beginning(disk: &dyn Disk, mut asked: Asked, why: String, seen: Seen) -> Result<Start> {
    if let Some(folder) = value::<Option<PathBuf>>(&asked.given, "init_adapter")?.flatten()
        && !folder.display().to_string().contains(',')
    {
        super::request::set(&mut asked.given, "init_adapter", &weights_in(disk, &folder)?);
    }
    let settings = resolve(&asked, &asked.given)?;
    if let Some(adapter) = &settings.init_adapter {
        adapter_folder(disk, adapter)?;
    }
    Ok(Start {
        recorded: settings.clone(),
        settings,
        working_directory: here()?,
        from: From::Beginning { why, run: None },
        origin: None,
        moves_aside: false,
        damaged: Vec::new(),
        notes: Vec::new(),
        seen,
        asked,
    })
}

/// A run that goes on, as itself or as a branch.
fn going_on(disk: &dyn Disk, asked: Asked, found: FoundRun, seen: Seen) -> Result<Start> {
    let FoundRun { run, here: own, state, damaged, notes } = found;
    let how = if matches!(asked.beginning, Beginning::Branch(_)) && !own { As::Branch } else { As::Itself };
    let mut given = asked.given.clone();
    // How a run began is no way to begin that is asked for now.
    given.forget("init_adapter");
    if run.as_ref().is_some_and(|(_, run)| run.settings.init_adapter.is_some()) {
        // What that adapter was decides these, whatever a command line says beside it.
        FIELDS.iter().filter(|f| f.class == Class::Refused).for_each(|field| given.forget(field.key));
    }
    if given.has("num_train_epochs") && !given.has("max_steps") {
        let field = fields::find("max_steps").filter(|_| run.is_some());
        field.into_iter().for_each(|field| given.set(field, serde_json::Value::Null));
    }
    let mut changed = BTreeMap::new();
    let working_directory = here()?;
    let (settings, recorded, directory) = match &run {
        None => {
            let settings = resolve(&asked, &given)?;
            (settings.clone(), settings, working_directory)
        }
        Some((_, run)) => {
            // What its base was folded from, the run knows itself.
            if given.get("fold_adapters").and_then(|v| v.as_array()).is_some_and(Vec::is_empty) {
                given.forget("fold_adapters");
            }
            let mut layer = run.settings_from_here(disk)?;
            layer.cover(&given);
            changed = policy::changes(&run.settings, &config::read::fill(&layer)?, how)?;
            let settings = resolve(&asked, &layer)?;
            let mut layer = Layer::from_settings(&run.settings);
            if run.working_directory != working_directory {
                given.map_paths(|path| std::path::absolute(path).map_err(|e| Error::reading(path, e)))?;
            }
            layer.cover(&given);
            (settings, config::read::fill(&layer)?, run.working_directory.clone())
        }
    };
    let run_file = run.map(|(_, run)| Box::new(run));
    // A branch that has saved nothing yet is one wherever it goes on.
    let how = match state.as_ref().and_then(|found| found.origin.as_ref()) {
        Some(origin) if origin.branch => As::Branch,
        _ => how,
    };
    let own_origin = run_file.as_ref().filter(|_| own).and_then(|run| run.origin.clone());
    let origin = match &state {
        _ if own => own_origin,
        Some(found) => Some(origin(found, how, changed)?),
        None => None,
    };
    let from = match state {
        Some(found) => From::State { found: Box::new(found), run: run_file, here: own, how },
        None => From::Beginning { why: "it had saved nothing yet".into(), run: run_file },
    };
    Ok(Start {
        settings,
        recorded,
        working_directory: directory,
        from,
        origin,
        moves_aside: false,
        damaged: if own { damaged } else { Vec::new() },
        notes,
        seen,
        asked,
    })
}

fn origin(found: &FoundState, how: As, changed: BTreeMap<String, [String; 2]>) -> Result<Origin> {
    let decides =
        |key: &String| fields::find(key).is_some_and(|f| !matches!(f.class, Class::Free | Class::Start));
    let branch = how == As::Branch;
    Ok(Origin {
        branch,
        checkpoint: std::path::absolute(&found.path).map_err(|e| Error::reading(&found.path, e))?,
        step: found.state.step,
        digest: blake3::Hash::from_bytes(found.digest).to_hex().to_string(),
        changed: changed.into_iter().filter(|(key, _)| branch && decides(key)).collect(),
    })
}

/// The settings, checked as far as they can be before model and data are read.
fn resolve(asked: &Asked, layer: &Layer) -> Result<Settings> {
    if asked.rows.is_some() {
        let settings = config::read::fill(layer)?;
        config::check_values(&settings)?;
        return Ok(settings);
    }
    let mut settings = config::resolve(layer)?;
    config::check_inputs(&mut settings, !asked.output.as_os_str().is_empty())?;
    Ok(settings)
}

/// Checks that the folder of an adapter is there.
pub(super) fn adapter_folder(disk: &dyn Disk, adapter: &Path) -> Result<()> {
    match disk.entry(adapter).map_err(|e| Error::reading(adapter, e))? {
        Some(_) => Ok(()),
        None => Err(Error::input(format!("{}: no such adapter folder", adapter.display()))),
    }
}

fn here() -> Result<PathBuf> {
    std::env::current_dir().map_err(|e| Error::reading(Path::new("."), e))
}

/// The settings a run that was asked for would have; only looks.
pub(super) fn settled(disk: &dyn Disk, asked: Asked) -> Result<Settings> {
    let seen = Seen { run: None, checkpoints: Vec::new() };
    match (Look { disk, asked: &asked, fault: None }).find()? {
        Located::Trainer(path) => exchange::settings(&asked, &Foreign::read(&path, asked.fresh_optimizer)?),
        Located::Nothing { why } => Ok(beginning(disk, asked, why, seen)?.settings),
        Located::Run(found) => Ok(going_on(disk, asked, *found, seen)?.settings),
    }
}
