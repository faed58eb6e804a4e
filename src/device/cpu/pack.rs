//! Copies factors of a product into the order in which tiles read them, widening or rounding on the way.

use super::kernel::{LeftView, ROWS, VECTORS};
use super::matmul::{Left, Right};
use super::simd::{Bf16, F16, F32, Form, Narrow, Pairs, PairsOfRows, Plain, Simd, Stored, Swapped};
use crate::element::Element;

/// f32 of a packed right block: `columns` rounded up to whole vectors, `units` times.
pub(super) const fn right_len(columns: usize, units: usize) -> usize {
    columns.next_multiple_of(16) * units
}

/// Units of `depth` elements of a packed left factor.
pub(super) fn left_units(depth: usize, bf16: bool, pairs: bool) -> usize {
    match (bf16, pairs) {
        (false, _) => Plain::units(depth),
        (true, true) => Pairs::units(depth),
        (true, false) => Swapped::units(depth),
    }
}

/// Packs panel `index` of a left factor: `to` gets 12 of each of the [`left_units`] of `depth` elements.
///
/// # Safety
/// `left` has a row `index * 12` and `depth` columns.
#[inline(always)]
pub(super) unsafe fn left<S: Simd>(
    left: &Left<'_>,
    rows: usize,
    index: usize,
    depth: usize,
    bf16: bool,
    to: &mut [f32],
) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (bf16, S::PAIRS) {
            (false, _) => left_panel::<S, Plain>(left, rows, index, depth, to),
            (true, true) => left_panel::<S, Pairs>(left, rows, index, depth, to),
            (true, false) => left_panel::<S, Swapped>(left, rows, index, depth, to),
        }
    }
}

/// # Safety
/// As for [`left`].
#[inline(always)]
unsafe fn left_panel<S: Simd, F: Form>(
    left: &Left<'_>,
    rows: usize,
    index: usize,
    depth: usize,
    to: &mut [f32],
) {
    let first = index * ROWS;
    let count = ROWS.min(rows - first);
    let (row, step) = (left.row, left.step);
    let mut unit = 0;
    if count == ROWS && step == 1 {
        while (unit + 8) * F::DEPTH <= depth {
            // Rows 4 to 7 are written twice.
            for i in [0, ROWS - 8] {
                let from = &left.values[(first + i) * row + unit * F::DEPTH..];
                // SAFETY: eight rows of eight units exist from there on.
                let lines = unsafe { S::Narrow::transposed::<F32, F>(from.as_ptr().cast(), row * 4) };
                for (u, line) in lines.into_iter().enumerate() {
                    let to = &mut to[(unit + u) * ROWS + i..][..8];
                    // SAFETY: it is as long as a vector.
                    unsafe { S::Narrow::store(to.as_mut_ptr(), line) };
                }
            }
            unit += 8;
        }
    }
    for unit in unit..F::units(depth) {
        for (i, to) in to[unit * ROWS..(unit + 1) * ROWS].iter_mut().enumerate() {
            *to = F::unit(
                unit,
                #[inline(always)]
                |k| if i < count && k < depth { left.values[(first + i) * row + k * step] } else { 0.0 },
            );
        }
    }
}

/// Packs row `row` of a left factor as [`Swapped`].
pub(super) fn left_row(left: &Left<'_>, row: usize, depth: usize, to: &mut [f32]) {
    let row = &left.values[row * left.row..];
    for (unit, to) in to.iter_mut().enumerate() {
        *to = Swapped::unit(unit, |k| if k < depth { row[k * left.step] } else { 0.0 });
    }
}

/// The view of a left factor packed by [`left`], panel after panel.
pub(super) fn packed_view(packed: &[f32], rows: usize, units: usize) -> LeftView {
    LeftView { base: packed.as_ptr(), rows, panel: units * ROWS, row: 1, step: ROWS, packed: true }
}

/// Which part of a right factor is packed.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub k0: usize,
    pub depth: usize,
    pub column: usize,
    pub columns: usize,
}

impl Part {
    /// Units of the part's packed block.
    pub fn units(self, bf16: bool) -> usize {
        if bf16 { Pairs::units(self.depth) } else { self.depth }
    }
}

/// Packs a part of a right factor, panel after panel, as f32 or as pairs of bf16; columns beyond the last one are zero.
///
/// # Safety
/// The part lies inside the factor.
#[inline(always)]
pub(super) unsafe fn right<S: Simd, const BF16: bool>(right: &Right<'_>, part: Part, to: &mut [f32]) {
    let (bytes, element) = right.bytes();
    // SAFETY: passed on from the caller.
    unsafe {
        match element {
            Element::F32 => panels::<S, F32, BF16>(bytes, right.stride, right.transposed, part, to),
            Element::F16 => panels::<S, F16, BF16>(bytes, right.stride, right.transposed, part, to),
            Element::Bf16 => panels::<S, Bf16, BF16>(bytes, right.stride, right.transposed, part, to),
        }
    }
}

/// # Safety
/// The part lies inside the factor, whose elements begin at `from`.
#[inline(always)]
unsafe fn panels<S: Simd, E: Stored, const BF16: bool>(
    from: *const u8,
    stride: usize,
    transposed: bool,
    part: Part,
    to: &mut [f32],
) {
    let Part { k0, depth, column, columns } = part;
    let needed = columns.next_multiple_of(S::LANES) * part.units(BF16);
    assert!(to.len() >= needed, "the packed block is too small");
    let (row, first) = if transposed { (column, k0) } else { (k0, column) };
    let from = from.wrapping_add((row * stride + first) * E::BYTES);
    let (stride, to) = (stride * E::BYTES, to.as_mut_ptr());
    // SAFETY: the caller vouches for the part, the assertion for its place.
    unsafe {
        match (transposed, BF16) {
            (true, false) => columns_of_rows::<S, E, Plain>(from, stride, columns, depth, to),
            (true, true) => columns_of_rows::<S, E, Pairs>(from, stride, columns, depth, to),
            (false, false) => rows_of_rows::<S, E, Plain>(from, stride, columns, depth, to),
            (false, true) => rows_of_rows::<S, E, PairsOfRows>(from, stride, columns, depth, to),
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
unsafe fn columns_of_rows<S: Simd, E: Stored, F: Form>(
    from: *const u8,
    stride: usize,
    columns: usize,
    depth: usize,
    to: *mut f32,
) {
    let units = F::units(depth);
    for group in (0..columns.next_multiple_of(S::LANES)).step_by(8) {
        let count = columns.saturating_sub(group).min(8);
        let (offset, width) = place::<S>(group, columns, units);
        let mut unit = 0;
        // SAFETY: elements are read below `depth` and `count`; prefetches read nothing.
        unsafe {
            let from = from.wrapping_add(group * stride);
            let to = to.add(offset);
            if count == 8 {
                while (unit + 8) * F::DEPTH <= depth {
                    let bytes = unit * F::DEPTH * E::BYTES;
                    if bytes % LINE == 0 {
                        // The next eight rows, which the hardware does not foresee.
                        for i in 8..16 {
                            S::prefetch(from.wrapping_add(i * stride + bytes).cast());
                        }
                    }
                    let lines = S::Narrow::transposed::<E, F>(from.add(bytes), stride);
                    for (u, line) in lines.into_iter().enumerate() {
                        S::Narrow::store(to.add((unit + u) * width), line);
                    }
                    unit += 8;
                }
            }
            for unit in unit..units {
                for i in 0..8 {
                    *to.add(unit * width + i) = F::unit(
                        unit,
                        #[inline(always)]
                        |k| {
                            let inside = i < count && k < depth;
                            if inside { E::widen(from.add(i * stride + k * E::BYTES)) } else { 0.0 }
                        },
                    );
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
unsafe fn rows_of_rows<S: Simd, E: Stored, F: Form>(
    from: *const u8,
    stride: usize,
    columns: usize,
    depth: usize,
    to: *mut f32,
) {
    /// Rows that are fetched ahead.
    const AHEAD: usize = 8;
    let units = F::units(depth);
    for unit in 0..units {
        for group in (0..columns.next_multiple_of(S::LANES)).step_by(8) {
            let count = columns.saturating_sub(group).min(8);
            let (offset, width) = place::<S>(group, columns, units);
            // SAFETY: elements are read below `depth` and `count`; prefetches read nothing.
            unsafe {
                let from = from.wrapping_add(group * E::BYTES);
                let first = from.wrapping_add(unit * F::DEPTH * stride);
                let to = to.add(offset + unit * width);
                if group * E::BYTES % LINE == 0 {
                    for row in 0..F::DEPTH {
                        S::prefetch(first.wrapping_add((AHEAD + row) * stride).cast());
                    }
                }
                if count == 8 && (unit + 1) * F::DEPTH <= depth {
                    S::Narrow::store(to, S::Narrow::units8::<E, F>(first, stride));
                } else {
                    for i in 0..8 {
                        *to.add(i) = F::unit(
                            unit,
                            #[inline(always)]
                            |k| {
                                let inside = i < count && k < depth;
                                if inside { E::widen(from.add(k * stride + i * E::BYTES)) } else { 0.0 }
                            },
                        );
                    }
                }
            }
        }
    }
}

/// Where the eight columns from `group` on begin in a packed block, and the distance of consecutive units there.
#[inline(always)]
fn place<S: Simd>(group: usize, columns: usize, units: usize) -> (usize, usize) {
    let panel = VECTORS * S::LANES;
    let first = group / panel * panel;
    let width = panel.min(columns - first).next_multiple_of(S::LANES);
    (first * units + group - first, width)
}
