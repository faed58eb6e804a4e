//! The few operations on a folder that checkpoints need, behind two traits, so that the tests can put a disk
//! that loses power in their place. The real ones act relative to an open directory: names are never resolved
//! again, so neither a moved folder nor a symbolic link planted later leads anywhere else.

use super::decode::Source;
use super::format::BLOCK;
use crate::failpoint;
use rustix::fs::{self as rfs, Advice, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

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

    /// Opens the folder `name` inside, creating it; a symbolic link there is an error.
    ///
    /// # Errors
    /// The operating system's.
    pub fn subfolder(&self, name: &str) -> io::Result<Self> {
        match rfs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o777)) {
            Ok(()) => rfs::fsync(&self.fd)?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rfs::openat(&self.fd, name, flags, Mode::empty())?;
        Ok(RealFolder { fd, opened_as: self.opened_as.join(name) })
    }

    /// Opens `name` for reading and writing, creating it; links are not followed.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open_or_create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rfs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o666))?))
    }
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
