//! Lengths and recorded settings with the steps from which they count: what a run was planned to be at each step, so
//! that a continuation from any of them is the same.

use super::Fault;
use crate::checkpoint::state::{Change, History, Length};
use crate::config::fields::{Class, FIELDS, Field};
use crate::config::{self, Layer, Settings, value};
use crate::error::{Error, Result};
use crate::train::schedule::{Schedule, warmup_steps};

/// The history with which a run goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// All of it, also what lies ahead of the state.
    pub history: History,
    /// What changed now, for the user.
    pub news: Vec<String>,
}

fn fields() -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().filter(|field| field.class == Class::Recorded)
}

/// The text of a recorded setting as it counts after `done` steps.
#[must_use]
pub fn recorded<'a>(history: &'a History, key: &str, done: u64) -> Option<&'a str> {
    let change = history.changes.iter().rfind(|change| change.setting == key && change.from_step <= done)?;
    Some(&change.value)
}

/// That of a run that begins at step 0.
#[must_use]
pub fn new(settings: &Settings, total_steps: u64) -> History {
    let change = |field: &'static Field| Change {
        from_step: 0,
        setting: field.key.to_owned(),
        value: config::identity::text_of(settings, field),
    };
    let mut history = History::new(total_steps, warmup_steps(settings, total_steps));
    history.changes = fields().map(change).collect();
    history
}

/// That of a run at step 0. One that was there before and lost its checkpoints keeps the history it has, and repeats
/// itself; with another length or evaluation it begins a new one.
///
/// # Errors
/// Wrong schedule arguments.
pub fn begin(
    known: Option<&History>,
    settings: &Settings,
    total_steps: u64,
    fault: Option<Fault>,
) -> Result<Course> {
    if let Some(known) = known {
        let course = go_on(known, known, 0, settings, total_steps, fault)?;
        if course.news.is_empty() {
            return Ok(course);
        }
    }
    Ok(Course { history: new(settings, total_steps), news: Vec::new() })
}

/// That of a branch off a run with the history `parent` after `step` steps: lengths are its own over its whole length, the
/// other recorded settings count from its first step on.
#[must_use]
pub fn branch(parent: &History, step: u64, settings: &Settings, total_steps: u64) -> History {
    let mut course = Course { history: parent.before(step), news: Vec::new() };
    course.change(step, settings);
    History { lengths: new(settings, total_steps).lengths, ..course.history }
}

/// The settings with those that are recorded as they count after `done` steps.
///
/// # Errors
/// Input: the history names a setting or value that this build does not know.
pub fn settings_at(settings: &Settings, history: &History, done: u64) -> Result<Settings> {
    let mut layer = Layer::from_settings(settings);
    for change in history.changes.iter().filter(|change| change.from_step <= done) {
        let field = fields().find(|field| field.key == change.setting).ok_or_else(|| {
            Error::input(format!("the run's history changes {}, which is not recorded", change.setting))
        })?;
        layer.set(field, value::from_text(field, &change.value)?);
    }
    config::read::fill(&layer)
}

/// Goes on after `step` steps with the settings `wanted`, under which the run has `total` steps. `known` is the run's
/// history, `state` that of the state it goes on with.
///
/// # Errors
/// [`crate::error::Kind::Refused`]: the state belongs to a run of another length; the run would end before its state.
pub fn go_on(
    known: &History,
    state: &History,
    step: u64,
    wanted: &Settings,
    total: u64,
    fault: Option<Fault>,
) -> Result<Course> {
    if known.before(step) != state.before(step) {
        let lengths = |h: &History| {
            let all: Vec<String> = h.lengths.iter().map(|l| l.total_steps.to_string()).collect();
            all.join(", then ")
        };
        return Err(Error::refused(format!(
            "the checkpoint of step {step} is of a run of {} steps, this run has {}",
            lengths(&state.before(step)),
            lengths(&known.before(step))
        ))
        .hint("continue the run that the checkpoint belongs to, or begin another with it: train --branch"));
    }
    if total < step && fault != Some(Fault::Shorter) {
        return Err(Error::refused(format!("the run is at step {step}; it cannot end at step {total}"))
            .hint(
                "give a longer length, or continue an earlier checkpoint with --resume-from-checkpoint STEP",
            ));
    }
    let mut course = Course { history: known.clone(), news: Vec::new() };
    course.lengthen(step, wanted, total, fault)?;
    course.change(step, wanted);
    if step == 0 && !course.news.is_empty() && fault != Some(Fault::Restart) {
        // Nothing was trained yet: the run is what it would be had it begun so.
        let History { lengths, changes, .. } = new(wanted, total);
        course.history = History { lengths, changes, ..course.history };
    }
    Ok(course)
}

impl Course {
    fn lengthen(&mut self, step: u64, wanted: &Settings, total: u64, fault: Option<Fault>) -> Result<()> {
        let Some(last) = self.history.length().copied() else { return Ok(()) };
        if last.total_steps == total {
            return Ok(());
        }
        let lengths = &mut self.history.lengths;
        lengths.retain(|length| length.from_step == 0 || length.from_step < step);
        let before = *lengths.last().unwrap_or(&last);
        if before.total_steps != total {
            let warmup_steps = if fault == Some(Fault::Restart) { 0 } else { before.warmup_steps };
            lengths.push(Length { from_step: step, total_steps: total, warmup_steps });
        }
        let now = Length { total_steps: total, ..last };
        self.news.push(format!("the run now ends at step {total} instead of {}", last.total_steps));
        let schedule = Schedule::new(wanted)?;
        let (old, new) = (schedule.learning_rate(step, &[last]), schedule.learning_rate(step, &[now]));
        self.news.push(if old.to_bits() == new.to_bits() {
            format!("learning rate of step {}: {new:.3e}, as before", step + 1)
        } else {
            format!(
                "learning rate of step {}: {new:.3e} instead of {old:.3e}, from one schedule over {total} steps (Hugging Face's Trainer would repeat the old rate in this one step)",
                step + 1
            )
        });
        let theirs = warmup_steps(wanted, total);
        if theirs != now.warmup_steps && schedule.has_warmup() {
            self.news.push(format!(
                "the warm-up stays {} steps, what its ratio gave by the first length; Hugging Face's Trainer would make it {theirs}",
                now.warmup_steps
            ));
        }
        Ok(())
    }

    fn change(&mut self, step: u64, wanted: &Settings) {
        let changes = &mut self.history.changes;
        for field in fields() {
            let now = config::identity::text_of(wanted, field);
            let of_field = |change: &&Change| change.setting == field.key;
            let last = changes.iter().rfind(of_field).map(|change| change.value.clone());
            if last.as_ref() == Some(&now) {
                continue;
            }
            changes.retain(|c| c.setting != field.key || c.from_step == 0 || c.from_step < step);
            let before = changes.iter().rfind(of_field).map(|change| change.value.clone());
            if before.as_ref() != Some(&now) {
                let change = Change { from_step: step, setting: field.key.to_owned(), value: now.clone() };
                changes.push(change);
            }
            let last = last.unwrap_or_else(|| "unknown".into());
            self.news.push(format!("{} is {now} instead of {last} from step {} on", field.name, step + 1));
        }
        changes.sort_by_key(|change| change.from_step);
    }
}
