//! The adapter a run publishes: that of its last step, or of its best evaluation, checked against what the state says.

use super::folder;
use super::run::Begun;
use super::trainer::Trainer;
use crate::checkpoint::state::{Best, digest_of};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::formats::peft;

/// Flat values as the adapter of a run.
///
/// # Errors
/// [`crate::error::Kind::Diverged`]: nothing that is not finite is published.
pub fn adapter(trainer: &mut Trainer, values: &[f32], settings: &Settings) -> Result<peft::Adapter> {
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::diverged(format!("step {}: a parameter is not finite", trainer.step())));
    }
    Ok(trainer.engine().to_peft(values, &folder::base_name(settings)))
}

/// What a finished run publishes, and what is to be said of it.
///
/// # Errors
/// [`crate::error::Kind::Input`] when the best adapter is asked for and neither the folder `best` nor the checkpoint of its
/// step holds it; as [`adapter`].
pub(super) fn final_adapter(run: &mut Begun) -> Result<(peft::Adapter, Option<String>)> {
    let trainer = &mut run.trainer;
    match trainer.state().cursor.best {
        Some(best) if run.settings.load_best_model_at_end && best.step != trainer.step() => {
            best_adapter(&best, run)
        }
        _ => {
            let values = trainer.engine().parameters()?;
            Ok((adapter(trainer, &values, &run.settings)?, None))
        }
    }
}

fn best_adapter(best: &Best, run: &mut Begun) -> Result<(peft::Adapter, Option<String>)> {
    let Begun { commands, settings, folder, saver, trainer, base, .. } = run;
    let path = folder.shown(folder::BEST);
    let why = match folder.read_adapter(folder::BEST) {
        Ok(None) => format!("{} is missing", path.display()),
        Ok(Some(found)) => {
            let values = trainer.engine().values_of(&found);
            if values.is_some_and(|values| digest_of(&values) == best.adapter) {
                return Ok((found, None));
            }
            format!(
                "{} does not hold the adapter of the best evaluation (step {})",
                path.display(),
                best.step
            )
        }
        Err(error) => error.what,
    };
    let saved = folder.read_adapter(folder::SAVED_BEST).ok().flatten();
    let saved = saved.and_then(|found| trainer.engine().values_of(&found));
    let kept = saver.store().load(best.step).ok().map(|state| state.weights);
    let is_it = |values: &&Vec<f32>| digest_of(values) == best.adapter;
    let Some(values) = saved.iter().chain(&kept).find(is_it) else {
        return Err(Error::input(format!(
            "{why}, and there is no whole checkpoint of step {} to take it from",
            best.step
        ))
        .hint(format!(
            "put the folder back, or publish the adapter of the last step: {}",
            commands.last_instead_of_best()
        )));
    };
    let found = adapter(trainer, values, settings)?;
    folder.write_adapter(folder::BEST, &found, &**base)?;
    Ok((found, Some(format!("{why}: written again from what was kept of step {}", best.step))))
}
