//! How the matrices of frozen weights are stored: element after element, or as codes with a scale for each block.
//!
//! What an element is ([`Element`]), how a matrix is stored (here) and where a device keeps it (its
//! [`crate::device::Capabilities`]) are three things. Everything that reads a matrix does so through
//! [`crate::device::Matrix`]; a further encoding is a further variant here and its reader in `model::weights`.

use crate::element::Element;
use std::fmt;
use std::sync::Arc;

/// How a matrix is stored.
#[derive(Clone, Debug)]
pub enum Encoding {
    /// Element after element.
    Plain(Element),
    /// A float8 (e4m3) code for each element, and a scale for each block of [`BLOCK`] × [`BLOCK`]: the folders that Qwen
    /// publishes as FP8. A weight is its code's value times its block's scale, rounded once to f32.
    E4m3(Arc<Scales>),
}

/// Rows, and columns, of a block that shares a scale.
pub const BLOCK: usize = 128;

/// The scales of a matrix in blocks, [⌈rows / BLOCK⌉, ⌈columns / BLOCK⌉].
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    values: Vec<f32>,
    columns: usize,
}

impl Scales {
    /// Number of scales of a matrix, down and across.
    #[must_use]
    pub const fn shape(rows: usize, columns: usize) -> [usize; 2] {
        [rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)]
    }

    /// The scales of a matrix of `rows` × `columns`.
    ///
    /// # Panics
    /// When there are not as many as [`Scales::shape`] says.
    #[must_use]
    pub fn new(values: Vec<f32>, rows: usize, columns: usize) -> Self {
        let [down, across] = Self::shape(rows, columns);
        assert_eq!(values.len(), down * across, "scales of another matrix");
        Scales { values, columns: across }
    }

    /// Widens codes of row `row` from column `column` on.
    fn widen(&self, codes: &[u8], row: usize, column: usize, out: &mut [f32]) {
        let scales = &self.values[row / BLOCK * self.columns..];
        let (mut column, mut codes, mut out) = (column, codes, out);
        while !codes.is_empty() {
            let count = (BLOCK - column % BLOCK).min(codes.len());
            let scale = scales[column / BLOCK];
            for (out, code) in out[..count].iter_mut().zip(codes) {
                *out = E4M3[usize::from(*code)] * scale;
            }
            (column, codes, out) = (column + count, &codes[count..], &mut out[count..]);
        }
    }
}

/// Values of all float8 codes of the kind e4m3fn: a sign, four bits of exponent, three of mantissa; no infinity, and NaN
/// where all others are set (Micikevicius et al. 2022, arXiv 2209.05433).
static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3 & 15) as u32, (code & 7) as u32);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            // Subnormal: multiples of 2^-9.
            (0, _) => mantissa as f32 * f32::from_bits((127 - 9) << 23),
            _ => (8 + mantissa) as f32 * f32::from_bits((127 + exponent - 10) << 23),
        };
        table[code] = if code < 128 { magnitude } else { -magnitude };
        code += 1;
    }
    table
};

/// Codes that are not a number.
#[must_use]
pub fn e4m3_not_numbers(codes: &[u8]) -> usize {
    codes.iter().filter(|code| *code & 0x7f == 0x7f).count()
}

impl Encoding {
    /// Bytes of a row of `columns` elements, beside its scales.
    #[must_use]
    pub const fn row_bytes(&self, columns: usize) -> usize {
        match self {
            Encoding::Plain(element) => columns * element.bytes(),
            Encoding::E4m3(_) => columns,
        }
    }

    /// The element type, where elements lie one after the other.
    #[must_use]
    pub const fn plain(&self) -> Option<Element> {
        match self {
            Encoding::Plain(element) => Some(*element),
            Encoding::E4m3(_) => None,
        }
    }

    /// Widens to f32 what `bytes` hold: elements of row `row` from column `column` on, as many as `out` takes.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn widen(&self, bytes: &[u8], row: usize, column: usize, out: &mut [f32]) {
        let bytes = &bytes[..self.row_bytes(out.len())];
        match self {
            Encoding::Plain(element) => element.widen_all(bytes, out),
            Encoding::E4m3(scales) => scales.widen(bytes, row, column, out),
        }
    }
}

/// As checkpoints and messages name it.
impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::Plain(Element::F32) => "f32",
            Encoding::Plain(Element::F16) => "f16",
            Encoding::Plain(Element::Bf16) => "bf16",
            Encoding::E4m3(_) => "e4m3 in blocks",
        })
    }
}
