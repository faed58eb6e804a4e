//! What may change when a run goes on, and what the continuation then is. The classes of settings are those of the
//! table in [`crate::config::fields`]; here they are applied to settings, and extended to what the files hold.

use crate::config::fields::{self, Class, Field};
use crate::config::{self, Settings};
use crate::error::{Error, Result};
use crate::identity::{Difference, Identity};
use std::collections::BTreeMap;

/// What going on with a state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuation {
    /// The same run: what was logged beyond the state must come again, bit for bit.
    Exact,
    /// The same run, longer, shorter or evaluated otherwise from here on.
    Extended,
    /// A run of its own.
    Branch,
    /// The same run, of which another engine or device computes the rest; why.
    Inexact(Vec<String>),
}

/// How a run goes on with a state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// As that run.
    Itself,
    /// As a run of its own.
    Branch,
}

/// Refuses settings that differ from the run's and may not. Gives what changes, from and to, by the setting's key.
///
/// # Errors
/// [`crate::error::Kind::Refused`] listing every one of them, and how it can be had.
pub fn changes(run: &Settings, wanted: &Settings, how: As) -> Result<BTreeMap<String, [String; 2]>> {
    let changed = config::changed(run, wanted);
    let refused: Vec<&(&Field, String, String)> =
        changed.iter().filter(|(field, _, _)| !allowed(field.class, how)).collect();
    if refused.is_empty() {
        return Ok(changed.into_iter().map(|(f, old, new)| (f.key.to_owned(), [old, new])).collect());
    }
    let list: Vec<String> = refused
        .iter()
        .map(|(field, old, new)| format!("{} is {old} in this run, {new} was asked for", field.name))
        .collect();
    let never = refused.iter().any(|(field, _, _)| field.class == Class::Refused);
    let hint = match (how, never) {
        (As::Itself, false) => {
            "leave these flags out, or begin a run of its own with this state and these settings: train --branch --resume-from-checkpoint RUN --output-dir NEW"
        }
        _ => {
            "leave these flags out: the state is made for them; train --init-adapter begins a new run with weights only"
        }
    };
    let verb = if how == As::Branch { "branch" } else { "resume" };
    Err(Error::refused(format!("{verb} refused: {}", list.join("; "))).hint(hint))
}

fn allowed(class: Class, how: As) -> bool {
    match class {
        Class::Free | Class::Recorded | Class::Length | Class::Start => true,
        Class::Branch => how == As::Branch,
        Class::Refused => false,
    }
}

/// The class of a field of an identity, by its path; `None` for the arithmetic, which `--allow-inexact` is for.
fn class_of(field: &str) -> Option<Class> {
    let setting =
        field.strip_prefix("settings.").map(|key| fields::find(key).map_or(Class::Refused, |f| f.class));
    match field.split('.').next() {
        Some("engine") => None,
        Some("settings") => setting,
        Some("data") if !field.starts_with("data.tokenizer") => Some(Class::Branch),
        _ => Some(Class::Refused),
    }
}

/// Compares what decided the state's result with what is here now. Gives why the run is inexact from now on.
///
/// # Errors
/// [`crate::error::Kind::Refused`] listing every field, old and new.
pub fn compare(state: &Identity, now: &Identity, how: As, allow_inexact: bool) -> Result<Vec<String>> {
    let differences = state.differences(now);
    // A branch has the parent's beginning, whatever its own seed would have given.
    let matters = |d: &&Difference| how == As::Itself || d.field != "adapter.initial";
    let arithmetic = |d: &&Difference| class_of(&d.field).is_none();
    let (inexact, other): (Vec<&Difference>, Vec<&Difference>) =
        differences.iter().filter(matters).partition(arithmetic);
    let wrong: Vec<&Difference> = other
        .into_iter()
        .filter(|d| !class_of(&d.field).is_some_and(|class| allowed(class, how)))
        .chain(inexact.iter().copied().filter(|_| !allow_inexact))
        .collect();
    let shown = |v: &Option<String>| v.clone().unwrap_or_else(|| "absent".into());
    let told = |d: &&Difference| format!("{} {} -> {}", d.field, shown(&d.old), shown(&d.new));
    if wrong.is_empty() {
        return Ok(inexact.iter().map(told).collect());
    }
    let remedy = if wrong.iter().all(|d| class_of(&d.field).is_none()) {
        "--allow-inexact continues all the same, and the run is marked inexact for ever"
    } else if how == As::Itself && wrong.iter().all(|d| class_of(&d.field) == Some(Class::Branch)) {
        "give the run its own settings and files back (`qwentune resume RUN` does), or begin a run of its own with this state: train --branch --resume-from-checkpoint RUN --output-dir NEW"
    } else {
        "give the run its own settings and files back (`qwentune resume RUN` does), or start a new run with --init-adapter"
    };
    let list: Vec<String> = wrong.iter().map(told).collect();
    Err(Error::refused(format!("the checkpoint does not belong to this run: {}", list.join("; ")))
        .hint(remedy))
}
