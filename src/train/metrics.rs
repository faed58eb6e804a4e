//! `metrics.jsonl`: one line a step, the same lines however often the run was interrupted.

use crate::error::{Error, Result};
use crate::failpoint;
use crate::formats::atomic_file;
use crate::report::jsonl::{self, Line};
use crate::report::line::LogLine;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The metrics file of a run, and the lines an interrupted run had logged beyond its checkpoint.
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// Lines in the file that are still to be computed again.
    ahead: VecDeque<LogLine>,
    repeated: Option<(u64, u64)>,
    exact: bool,
    /// Whether a write failed; the file is then rebuilt at the end.
    failed: bool,
}

/// The whole lines of `path`; a torn tail and everything after a damaged line is left out.
fn read_lines(path: &Path) -> Result<Vec<Line>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(jsonl::read(&bytes).lines),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}

impl Metrics {
    /// Opens the file for a run that stands right after the lines of `log`. Lines of the file beyond them
    /// are what the continuation must repeat; where the file and `log` differ, the file is rebuilt from
    /// `log`. With `exact` false nothing needs to repeat: the file is cut back to `log`.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn open(path: &Path, log: &[LogLine], exact: bool) -> Result<Self> {
        let old = read_lines(path)?;
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
        atomic_file::write(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::io("opening", path, e))?;
        Ok(Metrics { path: path.to_owned(), file, ahead, repeated: None, exact, failed: false })
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
    pub fn push(&mut self, line: &Line) -> Result<Option<(u64, u64)>> {
        let now = line.logged;
        let Some(before) = self.ahead.pop_front() else {
            let text = line.to_json();
            if failpoint::hit_halfway() {
                let _ = self.file.write_all(&text.as_bytes()[..text.len() / 2]);
                failpoint::die_if_halfway();
            }
            self.failed |= self.file.write_all(text.as_bytes()).is_err();
            return Ok(None);
        };
        if before != now {
            return Err(Error::check(format!(
                "step {} was computed again and differs from what {} holds:\n  logged   {before:?}\n  computed {now:?}",
                now.step(),
                self.path.display()
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
        let _ = self.file.sync_data();
    }

    /// At the end: rebuilds the file if a write had failed, and makes it durable.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn finish(&mut self, log: &[LogLine]) -> Result<()> {
        self.sync();
        if self.failed {
            *self = Metrics::open(&self.path, log, self.exact)?;
            self.sync();
        }
        Ok(())
    }

    /// Every line of the file.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn lines(&self) -> Result<Vec<Line>> {
        read_lines(&self.path)
    }
}
