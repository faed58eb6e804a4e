//! How a run starts.
//!
//! `request` is what was asked, `locate` finds where a state is, `policy` says what may change and what the continuation
//! then is, `history` which lengths and settings count from which step. `decide` makes one value of them, [`Start`], and
//! `begin` carries it out: until then nothing in the output folder is opened, locked or written.

mod begin;
mod carry;
pub mod commands;
mod decide;
pub mod history;
mod launcher;
mod locate;
pub mod policy;
pub(super) mod request;

pub use commands::Commands;
#[cfg(feature = "internals")]
pub use decide::Start;
pub use launcher::refuse_several;
#[cfg(feature = "internals")]
pub use locate::complete_state;
pub use locate::{is_trainer_checkpoint, weights_in};
pub use request::Request;

use self::decide::{Decision, decide};
use self::request::{Asked, Beginning, Source};
use super::exchange::{self, Imported};
use super::setup::{Prepare, Setup};
use super::{Control, PlanReport, Summary};
use crate::checkpoint::state::PlanOrigin;
use crate::checkpoint::storage::{Disk, FileSystem};
use crate::config::Settings;
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::report::event::{Event, Observer};
use std::path::Path;

/// How often a decision is made anew because the folder changed meanwhile.
const DECISIONS: usize = 3;

/// What a run needs of the world around it.
pub struct World<'a> {
    /// Where its folders are.
    pub disk: &'a dyn Disk,
    /// What reads its model and data.
    pub prepare: &'a dyn Prepare,
    /// A fault that is put back.
    #[doc(hidden)]
    pub fault: Option<Fault>,
}

/// Faults this program had. The tests put one back into a world of theirs, to show that they would notice it.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), allow(dead_code))]
pub enum Fault {
    /// The store holds the folder of the checkpoints before it is moved aside.
    LateMove,
    /// What another plan logged is compared.
    ComparesAll,
    /// Another length begins another schedule.
    Restart,
    /// A run may end before the step it is at.
    Shorter,
    /// The best adapter stays in the folder the state comes from.
    LeavesBest,
    /// Nothing says with which state a run began.
    NoOrigin,
    /// The lengths of the state count, not those of the run.
    ForgetsLengths,
    /// A state that is gone is taken for none.
    BeginsAnew,
}

/// What a run with these settings would need and do, without starting it.
///
/// # Errors
/// As [`train`], for wrong settings or inputs.
pub fn plan(settings: &Settings, observer: &mut dyn Observer) -> Result<PlanReport> {
    let device = Devices::default().choose_for_plan(settings)?;
    Setup::open(settings, None, None, &|_| PlanOrigin::default(), device, observer)?.report()
}

/// The settings that [`train`] would train with: those given, over those of the run that the request goes on with.
///
/// # Errors
/// As [`train`], for what needs neither model nor data to be wrong.
pub fn settled(request: Request) -> Result<Settings> {
    decide::settled(&FileSystem, Asked::to_train(request)?)
}

/// Trains: a new run, or one that goes on, as the request's `resume_from_checkpoint`, `branch` and `init_adapter` say, on
/// the calling thread and the threads of its settings; a checkpoint of Hugging Face's Trainer is imported first.
/// Everything it writes is in the output folder, which is locked meanwhile, and in the token cache. It goes on until the
/// last step, or until `control` asks for a stop; the state is then saved first.
///
/// # Errors
/// Each of [`crate::error::Kind`]; [`crate::error::Kind::Stopped`] after a requested stop was saved.
pub fn train(request: Request, control: &Control, observer: &mut dyn Observer) -> Result<Summary> {
    let devices = request.devices;
    train_in(&World { disk: &FileSystem, prepare: &devices, fault: None }, request, control, observer)
}

/// As [`train`], in a world of the caller's.
///
/// # Errors
/// As [`train`].
pub fn train_in(
    world: &World<'_>,
    request: Request,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    run(world, Asked::to_train(request)?, control, observer)
}

/// Goes on with the run in `folder`, with its own settings and the changes that are given; or with a checkpoint of Hugging
/// Face's Trainer, into the `output_dir` that is given.
///
/// # Errors
/// As [`train`]; [`crate::error::Kind::Refused`] for a setting that may not change.
pub fn resume(
    folder: &Path,
    request: Request,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let devices = request.devices;
    resume_in(
        &World { disk: &FileSystem, prepare: &devices, fault: None },
        folder,
        request,
        control,
        observer,
    )
}

/// As [`resume`], in a world of the caller's.
///
/// # Errors
/// As [`resume`].
pub fn resume_in(
    world: &World<'_>,
    folder: &Path,
    request: Request,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let asked = if is_trainer_checkpoint(world.disk, folder)? {
        let mut asked = Asked::to_train(request)?;
        asked.beginning = Beginning::Continue(Source::Path(folder.to_owned()));
        asked
    } else {
        Asked::to_resume(folder, request)?
    };
    run(world, asked, control, observer)
}

/// Makes the run folder `out` from the checkpoint of Hugging Face's Trainer in `checkpoint`; [`resume`] goes on with it.
/// Nothing is left behind when it is refused.
///
/// # Errors
/// A checkpoint, model or rows that are wrong, each named; [`crate::error::Kind::Refused`] where they do not belong together;
/// [`crate::error::Kind::Output`] where the folder holds a run already.
pub fn import(
    checkpoint: &Path,
    out: &Path,
    request: Request,
    observer: &mut dyn Observer,
) -> Result<Imported> {
    let mut asked = Asked::to_train(request)?;
    asked.output = out.to_owned();
    request::set(&mut asked.given, "output_dir", out);
    refuse_several(|name| std::env::var(name).ok())?;
    exchange::import(&FileSystem, &asked, checkpoint, observer)
}

fn run(
    world: &World<'_>,
    mut asked: Asked,
    control: &Control,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    refuse_several(|name| std::env::var(name).ok())?;
    for _ in 0..DECISIONS {
        let start = match decide(world, asked)? {
            Decision::Start(start) => *start,
            Decision::Import(theirs, checkpoint) => {
                if theirs.beginning == Beginning::Continue(Source::Auto) {
                    let text =
                        format!("--resume-from-checkpoint auto: {} is continued", checkpoint.display());
                    observer.on_event(&Event::Note(text));
                }
                exchange::import(world.disk, &theirs, &checkpoint, observer)?;
                asked = theirs.imported();
                continue;
            }
        };
        match begin::begin(world, start, control, observer)? {
            begin::Outcome::Ended(summary) => return Ok(summary),
            begin::Outcome::Changed(again) => asked = again,
        }
    }
    Err(Error::output("the output folder keeps changing: another run works in it")
        .hint("wait until it ends, or choose another --output-dir"))
}
