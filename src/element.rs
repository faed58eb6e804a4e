//! Element types of stored weights.

/// How a stored weight's elements are encoded (little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// The value of the element that `bytes` begins with.
    ///
    /// # Panics
    /// When there are fewer bytes than an element has.
    #[must_use]
    #[inline(always)]
    pub fn widen(self, bytes: &[u8]) -> f32 {
        match self {
            Element::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Element::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Element::Bf16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    /// Widens all elements of `bytes` into `out`, which holds as many.
    pub fn widen_all(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Element::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Element::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = half::f16::from_le_bytes(*b).to_f32();
                }
            }
            Element::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = half::bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }
}
