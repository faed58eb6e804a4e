//! Cuts a data file into rows without holding more than one: lines of JSON Lines, or the elements of one JSON
//! array. Rows are bytes here; what is in them is checked elsewhere, in parallel.

use crate::error::{Error, Result};
use crate::files;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A longer row is refused: most likely the file has no line ends.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// One row's bytes and where it begins.
pub(super) struct RawRow {
    /// Line of the file, from 1.
    pub(super) line: u64,
    /// Byte offset in the file.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
    /// The file ends right after this row, without a line end.
    pub(super) unterminated: bool,
}

/// Reads the rows of one file in order, and the digest of all its bytes on the way.
pub(super) struct RowReader {
    path: PathBuf,
    input: BufReader<Hashing>,
    shape: Shape,
    line: u64,
    offset: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Lines,
    /// Within an array; whether a row was read already.
    Array {
        started: bool,
    },
    Ended,
}

struct Hashing {
    file: File,
    hasher: blake3::Hasher,
}

impl Read for Hashing {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(into)?;
        self.hasher.update(&into[..n]);
        Ok(n)
    }
}

/// First bytes of files that are given for JSON by mistake.
const NOT_JSON: [(&[u8], &str); 11] = [
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"SQLite format 3", "SQLite"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x80\x04\x95", "a Python pickle"),
];

impl RowReader {
    /// Opens the file and looks at its first bytes.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = files::open(path)?;
        let input = BufReader::with_capacity(1 << 18, Hashing { file, hasher: blake3::Hasher::new() });
        let mut reader =
            RowReader { path: path.to_path_buf(), input, shape: Shape::Lines, line: 1, offset: 0 };
        reader.sniff()?;
        Ok(reader)
    }

    /// Bytes consumed so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The BLAKE3 of the file; only meaningful after the last row.
    pub(super) fn digest(&self) -> blake3::Hash {
        self.input.get_ref().hasher.finalize()
    }

    fn sniff(&mut self) -> Result<()> {
        let head = self.peek()?;
        for (magic, name) in NOT_JSON {
            if head.starts_with(magic) {
                return Err(self.not_json(name));
            }
        }
        if head.len() >= 4 && (head[0] == 0 || head[1] == 0) {
            return Err(self.not_json("UTF-16"));
        }
        if self.peek()?.starts_with(b"\xef\xbb\xbf") {
            self.consume(3);
        }
        self.skip_blank()?;
        if self.peek()?.first() == Some(&b'[') {
            self.consume(1);
            self.shape = Shape::Array { started: false };
        }
        Ok(())
    }

    fn not_json(&self, name: &str) -> Error {
        Error::input(format!("{} looks like {name}, not JSON Lines or a JSON array", self.path.display()))
            .hint("convert it to UTF-8 JSON Lines, one row a line")
    }

    fn peek(&mut self) -> Result<&[u8]> {
        self.input.fill_buf().map_err(|e| Error::io("reading", &self.path, e))
    }

    fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.offset += bytes as u64;
    }

    fn skip_blank(&mut self) -> Result<()> {
        loop {
            let (blank, lines, more) = {
                let buffer = self.peek()?;
                let blank = buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
                let lines = buffer[..blank].iter().filter(|&&b| b == b'\n').count();
                (blank, lines, blank > 0 && blank == buffer.len())
            };
            self.consume(blank);
            self.line += lines as u64;
            if !more {
                return Ok(());
            }
        }
    }

    /// The next row, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<RawRow>> {
        self.skip_blank()?;
        match self.shape {
            Shape::Lines => self.next_line(),
            Shape::Array { started } => self.next_element(started),
            Shape::Ended => Ok(None),
        }
    }

    fn row_here(&self) -> RawRow {
        RawRow { line: self.line, offset: self.offset, bytes: Vec::new(), unterminated: false }
    }

    fn too_big(&self, row: &RawRow) -> Error {
        Error::input(format!(
            "{}:{}: the row is longer than {} MiB",
            self.path.display(),
            row.line,
            MAX_ROW_BYTES >> 20
        ))
        .hint("is it JSON Lines, one row a line?")
    }

    fn next_line(&mut self) -> Result<Option<RawRow>> {
        let mut row = self.row_here();
        loop {
            let buffer = self.peek()?;
            if buffer.is_empty() {
                row.unterminated = true;
                return Ok((!row.bytes.is_empty()).then_some(row));
            }
            let end = buffer.iter().position(|&b| b == b'\n');
            let take = end.unwrap_or(buffer.len());
            row.bytes.extend_from_slice(&buffer[..take]);
            self.consume(take + usize::from(end.is_some()));
            if row.bytes.len() > MAX_ROW_BYTES {
                return Err(self.too_big(&row));
            }
            if end.is_some() {
                self.line += 1;
                return Ok(Some(row));
            }
        }
    }

    fn next_element(&mut self, started: bool) -> Result<Option<RawRow>> {
        let mut row = self.row_here();
        let mut scan = Scan::default();
        loop {
            let buffer = self.peek()?;
            if buffer.is_empty() {
                return Err(self.truncated(&row));
            }
            let (taken, ended) = scan.take(buffer);
            row.bytes.extend_from_slice(&buffer[..taken]);
            let lines = buffer[..taken].iter().filter(|&&b| b == b'\n').count();
            self.consume(taken + usize::from(ended.is_some()));
            self.line += lines as u64;
            if row.bytes.len() > MAX_ROW_BYTES {
                return Err(self.too_big(&row));
            }
            let Some(closed) = ended else { continue };
            let empty = row.bytes.is_empty();
            if empty && (started || !closed) {
                let place = format!("{}:{}", self.path.display(), row.line);
                return Err(Error::input(format!("{place}: a row is missing beside a comma of the array")));
            }
            self.shape = Shape::Array { started: true };
            if closed {
                self.finish_array()?;
            }
            return Ok((!empty).then_some(row));
        }
    }

    fn truncated(&self, row: &RawRow) -> Error {
        let place = format!("{}:{}", self.path.display(), row.line);
        Error::input(format!("{place}: the file ends inside this row or before the array's `]`"))
            .hint("was it still being written?")
    }

    fn finish_array(&mut self) -> Result<()> {
        self.shape = Shape::Ended;
        self.skip_blank()?;
        if self.peek()?.is_empty() {
            return Ok(());
        }
        let place = format!("{}:{}", self.path.display(), self.line);
        Err(Error::input(format!("{place}: there is something after the array's `]`")))
    }
}

/// Finds the end of one array element: a comma or `]` outside strings and brackets.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Bytes of `buffer` that belong to the element, and whether the array (true) or the element (false) ends
    /// right after them.
    fn take(&mut self, buffer: &[u8]) -> (usize, Option<bool>) {
        for (i, &byte) in buffer.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b',' if self.depth == 0 => return (i, Some(false)),
                b']' if self.depth == 0 => return (i, Some(true)),
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        (buffer.len(), None)
    }
}
