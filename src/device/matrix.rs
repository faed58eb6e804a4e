//! A frozen weight matrix as it lies in the memory map: row-major, in whatever [`Encoding`], at any alignment; and where a
//! device keeps its copy.

use super::{Planner, Purpose, Region, Storage};
use crate::element::Element;
use crate::encoding::Encoding;
use std::sync::Arc;

/// Bytes that stay valid and unchanged while anybody holds them (a memory-mapped file, a `Vec`).
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A row-major matrix of frozen weights. Cloning shares the bytes.
#[derive(Clone)]
pub struct Matrix {
    bytes: SharedBytes,
    offset: usize,
    encoding: Encoding,
    /// Row of the stored matrix that is row 0 of this one.
    first: usize,
    rows: usize,
    cols: usize,
    copy: Region,
}

/// A copy that nobody planned.
const NO_COPY: Region = Region { storage: Storage::Copy, start: 0, len: 0 };

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({}x{} {})", self.rows, self.cols, self.encoding)
    }
}

impl Matrix {
    /// The matrix of `rows` × `cols` elements that starts `offset` bytes into `bytes`.
    ///
    /// # Panics
    /// When it does not fit into `bytes`; readers of files check that before.
    #[must_use]
    pub fn new(bytes: SharedBytes, offset: usize, element: Element, rows: usize, cols: usize) -> Self {
        Self::encoded(bytes, offset, Encoding::Plain(element), rows, cols)
    }

    /// The same of a matrix in any encoding.
    ///
    /// # Panics
    /// As [`Matrix::new`].
    #[must_use]
    pub fn encoded(bytes: SharedBytes, offset: usize, encoding: Encoding, rows: usize, cols: usize) -> Self {
        let need = rows.checked_mul(encoding.row_bytes(cols)).and_then(|n| n.checked_add(offset));
        assert!(need.is_some_and(|end| end <= (*bytes).as_ref().len()), "matrix outside its bytes");
        Matrix { bytes, offset, encoding, first: 0, rows, cols, copy: NO_COPY }
    }

    /// A matrix of f32 values, for tests and small weights.
    #[must_use]
    pub fn from_f32(values: &[f32], rows: usize, cols: usize) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Arc::new(bytes), 0, Element::F32, rows, cols)
    }

    /// Rows `first .. first + count`, without copying.
    #[must_use]
    pub fn row_range(&self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows outside the matrix");
        let offset = self.offset + first * self.row_bytes();
        let copy =
            if self.copy.len == 0 { NO_COPY } else { self.copy.slice(first * self.cols, count * self.cols) };
        Matrix { offset, first: self.first + first, rows: count, copy, ..self.clone() }
    }

    /// The same matrix with a place for its copy, on a device that keeps one.
    #[must_use]
    pub fn planned(&self, planner: &mut Planner) -> Self {
        let copy = planner.region(Purpose::BaseWeights, Storage::Copy, self.rows * self.cols);
        Matrix { copy, ..self.clone() }
    }

    /// The device's copy, bf16 [rows, cols].
    ///
    /// # Panics
    /// When none was planned.
    #[must_use]
    pub fn copy(&self) -> Region {
        assert_eq!(self.copy.len, self.rows * self.cols, "a matrix without a copy on the device");
        self.copy
    }

    /// Whether both are the same bytes.
    #[must_use]
    pub fn is_same(&self, other: &Matrix) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes) && (self.offset, self.rows) == (other.offset, other.rows)
    }

    /// All bytes, row after row.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.offset..self.offset + self.rows * self.row_bytes()]
    }

    fn row_bytes(&self) -> usize {
        self.encoding.row_bytes(self.cols)
    }

    /// How it is stored.
    #[must_use]
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    /// Number of rows (output features).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (input features).
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `row` widened to f32 into `out`, which holds `cols` elements.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "row buffer has another length");
        self.read_part(row, 0, out);
    }

    /// Elements of row `row` from column `column` on, widened to f32, as many as `out` takes.
    ///
    /// # Panics
    /// When they are not all inside.
    pub fn read_part(&self, row: usize, column: usize, out: &mut [f32]) {
        assert!(column + out.len() <= self.cols, "columns outside the matrix");
        let from = row * self.row_bytes() + self.encoding.row_bytes(column);
        self.encoding.widen(&self.bytes()[from..], self.first + row, column, out);
    }

    /// Elements from number `first` on, counted row after row, widened to f32 into `out`.
    ///
    /// # Panics
    /// As [`Matrix::read_part`].
    pub fn read_span(&self, first: usize, out: &mut [f32]) {
        let (mut at, mut out) = (first, out);
        while !out.is_empty() {
            let (row, column) = (at / self.cols, at % self.cols);
            let (part, rest) = out.split_at_mut(out.len().min(self.cols - column));
            self.read_part(row, column, part);
            (at, out) = (at + part.len(), rest);
        }
    }
}
