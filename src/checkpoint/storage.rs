//! The few operations on a folder that checkpoints need, behind two traits, so that the tests can put a disk
//! that loses power in their place. The real ones act relative to an open directory: names are never resolved
//! again, so neither a moved folder nor a symbolic link planted later leads anywhere else.

use super::decode::Source;
use super::format::BLOCK;
use crate::failpoint;
use crate::formats::open_folder::OpenFolder;
use rustix::fs::{self as rfs, Advice, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// An open folder of checkpoints.
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
