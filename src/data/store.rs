//! Tokenised rows as bytes: in memory, or in a cache file read at an offset.
//!
//! A row of n tokens is n ids (u32, little endian) followed by ceil(n / 8) bytes of mask: bit i of the mask
//! (least significant first) says whether token i is scored.

use super::dataset::{IGNORED, Row};
use crate::error::{Error, Kind, Result};
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
    /// The row of `tokens` tokens at `offset`, whose [`sum`] was `sum` when it was looked through.
    pub(super) fn row(&self, offset: u64, tokens: u32, expected: u32) -> Result<Row> {
        let bytes = self.bytes(offset, row_bytes(tokens))?;
        match self {
            Store::File(_, path) if sum(&bytes) != expected => {
                let what = format!("the token cache {} was changed while it was in use", path.display());
                Err(Error::new(Kind::Io, what)
                    .hint("use a --cache-dir nobody else writes in, then resume from the last checkpoint"))
            }
            _ => Ok(decode(&bytes, tokens)),
        }
    }

    /// `size` bytes at `offset`.
    fn bytes(&self, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self {
            Store::Memory(all) => Ok(all[offset as usize..offset as usize + size].to_vec()),
            Store::File(file, path) => {
                let mut bytes = vec![0; size];
                file.read_exact_at(&mut bytes, offset).map_err(|e| Error::io("reading", path, e))?;
                Ok(bytes)
            }
        }
    }
}

/// The start of the BLAKE3 of an encoded row.
pub(super) fn sum(encoded: &[u8]) -> u32 {
    let digest = blake3::hash(encoded);
    let [a, b, c, d, ..] = *digest.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// What no row made here has: no tokens, one outside the vocabulary, none that is scored.
pub(super) fn fault(encoded: &[u8], tokens: u32, vocab_size: usize) -> Option<String> {
    let (ids, mask) = encoded.split_at(tokens as usize * 4);
    let mut ids = ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if let Some(id) = ids.find(|&id| id as usize >= vocab_size) {
        return Some(format!("token {id} is outside the vocabulary of {vocab_size}"));
    }
    // The first token is no other's next, so nothing counts its mark.
    let scored = (1..tokens as usize).any(|i| mask[i / 8] >> (i % 8) & 1 == 1);
    (!scored).then(|| "none of its tokens is scored".to_owned())
}

fn decode(bytes: &[u8], tokens: u32) -> Row {
    let (ids, mask) = bytes.split_at(tokens as usize * 4);
    let ids: Vec<u32> = ids.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let scored = |i: usize| mask[i / 8] >> (i % 8) & 1 == 1;
    let labels = ids.iter().enumerate().map(|(i, &id)| if scored(i) { id as i32 } else { IGNORED }).collect();
    Row { ids, labels }
}
