//! Parquet: each record as the JSON object it stands for. The crate's own checks stand between the file and the
//! memory; a page's declared size is not bounded by it, so files from strangers are better read as JSON Lines.

use super::Table;
use crate::data::reader::{Hashing, MAX_ROW_BYTES, Place, RawRow};
use crate::error::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};

/// The records of one file.
pub(super) struct Parquet {
    path: PathBuf,
    file: File,
    rows: RowIter<'static>,
    bytes: u64,
    total: u64,
    done: u64,
}

impl Parquet {
    pub(super) fn open(path: &Path, file: File) -> Result<Self> {
        let at = |fault: parquet::errors::ParquetError| Error::input(format!("{}: {fault}", path.display()));
        let copy = file.try_clone().map_err(|e| Error::reading(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::reading(path, e))?.len();
        let reader = SerializedFileReader::new(copy).map_err(at)?;
        let total = u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Parquet { path: path.to_path_buf(), file, rows, bytes, total, done: 0 })
    }
}

impl Table for Parquet {
    fn next(&mut self) -> Result<Option<RawRow>> {
        let Some(row) = self.rows.next() else { return Ok(None) };
        self.done += 1;
        let place = Place { line: None, row: Some(self.done) };
        let row = row.map_err(|fault| Error::input(format!("{}{place}: {fault}", self.path.display())))?;
        let mut out = String::new();
        let made = object(&row, &mut out).and_then(|()| {
            if out.len() > MAX_ROW_BYTES {
                return Err(format!("the row is longer than {} MiB", MAX_ROW_BYTES >> 20));
            }
            Ok(out.into_bytes())
        });
        Ok(Some(RawRow::record(place, made)))
    }

    fn offset(&self) -> u64 {
        let share = u128::from(self.bytes) * u128::from(self.done) / u128::from(self.total.max(1));
        u64::try_from(share).unwrap_or(self.bytes).min(self.bytes)
    }

    fn digest(self: Box<Self>) -> Result<blake3::Hash> {
        let mut file = self.file;
        file.rewind().map_err(|e| Error::reading(&self.path, e))?;
        Hashing::new(file).digest(&self.path)
    }
}

fn object(row: &Row, out: &mut String) -> std::result::Result<(), String> {
    out.push('{');
    for (index, (name, field)) in row.get_column_iter().enumerate() {
        *out += if index == 0 { "" } else { ", " };
        *out += &serde_json::Value::from(name.as_str()).to_string();
        *out += ": ";
        value(field, out).map_err(|what| format!("column {name:?} holds {what}"))?;
    }
    out.push('}');
    Ok(())
}

fn value(field: &Field, out: &mut String) -> std::result::Result<(), String> {
    let text = match field {
        Field::Null => "null".to_owned(),
        Field::Bool(value) => value.to_string(),
        Field::Byte(value) => value.to_string(),
        Field::Short(value) => value.to_string(),
        Field::Int(value) => value.to_string(),
        Field::Long(value) => value.to_string(),
        Field::UByte(value) => value.to_string(),
        Field::UShort(value) => value.to_string(),
        Field::UInt(value) => value.to_string(),
        Field::ULong(value) => value.to_string(),
        Field::Float(value) => serde_json::Value::from(*value).to_string(),
        Field::Double(value) => serde_json::Value::from(*value).to_string(),
        Field::Str(text) => serde_json::Value::from(text.as_str()).to_string(),
        Field::Group(row) => return object(row, out),
        Field::ListInternal(list) => {
            out.push('[');
            for (index, item) in list.elements().iter().enumerate() {
                *out += if index == 0 { "" } else { ", " };
                value(item, out)?;
            }
            out.push(']');
            return Ok(());
        }
        Field::Bytes(_) => return Err("bytes that are not marked as text".into()),
        _ => return Err("a date, decimal, half or map, which is no JSON".into()),
    };
    *out += &text;
    Ok(())
}
