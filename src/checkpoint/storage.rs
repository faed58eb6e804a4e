//! The few operations on folders that a run needs, behind traits, so that the tests can put a disk that loses power
//! in their place. The real ones act relative to an open directory: names are never resolved
//! again, so neither a moved folder nor a symbolic link planted later leads anywhere else.

use super::decode::Source;
use super::format::BLOCK;
use crate::failpoint;
use rustix::fs::{self as rfs, Advice, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::any::Any;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
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

/// An open folder with folders in it, as a run's is. Renames reach into them: `rename("a", "folder/a", false)`.
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

/// A folder of the file system.
#[derive(Debug)]
pub struct RealFolder {
    fd: OwnedFd,
    opened_as: PathBuf,
}

impl RealFolder {
    /// Opens `path`; a symbolic link is followed.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = rfs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(RealFolder { fd, opened_as: path.to_path_buf() })
    }

    /// A file that is this process's alone to write, opened for reading and writing, created where it is missing.
    fn open_or_create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rfs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o666))?))
    }
}

impl Tree for RealFolder {
    fn entry(&self, name: &str) -> io::Result<Option<Entry>> {
        found(rfs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    fn subfolder(&self, name: &str) -> io::Result<Box<dyn Tree>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rfs::openat(&self.fd, name, flags, Mode::empty())?;
        Ok(Box::new(RealFolder { fd, opened_as: self.opened_as.join(name) }))
    }

    fn create_subfolder(&self, name: &str) -> io::Result<()> {
        failpoint::hit();
        rfs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777))?;
        sync_leniently(&self.fd)
    }

    fn lock(&self, name: &str) -> io::Result<Locked> {
        let mut file = self.open_or_create(name)?;
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

    fn remark(&self) -> Option<String> {
        let mode = rfs::fstat(&self.fd).ok()?.st_mode;
        let (world_writable, sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
        (world_writable && !sticky)
            .then(|| format!("{} is writable for every user of this machine", self.opened_as.display()))
    }
}

/// Tries for a second: a process that was just killed, or a child between fork and exec, may hold it for a moment.
fn lock_soon(file: &File) -> rustix::io::Result<()> {
    for _ in 0..20 {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(std::time::Duration::from_millis(50)),
            other => return other,
        }
    }
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

fn found(stat: rustix::io::Result<rfs::Stat>) -> io::Result<Option<Entry>> {
    match stat {
        Ok(stat) => Ok(Some(match rfs::FileType::from_raw_mode(stat.st_mode) {
            rfs::FileType::RegularFile => Entry::File,
            rfs::FileType::Directory => Entry::Folder,
            _ => Entry::Other,
        })),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Some network file systems cannot sync a folder; the store says so, once.
fn sync_leniently(folder: &OwnedFd) -> io::Result<()> {
    match rfs::fsync(folder) {
        Err(Errno::INVAL) => Ok(()),
        other => Ok(other?),
    }
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Tree>> {
        Ok(Box::new(RealFolder::open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Tree>> {
        refuse_foreign_link(path)?;
        create_durably(path)?;
        self.open(path)
    }

    fn open_file(&self, path: &Path) -> io::Result<Box<dyn Stored>> {
        Ok(Box::new(RealFile::open(path)?))
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        found(rfs::stat(path))
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

/// Creates the folder and what is missing above it, each synced into the one above.
fn create_durably(folder: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    for path in folder.ancestors().take_while(|path| !path.as_os_str().is_empty()) {
        if path.try_exists()? {
            break;
        }
        missing.push(path);
    }
    std::fs::create_dir_all(folder)?;
    for created in missing {
        let above = created.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

impl Folder for RealFolder {
    fn create(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        failpoint::hit();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rfs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o666))?;
        Ok(Box::new(RealFile(File::from(fd))))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Stored>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rfs::openat(&self.fd, name, flags, Mode::empty())?);
        Ok(Box::new(RealFile::regular(file)?))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        failpoint::hit();
        if replace {
            return Ok(rfs::renameat(&self.fd, from, &self.fd, to)?);
        }
        match rfs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            // A file system without the flag. Only this process writes here, it holds the run's lock, so
            // looking first is as good.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                if rfs::statat(&self.fd, to, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Ok(rfs::renameat(&self.fd, from, &self.fd, to)?)
            }
            other => Ok(other?),
        }
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rfs::Dir::read_from(&self.fd)? {
            // Names that are not UTF-8 are none of ours.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::fsync(&self.fd)?)
    }

    fn free_bytes(&self) -> Option<u64> {
        rfs::fstatvfs(&self.fd).ok().map(|s| s.f_bavail.saturating_mul(s.f_frsize))
    }

    fn path(&self) -> PathBuf {
        if self.in_place() {
            return self.opened_as.clone();
        }
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        std::fs::read_link(link).unwrap_or_else(|_| self.opened_as.clone())
    }

    fn in_place(&self) -> bool {
        match (rfs::fstat(&self.fd), rfs::stat(&self.opened_as)) {
            (Ok(held), Ok(named)) => (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino),
            _ => false,
        }
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
