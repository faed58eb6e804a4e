//! A checkpoint of Trainer becomes the first checkpoint of a run folder, which then continues like any other.

use super::foreign::{Foreign, close};
use crate::checkpoint::inspect;
use crate::checkpoint::state::{Ancestor, Cursor, Descent, History, Length, PlanOrigin, State, TensorEntry};
use crate::checkpoint::storage::Disk;
use crate::config::{self, Settings};
use crate::error::{Error, Result};
use crate::formats::hf_trainer;
use crate::report::event::{Event, Observer};
use crate::train::folder::{RunFolder, checkpoints_in};
use crate::train::run_file::{self, RunFile};
use crate::train::schedule::Schedule;
use crate::train::setup::{self, Setup};
use crate::train::start::history;
use crate::train::start::is_trainer_checkpoint;
use crate::train::start::request::Asked;
use std::path::{Path, PathBuf};

/// Most micro-batches of a step that are tried to explain an epoch.
const MAX_ACCUMULATION: u64 = 4096;

/// What an import made.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// The checkpoint.
    pub checkpoint: PathBuf,
}

/// The settings with which a checkpoint of Trainer goes on: those given, over what it says of its run.
///
/// # Errors
/// As [`Foreign::read`]; wrong settings and missing inputs.
pub(in crate::train) fn settings(asked: &Asked, foreign: &Foreign) -> Result<Settings> {
    let mut layer = foreign.implied(&asked.given);
    layer.cover(&asked.given);
    let mut settings = config::resolve(&layer)?;
    config::check_inputs(&mut settings, true)?;
    settings.allow_inexact = asked.allow_inexact;
    Ok(settings)
}

/// Makes the run folder that was asked for from the checkpoint of Trainer in `from`. Nothing is left behind when it is
/// refused.
///
/// # Errors
/// A checkpoint, model or rows that are wrong, each named; [`crate::error::Kind::Refused`] where they do not belong
/// together; [`crate::error::Kind::Output`] where the folder holds a run already.
pub(in crate::train) fn import(
    disk: &dyn Disk,
    asked: &Asked,
    from: &Path,
    observer: &mut dyn Observer,
) -> Result<Imported> {
    if !is_trainer_checkpoint(disk, from)? {
        return Err(Error::input(format!(
            "{}: no checkpoint of Hugging Face's Trainer ({} is missing)",
            from.display(),
            hf_trainer::STATE
        ))
        .hint("--init-adapter starts at step 0 from the weights of an adapter alone"));
    }
    let foreign = Foreign::read(from, asked.fresh_optimizer)?;
    let s = settings(asked, &foreign)?;
    setup::refuse_unsupported(&s, None)?;
    asked.devices.check(&s)?;
    let step = foreign.progress.step;
    refuse_occupied(disk, asked, step)?;
    foreign.check_settings(&s)?;
    let device = asked.devices.choose(&s, None)?;
    let mut setup = Setup::open(&s, None, None, &|_| PlanOrigin::default(), device, observer)?;
    let (state, notes) = state_of(&foreign, &mut setup)?;
    let folder = RunFolder::lock(disk, &asked.output)?;
    refuse_occupied(disk, asked, step)?;
    let mut store = folder.store(s.save_total_limit)?;
    let run = RunFile {
        format: run_file::FORMAT,
        settings: setup.settings.clone(),
        command_line: asked.command_line.clone(),
        working_directory: std::env::current_dir().map_err(|e| Error::reading(Path::new("."), e))?,
        versions: run_file::versions(&state.identity),
        identity: state.identity.clone(),
        history: state.history.clone(),
        origin: None,
    };
    store.save(&state)?;
    // Last: a folder that names itself a run has the checkpoint to continue from.
    folder.write_run_file(&run)?;
    notes.into_iter().for_each(|text| observer.on_event(&Event::Note(text)));
    let total_steps = foreign.progress.max_steps;
    Ok(Imported { step, total_steps, checkpoint: inspect::path_of_step(&asked.output, step) })
}

fn refuse_occupied(disk: &dyn Disk, asked: &Asked, step: u64) -> Result<()> {
    let shown = asked.output.display();
    if RunFile::find(disk, &asked.output)?.is_some() {
        return Err(Error::output(format!("{shown} already holds a run"))
            .hint(format!("continue it: {} resume {shown}   or choose a new folder", asked.program())));
    }
    let own = inspect::path_of_step(&asked.output, step);
    let own = own.file_name().map(|name| name.display().to_string());
    // That of an import that was interrupted is written again.
    let names = checkpoints_in(disk, &asked.output)?;
    match names.iter().find(|name| Some(*name) != own.as_ref()) {
        Some(name) => {
            Err(Error::output(format!("{shown} already holds the checkpoint {name}"))
                .hint("choose a new folder"))
        }
        None => Ok(()),
    }
}

/// The state in this program's form, and what is said of it.
fn state_of(foreign: &Foreign, setup: &mut Setup) -> Result<(State, Vec<String>)> {
    let progress = &foreign.progress;
    let step = progress.step;
    let weights = setup.layout.values_of(&foreign.adapter).map_err(|e| e.at(foreign.folder.display()))?;
    let flat = foreign.moments(&setup.layout)?;
    let total_steps = progress.max_steps;
    let mut history: History = history::new(&setup.settings, total_steps);
    let rate = check_schedule(foreign, &setup.settings, &history.lengths)?;
    let place = check_place(foreign, setup)?;
    let tokens = tokens_before(setup, step);
    let samples = setup.train.plan.samples_before(step);
    let digest = digest_of([&weights, &flat.m, &flat.v]);
    history.lineage.push(Ancestor { descent: Descent::Import, step, digest });
    let updates_behind = step - flat.updates;
    let entry = |(name, shape, offset)| TensorEntry { name, shape, offset };
    let notes = notes(foreign, &setup.settings, rate, &place, updates_behind);
    let state = State {
        step,
        tainted: true,
        identity: setup.identity.clone(),
        history,
        tensors: setup.layout.tensors().into_iter().map(entry).collect(),
        weights,
        m: flat.m,
        v: flat.v,
        cursor: Cursor { samples, tokens, updates_behind, ..Cursor::default() },
        log: Vec::new(),
    };
    state
        .check()
        .map_err(|flaw| Error::input(format!("{}: {flaw}", foreign.folder.display())).caused_by(flaw))?;
    Ok((state, notes))
}

/// A digest of what is continued, whatever the bytes of the files it came in.
fn digest_of(arrays: [&[f32]; 3]) -> String {
    let mut hasher = blake3::Hasher::new();
    for array in arrays {
        array.iter().for_each(|value| _ = hasher.update(&value.to_le_bytes()));
    }
    hasher.finalize().to_hex().to_string()
}

/// Tokens of the steps that are done, had they been this program's.
fn tokens_before(setup: &mut Setup, step: u64) -> u64 {
    let lengths = setup.train.rows.lengths();
    let (samples, rows) = (setup.train.plan.samples_before(step), lengths.len() as u64);
    let tokens_of = |rows: &[u32]| rows.iter().map(|&row| u64::from(lengths[row as usize])).sum::<u64>();
    let epoch: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
    let mut total = epoch.saturating_mul(samples / rows);
    let mut next = if samples % rows == 0 { 0 } else { step };
    while next > 0 {
        next -= 1;
        let plan = setup.train.plan.step(next);
        total += plan.micro_batches.iter().map(|rows| tokens_of(rows)).sum::<u64>();
        if plan.step_in_epoch == 0 {
            break;
        }
    }
    total
}

/// The learning rate of the next step, if the settings give the one that the checkpoint has.
fn check_schedule(foreign: &Foreign, s: &Settings, lengths: &[Length]) -> Result<f64> {
    let step = foreign.progress.step;
    let ours = Schedule::new(s)?.learning_rate(step, lengths);
    let Some(theirs) = foreign.next_rate() else { return Ok(ours) };
    if close(ours, theirs, 1e-6) || s.allow_inexact {
        return Ok(ours);
    }
    let path = foreign.folder.join(hf_trainer::SCHEDULER);
    let behind = foreign.optimizer.as_ref().map_or(0, |(_, schedule)| step - schedule.steps.min(step));
    let skipped = match behind {
        0 => String::new(),
        n => format!(" ({n} steps were left out by a gradient scaler, so it is behind)"),
    };
    Err(Error::refused(format!(
        "the settings give step {} the learning rate {ours:e}, {} has {theirs:e}{skipped}",
        step + 1,
        path.display()
    ))
    .hint("give that run's --lr-scheduler-type, --lr-scheduler-kwargs and --warmup-steps; --allow-inexact goes on with the schedule given"))
}

/// Where in the rows the run goes on.
struct Place {
    text: String,
    /// Whether Trainer was at this very micro-batch.
    exact: bool,
}

/// The `epoch` that Trainer has after `step`: counted in micro-batches, the last, partial window of an epoch being
/// a step, as in current transformers.
pub(super) fn trainer_epoch(rows: u64, batch: u64, accumulation: u64, step: u64) -> f64 {
    let micro_batches = rows.div_ceil(batch).max(1);
    let steps = micro_batches.div_ceil(accumulation);
    (step / steps) as f64 + (step % steps * accumulation) as f64 / micro_batches as f64
}

/// Compares Trainer's epoch with the one these rows and batches give.
fn check_place(foreign: &Foreign, setup: &mut Setup) -> Result<Place> {
    let (step, theirs) = (foreign.progress.step, foreign.progress.epoch);
    let s = &setup.settings;
    let rows = setup.train.rows.len() as u64;
    let samples = setup.train.plan.samples_before(step);
    let text = format!("row {} of {rows} in epoch {}", samples % rows + 1, samples / rows + 1);
    if s.packing {
        return Ok(Place { text, exact: false });
    }
    let (batch, accumulation) = (s.per_device_train_batch_size as u64, s.gradient_accumulation_steps as u64);
    let ours = trainer_epoch(rows, batch, accumulation, step);
    let micro_batches = rows.div_ceil(batch);
    let half_a_step = 0.5 * accumulation.min(micro_batches) as f64 / micro_batches as f64;
    let exact = close(ours, theirs, 1e-9);
    if exact || (ours - theirs).abs() < half_a_step || s.allow_inexact {
        return Ok(Place { text, exact });
    }
    let fits = (1..=MAX_ACCUMULATION.min(micro_batches))
        .find(|a| close(trainer_epoch(rows, batch, *a, step), theirs, 1e-9));
    let hint = match fits {
        Some(a) => format!("--gradient-accumulation-steps {a} fits"),
        None => "give that run's rows, --per-device-train-batch-size (times its GPUs) and --gradient-accumulation-steps; --allow-inexact goes on at this step all the same".into(),
    };
    Err(Error::refused(format!(
        "{} is at epoch {theirs}, step {step} of {rows} rows in batches of {batch} x {accumulation} is at epoch {ours}",
        foreign.folder.display()
    ))
    .hint(hint))
}

/// What continues, and what cannot.
fn notes(foreign: &Foreign, s: &Settings, rate: f64, place: &Place, behind: u64) -> Vec<String> {
    let progress = &foreign.progress;
    let (step, total) = (progress.step, progress.max_steps);
    let mut same = vec!["weights", "step"];
    if foreign.optimizer.is_some() {
        same.insert(1, "AdamW's moments");
    }
    let followed = foreign.next_rate().is_some_and(|theirs| close(theirs, rate, 1e-6));
    if followed {
        same.push("learning rate");
    }
    if place.exact {
        same.push("place in the data");
    }
    let mut other = vec!["rounding (another program's arithmetic)".to_owned()];
    if foreign.optimizer.is_none() {
        other.push("AdamW's moments, which begin at zero (--fresh-optimizer)".into());
    } else if behind > 0 {
        other.push(format!("AdamW's count of updates is {behind} behind the steps, and stays so"));
    }
    if !followed {
        other.push("the learning rate, which follows the schedule given".into());
    }
    if s.shuffle {
        other.push(
            "the order of the rows: the rest of this epoch may repeat rows it has seen and miss others"
                .into(),
        );
    }
    if !place.exact {
        other.push(format!("the place in the data: Trainer was at epoch {}", progress.epoch));
    }
    if s.lora_dropout > 0.0 {
        other.push("dropout masks".into());
    }
    if let Some((value, _)) = progress.best {
        other.push(format!("the best evaluation ({value}): it is looked for anew"));
    }
    vec![
        format!(
            "imported step {step} of {total} from {}, a checkpoint of Hugging Face's Trainer",
            foreign.folder.display()
        ),
        format!("continues as it was: {}", same.join(", ")),
        format!("cannot be the same: {}", other.join("; ")),
        format!("goes on at {} with learning rate {rate:.3e}; the run is recorded as inexact", place.text),
    ]
}
