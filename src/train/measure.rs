//! How long a step takes here: a few steps of the run, in a folder of their own that is removed again.

use super::{Control, Request, train};
use crate::config::{ReportTo, Settings, Strategy};
use crate::error::{Error, Result};
use crate::report::event::{Event, Observer};
use std::path::{Path, PathBuf};

/// Steps that are run; the first warms up and does not count.
const STEPS: u64 = 4;

/// Runs the first steps of a run with these settings and gives the median of their seconds. Nothing is written into its
/// output folder.
///
/// # Errors
/// As [`train`].
pub fn measure(settings: &Settings, observer: &mut dyn Observer) -> Result<f64> {
    let place = Place::new()?;
    let probe = Settings {
        output_dir: place.0.join("run"),
        max_steps: Some(STEPS),
        save_strategy: Strategy::No,
        eval_strategy: Strategy::No,
        eval_on_start: false,
        load_best_model_at_end: false,
        early_stopping_patience: None,
        report_to: ReportTo::None,
        resume_from_checkpoint: None,
        branch: false,
        ..settings.clone()
    };
    let mut seconds = Vec::new();
    let mut watch = |event: &Event| match event {
        Event::Step { seconds: one, .. } => seconds.push(*one),
        // What a run says of its folder is of no use here.
        Event::Progress { .. } | Event::Warning(_) => observer.on_event(event),
        _ => {}
    };
    train(Request::new(&probe), &Control::default(), &mut watch)?;
    let counted = if seconds.len() > 1 { &mut seconds[1..] } else { &mut seconds[..] };
    counted.sort_by(f64::total_cmp);
    counted.get(counted.len() / 2).copied().ok_or_else(|| Error::input("the run has no step to measure"))
}

/// A folder that is gone when it is no longer needed.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("qwentune-measure-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Error::io("creating", Path::new(&path), e))?;
        Ok(Place(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
