//! What a checkpoint holds. Its bytes are a function of this alone.

use std::collections::{BTreeMap, BTreeSet};

/// Everything that decides the result of a run: name to value, both plain text. Keys are grouped by their
/// first word: `model.`, `tokenizer.`, `data.`, `settings.`, `adapter.`, `engine.`, `device.`; and of a run that was
/// imported `lineage.` and `optimizer.`, which no file here can tell again: a resume takes them from the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(pub BTreeMap<String, String>);

/// A difference between two identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub field: String,
    /// Value in the checkpoint, if it has one.
    pub old: Option<String>,
    /// Value now, if there is one.
    pub new: Option<String>,
}

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

/// A piece of the learning-rate schedule: a run that was extended has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleSegment {
    /// Steps done when it began.
    pub first_step: u64,
    /// Steps of the run as planned then.
    pub total_steps: u64,
    /// Warm-up steps of the segment.
    pub warmup_steps: u64,
}

/// Where the run stands beside its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cursor {
    /// Rows consumed, over all epochs.
    pub samples: u64,
    /// Tokens processed, padding left out.
    pub tokens: u64,
    /// Best evaluation so far: its loss and step.
    pub best: Option<(f64, u64)>,
    /// Evaluations since the best.
    pub stale_evaluations: u64,
    /// The schedule's pieces, first to last; never empty in a valid checkpoint.
    pub schedule: Vec<ScheduleSegment>,
}

/// A line of `metrics.jsonl` without its clock.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum LogLine {
    /// A training step.
    Step { step: u64, epoch: f64, loss: f64, grad_norm: f64, lr: f64, tokens: u64 },
    /// An evaluation.
    Eval { step: u64, epoch: f64, eval_loss: f64 },
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
    /// Tensors, in canonical order, without gaps.
    pub tensors: Vec<TensorEntry>,
    /// LoRA parameters, f32.
    pub weights: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Counters, schedule, best.
    pub cursor: Cursor,
    /// Every line logged since the start.
    pub log: Vec<LogLine>,
}

/// Where the state came from, when it was not computed from step 0 by this program.
pub const IMPORTED: &str = "lineage.imported";
/// By how many steps AdamW's count of updates is behind the run's: moments that began at zero later than the
/// run, or steps that a gradient scaler left out. Absent: none.
const UPDATES_BEHIND: &str = "optimizer.updates_behind";

impl Identity {
    /// Takes over what only the checkpoint knows.
    pub fn carry(&mut self, checkpoint: &Identity) {
        let known = |key: &String| key.starts_with("lineage.") || key.starts_with("optimizer.");
        self.0.extend(checkpoint.0.iter().filter(|(key, _)| known(key)).map(|(k, v)| (k.clone(), v.clone())));
    }

    /// Records that AdamW has made fewer updates than the run steps.
    pub fn set_updates_behind(&mut self, steps: u64) {
        if steps > 0 {
            self.0.insert(UPDATES_BEHIND.into(), steps.to_string());
        }
    }

    /// Steps by which AdamW's count is behind the run's, which is at `step`.
    ///
    /// # Errors
    /// What is recorded is no such number.
    pub fn updates_behind(&self, step: u64) -> Result<u64, String> {
        let Some(text) = self.0.get(UPDATES_BEHIND) else { return Ok(0) };
        let steps = text.parse().ok().filter(|behind| *behind <= step);
        steps.ok_or_else(|| format!("{UPDATES_BEHIND} is {}, at step {step}", text.escape_debug()))
    }

    /// All fields in which `self` (the checkpoint's) and `now` differ, sorted by field.
    #[must_use]
    pub fn differences(&self, now: &Identity) -> Vec<Difference> {
        let fields: BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        fields
            .into_iter()
            .filter(|field| self.0.get(*field) != now.0.get(*field))
            .map(|field| Difference {
                field: field.clone(),
                old: self.0.get(field).cloned(),
                new: now.0.get(field).cloned(),
            })
            .collect()
    }

    /// One JSON object of strings: keys in byte order, no white space, the escapes of `serde_json`. Equal
    /// identities give equal bytes.
    #[must_use]
    pub fn canonical_json(&self) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
        format!("{{{}}}", pairs.join(","))
    }

    /// Reads what [`Identity::canonical_json`] wrote, and nothing else: another spelling of the same object
    /// (white space, order, a key twice) is an error.
    ///
    /// # Errors
    /// Says what is not canonical.
    pub fn from_canonical_json(bytes: &[u8]) -> Result<Identity, String> {
        let map = serde_json::from_slice(bytes).map_err(|e| format!("not an object of strings: {e}"))?;
        let identity = Identity(map);
        if identity.canonical_json().as_bytes() == bytes {
            Ok(identity)
        } else {
            Err("not in canonical form".into())
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl TensorEntry {
    /// Elements, or `None` when their number overflows.
    #[must_use]
    pub fn elements(&self) -> Option<usize> {
        self.shape[0].checked_mul(self.shape[1])
    }
}

impl LogLine {
    /// The step it belongs to.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            LogLine::Step { step, .. } | LogLine::Eval { step, .. } => *step,
        }
    }

    fn is_finite(&self) -> bool {
        match self {
            LogLine::Step { epoch, loss, grad_norm, lr, .. } => {
                [epoch, loss, grad_norm, lr].iter().all(|x| x.is_finite())
            }
            LogLine::Eval { epoch, eval_loss, .. } => epoch.is_finite() && eval_loss.is_finite(),
        }
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

    fn check_cursor(&self) -> Result<(), Flaw> {
        let c = &self.cursor;
        if let Some((loss, step)) = c.best
            && (!loss.is_finite() || step > self.step)
        {
            return Err(Flaw::of("CUR", format!("best loss {loss} of step {step}, at step {}", self.step)));
        }
        let Some(last) = c.schedule.last() else {
            return Err(Flaw::of("CUR", "no schedule"));
        };
        if self.step > last.total_steps {
            return Err(Flaw::of("CUR", format!("step {} of {}", self.step, last.total_steps)));
        }
        let ordered = c.schedule.windows(2).all(|w| w[0].first_step <= w[1].first_step);
        let begun = c.schedule.iter().all(|s| s.first_step <= self.step && s.first_step <= s.total_steps);
        if ordered && begun { Ok(()) } else { Err(Flaw::of("CUR", "schedule segments out of order")) }
    }

    /// Steps count up by one and end at this state's step; evaluations stand between the steps they belong
    /// to. A run that was imported begins its log later, or has none yet.
    fn check_log(&self) -> Result<(), Flaw> {
        let mut previous: Option<u64> = None;
        for (i, line) in self.log.iter().enumerate() {
            let step = line.step();
            let follows = match (line, previous) {
                (_, None) => true,
                (LogLine::Step { .. }, Some(p)) => p.checked_add(1) == Some(step),
                (LogLine::Eval { .. }, Some(p)) => p == step,
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
