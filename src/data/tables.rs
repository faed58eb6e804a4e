//! Files that are tables: CSV (with the feature `text`) and Parquet (with the feature `parquet`). Each record becomes
//! the JSON object whose keys are the columns' names.

#[cfg(feature = "text")]
mod csv;
#[cfg(feature = "parquet")]
mod parquet;

use super::reader::RawRow;
use crate::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The records of one file, in order.
pub(super) trait Table {
    /// The next record, or `None` at the end.
    fn next(&mut self) -> Result<Option<RawRow>>;
    /// Bytes of the file that are done, about.
    fn offset(&self) -> u64;
    /// Reads what is left and gives the BLAKE3 of the whole file.
    fn digest(self: Box<Self>) -> Result<blake3::Hash>;
}

/// The table that the file is; `None` for JSON.
pub(super) fn open(path: &Path, file: &File) -> Result<Option<Box<dyn Table>>> {
    let mut head = [0; 4];
    let read = file.read_at(&mut head, 0).map_err(|e| Error::reading(path, e))?;
    if head == *b"PAR1" {
        return open_parquet(path, file).map(Some);
    }
    let is_json = head[..read].trim_ascii_start().starts_with(b"{") || head[..read].starts_with(b"[");
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "csv" if !is_json => open_csv(path, file, b',').map(Some),
        "tsv" if !is_json => open_csv(path, file, b'\t').map(Some),
        _ => Ok(None),
    }
}

#[cfg(feature = "text")]
fn open_csv(path: &Path, file: &File, delimiter: u8) -> Result<Box<dyn Table>> {
    let file = file.try_clone().map_err(|e| Error::reading(path, e))?;
    Ok(Box::new(csv::Csv::open(path, file, delimiter)?))
}

#[cfg(not(feature = "text"))]
fn open_csv(path: &Path, _: &File, _: u8) -> Result<Box<dyn Table>> {
    Err(Error::input(format!("{}: this build reads no CSV", path.display()))
        .hint("build with the feature `text`, or write tokenised rows as JSON Lines"))
}

#[cfg(feature = "parquet")]
fn open_parquet(path: &Path, file: &File) -> Result<Box<dyn Table>> {
    let file = file.try_clone().map_err(|e| Error::reading(path, e))?;
    Ok(Box::new(parquet::Parquet::open(path, file)?))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(path: &Path, _: &File) -> Result<Box<dyn Table>> {
    let name = path.display();
    Err(Error::input(format!("{name} is Parquet, which this build does not read")).hint(format!(
        "build with `--features parquet`, or convert it: python -c \"import pandas; \
         pandas.read_parquet('{name}').to_json('rows.jsonl', orient='records', lines=True, force_ascii=False)\""
    )))
}
