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

/// A left factor as tiles read it: element (i, k) is at `base[i / 12 * panel + i % 12 * row + k * step]`.
#[derive(Clone, Copy)]
pub(super) struct LeftView {
    pub base: *const f32,
    /// Rows in all.
    pub rows: usize,
    pub panel: usize,
    pub row: usize,
    pub step: usize,
    /// Panels of 12 adjacent elements per k, padded to 12 rows.
    pub packed: bool,
}

/// A panel of the right factor: `VECTORS` vectors or fewer per k.
#[derive(Clone, Copy)]
pub(super) struct RightPanel {
    pub base: *const f32,
    /// Distance of consecutive k.
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

/// One block of k for some rows and some right panels: `target += left[first.., k0..k0+depth] · right`.
///
/// # Safety
/// The views are valid for rows `rows`, columns k `k0 .. k0 + depth` and all of the panels' columns; nobody
/// else reads or writes that part of the target.
#[inline(always)]
pub(super) unsafe fn block<S: Simd>(
    left: LeftView,
    rows: std::ops::Range<usize>,
    (k0, depth): (usize, usize),
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
                    let base = left.base.add(row / ROWS * left.panel + k0 * left.step);
                    let to = target.base.add(row * target.stride + column);
                    let a = LeftView { base, rows: left.rows - row, ..left };
                    let to = Target { base: to, ..target };
                    match right.columns.div_ceil(S::LANES) {
                        1 => panel::<S, 1>(a, right, depth, to),
                        _ => panel::<S, 2>(a, right, depth, to),
                    }
                }
            }
            column += right.columns;
            index += 1;
        }
    }
}

/// Up to 12 rows of `N` vectors, in the tiles that waste least.
///
/// # Safety
/// As for [`block`], from the first row on.
#[inline(always)]
unsafe fn panel<S: Simd, const N: usize>(left: LeftView, right: RightPanel, depth: usize, to: Target) {
    // SAFETY: passed on from the caller; every tile that is visited has a row.
    unsafe {
        match left.rows {
            0..=4 => tile::<S, 4, N>(left, 0, right, depth, to),
            5..=8 if S::WIDE || N == 1 => tile::<S, 8, N>(left, 0, right, depth, to),
            5..=8 => {
                tile::<S, 4, N>(left, 0, right, depth, to);
                tile::<S, 4, N>(left, 4, right, depth, to);
            }
            _ if S::WIDE || N == 1 => tile::<S, 12, N>(left, 0, right, depth, to),
            _ => {
                tile::<S, 6, N>(left, 0, right, depth, to);
                tile::<S, 6, N>(left, 6, right, depth, to);
            }
        }
    }
}

/// Rows `first .. first + M` of a panel.
///
/// # Safety
/// As for [`block`], from the panel's first row on.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const N: usize>(
    left: LeftView,
    first: usize,
    right: RightPanel,
    depth: usize,
    to: Target,
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
            sums::<S, M, N>(depth, a, ROWS, right.base, right.step)
        } else {
            let a = std::array::from_fn(|i| left.base.add((first + i).min(left.rows - 1) * left.row));
            sums::<S, M, N>(depth, a, left.step, right.base, right.step)
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

/// `M` × `N` vectors of sums over `depth`, in the order of k, by fused multiply-add from zero.
///
/// # Safety
/// `a[i]` is valid at `k * a_step`, `b` for `N` vectors at `k * b_step`, for every k < `depth`.
#[inline(always)]
unsafe fn sums<S: Simd, const M: usize, const N: usize>(
    depth: usize,
    a: [*const f32; M],
    a_step: usize,
    b: *const f32,
    b_step: usize,
) -> [[S::V; N]; M] {
    // SAFETY: as the caller vouches.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        for k in 0..depth {
            let mut line = [S::zero(); N];
            for (j, v) in line.iter_mut().enumerate() {
                *v = S::load(b.add(k * b_step + j * S::LANES));
            }
            for i in 0..M {
                let x = S::splat(a[i].add(k * a_step));
                for j in 0..N {
                    acc[i][j] = S::fma(x, line[j], acc[i][j]);
                }
            }
        }
        acc
    }
}
