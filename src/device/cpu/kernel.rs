//! The inner loops of matrix products: tiles of sums in registers, as in BLIS (Van Zee & van de Geijn 2015).
//!
//! A panel of the left factor is 12 rows, a panel of the right factor two vectors of columns. Per k, a tile
//! loads the right panel's vectors once and multiplies them by one broadcast element per row. 12 × 2 sums are
//! what 32 registers hold, 6 × 2 what 16 hold without spilling.

use super::simd::Simd;

/// Rows of a panel of the left factor.
pub(super) const ROWS: usize = 12;
/// Vectors side by side in a panel of the right factor.
pub(super) const VECTORS: usize = 2;
/// Row panels that stay in the second-level cache while the right panels pass by.
const RESIDENT: usize = 12;

/// The arithmetic of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Sums of k in ascending order within blocks of 256, by fused multiply-add from zero.
    F32,
    /// Factors rounded to bf16, sums in f32: the k in pairs within blocks of 512, of each pair the odd one first, by fused
    /// multiply-add from zero. Below 2^-56 factors are zero, so that no sum is subnormal: all processors agree then.
    Bf16,
}

impl Arithmetic {
    /// `f32` or `bf16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Arithmetic::F32 => "f32",
            Arithmetic::Bf16 => "bf16",
        }
    }

    /// Its version in this device: changes whenever a result's bits do.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Arithmetic::F32 => "cpu-2",
            Arithmetic::Bf16 => "cpu-bf16-1",
        }
    }

    /// Length of a block of the inner dimension.
    pub(super) const fn block(self) -> usize {
        match self {
            Arithmetic::F32 => BLOCK,
            Arithmetic::Bf16 => 2 * BLOCK,
        }
    }
}

/// 32-bit units of a block: f32, or pairs of bf16.
pub const BLOCK: usize = 256;

/// A left factor as tiles read it: unit (i, u) is at `base[i / 12 * panel + i % 12 * row + u * step]`. A unit is an element;
/// for bf16 products it is a pair where the processor multiplies pairs, else an element of [`Swapped`](super::simd::Swapped).
#[derive(Clone, Copy)]
pub(super) struct LeftView {
    pub base: *const f32,
    /// Rows in all.
    pub rows: usize,
    pub panel: usize,
    pub row: usize,
    pub step: usize,
    /// Panels of 12 adjacent units, padded to 12 rows.
    pub packed: bool,
}

/// A panel of the right factor: `VECTORS` vectors or fewer per unit, which is an element or a pair of bf16.
#[derive(Clone, Copy)]
pub(super) struct RightPanel {
    pub base: *const f32,
    /// Distance of consecutive units.
    pub step: usize,
    /// Columns that are stored; the panel holds whole vectors.
    pub columns: usize,
}

/// The result's tile column: element (i, j) is at `base[i * stride + j]`.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub base: *mut f32,
    pub stride: usize,
    /// Adds to what is there, instead of to zero.
    pub accumulate: bool,
}

/// A block of k: from its first left unit on, `depth` units of the right factor.
#[derive(Clone, Copy)]
pub(super) struct Depth {
    pub left: usize,
    pub units: usize,
}

/// One block of k for some rows and some right panels: `target += left[first.., depth] · right`.
///
/// # Safety
/// The views are valid for rows `rows`, the block's units and all of the panels' columns; nobody else reads or writes that
/// part of the target.
#[inline(always)]
pub(super) unsafe fn block<S: Simd, const BF16: bool>(
    left: LeftView,
    rows: std::ops::Range<usize>,
    depth: Depth,
    panels: impl Fn(usize) -> Option<RightPanel>,
    target: Target,
) {
    for first in rows.clone().step_by(RESIDENT * ROWS) {
        let last = rows.end.min(first + RESIDENT * ROWS);
        let mut column = 0;
        let mut index = 0;
        while let Some(right) = panels(index) {
            for row in (first..last).step_by(ROWS) {
                // SAFETY: the caller vouches for the views; `row` is a multiple of 12 inside them.
                unsafe {
                    let base = left.base.add(row / ROWS * left.panel + depth.left * left.step);
                    let to = target.base.add(row * target.stride + column);
                    let a = LeftView { base, rows: left.rows - row, ..left };
                    let to = Target { base: to, ..target };
                    // The first column panel brings the left panels into the cache, each while the one before it is used.
                    let next = if index == 0 { base.wrapping_add(left.panel) } else { base };
                    match right.columns.div_ceil(S::LANES) {
                        1 => panel::<S, 1, BF16>(a, right, depth.units, next, to),
                        _ => panel::<S, 2, BF16>(a, right, depth.units, next, to),
                    }
                }
            }
            column += right.columns;
            index += 1;
        }
    }
}

/// Up to 12 rows of `N` vectors, in the tiles that waste least. What is at `next`, as long as the panel, is fetched ahead.
///
/// # Safety
/// As for [`block`], from the first row on.
#[inline(always)]
unsafe fn panel<S: Simd, const N: usize, const BF16: bool>(
    left: LeftView,
    right: RightPanel,
    units: usize,
    next: *const f32,
    to: Target,
) {
    let place = (right, units, next, to);
    // SAFETY: passed on from the caller; every tile that is visited has a row.
    unsafe {
        match left.rows {
            0..=4 => tile::<S, 4, N, BF16>(left, 0, place),
            5..=8 if S::WIDE || N == 1 => tile::<S, 8, N, BF16>(left, 0, place),
            5..=8 => {
                tile::<S, 4, N, BF16>(left, 0, place);
                tile::<S, 4, N, BF16>(left, 4, place);
            }
            _ if S::WIDE || N == 1 => tile::<S, 12, N, BF16>(left, 0, place),
            // Taking pairs apart needs registers of its own.
            _ if BF16 => {
                tile::<S, 4, N, BF16>(left, 0, place);
                tile::<S, 4, N, BF16>(left, 4, place);
                tile::<S, 4, N, BF16>(left, 8, place);
            }
            _ => {
                tile::<S, 6, N, BF16>(left, 0, place);
                tile::<S, 6, N, BF16>(left, 6, place);
            }
        }
    }
}

/// Rows `first .. first + M` of a panel.
///
/// # Safety
/// As for [`block`], from the panel's first row on.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const N: usize, const BF16: bool>(
    left: LeftView,
    first: usize,
    (right, units, next, to): (RightPanel, usize, *const f32, Target),
) {
    let rows = M.min(left.rows - first);
    // SAFETY: rows beyond the last one read the last one's elements, or a packed panel's padding.
    unsafe {
        let c = to.base.add(first * to.stride);
        for i in 0..rows {
            S::prefetch(c.add(i * to.stride));
        }
        let acc = if left.packed {
            let a = std::array::from_fn(|i| left.base.add(first + i));
            sums::<S, M, N, BF16>(units, a, ROWS, next, right)
        } else if left.row == 1 && rows == M {
            let a = std::array::from_fn(|i| left.base.add(first + i));
            sums::<S, M, N, BF16>(units, a, left.step, left.base, right)
        } else {
            let a = std::array::from_fn(|i| left.base.add((first + i).min(left.rows - 1) * left.row));
            sums::<S, M, N, BF16>(units, a, left.step, left.base, right)
        };
        if rows == M && right.columns == N * S::LANES {
            for (i, row) in acc.iter().enumerate() {
                for (j, sum) in row.iter().enumerate() {
                    let p = c.add(i * to.stride + j * S::LANES);
                    let old = if to.accumulate { S::load(p) } else { S::zero() };
                    S::store(p, S::add(old, *sum));
                }
            }
        } else {
            partial::<S, M, N>(&acc, rows, right.columns, Target { base: c, ..to });
        }
    }
}

/// Stores a tile that reaches over the result's edge.
///
/// # Safety
/// The target is valid for `rows` rows of `columns` elements.
#[inline(always)]
unsafe fn partial<S: Simd, const M: usize, const N: usize>(
    acc: &[[S::V; N]; M],
    rows: usize,
    columns: usize,
    to: Target,
) {
    let mut line = [0.0f32; VECTORS * 16];
    for (i, row) in acc.iter().enumerate().take(rows) {
        for (j, sum) in row.iter().enumerate() {
            // SAFETY: N vectors of at most 16 elements fit into the line.
            unsafe { S::store(line.as_mut_ptr().add(j * S::LANES), *sum) };
        }
        for (j, sum) in line.iter().enumerate().take(columns) {
            // SAFETY: i < rows, j < columns.
            unsafe {
                let p = to.base.add(i * to.stride + j);
                *p = if to.accumulate { *p } else { 0.0 } + sum;
            }
        }
    }
}

/// `M` × `N` vectors of sums over `units` of the right factor, in their order, by fused multiply-add from zero.
///
/// # Safety
/// `a[i]` is valid at `u * a_step` for every left unit, the right panel for `N` vectors of every unit.
#[inline(always)]
unsafe fn sums<S: Simd, const M: usize, const N: usize, const BF16: bool>(
    units: usize,
    a: [*const f32; M],
    a_step: usize,
    next: *const f32,
    right: RightPanel,
) -> [[S::V; N]; M] {
    // SAFETY: as the caller vouches; prefetches read nothing.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        for u in 0..units {
            let mut line = [S::zero(); N];
            for (j, v) in line.iter_mut().enumerate() {
                *v = S::load(right.base.add(u * right.step + j * S::LANES));
            }
            if !BF16 || S::PAIRS {
                let at = u * a_step;
                S::prefetch(next.wrapping_add(at));
                add_products::<S, M, N>(&mut acc, a, at, line, BF16);
            } else {
                let halves = (2 * u * a_step, (2 * u + 1) * a_step);
                S::prefetch(next.wrapping_add(halves.0));
                add_products::<S, M, N>(&mut acc, a, halves.0, half::<S, N>(line, true), false);
                S::prefetch(next.wrapping_add(halves.1));
                add_products::<S, M, N>(&mut acc, a, halves.1, half::<S, N>(line, false), false);
            }
        }
        acc
    }
}

/// The odd or the even elements of pairs.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn half<S: Simd, const N: usize>(pairs: [S::V; N], odd: bool) -> [S::V; N] {
    let mut elements = pairs;
    for v in &mut elements {
        // SAFETY: passed on from the caller.
        *v = unsafe { if odd { S::odd(*v) } else { S::even(*v) } };
    }
    elements
}

/// Adds the products of each row's unit at `offset` with `line`: of elements or of pairs.
///
/// # Safety
/// `a[i]` is valid at `offset`.
#[inline(always)]
unsafe fn add_products<S: Simd, const M: usize, const N: usize>(
    acc: &mut [[S::V; N]; M],
    a: [*const f32; M],
    offset: usize,
    line: [S::V; N],
    pairs: bool,
) {
    for i in 0..M {
        // SAFETY: as the caller vouches.
        unsafe {
            let x = S::splat(a[i].add(offset));
            for j in 0..N {
                acc[i][j] = if pairs { S::dot(x, line[j], acc[i][j]) } else { S::fma(x, line[j], acc[i][j]) };
            }
        }
    }
}
