//! How a workload is sampled: until it has warmed up, then for as long as there is time.

use super::conditions::Watch;
use super::report::{Better, Conditions, Measurement};
use super::statistics;
use crate::error::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

/// Fewest samples that a result should have.
pub const FEWEST_SAMPLES: usize = 9;

/// Most samples of a result; more say no more.
const MOST_SAMPLES: usize = 101;

/// Two windows in a row that agree within this fraction end the warm-up.
const SETTLED: f64 = 0.02;

/// Share of the time that the warm-up may take.
const WARM_UP_SHARE: f64 = 0.4;

/// Shortest sample, seconds: work that is shorter is repeated within one sample.
const SHORTEST_SAMPLE: f64 = 0.05;

/// Fraction of the processors' time, used by others, above which a sample is flagged.
const BUSY: f64 = 0.05;

/// One pass over a workload's work.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Work done, in the workload's own unit (tokens, floating-point operations, …).
    pub work: f64,
    /// Seconds of it that count.
    pub seconds: f64,
}

/// Something that can be measured again and again in one process.
pub trait Workload {
    /// The result's labels; its samples are empty.
    fn labels(&self) -> Measurement;

    /// Does the work once.
    ///
    /// # Errors
    /// Whatever the work ends with: it is then no figure.
    fn pass(&mut self) -> Result<Pass>;

    /// Digest of what was computed, the same however many passes were made.
    ///
    /// # Errors
    /// When the work cannot be done.
    fn digest(&mut self) -> Result<Option<String>>;

    /// Figures that follow from the median, each named with its unit.
    ///
    /// # Errors
    /// When a figure that has to be measured cannot be.
    fn details(&mut self, median: f64) -> Result<BTreeMap<String, Value>>;
}

/// One sample's value, and what it was taken under.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Work per second, or seconds of a pass, as the workload's direction says.
    pub value: f64,
    /// What the machine did meanwhile.
    pub conditions: Conditions,
}

/// A workload with the number of passes that make a sample.
pub struct Sampler<'a> {
    workload: &'a mut dyn Workload,
    better: Better,
    passes: usize,
    watch: Watch,
}

impl<'a> Sampler<'a> {
    /// A sampler of one pass a sample, until [`Sampler::warm_up`] knows better.
    pub fn new(workload: &'a mut dyn Workload, watch: Watch) -> Self {
        let better = workload.labels().better;
        Sampler { workload, better, passes: 1, watch }
    }

    /// Takes one sample.
    ///
    /// # Errors
    /// As [`Workload::pass`].
    pub fn sample(&mut self) -> Result<Sample> {
        let begin = self.watch.begin();
        let (mut work, mut seconds) = (0.0, 0.0);
        for _ in 0..self.passes {
            let pass = self.workload.pass()?;
            work += pass.work;
            seconds += pass.seconds;
        }
        let value = match self.better {
            Better::Higher => work / seconds,
            Better::Lower => seconds / self.passes as f64,
        };
        Ok(Sample { value, conditions: self.watch.end(begin) })
    }

    /// Repeats the work until two windows agree within 2 %, at most for `budget` seconds; true when they did.
    ///
    /// # Errors
    /// As [`Workload::pass`].
    pub fn warm_up(&mut self, budget: f64) -> Result<bool> {
        let begin = Instant::now();
        let first = self.sample()?;
        let one = first.conditions.seconds.max(1e-9);
        self.passes = ((SHORTEST_SAMPLE / one).ceil() as usize).max(1);
        let mut before = if self.passes == 1 { first.value } else { self.sample()?.value };
        while begin.elapsed().as_secs_f64() < budget {
            let now = self.sample()?.value;
            if (now / before - 1.0).abs() < SETTLED {
                return Ok(true);
            }
            before = now;
        }
        Ok(false)
    }
}

/// Measures `workload` within about `budget` seconds.
///
/// # Errors
/// As [`Workload`]'s own.
pub fn measure(workload: &mut dyn Workload, budget: f64, watch: Watch) -> Result<Measurement> {
    let begin = Instant::now();
    let labels = workload.labels();
    let digest = workload.digest()?;
    let mut sampler = Sampler::new(workload, watch);
    let settled = sampler.warm_up(budget * WARM_UP_SHARE)?;
    let (mut values, mut conditions) = (Vec::new(), Vec::new());
    while values.is_empty() || (begin.elapsed().as_secs_f64() < budget && values.len() < MOST_SAMPLES) {
        let sample = sampler.sample()?;
        values.push(sample.value);
        conditions.push(sample.conditions);
    }
    let mut measurement = labels.with_samples(values, conditions);
    measurement.settled = settled;
    measurement.digest = digest;
    measurement.details = workload.details(measurement.median)?;
    measurement.flags = flags(&measurement, budget);
    Ok(measurement)
}

/// What speaks against a result's samples.
#[must_use]
pub fn flags(m: &Measurement, budget: f64) -> Vec<String> {
    let mut flags = Vec::new();
    if !m.settled {
        flags.push(format!("the warm-up did not settle within 2 % in {:.0} s", budget * WARM_UP_SHARE));
    }
    if m.samples.len() < FEWEST_SAMPLES {
        flags
            .push(format!("only {} samples in {budget:.0} s; --seconds gives it more time", m.samples.len()));
    }
    let mut busy = |what: &str, of: fn(&Conditions) -> Option<f64>| {
        let shares: Vec<f64> = m.conditions.iter().filter_map(of).collect();
        if !shares.is_empty() && statistics::median(&shares) > BUSY {
            flags.push(format!("{what} {:.0} % of the processors", 100.0 * statistics::median(&shares)));
        }
    };
    busy("other processes used", |c| c.others);
    busy("the hypervisor took", |c| c.steal);
    let gpu = || m.conditions.iter().filter_map(|c| c.gpu.as_ref());
    let mut reasons: Vec<&String> = gpu().flat_map(|state| &state.throttled).collect();
    reasons.sort();
    reasons.dedup();
    for reason in reasons {
        let count = gpu().filter(|state| state.throttled.contains(reason)).count();
        flags.push(format!("the GPU's clock was lowered in {count} samples: {reason}"));
    }
    if let Some(others) = gpu().filter_map(|state| state.other_processes).max().filter(|n| *n > 0) {
        flags.push(format!("{others} other processes were on the GPU"));
    }
    flags
}
