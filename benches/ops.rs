//! Speed of the CPU device's operations around the matrix products, on the shapes of a layer of Qwen2.5-0.5B.
//! One JSON line per operation: best time, and bytes or floating-point operations per second.
//!
//! `cargo bench --bench ops -- [threads] [tokens]`

use qwentune::device::{Cpu, Device, Indices, Planner, Purpose, Region, Storage};
use qwentune::ops::adamw::{self, AdamW};
use qwentune::ops::attention::{self, Attention, Segment, Segments};
use qwentune::ops::rmsnorm::{self, RmsNorm};
use qwentune::ops::rope::{self, Rope};
use qwentune::ops::{reduce, rows, swiglu};
use std::time::Instant;

const HIDDEN: usize = 896;
const INTERMEDIATE: usize = 4864;
const STATE: usize = 8_800_000;

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let tokens = numbers.get(1).copied().unwrap_or(512);
    let mut bench = Bench { plan: Planner::new(Cpu::CAPABILITIES), threads: numbers.first().copied() };
    attention_and_rope(&mut bench, tokens);
    norm_and_activation(&mut bench, tokens);
    state(&mut bench);
}

struct Bench {
    plan: Planner,
    threads: Option<usize>,
}

impl Bench {
    fn region(&mut self, len: usize) -> Region {
        self.plan.region(Purpose::Workspace, Storage::F32, len)
    }

    /// A device with every planned element between -1 and 1.
    fn device(&self) -> Device {
        let mut cpu = Cpu::new(&self.plan, self.threads).expect("a device");
        let all = Region { storage: Storage::F32, start: 0, len: self.plan.bytes() / 4 };
        let mut state = 1u32;
        for v in cpu.write(all) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *v = (state >> 8) as f32 / 8_388_608.0 - 1.0;
        }
        Device::Cpu(cpu)
    }
}

/// Best time of several runs; `work` in units of 1e9 per run.
fn measure(name: &str, dev: &mut Device, work: f64, unit: &str, op: impl FnMut(&mut Device)) {
    measure_prepared(name, dev, work, unit, |_| {}, op);
}

/// As [`measure`], with something to do before each run that is not timed.
fn measure_prepared(
    name: &str,
    dev: &mut Device,
    work: f64,
    unit: &str,
    prepare: impl Fn(&mut Device),
    mut op: impl FnMut(&mut Device),
) {
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        prepare(dev);
        let begin = Instant::now();
        op(dev);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    println!("{{\"op\":\"{name}\",\"ms\":{:.3},\"{unit}\":{:.1}}}", best * 1e3, work / best);
}

fn attention_and_rope(bench: &mut Bench, tokens: usize) {
    let p = Attention { heads: 14, kv_heads: 2, head_dim: 64, scale: 0.125 };
    let (qk, qkv, attended) = (16 * 64, 18 * 64, 14 * 64);
    let [qk, dqk] = [tokens * qk; 2].map(|n| bench.region(n));
    let [qkv, dqkv] = [tokens * qkv; 2].map(|n| bench.region(n));
    let [out, dout] = [tokens * attended; 2].map(|n| bench.region(n));
    let [lse, delta] = [tokens * 14; 2].map(|n| bench.region(n));
    let table = bench.region(tokens * 64);
    let mut dev = bench.device();
    let list = [Segment { start: 0, len: tokens as u32 }];
    let segments = Segments::host(&list);
    // Two products over the visible half of the scores, then five.
    let product = (tokens * (tokens + 1) * 14 * 64) as f64 / 1e9;
    measure("attention forward", &mut dev, 2.0 * product, "gflops", |dev| {
        attention::forward(dev, &p, &segments, qk, qkv, out, lse);
    });
    measure("attention backward", &mut dev, 5.0 * product, "gflops", |dev| {
        let o = attention::Backward { qk, qkv, out, lse, dout, delta, dqk, dqkv };
        attention::backward(dev, &p, &segments, &o);
    });
    let p = Rope { heads: 14, kv_heads: 2, head_dim: 64, table, norm: None };
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let positions = Indices::host(&positions);
    let bytes = 2.0 * 4.0 * qk.len as f64 / 1e9;
    measure("rope forward", &mut dev, bytes, "gb_per_s", |dev| rope::forward(dev, &p, qkv, positions, qk));
    measure("rope backward", &mut dev, bytes, "gb_per_s", |dev| {
        rope::backward(dev, &p, qkv, positions, dqk, dqkv);
    });
}

fn norm_and_activation(bench: &mut Bench, tokens: usize) {
    let [x, y, dx] = [tokens * HIDDEN; 3].map(|n| bench.region(n));
    let (weight, rstd) = (bench.region(HIDDEN), bench.region(tokens));
    let [gate_up, kept] = [tokens * 2 * INTERMEDIATE; 2].map(|n| bench.region(n));
    let [wide, dwide] = [tokens * INTERMEDIATE; 2].map(|n| bench.region(n));
    let mut dev = bench.device();
    let p = RmsNorm { dim: HIDDEN, eps: 1e-6, weight };
    let gb = |elements: usize| 4.0 * elements as f64 / 1e9;
    measure("rmsnorm forward", &mut dev, gb(2 * x.len), "gb_per_s", |dev| {
        rmsnorm::forward(dev, &p, x, y, rstd);
    });
    measure("rmsnorm backward", &mut dev, gb(4 * x.len), "gb_per_s", |dev| {
        rmsnorm::backward(dev, &p, x, rstd, y, dx);
    });
    measure("swiglu forward", &mut dev, gb(3 * wide.len), "gb_per_s", |dev| {
        swiglu::forward(dev, gate_up, INTERMEDIATE, wide);
    });
    let restore = |dev: &mut Device| rows::copy(dev, kept, gate_up);
    measure_prepared("swiglu backward", &mut dev, gb(5 * wide.len), "gb_per_s", restore, |dev| {
        swiglu::backward(dev, gate_up, INTERMEDIATE, dwide);
    });
}

fn state(bench: &mut Bench) {
    let [params, grads, m, v] = [STATE; 4].map(|n| bench.region(n));
    let mut dev = bench.device();
    let p = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        step: 1,
        grad_scale: 1.0,
    };
    let gb = |arrays: usize| 4.0 * (arrays * STATE) as f64 / 1e9;
    measure("adamw", &mut dev, gb(7), "gb_per_s", |dev| adamw::step(dev, &p, params, grads, m, v));
    measure("sum of squares", &mut dev, gb(1), "gb_per_s", |dev| {
        std::hint::black_box(reduce::sum_of_squares(dev, grads, grads).expect("the CPU"));
    });
}
