//! Matrix products, LoRA linear layers and the fused head: right against f64, and the same bits for every
//! instruction set and any number of threads.

use qwentune::device::cpu::matmul::{Left, Output, Product, Right, Term};
use qwentune::device::cpu::{Arithmetic, Cpu, Isa};
use qwentune::device::{Matrix, Planner};
use qwentune::element::Element;
use std::sync::Arc;

/// Reproducible values in (-1, 1) (a linear congruential generator; the upper bits are good enough here).
pub struct Values(u64);

impl Values {
    pub fn new(seed: u64) -> Self {
        Values(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678)
    }

    pub fn one(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 + 0.5) / f32::from(1u16 << 12) / f32::from(1u16 << 11) - 1.0
    }

    pub fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.one()).collect()
    }
}

/// Values as a weight with rows × cols elements, `shift` bytes away from any alignment.
pub fn stored(values: &[f32], element: Element, rows: usize, cols: usize, shift: usize) -> Matrix {
    let mut bytes = vec![0u8; shift];
    for v in values {
        match element {
            Element::F32 => bytes.extend(v.to_le_bytes()),
            Element::F16 => bytes.extend(half::f16::from_f32(*v).to_le_bytes()),
            Element::Bf16 => bytes.extend(half::bf16::from_f32(*v).to_le_bytes()),
        }
    }
    Matrix::new(Arc::new(bytes), shift, element, rows, cols)
}

/// A weight's elements in f64.
pub fn widened(m: &Matrix) -> Vec<f64> {
    let mut row = vec![0.0; m.cols()];
    let mut all = Vec::new();
    for r in 0..m.rows() {
        m.read_row(r, &mut row);
        all.extend(row.iter().map(|v| f64::from(*v)));
    }
    all
}

fn cpu(threads: usize, isa: Isa) -> Cpu {
    let mut cpu = Cpu::new(&Planner::new(Cpu::CAPABILITIES), Some(threads)).unwrap();
    cpu.isa = isa;
    cpu
}

/// What is checked of one product: (rows, depth, columns).
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (1, 17, 5),
    (5, 63, 17),
    (8, 256, 24),
    (17, 257, 63),
    (63, 130, 130),
    (130, 300, 8),
    (64, 512, 48),
    (2, 897, 33),
    (3, 1030, 200),
    (4, 1536, 40),
    (7, 515, 7),
    (200, 5, 97),
    (520, 70, 390),
];

/// Which factors are transposed in memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    left: bool,
    right: bool,
    weight: Option<Element>,
}

fn layouts() -> Vec<Layout> {
    let mut all = Vec::new();
    for left in [false, true] {
        for right in [false, true] {
            for weight in [None, Some(Element::F32), Some(Element::F16), Some(Element::Bf16)] {
                all.push(Layout { left, right, weight });
            }
        }
    }
    all
}

struct Case {
    shape: (usize, usize, usize),
    layout: Layout,
    left: Vec<f32>,
    right: Vec<f32>,
    weight: Option<Matrix>,
    bias: Vec<f32>,
    before: Vec<f32>,
    residual: Vec<f32>,
    accumulate: bool,
}

/// Columns of the result beside the product's own.
const MARGIN: usize = 3;

impl Case {
    fn new(shape: (usize, usize, usize), layout: Layout, accumulate: bool) -> Self {
        let (m, k, n) = shape;
        let mut values = Values::new((m * 31 + k * 7 + n) as u64);
        let right = values.many(k * n);
        let (rows, cols) = if layout.right { (n, k) } else { (k, n) };
        Case {
            shape,
            layout,
            left: values.many(m * k),
            weight: layout.weight.map(|element| stored(&right, element, rows, cols, 3)),
            right,
            bias: values.many(n),
            before: values.many(m * (n + 2 * MARGIN)),
            residual: values.many(m * (n + 2 * MARGIN)),
            accumulate,
        }
    }

    fn output<'a>(&'a self, column: usize, columns: usize, right: Right<'a>) -> Output<'a> {
        let terms = vec![Term { left: 0, first: 0, depth: self.shape.1, right }];
        let bias = Some(&self.bias[column..column + columns]);
        Output { column: MARGIN + column, columns, terms, scale: 0.5, bias }
    }

    fn run(&self, cpu: &mut Cpu) -> Vec<f32> {
        let (m, k, n) = self.shape;
        let stride = n + 2 * MARGIN;
        let right = match (&self.weight, self.layout.right) {
            (Some(w), false) => Right::weight(w),
            (Some(w), true) => Right::weight_transposed(w),
            (None, false) => Right::new(&self.right, n),
            (None, true) => Right::transposed(&self.right, k),
        };
        let left = if self.layout.left { Left::transposed(&self.left, m) } else { Left::new(&self.left, k) };
        let split = n / 3;
        // Two ranges of columns where the right factor can be cut.
        let cut = match (&self.weight, self.layout.right) {
            (None, true) if split > 0 => Some(Right::transposed(&self.right[split * k..], k)),
            _ => None,
        };
        let outputs: Vec<Output<'_>> = match cut {
            Some(second) => vec![self.output(0, split, right), self.output(split, n - split, second)],
            None => vec![self.output(0, n, right)],
        };
        let p = Product {
            rows: m,
            lefts: &[left],
            outputs: &outputs,
            residual: (!self.accumulate).then_some(&self.residual[..]),
            accumulate: self.accumulate,
            rounds: false,
        };
        let mut result = self.before.clone();
        let (mut engine, _, _) = cpu.engine(&[], &[]);
        engine.multiply(&p, &mut result, stride);
        result
    }

    fn reference(&self) -> Vec<f64> {
        let (m, k, n) = self.shape;
        let stride = n + 2 * MARGIN;
        let right: Vec<f64> = match &self.weight {
            Some(w) => widened(w),
            None => self.right.iter().map(|v| f64::from(*v)).collect(),
        };
        let mut result: Vec<f64> = self.before.iter().map(|v| f64::from(*v)).collect();
        for i in 0..m {
            for j in 0..n {
                let at = i * stride + MARGIN + j;
                let mut sum = if self.accumulate { result[at] } else { 0.0 };
                for l in 0..k {
                    let a = if self.layout.left { self.left[l * m + i] } else { self.left[i * k + l] };
                    sum += f64::from(a) * if self.layout.right { right[j * k + l] } else { right[l * n + j] };
                }
                let residual = if self.accumulate { 0.0 } else { f64::from(self.residual[at]) };
                result[at] = sum * 0.5 + f64::from(self.bias[j]) + residual;
            }
        }
        result
    }
}

pub fn assert_bits(expected: &[f32], got: &[f32], what: &str) {
    assert_eq!(expected.len(), got.len(), "{what}");
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        assert_eq!(e.to_bits(), g.to_bits(), "{what}: element {i} is {g}, expected {e}");
    }
}

pub fn assert_near(expected: &[f64], got: &[f32], tolerance: f64, what: &str) {
    assert_eq!(expected.len(), got.len(), "{what}");
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        let error = (e - f64::from(*g)).abs();
        assert!(error <= tolerance * e.abs().max(1.0), "{what}: element {i} is {g}, expected {e}");
    }
}

#[test]
fn products_match_f64_in_every_layout() {
    for &shape in SHAPES {
        for layout in layouts() {
            for accumulate in [false, true] {
                let case = Case::new(shape, layout, accumulate);
                let result = case.run(&mut cpu(2, Isa::best()));
                // Random signs: the rounding error grows with the root of the depth.
                let tolerance = 1e-6 * (shape.1 as f64).sqrt().max(1.0);
                assert_near(&case.reference(), &result, tolerance, &format!("{shape:?} {layout:?}"));
            }
        }
    }
}

#[test]
fn products_have_the_same_bits_on_every_instruction_set_and_thread_count() {
    for &shape in SHAPES {
        for layout in layouts() {
            let case = Case::new(shape, layout, false);
            let expected = case.run(&mut cpu(1, Isa::available()[0]));
            for isa in Isa::available() {
                for threads in 1..=4 {
                    let got = case.run(&mut cpu(threads, isa));
                    assert_bits(&expected, &got, &format!("{} {threads} {shape:?} {layout:?}", isa.name()));
                }
            }
        }
    }
}

/// Random bits as f32 of every size, also subnormal ones, none of which is infinite or no number.
fn of_every_size(seed: u64, count: usize) -> Vec<f32> {
    let mut values = Values::new(seed);
    let mut one = || {
        let exponent = ((values.one() + 1.0) * 75.0) as i32 - 149;
        values.one() * 2.0f32.powi(exponent.max(-126)) * 2.0f32.powi((exponent + 126).min(0))
    };
    (0..count).map(|_| one()).collect()
}

#[test]
fn bf16_products_have_the_same_bits_on_every_instruction_set_and_thread_count() {
    for &shape in SHAPES {
        for layout in layouts().into_iter().filter(|l| l.weight.is_some()) {
            for tiny in [false, true] {
                let mut case = Case::new(shape, layout, false);
                if tiny {
                    case.left = of_every_size(5, case.left.len());
                    let (rows, cols) = case.weight.as_ref().map(|w| (w.rows(), w.cols())).unwrap();
                    case.right = of_every_size(6, rows * cols);
                    case.weight = Some(stored(&case.right, layout.weight.unwrap(), rows, cols, 3));
                }
                let run = |isa, threads| {
                    let mut cpu = cpu(threads, isa);
                    cpu.arithmetic = Arithmetic::Bf16;
                    case.run(&mut cpu)
                };
                let expected = run(Isa::available()[0], 1);
                for isa in Isa::available() {
                    for threads in [1, 2, 4] {
                        let what = format!("{} {threads} {shape:?} {layout:?}", isa.name());
                        assert_bits(&expected, &run(isa, threads), &what);
                    }
                }
            }
        }
    }
}

/// The documented order of bf16 sums, written out: rounded factors, pairs in blocks of 512, the odd one first.
#[test]
fn bf16_products_sum_pairs_in_blocks_of_512() {
    let rounded = |x: f32| {
        let near = half::bf16::from_f32(x).to_f32();
        if near.abs() < 1.0 / 2.0f32.powi(56) { 0.0 } else { near }
    };
    for (shape, small) in [((9, 1301, 50), false), ((1, 1301, 50), false), ((5, 700, 9), true)] {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let layout = Layout { left: false, right: true, weight: Some(element) };
            let mut case = Case::new(shape, layout, false);
            let (m, k, n) = shape;
            if small {
                case.left = of_every_size(7, m * k);
                case.right = of_every_size(8, k * n);
                case.weight = Some(stored(&case.right, element, n, k, 1));
            }
            let mut cpu = cpu(2, Isa::best());
            cpu.arithmetic = Arithmetic::Bf16;
            let result = case.run(&mut cpu);
            let weights = widened(case.weight.as_ref().unwrap());
            let product = |i: usize, j: usize, l: usize, sum: f32| match l < k {
                true => rounded(case.left[i * k + l]).mul_add(rounded(weights[j * k + l] as f32), sum),
                false => sum,
            };
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let mut sum = 0.0f32;
                for first in (0..k).step_by(512) {
                    let pairs = (first..k.min(first + 512)).step_by(2);
                    sum += pairs.fold(0.0, |s, even| product(i, j, even, product(i, j, even + 1, s)));
                }
                let at = i * (n + 2 * MARGIN) + MARGIN + j;
                let expected = sum * 0.5 + case.bias[j] + case.residual[at];
                assert_eq!(expected.to_bits(), result[at].to_bits(), "{element:?} row {i} column {j}");
            }
        }
    }
}

/// The documented order of sums, written out.
#[test]
fn products_sum_in_blocks_of_256_with_fused_multiply_add() {
    let case = Case::new((9, 700, 50), Layout { left: false, right: true, weight: None }, false);
    let result = case.run(&mut cpu(2, Isa::best()));
    let (m, k, n) = case.shape;
    for i in 0..m {
        for j in 0..n {
            let mut sum = 0.0f32;
            for first in (0..k).step_by(256) {
                let block = (first..k.min(first + 256))
                    .fold(0.0f32, |s, l| case.left[i * k + l].mul_add(case.right[j * k + l], s));
                sum += block;
            }
            let at = i * (n + 2 * MARGIN) + MARGIN + j;
            let expected = sum * 0.5 + case.bias[j] + case.residual[at];
            assert_eq!(expected.to_bits(), result[at].to_bits(), "row {i} column {j}");
        }
    }
}

#[test]
#[should_panic(expected = "right factor too short")]
fn a_short_operand_is_refused() {
    let (left, right) = (vec![1.0; 64], vec![1.0; 63]);
    let terms = vec![Term { left: 0, first: 0, depth: 8, right: Right::transposed(&right, 8) }];
    let outputs = [Output { column: 0, columns: 8, terms, scale: 1.0, bias: None }];
    let lefts = [Left::new(&left, 8)];
    let p = Product {
        rows: 8,
        lefts: &lefts,
        outputs: &outputs,
        residual: None,
        accumulate: false,
        rounds: false,
    };
    let mut cpu = cpu(1, Isa::best());
    let (mut engine, _, _) = cpu.engine(&[], &[]);
    engine.multiply(&p, &mut [0.0; 64], 8);
}
