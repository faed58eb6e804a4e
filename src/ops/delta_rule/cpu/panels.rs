//! Small dense matrices in panels of sixteen columns, and their products in a fixed order.

use crate::device::cpu::Isa;
use crate::device::cpu::lanes::{self, LANES, Lanes};

/// A matrix whose columns stand in lanes: panel after panel, each of `rows` rows. Columns beyond the last are zero.
#[derive(Clone)]
pub(super) struct Panels {
    pub rows: usize,
    pub cols: usize,
    data: Vec<Lanes>,
}

impl Panels {
    #[inline(always)]
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Panels { rows, cols, data: vec![[0.0; LANES]; rows * cols.div_ceil(LANES)] }
    }

    /// The transpose of `values`, row-major rows of `cols` elements.
    #[inline(always)]
    pub fn transposed(values: &[f32], cols: usize) -> Self {
        let mut out = Panels::zeros(cols, values.len() / cols);
        for (c, row) in values.chunks_exact(cols).enumerate() {
            lanes::set_lane(out.panel_mut(c / LANES), c % LANES, row);
        }
        out
    }

    /// Row-major `values`, rows of `cols` elements that begin `stride` apart.
    #[inline(always)]
    pub fn of(values: &[f32], stride: usize, cols: usize) -> Self {
        let mut out = Panels::zeros(values.len().div_ceil(stride), cols);
        for (r, row) in values.chunks(stride).enumerate() {
            out.set_row(r, &row[..cols]);
        }
        out
    }

    #[inline(always)]
    pub fn set_row(&mut self, row: usize, values: &[f32]) {
        for (panel, values) in self.data.chunks_exact_mut(self.rows).zip(values.chunks(LANES)) {
            panel[row][..values.len()].copy_from_slice(values);
        }
    }

    #[inline(always)]
    pub fn get_row(&self, row: usize, out: &mut [f32]) {
        for (panel, out) in self.data.chunks_exact(self.rows).zip(out.chunks_mut(LANES)) {
            out.copy_from_slice(&panel[row][..out.len()]);
        }
    }

    /// Row-major, without the columns that only fill up.
    #[inline(always)]
    pub fn to_rows(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
            self.get_row(row, out);
        }
        out
    }

    #[inline(always)]
    pub fn panel(&self, panel: usize) -> &[Lanes] {
        &self.data[panel * self.rows..][..self.rows]
    }

    #[inline(always)]
    pub fn panel_mut(&mut self, panel: usize) -> &mut [Lanes] {
        &mut self.data[panel * self.rows..][..self.rows]
    }

    #[inline(always)]
    pub fn panels(&self) -> usize {
        self.cols.div_ceil(LANES)
    }

    /// Multiplies row i by `factors[i]`.
    #[inline(always)]
    pub fn scale_rows(&mut self, factors: &[f32]) {
        for panel in self.data.chunks_exact_mut(self.rows) {
            for (row, factor) in panel.iter_mut().zip(factors) {
                for x in row {
                    *x *= factor;
                }
            }
        }
    }

    /// Multiplies everything by `factor`.
    #[inline(always)]
    pub fn scale(&mut self, factor: f32) {
        for row in &mut self.data {
            for x in row {
                *x *= factor;
            }
        }
    }

    /// `self += factor · other`.
    #[inline(always)]
    pub fn add(&mut self, factor: f32, other: &Panels) {
        for (row, other) in self.data.iter_mut().zip(&other.data) {
            for (x, y) in row.iter_mut().zip(other) {
                *x += factor * y;
            }
        }
    }

    /// Σ of all products of elements in the same place.
    #[inline(always)]
    pub fn dot(&self, other: &Panels) -> f64 {
        lanes::dot(self.data.as_flattened(), other.data.as_flattened())
    }
}

/// `a · b` with `a` row-major, rows as long as `b` has rows.
#[inline(always)]
pub(super) fn product(isa: Isa, a: &[f32], b: &Panels) -> Panels {
    let mut out = Panels::zeros(a.len() / b.rows, b.cols);
    for panel in 0..b.panels() {
        lanes::row_products(isa, a, b.panel(panel), out.panel_mut(panel));
    }
    out
}

/// `c += aᵀ · b` with `a` row-major, as many rows as `b`.
#[inline(always)]
pub(super) fn add_transposed_product(isa: Isa, a: &[f32], b: &Panels, c: &mut Panels) {
    for panel in 0..b.panels() {
        lanes::column_products(isa, a, b.panel(panel), c.panel_mut(panel));
    }
}
