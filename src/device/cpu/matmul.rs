//! Matrix products of the CPU device.
//!
//! Every element is a sum in one fixed order: within blocks of [`BLOCK`] consecutive k by fused multiply-add
//! from zero, the block sums added in order, the products of an output in the order given. Threads, tiles and
//! instruction sets choose who computes an element and when, never how, so all give the same bits.

use super::isa::Isa;
use crate::device::Matrix;
use crate::element::Element;
use rayon::prelude::*;

/// Length of a block of the inner dimension.
pub const BLOCK: usize = 256;

/// Left factor [M, K], f32: element (i, k) is `values[i * row + k * step]`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    values: &'a [f32],
    row: usize,
    step: usize,
}

impl<'a> Left<'a> {
    /// Rows of `stride` elements.
    #[must_use]
    pub fn new(values: &'a [f32], stride: usize) -> Self {
        Left { values, row: stride, step: 1 }
    }

    /// The transpose of a matrix with rows of `stride` elements.
    #[must_use]
    pub fn transposed(values: &'a [f32], stride: usize) -> Self {
        Left { values, row: 1, step: stride }
    }
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Values(&'a [f32]),
    Weight(&'a [u8], Element),
}

/// Right factor [K, N] in whatever form it lies in memory.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    source: Source<'a>,
    stride: usize,
    transposed: bool,
}

impl<'a> Right<'a> {
    /// f32 rows of `stride` elements, one for each k.
    #[must_use]
    pub fn new(values: &'a [f32], stride: usize) -> Self {
        Right { source: Source::Values(values), stride, transposed: false }
    }

    /// f32 rows of `stride` elements, one for each output column.
    #[must_use]
    pub fn transposed(values: &'a [f32], stride: usize) -> Self {
        Right { source: Source::Values(values), stride, transposed: true }
    }

    /// A frozen weight [out, in] summed over its rows (backward pass).
    #[must_use]
    pub fn weight(weight: &'a Matrix) -> Self {
        let source = Source::Weight(weight.bytes(), weight.element());
        Right { source, stride: weight.cols(), transposed: false }
    }

    /// A frozen weight [out, in] summed over its columns (forward pass).
    #[must_use]
    pub fn weight_transposed(weight: &'a Matrix) -> Self {
        Right { transposed: true, ..Self::weight(weight) }
    }

    fn at(&self, k: usize, j: usize) -> f32 {
        let i = if self.transposed { j * self.stride + k } else { k * self.stride + j };
        match self.source {
            Source::Values(v) => v[i],
            Source::Weight(b, Element::F32) => {
                f32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]])
            }
            Source::Weight(b, Element::F16) => half::f16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32(),
            Source::Weight(b, Element::Bf16) => half::bf16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32(),
        }
    }
}

/// One product of a sum: columns `first .. first + depth` of a left factor, times a right factor.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// Index into the left factors.
    pub left: usize,
    /// First column of the left factor.
    pub first: usize,
    /// Length K of the sum.
    pub depth: usize,
    /// The right factor.
    pub right: Right<'a>,
}

/// A range of result columns: `scale · Σ terms + bias (+ residual)`.
pub struct Output<'a> {
    /// First column in the result.
    pub column: usize,
    /// Number of columns.
    pub columns: usize,
    /// The products, in the order they are summed.
    pub terms: Vec<Term<'a>>,
    /// Multiplies the sum.
    pub scale: f32,
    /// One value per column, added after the sum.
    pub bias: Option<&'a [f32]>,
}

/// Several output ranges that share rows and left factors, computed together.
pub struct Product<'a> {
    /// Rows M of the left factors and of the result.
    pub rows: usize,
    /// Left factors.
    pub lefts: &'a [Left<'a>],
    /// Ranges of result columns; they do not overlap.
    pub outputs: &'a [Output<'a>],
    /// Added last, with rows like the result's.
    pub residual: Option<&'a [f32]>,
    /// Adds to what the result holds, instead of starting from zero.
    pub accumulate: bool,
}

/// What a product runs on.
pub struct Engine<'a> {
    /// Threads.
    pub pool: &'a rayon::ThreadPool,
    /// Instruction set.
    pub isa: Isa,
}

impl Engine<'_> {
    /// Computes `p` into `result`, rows of `stride` elements; columns of no output stay.
    pub fn multiply(&mut self, p: &Product<'_>, result: &mut [f32], stride: usize) {
        if p.rows == 0 {
            return;
        }
        let isa = self.isa;
        self.pool.install(|| {
            result.par_chunks_mut(stride).take(p.rows).enumerate().for_each(|(i, row)| {
                isa.run(
                    #[inline(always)]
                    || row_of(p, i, row, stride),
                );
            });
        });
    }
}

#[inline(always)]
fn row_of(p: &Product<'_>, i: usize, row: &mut [f32], stride: usize) {
    for out in p.outputs {
        for j in 0..out.columns {
            let c = &mut row[out.column + j];
            let mut sum = if p.accumulate { *c } else { 0.0 };
            for t in &out.terms {
                let left = &p.lefts[t.left];
                for k0 in (0..t.depth).step_by(BLOCK) {
                    let mut block = 0.0f32;
                    for k in k0..t.depth.min(k0 + BLOCK) {
                        let a = left.values[i * left.row + (t.first + k) * left.step];
                        block = a.mul_add(t.right.at(k, j), block);
                    }
                    sum += block;
                }
            }
            sum *= out.scale;
            if let Some(bias) = out.bias {
                sum += bias[j];
            }
            if let Some(residual) = p.residual {
                sum += residual[i * stride + out.column + j];
            }
            *c = sum;
        }
    }
}
