//! Exclusive rectangles of a row-major matrix: what `split_at_mut` is for slices, in both directions.

use std::marker::PhantomData;

/// Some rows and columns of a matrix, to be written by one task.
pub struct Tile<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is the only access to its elements for 'a, like the `&mut [f32]` it was made from.
unsafe impl Send for Tile<'_> {}

impl<'a> Tile<'a> {
    /// All of a matrix with rows of `stride` elements.
    ///
    /// # Panics
    /// When `values` are not whole rows.
    #[must_use]
    pub fn new(values: &'a mut [f32], stride: usize) -> Self {
        assert!(values.len().is_multiple_of(stride), "not whole rows");
        let rows = values.len() / stride;
        Tile { start: values.as_mut_ptr(), rows, cols: stride, stride, matrix: PhantomData }
    }

    /// The first `at` rows, and the others.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows, "split outside the tile");
        // Wrapping: with no row left, the start may lie past the end of the matrix, and is never read.
        let start = self.start.wrapping_add(at * self.stride);
        let below = Tile { start, rows: self.rows - at, ..self };
        (Tile { rows: at, ..self }, below)
    }

    /// The first `at` columns, and the others.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn split_cols(self, at: usize) -> (Self, Self) {
        assert!(at <= self.cols, "split outside the tile");
        let right = Tile { start: self.start.wrapping_add(at), cols: self.cols - at, ..self };
        (Tile { cols: at, ..self }, right)
    }

    /// One row.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row outside the tile");
        // SAFETY: inside the matrix, since tiles only shrink; no other tile has these elements, since splitting
        // consumes the tile it splits; `&mut self` lends them once at a time.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.cols) }
    }
}
