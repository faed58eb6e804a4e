//! Carrying the decision out: the lock, model and data, then the folder, then the first lines.

use super::carry::{Carried, best_of};
use super::commands::Commands;
use super::decide::{From, Seen, Start, moved};
use super::history::{self, Course};
use super::locate::complete_state;
use super::policy::{self, As, Continuation};
use super::request::Asked;
use super::{Fault, World};
use crate::checkpoint::state::{Ancestor, Descent, History, PlanOrigin, State};
use crate::checkpoint::storage::Disk;
use crate::checkpoint::store::Store;
use crate::config::fields::FIELDS;
use crate::config::{self, Layer, ReportTo, Settings, Strategy};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::report::event::{Event, Observer};
use crate::train::event_file::EventFile;
use crate::train::folder::RunFolder;
use crate::train::metrics::{Metrics, Proof};
use crate::train::run::{Begun, Run};
use crate::train::run_file::{self, RunFile};
use crate::train::saver::Saver;
use crate::train::trainer::Trainer;
use crate::train::{Control, Summary};

/// What became of a decision.
pub(super) enum Outcome {
    /// It was carried out, and this is how the run ended.
    Ended(Summary),
    /// The folder changed before it was locked: another decision is needed.
    Changed(Asked),
}

/// What going on is, once model and data are known.
struct Plan {
    course: Course,
    continuation: Continuation,
    tainted: bool,
}

/// Locks the folder, reads model and data, brings the folder into the state that was decided, and runs.
///
/// # Errors
/// Each of [`crate::error::Kind`].
pub(super) fn begin(
    world: &World<'_>,
    mut start: Start,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    world.prepare.check(&start.settings)?;
    let folder = RunFolder::lock(world.disk, &start.asked.output)?;
    if Seen::now(world.disk, &start.asked.output)? != start.seen {
        return Ok(Outcome::Changed(start.asked));
    }
    // They are kept encoded from here on; that there were any is remembered.
    start.origin = start.origin.filter(|_| world.fault != Some(Fault::NoOrigin));
    let rows = start.asked.rows.as_mut().map(std::mem::take);
    let plan_origin = |identity: &Identity| start.from.plan_origin(identity);
    let state = start.from.state();
    let prepared = world.prepare.prepare(&start.settings, rows, state, &plan_origin, observer)?;
    let settings = prepared.settings().clone();
    let (mut identity, total) = (prepared.identity().clone(), prepared.total_steps());
    let plan = start.from.plan(&settings, &identity, total, start.asked.allow_inexact, world.fault)?;
    let checkpoint = prepared.checkpoint_bytes();
    let (mut trainer, base) = prepared.trainer(plan.course.history.clone(), observer)?;
    start.from.inherit(&mut identity);
    let carried = match world.fault {
        Some(Fault::LeavesBest) => Carried::Nothing,
        _ => start.carry(world.disk, &settings, &mut trainer, &identity, &plan)?,
    };
    let commands = start.commands(world.disk, &settings)?;
    let proof = match world.fault {
        Some(Fault::ComparesAll) => Proof::Repeats,
        _ => start.proof(&plan, &identity),
    };
    let (saved, found) = (start.from.saved_here(), start.from.found());
    start.from.restore(&mut trainer, &identity)?;
    trainer.state_mut().identity.clone_from(&identity);
    trainer.state_mut().tainted = plan.tainted;

    // From here on the folder is written.
    let mut store = start.clear(&folder, settings.save_total_limit, world.fault)?;
    let mut warnings = store.set_aside_damaged(&start.damaged)?;
    warnings.extend(store.space_warning(checkpoint));
    if proof == Proof::SetAside && trainer.step() > 0 {
        warnings.extend(store.set_aside_newer(trainer.step())?);
    }
    warnings.extend(store.take_warnings());
    warnings.into_iter().for_each(|text| observer.on_event(&Event::Warning(text)));
    let (metrics, set_aside) = Metrics::open(&folder, &trainer.state().log, proof)?;
    start.notes.extend(set_aside);
    let events = match settings.report_to {
        ReportTo::Tensorboard => Some(EventFile::open(&folder, metrics.lines())?),
        ReportTo::None => None,
    };
    carried.write(&folder, &mut start.notes)?;
    folder.write_run_file(&start.run_file(&settings, &identity, &plan)?)?;
    start.introduce(world.disk, &trainer, &found, &plan, observer)?;
    let saver = Saver::new(store, saved)?;
    let inexact = matches!(plan.continuation, Continuation::Inexact(_));
    let first_step = trainer.step();
    let begun =
        Begun { settings, folder, saver, trainer, inexact, metrics, events, first_step, base, commands };
    Run::new(begun, control, observer).train().map(Outcome::Ended)
}

impl From {
    fn state(&self) -> Option<&State> {
        match self {
            From::Beginning { .. } => None,
            From::State { found, .. } => Some(&found.state),
        }
    }

    /// The newest step that is saved in the output folder.
    fn saved_here(&self) -> Option<u64> {
        match self {
            From::State { found, here: true, .. } if found.origin.is_none() => Some(found.state.step),
            _ => None,
        }
    }

    /// The output folder's own run.
    fn own_run(&self) -> Option<&RunFile> {
        match self {
            From::Beginning { run, .. } | From::State { run, here: true, .. } => run.as_deref(),
            From::State { .. } => None,
        }
    }

    /// Where the plan of the data begins: a branch with other data or batches begins a new epoch where it left its
    /// parent.
    fn plan_origin(&self, now: &Identity) -> PlanOrigin {
        let From::State { found, run, here, how } = self else { return PlanOrigin::default() };
        let state = &found.state;
        match (how, run) {
            (As::Branch, Some(run)) if *here => run.history.plan,
            (As::Branch, _) if !same_plan(&state.identity, now) => {
                let plan = state.history.plan;
                let rows = state.identity.data.train.rows.max(1);
                let epochs = (state.cursor.samples - plan.samples.min(state.cursor.samples)).div_ceil(rows);
                PlanOrigin { step: state.step, epoch: plan.epoch + epochs, samples: state.cursor.samples }
            }
            _ => state.history.plan,
        }
    }

    /// What going on with the state is, under settings by which the run has `total` steps.
    fn plan(
        &self,
        settings: &Settings,
        now: &Identity,
        total: u64,
        allow_inexact: bool,
        fault: Option<Fault>,
    ) -> Result<Plan> {
        let (found, run, here, how) = match self {
            From::Beginning { run, .. } => {
                let known = run.as_ref().map(|run| &run.history);
                let course = history::begin(known, settings, total, fault)?;
                return Ok(Plan { course, continuation: Continuation::Exact, tainted: false });
            }
            From::State { found, run, here, how } => (found, run, here, how),
        };
        let state = &found.state;
        let inexact = policy::compare(&state.identity, now, *how, allow_inexact)?;
        let known = match (how, run) {
            (As::Branch, Some(run)) if *here => run.history.clone(),
            (As::Branch, _) => self.branch(settings, now, total)?,
            (As::Itself, Some(run)) if fault != Some(Fault::ForgetsLengths) => run.history.clone(),
            (As::Itself, _) => state.history.clone(),
        };
        let own = if *how == As::Branch { known.before(state.step) } else { state.history.clone() };
        let course = history::go_on(&known, &own, state.step, settings, total, fault)?;
        let tainted = state.tainted || !inexact.is_empty();
        let continuation = if !inexact.is_empty() {
            Continuation::Inexact(inexact)
        } else if *how == As::Branch {
            Continuation::Branch
        } else if course.news.is_empty() {
            Continuation::Exact
        } else {
            Continuation::Extended
        };
        Ok(Plan { course, continuation, tainted })
    }

    /// The history of a branch: its schedule is its own over its whole length.
    fn branch(&self, settings: &Settings, now: &Identity, total: u64) -> Result<History> {
        let From::State { found, .. } = self else { return Ok(history::new(settings, total)) };
        let state = &found.state;
        if total <= state.step {
            return Err(Error::refused(format!(
                "the branch begins at step {}, and by its settings ends at step {total}",
                state.step
            ))
            .hint(
                "give it a length: --max-steps N or --num-train-epochs X, counted from the parent's step 0",
            ));
        }
        let mut history = history::branch(&state.history, state.step, settings, total);
        history.plan = self.plan_origin(now);
        history.lineage.push(Ancestor {
            descent: Descent::Branch,
            step: state.step,
            digest: blake3::Hash::from_bytes(found.digest).to_hex().to_string(),
        });
        Ok(history)
    }

    /// A branch began where its parent did, whatever its own seed would have given.
    fn inherit(&self, identity: &mut Identity) {
        if let From::State { found, how: As::Branch, .. } = self {
            identity.adapter.initial.clone_from(&found.state.identity.adapter.initial);
        }
    }

    /// Where it was found, or why nothing was.
    fn found(&self) -> String {
        match self {
            From::Beginning { why, .. } => why.clone(),
            From::State { found, .. } => found.path.display().to_string(),
        }
    }

    /// Puts the state into the trainer.
    fn restore(&mut self, trainer: &mut Trainer, identity: &Identity) -> Result<()> {
        let From::State { found, how, .. } = self else { return Ok(()) };
        let mut state = std::mem::take(&mut found.state);
        if *how == As::Branch && state.identity.data.eval != identity.data.eval {
            // Losses on other rows are no measure for those to come.
            state.cursor.best = None;
            state.cursor.stale_evaluations = 0;
        }
        trainer.restore(state)
    }
}

/// Whether two runs put the same rows into the same steps.
fn same_plan(a: &Identity, b: &Identity) -> bool {
    let batches = [
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "packing",
        "tokens_per_micro_batch",
        "shuffle",
        "seed",
    ];
    let rows = |identity: &Identity| (identity.data.train.digest.clone(), identity.data.train.rows);
    rows(a) == rows(b) && batches.iter().all(|key| a.settings.get(*key) == b.settings.get(*key))
}

impl Start {
    /// Moves an earlier run aside, where that was decided, before anything in the folder is open; then opens the
    /// checkpoints.
    fn clear(&mut self, folder: &RunFolder, keep: usize, fault: Option<Fault>) -> Result<Store> {
        let early = if fault == Some(Fault::LateMove) { Some(folder.store(keep)?) } else { None };
        if self.moves_aside
            && let Some(target) = folder.move_aside()?
        {
            self.notes.insert(0, moved(&target));
        }
        early.map_or_else(|| folder.store(keep), Ok)
    }

    /// Whether lines that were logged beyond the state must come again.
    fn proof(&self, plan: &Plan, identity: &Identity) -> Proof {
        let same = |run: &RunFile| run.identity == *identity && run.history == plan.course.history;
        let inexact = matches!(plan.continuation, Continuation::Inexact(_));
        if !inexact && self.from.own_run().is_some_and(same) { Proof::Repeats } else { Proof::SetAside }
    }

    /// The best adapter so far, where the folder may lack it: without it the run could not publish what its state names.
    fn carry(
        &self,
        disk: &dyn Disk,
        settings: &Settings,
        trainer: &mut Trainer,
        identity: &Identity,
        plan: &Plan,
    ) -> Result<Carried> {
        let From::State { found, .. } = &self.from else { return Ok(Carried::Nothing) };
        // The very same run finds its later best ones again.
        let repeats = self.from.saved_here().is_some() && plan.continuation == Continuation::Exact;
        match found.state.cursor.best.filter(|_| !repeats) {
            Some(best) if found.state.identity.data.eval == identity.data.eval => {
                best_of(disk, &self.asked.output, found, &best, settings, trainer)
            }
            _ => Ok(Carried::Nothing),
        }
    }

    fn commands(&self, disk: &dyn Disk, settings: &Settings) -> Result<Commands> {
        let out = &self.asked.output;
        let mut number = 1;
        let branch = loop {
            let name = out.file_name().map_or_else(|| "run".into(), |name| name.display().to_string());
            let path = out.with_file_name(format!("{name}-branch-{number}"));
            if disk.entry(&path).map_err(|e| Error::reading(&path, e))?.is_none() {
                break path;
            }
            number += 1;
        };
        Ok(Commands::new(self.asked.program(), out, self.asked.rows.is_some(), settings, branch))
    }

    /// What `run.json` is to say.
    fn run_file(&self, settings: &Settings, identity: &Identity, plan: &Plan) -> Result<RunFile> {
        let mut layer = Layer::from_settings(settings);
        let names = Layer::from_settings(&self.recorded);
        for field in FIELDS.iter().filter(|field| field.kind.is_path()) {
            names.get(field.key).into_iter().for_each(|name| layer.set(field, name.clone()));
        }
        Ok(RunFile {
            format: run_file::FORMAT,
            settings: config::read::fill(&layer)?,
            command_line: self.asked.command_line.clone(),
            working_directory: self.working_directory.clone(),
            versions: run_file::versions(identity),
            identity: identity.clone(),
            history: plan.course.history.clone(),
            origin: self.origin.clone(),
        })
    }

    /// The first lines: which of the ways to begin it is, what changed, and where output goes.
    fn introduce(
        &self,
        disk: &dyn Disk,
        trainer: &Trainer,
        origin: &str,
        plan: &Plan,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let s = &self.settings;
        let (step, total) = (trainer.step(), trainer.total_steps());
        let mut lines = self.notes.clone();
        match (&self.from, &s.init_adapter) {
            (From::State { how: As::Branch, .. }, _) => {
                lines.push(format!(
                    "branch: a run of its own, at step {step} of {total}, with the state of {origin}"
                ));
                lines.extend(self.changes());
            }
            (From::State { .. }, _) => {
                lines.push(format!("resumed at step {step} of {total} from {origin}"));
            }
            (From::Beginning { .. }, Some(adapter)) => {
                lines.push(format!(
                    "weights only: step 0 of {total}, starting from the adapter in {}; rank, alpha and target modules are its own, optimizer, schedule and data order start new",
                    adapter.display()
                ));
                if let Some(state) = complete_state(disk, adapter)? {
                    lines.push(format!(
                        "a complete state is there too; to continue it instead of starting at step 0, replace --init-adapter (--checkpoint-dir) by --resume-from-checkpoint {}",
                        state.display()
                    ));
                }
            }
            (From::Beginning { .. }, None) if origin.is_empty() => {
                lines.push(format!("new run: {total} steps"))
            }
            (From::Beginning { .. }, None) => lines.push(format!("new run: {total} steps ({origin})")),
        }
        lines.extend(plan.course.news.iter().cloned());
        if !s.fold_adapters.is_empty() {
            let folded: Vec<String> = s.fold_adapters.iter().map(|f| f.display().to_string()).collect();
            let (folded, run) = (folded.join(","), s.output_dir.join("adapter"));
            lines.push(format!(
                "folded into the base: {folded}; the adapter that is trained belongs to the base with them: --init-adapter {folded},{}",
                run.display()
            ));
        }
        if let Continuation::Inexact(why) = &plan.continuation {
            lines.push(format!("inexact from here on: {}", why.join("; ")));
        }
        if plan.tainted {
            lines.push("inexact: the run was imported, or continued on another engine or device; every checkpoint of it says so".into());
        }
        lines.push(format!("output goes to {}", self.asked.output.display()));
        lines.into_iter().for_each(|text| observer.on_event(&Event::Note(text)));
        if s.valid_file.is_some() && s.eval_strategy == Strategy::No && !s.eval_on_start {
            let text = "--valid-file is not evaluated on: give --eval-strategy steps or epoch";
            observer.on_event(&Event::Warning(text.into()));
        }
        Ok(())
    }

    /// What a branch changes.
    fn changes(&self) -> Option<String> {
        let changed = &self.origin.as_ref()?.changed;
        let list: Vec<String> =
            changed.iter().map(|(key, [old, new])| format!("{key} {old} -> {new}")).collect();
        (!list.is_empty()).then(|| format!("it changes {}", list.join(", ")))
    }
}
