//! Cuts a data file into rows without holding more than one: lines of JSON Lines, the elements of one JSON array,
//! the records of a table (`tables`). A row is the bytes of JSON here; what is in them is checked elsewhere, in
//! parallel.

use super::tables::{self, Table};
use crate::error::{Error, Result};
use crate::files;
use crate::formats::lfs;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A longer row is refused: most likely the file has no line ends.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// Where a row is in its file, both counted from 1. Shown as what follows the file's name: `:LINE` where every row
/// has a line of its own, `:LINE (row N)` or ` (row N)` elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its line, where the file has lines.
    pub line: Option<u64>,
    /// Its number among the rows, where that is another than the line.
    pub row: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        self.row.map_or(Ok(()), |row| write!(f, " (row {row})"))
    }
}

/// One row's JSON and where it begins.
pub(super) struct RawRow {
    pub(super) place: Place,
    /// Byte offset in the file, where the row is written there as it is here.
    pub(super) offset: Option<u64>,
    pub(super) bytes: Vec<u8>,
    /// The file ends right after this row, without a line end.
    pub(super) unterminated: bool,
    /// Why a table's record is no row.
    pub(super) fault: Option<String>,
}

impl RawRow {
    /// A record of a table.
    #[cfg(any(feature = "text", feature = "parquet"))]
    pub(super) fn record(place: Place, made: std::result::Result<Vec<u8>, String>) -> Self {
        let (bytes, fault) = made.map_or_else(|fault| (Vec::new(), Some(fault)), |bytes| (bytes, None));
        RawRow { place, offset: None, bytes, unterminated: false, fault }
    }
}

/// Reads the rows of one file in order, and the digest of all its bytes on the way.
pub(super) enum RowReader {
    Json(Box<JsonReader>),
    Table(Box<dyn Table>),
}

impl RowReader {
    /// Opens the file; its first bytes and the end of its name say what it is.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = files::open(path)?;
        match tables::open(path, &file)? {
            Some(table) => Ok(RowReader::Table(table)),
            None => JsonReader::new(path, file).map(|reader| RowReader::Json(Box::new(reader))),
        }
    }

    /// The next row, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<RawRow>> {
        match self {
            RowReader::Json(reader) => reader.next(),
            RowReader::Table(table) => table.next(),
        }
    }

    /// Bytes consumed so far; for a table that is read here and there, about so many.
    pub(super) fn offset(&self) -> u64 {
        match self {
            RowReader::Json(reader) => reader.offset,
            RowReader::Table(table) => table.offset(),
        }
    }

    /// Reads what is left and gives the BLAKE3 of the whole file.
    pub(super) fn digest(self) -> Result<blake3::Hash> {
        match self {
            RowReader::Json(reader) => reader.input.into_inner().digest(&reader.path),
            RowReader::Table(table) => table.digest(),
        }
    }
}

/// Reads JSON Lines or one JSON array.
pub(super) struct JsonReader {
    path: PathBuf,
    input: BufReader<Hashing>,
    shape: Shape,
    line: u64,
    row: u64,
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

/// A file that is digested while it is read.
pub(super) struct Hashing {
    file: File,
    hasher: blake3::Hasher,
}

impl Hashing {
    pub(super) fn new(file: File) -> Self {
        Hashing { file, hasher: blake3::Hasher::new() }
    }

    /// Reads what is left and gives the digest of the whole file, which is called `path`.
    pub(super) fn digest(mut self, path: &Path) -> Result<blake3::Hash> {
        std::io::copy(&mut self, &mut std::io::sink()).map_err(|e| Error::reading(path, e))?;
        Ok(self.hasher.finalize())
    }
}

impl Read for Hashing {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(into)?;
        self.hasher.update(&into[..n]);
        Ok(n)
    }
}

/// First bytes of files that are given for JSON by mistake.
const NOT_JSON: [(&[u8], &str); 10] = [
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a zip archive"),
    (b"ARROW1", "Arrow"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"SQLite format 3", "SQLite"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x80\x04\x95", "a Python pickle"),
];

impl JsonReader {
    /// Looks at the file's first bytes.
    fn new(path: &Path, file: File) -> Result<Self> {
        let input = BufReader::with_capacity(1 << 18, Hashing::new(file));
        let mut reader =
            JsonReader { path: path.to_path_buf(), input, shape: Shape::Lines, line: 1, row: 0, offset: 0 };
        reader.sniff()?;
        Ok(reader)
    }

    fn sniff(&mut self) -> Result<()> {
        let head = self.peek()?;
        if lfs::is_pointer(head) {
            return Err(lfs::pointer(&self.path));
        }
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

    fn next(&mut self) -> Result<Option<RawRow>> {
        self.skip_blank()?;
        self.row += 1;
        match self.shape {
            Shape::Lines => self.next_line(),
            Shape::Array { started } => self.next_element(started),
            Shape::Ended => Ok(None),
        }
    }

    fn row_here(&self) -> RawRow {
        // A line of JSON Lines is a row; an array's rows may share a line.
        let row = (self.shape != Shape::Lines).then_some(self.row);
        let place = Place { line: Some(self.line), row };
        RawRow { place, offset: Some(self.offset), bytes: Vec::new(), unterminated: false, fault: None }
    }

    fn too_big(&self, row: &RawRow) -> Error {
        Error::input(format!(
            "{}{}: the row is longer than {} MiB",
            self.path.display(),
            row.place,
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
                let place = format!("{}{}", self.path.display(), row.place);
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
        let place = format!("{}{}", self.path.display(), row.place);
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
