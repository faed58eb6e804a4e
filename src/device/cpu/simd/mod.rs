//! The few vector operations that matrix products need, once for each instruction set, and the forms in which products
//! read their factors.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, Avx512Bf16};

use super::math::bf16;
use crate::element::Element;

/// Vectors of 32-bit elements: f32, or pairs of bf16 of which the lower half is the even one. Every implementation rounds
/// alike, so results have the same bits.
///
/// # Safety
/// All functions need a processor with the instructions; pointers are valid for what is read or written,
/// without any alignment. They are `inline(always)` and become instructions inside a function with the
/// matching `target_feature` (see `Isa::dispatch`).
pub(super) trait Simd: Copy {
    /// A vector.
    type V: Copy;
    /// The same instruction set, eight elements at a time.
    type Narrow: Narrow;
    /// Elements in a vector: 8 or 16.
    const LANES: usize;
    /// Whether 12 × 2 sums fit into the registers, beside two vectors and a broadcast; else 6 × 2 do.
    const WIDE: bool;
    /// Whether [`Simd::dot`] is one instruction. Else left factors of bf16 products are packed as [`Swapped`] f32.
    const PAIRS: bool;

    unsafe fn zero() -> Self::V;
    unsafe fn splat(p: *const f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The odd elements of pairs, as f32.
    unsafe fn odd(pairs: Self::V) -> Self::V;
    /// The even elements of pairs, as f32.
    unsafe fn even(pairs: Self::V) -> Self::V;
    unsafe fn prefetch(p: *const f32);

    /// even · even + (odd · odd + c) of pairs, each multiply-add rounded once: AVX-512's `VDPBF16PS` where no subnormal number
    /// can arise, which [`Form`] sees to.
    #[inline(always)]
    unsafe fn dot(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: passed on from the caller.
        unsafe { Self::fma(Self::even(a), Self::even(b), Self::fma(Self::odd(a), Self::odd(b), c)) }
    }
}

/// Vectors of eight, which are also loaded from memory in another form.
///
/// # Safety
/// As for [`Simd`].
pub(super) trait Narrow: Simd {
    /// Eight units of a row that begins at `from`; the next row is `stride` bytes further, where a unit spans two.
    unsafe fn units8<E: Stored, F: Form>(from: *const u8, stride: usize) -> Self::V;

    /// The transpose of an 8 × 8 block.
    unsafe fn transpose(rows: [Self::V; 8]) -> [Self::V; 8];

    /// Eight units of each of eight rows `stride` bytes apart, transposed: first those that are first in their rows.
    #[inline(always)]
    unsafe fn transposed<E: Stored, F: Form>(from: *const u8, stride: usize) -> [Self::V; 8] {
        // SAFETY: passed on from the caller.
        unsafe {
            let mut rows = [Self::zero(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = Self::units8::<E, F>(from.add(i * stride), stride);
            }
            Self::transpose(rows)
        }
    }
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

/// How consecutive elements of the inner dimension k become 32-bit units.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One f32 each.
    Plain,
    /// Two beside each other in a row become a pair of bf16.
    Pairs,
    /// Two bf16 beside each other in a row, as they are.
    Stored,
    /// Two below each other, in a row and the next, become a pair of bf16.
    PairsOfRows,
    /// Rounded to bf16 and widened again; of each two the odd one comes first.
    Swapped,
}

/// A [`Shape`] as a type.
///
/// Elements of bf16 forms are rounded to nearest even; those nearer to zero than 2^-56 become zero. All products are then
/// multiples of 2^-126, and so is every sum of them: no subnormal number can arise, which processors treat differently.
pub(super) trait Form: Copy {
    const SHAPE: Shape;
    /// Elements of k in a unit.
    const DEPTH: usize;
    /// Units of a row, or rows, of `depth` elements.
    fn units(depth: usize) -> usize;
    /// Unit `unit` of the elements that `get` gives; zero beyond the last.
    fn unit(unit: usize, get: impl Fn(usize) -> f32) -> f32;
}

#[derive(Clone, Copy)]
pub(super) struct Plain;
#[derive(Clone, Copy)]
pub(super) struct Pairs;
#[derive(Clone, Copy)]
pub(super) struct StoredPairs;
#[derive(Clone, Copy)]
pub(super) struct PairsOfRows;
#[derive(Clone, Copy)]
pub(super) struct Swapped;

impl Form for Plain {
    const SHAPE: Shape = Shape::Plain;
    const DEPTH: usize = 1;

    #[inline(always)]
    fn units(depth: usize) -> usize {
        depth
    }

    #[inline(always)]
    fn unit(unit: usize, get: impl Fn(usize) -> f32) -> f32 {
        get(unit)
    }
}

impl Form for Pairs {
    const SHAPE: Shape = Shape::Pairs;
    const DEPTH: usize = 2;

    #[inline(always)]
    fn units(depth: usize) -> usize {
        depth.div_ceil(2)
    }

    #[inline(always)]
    fn unit(unit: usize, get: impl Fn(usize) -> f32) -> f32 {
        let (even, odd) = (rounded(get(2 * unit)).to_bits(), rounded(get(2 * unit + 1)).to_bits());
        f32::from_bits(odd | even >> 16)
    }
}

impl Form for StoredPairs {
    const SHAPE: Shape = Shape::Stored;
    const DEPTH: usize = 2;

    #[inline(always)]
    fn units(depth: usize) -> usize {
        Pairs::units(depth)
    }

    #[inline(always)]
    fn unit(unit: usize, get: impl Fn(usize) -> f32) -> f32 {
        f32::from_bits(get(2 * unit + 1).to_bits() | get(2 * unit).to_bits() >> 16)
    }
}

impl Form for PairsOfRows {
    const SHAPE: Shape = Shape::PairsOfRows;
    const DEPTH: usize = 2;

    #[inline(always)]
    fn units(depth: usize) -> usize {
        Pairs::units(depth)
    }

    #[inline(always)]
    fn unit(unit: usize, get: impl Fn(usize) -> f32) -> f32 {
        Pairs::unit(unit, get)
    }
}

impl Form for Swapped {
    const SHAPE: Shape = Shape::Swapped;
    const DEPTH: usize = 1;

    #[inline(always)]
    fn units(depth: usize) -> usize {
        depth.next_multiple_of(2)
    }

    #[inline(always)]
    fn unit(unit: usize, get: impl Fn(usize) -> f32) -> f32 {
        rounded(get(unit ^ 1))
    }
}

/// 2^-56: below it elements of bf16 forms become zero.
const SMALLEST: f32 = f32::from_bits((127 - 56) << 23);

/// Nearest bf16, to even where two are as near; zero below [`SMALLEST`].
#[inline(always)]
pub(super) fn rounded(x: f32) -> f32 {
    let near = bf16(x);
    if near.abs() < SMALLEST { 0.0 } else { near }
}
