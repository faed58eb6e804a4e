//! `metrics.jsonl`: one line a step, the same lines however often the run was interrupted.

use super::folder::RunFolder;
use crate::checkpoint::storage::{self, Stored};
use crate::error::{Error, Result};
use crate::report::jsonl::{self, Line};
use crate::report::line::LogLine;
use std::collections::VecDeque;
use std::path::PathBuf;

/// The file in a run folder.
pub const NAME: &str = "metrics.jsonl";
/// Lines that were set aside.
const OLD: &str = "metrics.jsonl.old";
/// Largest log that is read: at 300 bytes a line, ten million steps.
pub const MAX_BYTES: u64 = 3 << 30;

/// The metrics file of a run, and the lines an interrupted run had logged beyond its checkpoint.
pub struct Metrics {
    path: PathBuf,
    file: Box<dyn Stored>,
    /// Where its next line goes.
    end: u64,
    /// Every line of the file.
    lines: Vec<Line>,
    /// Lines in the file that are still to be computed again.
    ahead: VecDeque<LogLine>,
    repeated: Option<(u64, u64)>,
    /// Whether a write failed; the file is then rebuilt at the end.
    failed: bool,
}

/// What becomes of lines that were logged beyond the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The same plan logged them: they must come again, bit for bit.
    Repeats,
    /// Another plan did: they are kept in a file of their own.
    SetAside,
}

impl Metrics {
    /// Opens the file for a run that stands right after the lines of `log`; where the file and `log` differ, it is
    /// rebuilt from `log`. Gives a sentence on lines that were set aside.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn open(folder: &RunFolder, log: &[LogLine], proof: Proof) -> Result<(Self, Option<String>)> {
        let path = folder.tree().path().join(NAME);
        // A torn tail and everything after a damaged line is left out.
        let old = folder.read(NAME, MAX_BYTES)?.map(|bytes| jsonl::read(&bytes).lines).unwrap_or_default();
        let kept = old.iter().zip(log).take_while(|(line, logged)| line.logged == **logged).count();
        let beyond = old[kept..].to_vec();
        let mut lines = old[..kept].to_vec();
        lines.extend(log[kept..].iter().map(|logged| Line { logged: *logged, seconds: None }));
        let mut ahead = VecDeque::new();
        let mut told = None;
        if kept == log.len() && proof == Proof::Repeats {
            ahead.extend(beyond.iter().map(|line| line.logged));
            lines.extend(beyond);
        } else if let (Some(first), Some(last)) = (beyond.first(), beyond.last()) {
            folder.put(OLD, text(&beyond).as_bytes())?;
            told = Some(format!(
                "what was logged of the steps {} to {} is of another plan and is not compared; kept in {OLD}",
                first.logged.step(),
                last.logged.step()
            ));
        }
        let text = text(&lines);
        let file = storage::put_file(folder.tree(), NAME, text.as_bytes())
            .map_err(|e| Error::io("writing", &path, e))?;
        let end = text.len() as u64;
        Ok((Metrics { path, file, end, lines, ahead, repeated: None, failed: false }, told))
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
            let text = line.json();
            self.failed |= storage::write_all(&*self.file, self.end, text.as_bytes()).is_err();
            self.end += text.len() as u64;
            self.lines.push(line);
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
        let _ = self.file.sync();
    }

    /// At the end: writes the file anew if a write had failed, and makes it durable.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn finish(&mut self, folder: &RunFolder) -> Result<()> {
        self.sync();
        if self.failed {
            folder.put(NAME, text(&self.lines).as_bytes())?;
            self.failed = false;
        }
        Ok(())
    }

    /// Every line of the file.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(Line::json).collect()
}
