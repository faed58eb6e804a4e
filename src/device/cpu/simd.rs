//! The few vector operations that matrix products need, once for each instruction set.

use crate::element::Element;

/// Vectors of f32. Every implementation rounds alike, so results have the same bits.
///
/// # Safety
/// All functions need a processor with the instructions; pointers are valid for what is read or written,
/// without any alignment. They are `inline(always)` and become instructions inside a function with the
/// matching `target_feature` (see `Isa::dispatch`).
pub(super) trait Simd: Copy {
    /// A vector.
    type V: Copy;
    /// f32 in a vector: 8 or 16.
    const LANES: usize;
    /// Whether 12 × 2 sums fit into the registers, beside two vectors and a broadcast; else 6 × 2 do.
    const WIDE: bool;

    unsafe fn zero() -> Self::V;
    unsafe fn splat(p: *const f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn prefetch(p: *const f32);

    /// Eight stored elements, widened.
    unsafe fn widen8<E: Stored>(from: *const u8, to: *mut f32);
    /// An 8 × 8 block with rows `from_stride` bytes apart, widened and transposed: rows `to_stride` f32 apart.
    unsafe fn transpose8<E: Stored>(from: *const u8, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// An element type in memory, little endian.
pub(super) trait Stored: Copy {
    const ELEMENT: Element;
    const BYTES: usize = Self::ELEMENT.bytes();

    /// # Safety
    /// `from` is valid for reading `BYTES` bytes.
    unsafe fn widen(from: *const u8) -> f32;
}

/// [`Element::F32`] as a type.
#[derive(Clone, Copy)]
pub(super) struct F32;
/// [`Element::F16`] as a type.
#[derive(Clone, Copy)]
pub(super) struct F16;
/// [`Element::Bf16`] as a type.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

impl Stored for F32 {
    const ELEMENT: Element = Element::F32;

    #[inline(always)]
    unsafe fn widen(from: *const u8) -> f32 {
        // SAFETY: the caller vouches for 4 bytes; any alignment is allowed.
        f32::from_le_bytes(unsafe { from.cast::<[u8; 4]>().read_unaligned() })
    }
}

impl Stored for F16 {
    const ELEMENT: Element = Element::F16;

    #[inline(always)]
    unsafe fn widen(from: *const u8) -> f32 {
        // SAFETY: the caller vouches for 2 bytes; any alignment is allowed.
        half::f16::from_le_bytes(unsafe { from.cast::<[u8; 2]>().read_unaligned() }).to_f32()
    }
}

impl Stored for Bf16 {
    const ELEMENT: Element = Element::Bf16;

    #[inline(always)]
    unsafe fn widen(from: *const u8) -> f32 {
        // SAFETY: the caller vouches for 2 bytes; any alignment is allowed.
        let bits = u16::from_le_bytes(unsafe { from.cast::<[u8; 2]>().read_unaligned() });
        f32::from_bits(u32::from(bits) << 16)
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for one f32.
        [unsafe { *p }; 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for eight f32.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for eight f32.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

    #[inline(always)]
    unsafe fn widen8<E: Stored>(from: *const u8, to: *mut f32) {
        for i in 0..8 {
            // SAFETY: the caller vouches for eight elements on both sides.
            unsafe { *to.add(i) = E::widen(from.add(i * E::BYTES)) };
        }
    }

    #[inline(always)]
    unsafe fn transpose8<E: Stored>(from: *const u8, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for k in 0..8 {
                // SAFETY: the caller vouches for eight rows of eight elements on both sides.
                unsafe { *to.add(k * to_stride + i) = E::widen(from.add(i * from_stride + k * E::BYTES)) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Simd, Stored};
    use crate::element::Element;
    use std::arch::x86_64::*;

    /// 256-bit vectors.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const WIDE: bool = false;

        #[inline(always)]
        unsafe fn zero() -> Self::V {
            // SAFETY: the caller vouches for AVX2.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(p: *const f32) -> Self::V {
            // SAFETY: the caller vouches for AVX2 and one f32.
            unsafe { _mm256_broadcast_ss(&*p) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            // SAFETY: the caller vouches for AVX2 and eight f32.
            unsafe { _mm256_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            // SAFETY: the caller vouches for AVX2 and eight f32.
            unsafe { _mm256_storeu_ps(p, v) }
        }

        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the caller vouches for AVX2.
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the caller vouches for FMA.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn prefetch(p: *const f32) {
            // SAFETY: a prefetch reads nothing architecturally.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }

        #[inline(always)]
        unsafe fn widen8<E: Stored>(from: *const u8, to: *mut f32) {
            // SAFETY: the caller vouches for the instructions and eight elements on both sides.
            unsafe { _mm256_storeu_ps(to, widened::<E>(from)) }
        }

        #[inline(always)]
        unsafe fn transpose8<E: Stored>(from: *const u8, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller vouches for the instructions and eight rows of eight elements on both sides.
            unsafe {
                let r = [
                    widened::<E>(from),
                    widened::<E>(from.add(from_stride)),
                    widened::<E>(from.add(2 * from_stride)),
                    widened::<E>(from.add(3 * from_stride)),
                    widened::<E>(from.add(4 * from_stride)),
                    widened::<E>(from.add(5 * from_stride)),
                    widened::<E>(from.add(6 * from_stride)),
                    widened::<E>(from.add(7 * from_stride)),
                ];
                // Row i beside row i + 4 in each 128-bit half: then four 4 × 4 transpositions side by side.
                let mut halves = [[r[0]; 4]; 2];
                for i in 0..4 {
                    halves[0][i] = _mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]);
                    halves[1][i] = _mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]);
                }
                for (half, [r0, r1, r2, r3]) in halves.into_iter().enumerate() {
                    let (t0, t1) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
                    let (t2, t3) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
                    let to = to.add(4 * half * to_stride);
                    _mm256_storeu_ps(to, _mm256_shuffle_ps::<0x44>(t0, t2));
                    _mm256_storeu_ps(to.add(to_stride), _mm256_shuffle_ps::<0xee>(t0, t2));
                    _mm256_storeu_ps(to.add(2 * to_stride), _mm256_shuffle_ps::<0x44>(t1, t3));
                    _mm256_storeu_ps(to.add(3 * to_stride), _mm256_shuffle_ps::<0xee>(t1, t3));
                }
            }
        }
    }

    /// Eight elements as f32.
    ///
    /// # Safety
    /// Needs AVX2 and F16C; `from` is valid for eight elements.
    #[inline(always)]
    unsafe fn widened<E: Stored>(from: *const u8) -> __m256 {
        // SAFETY: as the caller vouches.
        unsafe {
            match E::ELEMENT {
                Element::F32 => _mm256_loadu_ps(from.cast()),
                Element::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                Element::Bf16 => {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                }
            }
        }
    }

    /// 512-bit vectors; widening and transposing as with [`Avx2`].
    #[derive(Clone, Copy)]
    pub struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const WIDE: bool = true;

        #[inline(always)]
        unsafe fn zero() -> Self::V {
            // SAFETY: the caller vouches for AVX-512F.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(p: *const f32) -> Self::V {
            // SAFETY: the caller vouches for AVX-512F and one f32.
            unsafe { _mm512_set1_ps(*p) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            // SAFETY: the caller vouches for AVX-512F and sixteen f32.
            unsafe { _mm512_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            // SAFETY: the caller vouches for AVX-512F and sixteen f32.
            unsafe { _mm512_storeu_ps(p, v) }
        }

        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the caller vouches for AVX-512F.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the caller vouches for AVX-512F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn prefetch(p: *const f32) {
            // SAFETY: a prefetch reads nothing architecturally.
            unsafe { Avx2::prefetch(p) }
        }

        #[inline(always)]
        unsafe fn widen8<E: Stored>(from: *const u8, to: *mut f32) {
            // SAFETY: as the caller vouches; AVX-512F implies AVX2 and F16C here.
            unsafe { Avx2::widen8::<E>(from, to) }
        }

        #[inline(always)]
        unsafe fn transpose8<E: Stored>(from: *const u8, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: as the caller vouches; AVX-512F implies AVX2 and F16C here.
            unsafe { Avx2::transpose8::<E>(from, from_stride, to, to_stride) }
        }
    }
}
