//! Sums in a fixed order that vectorise: sixteen lanes side by side, on every instruction set.

use super::isa::{Isa, Job};
use super::kernel::{self, Depth, LeftView, ROWS, RightPanel, Target};
use super::simd::Simd;

/// Lanes of a panel.
pub const LANES: usize = 16;

/// One row of a panel: the same element of sixteen independent problems.
pub type Lanes = [f32; LANES];

/// Adds the lanes pairwise.
#[inline(always)]
pub fn tree<T: Copy + std::ops::AddAssign>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            let other = lanes[i + width];
            lanes[i] += other;
        }
    }
    lanes[0]
}

/// `Σ f(i)` in f64: every lane sums every sixteenth element, then the lanes are added pairwise.
#[inline(always)]
pub fn sum(len: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let whole = len / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(first + l);
        }
    }
    for (l, i) in (whole..len).enumerate() {
        lanes[l] += f(i);
    }
    tree(lanes)
}

/// `Σ a·b` in f64, where the products are exact.
#[inline(always)]
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    let b = &b[..a.len()];
    sum(
        a.len(),
        #[inline(always)]
        |i| f64::from(a[i]) * f64::from(b[i]),
    )
}

/// `c[i] = Σ_k a[i, k] · b[k]` with rows of `a` as long as `b`; k ascending from zero by fused multiply-add.
///
/// # Panics
/// When `a` has fewer rows than `c`.
pub fn row_products(isa: Isa, a: &[f32], b: &[Lanes], c: &mut [Lanes]) {
    assert!(a.len() >= b.len() * c.len(), "a row of `a` for each of `c`");
    let (base, rows, row) = (a.as_ptr(), c.len(), b.len());
    let left = LeftView { base, rows, panel: ROWS * row, row, step: 1, packed: false };
    isa.dispatch(Products { left, b, c, accumulate: false });
}

/// `c[i] += Σ_r a[r, i] · b[r]` with rows of `a` as long as `c`; r ascending from zero by fused multiply-add, then added.
///
/// # Panics
/// When `a` has fewer rows than `b`.
pub fn column_products(isa: Isa, a: &[f32], b: &[Lanes], c: &mut [Lanes]) {
    assert!(a.len() >= b.len() * c.len(), "a row of `a` for each of `b`");
    let (base, rows) = (a.as_ptr(), c.len());
    let left = LeftView { base, rows, panel: ROWS, row: 1, step: rows, packed: false };
    isa.dispatch(Products { left, b, c, accumulate: true });
}

/// A product whose right factor and result are panels of lanes.
struct Products<'a> {
    left: LeftView,
    b: &'a [Lanes],
    c: &'a mut [Lanes],
    accumulate: bool,
}

impl Job for Products<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Products { left, b, c, accumulate } = self;
        let (base, rows) = (b.as_ptr().cast::<f32>(), 0..c.len());
        let panel = |index| (index == 0).then_some(RightPanel { base, step: LANES, columns: LANES });
        let target = Target { base: c.as_mut_ptr().cast(), stride: LANES, accumulate };
        // SAFETY: the callers have compared the left factor with both panels, which are rows of sixteen f32.
        unsafe { kernel::block::<S, false>(left, rows, Depth { left: 0, units: b.len() }, panel, target) };
    }
}

/// Puts a row into lane `lane` of a panel.
#[inline(always)]
pub fn set_lane(panel: &mut [Lanes], lane: usize, row: &[f32]) {
    for (to, from) in panel.iter_mut().zip(row) {
        to[lane] = *from;
    }
}

/// Reads lane `lane` of a panel into a row.
#[inline(always)]
pub fn get_lane(panel: &[Lanes], lane: usize, row: &mut [f32]) {
    for (from, to) in panel.iter().zip(row) {
        *to = from[lane];
    }
}
