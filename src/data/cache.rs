//! Tokenised rows on disk, so that a second run or a resume tokenises nothing.
//!
//! A cache file is named by the digest of all that decides it, written under a temporary name and renamed, and
//! checked whole (BLAKE3) when it is opened. All numbers are little endian:
//!
//! ```text
//! magic "qwentune rows 1\n"   16 bytes
//! key                         32   what the rows were made from
//! encoded rows                see `store`
//! lengths                     4 each, tokens of each row
//! report                      JSON, see `Report`
//! rows, row bytes, report bytes   8 each
//! BLAKE3 of all before        32
//! ```

use super::dataset::{Part, Row, digest_row};
use super::store::{self, Store};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: &[u8; 16] = b"qwentune rows 1\n";
const HEAD: u64 = 16 + 32;
const FOOT: u64 = 24 + 32;

/// What reading a file came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    /// Rows in the file.
    pub(super) rows: u64,
    /// Rows left out because they are longer than the cutoff.
    pub(super) too_long: u64,
    /// Rows cut to the cutoff.
    pub(super) truncated: u64,
    /// Rows left out because none of their tokens is scored.
    pub(super) unscored: u64,
    /// Rows left out because they are wrong, as `--skip-bad-rows` allowed; the first of them, `line: fault`.
    pub(super) bad: u64,
    pub(super) bad_rows: Vec<String>,
    /// Digest of the rows.
    pub(super) digest: String,
}

/// Collects rows in order, in a cache file or in memory.
pub(super) struct RowWriter {
    sink: Sink,
    lengths: Vec<u32>,
    row_bytes: u64,
    stream: blake3::Hasher,
    encoded: Vec<u8>,
}

enum Sink {
    Memory(Vec<u8>),
    File(Box<Draft>),
}

/// A cache file that is being written.
struct Draft {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    temporary: Temporary,
    path: PathBuf,
}

/// Tells the drafts of one process apart.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// Removes the drafts of the same rows that killed processes left (`KEY.PID-N.tmp`).
fn remove_abandoned(path: &Path) {
    let (Some(folder), Some(key)) = (path.parent(), path.file_stem().and_then(|stem| stem.to_str())) else {
        return;
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let writer =
            name.to_str().and_then(|name| name.strip_prefix(key)?.strip_prefix('.')?.split_once('-'));
        let is_dead = |pid: &str| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if Path::new("/proc/self").exists() && writer.is_some_and(|(pid, _)| is_dead(pid)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes its file unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The cache file of `key` in `folder`.
pub(super) fn path_of(folder: &Path, key: &[u8; 32]) -> PathBuf {
    folder.join(format!("{}.rows", blake3::Hash::from_bytes(*key).to_hex()))
}

impl RowWriter {
    pub(super) fn in_memory() -> Self {
        Self::over(Sink::Memory(Vec::new()))
    }

    pub(super) fn in_folder(folder: &Path, key: [u8; 32]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = path_of(folder, &key);
        remove_abandoned(&path);
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        let temporary = Temporary(path.with_extension(format!("{}-{number}.tmp", std::process::id())));
        let out = BufWriter::with_capacity(1 << 20, File::create(&temporary.0)?);
        let mut writer =
            Self::over(Sink::File(Box::new(Draft { out, hasher: blake3::Hasher::new(), temporary, path })));
        writer.sink.write(MAGIC)?;
        writer.sink.write(&key)?;
        Ok(writer)
    }

    fn over(sink: Sink) -> Self {
        let (lengths, encoded) = (Vec::new(), Vec::new());
        RowWriter { sink, lengths, row_bytes: 0, stream: blake3::Hasher::new(), encoded }
    }

    pub(super) fn push(&mut self, row: &Row) -> io::Result<()> {
        self.encoded.clear();
        store::encode(row, &mut self.encoded);
        digest_row(&mut self.stream, &self.encoded, row.ids.len() as u32);
        self.lengths.push(row.ids.len() as u32);
        self.row_bytes += self.encoded.len() as u64;
        self.sink.write(&self.encoded)
    }

    /// Makes the cache file whole and durable; the rows are read from it from now on.
    pub(super) fn finish(mut self, mut report: Report) -> io::Result<(Part, Report)> {
        let digest = self.stream.finalize();
        report.digest = digest.to_hex().to_string();
        let (store, first) = match self.sink {
            Sink::Memory(bytes) => (Store::Memory(bytes), 0),
            Sink::File(_) => {
                let tail = self.tail(&report)?;
                self.sink.write(&tail)?;
                self.sink.publish()?
            }
        };
        let part = Part { store: Arc::new(store), first, lengths: self.lengths, digest: digest.into() };
        Ok((part, report))
    }

    fn tail(&self, report: &Report) -> io::Result<Vec<u8>> {
        let mut tail: Vec<u8> = self.lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
        let json = serde_json::to_vec(report)?;
        tail.extend_from_slice(&json);
        for number in [self.lengths.len() as u64, self.row_bytes, json.len() as u64] {
            tail.extend_from_slice(&number.to_le_bytes());
        }
        Ok(tail)
    }
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Memory(all) => all.extend_from_slice(bytes),
            Sink::File(draft) => {
                draft.hasher.update(bytes);
                draft.out.write_all(bytes)?;
            }
        }
        Ok(())
    }

    fn publish(self) -> io::Result<(Store, u64)> {
        let Sink::File(draft) = self else {
            return Err(io::Error::other("rows in memory have no file"));
        };
        let Draft { mut out, hasher, temporary, path } = *draft;
        out.write_all(hasher.finalize().as_bytes())?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&temporary.0, &path)?;
        let file = File::open(&path)?;
        Ok((Store::File(file, path), HEAD))
    }
}

/// The rows of `key`, when the folder has them. A damaged file is an error that says so; it can be written anew.
pub(super) fn open(folder: &Path, key: &[u8; 32]) -> Result<Option<(Part, Report)>> {
    let path = path_of(folder, key);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("reading", &path, e)),
    };
    let size = file.metadata().map_err(|e| Error::io("reading", &path, e))?.len();
    let damaged = |what: &str| Error::input(format!("token cache {} is damaged: {what}", path.display()));
    if size < HEAD + FOOT {
        return Err(damaged("it is too short"));
    }
    if !is_whole(&file, size).map_err(|e| Error::io("reading", &path, e))? {
        return Err(damaged("its digest does not match"));
    }
    let store = Store::File(file, path.clone());
    let number = |at: u64| store.u64_at(size - FOOT + at);
    let (rows, row_bytes, report_bytes) = (number(0)?, number(8)?, number(16)?);
    let lengths_at = HEAD.checked_add(row_bytes);
    let report_at = rows.checked_mul(4).zip(lengths_at).and_then(|(n, at)| n.checked_add(at));
    let (Some(lengths_at), Some(report_at)) = (lengths_at, report_at) else {
        return Err(damaged("its sizes overflow"));
    };
    if report_at.checked_add(report_bytes) != Some(size - FOOT) {
        return Err(damaged("its sizes do not add up"));
    }
    if store.bytes(0, 48)? != [MAGIC.as_slice(), key].concat() {
        return Err(damaged("it belongs to other rows"));
    }
    let lengths = store.bytes(lengths_at, (report_at - lengths_at) as usize)?;
    let lengths: Vec<u32> =
        lengths.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if lengths.iter().map(|&n| store::row_bytes(n) as u64).sum::<u64>() != row_bytes {
        return Err(damaged("its lengths do not add up"));
    }
    let report = store.bytes(report_at, report_bytes as usize)?;
    let report: Report = serde_json::from_slice(&report).map_err(|e| damaged(&e.to_string()))?;
    let digest = blake3::Hash::from_hex(&report.digest).map_err(|e| damaged(&e.to_string()))?;
    let part = Part { store: Arc::new(store), first: HEAD, lengths, digest: digest.into() };
    Ok(Some((part, report)))
}

fn is_whole(mut file: &File, size: u64) -> io::Result<bool> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = size - 32;
    while left > 0 {
        let take = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..take])?;
        hasher.update(&buffer[..take]);
        left -= take as u64;
    }
    let mut expected = [0; 32];
    file.read_exact(&mut expected)?;
    Ok(hasher.finalize() == blake3::Hash::from_bytes(expected))
}
