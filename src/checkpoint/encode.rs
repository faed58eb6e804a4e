//! Writing the format: sections one after the other, from borrowed slices, each digested from the very buffer
//! that is written. The header goes to its place when all digests are known, the trailer is last.

use super::buffer::{Buffer, CHUNK};
use super::format::{
    BLOCK, DIGEST_AT, Digest, ENTRY_LEN, FLAG_TAINTED, Header, MAGIC, SECTIONS, Section, TABLE_AT,
    TRAILER_MAGIC, VERSION, padded,
};
use super::state::{Cursor, Meta, State, TensorEntry};
use crate::report::line::LogLine;
use std::io;

/// Where encoded bytes go. Offsets, lengths and the addresses of the slices are multiples of [`BLOCK`], as
/// writing past the page cache demands.
pub trait Sink {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The storage's own.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Length of the file that `state` becomes, bytes.
#[must_use]
pub fn file_len(state: &State) -> u64 {
    2 * BLOCK + section_lengths(state).into_iter().map(blocks).sum::<u64>()
}

fn section_lengths(state: &State) -> [usize; 7] {
    let [w, m, v] = [&state.weights, &state.m, &state.v].map(|array| array.len() * 4);
    let texts = [Meta::of(state).encode(), idx(&state.tensors), cur(&state.cursor), log(&state.log)];
    let [meta, idx, cur, log] = texts.map(|bytes| bytes.len());
    [meta, idx, cur, log, w, m, v]
}

fn blocks(len: usize) -> u64 {
    padded(len as u64).expect("memory is smaller than 2^64 bytes")
}

/// Writes `state` and returns the header's digest, which stands for all of it.
///
/// # Errors
/// The sink's own; what was written until then is no checkpoint.
pub fn write(state: &State, sink: &mut dyn Sink) -> io::Result<Digest> {
    let longest = section_lengths(state).into_iter().max().map_or(0, blocks).max(BLOCK);
    let buffer = Buffer::new(CHUNK.min(longest as usize));
    let mut stream = Stream { sink, buffer, at: BLOCK, sections: Vec::new() };
    stream.bytes(&Meta::of(state).encode())?;
    stream.bytes(&idx(&state.tensors))?;
    stream.bytes(&cur(&state.cursor))?;
    stream.bytes(&log(&state.log))?;
    stream.floats(&state.weights)?;
    stream.floats(&state.m)?;
    stream.floats(&state.v)?;
    let mut header = Header {
        file_len: stream.at + BLOCK,
        step: state.step,
        samples: state.cursor.samples,
        tainted: state.tainted,
        sections: std::mem::take(&mut stream.sections),
        digest: [0; 32],
    };
    let block = header_block(&header);
    header.digest.copy_from_slice(&block[DIGEST_AT..]);
    stream.block(0, &block)?;
    stream.block(header.file_len - BLOCK, &trailer_block(&header))?;
    Ok(header.digest)
}

struct Stream<'a> {
    sink: &'a mut dyn Sink,
    buffer: Buffer,
    at: u64,
    sections: Vec<Section>,
}

impl Stream<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.section(bytes.chunks(CHUNK), |chunk, place| {
            place[..chunk.len()].copy_from_slice(chunk);
            chunk.len()
        })
    }

    fn floats(&mut self, values: &[f32]) -> io::Result<()> {
        self.section(values.chunks(CHUNK / 4), |chunk, place| {
            for (place, value) in place.chunks_exact_mut(4).zip(chunk) {
                place.copy_from_slice(&value.to_le_bytes());
            }
            4 * chunk.len()
        })
    }

    /// One section from `chunks`, of which all but the last fill whole blocks. `fill` puts one into the buffer
    /// and says how long it is.
    fn section<T>(
        &mut self,
        chunks: impl Iterator<Item = T>,
        mut fill: impl FnMut(T, &mut [u8]) -> usize,
    ) -> io::Result<()> {
        let mut hasher = blake3::Hasher::new();
        let (offset, mut len) = (self.at, 0u64);
        for chunk in chunks {
            let buffer = self.buffer.bytes();
            let filled = fill(chunk, buffer);
            let padded = filled.next_multiple_of(BLOCK as usize);
            buffer[filled..padded].fill(0);
            hasher.update(&buffer[..filled]);
            self.sink.write_at(self.at, &buffer[..padded])?;
            len += filled as u64;
            self.at += padded as u64;
        }
        let name = SECTIONS[self.sections.len()];
        self.sections.push(Section { name, offset, len, digest: *hasher.finalize().as_bytes() });
        Ok(())
    }

    fn block(&mut self, offset: u64, block: &[u8]) -> io::Result<()> {
        let buffer = self.buffer.bytes();
        buffer[..block.len()].copy_from_slice(block);
        self.sink.write_at(offset, &buffer[..block.len()])
    }
}

/// The header's 4096 bytes; `header.digest` is computed, not read.
#[must_use]
pub fn header_block(header: &Header) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK as usize);
    block.extend_from_slice(&MAGIC);
    block.extend_from_slice(&VERSION.0.to_le_bytes());
    block.extend_from_slice(&VERSION.1.to_le_bytes());
    put_u32(&mut block, BLOCK as u32);
    put_u64(&mut block, header.file_len);
    put_u64(&mut block, header.step);
    put_u64(&mut block, header.samples);
    put_u32(&mut block, if header.tainted { FLAG_TAINTED } else { 0 });
    put_u32(&mut block, SECTIONS.len() as u32);
    put_u32(&mut block, ENTRY_LEN as u32);
    block.resize(TABLE_AT, 0);
    for section in &header.sections {
        let entry_at = block.len();
        block.extend_from_slice(section.name.as_bytes());
        block.resize(entry_at + 16, 0); // codec 0, flags 0
        put_u64(&mut block, section.offset);
        put_u64(&mut block, section.len);
        put_u64(&mut block, section.len);
        block.extend_from_slice(&section.digest);
        block.resize(entry_at + ENTRY_LEN, 0);
    }
    block.resize(DIGEST_AT, 0);
    let digest = blake3::hash(&block);
    block.extend_from_slice(digest.as_bytes());
    block
}

/// The trailer's 4096 bytes: nothing in it is free.
#[must_use]
pub fn trailer_block(header: &Header) -> Vec<u8> {
    let mut block = TRAILER_MAGIC.to_vec();
    put_u64(&mut block, header.file_len);
    block.extend_from_slice(&header.digest);
    block.resize(BLOCK as usize, 0);
    block
}

fn idx(tensors: &[TensorEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    put_u64(&mut out, tensors.len() as u64);
    for t in tensors {
        put_u64(&mut out, t.offset as u64);
        put_u64(&mut out, t.shape[0] as u64);
        put_u64(&mut out, t.shape[1] as u64);
        put_u64(&mut out, t.name.len() as u64);
        out.extend_from_slice(t.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

fn cur(cursor: &Cursor) -> Vec<u8> {
    let mut out = Vec::new();
    put_u64(&mut out, cursor.samples);
    put_u64(&mut out, cursor.tokens);
    put_u64(&mut out, cursor.updates_behind);
    put_u64(&mut out, cursor.stale_evaluations);
    put_u64(&mut out, u64::from(cursor.best.is_some()));
    if let Some(best) = &cursor.best {
        put_u64(&mut out, best.loss.to_bits());
        put_u64(&mut out, best.step);
        out.extend_from_slice(&best.adapter);
    }
    out
}

/// Records: kind, length of what follows, and the line's words.
fn log(lines: &[LogLine]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines {
        let (kind, words) = line.words();
        put_u32(&mut out, kind);
        put_u32(&mut out, 8 * words.len() as u32);
        words.into_iter().for_each(|word| put_u64(&mut out, word));
    }
    out
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}
