//! Tokenised rows as bytes: in memory, or in a cache file read at an offset.
//!
//! A row of n tokens is n ids (u32, little endian) followed by ceil(n / 8) bytes of mask: bit i of the mask
//! (least significant first) says whether token i is scored.

use super::dataset::{IGNORED, Row};
use crate::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Where encoded rows lie.
pub(super) enum Store {
    /// All rows, one after the other.
    Memory(Vec<u8>),
    /// A cache file; the path is for messages.
    File(File, PathBuf),
}

/// Bytes of an encoded row.
pub(super) fn row_bytes(tokens: u32) -> usize {
    tokens as usize * 4 + (tokens as usize).div_ceil(8)
}

/// Appends a row. Its labels are its ids or [`IGNORED`] (checked where rows are made).
pub(super) fn encode(row: &Row, out: &mut Vec<u8>) {
    out.extend(row.ids.iter().flat_map(|id| id.to_le_bytes()));
    for labels in row.labels.chunks(8) {
        let bits = labels.iter().enumerate().map(|(i, &label)| u8::from(label != IGNORED) << i);
        out.push(bits.fold(0, |a, b| a | b));
    }
}

impl Store {
    /// The row of `tokens` tokens at `offset`.
    pub(super) fn row(&self, offset: u64, tokens: u32) -> Result<Row> {
        Ok(decode(&self.bytes(offset, row_bytes(tokens))?, tokens))
    }

    /// `size` bytes at `offset`.
    pub(super) fn bytes(&self, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self {
            Store::Memory(all) => Ok(all[offset as usize..offset as usize + size].to_vec()),
            Store::File(file, path) => {
                let mut bytes = vec![0; size];
                file.read_exact_at(&mut bytes, offset).map_err(|e| Error::io("reading", path, e))?;
                Ok(bytes)
            }
        }
    }

    /// The little-endian number at `offset`.
    pub(super) fn u64_at(&self, offset: u64) -> Result<u64> {
        let bytes = self.bytes(offset, 8)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }
}

fn decode(bytes: &[u8], tokens: u32) -> Row {
    let (ids, mask) = bytes.split_at(tokens as usize * 4);
    let ids: Vec<u32> = ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let scored = |i: usize| mask[i / 8] >> (i % 8) & 1 == 1;
    let labels = ids.iter().enumerate().map(|(i, &id)| if scored(i) { id as i32 } else { IGNORED }).collect();
    Row { ids, labels }
}
