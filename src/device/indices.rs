//! Integers that operations read, such as token ids: those of the host, and where the device's copy of them is.

use super::{Region, Storage};

/// A list of integers, made by `Device::place`. Plain data, like [`Region`].
#[derive(Clone, Copy, Debug)]
pub struct Indices<'a> {
    /// The values.
    pub values: &'a [u32],
    /// The device's copy; nothing on a device that reads the host's.
    pub copy: Region,
}

impl<'a> Indices<'a> {
    /// Integers for a device that reads the host's: the CPU.
    #[must_use]
    pub fn host(values: &'a [u32]) -> Self {
        Indices { values, copy: Region { storage: Storage::Integer, start: 0, len: values.len() } }
    }

    /// Number of integers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The `len` integers from `offset` on.
    ///
    /// # Panics
    /// When they are not all there.
    #[must_use]
    pub fn slice(self, offset: usize, len: usize) -> Self {
        Indices { values: &self.values[offset..offset + len], copy: self.copy.slice(offset, len) }
    }
}
