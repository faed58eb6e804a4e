//! `metrics.jsonl`: one JSON object a line; floats parse back to the same bits.

use super::line::LogLine;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What was logged.
    #[serde(flatten)]
    pub logged: LogLine,
    /// Wall-clock seconds it took; `None` where a line was rebuilt from a checkpoint, which keeps no clock.
    pub seconds: Option<f64>,
}

impl Line {
    /// The line with its newline. All floats must be finite, `seconds` included.
    #[must_use]
    pub fn json(&self) -> String {
        // Plain numbers always serialise.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Reads one line, without its newline.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let seconds = fields.remove("seconds").ok_or("seconds are missing")?;
        let seconds = Option::<f64>::deserialize(seconds).map_err(|e| format!("seconds: {e}"))?;
        let is_evaluation = fields.contains_key("eval_loss");
        let fields = Value::Object(fields);
        let logged = if is_evaluation {
            serde_json::from_value(fields).map(LogLine::Eval)
        } else {
            serde_json::from_value(fields).map(LogLine::Step)
        };
        Ok(Line { logged: logged.map_err(|e| e.to_string())?, seconds })
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
