//! Vectors of x86-64: 256 bits with AVX2, FMA and F16C, and 512 bits.

use super::{Form, Narrow, SMALLEST, Shape, Simd, Stored};
use crate::element::Element;
use std::arch::x86_64::*;

/// 256-bit vectors; with `BF16` it may use AVX-512's conversion to bf16.
#[derive(Clone, Copy)]
pub struct Ymm<const BF16: bool>;

/// 512-bit vectors; with `BF16` it multiplies pairs of bf16 by one instruction.
#[derive(Clone, Copy)]
pub struct Zmm<const BF16: bool>;

/// AVX2, FMA and F16C.
pub type Avx2 = Ymm<false>;
/// AVX-512F beside them.
pub type Avx512 = Zmm<false>;
/// AVX-512-BF16 beside them.
pub type Avx512Bf16 = Zmm<true>;

impl<const BF16: bool> Simd for Ymm<BF16> {
    type V = __m256;
    type Narrow = Self;
    const LANES: usize = 8;
    const WIDE: bool = false;
    const PAIRS: bool = false;

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
    unsafe fn odd(pairs: Self::V) -> Self::V {
        // SAFETY: the caller vouches for AVX2.
        unsafe { _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000))) }
    }

    #[inline(always)]
    unsafe fn even(pairs: Self::V) -> Self::V {
        // SAFETY: the caller vouches for AVX2.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs))) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a prefetch reads nothing architecturally.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

impl<const BF16: bool> Narrow for Ymm<BF16> {
    #[inline(always)]
    unsafe fn units8<E: Stored, F: Form>(from: *const u8, stride: usize) -> Self::V {
        // SAFETY: the caller vouches for the instructions and for eight units.
        unsafe {
            let pairs = match (F::SHAPE, E::ELEMENT) {
                (Shape::Plain, _) => return widened::<E>(from),
                (Shape::Swapped, _) => {
                    let one = _mm256_castsi256_ps(rounded::<E>(from));
                    let large = _mm256_cmp_ps::<_CMP_NLT_UQ>(absolute(one), _mm256_set1_ps(SMALLEST));
                    return _mm256_permute_ps::<0b10_11_00_01>(_mm256_and_ps(one, large));
                }
                (Shape::Stored, _) => return _mm256_loadu_ps(from.cast()),
                (Shape::Pairs, Element::Bf16) => _mm256_loadu_si256(from.cast()),
                (Shape::Pairs, Element::F32) if BF16 => {
                    let both = _mm512_cvtneps_pbh(_mm512_loadu_ps(from.cast()));
                    std::mem::transmute::<__m256bh, __m256i>(both)
                }
                (Shape::Pairs, _) => {
                    let low = _mm256_srli_epi32::<16>(rounded::<E>(from));
                    let high = _mm256_srli_epi32::<16>(rounded::<E>(from.add(8 * E::BYTES)));
                    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high))
                }
                (Shape::PairsOfRows, _) => {
                    let even = _mm256_srli_epi32::<16>(rounded::<E>(from));
                    _mm256_or_si256(even, rounded::<E>(from.add(stride)))
                }
            };
            _mm256_castsi256_ps(without_small(pairs))
        }
    }

    #[inline(always)]
    unsafe fn transpose(r: [Self::V; 8]) -> [Self::V; 8] {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let low = |i: usize| _mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]);
            let high = |i: usize| _mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]);
            in_quarters([[low(0), low(1), low(2), low(3)], [high(0), high(1), high(2), high(3)]])
        }
    }

    #[inline(always)]
    unsafe fn transposed<E: Stored, F: Form>(from: *const u8, stride: usize) -> [Self::V; 8] {
        // SAFETY: the caller vouches for the instructions and for eight units of eight rows.
        unsafe {
            let small = F::SHAPE == Shape::Pairs && E::ELEMENT == Element::Bf16;
            if small || F::SHAPE == Shape::Stored || (F::SHAPE == Shape::Plain && E::ELEMENT == Element::F32)
            {
                // Memory is as the units are: the halves of two rows are loaded beside each other.
                let beside = |i: usize, bytes: usize| {
                    let half = |row: usize| _mm_loadu_ps(from.add(row * stride + bytes).cast());
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(half(i)), half(i + 4))
                };
                let rows = |bytes| [beside(0, bytes), beside(1, bytes), beside(2, bytes), beside(3, bytes)];
                let mut columns = in_quarters([rows(0), rows(16)]);
                if small {
                    for column in &mut columns {
                        *column = _mm256_castsi256_ps(without_small(_mm256_castps_si256(*column)));
                    }
                }
                return columns;
            }
            let row = |i: usize| Self::units8::<E, F>(from.add(i * stride), stride);
            Self::transpose([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)])
        }
    }
}

/// The transpose of an 8 × 8 block whose row i lies beside row i + 4 in the 128-bit halves of a vector: first the left half of
/// the rows, then the right one.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn in_quarters(rows: [[__m256; 4]; 2]) -> [__m256; 8] {
    let mut columns = [rows[0][0]; 8];
    for (half, [r0, r1, r2, r3]) in rows.into_iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe {
            let (t0, t1) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (t2, t3) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            columns[4 * half] = _mm256_shuffle_ps::<0x44>(t0, t2);
            columns[4 * half + 1] = _mm256_shuffle_ps::<0xee>(t0, t2);
            columns[4 * half + 2] = _mm256_shuffle_ps::<0x44>(t1, t3);
            columns[4 * half + 3] = _mm256_shuffle_ps::<0xee>(t1, t3);
        }
    }
    columns
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

/// Eight elements rounded to bf16, in the upper halves of their f32; the lower halves are zero.
///
/// # Safety
/// As for [`widened`].
#[inline(always)]
unsafe fn rounded<E: Stored>(from: *const u8) -> __m256i {
    // SAFETY: as the caller vouches.
    unsafe {
        let x = widened::<E>(from);
        let bits = _mm256_castps_si256(x);
        if E::ELEMENT == Element::Bf16 {
            return bits;
        }
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        // What is no number stays none, however few of its bits remain.
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let none = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        let chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), none);
        _mm256_and_si256(_mm256_castps_si256(chosen), _mm256_set1_epi32(-0x1_0000))
    }
}

/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn absolute(x: __m256) -> __m256 {
    // SAFETY: as the caller vouches.
    unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) }
}

/// Sixteen bf16 with zero for those below [`SMALLEST`].
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn without_small(x: __m256i) -> __m256i {
    const LARGEST: i16 = (SMALLEST.to_bits() >> 16) as i16 - 1;
    // SAFETY: as the caller vouches.
    unsafe {
        let size = _mm256_and_si256(x, _mm256_set1_epi16(0x7fff));
        _mm256_and_si256(x, _mm256_cmpgt_epi16(size, _mm256_set1_epi16(LARGEST)))
    }
}

impl<const BF16: bool> Simd for Zmm<BF16> {
    type V = __m512;
    type Narrow = Ymm<BF16>;
    const LANES: usize = 16;
    const WIDE: bool = true;
    const PAIRS: bool = BF16;

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
    unsafe fn odd(pairs: Self::V) -> Self::V {
        // SAFETY: the caller vouches for AVX-512F.
        unsafe {
            let bits = _mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32(-0x1_0000));
            _mm512_castsi512_ps(bits)
        }
    }

    #[inline(always)]
    unsafe fn even(pairs: Self::V) -> Self::V {
        // SAFETY: the caller vouches for AVX-512F.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs))) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: a prefetch reads nothing architecturally.
        unsafe { Avx2::prefetch(p) }
    }

    #[inline(always)]
    unsafe fn dot(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the caller vouches for AVX-512F and, with `BF16`, AVX-512-BF16; a vector is pairs of bf16 by its bits.
        unsafe {
            if BF16 {
                let pairs = |v| std::mem::transmute::<__m512, __m512bh>(v);
                return _mm512_dpbf16_ps(c, pairs(a), pairs(b));
            }
            Self::fma(Self::even(a), Self::even(b), Self::fma(Self::odd(a), Self::odd(b), c))
        }
    }
}
