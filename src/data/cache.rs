//! Tokenised rows on disk, so that a second run or a resume tokenises nothing.
//!
//! A cache file is named by the digest of all that decides it, published whole, and looked through when it is opened:
//! its BLAKE3, the range of every token, a scored token in every row. What is read later is compared with a sum of
//! each row taken then, so that a file that changes meanwhile stops the run. None of this helps against somebody who
//! may write in the folder and makes up rows: from a folder everybody can write in, only own files are taken, and that
//! a folder is shared with others is said. All numbers are little endian:
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
use crate::formats::open_folder::{Access, OpenFolder};
use crate::formats::publish::{FileDraft, Memory, Over};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 16] = b"qwentune rows 1\n";
const HEAD: u64 = 16 + 32;
const FOOT: u64 = 24 + 32;

/// Largest report that is read; it may list as many bad rows as were allowed.
const MAX_REPORT: u64 = 64 << 20;

/// Bytes collected before they are written.
const BUFFER: usize = 1 << 20;

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
    /// Answers that are not the last and whose thoughts the chat template leaves out.
    pub(super) thoughts_left_out: u64,
    /// Rows left out because they are wrong, as `--skip-bad-rows` allowed; the first of them, place and fault.
    pub(super) bad: u64,
    pub(super) bad_rows: Vec<String>,
    /// Digest of the rows.
    pub(super) digest: String,
}

/// The open folder of cache files.
pub(super) struct TokenCache {
    folder: OpenFolder,
    /// Everybody can create files in it, and nobody can take away others' (the sticky bit).
    public: bool,
    /// What is to be said of it, once.
    pub(super) warning: Option<String>,
}

impl TokenCache {
    /// Opens `path`, creating it for this user alone.
    ///
    /// # Errors
    /// It cannot be opened; or everybody can write in it and take away what is there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opened = OpenFolder::create(path, Access::Private).and_then(|f| Ok((f.stat()?, f)));
        let (found, folder) = opened.map_err(|e| Error::io("opening", path, e))?;
        let mode = found.st_mode;
        let public = mode & 0o002 != 0;
        if public && mode & 0o1000 == 0 {
            return Err(Error::output(format!("everybody can write in {}", path.display()))
                .hint("choose another --cache-dir, or take the right from it: chmod o-w"));
        }
        let others = found.st_uid != rustix::process::geteuid().as_raw() || mode & 0o020 != 0;
        let warning = (others && !public).then(|| {
            format!(
                "others can write in the token cache {}: the rows found there are believed",
                path.display()
            )
        });
        Ok(TokenCache { folder, public, warning })
    }

    /// The rows of `key`, when the folder has them. A file that is damaged, or not to be believed, is an error that says
    /// so; it can be written anew.
    pub(super) fn find(&self, key: &[u8; 32], vocab_size: usize) -> Result<Option<(Part, Report)>> {
        let name = name_of(key);
        let path = self.folder.path_of(&name);
        let file = match self.folder.open_file(&name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("reading", &path, e)),
        };
        let found = file.metadata().map_err(|e| Error::io("reading", &path, e))?;
        let ours = [rustix::process::geteuid().as_raw(), 0].contains(&found.uid());
        if self.public && !ours {
            return Err(Error::input(format!(
                "token cache {} was written by user {}",
                path.display(),
                found.uid()
            )));
        }
        let opened = Opened { file, path, size: found.len(), vocab_size };
        opened.rows(key).map(Some)
    }

    /// Begins the file of `key`.
    pub(super) fn begin(&self, key: [u8; 32]) -> Result<RowWriter> {
        let draft = FileDraft::in_folder(&self.folder, OsStr::new(&name_of(&key)))?;
        let path = self.folder.path_of(name_of(&key));
        let mut writer = RowWriter::over(Sink::File(Box::new(Draft {
            draft,
            waiting: Vec::with_capacity(BUFFER),
            hasher: blake3::Hasher::new(),
            path,
        })));
        writer.sink.write(MAGIC)?;
        writer.sink.write(&key)?;
        Ok(writer)
    }
}

/// The name of the cache file of `key`.
fn name_of(key: &[u8; 32]) -> String {
    format!("{}.rows", blake3::Hash::from_bytes(*key).to_hex())
}

/// Collects rows in order, in a cache file or in memory.
pub(super) struct RowWriter {
    sink: Sink,
    lengths: Vec<u32>,
    sums: Vec<u32>,
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
    draft: FileDraft,
    waiting: Vec<u8>,
    hasher: blake3::Hasher,
    path: PathBuf,
}

impl RowWriter {
    pub(super) fn in_memory() -> Self {
        Self::over(Sink::Memory(Vec::new()))
    }

    fn over(sink: Sink) -> Self {
        let (lengths, sums, encoded) = (Vec::new(), Vec::new(), Vec::new());
        RowWriter { sink, lengths, sums, row_bytes: 0, stream: blake3::Hasher::new(), encoded }
    }

    pub(super) fn push(&mut self, row: &Row) -> Result<()> {
        self.encoded.clear();
        store::encode(row, &mut self.encoded);
        digest_row(&mut self.stream, &self.encoded, row.ids.len() as u32);
        self.lengths.push(row.ids.len() as u32);
        self.sums.push(store::sum(&self.encoded));
        self.row_bytes += self.encoded.len() as u64;
        self.sink.write(&self.encoded)
    }

    /// Makes the cache file whole and durable; the rows are read from it from now on.
    pub(super) fn finish(mut self, mut report: Report) -> Result<(Part, Report)> {
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
        let part = Part {
            store: Arc::new(store),
            first,
            lengths: self.lengths,
            sums: self.sums,
            digest: digest.into(),
        };
        Ok((part, report))
    }

    fn tail(&self, report: &Report) -> Result<Vec<u8>> {
        let mut tail: Vec<u8> = self.lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
        let json =
            serde_json::to_vec(report).map_err(|e| Error::check(format!("the report of the rows: {e}")))?;
        tail.extend_from_slice(&json);
        for number in [self.lengths.len() as u64, self.row_bytes, json.len() as u64] {
            tail.extend_from_slice(&number.to_le_bytes());
        }
        Ok(tail)
    }
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Sink::Memory(all) => all.extend_from_slice(bytes),
            Sink::File(file) => {
                file.hasher.update(bytes);
                file.waiting.extend_from_slice(bytes);
                if file.waiting.len() >= BUFFER {
                    file.draft.write(&file.waiting)?;
                    file.waiting.clear();
                }
            }
        }
        Ok(())
    }

    fn publish(self) -> Result<(Store, u64)> {
        let Sink::File(file) = self else {
            return Err(Error::check("rows in memory have no file"));
        };
        let Draft { mut draft, mut waiting, hasher, path } = *file;
        waiting.extend_from_slice(hasher.finalize().as_bytes());
        draft.write(&waiting)?;
        // Read on from the file that was written, not from whatever has its name.
        Ok((Store::File(draft.publish(Over::Earlier, &Memory)?, path), HEAD))
    }
}

/// A cache file that is being looked through.
struct Opened {
    file: File,
    path: PathBuf,
    size: u64,
    vocab_size: usize,
}

impl Opened {
    fn damaged(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("token cache {} is damaged: {what}", self.path.display()))
    }

    fn bytes(&self, at: u64, size: u64) -> Result<Vec<u8>> {
        // Only called for what lies inside the file.
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, at).map_err(|e| Error::io("reading", &self.path, e))?;
        Ok(bytes)
    }

    /// Where lengths and report begin, and how many bytes the report has.
    fn outline(&self) -> Result<(u64, u64, u64)> {
        if self.size < HEAD + FOOT {
            return Err(self.damaged("it is too short"));
        }
        let foot = self.bytes(self.size - FOOT, 24)?;
        let number =
            |at: usize| foot[at..at + 8].iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        let (rows, row_bytes, report_bytes) = (number(0), number(8), number(16));
        let lengths_at = HEAD.checked_add(row_bytes);
        let report_at = rows.checked_mul(4).zip(lengths_at).and_then(|(n, at)| n.checked_add(at));
        let (Some(lengths_at), Some(report_at)) = (lengths_at, report_at) else {
            return Err(self.damaged("its sizes overflow"));
        };
        if report_at.checked_add(report_bytes) != Some(self.size - FOOT) || report_bytes > MAX_REPORT {
            return Err(self.damaged("its sizes do not add up"));
        }
        Ok((lengths_at, report_at, report_bytes))
    }

    fn rows(mut self, key: &[u8; 32]) -> Result<(Part, Report)> {
        let (lengths_at, report_at, report_bytes) = self.outline()?;
        if self.bytes(0, HEAD)? != [MAGIC.as_slice(), key].concat() {
            return Err(self.damaged("it belongs to other rows"));
        }
        let lengths: Vec<u32> = self
            .bytes(lengths_at, report_at - lengths_at)?
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let row_bytes = lengths.iter().map(|&n| store::row_bytes(n) as u64).sum::<u64>();
        if row_bytes != lengths_at - HEAD {
            return Err(self.damaged("its lengths do not add up"));
        }
        let sums = self.look_through(&lengths)?;
        let report = self.bytes(report_at, report_bytes)?;
        let report: Report = serde_json::from_slice(&report).map_err(|e| self.damaged(e))?;
        let digest = blake3::Hash::from_hex(&report.digest).map_err(|e| self.damaged(e))?;
        let store = Arc::new(Store::File(self.file, self.path));
        Ok((Part { store, first: HEAD, lengths, sums, digest: digest.into() }, report))
    }

    /// Reads the whole file once: its digest, and each row. Gives the rows' sums.
    fn look_through(&mut self, lengths: &[u32]) -> Result<Vec<u32>> {
        let fault = |e: io::Error| Error::io("reading", &self.path, e);
        self.file.seek(SeekFrom::Start(0)).map_err(fault)?;
        let mut input = io::BufReader::with_capacity(BUFFER, &self.file);
        let mut hasher = blake3::Hasher::new();
        let mut bytes = vec![0; HEAD as usize];
        input.read_exact(&mut bytes).map_err(fault)?;
        hasher.update(&bytes);
        let mut sums = Vec::with_capacity(lengths.len());
        let mut wrong = None;
        for (index, &tokens) in lengths.iter().enumerate() {
            bytes.resize(store::row_bytes(tokens), 0);
            input.read_exact(&mut bytes).map_err(fault)?;
            hasher.update(&bytes);
            sums.push(store::sum(&bytes));
            let fault = store::fault(&bytes, tokens, self.vocab_size);
            wrong = wrong.or(fault.map(|fault| format!("row {}: {fault}", index + 1)));
        }
        let (tail, mut digest) =
            (self.size - HEAD - lengths.iter().map(|&n| store::row_bytes(n) as u64).sum::<u64>(), [0; 32]);
        let mut tail = (&mut input).take(tail - 32);
        loop {
            bytes.resize(BUFFER, 0);
            let read = tail.read(&mut bytes).map_err(fault)?;
            if read == 0 {
                break;
            }
            hasher.update(&bytes[..read]);
        }
        input.read_exact(&mut digest).map_err(fault)?;
        if hasher.finalize() != blake3::Hash::from_bytes(digest) {
            return Err(self.damaged("its digest does not match"));
        }
        wrong.map_or(Ok(sums), |wrong| Err(self.damaged(wrong)))
    }
}
