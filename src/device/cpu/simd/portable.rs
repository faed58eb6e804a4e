//! Vectors in plain Rust.

use super::{Form, Narrow, Shape, Simd, Stored};

/// Arrays of eight.
#[derive(Clone, Copy)]
pub struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    type Narrow = Portable;
    const LANES: usize = 8;
    const WIDE: bool = false;
    const PAIRS: bool = false;

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
    unsafe fn odd(pairs: Self::V) -> Self::V {
        pairs.map(|pair| f32::from_bits(pair.to_bits() & 0xffff_0000))
    }

    #[inline(always)]
    unsafe fn even(pairs: Self::V) -> Self::V {
        pairs.map(|pair| f32::from_bits(pair.to_bits() << 16))
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}

impl Narrow for Portable {
    #[inline(always)]
    unsafe fn units8<E: Stored, F: Form>(from: *const u8, stride: usize) -> Self::V {
        // Distance of consecutive units, and of the elements within one.
        let (unit, step) = match F::SHAPE {
            Shape::Plain | Shape::Swapped => (E::BYTES, E::BYTES),
            Shape::Pairs | Shape::Stored => (2 * E::BYTES, E::BYTES),
            Shape::PairsOfRows => (E::BYTES, stride),
        };
        std::array::from_fn(|u| match F::DEPTH {
            // SAFETY: the caller vouches for eight elements.
            1 => F::unit(u, |k| unsafe { E::widen(from.add(k * unit)) }),
            // SAFETY: the caller vouches for eight pairs.
            _ => F::unit(0, |k| unsafe { E::widen(from.add(u * unit + k * step)) }),
        })
    }

    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; 8]) -> [Self::V; 8] {
        std::array::from_fn(|k| std::array::from_fn(|i| rows[i][k]))
    }
}
