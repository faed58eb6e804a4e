//! `step-N.next`: the loss of the forward passes that follow step N, left beside its checkpoint when a run ends
//! or is stopped, so that the continuation has something to be compared with. No part of the checkpoint: the
//! run may end without it.

use super::shelf::{Shelf, file_name};
use super::storage::write_all;
use crate::error::{Error, Result};
use std::io;

const FIRST_LINE: &str = "qwentune next-loss 1";
/// Far more than the losses of a step need.
const LONGEST: u64 = 1 << 20;

impl Shelf {
    /// Leaves `losses` beside the checkpoint of `step`, replacing what was there.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`] when it cannot be written.
    pub fn write_next_loss(&mut self, step: u64, losses: &[f64]) -> Result<()> {
        let name = name(step);
        let path = self.folder.path().join(&name);
        self.replace_file(&name, text(step, losses).as_bytes()).map_err(|e| Error::io("writing", &path, e))
    }

    fn replace_file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temp = format!(".{name}.tmp");
        let file = match self.folder.create(&temp) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.folder.unlink(&temp)?;
                self.folder.create(&temp)?
            }
            other => other?,
        };
        let written = write_all(&*file, 0, bytes)
            .and_then(|()| file.sync())
            .and_then(|()| self.folder.rename(&temp, name, true))
            .and_then(|()| self.sync_folder());
        if written.is_err() {
            let _ = self.folder.unlink(&temp);
        }
        written
    }

    /// The losses left beside the checkpoint of `step`, if any. A damaged file is reported as a warning and
    /// counts as none: the run is not worse for it.
    ///
    /// # Errors
    /// As [`Error::reading`], when the file is there and cannot be read.
    pub fn read_next_loss(&mut self, step: u64) -> Result<Option<Vec<f64>>> {
        let name = name(step);
        let path = self.folder.path().join(&name);
        let file = match self.folder.open(&name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::reading(&path, e))?,
        };
        let mut bytes = Vec::new();
        let len = file.size().map_err(|e| Error::reading(&path, e))?;
        if len <= LONGEST {
            bytes.resize(len as usize, 0);
            file.read_at(0, &mut bytes).map_err(|e| Error::reading(&path, e))?;
        }
        let losses = parse(step, &bytes);
        if losses.is_none() {
            self.warnings.push(format!("{}: damaged, not used", path.display()));
        }
        Ok(losses)
    }
}

fn name(step: u64) -> String {
    file_name(step).replace(".qckpt", ".next")
}

fn text(step: u64, losses: &[f64]) -> String {
    let mut text = format!("{FIRST_LINE}\nstep {step}\n");
    for loss in losses {
        text.push_str(&format!("loss {:016x}\n", loss.to_bits()));
    }
    let digest = blake3::hash(text.as_bytes());
    format!("{text}blake3 {}\n", digest.to_hex())
}

/// What [`text`] made, and nothing else: the text is made again and compared.
fn parse(step: u64, bytes: &[u8]) -> Option<Vec<f64>> {
    let content = std::str::from_utf8(bytes).ok()?;
    let losses: Option<Vec<f64>> = content
        .lines()
        .filter_map(|line| line.strip_prefix("loss "))
        .map(|hex| u64::from_str_radix(hex, 16).ok().map(f64::from_bits))
        .collect();
    losses.filter(|losses| text(step, losses) == content)
}
