//! A folder of checkpoints and the rules it is kept by. No threads and no lock here: [`super::store`] adds
//! them. What may happen at any instant, and what holds after it, is written in `docs/checkpoint-format.md`.

use super::format::{Digest, Fault, Header, Reading, read};
use super::state::State;
use super::storage::{Folder, write_all};
use crate::error::{Error, Kind, Result};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

/// What looking for a checkpoint found.
#[derive(Debug)]
pub struct Found {
    /// The newest valid checkpoint, if any.
    pub newest: Option<(PathBuf, State)>,
    /// Its header's digest.
    pub digest: Digest,
    /// Damaged newer files: name and reason.
    pub damaged: Vec<(String, String)>,
    /// Damaged files set aside, with the reason, to be reported.
    #[cfg_attr(not(feature = "internals"), allow(dead_code))]
    pub set_aside: Vec<String>,
    /// How many checkpoint files there were in all, those set aside earlier included.
    #[cfg_attr(not(feature = "internals"), allow(dead_code))]
    pub seen: usize,
}

/// Test hooks: each takes one safeguard away, so that the tests can show that they would notice.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Weakened {
    /// Digests are not compared.
    pub digests_ignored: bool,
    /// A damaged newest file is an error, older ones are not tried.
    pub no_fallback: bool,
}

/// Checkpoints in an open folder.
pub struct Shelf {
    pub(super) folder: Box<dyn Folder>,
    pub(super) keep: usize,
    /// Files read back whole by this process.
    pub(super) verified: BTreeSet<String>,
    pub(super) warnings: Vec<String>,
    pub(super) weakened: Weakened,
}

/// `step-00001200.qckpt`
#[must_use]
pub fn file_name(step: u64) -> String {
    format!("step-{step:08}.qckpt")
}

/// The step that a checkpoint's name says; names of anything else have none.
#[must_use]
pub fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?.strip_suffix(".qckpt")?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if all_digits { digits.parse().ok() } else { None }
}

/// A checkpoint file and what its header says.
pub(super) struct Entry {
    pub name: String,
    /// By the header; by the name where the header cannot be read.
    pub step: u64,
    pub header: std::result::Result<Header, Fault>,
}

impl Shelf {
    /// A shelf in `folder`; nothing is touched yet. `keep` of 0 keeps all, 1 counts as 2.
    #[must_use]
    pub fn new(folder: Box<dyn Folder>, keep: usize) -> Self {
        Shelf {
            folder,
            keep: if keep == 0 { usize::MAX } else { keep.max(2) },
            verified: BTreeSet::new(),
            warnings: Vec::new(),
            weakened: Weakened::default(),
        }
    }

    /// Test hook.
    #[cfg(feature = "internals")]
    #[must_use]
    pub fn weakened(mut self, how: Weakened) -> Self {
        self.weakened = how;
        self
    }

    /// What is to be reported and is no error, since the last call.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Bytes that can still be written, if known.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.folder.free_bytes()
    }

    /// Tries out that files can be created, synced, renamed and removed, and removes what an interrupted save
    /// left. Only for the holder of the run's lock.
    ///
    /// # Errors
    /// [`Kind::Output`] when the folder cannot be written; [`Kind::Io`] when the disk is full or fails.
    pub fn prepare(&mut self) -> Result<()> {
        self.try_prepare().map_err(|e| {
            let what = format!("cannot write in {}: {e}", self.folder.path().display());
            match e.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::EIO) => Error::new(Kind::Io, what),
                _ => Error::output(what).hint("choose another --output-dir, or make this one writable"),
            }
        })
    }

    fn try_prepare(&mut self) -> io::Result<()> {
        for name in self.folder.list()? {
            if name.starts_with('.') && name.ends_with(".tmp") {
                self.folder.unlink(&name)?;
            }
        }
        let (before, after) = (".probe.1.tmp", ".probe.2.tmp");
        let probe = self.folder.create(before)?;
        write_all(&*probe, 0, b"probe\n")?;
        probe.sync()?;
        self.folder.rename(before, after, false)?;
        self.folder.unlink(after)?;
        self.remove_orphans()?;
        self.sync_folder()
    }

    /// Some network file systems cannot sync a folder; that is said once, and never taken for an error of
    /// the disk.
    pub(super) fn sync_folder(&mut self) -> io::Result<()> {
        match self.folder.sync() {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                let path = self.folder.path();
                let text = format!(
                    "{}: this file system cannot sync a folder; after a power failure the newest checkpoint may be missing",
                    path.display()
                );
                if !self.warnings.contains(&text) {
                    self.warnings.push(text);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// All checkpoint files, newest first.
    pub(super) fn scan(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for name in self.folder.list()? {
            let Some(named) = step_of(&name) else { continue };
            let header = self.open_header(&name);
            let step = header.as_ref().map_or(named, |h| h.step);
            entries.push(Entry { name, step, header });
        }
        // For equal steps the file with the right name first.
        entries.sort_by_key(|e| (std::cmp::Reverse(e.step), step_of(&e.name) != Some(e.step)));
        Ok(entries)
    }

    fn open_header(&self, name: &str) -> std::result::Result<Header, Fault> {
        super::decode::read_header(&*self.folder.open(name)?)
    }

    /// Reads a file whole.
    pub(super) fn read(&self, name: &str, reading: Reading) -> std::result::Result<(Header, State), Fault> {
        let reading = if self.weakened.digests_ignored { Reading::DigestsIgnored } else { reading };
        let failed = |fault: &Fault| matches!(fault, Fault::Io(e) if e.raw_os_error() == Some(libc::EIO));
        let mut found = self.read_once(name, reading);
        if found.as_ref().is_err_and(failed) {
            found = self.read_once(name, reading);
        }
        // A sector that stays bad is damage like any other; other failures to read say nothing about the file.
        found.map_err(|fault| match fault {
            fault if failed(&fault) => Fault::Damaged("the disk cannot read it".into()),
            Fault::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => Fault::Damaged("cut off".into()),
            other => other,
        })
    }

    /// The checkpoint of `step`, under its own name.
    ///
    /// # Errors
    /// [`Kind::Input`] when it is missing or damaged.
    pub fn load(&self, step: u64) -> Result<State> {
        let name = file_name(step);
        let path = self.folder.path().join(&name);
        self.read(&name, Reading::Load).map(|(_, state)| state).map_err(|fault| fault.at(&path))
    }

    /// The newest step before `limit` whose checkpoint is whole.
    #[must_use]
    pub fn whole_before(&self, limit: u64) -> Option<u64> {
        let entries = self.scan().ok()?;
        let mut earlier = entries.into_iter().map(|entry| entry.step).filter(|step| *step < limit);
        earlier.find(|step| self.load(*step).is_ok())
    }

    fn read_once(&self, name: &str, reading: Reading) -> std::result::Result<(Header, State), Fault> {
        read(&*self.folder.open(name)?, reading)
    }

    #[cfg(feature = "internals")]
    /// The newest valid checkpoint. Damaged newer ones are renamed to `.bad` once a whole one was found; while
    /// none is, everything is left as it is, so that the next look says the same.
    ///
    /// # Errors
    /// [`Kind::Input`] when there are files and none is whole, or the newest is of a newer format.
    pub fn newest(&mut self) -> Result<Found> {
        let mut found = self.look()?;
        found.set_aside = self.set_aside_damaged(&found.damaged)?;
        if let Some((path, _)) = &found.newest
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            self.verified.insert(name.to_owned());
        }
        Ok(found)
    }

    /// As [`Shelf::newest`], changing nothing: needs no lock.
    ///
    /// # Errors
    /// As [`Shelf::newest`].
    pub fn look(&mut self) -> Result<Found> {
        let path = self.folder.path();
        let listing = |e: io::Error| Error::io("reading", &path, e);
        let entries = self.scan().map_err(listing)?;
        let names = self.folder.list().map_err(listing)?;
        let earlier = names.iter().filter(|n| n.ends_with(".qckpt.bad")).count();
        let seen = entries.len() + earlier;
        let mut found = Found { newest: None, digest: [0; 32], damaged: vec![], set_aside: vec![], seen };
        for entry in entries {
            match self.read(&entry.name, Reading::Load) {
                Ok((header, state)) => {
                    if step_of(&entry.name) != Some(state.step) {
                        self.warnings.push(format!(
                            "{} holds step {}; the content counts, not the name",
                            path.join(&entry.name).display(),
                            state.step
                        ));
                    }
                    found.digest = header.digest;
                    found.newest = Some((path.join(&entry.name), state));
                    return Ok(found);
                }
                Err(Fault::Damaged(why)) => found.damaged.push((entry.name, why)),
                Err(other) => return Err(other.at(&path.join(&entry.name))),
            }
            if self.weakened.no_fallback {
                break;
            }
        }
        if seen == 0 { Ok(found) } else { Err(self.none_usable(seen, found.damaged.first())) }
    }

    /// Renames damaged files that [`Shelf::look`] told of to `.bad`; says so for each.
    ///
    /// # Errors
    /// [`Kind::Io`] when it cannot be done.
    pub fn set_aside_damaged(&mut self, damaged: &[(String, String)]) -> Result<Vec<String>> {
        let path = self.folder.path();
        let aside = |(name, why): &(String, String)| self.set_aside(name, why);
        let told: io::Result<Vec<String>> = damaged.iter().map(aside).collect();
        told.map_err(|e| Error::io("renaming files in", &path, e))
    }

    /// The checkpoint whose header's digest is `wanted`, under whatever name; changes nothing.
    ///
    /// # Errors
    /// [`Kind::Io`] when the folder cannot be read, [`Kind::Input`] when the file is damaged.
    pub fn find(&mut self, wanted: impl Fn(&Digest) -> bool) -> Result<Option<(PathBuf, Digest, State)>> {
        let path = self.folder.path();
        let names = self.folder.list().map_err(|e| Error::io("reading", &path, e))?;
        let is_checkpoint = |name: &&String| name.starts_with("step-") && name.contains(".qckpt");
        for name in names.iter().filter(is_checkpoint) {
            let Ok(Header { digest, .. }) = self.open_header(name) else { continue };
            if wanted(&digest) {
                let (_, state) = self.read(name, Reading::Load).map_err(|f| f.at(&path.join(name)))?;
                return Ok(Some((path.join(name), digest, state)));
            }
        }
        Ok(None)
    }

    fn none_usable(&self, seen: usize, first: Option<&(String, String)>) -> Error {
        let why = first.map_or_else(
            || "all were set aside as .bad earlier".to_owned(),
            |(name, why)| format!("the newest, {name}: {why}"),
        );
        let path = self.folder.path();
        Error::input(format!("no usable checkpoint among {seen} in {} ({why})", path.display()))
            .hint("--overwrite-output-dir begins at step 0; the files found are moved aside, not deleted")
    }

    /// Renames a damaged file to `.bad` and says so.
    pub(super) fn set_aside(&mut self, name: &str, why: &str) -> io::Result<String> {
        let bad = format!("{name}.bad");
        self.verified.remove(name);
        self.folder.rename(name, &bad, true)?;
        self.remove_orphans()?;
        self.sync_folder()?;
        Ok(format!("{} rejected: {why}; kept as {bad}", self.folder.path().join(name).display()))
    }

    /// Removes `.next` files whose checkpoint is gone.
    pub(super) fn remove_orphans(&mut self) -> io::Result<bool> {
        let names = self.folder.list()?;
        let mut any = false;
        for name in &names {
            let Some(stem) = name.strip_suffix(".next") else { continue };
            let checkpoint = format!("{stem}.qckpt");
            if step_of(&checkpoint).is_some() && names.binary_search(&checkpoint).is_err() {
                self.folder.unlink(name)?;
                any = true;
            }
        }
        Ok(any)
    }
}
