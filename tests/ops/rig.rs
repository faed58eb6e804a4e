//! What the tests of single operations share: filled regions, runs on every variant of the device, comparison.

use qwentune::device::cpu::Isa;
use qwentune::device::{Cpu, Device, Planner, Purpose, Region, Storage};
use qwentune::philox::{Stream, uniform};

/// Regions with their first values.
pub struct Rig {
    plan: Planner,
    values: Vec<(Region, Vec<f32>)>,
    seed: u64,
}

impl Rig {
    pub fn new(seed: u64) -> Self {
        Rig { plan: Planner::new(Cpu::CAPABILITIES), values: Vec::new(), seed }
    }

    pub fn given(&mut self, values: &[f32]) -> Region {
        let region = self.plan.region(Purpose::Workspace, Storage::F32, values.len());
        self.values.push((region, values.to_vec()));
        region
    }

    /// A region of random values, about normal, with the given deviation.
    pub fn random(&mut self, len: usize, size: f32) -> (Region, Vec<f32>) {
        self.seed += 1;
        let values = normal(self.seed, len, size);
        (self.given(&values), values)
    }

    /// A region to be written: NaN where an operation leaves something out.
    pub fn space(&mut self, len: usize) -> Region {
        self.given(&vec![f32::NAN; len])
    }

    /// A device that holds the values.
    pub fn device(&self, threads: usize, isa: Isa) -> Device {
        let mut cpu = Cpu::new(&self.plan, Some(threads)).expect("a device");
        cpu.isa = isa;
        for (region, values) in &self.values {
            cpu.write(*region).copy_from_slice(values);
        }
        Device::Cpu(cpu)
    }

    /// The results after `op`, which are the same bits on every variant of the device.
    pub fn run(&self, outs: &[Region], op: impl Fn(&mut Device)) -> Vec<Vec<f32>> {
        let mut first: Option<Vec<Vec<f32>>> = None;
        for isa in Isa::available() {
            for threads in [1, 2, 4] {
                let mut dev = self.device(threads, isa);
                op(&mut dev);
                let got: Vec<Vec<f32>> = outs.iter().map(|r| dev.read(*r).expect("the CPU")).collect();
                match &first {
                    None => first = Some(got),
                    Some(first) => {
                        for (a, b) in first.iter().zip(&got) {
                            assert!(same_bits(a, b), "{} with {threads} threads differs", isa.name());
                        }
                    }
                }
            }
        }
        first.expect("at least the portable instruction set")
    }
}

pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Sums of four uniform numbers: bounded, and close enough to normal.
pub fn normal(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let draw = |i: u64| uniform(seed, Stream::LoraInit, i);
    let sum = |i: u64| (0..4).map(|j| draw(4 * i + j)).sum::<f64>() - 2.0;
    (0..len as u64).map(|i| (sum(i) * 3.0f64.sqrt()) as f32 * size).collect()
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// Each element within `tolerance` of the reference, relative to it or to the root mean square of all.
pub fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let limit = tolerance * (rms + w.abs()) + 1e-30;
        assert!((f64::from(*g) - w).abs() <= limit, "{what}[{i}]: {g} instead of {w}");
    }
}

/// Checks that `dx` is the gradient of `Σ dy·f(x)` at some elements, by central differences.
pub fn check_gradient(what: &str, f: impl Fn(&[f64]) -> Vec<f64>, x: &[f64], dy: &[f64], dx: &[f64]) {
    let value = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    let rms = (dx.iter().map(|v| v * v).sum::<f64>() / dx.len() as f64).sqrt();
    let scale = x.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-6);
    let mut x = x.to_vec();
    for i in (0..x.len()).step_by(x.len() / 37 + 1) {
        let (old, h) = (x[i], scale * 1e-6);
        x[i] = old + h;
        let above = value(&x);
        x[i] = old - h;
        let below = value(&x);
        x[i] = old;
        let numeric = (above - below) / (2.0 * h);
        let limit = 1e-5 * (rms + dx[i].abs());
        assert!((numeric - dx[i]).abs() <= limit, "{what}: d/dx[{i}] is {numeric}, reference {}", dx[i]);
    }
}
