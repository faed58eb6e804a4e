//! The forms a report is printed in: ours, and those that gates of others read.

use super::compare::Comparison;
use super::report::{Better, Measurement, Report};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Markdown table.
    Markdown,
    /// The report itself.
    Json,
    /// One line for each result, each with program and machine.
    JsonLines,
    /// Comma-separated values, one row a result.
    Csv,
    /// Entries of github-action-benchmark (`customBiggerIsBetter`, `customSmallerIsBetter`).
    Github,
    /// Bencher's metric format.
    Bmf,
    /// Google Benchmark's JSON, which its `compare.py` reads.
    Google,
}

impl Format {
    /// Names, as `-o` takes them.
    pub const NAMES: [(&'static str, Format); 7] = [
        ("md", Format::Markdown),
        ("json", Format::Json),
        ("jsonl", Format::JsonLines),
        ("csv", Format::Csv),
        ("github", Format::Github),
        ("bmf", Format::Bmf),
        ("google", Format::Google),
    ];

    /// The format of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// The report in this form, with a line feed at its end.
    ///
    /// # Errors
    /// [`Format::Github`], whose file has one direction, of a report that has both.
    pub fn render(self, report: &Report) -> Result<String> {
        Ok(match self {
            Format::Markdown => markdown(report),
            Format::Json => pretty(&json!(report)),
            Format::JsonLines => json_lines(report),
            Format::Csv => csv(report),
            Format::Github => github(report)?,
            Format::Bmf => pretty(&bmf(report)),
            Format::Google => pretty(&google(report)),
        })
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a JSON value always prints") + "\n"
}

/// A number with four significant digits.
#[must_use]
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        v if v >= 1.0 => 3,
        _ => return format!("{value:.3e}"),
    };
    format!("{value:.digits$}")
}

fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text =
        format!("{}, {} threads, qwentune {}", machine.device, machine.threads, report.program.version);
    if let Some(commit) = &report.program.commit {
        text += &format!(", commit {commit}");
    }
    text += "\n\n| result | median | 95 % interval | samples | unit | digest |\n| --- | ---: | ---: | ---: | --- | --- |\n";
    for m in &report.results {
        let digest = m.digest.as_deref().map_or("", |digest| &digest[..digest.len().min(12)]);
        let [low, high] = m.interval.map(short);
        text += &format!(
            "| {} | {} | {low} to {high} | {} | {} | {digest} |\n",
            m.label().replace('|', "\\|"),
            short(m.median),
            m.samples.len(),
            m.unit
        );
    }
    for m in &report.results {
        if !m.details.is_empty() {
            let details: Vec<String> = m.details.iter().map(|(k, v)| format!("{k} {}", detail(v))).collect();
            text += &format!("\n{}: {}\n", m.label(), details.join(", "));
        }
        for flag in &m.flags {
            text += &format!("\nnote: {}: {flag}\n", m.label());
        }
    }
    text
}

fn detail(value: &Value) -> String {
    match value {
        Value::Number(n) if n.is_f64() => n.as_f64().map_or_else(String::new, short),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One line for each result, as a ledger holds them.
#[must_use]
pub fn json_lines(report: &Report) -> String {
    let line = |m: &Measurement| {
        let entry = json!({
            "schema_version": report.schema_version, "program": report.program, "machine": report.machine, "result": m,
        });
        entry.to_string() + "\n"
    };
    report.results.iter().map(line).collect()
}

fn csv(report: &Report) -> String {
    let mut text = String::from(
        "workload,name,parameters,unit,median,mad,low,high,samples,settled,digest,device,threads,version,binary\n",
    );
    let quoted = |word: &str| {
        let plain = !word.contains([',', '"', '\n']);
        if plain { word.to_owned() } else { format!("\"{}\"", word.replace('"', "\"\"")) }
    };
    for m in &report.results {
        let parameters = json!(m.parameters).to_string();
        let words = [
            m.workload.clone(),
            m.name.clone(),
            parameters,
            m.unit.clone(),
            m.median.to_string(),
            m.mad.to_string(),
            m.interval[0].to_string(),
            m.interval[1].to_string(),
            m.samples.len().to_string(),
            m.settled.to_string(),
            m.digest.clone().unwrap_or_default(),
            report.machine.device.clone(),
            report.machine.threads.to_string(),
            report.program.version.clone(),
            report.program.binary.clone(),
        ];
        text += &(words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(",") + "\n");
    }
    text
}

/// github-action-benchmark's custom form: `[{name, unit, value, range, extra}]`. A file is read as "bigger is better" or
/// "smaller is better" as a whole.
fn github(report: &Report) -> Result<String> {
    let directions = |wanted: Better| report.results.iter().any(|m| m.better == wanted);
    if directions(Better::Higher) && directions(Better::Lower) {
        return Err(Error::usage("-o github: the report has results of both directions, one file can hold only one")
            .hint("measure workloads whose results are rates and those whose results are times in calls of their own"));
    }
    let entry = |m: &Measurement| {
        let half = (m.interval[1] - m.interval[0]) / 2.0;
        json!({
            "name": m.label(), "unit": m.unit, "value": m.median, "range": format!("± {}", short(half)),
            "extra": format!("{} samples, digest {}", m.samples.len(), m.digest.as_deref().unwrap_or("none")),
        })
    };
    Ok(pretty(&Value::Array(report.results.iter().map(entry).collect())))
}

/// Bencher's metric format: benchmark → measure → value with its bounds.
fn bmf(report: &Report) -> Value {
    let mut all = Map::new();
    for m in &report.results {
        let [low, high] = m.interval;
        let measure = json!({ m.name.replace('_', "-"): { "value": m.median, "lower_value": low, "upper_value": high } });
        all.insert(m.label(), measure);
    }
    Value::Object(all)
}

/// Google Benchmark's form: one entry a sample, as its repetitions, then the aggregates. Its times are seconds of a unit
/// of work, so that smaller is better there too.
fn google(report: &Report) -> Value {
    let mut entries = Vec::new();
    for m in &report.results {
        let seconds = |value: f64| if m.better == Better::Lower { value } else { 1.0 / value };
        let times: Vec<f64> = m.samples.iter().map(|v| seconds(*v) * 1e9).collect();
        let count = times.len();
        let entry = |name: String, time: f64| {
            json!({
                "name": name, "run_name": m.label(), "repetitions": count, "threads": 1, "iterations": 1,
                "real_time": time, "cpu_time": time, "time_unit": "ns",
            })
        };
        for (index, time) in times.iter().enumerate() {
            let mut one = entry(m.label(), *time);
            one["run_type"] = json!("iteration");
            one["repetition_index"] = json!(index);
            entries.push(one);
        }
        let mean = times.iter().sum::<f64>() / count as f64;
        let median = super::statistics::median(&times);
        let variance = times.iter().map(|t| (t - mean) * (t - mean)).sum::<f64>() / (count.max(2) - 1) as f64;
        for (name, value) in [("mean", mean), ("median", median), ("stddev", variance.sqrt())] {
            let mut one = entry(format!("{}_{name}", m.label()), value);
            one["run_type"] = json!("aggregate");
            one["aggregate_name"] = json!(name);
            one["aggregate_unit"] = json!("time");
            entries.push(one);
        }
    }
    json!({
        "context": {
            "executable": "qwentune", "num_cpus": report.machine.threads, "caches": [], "library_build_type": "release",
            "qwentune_version": report.program.version, "device": report.machine.device,
        },
        "benchmarks": entries,
    })
}

/// A comparison as Markdown.
#[must_use]
pub fn comparison_table(comparisons: &[Comparison]) -> String {
    let mut text = String::from(
        "| verdict | result | speed, new / old | 95 % interval | threshold | same numbers |\n| --- | --- | ---: | ---: | ---: | --- |\n",
    );
    for c in comparisons {
        let numbers = match c.same_numbers {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        text += &format!(
            "| {} | {} | {:.3} | {:.3} to {:.3} | {:.1} % | {numbers} |\n",
            c.verdict,
            c.label.replace('|', "\\|"),
            c.speed,
            c.interval[0],
            c.interval[1],
            100.0 * c.threshold
        );
    }
    for c in comparisons {
        for note in &c.notes {
            text += &format!("\nnote: {}: {note}\n", c.label);
        }
    }
    text
}
