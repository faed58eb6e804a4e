//! A frozen weight matrix as it lies in the memory map: row-major, bf16, f16 or f32, any alignment; and where a device
//! keeps its copy.

use super::{Planner, Purpose, Region, Storage};
use crate::element::Element;
use std::sync::Arc;

/// Bytes that stay valid and unchanged while anybody holds them (a memory-mapped file, a `Vec`).
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A row-major matrix of frozen weights. Cloning shares the bytes.
#[derive(Clone)]
pub struct Matrix {
    bytes: SharedBytes,
    offset: usize,
    element: Element,
    rows: usize,
    cols: usize,
    copy: Region,
}

/// A copy that nobody planned.
const NO_COPY: Region = Region { storage: Storage::Copy, start: 0, len: 0 };

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({}x{} {:?})", self.rows, self.cols, self.element)
    }
}

impl Matrix {
    /// The matrix of `rows` × `cols` elements that starts `offset` bytes into `bytes`.
    ///
    /// # Panics
    /// When it does not fit into `bytes`; readers of files check that before.
    #[must_use]
    pub fn new(bytes: SharedBytes, offset: usize, element: Element, rows: usize, cols: usize) -> Self {
        let need = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(element.bytes()))
            .and_then(|n| n.checked_add(offset));
        assert!(need.is_some_and(|end| end <= (*bytes).as_ref().len()), "matrix outside its bytes");
        Matrix { bytes, offset, element, rows, cols, copy: NO_COPY }
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
        let offset = self.offset + first * self.cols * self.element.bytes();
        let copy =
            if self.copy.len == 0 { NO_COPY } else { self.copy.slice(first * self.cols, count * self.cols) };
        Matrix { offset, rows: count, copy, ..self.clone() }
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
        let len = self.rows * self.cols * self.element.bytes();
        &(*self.bytes).as_ref()[self.offset..self.offset + len]
    }

    /// Element type.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
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
        let size = self.element.bytes();
        let bytes = &self.bytes()[row * self.cols * size..(row + 1) * self.cols * size];
        match self.element {
            Element::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Element::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Element::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    }
}
