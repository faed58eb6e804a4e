//! CSV and TSV (RFC 4180): the first record names the columns. An empty cell is null, a cell is text, and a cell of a
//! column that holds lists is read as JSON.

use super::Table;
use crate::data::reader::{Hashing, MAX_ROW_BYTES, Place, RawRow};
use crate::error::{Error, Result};
use serde::de::IgnoredAny;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Columns whose cells are JSON.
const LISTS: &[&str] = &[
    "messages",
    "conversations",
    "conversation",
    "history",
    "tools",
    "input_ids",
    "labels",
    "attention_mask",
    "completion_mask",
    "assistant_masks",
];

/// The records of one file.
pub(super) struct Csv {
    path: PathBuf,
    input: csv::Reader<Bounded>,
    /// The columns' names, each already a JSON string.
    names: Vec<String>,
    /// Whether the column's cells are JSON.
    lists: Vec<bool>,
    record: csv::ByteRecord,
    rows: u64,
}

/// Refuses a record without end before it fills the memory.
struct Bounded {
    input: Hashing,
    left: usize,
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let most = MAX_ROW_BYTES >> 20;
            return Err(io::Error::other(format!(
                "a record is longer than {most} MiB: is a quote not closed?"
            )));
        }
        let read = self.input.read(into)?;
        self.left = self.left.saturating_sub(read);
        Ok(read)
    }
}

impl Csv {
    pub(super) fn open(path: &Path, file: File, delimiter: u8) -> Result<Self> {
        let input = Bounded { input: Hashing::new(file), left: MAX_ROW_BYTES };
        let mut input = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .flexible(true)
            .buffer_capacity(1 << 18)
            .from_reader(input);
        let at = |what: String| Error::input(format!("{}:1: {what}", path.display()));
        let header = input.byte_headers().map_err(|e| at(e.to_string()))?.clone();
        let names = header.iter().map(|name| std::str::from_utf8(name).map(str::trim));
        let names: Vec<&str> =
            names.collect::<std::result::Result<_, _>>().map_err(|_| at("the header is not UTF-8".into()))?;
        for (index, name) in names.iter().enumerate() {
            if name.is_empty() {
                return Err(at(format!("column {} has no name", index + 1)));
            }
            if names[..index].contains(name) {
                return Err(at(format!("two columns are called {name:?}")));
            }
        }
        if let [one] = names[..]
            && let Some(other) = one.chars().find(|c| [';', '\t', '|'].contains(c))
        {
            return Err(at(format!("the columns are separated by {other:?}"))
                .hint("separate them by commas, or by tabs in a file named .tsv"));
        }
        Ok(Csv {
            path: path.to_path_buf(),
            names: names.iter().map(|name| serde_json::Value::from(*name).to_string()).collect(),
            lists: names.iter().map(|name| LISTS.contains(name)).collect(),
            input,
            record: csv::ByteRecord::new(),
            rows: 0,
        })
    }

    fn json(&self) -> std::result::Result<Vec<u8>, String> {
        if self.record.len() != self.names.len() {
            return Err(format!("{} cells for {} columns", self.record.len(), self.names.len()));
        }
        let mut out = String::from("{");
        for (index, cell) in self.record.iter().enumerate() {
            let name = &self.names[index];
            let text = std::str::from_utf8(cell).map_err(|_| format!("the cell of {name} is not UTF-8"))?;
            let list = self.lists[index] && text.trim_start().starts_with('[');
            out += if index == 0 { "" } else { ", " };
            out += name;
            out += ": ";
            if text.is_empty() {
                out += "null";
            } else if list && serde_json::from_str::<IgnoredAny>(text).is_ok() {
                out += text.trim();
            } else {
                out += &serde_json::Value::from(text).to_string();
            }
        }
        out += "}";
        Ok(out.into_bytes())
    }
}

impl Table for Csv {
    fn next(&mut self) -> Result<Option<RawRow>> {
        self.input.get_mut().left = MAX_ROW_BYTES;
        let more = self.input.read_byte_record(&mut self.record).map_err(|fault| {
            let line = self.input.position().line();
            Error::input(format!("{}:{line}: {fault}", self.path.display()))
        })?;
        if !more {
            return Ok(None);
        }
        self.rows += 1;
        let line = self.record.position().map(csv::Position::line);
        Ok(Some(RawRow::record(Place { line, row: Some(self.rows) }, self.json())))
    }

    fn offset(&self) -> u64 {
        self.input.position().byte()
    }

    fn digest(self: Box<Self>) -> Result<blake3::Hash> {
        self.input.into_inner().input.digest(&self.path)
    }
}
