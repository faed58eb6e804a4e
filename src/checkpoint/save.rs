//! Putting a checkpoint on the shelf so that it survives a power failure, and taking old ones off.

use super::encode::{self, Sink};
use super::format::{Digest, Fault, Reading, read};
use super::shelf::{Shelf, file_name};
use super::state::{Flaw, State};
use super::storage::{Stored, write_all};
use crate::error::{Error, Kind, Result};
use std::io;
use std::path::PathBuf;

/// Damaged or replaced files that are kept, of each sort.
const KEPT_ASIDE: usize = 2;

/// What stands under the name a checkpoint is to get.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupied {
    /// Nothing.
    No,
    /// The very same bytes.
    Same,
    /// A whole checkpoint with other bytes.
    Other,
}

impl Shelf {
    /// Saves `state`. When this returns a path, the checkpoint was read back whole and survives a power
    /// failure; when it returns an error, the checkpoints that were there are as before.
    ///
    /// A whole checkpoint of the same step and the same bytes is only synced. One with other bytes (a run
    /// continued differently) is kept as `.old`, a damaged one as `.bad`.
    ///
    /// # Errors
    /// [`Kind::Diverged`] for a state that is not finite, [`Kind::Check`] for an inconsistent one, [`Kind::Io`]
    /// for a full disk or a failure to write (after a second attempt with a new file).
    pub fn save(&mut self, state: &State) -> Result<PathBuf> {
        check(state)?;
        let name = file_name(state.step);
        let mut occupied = self.occupant(&name, state).map_err(|e| self.failure(state, &e))?;
        if occupied == Occupied::Same && self.sync_again(&name).is_ok() {
            return Ok(self.finish(state, name));
        }
        let mut attempt = self.write_new(state, &name, occupied);
        if let Err(e) = &attempt
            && !is_full(e)
        {
            occupied = self.occupant(&name, state).map_err(|e| self.failure(state, &e))?;
            attempt = self.write_new(state, &name, occupied);
        }
        attempt.map_err(|e| self.failure(state, &e))?;
        Ok(self.finish(state, name))
    }

    fn finish(&mut self, state: &State, name: String) -> PathBuf {
        let path = self.folder.path().join(&name);
        if !self.folder.in_place() {
            let text = format!(
                "the checkpoint folder was moved during the run; it is now {}",
                self.folder.path().display()
            );
            if !self.warnings.contains(&text) {
                self.warnings.push(text);
            }
        }
        self.verified.insert(name.clone());
        if let Err(e) = self.prune(state) {
            self.warnings.push(format!("old checkpoints could not be removed: {e}"));
        }
        path
    }

    fn occupant(&mut self, name: &str, state: &State) -> io::Result<Occupied> {
        if !self.folder.list()?.iter().any(|n| n == name) {
            return Ok(Occupied::No);
        }
        match self.read(name, Reading::Verify) {
            Ok((header, _)) if header.digest == digest(state)? => Ok(Occupied::Same),
            Ok(_) => Ok(Occupied::Other),
            Err(Fault::Damaged(why)) => {
                let text = self.set_aside(name, &why)?;
                self.warnings.push(text);
                Ok(Occupied::No)
            }
            Err(Fault::OtherVersion(what)) => {
                Err(io::Error::other(format!("{name} is there already: {what}")))
            }
            Err(Fault::Io(e)) => Err(e),
        }
    }

    /// The file may have been published by a process that was killed before it could sync.
    fn sync_again(&mut self, name: &str) -> io::Result<()> {
        self.folder.open(name)?.sync()?;
        self.sync_folder()
    }

    fn write_new(&mut self, state: &State, name: &str, occupied: Occupied) -> io::Result<()> {
        let temp = format!(".{name}.tmp");
        let done = self.fill(state, &temp).and_then(|()| self.put_in_place(&temp, name, occupied));
        if done.is_err() {
            // After a failed write or sync the file's pages cannot be trusted: never synced again, removed.
            let _ = self.folder.unlink(&temp);
        }
        done
    }

    fn fill(&mut self, state: &State, temp: &str) -> io::Result<()> {
        let file = match self.folder.create(temp) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.folder.unlink(temp)?;
                self.folder.create(temp)?
            }
            other => other?,
        };
        retry(|| file.allocate(encode::file_len(state)))?;
        let digest = encode::write(state, &mut FileSink(&*file))?;
        file.sync()?;
        let reading = if self.weakened.digests_ignored { Reading::DigestsIgnored } else { Reading::Verify };
        match read(&*file, reading) {
            Ok((header, _)) if header.digest == digest => Ok(()),
            Ok(_) => Err(io::Error::other("reading back gives other bytes")),
            Err(Fault::Damaged(what) | Fault::OtherVersion(what)) => {
                Err(io::Error::other(format!("reading back: {what}")))
            }
            Err(Fault::Io(e)) => Err(e),
        }
    }

    /// From here on the new file may be found under its name; it is whole and synced.
    fn put_in_place(&mut self, temp: &str, name: &str, occupied: Occupied) -> io::Result<()> {
        let old = format!("{name}.old");
        let _ = self.remove_next(name);
        match occupied {
            Occupied::No => self.folder.rename(temp, name, false)?,
            Occupied::Same => self.folder.rename(temp, name, true)?,
            Occupied::Other => {
                // Two names for a moment, so that at no instant there is none.
                self.remove_if_there(&old)?;
                self.folder.link(name, &old)?;
                self.folder.rename(temp, name, true)?;
                self.warnings.push(format!("{name} was there with other content; kept as {old}"));
            }
        }
        let synced = self.sync_folder();
        if synced.is_err() {
            // Not durable, so it must not look saved.
            let _ = match occupied {
                Occupied::No => self.folder.unlink(name),
                Occupied::Same => Ok(()),
                Occupied::Other => self.folder.rename(&old, name, true),
            };
        }
        synced
    }

    fn remove_if_there(&self, name: &str) -> io::Result<()> {
        match self.folder.unlink(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn remove_next(&self, name: &str) -> io::Result<()> {
        self.remove_if_there(&name.replace(".qckpt", ".next"))
    }

    /// Removes what is older than the newest `keep` checkpoints that were read back whole; never the best, and the one
    /// just saved.
    fn prune(&mut self, saved: &State) -> io::Result<()> {
        let stays = [saved.cursor.best.map(|best| best.step), Some(saved.step)];
        let entries = self.scan()?;
        let mut changed = false;
        if entries.len() > self.keep {
            let mut whole = 0;
            let mut doomed = Vec::new();
            for entry in entries {
                if whole < self.keep {
                    whole += usize::from(self.is_whole(&entry.name)?);
                } else if entry.header.is_ok() && !stays.contains(&Some(entry.step)) {
                    doomed.push(entry.name);
                }
            }
            changed = !doomed.is_empty();
            for name in doomed.iter().rev() {
                self.remove_next(name)?;
                self.folder.unlink(name)?;
                self.verified.remove(name);
            }
        }
        changed |= self.remove_orphans()?;
        for suffix in [".bad", ".old"] {
            changed |= self.thin_out(suffix)?;
        }
        if changed { self.sync_folder() } else { Ok(()) }
    }

    /// Renames the checkpoints of later steps than `step` to `.old` and says so: for a run that goes on from an
    /// older checkpoint and may come to other results. Otherwise they would be found as the newest.
    ///
    /// # Errors
    /// [`Kind::Io`] when it cannot be done.
    pub fn set_aside_newer(&mut self, step: u64) -> Result<Vec<String>> {
        let path = self.folder.path();
        self.try_set_aside_newer(step).map_err(|e| Error::io("renaming files in", &path, e))
    }

    fn try_set_aside_newer(&mut self, step: u64) -> io::Result<Vec<String>> {
        let mut told = Vec::new();
        for entry in self.scan()?.into_iter().filter(|e| e.header.is_ok() && e.step > step) {
            let old = format!("{}.old", entry.name);
            self.folder.rename(&entry.name, &old, true)?;
            self.verified.remove(&entry.name);
            told.push(format!("{} is of a later step; kept as {old}", entry.name));
        }
        self.remove_orphans()?;
        self.sync_folder()?;
        Ok(told)
    }

    fn is_whole(&mut self, name: &str) -> io::Result<bool> {
        if self.verified.contains(name) {
            return Ok(true);
        }
        match self.read(name, Reading::Verify) {
            Ok(_) => {
                self.verified.insert(name.to_owned());
                Ok(true)
            }
            Err(Fault::Damaged(why)) => {
                let text = self.set_aside(name, &why)?;
                self.warnings.push(text);
                Ok(false)
            }
            Err(Fault::OtherVersion(_)) => Ok(false),
            Err(Fault::Io(e)) => Err(e),
        }
    }

    /// Of files set aside with `suffix`, keeps those of the latest steps.
    fn thin_out(&self, suffix: &str) -> io::Result<bool> {
        let mut names: Vec<(u64, String)> = Vec::new();
        for name in self.folder.list()? {
            if let Some(step) = name.strip_suffix(suffix).and_then(super::shelf::step_of) {
                names.push((step, name));
            }
        }
        names.sort_unstable();
        let surplus = names.len().saturating_sub(KEPT_ASIDE);
        for (_, name) in &names[..surplus] {
            self.folder.unlink(name)?;
        }
        Ok(surplus > 0)
    }

    fn failure(&self, state: &State, e: &io::Error) -> Error {
        let folder = self.folder.path();
        if is_full(e) {
            let need = megabytes(encode::file_len(state));
            let free = self.folder.free_bytes().map_or_else(|| "too little".to_owned(), megabytes);
            let why = match e.raw_os_error() {
                Some(libc::EDQUOT) => ": the quota is used up",
                Some(libc::EFBIG) => ": over the limit for the size of a file",
                _ => "",
            };
            return Error::new(Kind::Io, format!("need {need}, {free} free in {}{why}", folder.display()))
                .hint("free some space; the checkpoints saved before are untouched");
        }
        if e.kind() == io::ErrorKind::NotFound && !self.folder.in_place() {
            return Error::output(format!("{} was deleted during the run", folder.display()));
        }
        let what = format!("writing {}: {e}", folder.join(file_name(state.step)).display());
        Error::new(Kind::Io, what).hint("the checkpoints saved before are untouched")
    }
}

fn check(state: &State) -> Result<()> {
    state.check().map_err(|flaw| {
        let kind = match flaw {
            Flaw::NotFinite { .. } => Kind::Diverged,
            Flaw::Inconsistent { .. } => Kind::Check,
        };
        Error::new(kind, format!("the state of step {} is not saved: {flaw}", state.step)).caused_by(flaw)
    })
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

fn megabytes(bytes: u64) -> String {
    if bytes < 10_000_000 {
        format!("{} kB", bytes.div_ceil(1000))
    } else {
        format!("{} MB", bytes / 1_000_000)
    }
}

fn retry(mut operation: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match operation() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The digest `state` will have, without writing it.
fn digest(state: &State) -> io::Result<Digest> {
    struct Nowhere;
    impl Sink for Nowhere {
        fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }
    encode::write(state, &mut Nowhere)
}

struct FileSink<'a>(&'a dyn Stored);

impl Sink for FileSink<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        write_all(self.0, offset, bytes)
    }
}
