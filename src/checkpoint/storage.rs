//! The few operations on folders that a run needs, behind traits, so that the tests can put a disk that loses power
//! in their place. The real ones act relative to an open directory: names are never resolved
//! again, so neither a moved folder nor a symbolic link planted later leads anywhere else.

use super::decode::Source;
use super::format::BLOCK;
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::formats::open_folder::{Access, OpenFolder, lock_soon};
use crate::formats::publish::MadeFrom;
use rustix::fs::{self as rfs, Advice, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::any::Any;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open folder.
pub trait Folder: Send {
    /// Creates `name` for writing; it must not exist, links are not followed.
    ///
    /// # Errors
    /// The operating system's, as for every method here.
    #[allow(clippy::missing_errors_doc)]
    fn create(&self, name: &str) -> io::Result<Box<dyn Stored>>;
    /// Opens `name` for reading and syncing.
    #[allow(clippy::missing_errors_doc)]
    fn open(&self, name: &str) -> io::Result<Box<dyn Stored>>;
    /// Renames within the folder; an existing `to` is an error unless `replace`.
    #[allow(clippy::missing_errors_doc)]
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()>;
    /// Gives the file a second name.
    #[allow(clippy::missing_errors_doc)]
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    #[allow(clippy::missing_errors_doc)]
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// All names, sorted.
    #[allow(clippy::missing_errors_doc)]
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes all names durable.
    #[allow(clippy::missing_errors_doc)]
    fn sync(&self) -> io::Result<()>;
    /// Bytes that can still be written, if known.
    fn free_bytes(&self) -> Option<u64>;
    /// Where it is now, for messages.
    fn path(&self) -> PathBuf;
    /// Whether the path it was opened by still leads to it: nobody moved or deleted it.
    fn in_place(&self) -> bool;
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, a pipe, a device.
    Other,
}

/// What asking for a lock gave.
pub enum Locked {
    /// It is held until this is dropped, or the process ends.
    Held(Held),
    /// Another process has it; what it wrote into the file.
    By(String),
}

/// A lock that is held as long as a clone of this lives.
pub type Held = Arc<dyn Any + Send + Sync>;

/// An open folder with folders in it, as a run's is. Renames and removals reach into them:
/// `rename("a", "folder/a", false)`.
pub trait Tree: Folder {
    /// What `name` is; a link is not followed. `None` when nothing has that name.
    #[allow(clippy::missing_errors_doc)]
    fn entry(&self, name: &str) -> io::Result<Option<Entry>>;
    /// Opens the folder `name` inside; a link there is an error.
    #[allow(clippy::missing_errors_doc)]
    fn subfolder(&self, name: &str) -> io::Result<Box<dyn Tree>>;
    /// Creates the folder `name` inside, which must not exist; durable when this returns.
    #[allow(clippy::missing_errors_doc)]
    fn create_subfolder(&self, name: &str) -> io::Result<()>;
    /// Tries for the lock that the file `name` stands for, creating it.
    #[allow(clippy::missing_errors_doc)]
    fn lock(&self, name: &str) -> io::Result<Locked>;
    /// Exchanges two names in one step. False where that cannot be done: nothing happened then.
    #[allow(clippy::missing_errors_doc)]
    fn exchange(&self, _one: &str, _other: &str) -> io::Result<bool> {
        Ok(false)
    }
    /// Removes the empty folder `name`.
    #[allow(clippy::missing_errors_doc)]
    fn remove_folder(&self, name: &str) -> io::Result<()>;
    /// A remark on who else may write here, for the user.
    fn remark(&self) -> Option<String>;
}

/// Where folders are found by their paths: the file system, or what a test puts in its place.
pub trait Disk: Sync {
    /// Opens a folder that is there; a link to one is followed.
    #[allow(clippy::missing_errors_doc)]
    fn open(&self, path: &Path) -> io::Result<Box<dyn Tree>>;
    /// Opens a folder, creating it and what is missing above it, durably.
    #[allow(clippy::missing_errors_doc)]
    fn create(&self, path: &Path) -> io::Result<Box<dyn Tree>>;
    /// Opens a regular file for reading; a link to one is followed.
    #[allow(clippy::missing_errors_doc)]
    fn open_file(&self, path: &Path) -> io::Result<Box<dyn Stored>>;
    /// What `path` leads to, links followed; `None` when there is nothing.
    #[allow(clippy::missing_errors_doc)]
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>>;
    /// The one name of what `path` leads to, without links and dots.
    #[allow(clippy::missing_errors_doc)]
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;
}

/// The folder `name` inside, created where it is missing.
///
/// # Errors
/// The storage's own.
pub fn subfolder(folder: &dyn Tree, name: &str) -> io::Result<Box<dyn Tree>> {
    if folder.entry(name)?.is_none() {
        folder.create_subfolder(name)?;
    }
    folder.subfolder(name)
}

/// The bytes of the file `name`; `None` when there is none.
///
/// # Errors
/// The storage's own; `FileTooLarge` above `limit` bytes.
pub fn read_file(folder: &dyn Folder, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match folder.open(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let size = file.size()?;
    if size > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}

/// Puts the file `name` in place whole: after a crash the old content or the new one is there, and after a return
/// the new one survives a power cut. The draft is `.NAME.tmp`: only for the holder of the folder's lock. Gives the
/// open file.
///
/// # Errors
/// The storage's own; the old content stands then.
pub fn put_file(folder: &dyn Folder, name: &str, bytes: &[u8]) -> io::Result<Box<dyn Stored>> {
    let draft = format!(".{name}.tmp");
    let file = match folder.create(&draft) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            folder.unlink(&draft)?;
            folder.create(&draft)?
        }
        other => other?,
    };
    let done = write_all(&*file, 0, bytes).and_then(|()| file.sync()).and_then(|()| {
        folder.rename(&draft, name, true)?;
        folder.sync()
    });
    match done {
        Ok(()) => Ok(file),
        Err(e) => {
            // A failed sync is never repeated on the same file: the kernel may have dropped the pages already.
            let _ = folder.unlink(&draft);
            Err(e)
        }
    }
}

/// How a folder was put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// In one step.
    Whole,
    /// File by file, each whole, in the order they were given: two names cannot be exchanged there (NFS).
    OneByOne,
}

/// Puts `files` in place as the folder `name`, over an earlier edition: after a crash the old ones or the new ones are
/// there. What else lies in the earlier edition stays. The draft is `.NAME.tmp`: only for the holder of the folder's lock.
///
/// # Errors
/// What it was made from changed; I/O; [`Kind::Output`] when `name` is there and no folder.
pub fn put_folder(
    folder: &dyn Tree,
    name: &str,
    files: &[(&str, &[u8])],
    from: &dyn MadeFrom,
) -> Result<Placed> {
    let path = folder.path().join(name);
    let fault = |e: io::Error| Error::io("writing", &path, e);
    let earlier = match folder.entry(name).map_err(fault)? {
        None => false,
        Some(Entry::Folder) => true,
        Some(_) => {
            return Err(Error::output(format!("{} is no folder", path.display()))
                .hint("move it away, then continue the run"));
        }
    };
    let draft = format!(".{name}.tmp");
    remove_draft(folder, &draft, name, files)?;
    let written = || -> io::Result<()> {
        folder.create_subfolder(&draft)?;
        let inner = folder.subfolder(&draft)?;
        for (file, bytes) in files {
            let file = inner.create(file)?;
            write_all(&*file, 0, bytes)?;
            file.sync()?;
        }
        inner.sync()
    };
    let placed = written().map_err(fault).and_then(|()| from.check_unchanged()).and_then(|()| {
        if !earlier {
            return folder.rename(&draft, name, true).map(|()| Placed::Whole).map_err(fault);
        }
        if folder.exchange(&draft, name).map_err(fault)? {
            return Ok(Placed::Whole);
        }
        let moved = |(file, _): &(&str, &[u8])| {
            folder.rename(&format!("{draft}/{file}"), &format!("{name}/{file}"), true)
        };
        files.iter().try_for_each(moved).map_err(fault)?;
        folder.subfolder(name).and_then(|inner| inner.sync()).map_err(fault)?;
        Ok(Placed::OneByOne)
    });
    // What the draft's name leads to now: half a draft, nothing, or the earlier edition.
    let removed = remove_draft(folder, &draft, name, files);
    let placed = placed?;
    removed?;
    folder.sync().map_err(fault)?;
    Ok(placed)
}

/// Removes the folder `draft`: files of the names we write into it go; what else an earlier edition held goes back to
/// where it was, the folder `home`.
fn remove_draft(folder: &dyn Tree, draft: &str, home: &str, files: &[(&str, &[u8])]) -> Result<()> {
    let fault = |e: io::Error| {
        let path = folder.path().join(draft);
        Error::new(Kind::Io, format!("{} cannot be removed: {e}", path.display()))
            .hint("it is what an interrupted write left: move away what is yours in it, and remove the rest")
            .caused_by(e)
    };
    match folder.entry(draft).map_err(fault)? {
        None => return Ok(()),
        Some(Entry::Folder) => {}
        Some(_) => return folder.unlink(draft).map_err(fault),
    }
    for name in folder.subfolder(draft).and_then(|inner| inner.list()).map_err(fault)? {
        let within = format!("{draft}/{name}");
        if files.iter().any(|(ours, _)| *ours == name) {
            folder.unlink(&within).map_err(fault)?;
        } else {
            folder.rename(&within, &format!("{home}/{name}"), false).map_err(fault)?;
        }
    }
    folder.remove_folder(draft).map_err(fault)
}

/// Writes all of `bytes`, over short writes and interruptions.
///
/// # Errors
/// The storage's own.
pub fn write_all(file: &dyn Stored, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_some(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// An open file.
pub trait Stored: Source + Send {
    /// Reserves `len` bytes of the disk, so that a full disk is known before the first is written.
    #[allow(clippy::missing_errors_doc)]
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Writes some of `bytes` at `offset`, and says how many.
    #[allow(clippy::missing_errors_doc)]
    fn write_some(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Makes its bytes durable.
    #[allow(clippy::missing_errors_doc)]
    fn sync(&self) -> io::Result<()>;
}

impl Tree for OpenFolder {
    fn entry(&self, name: &str) -> io::Result<Option<Entry>> {
        Ok(self.look(name)?.map(|found| kind(&found)))
    }

    fn subfolder(&self, name: &str) -> io::Result<Box<dyn Tree>> {
        Ok(Box::new(self.enter(name)?))
    }

    fn create_subfolder(&self, name: &str) -> io::Result<()> {
        self.make_new_folder(name)?;
        self.sync_leniently()
    }

    fn lock(&self, name: &str) -> io::Result<Locked> {
        let mut file = self.open_or_create_file(name)?;
        match lock_soon(&file) {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                Ok(Locked::Held(Arc::new(file)))
            }
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = (&mut file).take(64).read_to_string(&mut text);
                Ok(Locked::By(text.trim().to_owned()))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn exchange(&self, one: &str, other: &str) -> io::Result<bool> {
        self.exchange(one, other)
    }

    fn remove_folder(&self, name: &str) -> io::Result<()> {
        self.remove_folder(name)
    }

    fn remark(&self) -> Option<String> {
        let mode = self.stat().ok()?.st_mode;
        let (world_writable, sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
        (world_writable && !sticky)
            .then(|| format!("{} is writable for every user of this machine", self.path().display()))
    }
}

fn kind(found: &rfs::Stat) -> Entry {
    match rfs::FileType::from_raw_mode(found.st_mode) {
        rfs::FileType::RegularFile => Entry::File,
        rfs::FileType::Directory => Entry::Folder,
        _ => Entry::Other,
    }
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Tree>> {
        Ok(Box::new(OpenFolder::open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Tree>> {
        refuse_foreign_link(path)?;
        Ok(Box::new(OpenFolder::create(path, Access::Usual)?))
    }

    fn open_file(&self, path: &Path) -> io::Result<Box<dyn Stored>> {
        Ok(Box::new(RealFile::open(path)?))
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        match rfs::stat(path) {
            Ok(found) => Ok(Some(kind(&found))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }
}

fn refuse_foreign_link(path: &Path) -> io::Result<()> {
    let found = match rfs::lstat(path) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let link = rfs::FileType::from_raw_mode(found.st_mode).is_symlink();
    if link && found.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it is a symbolic link of another user; name the folder it leads to"));
    }
    Ok(())
}

impl Folder for OpenFolder {
    fn create(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        Ok(Box::new(RealFile(self.create_file(name)?)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        Ok(Box::new(RealFile::regular(self.open_file(name)?)?))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        if replace { self.rename(from, to) } else { self.rename_new(from, to) }
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.link(from, to)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.unlink(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        // Names that are not UTF-8 are none of ours.
        Ok(self.list()?.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.free_bytes()
    }

    fn path(&self) -> PathBuf {
        self.path()
    }

    fn in_place(&self) -> bool {
        self.in_place()
    }
}

/// A file of the file system.
#[derive(Debug)]
pub struct RealFile(File);

impl Drop for RealFile {
    fn drop(&mut self) {
        // For what went through the page cache all the same: a checkpoint is not read twice. Only advice.
        let _ = rfs::fadvise(&self.0, 0, None, Advice::DontNeed);
    }
}

impl RealFile {
    /// Opens a file named by the user, for reading; links are followed.
    ///
    /// # Errors
    /// The operating system's, or that it is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Without NONBLOCK a named pipe would hang here.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Self::regular(File::from(rfs::open(path, flags, Mode::empty())?))
    }

    fn regular(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = RealFile(file);
        file.past_page_cache();
        Ok(file)
    }

    /// Reads and writes go straight to the disk: steadier, and the page cache is left to the mapped model. Not
    /// every file system can, and what is not aligned cannot; then it is as before.
    fn past_page_cache(&self) {
        let _ = rfs::fcntl_setfl(&self.0, OFlags::DIRECT);
    }

    fn is_direct(&self) -> io::Result<bool> {
        Ok(rfs::fcntl_getfl(&self.0)?.contains(OFlags::DIRECT))
    }

    fn through_page_cache(&self) -> io::Result<()> {
        Ok(rfs::fcntl_setfl(&self.0, OFlags::empty())?)
    }
}

impl Source for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match rustix::io::pread(&self.0, &mut *buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buffer = &mut buffer[read..];
                    offset += read as u64;
                }
                Err(Errno::INTR) => {}
                // Once more through the page cache; what is wrong otherwise is said again.
                Err(Errno::INVAL) if self.is_direct()? => self.through_page_cache()?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Stored for RealFile {
    fn allocate(&self, len: u64) -> io::Result<()> {
        failpoint::hit();
        match rfs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // A file system that cannot reserve tells a full disk at the write instead.
            Err(Errno::NOTSUP | Errno::NOSYS) => {}
            other => other?,
        }
        if len.is_multiple_of(BLOCK) {
            self.past_page_cache();
        }
        Ok(())
    }

    fn write_some(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let bytes = if failpoint::hit_halfway() { &bytes[..bytes.len() / 2] } else { bytes };
        let mut written = rustix::io::pwrite(&self.0, bytes, offset);
        if written == Err(Errno::INVAL) && self.is_direct()? {
            // What is left of a short write, or a device with larger blocks.
            self.through_page_cache()?;
            written = rustix::io::pwrite(&self.0, bytes, offset);
        }
        failpoint::die_if_halfway();
        Ok(written?)
    }

    fn sync(&self) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::fsync(&self.0)?)
    }
}
