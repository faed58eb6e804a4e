//! What the tests of single operations share: the operations' rig on every variant of the CPU.

use qwentune::device::Device;
use qwentune::device::cpu::{Cpu, Isa, Rounding};
use qwentune::ops::check::{Case, Derivative, Results, Rig};
use qwentune::philox::{Stream, uniform};

/// A device for the rig.
pub fn device(rig: &Rig, threads: usize, isa: Isa, rounding: Rounding) -> Device {
    let mut cpu = Cpu::new(rig.plan(), Some(threads)).expect("a device");
    (cpu.isa, cpu.rounding) = (isa, rounding);
    let mut dev = Device::Cpu(cpu);
    rig.load(&mut dev).expect("the CPU");
    dev
}

/// The results, which are the same bits on every variant of the device.
pub fn run(what: &str, rig: &Rig) -> Results {
    let mut first: Option<Results> = None;
    for isa in Isa::available() {
        for threads in [1, 2, 4] {
            let got = rig.run(&mut device(rig, threads, isa, Rounding::None)).expect("the CPU");
            let first = first.get_or_insert_with(|| got.clone());
            assert!(first.same_bits(&got), "{what}: {} with {threads} threads differs", isa.name());
        }
    }
    first.expect("at least the portable instruction set")
}

/// A case of one test alone.
struct Single<F>(F);

impl<F> std::fmt::Debug for Single<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a single case")
    }
}

impl<F: Fn(&mut Rig)> Case for Single<F> {
    fn set_up(&self, rig: &mut Rig) {
        (self.0)(rig);
    }
}

/// A case that sets its rig up so.
pub fn single(set_up: impl Fn(&mut Rig)) -> impl Case {
    Single(set_up)
}

/// The results of what `set_up` asks for.
pub fn results(set_up: impl Fn(&mut Rig)) -> Vec<Vec<f32>> {
    run("a single case", &Rig::new(&single(set_up), Cpu::CAPABILITIES)).regions
}

/// Sums of four uniform numbers: bounded, and close enough to normal.
pub fn normal(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let draw = |i: u64| uniform(seed, Stream::LoraInit, i);
    let sum = |i: u64| (0..4).map(|j| draw(4 * i + j)).sum::<f64>() - 2.0;
    (0..len as u64).map(|i| (sum(i) * 3.0f64.sqrt()) as f32 * size).collect()
}

/// Checks that a gradient is that of `Σ upper·f(x)` at some elements, by central differences.
pub fn check_gradient(what: &str, d: &Derivative) {
    let value = |x: &[f64]| (d.function)(x).iter().zip(&d.upper).map(|(y, dy)| y * dy).sum::<f64>();
    let rms = (d.gradient.iter().map(|v| v * v).sum::<f64>() / d.gradient.len() as f64).sqrt();
    let scale = d.at.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-6);
    let mut x = d.at.clone();
    for i in (0..x.len()).step_by(x.len() / 37 + 1) {
        let (old, h) = (x[i], scale * 1e-6);
        x[i] = old + h;
        let above = value(&x);
        x[i] = old - h;
        let below = value(&x);
        x[i] = old;
        let (numeric, own) = ((above - below) / (2.0 * h), d.gradient[i]);
        let limit = 1e-5 * (rms + own.abs());
        assert!((numeric - own).abs() <= limit, "{what}: element {i} is {numeric}, the f64 form's {own}");
    }
}
