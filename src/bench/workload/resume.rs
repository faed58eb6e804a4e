//! A run that goes on: from the start to its first new step.

use super::checkpoint::Scratch;
use super::{Case, Source, train};
use crate::bench::report::{Better, Measurement};
use crate::bench::sampling::{Pass, Workload};
use crate::checkpoint::state::{PlanOrigin, State};
use crate::checkpoint::storage::FileSystem;
use crate::config::{Settings, Strategy};
use crate::data::dataset::Rows;
use crate::error::{Error, Kind, Result};
use crate::identity::Identity;
use crate::report::event::{Event, Observer};
use crate::train::setup::{Base, Prepare, Prepared, Setup};
use crate::train::start::{World, resume_in, train_in};
use crate::train::{Control, Request};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

/// Steps of the run before it goes on for the first time.
const STEPS: u64 = 2;

/// A run that is stopped and goes on, again and again; a step further each time.
pub struct Resume {
    case: Case,
    rows: Rows,
    folder: Scratch,
}

/// Where the run's model comes from.
struct Model<'a> {
    case: &'a Case,
    /// Random weights, which no file holds, are there before the time begins.
    made: RefCell<Option<Base>>,
}

impl<'a> Model<'a> {
    fn of(case: &'a Case) -> Result<Self> {
        let made = match case.source {
            Source::Shape(_) => Some(case.model()?),
            Source::Folder(_) => None,
        };
        Ok(Model { case, made: RefCell::new(made) })
    }
}

impl Prepare for Model<'_> {
    fn check(&self, settings: &Settings) -> Result<()> {
        self.case.devices.check(settings)
    }

    fn prepare(
        &self,
        settings: &Settings,
        rows: Option<Rows>,
        resumed: Option<&State>,
        origin: &dyn Fn(&Identity) -> PlanOrigin,
        observer: &mut dyn Observer,
    ) -> Result<Box<dyn Prepared>> {
        let device = self.case.devices.choose(settings, resumed.map(|state| &state.identity))?;
        Ok(Box::new(match self.made.take() {
            Some(base) => Setup::over(base, settings, rows, resumed, origin, device, observer)?,
            None => Setup::open(settings, rows, resumed, origin, device, observer)?,
        }))
    }
}

impl Resume {
    /// Begins the run.
    ///
    /// # Errors
    /// As a run of these settings.
    pub fn build(case: &Case) -> Result<Self> {
        let folder = Scratch::new(case, "resume");
        let settings = Settings {
            output_dir: folder.path().to_owned(),
            save_strategy: Strategy::Steps,
            save_steps: 1e6,
            ..train::settings(case)
        };
        let own = Resume { case: case.clone(), rows: train::rows(case, &case.spec()?), folder };
        own.until(STEPS, |world, control, observer| {
            let request = Request { rows: Some(own.rows.clone()), ..Request::new(&settings) };
            train_in(world, request, control, observer).map(|_| ())
        })?;
        Ok(own)
    }

    /// Runs until it has done `steps` more steps and is saved; the seconds until the last of them was done.
    fn until(
        &self,
        steps: u64,
        run: impl FnOnce(&World<'_>, &Control, &mut dyn Observer) -> Result<()>,
    ) -> Result<f64> {
        let model = Model::of(&self.case)?;
        let world = World { disk: &FileSystem, prepare: &model, fault: None };
        let (control, mut done, mut seconds) = (Control::default(), 0, f64::NAN);
        let asker = control.clone();
        let begin = Instant::now();
        let mut observer = |event: &Event| {
            if matches!(event, Event::Step { .. }) {
                done += 1;
                if done == steps {
                    seconds = begin.elapsed().as_secs_f64();
                    asker.request_stop();
                }
            }
        };
        match run(&world, &control, &mut observer) {
            Err(error) if error.kind == Kind::Stopped => Ok(seconds),
            Err(error) => Err(error),
            Ok(()) => Err(Error::check("the run ended before it was stopped (a bug)")),
        }
    }
}

impl Workload for Resume {
    fn labels(&self) -> Measurement {
        self.case.labels("resume_seconds", "s", Better::Lower)
    }

    fn pass(&mut self) -> Result<Pass> {
        let seconds = self.until(1, |world, control, observer| {
            let request = Request { rows: Some(self.rows.clone()), ..Request::default() };
            resume_in(world, self.folder.path(), request, control, observer).map(|_| ())
        })?;
        Ok(Pass { work: 1.0, seconds })
    }

    fn digest(&mut self) -> Result<Option<String>> {
        Ok(None)
    }

    fn details(&mut self, _median: f64) -> Result<BTreeMap<String, Value>> {
        Ok(BTreeMap::new())
    }
}
