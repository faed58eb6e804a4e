//! The file format "QCK1", specified in `docs/checkpoint-format.md`.
//!
//! A header with the table of sections, the sections, a trailer; everything begins at a multiple of 4096.
//! The header's digest is the root: it covers the table, the table holds a digest of each section, and what
//! no digest covers (padding, trailer) has one permitted value. So the bytes are a function of [`State`], and
//! no byte can change unnoticed.

use super::decode::{self, Source};
#[cfg(feature = "internals")]
use super::encode::{self, Sink};
use super::state::State;
use crate::error::Error;
#[cfg(feature = "internals")]
use crate::error::Result;
use std::io;
use std::path::Path;

/// First bytes of a file: the high bit and the line ends catch copies made in text mode.
pub const MAGIC: [u8; 8] = [0x89, 0x51, 0x43, 0x4B, 0x0D, 0x0A, 0x1A, 0x0A];
/// First bytes of the trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"QCKEND\0\x01";
/// Major and minor version written, and the only one read.
pub const VERSION: (u16, u16) = (2, 0);
/// Sections begin at its multiples; header and trailer are this long. Bytes.
pub const BLOCK: u64 = 4096;
/// Where in the header its digest stands.
pub const DIGEST_AT: usize = 4064;
/// Length of an entry of the section table.
pub const ENTRY_LEN: usize = 96;
/// Where in the header the section table begins.
pub const TABLE_AT: usize = 64;
/// Names of the sections, in file order.
pub const SECTIONS: [&str; 7] = ["META", "IDX", "CUR", "LOG", "W", "M", "V"];
/// Largest META section, bytes.
pub const META_MAX: u64 = 1 << 20;
/// Largest IDX section, bytes.
pub const IDX_MAX: u64 = 1 << 26;
/// Largest CUR section, bytes.
pub const CUR_MAX: u64 = 1 << 20;
/// Bit of the header's flags: continued inexactly.
pub const FLAG_TAINTED: u32 = 1;

/// BLAKE3, 32 bytes.
pub type Digest = [u8; 32];

/// The smallest multiple of [`BLOCK`] that holds `len` bytes, or `None` on overflow.
#[must_use]
pub fn padded(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(BLOCK)
}

/// One section's place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// One of [`SECTIONS`].
    pub name: &'static str,
    /// First byte.
    pub offset: u64,
    /// Bytes, padding left out.
    pub len: u64,
    /// BLAKE3 of those bytes.
    pub digest: Digest,
}

/// What the first 4096 bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the whole file.
    pub file_len: u64,
    /// Steps done.
    pub step: u64,
    /// Rows consumed.
    pub samples: u64,
    /// Continued inexactly at some time.
    pub tainted: bool,
    /// The sections, in file order.
    pub sections: Vec<Section>,
    /// Digest of the header, and so of the whole state: two files with equal ones hold the same bytes.
    pub digest: Digest,
}

/// Why a file is not a checkpoint that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The bytes are wrong: section, offset and what.
    #[error("{0}")]
    Damaged(String),
    /// Whole, but of a version this build does not read.
    #[error("{0}")]
    OtherVersion(String),
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Fault {
    /// The error for the file `path`.
    #[must_use]
    pub fn at(self, path: &Path) -> Error {
        let remedy = match self {
            Fault::Io(source) => return Error::reading(path, source),
            Fault::OtherVersion(_) => "use the version of this program that wrote it",
            Fault::Damaged(_) => "",
        };
        Error::input(format!("{}: {self}", path.display())).hint(remedy).caused_by(self)
    }
}

/// What of a file is kept in memory, and what is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Everything is checked and kept.
    Load,
    /// Everything is checked; the arrays are not kept, the returned state has none.
    Verify,
    /// Test hook: as `Load` with no digest compared. The negative control of the tests, which must notice.
    #[doc(hidden)]
    DigestsIgnored,
}

#[cfg(feature = "internals")]
/// The file's bytes. For states that fit in memory twice; a [`super::store::Store`] streams them.
#[must_use]
pub fn encode(state: &State) -> Vec<u8> {
    let mut bytes = Growing(Vec::new());
    encode::write(state, &mut bytes).expect("writing to memory cannot fail");
    bytes.0
}

#[cfg(feature = "internals")]
/// Reads and checks a whole file: every byte is covered by a digest or must be zero. `path` is for messages.
///
/// # Errors
/// Names the file, the section and the offset.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<State> {
    read(&bytes, Reading::Load).map(|(_, state)| state).map_err(|fault| fault.at(path))
}

/// Reads and checks a file from any source.
///
/// # Errors
/// What is wrong with it.
pub fn read(source: &dyn Source, reading: Reading) -> std::result::Result<(Header, State), Fault> {
    decode::read(source, reading)
}

#[cfg(feature = "internals")]
struct Growing(Vec<u8>);

#[cfg(feature = "internals")]
impl Sink for Growing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[start..end].copy_from_slice(bytes);
        Ok(())
    }
}
