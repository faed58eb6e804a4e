//! What a benchmark found, as it is stored: every sample, and everything needed to judge whether two reports may be compared.

use super::statistics;
use crate::error::{Error, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the stored form; raised when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// Largest report that is read, bytes.
const MOST_BYTES: u64 = 64 << 20;

/// Results of one call of `bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was measured.
    pub program: Program,
    /// Where it was measured.
    pub machine: Machine,
    /// One entry for each workload and combination of its parameters.
    pub results: Vec<Measurement>,
}

/// The program that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Version of the crate.
    pub version: String,
    /// Commit, where the caller named one.
    pub commit: Option<String>,
    /// BLAKE3 of the executable.
    pub binary: String,
    /// Fingerprint of the GPU's kernels, where it has any.
    pub kernels: Option<String>,
}

/// The machine, as far as it decides speed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The device in words: a GPU's name, or the processor's.
    pub device: String,
    /// Version of the GPU's driver.
    pub driver: Option<String>,
    /// The GPU's power limit, watts.
    pub power_limit_w: Option<u32>,
    /// Threads that it runs at once.
    pub threads: usize,
    /// Operating system and architecture.
    pub system: String,
}

/// Whether a larger value is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// As of tokens per second.
    Higher,
    /// As of seconds.
    Lower,
}

/// What one sample was taken under.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Wall-clock seconds of the sample.
    pub seconds: f64,
    /// Fraction of all processors' time that other processes used.
    pub others: Option<f64>,
    /// Fraction of all processors' time that the hypervisor gave to others.
    pub steal: Option<f64>,
    /// State of the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuState>,
}

/// A GPU's clocks and temper during a sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuState {
    /// Clock of the multiprocessors, MHz.
    pub sm_mhz: Option<u32>,
    /// Clock of the memory, MHz.
    pub memory_mhz: Option<u32>,
    /// Temperature, degrees Celsius.
    pub celsius: Option<u32>,
    /// Power, watts.
    pub watts: Option<f64>,
    /// Reasons why the clock is lowered, as the driver names them.
    pub throttled: Vec<String>,
    /// Other processes that compute on the device.
    pub other_processes: Option<usize>,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was run: `train`, `ops`, …
    pub workload: String,
    /// What was measured, e.g. `tokens_per_second`.
    pub name: String,
    /// Unit of the values.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
    /// What tells this result from others of the same name: shape, tokens, rank, device, …
    pub parameters: BTreeMap<String, Value>,
    /// Every sample, in the order they were taken.
    pub samples: Vec<f64>,
    /// Their median.
    pub median: f64,
    /// Their median absolute deviation.
    pub mad: f64,
    /// 95 % interval of the median.
    pub interval: [f64; 2],
    /// Places of samples far outside the others; they count like all.
    pub outliers: Vec<usize>,
    /// Whether two windows in a row agreed within 2 % before the first sample.
    pub settled: bool,
    /// BLAKE3 of what the work computed, where it computes something comparable.
    pub digest: Option<String>,
    /// What speaks against the samples.
    pub flags: Vec<String>,
    /// Derived and accompanying figures, each named with its unit.
    pub details: BTreeMap<String, Value>,
    /// What each sample was taken under.
    pub conditions: Vec<Conditions>,
}

impl Measurement {
    /// A result of which nothing is known yet.
    #[must_use]
    pub fn empty(workload: &str, name: &str, unit: &str, better: Better) -> Self {
        Measurement {
            workload: workload.into(),
            name: name.into(),
            unit: unit.into(),
            better,
            parameters: BTreeMap::new(),
            samples: Vec::new(),
            median: 0.0,
            mad: 0.0,
            interval: [0.0; 2],
            outliers: Vec::new(),
            settled: false,
            digest: None,
            flags: Vec::new(),
            details: BTreeMap::new(),
            conditions: Vec::new(),
        }
    }

    /// Workload, name and parameters in one line: what a result is found by in another report.
    #[must_use]
    pub fn label(&self) -> String {
        let mut label = format!("{}/{}", self.workload, self.name);
        for (key, value) in &self.parameters {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            label += &format!(" {key}={value}");
        }
        label
    }

    /// Adds how much of the device's fastest product of this size, in TFLOP/s, its own rate is, where it has one.
    #[must_use]
    pub fn beside_peak(mut self, peak: f64) -> Self {
        if let Some(rate) = self.details.get("tflops_per_second").and_then(Value::as_f64) {
            self.details.insert("matmul_peak_tflops_per_second".into(), Value::from(peak));
            self.details.insert("of_matmul_peak".into(), Value::from(rate / peak));
        }
        self
    }

    /// Puts samples in, and what they say.
    ///
    /// # Panics
    /// Without samples.
    #[must_use]
    pub fn with_samples(mut self, samples: Vec<f64>, conditions: Vec<Conditions>) -> Self {
        self.median = statistics::median(&samples);
        self.mad = statistics::median_absolute_deviation(&samples);
        self.interval = statistics::median_interval(&samples);
        self.outliers = statistics::outliers(&samples);
        self.samples = samples;
        self.conditions = conditions;
        self
    }
}

impl Report {
    /// Reads a stored report.
    ///
    /// # Errors
    /// A file that is no report, or one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let fault = |what: String| Error::input(format!("{}: {what}", path.display()));
        let text = files::read_text(path, MOST_BYTES)?;
        let value: Value = serde_json::from_str(&text).map_err(|e| fault(format!("no report: {e}")))?;
        let version = value.get("schema_version").and_then(Value::as_u64);
        if version != Some(u64::from(SCHEMA_VERSION)) {
            let found = version.map_or("no schema_version".into(), |v| format!("schema_version {v}"));
            return Err(fault(format!("{found}, this program reads {SCHEMA_VERSION}"))
                .hint("measure again with one program, or compare with the program that wrote it"));
        }
        let report: Report = serde_json::from_value(value).map_err(|e| fault(format!("no report: {e}")))?;
        match report.results.iter().find(|m| m.samples.is_empty()) {
            Some(empty) => Err(fault(format!("{} has no samples", empty.label()))),
            None => Ok(report),
        }
    }

    /// The result that measures the same as `other`.
    #[must_use]
    pub fn find(&self, other: &Measurement) -> Option<&Measurement> {
        let same = |m: &&Measurement| {
            (&m.workload, &m.name, &m.unit, &m.parameters)
                == (&other.workload, &other.name, &other.unit, &other.parameters)
        };
        self.results.iter().find(same)
    }
}
