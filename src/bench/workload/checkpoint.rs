//! Saves: what a step costs that one begins before, and how long until one is durable.

use super::Case;
use super::train::Train;
use crate::bench::report::{Better, Measurement};
use crate::bench::sampling::{Pass, Workload};
use crate::bench::statistics::median;
use crate::checkpoint::storage::FileSystem;
use crate::checkpoint::store::{RunLock, Store};
use crate::error::{Error, Result};
use crate::report::event::Event;
use crate::train::saver::Saver;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// Workloads of a case.
pub const PARTS: usize = 2;

/// Bytes of a trained value in a checkpoint: itself and both moments.
const BYTES_OF_VALUE: usize = 12;

/// A folder that goes with its owner.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder in the one where the case may write.
    pub(super) fn new(case: &Case, what: &str) -> Self {
        let parent = case.folder.clone().unwrap_or_else(std::env::temp_dir);
        Scratch(parent.join(format!("qwentune-bench-{what}-{}", std::process::id())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    /// What is left of it is in a folder for temporary files.
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A model under training whose state is saved.
struct Saving {
    train: Train,
    saver: Saver,
    /// Seconds of steps without a save, and with one.
    steps: [Vec<f64>; 2],
    _folder: Scratch,
}

impl Saving {
    fn build(case: &Case) -> Result<Self> {
        let folder = Scratch::new(case, "checkpoint");
        let store = Store::open(&RunLock::take(&FileSystem, folder.path())?, 2)?;
        let saver = Saver::new(store, None)?;
        Ok(Saving { train: Train::build(case)?, saver, steps: [Vec::new(), Vec::new()], _folder: folder })
    }

    /// Seconds of a step, as a run does it, with or without a save that begins before it.
    fn step(&mut self, saves: bool) -> Result<f64> {
        let Saving { train, saver, .. } = self;
        let (trainer, mut watch) = (train.trainer(), Watch::default());
        let begin = Instant::now();
        if saves {
            let (state, engine) = trainer.saving();
            saver.begin(state, engine, &mut |event: &Event| watch.see(event))?;
        }
        let step = trainer.begin_step(&|| false)?.expect("nobody cancels a benchmark");
        saver.advance(trainer.engine(), &mut |event: &Event| watch.see(event))?;
        trainer.end_step(step)?;
        let seconds = begin.elapsed().as_secs_f64();
        saver.finish(trainer.engine(), &mut |event: &Event| watch.see(event))?;
        watch.fine()?;
        self.steps[usize::from(saves)].push(seconds);
        Ok(seconds)
    }

    /// Seconds until the state is durable.
    fn save(&mut self) -> Result<f64> {
        let (trainer, mut watch) = (self.train.trainer(), Watch::default());
        trainer.train_step(&|| false)?;
        let begin = Instant::now();
        let (state, engine) = trainer.saving();
        self.saver.save(state, engine, &mut |event: &Event| watch.see(event))?;
        let seconds = begin.elapsed().as_secs_f64();
        watch.fine()?;
        Ok(seconds)
    }
}

/// Warnings of a save: training goes on with them, a figure is none.
#[derive(Default)]
struct Watch(Option<String>);

impl Watch {
    fn see(&mut self, event: &Event) {
        if let Event::Warning(text) = event {
            self.0 = Some(text.clone());
        }
    }

    fn fine(self) -> Result<()> {
        self.0
            .map_or(Ok(()), |text| Err(Error::output(text).hint("--folder names another place to write to")))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Step,
    Durable,
}

struct Checkpoint {
    labels: Measurement,
    saving: Rc<RefCell<Saving>>,
    part: Part,
}

/// Both parts, which share the model.
///
/// # Errors
/// As a run of these settings; a folder that cannot be written to.
pub fn build(case: &Case) -> Result<Vec<Box<dyn Workload>>> {
    let saving = Rc::new(RefCell::new(Saving::build(case)?));
    let one = |name: &str, part| -> Box<dyn Workload> {
        let labels = case.labels(name, "s", Better::Lower);
        Box::new(Checkpoint { labels, saving: Rc::clone(&saving), part })
    };
    Ok(vec![one("step_with_save_seconds", Part::Step), one("durable_seconds", Part::Durable)])
}

impl Workload for Checkpoint {
    fn labels(&self) -> Measurement {
        self.labels.clone()
    }

    /// A step without a save goes before each with one, so that what the machine does meets both.
    fn pass(&mut self) -> Result<Pass> {
        let mut saving = self.saving.borrow_mut();
        let seconds = match self.part {
            Part::Step => {
                saving.step(false)?;
                saving.step(true)?
            }
            Part::Durable => saving.save()?,
        };
        Ok(Pass { work: 1.0, seconds })
    }

    fn digest(&mut self) -> Result<Option<String>> {
        self.saving.borrow_mut().train.digest()
    }

    fn details(&mut self, measured: f64) -> Result<BTreeMap<String, Value>> {
        let mut saving = self.saving.borrow_mut();
        let bytes = BYTES_OF_VALUE * saving.train.trainer().engine().parameters()?.len();
        let mut details = BTreeMap::from([("checkpoint_bytes".to_owned(), json!(bytes))]);
        match self.part {
            Part::Step => {
                let alone = median(&saving.steps[0]);
                details.insert("step_seconds".into(), json!(alone));
                details.insert("stall_seconds".into(), json!(measured - alone));
            }
            Part::Durable => {
                details.insert("mb_per_second".into(), json!(bytes as f64 / measured / 1e6));
            }
        }
        Ok(details)
    }
}
