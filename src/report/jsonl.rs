//! `metrics.jsonl`: one JSON object a line; floats parse back to the same bits.

use super::event::{EvalLine, StepLine};
use serde::{Deserialize, Serialize};

/// One line of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// An optimizer step.
    Step(StepLine),
    /// An evaluation.
    Eval(EvalLine),
}

/// A training line as written; the order of the fields is the order in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepWire {
    step: u64,
    epoch: f64,
    loss: f64,
    grad_norm: f64,
    lr: f64,
    tokens: u64,
    seconds: Option<f64>,
}

/// An evaluation line as written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EvalWire {
    step: u64,
    epoch: f64,
    eval_loss: f64,
    seconds: Option<f64>,
}

impl Line {
    /// The line with its newline. All floats must be finite, `seconds` included.
    #[must_use]
    pub fn to_json(&self) -> String {
        let text = match self {
            Line::Step(l) => serde_json::to_string(&StepWire {
                step: l.step,
                epoch: l.epoch,
                loss: l.loss,
                grad_norm: l.grad_norm,
                lr: l.lr,
                tokens: l.tokens,
                seconds: l.seconds,
            }),
            Line::Eval(l) => serde_json::to_string(&EvalWire {
                step: l.step,
                epoch: l.epoch,
                eval_loss: l.eval_loss,
                seconds: l.seconds,
            }),
        };
        // Plain numbers always serialise.
        text.unwrap_or_default() + "\n"
    }

    /// Reads one line, without its newline.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |e: serde_json::Error| e.to_string();
        if text.contains("\"eval_loss\"") {
            let EvalWire { step, epoch, eval_loss, seconds } = serde_json::from_str(text).map_err(wrong)?;
            return Ok(Line::Eval(EvalLine { step, epoch, eval_loss, seconds }));
        }
        let StepWire { step, epoch, loss, grad_norm, lr, tokens, seconds } =
            serde_json::from_str(text).map_err(wrong)?;
        Ok(Line::Step(StepLine { step, epoch, loss, grad_norm, lr, tokens, seconds }))
    }

    /// The step it belongs to.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Line::Step(l) => l.step,
            Line::Eval(l) => l.step,
        }
    }
}

/// What a `metrics.jsonl` holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The lines before the first damage.
    pub lines: Vec<Line>,
    /// Bytes these lines take; cutting the file here leaves only whole lines.
    pub valid_bytes: usize,
    /// What is wrong behind them, if anything: a torn last line, or a line that does not parse.
    pub damage: Option<String>,
}

/// Reads a whole file. A last line without its newline was torn off while being written.
#[must_use]
pub fn read(bytes: &[u8]) -> Metrics {
    let mut metrics = Metrics::default();
    for (index, piece) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let number = index + 1;
        let Some(line) = piece.strip_suffix(b"\n") else {
            metrics.damage = Some(format!("line {number} is torn ({} bytes, no line end)", piece.len()));
            break;
        };
        let parsed = std::str::from_utf8(line).map_err(|e| e.to_string()).and_then(Line::parse);
        match parsed {
            Ok(line) => metrics.lines.push(line),
            Err(why) => {
                metrics.damage = Some(format!("line {number}: {why}"));
                break;
            }
        }
        metrics.valid_bytes += piece.len();
    }
    metrics
}
