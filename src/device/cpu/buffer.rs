//! Zeroed f32 memory that starts on a cache line.

/// f32 in a line of 64 bytes.
const LINE: usize = 16;

/// A fixed-size allocation aligned to 64 bytes; pages never touched stay unmapped.
pub(super) struct Buffer {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub(super) fn zeroed(len: usize) -> Self {
        let memory = vec![0.0f32; len + LINE];
        let misaligned = memory.as_ptr().addr() / size_of::<f32>() % LINE;
        Buffer { memory, start: (LINE - misaligned) % LINE, len }
    }

    /// Grows to at least `len` elements; the contents are lost then.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.len < len {
            // The old memory goes first, so that the two are never held together.
            *self = Buffer::zeroed(0);
            *self = Buffer::zeroed(len);
        }
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
