//! Copies factors of a product into the order in which tiles read them, widening weights on the way.

use super::kernel::{LeftView, ROWS, VECTORS};
use super::matmul::{Left, Right, Source};
use super::simd::{Bf16, F16, F32, Simd, Stored};
use crate::element::Element;

/// Elements of a packed right block: `columns` rounded up to whole vectors, `depth` times.
pub(super) const fn right_len(columns: usize, depth: usize) -> usize {
    columns.next_multiple_of(16) * depth
}

/// Packs panel `index` of a left factor: `to` gets 8 elements for each of the `depth` k.
///
/// # Safety
/// `left` has a row `index * 8` and `depth` columns.
#[inline(always)]
pub(super) unsafe fn left<S: Simd>(left: &Left<'_>, rows: usize, index: usize, depth: usize, to: &mut [f32]) {
    let first = index * ROWS;
    let count = ROWS.min(rows - first);
    let source = left.values.as_ptr();
    let (row, step) = (left.row, left.step);
    let mut k = 0;
    if count == ROWS && step == 1 {
        while k + 8 <= depth {
            // SAFETY: eight rows and columns k .. k+8 exist, and so does their place in `to`.
            unsafe {
                let from = source.add(first * row + k).cast::<u8>();
                S::transpose8::<F32>(from, row * 4, to[k * ROWS..(k + 8) * ROWS].as_mut_ptr(), ROWS);
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
    let panel = VECTORS * S::LANES;
    let mut start = 0;
    for first in (0..part.columns).step_by(panel) {
        let columns = panel.min(part.columns - first);
        let width = columns.next_multiple_of(S::LANES);
        let to = &mut to[start..start + width * part.depth];
        start += to.len();
        let column = part.column + first;
        for group in (0..width).step_by(8) {
            let count = columns.saturating_sub(group).min(8);
            let (k0, depth, column) = (part.k0, part.depth, column + group);
            // SAFETY: `count` columns from `column` on and the k of the part exist; the group's eight
            // columns of each of the `depth` rows of `width` elements lie inside `to`.
            unsafe {
                let to = to.as_mut_ptr().add(group);
                if transposed {
                    let from = from.add((column * stride + k0) * E::BYTES);
                    columns_of_rows::<S, E>(from, stride * E::BYTES, count, depth, to, width);
                } else {
                    let from = from.add((k0 * stride + column) * E::BYTES);
                    rows_of_rows::<S, E>(from, stride * E::BYTES, count, depth, to, width);
                }
            }
        }
    }
}

/// Eight columns, each a row in memory.
///
/// # Safety
/// `from` has `count` rows of `depth` elements, `to` `depth` rows of eight.
#[inline(always)]
unsafe fn columns_of_rows<S: Simd, E: Stored>(
    from: *const u8,
    stride: usize,
    count: usize,
    depth: usize,
    to: *mut f32,
    width: usize,
) {
    let mut k = 0;
    // SAFETY: k stays below `depth`, i below `count` where memory is read.
    unsafe {
        if count == 8 {
            while k + 8 <= depth {
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

/// Eight columns that lie side by side in every row.
///
/// # Safety
/// `from` has `depth` rows of `count` elements, `to` `depth` rows of eight.
#[inline(always)]
unsafe fn rows_of_rows<S: Simd, E: Stored>(
    from: *const u8,
    stride: usize,
    count: usize,
    depth: usize,
    to: *mut f32,
    width: usize,
) {
    for k in 0..depth {
        // SAFETY: k < `depth`, i < `count` where memory is read.
        unsafe {
            let (from, to) = (from.add(k * stride), to.add(k * width));
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
