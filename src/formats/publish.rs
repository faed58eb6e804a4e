//! How everything this program makes gets its name: written whole under a draft's name in the open folder, synced,
//! looked at once more together with what it was made from, and put in place in one step. After a crash at any moment
//! the name has nothing, what it had before, or the whole of the new.
//!
//! A draft in a folder that others may write in has a name nobody can guess and a lock (flock) that ends with its
//! process: a draft of ours that nobody locks was left by a killed process, and the next publication of the same name
//! removes it. In a run's folder, which one process locks, a draft of NAME is `.NAME.tmp`: see `checkpoint::storage`.
//!
//! File systems that lack a step: where an exclusive rename is missing (NFS), see [`OpenFolder::rename_new`]; where a
//! folder cannot be locked (NFS), a killed process's draft of one stays until somebody removes it.

use super::open_folder::{Access, OpenFolder, is_folder};
use crate::error::{Error, Kind, Result};
use crate::{failpoint, files};
use rustix::fs::{AtFlags, FlockOperation, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a thing is made from, when that can change while it is made.
pub trait MadeFrom {
    /// Looks again, right before the thing made gets its name.
    ///
    /// # Errors
    /// It is not what it was when it was read.
    fn check_unchanged(&self) -> Result<()>;
}

/// For what is made from memory alone.
#[derive(Clone, Copy, Debug)]
pub struct Memory;

impl MadeFrom for Memory {
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// What may have the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nothing: whatever is there stays, and is an error.
    Nothing,
    /// An earlier edition, which is replaced.
    Earlier,
}

/// Writes `bytes` to the file `path`, over an earlier one. Mode 0666 & ~umask, like every file here.
///
/// # Errors
/// I/O errors, naming the path; nothing is left behind then, and the earlier content stands.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = FileDraft::beside(path)?;
    draft.write(bytes)?;
    draft.publish(Over::Earlier, &Memory).map(|_| ())
}

// ---- files ------------------------------------------------------------------------------------------------

/// A file that has no name yet. Dropped before [`FileDraft::publish`], nothing of it stays.
#[derive(Debug)]
pub struct FileDraft {
    folder: OpenFolder,
    name: OsString,
    draft: Option<OsString>,
    file: File,
}

impl FileDraft {
    /// Begins the file `path`, in the folder it is to lie in.
    ///
    /// # Errors
    /// [`Kind::Output`] when `path` names no file; I/O.
    pub fn beside(path: &Path) -> Result<Self> {
        let (folder, name) = around(path)?;
        Self::new(folder, &name)
    }

    /// Begins the file `name` of `folder`.
    ///
    /// # Errors
    /// I/O.
    pub fn in_folder(folder: &OpenFolder, name: &OsStr) -> Result<Self> {
        let folder = folder.try_clone().map_err(|e| Error::io("writing", &folder.path_of(name), e))?;
        Self::new(folder, name)
    }

    fn new(folder: OpenFolder, name: &OsStr) -> Result<Self> {
        let fault = |e: io::Error| Error::io("writing", &folder.path_of(name), e);
        remove_abandoned(&folder, name);
        loop {
            let draft = secret_name(name).map_err(fault)?;
            let file = folder.create_file(&draft).map_err(fault)?;
            if claimed(lock(&file), || folder.leads_to(&draft, &file)).map_err(fault)? {
                return Ok(FileDraft { folder, name: name.to_owned(), draft: Some(draft), file });
            }
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// I/O, naming the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        write_all(&mut self.file, bytes).map_err(|e| self.fault(e))
    }

    /// Gives the file its name, durably, and the open file.
    ///
    /// # Errors
    /// What it was made from changed; the draft's name leads to something else; [`Kind::Output`] when the name is taken and
    /// may not be; I/O.
    pub fn publish(mut self, over: Over, from: &dyn MadeFrom) -> Result<File> {
        failpoint::hit();
        // A failed sync is never repeated on the same file: the kernel may have dropped the pages already.
        self.file.sync_all().map_err(|e| self.fault(e))?;
        from.check_unchanged()?;
        let draft = self.draft.as_deref().unwrap_or_default();
        if !self.folder.leads_to(draft, &self.file).map_err(|e| self.fault(e))? {
            return Err(taken_away(&self.folder.path_of(&self.name)));
        }
        let placed = match over {
            Over::Earlier => self.folder.rename(draft, &self.name),
            Over::Nothing => self.folder.rename_new(draft, &self.name),
        };
        if let Err(e) = placed {
            return Err(match e.kind() {
                io::ErrorKind::AlreadyExists => taken(&self.folder.path_of(&self.name)),
                _ => self.fault(e),
            });
        }
        self.draft = None;
        self.folder.sync().map_err(|e| self.fault(e))?;
        // It is no draft any more; that it cannot be unlocked is no matter.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        self.file.try_clone().map_err(|e| self.fault(e))
    }

    fn fault(&self, e: io::Error) -> Error {
        Error::io("writing", &self.folder.path_of(&self.name), e)
    }
}

impl Drop for FileDraft {
    fn drop(&mut self) {
        // Only what is still ours: somebody may have put something else there.
        if let Some(draft) = &self.draft
            && self.folder.leads_to(draft, &self.file).unwrap_or(false)
        {
            let _ = self.folder.unlink(draft);
        }
    }
}

fn around(path: &Path) -> Result<(OpenFolder, OsString)> {
    OpenFolder::around(path).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidFilename => Error::output(format!("{} does not name a file", path.display())),
        _ => Error::io("writing", path, e),
    })
}

fn taken(path: &Path) -> Error {
    Error::output(format!("{} is there already", path.display())).hint("give another name, or remove it")
}

fn taken_away(path: &Path) -> Error {
    Error::new(Kind::Io, format!("the draft of {} was taken away", path.display()))
        .hint("use a folder nobody else writes in")
}

fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let half = if failpoint::hit_halfway() { bytes.len() / 2 } else { bytes.len() };
    let written = file.write_all(&bytes[..half]);
    failpoint::die_if_halfway();
    written
}

// ---- folders ----------------------------------------------------------------------------------------------

/// A folder of several files that has no name yet. Dropped before [`FolderDraft::publish`], nothing of it stays.
#[derive(Debug)]
pub struct FolderDraft {
    parent: OpenFolder,
    name: OsString,
    draft: Option<OsString>,
    inner: OpenFolder,
}

impl FolderDraft {
    /// Begins the folder `path`; what is missing above it is created.
    ///
    /// # Errors
    /// As [`check_free`]; I/O.
    pub fn beside(path: &Path) -> Result<Self> {
        let path = check_free(path)?;
        let fault =
            |e: io::Error| Error::output(format!("cannot create {}: {e}", path.display())).caused_by(e);
        let Some(name) = path.file_name() else {
            return Err(Error::output(format!("{} does not name a new folder", path.display())));
        };
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let parent = OpenFolder::create(above, Access::Usual).map_err(fault)?;
        remove_abandoned(&parent, name);
        loop {
            let draft = secret_name(name).map_err(fault)?;
            let inner = parent.make_new_folder(&draft).map_err(fault)?;
            let there = || parent.enter(&draft).and_then(|found| same(&found, &inner));
            if claimed(inner.lock(), there).map_err(fault)? {
                return Ok(FolderDraft { parent, name: name.to_owned(), draft: Some(draft), inner });
            }
        }
    }

    /// Writes the file `name` of the folder; `write` gets it opened and empty. It is durable afterwards.
    ///
    /// # Errors
    /// Those of `write`; I/O, naming the file.
    pub fn file(&self, name: &str, write: impl FnOnce(&mut Sink) -> Result<()>) -> Result<()> {
        Sink::create(&self.inner, name)?.finish(write)
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// What it was made from changed; [`Kind::Output`] when something has taken the name meanwhile; I/O.
    pub fn publish(mut self, from: &dyn MadeFrom) -> Result<()> {
        let path = self.parent.path_of(&self.name);
        let fault = |e: io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::NotADirectory => taken(&path),
            _ => Error::io("writing", &path, e),
        };
        self.inner.sync().map_err(fault)?;
        from.check_unchanged()?;
        let draft = self.draft.as_deref().unwrap_or_default();
        if !self.parent.enter(draft).and_then(|found| same(&found, &self.inner)).map_err(fault)? {
            return Err(taken_away(&path));
        }
        // An empty folder of that name is replaced, anything else makes this fail.
        self.parent.rename(draft, &self.name).map_err(fault)?;
        self.draft = None;
        self.parent.sync().map_err(fault)
    }
}

impl Drop for FolderDraft {
    fn drop(&mut self) {
        if let Some(draft) = &self.draft {
            let _ = remove_draft_folder(&self.parent, draft, &self.inner);
        }
    }
}

/// One file of a folder that is being written.
#[derive(Debug)]
pub struct Sink {
    file: File,
    path: PathBuf,
}

impl Sink {
    fn create(folder: &OpenFolder, name: &str) -> Result<Self> {
        let path = folder.path_of(name);
        let file = folder.create_file(name).map_err(|e| Error::io("writing", &path, e))?;
        Ok(Sink { file, path })
    }

    fn finish(mut self, write: impl FnOnce(&mut Sink) -> Result<()>) -> Result<()> {
        write(&mut self)?;
        failpoint::hit();
        self.file.sync_all().map_err(|e| Error::io("writing", &self.path, e))
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// I/O, naming the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        write_all(&mut self.file, bytes).map_err(|e| Error::io("writing", &self.path, e))
    }
}

/// Whether a new folder can have this name; links resolved.
///
/// # Errors
/// [`Kind::Output`] when something has it that is not an empty folder, or an empty one that cannot be replaced.
pub fn check_free(path: &Path) -> Result<PathBuf> {
    let refuse =
        |what: &str, hint: String| Err(Error::output(format!("{} {what}", path.display())).hint(hint));
    let fresh = "give a folder that is not there yet";
    if !files::exists(path).map_err(|e| e.of_kind(Kind::Output))? {
        return match std::fs::symlink_metadata(path) {
            Err(_) => Ok(path.to_owned()),
            Ok(_) => refuse("is a link that leads nowhere", fresh.into()),
        };
    }
    if !files::is_folder(path)? {
        return refuse("is there already and no folder", fresh.into());
    }
    let unusable = |e: io::Error| Error::output(format!("cannot use {}: {e}", path.display())).caused_by(e);
    let folder = OpenFolder::open(path).map_err(unusable)?;
    if !folder.list().map_err(unusable)?.is_empty() {
        return refuse("is not empty", fresh.into());
    }
    let path = path.canonicalize().map_err(unusable)?;
    if is_mount_point(&path) {
        return refuse(
            "is a mount point, which cannot be replaced by a finished folder",
            format!("give a folder inside it, such as {}", path.join("model").display()),
        );
    }
    Ok(path)
}

fn is_mount_point(path: &Path) -> bool {
    rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

// ---- drafts -----------------------------------------------------------------------------------------------

/// Bytes of the published name that a draft's name repeats: names have at most 255.
const REPEATED: usize = 180;
const DIGITS: usize = 32;
const END: &[u8] = b".tmp";

fn secret_prefix(name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    [b".", &name[..name.len().min(REPEATED)], b"."].concat()
}

fn secret_name(name: &OsStr) -> io::Result<OsString> {
    let mut random = [0; DIGITS / 2];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let whole = [&secret_prefix(name), digits.as_bytes(), END].concat();
    Ok(OsStr::from_bytes(&whole).to_owned())
}

/// Whether `found` is a draft of `name`.
fn is_draft_of(found: &OsStr, name: &OsStr) -> bool {
    let digits = found.as_bytes().strip_prefix(secret_prefix(name).as_slice());
    let digits = digits.and_then(|rest| rest.strip_suffix(END));
    digits.is_some_and(|d| d.len() == DIGITS && d.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')))
}

fn lock(file: &File) -> rustix::io::Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Whether a draft just made is ours: in the moment before it was locked, another process may have taken it for
/// abandoned. Where there are no locks nobody takes it away either.
fn claimed(locked: rustix::io::Result<()>, there: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
    match locked {
        Err(Errno::WOULDBLOCK) => Ok(false),
        _ => match there() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other,
        },
    }
}

/// Removes the drafts of `name` that killed processes of this user left. What goes wrong is no matter: they are in
/// nobody's way.
fn remove_abandoned(folder: &OpenFolder, name: &OsStr) {
    for found in folder.list().unwrap_or_default() {
        if is_draft_of(&found, name) {
            let _ = remove_if_abandoned(folder, name, &found);
        }
    }
}

fn remove_if_abandoned(folder: &OpenFolder, name: &OsStr, draft: &OsStr) -> io::Result<()> {
    let Some(found) = folder.look(draft)? else { return Ok(()) };
    if found.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    if is_folder(&found) {
        let inner = folder.enter(draft)?;
        inner.lock()?;
        // A draft holds files only: anything else was put there by somebody, and stays under its name.
        for name in inner.list()? {
            if inner.look(&name)?.is_some_and(|found| is_folder(&found)) {
                return Ok(());
            }
        }
        // Under another name first: where a lock is not seen by every host, its owner must not publish the half.
        let doomed = secret_name(name)?;
        folder.rename(draft, &doomed)?;
        return remove_draft_folder(folder, &doomed, &inner);
    }
    let file = folder.open_file_to_write(draft)?;
    lock(&file)?;
    if folder.leads_to(draft, &file)? { folder.unlink(draft) } else { Ok(()) }
}

/// A draft holds files only: anything else was put there by somebody, and stays.
fn remove_draft_folder(parent: &OpenFolder, draft: &OsStr, inner: &OpenFolder) -> io::Result<()> {
    if !same(&parent.enter(draft)?, inner)? {
        return Ok(());
    }
    for name in inner.list()? {
        inner.unlink(&name)?;
    }
    parent.remove_folder(draft)
}

fn same(one: &OpenFolder, other: &OpenFolder) -> io::Result<bool> {
    let (one, other) = (one.stat()?, other.stat()?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}
