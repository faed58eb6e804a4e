//! What a checkpoint holds. Its bytes are a function of this alone.

use super::format::Digest;
use crate::identity::{self, Identity};
use crate::report::line::LogLine;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One adapter tensor inside the flat arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// PEFT's name.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// First element in the flat arrays.
    pub offset: usize,
}

/// How long the run is, from a step on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Length {
    /// Steps done when it began to count.
    pub from_step: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// Warm-up steps of its schedule.
    pub warmup_steps: u64,
}

/// A setting that does not decide the numbers of a step but what is logged or chosen, changed on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Steps done when it began to count.
    pub from_step: u64,
    /// The setting's key.
    pub setting: String,
    /// Its value as text.
    pub value: String,
}

/// How a state came from another run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Descent {
    /// Continued with other settings.
    Branch,
    /// Made by another program.
    Import,
}

/// A state of another run that this one went on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// How.
    pub descent: Descent,
    /// The state's step.
    pub step: u64,
    /// Digest of its checkpoint's header, hex; of an imported one, of its weights and moments.
    pub digest: String,
}

/// What of the run's past decides how it goes on, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Its lengths; never empty in a valid checkpoint.
    pub lengths: Vec<Length>,
    /// Settings changed on the way.
    pub changes: Vec<Change>,
    /// Other runs' states it went on from.
    pub lineage: Vec<Ancestor>,
    /// Where the present plan of the data begins.
    pub plan: PlanOrigin,
}

/// Where the numbering of a plan of the data begins: at zero, or for a branch with other data where it left its parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanOrigin {
    /// Steps done before its first.
    pub step: u64,
    /// Epochs counted before its first.
    pub epoch: u64,
    /// Rows consumed before it.
    pub samples: u64,
}

impl History {
    /// That of a new run.
    #[must_use]
    pub fn new(total_steps: u64, warmup_steps: u64) -> Self {
        let lengths = vec![Length { from_step: 0, total_steps, warmup_steps }];
        History { lengths, ..History::default() }
    }

    /// The length recorded last.
    #[must_use]
    pub fn length(&self) -> Option<&Length> {
        self.lengths.last()
    }

    /// The length that counts for the step after `done` steps.
    #[must_use]
    pub fn at(&self, done: u64) -> Option<&Length> {
        self.lengths.iter().rev().find(|length| length.from_step <= done).or(self.lengths.first())
    }

    /// What of it lies before `step`: so the state of a step is the same whether or not a change from there on was
    /// already asked for.
    #[must_use]
    pub fn before(&self, step: u64) -> History {
        let mut history = self.clone();
        history.lengths.retain(|length| length.from_step == 0 || length.from_step < step);
        history.changes.retain(|change| change.from_step < step);
        history
    }
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Its loss.
    pub loss: f64,
    /// Its step.
    pub step: u64,
    /// [`digest_of`] the adapter of that step.
    pub adapter: Digest,
}

/// BLAKE3 of LoRA parameters in the order and form of section W.
#[must_use]
pub fn digest_of(weights: &[f32]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for piece in weights.chunks(4096) {
        let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.finalize().into()
}

/// Where the run stands beside its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cursor {
    /// Rows consumed, over all epochs.
    pub samples: u64,
    /// Tokens processed, padding left out.
    pub tokens: u64,
    /// By how many steps AdamW's count of updates is behind the run's: moments that began at zero later than the
    /// run, or steps that a gradient scaler left out.
    pub updates_behind: u64,
    /// Best evaluation so far.
    pub best: Option<Best>,
    /// Evaluations since the best.
    pub stale_evaluations: u64,
}

/// The state of a run between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Continued although engine, device or optimizer state differed, at any time in its past.
    pub tainted: bool,
    /// What decided the result so far.
    pub identity: Identity,
    /// Lengths, changes, lineage.
    pub history: History,
    /// Tensors, in canonical order, without gaps.
    pub tensors: Vec<TensorEntry>,
    /// LoRA parameters, f32.
    pub weights: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Counters, best.
    pub cursor: Cursor,
    /// Every line logged since the start.
    pub log: Vec<LogLine>,
}

/// What section META holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    pub history: History,
    pub identity: Identity,
}

impl Meta {
    pub fn of(state: &State) -> Self {
        Meta { history: state.history.clone(), identity: state.identity.clone() }
    }

    pub fn encode(&self) -> Vec<u8> {
        identity::canonical_json(self).into_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        identity::from_canonical_json(bytes)
    }
}

impl TensorEntry {
    /// Elements, or `None` when their number overflows.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        self.shape[0].checked_mul(self.shape[1])
    }
}

/// Longest tensor name, bytes.
pub const NAME_MAX: usize = 512;

/// What is wrong with a state, by the section of the file format it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A value that is not finite, or a second moment below 0: the run diverged.
    #[error("section {section}: {place} is not finite{}", if *.section == "V" { " or negative" } else { "" })]
    NotFinite {
        /// The section.
        section: &'static str,
        /// Element and tensor, or line and step.
        place: String,
    },
    /// Parts that do not belong together, or that no run has.
    #[error("section {section}: {what}")]
    Inconsistent {
        /// The section.
        section: &'static str,
        /// The entry, and what is wrong with it.
        what: String,
    },
}

impl Flaw {
    fn of(section: &'static str, what: impl Into<String>) -> Self {
        Flaw::Inconsistent { section, what: what.into() }
    }
}

impl State {
    /// Checks what every state between two steps must hold; a writer calls it before, a reader after.
    ///
    /// # Errors
    /// Names the section (of the file format) and the entry.
    pub fn check(&self) -> Result<(), Flaw> {
        self.check_structure([self.weights.len(), self.m.len(), self.v.len()])?;
        for (section, array) in [("W", &self.weights), ("M", &self.m), ("V", &self.v)] {
            if let Some(at) = first_bad(section, array) {
                return Err(self.bad_value(section, at));
            }
        }
        Ok(())
    }

    /// [`State::check`] without the values of the arrays, of which only the lengths are given.
    pub(super) fn check_structure(&self, lengths: [usize; 3]) -> Result<(), Flaw> {
        self.check_tensors(lengths)?;
        self.check_history()?;
        self.check_cursor()?;
        self.check_log()
    }

    pub(super) fn bad_value(&self, section: &'static str, element: usize) -> Flaw {
        Flaw::NotFinite { section, place: format!("element {element} ({})", self.owner(element)) }
    }

    fn owner(&self, element: usize) -> &str {
        let after = self.tensors.partition_point(|t| t.offset <= element);
        after.checked_sub(1).map_or("no tensor", |i| self.tensors[i].name.as_str())
    }

    fn check_tensors(&self, lengths: [usize; 3]) -> Result<(), Flaw> {
        let mut names = BTreeSet::new();
        let mut next = 0usize;
        for t in &self.tensors {
            let name = t.name.escape_debug();
            if t.name.is_empty() || t.name.len() > NAME_MAX || t.name.chars().any(char::is_control) {
                return Err(Flaw::of(
                    "IDX",
                    format!("tensor name \"{name}\" is empty, too long or not printable"),
                ));
            }
            if !names.insert(t.name.as_str()) {
                return Err(Flaw::of("IDX", format!("tensor {name} twice")));
            }
            if t.offset != next {
                return Err(Flaw::of(
                    "IDX",
                    format!("tensor {name} begins at {}, expected {next}", t.offset),
                ));
            }
            let elements = t.elements().filter(|n| *n > 0);
            next = elements
                .and_then(|n| next.checked_add(n))
                .ok_or_else(|| Flaw::of("IDX", format!("tensor {name} has the shape {:?}", t.shape)))?;
        }
        for (section, length) in ["W", "M", "V"].into_iter().zip(lengths) {
            if length != next {
                return Err(Flaw::of(
                    section,
                    format!("{length} elements, the tensors of section IDX have {next}"),
                ));
            }
        }
        Ok(())
    }

    fn check_history(&self) -> Result<(), Flaw> {
        let History { lengths, changes, lineage, plan } = &self.history;
        let Some(last) = lengths.last() else {
            return Err(Flaw::of("META", "no length"));
        };
        if self.step > last.total_steps {
            return Err(Flaw::of("META", format!("step {} of {}", self.step, last.total_steps)));
        }
        let begins = [
            lengths.iter().map(|l| l.from_step).collect::<Vec<_>>(),
            changes.iter().map(|c| c.from_step).collect(),
        ];
        let ordered = begins.iter().all(|steps| steps.is_sorted() && steps.iter().all(|s| *s <= self.step));
        let ordered = ordered && lengths.iter().all(|l| l.from_step <= l.total_steps);
        let later = |step: u64| step > self.step;
        if !ordered || later(plan.step) || lineage.iter().any(|ancestor| later(ancestor.step)) {
            return Err(Flaw::of("META", "history out of order"));
        }
        Ok(())
    }

    fn check_cursor(&self) -> Result<(), Flaw> {
        let c = &self.cursor;
        if let Some(Best { loss, step, .. }) = c.best
            && (!loss.is_finite() || step > self.step)
        {
            return Err(Flaw::of("CUR", format!("best loss {loss} of step {step}, at step {}", self.step)));
        }
        if c.updates_behind > self.step {
            let what = format!("{} updates behind, at step {}", c.updates_behind, self.step);
            return Err(Flaw::of("CUR", what));
        }
        Ok(())
    }

    /// Steps count up by one and end at this state's step; evaluations stand between the steps they belong
    /// to. A run that was imported begins its log later, or has none yet.
    fn check_log(&self) -> Result<(), Flaw> {
        let mut previous: Option<u64> = None;
        for (i, line) in self.log.iter().enumerate() {
            let step = line.step();
            let follows = match (line, previous) {
                (_, None) => true,
                (LogLine::Step(_), Some(p)) => p.checked_add(1) == Some(step),
                (LogLine::Eval(_), Some(p)) => p == step,
            };
            if !follows || step > self.step {
                return Err(Flaw::of("LOG", format!("line {i} (step {step}) is out of order")));
            }
            if !line.is_finite() {
                return Err(Flaw::NotFinite { section: "LOG", place: format!("line {i} (step {step})") });
            }
            previous = Some(step);
        }
        match previous {
            Some(last) if last != self.step => {
                Err(Flaw::of("LOG", format!("ends at step {last}, the state is of step {}", self.step)))
            }
            _ => Ok(()),
        }
    }
}

/// Where an array first holds a value it must not: nothing is infinite or not a number, and second moments are
/// not negative.
pub(super) fn first_bad(section: &str, values: &[f32]) -> Option<usize> {
    let least = if section == "V" { 0.0 } else { f32::MIN };
    // One pass without a branch in it; the search only when there is something to find.
    if values.iter().fold(true, |good, x| good & (*x >= least) & (*x <= f32::MAX)) {
        return None;
    }
    values.iter().position(|x| !(*x >= least && *x <= f32::MAX))
}
