//! Memory for reading and writing past the page cache.

use super::format::BLOCK;

/// Bytes read or written at a time: a large request, and little memory.
pub(super) const CHUNK: usize = 4 << 20;

/// Bytes that begin at a multiple of [`BLOCK`].
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + BLOCK as usize];
        // Where the address cannot be aligned, reading and writing are only slower.
        let start = memory.as_ptr().align_offset(BLOCK as usize).min(BLOCK as usize);
        Buffer { memory, start, len }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
