//! Products of a few rows with a frozen weight, as generation makes them: the weight passes by once, as fast as memory
//! delivers it, transposed in registers straight into the multiply-add. The order of every sum is that of `kernel`.

use super::kernel::{Arithmetic, LeftView, Target};
use super::simd::{Form, Narrow, Pairs, Plain, Shape, Stored, StoredPairs, rounded};
use crate::element::Element;

/// Rows up to which a product is thin: the weight is transposed once for each four of them.
pub(super) const ROWS: usize = 8;

/// Rows of a weight that pass by together: vectors of eight.
const GROUPS: usize = 4;
/// Bytes of a cache line.
const LINE: usize = 64;

/// A frozen weight's part: output columns are its rows, `depth` elements each.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    pub from: *const u8,
    /// Bytes from row to row.
    pub stride: usize,
    pub columns: usize,
    pub depth: usize,
}

/// `target += left · weightᵀ`. The left rows are f32, for bf16 products those of `Swapped`.
///
/// # Safety
/// The views are valid for `left.rows` rows and the weight's columns and depth; nobody else reads or writes the target.
#[inline(always)]
pub(super) unsafe fn multiply<S: Narrow, E: Stored, const BF16: bool>(
    left: LeftView,
    weight: Weight,
    target: Target,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (BF16, E::ELEMENT) {
            (true, _) => all::<S, E, Pairs, BF16>(left, weight, target),
            (false, Element::Bf16) => all::<S, E, StoredPairs, BF16>(left, weight, target),
            (false, _) => all::<S, E, Plain, BF16>(left, weight, target),
        }
    }
}

/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn all<S: Narrow, E: Stored, F: Form, const BF16: bool>(
    left: LeftView,
    weight: Weight,
    target: Target,
) {
    for column in (0..weight.columns).step_by(8 * GROUPS) {
        let columns = (8 * GROUPS).min(weight.columns - column);
        let from = weight.from.wrapping_add(column * weight.stride);
        let part = Weight { from, columns, ..weight };
        let base = target.base.wrapping_add(column);
        let mut row = 0;
        while row < left.rows {
            let a = LeftView { base: left.base.wrapping_add(row * left.row), rows: left.rows - row, ..left };
            let to = Target { base: base.wrapping_add(row * target.stride), ..target };
            // SAFETY: passed on from the caller.
            unsafe {
                row += match a.rows {
                    1 => blocks::<S, E, F, 1, BF16>(a, part, to),
                    2 | 3 => blocks::<S, E, F, 2, BF16>(a, part, to),
                    _ => blocks::<S, E, F, 4, BF16>(a, part, to),
                };
            }
        }
    }
}

/// `M` rows of up to [`GROUPS`] vectors, block of k after block.
///
/// # Safety
/// As for [`multiply`]; the left factor has `M` rows.
#[inline(always)]
unsafe fn blocks<S: Narrow, E: Stored, F: Form, const M: usize, const BF16: bool>(
    left: LeftView,
    weight: Weight,
    target: Target,
) -> usize {
    let block = if BF16 { Arithmetic::Bf16.block() } else { Arithmetic::F32.block() };
    let mut accumulate = target.accumulate;
    for k0 in (0..weight.depth).step_by(block) {
        let depth = block.min(weight.depth - k0);
        let part = Weight { from: weight.from.wrapping_add(k0 * E::BYTES), depth, ..weight };
        // SAFETY: passed on from the caller.
        unsafe {
            let x: [*const f32; M] = std::array::from_fn(|m| left.base.add(m * left.row + k0));
            let mut sums = [[S::zero(); M]; GROUPS];
            let done = match M {
                _ if weight.columns < 8 * GROUPS => 0,
                1 => add_units::<S, E, F, M, GROUPS, BF16>(x, part, &mut sums),
                // The sums of more rows fill the registers sooner.
                _ => {
                    let [a, b, c, d] = sums;
                    let (mut left, mut right) = ([a, b], [c, d]);
                    let next = part.from.wrapping_add(16 * part.stride);
                    add_units::<S, E, F, M, 2, BF16>(x, part, &mut left);
                    let done = add_units::<S, E, F, M, 2, BF16>(x, Weight { from: next, ..part }, &mut right);
                    sums = [left[0], left[1], right[0], right[1]];
                    done
                }
            };
            for (group, sums) in sums.iter_mut().enumerate() {
                let first = group * 8;
                if first < weight.columns {
                    let columns = weight.columns - first;
                    let from = part.from.wrapping_add(first * part.stride);
                    add_rest::<S, E, M, BF16>(x, Weight { from, columns, ..part }, done, sums);
                }
            }
            store::<S, M>(&sums, Target { accumulate, ..target }, weight.columns);
        }
        accumulate = true;
    }
    M
}

/// Adds the products of as many k as whole vectors of units hold; returns their number. The groups take turns, so that the
/// sums of one are computed while another is transposed.
///
/// # Safety
/// As for [`blocks`]; the weight has `8 * G` columns.
#[inline(always)]
unsafe fn add_units<S: Narrow, E: Stored, F: Form, const M: usize, const G: usize, const BF16: bool>(
    x: [*const f32; M],
    weight: Weight,
    sums: &mut [[S::V; M]; G],
) -> usize {
    let Weight { from, stride, depth, .. } = weight;
    let mut acc = *sums;
    let mut done = 0;
    while done + 8 * F::DEPTH <= depth {
        for (group, sums) in acc.iter_mut().enumerate() {
            let from = from.wrapping_add(group * 8 * stride + done * E::BYTES);
            // SAFETY: elements are read below `depth` in rows of the weight; prefetches read nothing.
            unsafe {
                if done * E::BYTES % LINE == 0 {
                    for i in 0..8 {
                        S::prefetch(from.wrapping_add((8 * G + i) * stride).cast());
                    }
                }
                let lines = S::transposed::<E, F>(from, stride);
                for (u, line) in lines.iter().enumerate() {
                    let k = done + u * F::DEPTH;
                    if F::SHAPE == Shape::Plain {
                        add::<S, M>(x, k, *line, sums);
                    } else {
                        let halves = [S::even(*line), S::odd(*line)];
                        add::<S, M>(x, k, halves[usize::from(BF16)], sums);
                        add::<S, M>(x, k + 1, halves[usize::from(!BF16)], sums);
                    }
                }
            }
        }
        done += 8 * F::DEPTH;
    }
    *sums = acc;
    done
}

/// Adds the products with up to eight columns from element `done` on, one by one.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn add_rest<S: Narrow, E: Stored, const M: usize, const BF16: bool>(
    x: [*const f32; M],
    weight: Weight,
    done: usize,
    sums: &mut [S::V; M],
) {
    let Weight { from, stride, columns, depth } = weight;
    let end = if BF16 { depth.next_multiple_of(2) } else { depth };
    for at in done..end {
        let k = if BF16 { at ^ 1 } else { at };
        let mut line = [0.0f32; 8];
        // SAFETY: elements are read below `depth` and `columns`.
        unsafe {
            for (i, v) in line.iter_mut().enumerate().take(columns) {
                if k < depth {
                    let w = E::widen(from.add(i * stride + k * E::BYTES));
                    *v = if BF16 { rounded(w) } else { w };
                }
            }
            add::<S, M>(x, at, S::load(line.as_ptr()), sums);
        }
    }
}

/// Adds each row's element `at` times `line`.
///
/// # Safety
/// The rows have that element.
#[inline(always)]
unsafe fn add<S: Narrow, const M: usize>(x: [*const f32; M], at: usize, line: S::V, sums: &mut [S::V; M]) {
    for m in 0..M {
        // SAFETY: as the caller vouches.
        unsafe { sums[m] = S::fma(S::splat(x[m].add(at)), line, sums[m]) };
    }
}

/// # Safety
/// The target is valid for `M` rows of `columns` elements.
#[inline(always)]
unsafe fn store<S: Narrow, const M: usize>(sums: &[[S::V; M]; GROUPS], to: Target, columns: usize) {
    for (group, sums) in sums.iter().enumerate() {
        let first = group * 8;
        for (m, sum) in sums.iter().enumerate() {
            let mut line = [0.0f32; 8];
            // SAFETY: a vector fits into the line; columns are inside the target.
            unsafe {
                S::store(line.as_mut_ptr(), *sum);
                for (j, sum) in line.iter().enumerate().take(columns.saturating_sub(first)) {
                    let p = to.base.add(m * to.stride + first + j);
                    *p = if to.accumulate { *p } else { 0.0 } + sum;
                }
            }
        }
    }
}
