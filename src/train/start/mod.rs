//! How a run starts: what was asked, where a state is, what may change, and the one decision that follows.

pub mod locate;

use super::devices::Devices;
use super::folder::RunFolder;
use super::metrics::Metrics;
use super::run::{Begun, Run};
use super::saver::Saver;
use super::setup::{self, Setup};
use super::trainer::Trainer;
use super::{Control, PlanReport, Request, Summary, exchange, origin};
use crate::checkpoint::inspect;
use crate::checkpoint::store::Store;
use crate::config::{ResumeFrom, Settings};
use crate::error::{Error, Result};
use crate::report::event::{Event, Observer};

/// What [`run`] would need and do, without starting it.
///
/// # Errors
/// As [`run`], for wrong settings or inputs.
pub fn plan(settings: &Settings, observer: &mut dyn Observer) -> Result<PlanReport> {
    let device = Devices::default().choose_for_plan(settings)?;
    Setup::open(settings, None, None, device, observer)?.report()
}

/// Trains, resumes or finishes the run the request describes, on the calling thread and the threads of its settings; a
/// checkpoint of Hugging Face's Trainer is imported first. Everything it writes is in the settings' output folder, which
/// is locked meanwhile, and in the token cache. It goes on until the last step, or until `control` asks for a stop; the
/// state is then saved first.
///
/// # Errors
/// Each of [`Kind`]; [`Kind::Stopped`] after a requested stop was saved.
pub fn run(request: Request, control: &Control, observer: &mut dyn Observer) -> Result<Summary> {
    run_on(Devices::default(), request, control, observer)
}

/// As [`run`], with GPUs of the caller's choice.
///
/// # Errors
/// As [`run`].
pub fn run_on(
    devices: Devices,
    request: Request,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    refuse(&devices, &request)?;
    let mut request = origin::settle(request, observer)?;
    if exchange::trainer_checkpoint(&request.settings).is_some() {
        exchange::import(devices, &request, observer)?;
        request.settings.resume_from_checkpoint = Some(ResumeFrom::Auto);
        request.settings.fresh_optimizer = false;
        request.must_resume = true;
    }
    let folder = RunFolder::lock(&request.settings.output_dir)?;
    // What is moved aside is moved before anything in the folder is open.
    locate::claim(&request, &folder, observer)?;
    let mut store = Store::open(folder.run_lock(), request.settings.save_total_limit)?;
    let found = locate::find(&request, &mut store, observer)?;
    let device = devices.choose(&request.settings, found.state.as_ref().map(|s| &s.identity))?;
    // They are kept encoded from here on; that there were any is remembered.
    let rows = request.rows.as_mut().map(std::mem::take);
    let setup = Setup::open(&request.settings, rows, found.state.as_ref(), device, observer)?;
    let settings = setup.settings.clone();
    let before = folder.identity()?;
    let (mut inexact, mut tainted) = (false, false);
    if let Some(state) = &found.state {
        inexact = locate::compare(&state.identity, &setup.identity, &settings)?;
        tainted = inexact || state.tainted;
    }
    let checkpoint = setup.checkpoint_bytes();
    let (mut trainer, weights) = setup.allocate(observer)?.trainer()?;
    if let Some(text) = store.space_warning(checkpoint) {
        observer.on_event(&Event::Warning(text));
    }
    let whole = found.state.as_ref().map(|state| state.step);
    let whole = whole.filter(|step| inspect::path_of_step(&folder.path(), *step).is_file());
    if let Some(state) = found.state {
        trainer.restore(state)?;
    }
    trainer.state_mut().tainted = tainted;
    let extended = trainer.extend_schedule();
    introduce(&request, &trainer, &found.origin, extended, tainted, observer);
    // Without a checkpoint, lines of an interrupted first attempt are a proof only if nothing changed since.
    let same_run = before.is_none_or(|b| b == trainer.state().identity);
    let exact = !inexact && !extended && (trainer.step() > 0 || same_run);
    if !exact && trainer.step() > 0 {
        for text in store.set_aside_newer(trainer.step())? {
            observer.on_event(&Event::Warning(text));
        }
    }
    for text in store.take_warnings() {
        observer.on_event(&Event::Warning(text));
    }
    let state = trainer.state();
    let metrics = Metrics::open(&folder, &state.log, exact)?;
    folder.write(&settings, &state.identity, &request.command_line)?;
    let begun = Begun {
        settings,
        folder,
        saver: Saver::new(store, whole)?,
        trainer,
        inexact,
        metrics,
        base: Box::new(weights.map),
        request,
    };
    Run::new(begun, control, observer).train()
}

/// What can be refused before anything is opened or written.
fn refuse(devices: &Devices, request: &Request) -> Result<()> {
    if request.settings.output_dir.as_os_str().is_empty() {
        return Err(Error::usage("the output folder is missing").hint("set output_dir"));
    }
    setup::refuse_unsupported(&request.settings, request.rows.as_ref())?;
    devices.check(&request.settings)
}

/// The first lines: which of the three kinds of start it is, and where output goes.
fn introduce(
    request: &Request,
    trainer: &Trainer,
    origin: &str,
    extended: bool,
    tainted: bool,
    observer: &mut dyn Observer,
) {
    let mut note = |text: String| observer.on_event(&Event::Note(text));
    let s = &request.settings;
    let (step, total) = (trainer.step(), trainer.total_steps());
    match (&s.init_adapter, step) {
        (_, 1..) => note(format!("resumed at step {step} of {total} from {origin}")),
        (Some(adapter), 0) => {
            note(format!(
                "weights only: step 0 of {total}, starting from the adapter in {}; rank, alpha and target modules are its own, optimizer, schedule and data order start new",
                adapter.display()
            ));
            if let Some(state) = origin::complete_state(adapter) {
                note(format!(
                    "a complete state is there too; to continue it instead of starting at step 0, replace --init-adapter (--checkpoint-dir) by --resume-from-checkpoint {}",
                    state.display()
                ));
            }
        }
        (None, 0) if origin.is_empty() => note(format!("new run: {total} steps")),
        (None, 0) => note(format!("new run: {total} steps ({origin})")),
    }
    if !s.fold_adapters.is_empty() {
        let folded: Vec<String> = s.fold_adapters.iter().map(|f| f.display().to_string()).collect();
        let (folded, run) = (folded.join(","), s.output_dir.join("adapter"));
        note(format!(
            "folded into the base: {folded}; the adapter that is trained belongs to the base with them: --init-adapter {folded},{}",
            run.display()
        ));
    }
    if extended && step > 0 {
        note(format!(
            "the run now ends at step {total}: its learning rate restarts as a new piece of schedule at step {step}"
        ));
    }
    if tainted {
        note("inexact: the run was imported, or continued on another engine or device; every checkpoint of it says so".into());
    }
    note(format!("output goes to {}", s.output_dir.display()));
}
