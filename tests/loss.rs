//! The fused head: the same bits for any chunk, thread count and instruction set, and the elementary functions it
//! stands on.

use crate::matmul::{Values, assert_bits, stored};
use qwentune::device::cpu::math::{exp, ln};
use qwentune::device::cpu::{Cpu, Isa};
use qwentune::device::{Device, Indices, Matrix, Planner, Purpose, Storage};
use qwentune::element::Element;
use qwentune::ops::loss::{Loss, forward, forward_backward};

/// A head with its inputs.
struct Case {
    head: Matrix,
    targets: Vec<u32>,
    x: Vec<f32>,
}

impl Case {
    /// `spread` stretches the logits.
    fn new(vocab: usize, hidden: usize, rows: usize, spread: f32) -> Self {
        let mut values = Values::new((vocab + rows) as u64);
        let head: Vec<f32> = values.many(vocab * hidden).iter().map(|v| v * spread).collect();
        let target = |v: f32| ((v + 1.0) / 2.0 * vocab as f32) as u32 % vocab as u32;
        Case {
            head: stored(&head, Element::Bf16, vocab, hidden, 1),
            targets: values.many(rows).into_iter().map(target).collect(),
            x: values.many(rows * hidden),
        }
    }

    /// (losses of `forward`, losses of `forward_backward`, dx).
    fn run(&self, chunk: usize, threads: usize, isa: Isa) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let mut planner = Planner::new(Cpu::CAPABILITIES);
        let mut region = |len| planner.region(Purpose::Workspace, Storage::F32, len);
        let (x, dx) = (region(self.x.len()), region(self.x.len()));
        let logits = region(chunk * self.head.rows());
        let losses = region(self.targets.len());
        let mut cpu = Cpu::new(&planner, Some(threads)).unwrap();
        cpu.isa = isa;
        cpu.write(x).copy_from_slice(&self.x);
        cpu.write(dx).fill(f32::NAN);
        let mut dev = Device::Cpu(cpu);
        let p = Loss { head: &self.head, targets: Indices::host(&self.targets), logits, losses };
        forward(&mut dev, &p, x);
        let alone = dev.read(losses).expect("the CPU");
        forward_backward(&mut dev, &p, x, SCALE, dx);
        (alone, dev.read(losses).expect("the CPU"), dev.read(dx).expect("the CPU"))
    }
}

const SCALE: f32 = 0.25;

#[test]
fn bits_do_not_depend_on_chunks_threads_or_instructions() {
    let case = Case::new(4700, 40, 13, 2.0);
    let expected = case.run(13, 1, Isa::available()[0]);
    for isa in Isa::available() {
        for threads in 1..=4 {
            for chunk in [1, 5, 13] {
                let got = case.run(chunk, threads, isa);
                let what = format!("{} {threads} threads, chunk {chunk}", isa.name());
                assert_bits(&expected.0, &got.0, &what);
                assert_bits(&expected.1, &got.1, &what);
                assert_bits(&expected.2, &got.2, &what);
            }
        }
    }
}

#[test]
fn not_a_number_reaches_the_loss() {
    let mut case = Case::new(37, 12, 3, 1.0);
    case.x[12] = f32::NAN;
    let (losses, _, _) = case.run(2, 1, Isa::best());
    assert!(losses[0].is_finite() && losses[1].is_nan() && losses[2].is_finite(), "{losses:?}");
}

#[test]
fn exp_is_within_one_unit_in_the_last_place() {
    let mut x = -87.0f32;
    while x < 88.7 {
        let (got, expected) = (f64::from(exp(x)), libm::exp(f64::from(x)));
        assert!(
            (got - expected).abs() <= expected * f64::from(f32::EPSILON),
            "exp({x}) = {got}, not {expected}"
        );
        x += 0.001_234;
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(200.0), f32::INFINITY);
    assert!(exp(f32::NAN).is_nan());
    // Subnormal results, and gone.
    assert!((f64::from(exp(-100.0)) - libm::exp(-100.0)).abs() < 1e-45);
    assert_eq!(exp(-104.5), 0.0);
}

#[test]
fn ln_is_correctly_rounded() {
    for i in 1..2000 {
        let x = 0.01 * i as f32;
        assert_eq!(ln(x), libm::log(f64::from(x)) as f32);
    }
    assert_eq!(ln(1.0), 0.0);
    assert_eq!(ln(0.0), f32::NEG_INFINITY);
}
