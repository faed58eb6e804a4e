//! An open folder. Names are resolved in it, wherever it is moved to meanwhile and whatever takes its old path; links
//! planted in it are not followed.

use crate::failpoint;
use rustix::fs::{self as rfs, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The permissions of what is created, before the umask: those of any program's files and folders.
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);

/// Who may look into a folder that is created; the umask takes away from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever the umask lets.
    Usual,
    /// This user alone.
    Private,
}

/// An open folder.
#[derive(Debug)]
pub struct OpenFolder {
    fd: OwnedFd,
    opened_as: PathBuf,
}

/// All errors are the operating system's.
#[allow(clippy::missing_errors_doc)]
impl OpenFolder {
    /// Opens `path`; links are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = rfs::open(path, OPEN, Mode::empty())?;
        Ok(OpenFolder { fd, opened_as: path.to_path_buf() })
    }

    /// Opens `path`, after creating it and what is missing above it, each made durable in the folder above.
    pub fn create(path: &Path, access: Access) -> io::Result<Self> {
        match Self::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let Some(name) = path.file_name() else { return Err(io::ErrorKind::NotFound.into()) };
        let above = Self::create(above(path), Access::Usual)?;
        above.make_folder(name, access)?;
        Ok(OpenFolder { opened_as: path.to_path_buf(), ..above.enter(name)? })
    }

    /// The folder that `path` lies in, and its name there.
    pub fn around(path: &Path) -> io::Result<(Self, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        Ok((Self::open(above(path))?, name.to_owned()))
    }

    /// A second handle of the same folder.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(OpenFolder { fd: self.fd.try_clone()?, opened_as: self.opened_as.clone() })
    }

    /// Creates the folder `name`; one that is there already is left as it is.
    pub fn make_folder(&self, name: impl AsRef<OsStr>, access: Access) -> io::Result<()> {
        let mode = match access {
            Access::Usual => 0o777,
            Access::Private => 0o700,
        };
        match rfs::mkdirat(&self.fd, name.as_ref(), Mode::from_raw_mode(mode)) {
            Ok(()) => self.sync_leniently(),
            Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Creates the folder `name`, which must not be there.
    pub fn make_new_folder(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        failpoint::hit();
        rfs::mkdirat(&self.fd, name.as_ref(), Mode::from_raw_mode(0o777))?;
        self.enter(name)
    }

    /// Opens the folder `name`.
    pub fn enter(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let fd = rfs::openat(&self.fd, name.as_ref(), OPEN | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(OpenFolder { fd, opened_as: self.opened_as.join(name.as_ref()) })
    }

    /// Creates the file `name`, which must not be there, for reading and writing.
    pub fn create_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        failpoint::hit();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rfs::openat(&self.fd, name.as_ref(), flags, FILE_MODE)?))
    }

    /// Opens the regular file `name` for reading.
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.regular(name.as_ref(), OFlags::RDONLY)
    }

    /// Opens the regular file `name` for reading and writing.
    pub fn open_file_to_write(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.regular(name.as_ref(), OFlags::RDWR)
    }

    /// Opens the regular file `name` for reading and writing, creating it.
    pub fn open_or_create_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.regular(name.as_ref(), OFlags::RDWR | OFlags::CREATE)
    }

    fn regular(&self, name: &OsStr, how: OFlags) -> io::Result<File> {
        let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rfs::openat(&self.fd, name, flags, FILE_MODE)?);
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !kind.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    /// What `name` is, a link itself and not what it leads to.
    pub fn look(&self, name: impl AsRef<OsStr>) -> io::Result<Option<Stat>> {
        match rfs::statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether `name` still leads to the open file.
    pub fn leads_to(&self, name: impl AsRef<OsStr>, file: &File) -> io::Result<bool> {
        let held = rfs::fstat(file)?;
        Ok(self.look(name)?.is_some_and(|found| (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)))
    }

    /// Renames; what is called `to` is replaced.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::renameat(&self.fd, from.as_ref(), &self.fd, to.as_ref())?)
    }

    /// Renames the file `from`; that something is called `to` is an error. On a file system without such renames (NFS)
    /// a second name is given, which is as exclusive, and the first taken away; on one without second names either
    /// (FAT) it is looked first.
    pub fn rename_new(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        failpoint::hit();
        match rfs::renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            other => return Ok(other?),
        }
        match rfs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty()) {
            Ok(()) => self.unlink(from),
            Err(Errno::PERM | Errno::NOSYS | Errno::NOTSUP) => match self.look(to)? {
                Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
                None => Ok(rfs::renameat(&self.fd, from, &self.fd, to)?),
            },
            Err(e) => Err(e.into()),
        }
    }

    /// Exchanges two names in one step. False where the file system cannot (NFS): nothing happened then.
    pub fn exchange(&self, one: impl AsRef<OsStr>, other: impl AsRef<OsStr>) -> io::Result<bool> {
        failpoint::hit();
        match rfs::renameat_with(&self.fd, one.as_ref(), &self.fd, other.as_ref(), RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    /// Gives the file a second name.
    pub fn link(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::linkat(&self.fd, from.as_ref(), &self.fd, to.as_ref(), AtFlags::empty())?)
    }

    /// Removes a name that is no folder's.
    pub fn unlink(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::unlinkat(&self.fd, name.as_ref(), AtFlags::empty())?)
    }

    /// Removes the empty folder `name`.
    pub fn remove_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::unlinkat(&self.fd, name.as_ref(), AtFlags::REMOVEDIR)?)
    }

    /// All names, sorted.
    pub fn list(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rfs::Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes all names durable.
    pub fn sync(&self) -> io::Result<()> {
        failpoint::hit();
        Ok(rfs::fsync(&self.fd)?)
    }

    /// As [`OpenFolder::sync`]; that a file system cannot (some network ones) is no error.
    pub fn sync_leniently(&self) -> io::Result<()> {
        match rfs::fsync(&self.fd) {
            Err(Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Takes the folder's own lock, which ends with this value.
    pub fn lock(&self) -> rustix::io::Result<()> {
        rfs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive)
    }

    /// The open folder's own data.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(rfs::fstat(&self.fd)?)
    }

    /// Bytes that can still be written, if known.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        rfs::fstatvfs(&self.fd).ok().map(|s| s.f_bavail.saturating_mul(s.f_frsize))
    }

    /// Where it is now, for messages.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        if self.in_place() {
            return self.opened_as.clone();
        }
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        std::fs::read_link(link).unwrap_or_else(|_| self.opened_as.clone())
    }

    /// Where `name` is now, for messages.
    #[must_use]
    pub fn path_of(&self, name: impl AsRef<OsStr>) -> PathBuf {
        let folder = self.path();
        if folder == Path::new(".") { PathBuf::from(name.as_ref()) } else { folder.join(name.as_ref()) }
    }

    /// Whether the path it was opened by still leads to it: nobody moved or deleted it.
    #[must_use]
    pub fn in_place(&self) -> bool {
        match (self.stat(), rfs::stat(&self.opened_as)) {
            (Ok(held), Ok(named)) => (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino),
            _ => false,
        }
    }
}

/// Takes the lock of a file. Tries for a second: a process that was just killed, or a child between fork and exec, may hold
/// it for a moment.
///
/// # Errors
/// `WOULDBLOCK` when another has it; the operating system's.
pub fn lock_soon(file: &File) -> rustix::io::Result<()> {
    for _ in 0..20 {
        match rfs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(std::time::Duration::from_millis(50)),
            other => return other,
        }
    }
    rfs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Whether this is a folder, itself and not by a link.
#[must_use]
pub fn is_folder(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

/// The folder a path lies in.
fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
