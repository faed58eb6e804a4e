//! `linear.cu` against f64 sums of its stored inputs.

use super::library::Memory;
use super::{distance, rounded, run_all};
use crate::ops::rig::normal;
use qwentune::ops::linear::cuda::{LinearParams, Output, Right, Term, kernel};
use qwentune::philox::philox4x32;

/// A launch: each output is a list of depths, all from random matrices.
struct Case {
    right: Right,
    rows: usize,
    /// Columns of each output.
    columns: &'static [usize],
    /// Depths of each output's terms.
    depths: &'static [usize],
    bias: bool,
    residual: bool,
    wide: bool,
    /// Dropout after the first terms.
    masked: usize,
}

const NT: Case = Case {
    right: Right::Nt,
    rows: 70,
    columns: &[136],
    depths: &[64],
    bias: false,
    residual: false,
    wide: false,
    masked: 0,
};
const NN: Case = Case { right: Right::Nn, ..NT };

const CASES: &[Case] = &[
    NT,
    Case { rows: 1, columns: &[8], depths: &[8], wide: true, ..NT },
    Case { rows: 130, columns: &[264, 64, 64], depths: &[72, 16], bias: true, ..NT },
    Case { rows: 129, columns: &[128], depths: &[32, 8], residual: true, ..NT },
    Case { rows: 33, columns: &[520], depths: &[200], wide: true, ..NT },
    NN,
    Case { rows: 5, columns: &[64], depths: &[8, 16, 8, 64, 40, 24], ..NN },
    Case { rows: 140, columns: &[264], depths: &[136, 8], ..NN },
    Case { rows: 67, columns: &[264], depths: &[8, 16, 96, 40], masked: 2, ..NN },
    Case { rows: 128, columns: &[128], depths: &[16, 64], masked: 1, ..NN },
];

const SCALE: f32 = 0.75;
const LIMIT: u32 = 1 << 30;
const KEEP: f32 = 4.0 / 3.0;

struct Operands {
    /// A and B of each output's terms.
    terms: Vec<[Vec<f32>; 2]>,
    biases: Vec<Vec<f32>>,
    residual: Vec<f32>,
}

impl Operands {
    fn new(c: &Case) -> Self {
        let mut seed = 100;
        let mut random = |len| {
            seed += 1;
            rounded(&normal(seed, len, 1.0))
        };
        let mut terms = Vec::new();
        for n in c.columns {
            for k in c.depths {
                terms.push([random(c.rows * k), random(n * k)]);
            }
        }
        let biases = c.columns.iter().map(|n| random(*n)).collect();
        let residual = random(c.rows * c.columns.iter().sum::<usize>());
        Operands { terms, biases, residual }
    }

    fn reference(&self, c: &Case) -> Vec<f64> {
        let stride: usize = c.columns.iter().sum();
        let mut y = vec![0.0; c.rows * stride];
        let mut first = 0;
        for (o, n) in c.columns.iter().enumerate() {
            for row in 0..c.rows {
                for column in 0..*n {
                    let mut sum = 0.0;
                    for (t, k) in c.depths.iter().enumerate() {
                        if c.masked > 0 && t == c.masked {
                            sum *= mask(row * n + column);
                        }
                        let [a, b] = &self.terms[o * c.depths.len() + t];
                        let element = |i: usize| match c.right {
                            Right::Nt => b[column * k + i],
                            Right::Nn => b[i * n + column],
                        };
                        sum +=
                            (0..*k).map(|i| f64::from(a[row * k + i]) * f64::from(element(i))).sum::<f64>();
                    }
                    let at = row * stride + first + column;
                    y[at] = sum * f64::from(SCALE)
                        + if c.bias { f64::from(self.biases[o][column]) } else { 0.0 }
                        + if c.residual { f64::from(self.residual[at]) } else { 0.0 };
                }
            }
            first += n;
        }
        y
    }
}

/// The factor of an element, as `Dropout::apply` has it.
fn mask(element: usize) -> f64 {
    let words = philox4x32([(element / 4) as u32, 11, 12, 13], [7, 9]);
    if words[element % 4] >= LIMIT { f64::from(KEEP) } else { 0.0 }
}

fn run(c: &Case) -> f64 {
    let operands = Operands::new(c);
    let stride: usize = c.columns.iter().sum();
    let matrices: Vec<[Memory; 2]> =
        operands.terms.iter().map(|[a, b]| [Memory::bf16(a), Memory::bf16(b)]).collect();
    let biases: Vec<Memory> = operands.biases.iter().map(|b| Memory::f32(b)).collect();
    let residual = Memory::bf16(&operands.residual);
    let size = if c.wide { 4 } else { 2 };
    let y = Memory::poisoned(c.rows * stride * size);
    let clock = Memory::new(&[12u32, 13].map(u32::to_le_bytes).concat());
    let mut p = LinearParams {
        y: y.address(),
        residual: if c.residual { residual.address() } else { 0 },
        rows: c.rows as i32,
        stride: stride as i32,
        wide: i32::from(c.wide),
        pause: if c.masked > 0 { c.masked as i32 } else { i32::MAX },
        limit: LIMIT,
        keep: KEEP,
        key: [7, 9],
        site: 11,
        clock: clock.address(),
        ..LinearParams::default()
    };
    let mut column = 0;
    for (o, n) in c.columns.iter().enumerate() {
        let first = o * c.depths.len();
        p.outputs[o] = Output {
            bias: if c.bias { biases[o].address() } else { 0 },
            first: first as i32,
            count: c.depths.len() as i32,
            columns: *n as i32,
            column: column as i32,
            scale: SCALE,
            reserved: 0,
        };
        for (t, k) in c.depths.iter().enumerate() {
            let [a, b] = &matrices[first + t];
            let b_stride = if c.right == Right::Nt { *k } else { *n };
            p.terms[first + t] = Term {
                a: a.address(),
                b: b.address(),
                a_stride: *k as i32,
                b_stride: b_stride as i32,
                depth: *k as i32,
                reserved: 0,
            };
        }
        column += n;
    }
    let widest = *c.columns.iter().max().expect("an output");
    let (name, shape) = kernel(c.right, c.rows, widest, c.columns.len());
    let got = run_all(name, shape, &p, || (), || y.read().to_vec());
    drop(got);
    let values = if c.wide { y.read_f32() } else { y.read_bf16() };
    distance(&values, &operands.reference(c))
}

#[test]
fn products_follow_f64_sums_of_their_inputs() {
    for (i, case) in CASES.iter().enumerate() {
        let error = run(case);
        let limit = if case.wide { 1e-6 } else { 3e-3 };
        assert!(error < limit, "case {i}: {error}");
    }
}
