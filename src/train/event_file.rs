//! The event file of a run for TensorBoard: the lines of `metrics.jsonl`, in the same order, however often the run was
//! interrupted. A file of its own name is written anew at each start, from the lines that count, and then appended to;
//! records that are in it already keep their bytes, so that a reader who follows the file goes on where it was.

use super::folder::RunFolder;
use crate::checkpoint::storage::{self, Stored};
use crate::error::{Error, Result};
use crate::report::jsonl::Line;
use crate::report::tensorboard;
use std::time::{SystemTime, UNIX_EPOCH};

/// The file in a run folder. TensorBoard finds its files by `tfevents` in their names.
pub const NAME: &str = "events.out.tfevents.0.qwentune";
/// Largest file that is read: as many steps as `metrics.jsonl` may have.
const MAX_BYTES: u64 = 3 << 30;

/// An open event file.
pub struct EventFile {
    file: Box<dyn Stored>,
    /// Where its next record goes.
    end: u64,
}

impl EventFile {
    /// Opens the file with the records of `lines`, and of no others.
    ///
    /// # Errors
    /// I/O errors, naming the path.
    pub fn open(folder: &RunFolder, lines: &[Line]) -> Result<Self> {
        let before = folder.read(NAME, MAX_BYTES)?.unwrap_or_default();
        let mut old = tensorboard::read(&before).into_iter();
        let begun = old.next().map_or_else(now, |(seconds, _)| seconds);
        let mut bytes = tensorboard::beginning(begun);
        for line in lines {
            let kept =
                old.next().filter(|(seconds, record)| *record == tensorboard::logged(*seconds, &line.logged));
            match kept {
                Some((_, record)) => bytes.extend_from_slice(record),
                None => bytes.extend(tensorboard::logged(now(), &line.logged)),
            }
        }
        let file = storage::put_file(folder.tree(), NAME, &bytes)
            .map_err(|e| Error::io("writing", &folder.shown(NAME), e))?;
        Ok(EventFile { file, end: bytes.len() as u64 })
    }

    /// Appends the records of `lines`.
    ///
    /// # Errors
    /// I/O errors. The next [`EventFile::open`] mends what they left.
    pub fn append(&mut self, lines: &[Line]) -> std::io::Result<()> {
        for line in lines {
            let record = tensorboard::logged(now(), &line.logged);
            storage::write_all(&*self.file, self.end, &record)?;
            self.end += record.len() as u64;
        }
        Ok(())
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
