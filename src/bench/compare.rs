//! Two series of the same result: faster, slower, the same, or not to be told.

use super::report::{Better, Measurement, Report};
use super::statistics;
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;

/// What a comparison says. A difference is one whose 99.5 % interval
/// lies wholly beyond the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Faster by more than the threshold.
    Faster,
    /// Slower by more than the threshold.
    Slower,
    /// Any difference is within the threshold.
    Same,
    /// The samples do not tell.
    Unsure,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Faster => "FASTER",
            Verdict::Slower => "SLOWER",
            Verdict::Same => "SAME",
            Verdict::Unsure => "UNSURE",
        })
    }
}

/// One result in two reports.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The result's label.
    pub label: String,
    /// What it says.
    pub verdict: Verdict,
    /// Speed of the new one over that of the old one: above 1 is better whatever the unit.
    pub speed: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
    /// The fraction that a difference must exceed: what was asked for, or the noise of the machine where that is more.
    pub threshold: f64,
    /// Whether both computed the same; `None` where nothing was digested.
    pub same_numbers: Option<bool>,
    /// What makes the verdict unsure, or deserves a look.
    pub notes: Vec<String>,
}

impl Comparison {
    /// Whether a gate has to stop here.
    #[must_use]
    pub fn fails(&self) -> bool {
        self.verdict == Verdict::Slower || self.same_numbers == Some(false)
    }
}

/// How the samples of both sides belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Taken in turn, one pair after the other: the k-th of both belong together.
    Interleaved,
    /// Taken at different times.
    Apart,
}

/// Compares two results of the same work. `threshold`: smallest fraction that counts as a difference.
#[must_use]
pub fn measurements(old: &Measurement, new: &Measurement, threshold: f64, pairing: Pairing) -> Comparison {
    let ratio = match pairing {
        Pairing::Interleaved => statistics::paired_ratio(&new.samples, &old.samples),
        Pairing::Apart => statistics::ratio(&new.samples, &old.samples),
    };
    let speed = match new.better {
        Better::Higher => ratio,
        Better::Lower => ratio.inverse(),
    };
    let noise = match pairing {
        Pairing::Interleaved => 0.0,
        Pairing::Apart => statistics::drift(&old.samples).max(statistics::drift(&new.samples)),
    };
    let threshold = threshold.max(noise);
    let mut notes = Vec::new();
    for (side, measurement) in [("old", old), ("new", new)] {
        notes.extend(measurement.flags.iter().map(|flag| format!("{side}: {flag}")));
    }
    let [low, high] = speed.interval;
    let told = if speed.sure[0] > 1.0 + threshold {
        Verdict::Faster
    } else if speed.sure[1] < 1.0 - threshold {
        Verdict::Slower
    } else if low >= 1.0 - threshold && high <= 1.0 + threshold {
        Verdict::Same
    } else {
        Verdict::Unsure
    };
    // Samples of two times can only be compared when the machine was the same both times: other work on it, or too few
    // samples to see its drift, make a difference worth nothing.
    let doubtful = pairing == Pairing::Apart && !notes.is_empty();
    let verdict = if doubtful && told != Verdict::Same { Verdict::Unsure } else { told };
    let same_numbers = old.digest.as_ref().zip(new.digest.as_ref()).map(|(old, new)| old == new);
    Comparison {
        label: new.label(),
        verdict,
        speed: speed.value,
        interval: speed.interval,
        threshold,
        same_numbers,
        notes,
    }
}

/// Compares every result of `new` with the one of the same label in `old`.
///
/// # Errors
/// Reports of different machines, unless `force`; reports without a result in common; results that only one of them has.
pub fn reports(old: &Report, new: &Report, threshold: f64, force: bool) -> Result<Vec<Comparison>> {
    let differences = differences(old, new);
    if !differences.is_empty() && !force {
        return Err(Error::usage(format!(
            "the reports were not made on the same machine: {}",
            differences.join("; ")
        ))
        .hint("measure both on one machine, or give --force to compare all the same"));
    }
    let missing = |from: &Report, of: &Report| -> Vec<String> {
        of.results.iter().filter(|m| from.find(m).is_none()).map(Measurement::label).collect()
    };
    let (gone, added) = (missing(new, old), missing(old, new));
    if (!gone.is_empty() || !added.is_empty()) && !force {
        let side = |what: &str, labels: &[String]| match labels {
            [] => String::new(),
            some => format!(" only in the {what}: {};", some.join(", ")),
        };
        let text = format!("{}{}", side("old", &gone), side("new", &added));
        return Err(Error::usage(format!(
            "the reports do not hold the same results:{}",
            text.trim_end_matches(';')
        ))
        .hint("measure the same workloads, or give --force to compare what both have"));
    }
    let all: Vec<Comparison> = new
        .results
        .iter()
        .filter_map(|m| Some(measurements(old.find(m)?, m, threshold, Pairing::Apart)))
        .collect();
    if all.is_empty() {
        return Err(Error::usage("the reports have no result in common"));
    }
    Ok(all)
}

/// What of the machines differs, in words.
fn differences(old: &Report, new: &Report) -> Vec<String> {
    let (a, b) = (&old.machine, &new.machine);
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    let watts = |value: Option<u32>| value.map_or_else(|| "none".into(), |w| format!("{w} W"));
    [
        ("device", a.device.clone(), b.device.clone()),
        ("driver", shown(&a.driver), shown(&b.driver)),
        ("power limit", watts(a.power_limit_w), watts(b.power_limit_w)),
        ("threads", a.threads.to_string(), b.threads.to_string()),
        ("system", a.system.clone(), b.system.clone()),
    ]
    .into_iter()
    .filter(|(_, old, new)| old != new)
    .map(|(name, old, new)| format!("{name} {old} -> {new}"))
    .collect()
}
