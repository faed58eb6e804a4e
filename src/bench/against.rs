//! Two programs measured in turn, A B B A, so that whatever the machine does meanwhile meets both alike. Each runs as a
//! process that has set itself up and takes one sample when it is asked; the other one waits.

use super::compare::{self, Comparison, Pairing};
use super::report::{Conditions, Measurement};
use super::sampling::{FEWEST_SAMPLES, Sampler, Workload, flags};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use super::conditions::Watch;

/// Most pairs of samples.
const MOST_PAIRS: usize = 100;

/// What a serving process is asked for, one word a line.
const WARM_UP: &str = "warm-up";
const SAMPLE: &str = "sample";

/// What a serving process answers, one JSON object a line.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The workload is set up: its labels and the digest of what it computes.
    Ready { labels: Box<Measurement>, digest: Option<String> },
    /// Whether the warm-up settled.
    Warm { settled: bool },
    /// One sample.
    Sample { value: f64, conditions: Conditions },
}

/// Answers the requests of another process about one workload, until `input` ends.
///
/// # Errors
/// What the workload fails with; a request that is unknown.
pub fn serve(
    workload: &mut dyn Workload,
    watch: Watch,
    budget: f64,
    input: &mut dyn BufRead,
    answer: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    let mut tell = |a: &Answer| answer(&serde_json::to_string(a).expect("an answer always prints"));
    let ready = Answer::Ready { labels: Box::new(workload.labels()), digest: workload.digest()? };
    tell(&ready)?;
    let mut sampler = Sampler::new(workload, watch);
    let mut line = String::new();
    loop {
        line.clear();
        let read = input.read_line(&mut line);
        if read.map_err(|e| Error::io("reading requests from", Path::new("standard input"), e))? == 0 {
            return Ok(());
        }
        match line.trim() {
            WARM_UP => tell(&Answer::Warm { settled: sampler.warm_up(budget)? })?,
            SAMPLE => {
                let sample = sampler.sample()?;
                tell(&Answer::Sample { value: sample.value, conditions: sample.conditions })?;
            }
            other => {
                return Err(Error::usage(format!("request {other:?} is neither {WARM_UP} nor {SAMPLE}")));
            }
        }
    }
}

/// A process that serves one workload.
struct Side {
    program: PathBuf,
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    measurement: Measurement,
    values: Vec<f64>,
    conditions: Vec<Conditions>,
}

impl Side {
    fn start(program: &Path, arguments: &[String]) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("starting", program, e);
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let mut answers = BufReader::new(answers);
        let ready = receive(program, &mut answers);
        let (labels, digest) = match ready {
            Ok(Answer::Ready { labels, digest }) => (*labels, digest),
            other => {
                _ = child.kill();
                _ = child.wait();
                return Err(other.err().unwrap_or_else(|| unexpected(program)));
            }
        };
        let measurement = Measurement { digest, ..labels };
        let program = program.to_owned();
        Ok(Side {
            program,
            child,
            requests,
            answers,
            measurement,
            values: Vec::new(),
            conditions: Vec::new(),
        })
    }

    fn ask(&mut self, request: &str) -> Result<Answer> {
        let sent = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        sent.map_err(|e| Error::io("asking", &self.program, e))?;
        receive(&self.program, &mut self.answers)
    }

    fn warm_up(&mut self) -> Result<()> {
        let Answer::Warm { settled } = self.ask(WARM_UP)? else { return Err(unexpected(&self.program)) };
        self.measurement.settled = settled;
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        let Answer::Sample { value, conditions } = self.ask(SAMPLE)? else {
            return Err(unexpected(&self.program));
        };
        self.values.push(value);
        self.conditions.push(conditions);
        Ok(())
    }

    /// Ends the process and gives what it measured.
    fn end(self, budget: f64) -> Measurement {
        let Side { mut child, requests, measurement, values, conditions, .. } = self;
        drop(requests);
        _ = child.wait();
        let mut measurement = measurement.with_samples(values, conditions);
        measurement.flags = flags(&measurement, budget);
        measurement
    }
}

fn receive(program: &Path, answers: &mut dyn BufRead) -> Result<Answer> {
    let mut line = String::new();
    let read = answers.read_line(&mut line).map_err(|e| Error::io("reading from", program, e))?;
    if read == 0 {
        return Err(Error::check(format!("{} ended before it answered", program.display())).hint(
            "its own message stands above; a program from before `bench` existed cannot be measured against",
        ));
    }
    serde_json::from_str(&line).map_err(|_| unexpected(program))
}

fn unexpected(program: &Path) -> Error {
    Error::check(format!("{} does not answer as a `bench` of this version does", program.display()))
        .hint("build the older commit, or measure both apart with -o json and use `bench compare`")
}

/// Both sides' results and what they say.
pub struct Outcome {
    /// The other program's result.
    #[cfg_attr(not(feature = "internals"), allow(dead_code))]
    pub old: Measurement,
    /// This program's result.
    pub new: Measurement,
    /// The verdict.
    pub comparison: Comparison,
}

/// Measures `old` and `new`, which get the same `arguments`, for about `budget` seconds each.
///
/// # Errors
/// A program that cannot be started or answers otherwise; programs that measure different work.
pub fn run(old: &Path, new: &Path, arguments: &[String], budget: f64, threshold: f64) -> Result<Outcome> {
    let (mut a, mut b) = (Side::start(old, arguments)?, Side::start(new, arguments)?);
    if a.measurement.label() != b.measurement.label() {
        return Err(Error::usage(format!(
            "the programs do not measure the same: {} and {}",
            a.measurement.label(),
            b.measurement.label()
        )));
    }
    a.warm_up()?;
    b.warm_up()?;
    let begin = Instant::now();
    let enough = |pairs: usize| {
        let spent = begin.elapsed().as_secs_f64() >= 2.0 * budget;
        pairs >= MOST_PAIRS
            || (spent && pairs >= FEWEST_SAMPLES)
            || begin.elapsed().as_secs_f64() >= 6.0 * budget
    };
    while a.values.is_empty() || !enough(a.values.len()) {
        // A B, then B A: a drift that is steady over four samples cancels.
        if a.values.len().is_multiple_of(2) {
            a.sample()?;
            b.sample()?;
        } else {
            b.sample()?;
            a.sample()?;
        }
    }
    let (old, new) = (a.end(budget), b.end(budget));
    let comparison = compare::measurements(&old, &new, threshold, Pairing::Interleaved);
    Ok(Outcome { old, new, comparison })
}
