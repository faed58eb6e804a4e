//! `metrics.jsonl`: one line a step, the same lines however often the run was interrupted.

use super::folder::{METRICS, RunFolder};
use crate::checkpoint::storage::{self, Stored};
use crate::error::{Error, Result};
use crate::report::jsonl::{self, Line};
use crate::report::line::LogLine;
use std::collections::VecDeque;

/// The metrics file of a run, and the lines an interrupted run had logged beyond its checkpoint.
pub struct Metrics {
    folder: RunFolder,
    file: Box<dyn Stored>,
    /// Bytes of the file.
    length: u64,
    /// Every line of the file.
    lines: Vec<Line>,
    /// Lines in the file that are still to be computed again.
    ahead: VecDeque<LogLine>,
    repeated: Option<(u64, u64)>,
    exact: bool,
    /// Whether a write failed; the file is then rebuilt at the end.
    failed: bool,
}

/// Largest log that is read: at 300 bytes a line, ten million steps.
pub const MAX_BYTES: u64 = 3 << 30;

/// The whole lines of the folder's log; a torn tail and everything after a damaged line is left out.
fn read_lines(folder: &RunFolder) -> Result<Vec<Line>> {
    let bytes = storage::read_file(folder.open(), METRICS, MAX_BYTES);
    let bytes = bytes.map_err(|e| Error::io("reading", &folder.join(METRICS), e))?;
    Ok(bytes.map_or_else(Vec::new, |bytes| jsonl::read(&bytes).lines))
}

impl Metrics {
    /// Opens the file for a run that stands right after the lines of `log`. Lines of the file beyond them
    /// are what the continuation must repeat; where the file and `log` differ, the file is rebuilt from
    /// `log`. With `exact` false nothing needs to repeat: the file is cut back to `log`.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn open(folder: &RunFolder, log: &[LogLine], exact: bool) -> Result<Self> {
        let old = read_lines(folder)?;
        let known: Vec<LogLine> = old.iter().map(|line| line.logged).collect();
        let kept = known.iter().zip(log).take_while(|(a, b)| a == b).count();
        let mut lines: Vec<Line> = old[..kept].to_vec();
        lines.extend(log[kept..].iter().map(|logged| Line { logged: *logged, seconds: None }));
        let mut ahead = VecDeque::new();
        if kept == log.len() && exact {
            lines.extend(old[kept..].iter().cloned());
            ahead.extend(known[kept..].iter().copied());
        }
        let text: String = lines.iter().map(Line::to_json).collect();
        let put = storage::put_file(folder.open(), METRICS, text.as_bytes());
        let file = put.map_err(|e| Error::io("writing", &folder.join(METRICS), e))?;
        let (folder, length) = (folder.clone(), text.len() as u64);
        Ok(Metrics { folder, file, length, lines, ahead, repeated: None, exact, failed: false })
    }

    /// Whether lines are left that the continuation must repeat.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Adds a line, or compares it bit for bit with the one already logged. Returns the steps found
    /// identical when the last such line was just compared.
    ///
    /// # Errors
    /// [`crate::error::Kind::Check`] when a repeated step differs from what was logged.
    pub fn push(&mut self, line: Line) -> Result<Option<(u64, u64)>> {
        let now = line.logged;
        let Some(before) = self.ahead.pop_front() else {
            let text = line.to_json();
            self.failed |= storage::write_all(&*self.file, self.length, text.as_bytes()).is_err();
            self.length += text.len() as u64;
            self.lines.push(line);
            return Ok(None);
        };
        if before != now {
            return Err(Error::check(format!(
                "step {} was computed again and differs from what {} holds:\n  logged   {before:?}\n  computed {now:?}",
                now.step(),
                self.folder.join(METRICS).display()
            ))
            .hint("this machine does not repeat itself, or the program changed; the file and all checkpoints are untouched"));
        }
        let step = now.step();
        let first = self.repeated.map_or(step, |(first, _)| first);
        self.repeated = Some((first, step));
        Ok(if self.ahead.is_empty() { self.repeated.take() } else { None })
    }

    /// Makes the lines so far durable; best effort, the checkpoint holds them too.
    pub fn sync(&mut self) {
        let _ = self.file.sync();
    }

    /// At the end: rebuilds the file if a write had failed, and makes it durable.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn finish(&mut self, log: &[LogLine]) -> Result<()> {
        self.sync();
        if self.failed {
            *self = Metrics::open(&self.folder.clone(), log, self.exact)?;
            self.sync();
        }
        Ok(())
    }

    /// Every line of the file.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}
