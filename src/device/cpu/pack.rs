//! Copies factors of a product into the order in which tiles read them, widening weights on the way.

use super::kernel::{LeftView, ROWS, VECTORS};
use super::matmul::{Left, Right, Source};
use super::simd::{Bf16, F16, F32, Simd, Stored};
use crate::element::Element;

/// Elements of a packed right block: `columns` rounded up to whole vectors, `depth` times.
pub(super) const fn right_len(columns: usize, depth: usize) -> usize {
    columns.next_multiple_of(16) * depth
}

/// Packs panel `index` of a left factor: `to` gets 12 elements for each of the `depth` k.
///
/// # Safety
/// `left` has a row `index * 12` and `depth` columns.
#[inline(always)]
pub(super) unsafe fn left<S: Simd>(left: &Left<'_>, rows: usize, index: usize, depth: usize, to: &mut [f32]) {
    let first = index * ROWS;
    let count = ROWS.min(rows - first);
    let (row, step) = (left.row, left.step);
    let mut k = 0;
    if count == ROWS && step == 1 {
        while k + 8 <= depth {
            // Rows 4 to 7 are written twice.
            for i in [0, ROWS - 8] {
                let (from, to) = (&left.values[(first + i) * row + k..], &mut to[k * ROWS + i..]);
                // SAFETY: eight rows and eight columns exist from there on, and so does their place in `to`.
                unsafe { S::transpose8::<F32>(from.as_ptr().cast(), row * 4, to.as_mut_ptr(), ROWS) };
            }
            k += 8;
        }
    }
    for k in k..depth {
        for (i, to) in to[k * ROWS..(k + 1) * ROWS].iter_mut().enumerate() {
            *to = if i < count { left.values[(first + i) * row + k * step] } else { 0.0 };
        }
    }
}

/// The view of a left factor packed by [`left`], panel after panel.
pub(super) fn packed_view(packed: &[f32], rows: usize, depth: usize) -> LeftView {
    LeftView { base: packed.as_ptr(), rows, panel: depth * ROWS, row: 1, step: ROWS, packed: true }
}

/// Which part of a right factor is packed.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub k0: usize,
    pub depth: usize,
    pub column: usize,
    pub columns: usize,
}

/// Packs a part of a right factor, panel after panel; columns beyond the last one are zero.
///
/// # Safety
/// The part lies inside the factor.
#[inline(always)]
pub(super) unsafe fn right<S: Simd>(right: &Right<'_>, part: Part, to: &mut [f32]) {
    let (bytes, element) = match right.source {
        Source::Values(v) => (v.as_ptr().cast::<u8>(), Element::F32),
        Source::Weight(b, element) => (b.as_ptr(), element),
    };
    // SAFETY: passed on from the caller.
    unsafe {
        match element {
            Element::F32 => panels::<S, F32>(bytes, right.stride, right.transposed, part, to),
            Element::F16 => panels::<S, F16>(bytes, right.stride, right.transposed, part, to),
            Element::Bf16 => panels::<S, Bf16>(bytes, right.stride, right.transposed, part, to),
        }
    }
}

/// # Safety
/// The part lies inside the factor, whose elements begin at `from`.
#[inline(always)]
unsafe fn panels<S: Simd, E: Stored>(
    from: *const u8,
    stride: usize,
    transposed: bool,
    part: Part,
    to: &mut [f32],
) {
    let Part { k0, depth, column, columns } = part;
    assert!(to.len() >= columns.next_multiple_of(S::LANES) * depth, "the packed block is too small");
    // SAFETY: the caller vouches for the part, the assertion for its place.
    unsafe {
        if transposed {
            let from = from.add((column * stride + k0) * E::BYTES);
            columns_of_rows::<S, E>(from, stride * E::BYTES, columns, depth, to.as_mut_ptr());
        } else {
            let from = from.add((k0 * stride + column) * E::BYTES);
            rows_of_rows::<S, E>(from, stride * E::BYTES, columns, depth, to.as_mut_ptr());
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Packs columns that are rows in memory, eight at a time.
///
/// # Safety
/// `from` has `columns` rows of `depth` elements; `to` holds the packed panels.
#[inline(always)]
unsafe fn columns_of_rows<S: Simd, E: Stored>(
    from: *const u8,
    stride: usize,
    columns: usize,
    depth: usize,
    to: *mut f32,
) {
    for group in (0..columns.next_multiple_of(S::LANES)).step_by(8) {
        let count = columns.saturating_sub(group).min(8);
        let (offset, width) = place::<S>(group, columns, depth);
        let mut k = 0;
        // SAFETY: k stays below `depth`, i below `count` where memory is read; prefetches read nothing.
        unsafe {
            let from = from.wrapping_add(group * stride);
            let to = to.add(offset);
            if count == 8 {
                while k + 8 <= depth {
                    if k * E::BYTES % LINE == 0 {
                        // The next eight rows, which the hardware does not foresee.
                        for i in 8..16 {
                            S::prefetch(from.wrapping_add(i * stride + k * E::BYTES).cast());
                        }
                    }
                    S::transpose8::<E>(from.add(k * E::BYTES), stride, to.add(k * width), width);
                    k += 8;
                }
            }
            for k in k..depth {
                for i in 0..8 {
                    let value = if i < count { E::widen(from.add(i * stride + k * E::BYTES)) } else { 0.0 };
                    *to.add(k * width + i) = value;
                }
            }
        }
    }
}

/// Packs columns that lie side by side in every row, row by row as memory delivers them.
///
/// # Safety
/// `from` has `depth` rows of `columns` elements; `to` holds the packed panels.
#[inline(always)]
unsafe fn rows_of_rows<S: Simd, E: Stored>(
    from: *const u8,
    stride: usize,
    columns: usize,
    depth: usize,
    to: *mut f32,
) {
    /// Rows that are fetched ahead.
    const AHEAD: usize = 8;
    for k in 0..depth {
        for group in (0..columns.next_multiple_of(S::LANES)).step_by(8) {
            let count = columns.saturating_sub(group).min(8);
            let (offset, width) = place::<S>(group, columns, depth);
            // SAFETY: k < `depth`, i < `count` where memory is read; prefetches read nothing.
            unsafe {
                let from = from.wrapping_add(k * stride + group * E::BYTES);
                let to = to.add(offset + k * width);
                if group * E::BYTES % LINE == 0 {
                    S::prefetch(from.wrapping_add(AHEAD * stride).cast());
                }
                if count == 8 {
                    S::widen8::<E>(from, to);
                } else {
                    for i in 0..8 {
                        *to.add(i) = if i < count { E::widen(from.add(i * E::BYTES)) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Where the eight columns from `group` on begin in a packed block, and the distance of consecutive k there.
#[inline(always)]
fn place<S: Simd>(group: usize, columns: usize, depth: usize) -> (usize, usize) {
    let panel = VECTORS * S::LANES;
    let first = group / panel * panel;
    let width = panel.min(columns - first).next_multiple_of(S::LANES);
    (first * depth + group - first, width)
}
