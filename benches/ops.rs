//! Speed of the CPU device's operations on the shapes of a layer of Qwen2.5-0.5B. One JSON line per call: the best time, and
//! what of its least work that is per second.
//!
//! `cargo bench --bench ops -- [threads] [tokens] [operation]`

use qwentune::device::{Cpu, Device};
use qwentune::ops::OPERATIONS;
use qwentune::ops::check::{Call, Rig, Shape};
use std::time::Instant;

/// Times each call is measured.
const TIMES: usize = 10;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let numbers: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let (threads, tokens) = (numbers.first().copied(), numbers.get(1).copied().unwrap_or(512));
    let only = words.iter().find(|word| word.parse::<usize>().is_err());
    let shape = Shape {
        tokens,
        hidden: 896,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        intermediate: 4864,
        vocab: 151_936,
        rank: 16,
        layers: 24,
        head_norm: false,
    };
    for operation in OPERATIONS.iter().filter(|o| only.is_none_or(|name| name == o.name)) {
        for case in (operation.in_model)(&shape) {
            let rig = Rig::to_measure(&*case, Cpu::CAPABILITIES);
            let mut dev = Device::Cpu(Cpu::new(rig.plan(), threads).expect("a device"));
            rig.load(&mut dev).expect("the CPU");
            for call in rig.calls() {
                println!(
                    "{}",
                    line(operation.name, &format!("{case:?}"), call, measure(&rig, &mut dev, call))
                );
            }
        }
    }
}

/// Best time of the call in seconds, on the first values each time.
fn measure(rig: &Rig, dev: &mut Device, call: &Call) -> f64 {
    let once = |dev: &mut Device| {
        rig.reset(dev)?;
        rig.with_lists(dev, |dev, lists| {
            let begin = Instant::now();
            call.run(dev, lists)?;
            Ok(begin.elapsed().as_secs_f64())
        })
    };
    (0..TIMES).map(|_| once(dev).expect("the CPU")).fold(f64::INFINITY, f64::min)
}

fn line(operation: &str, case: &str, call: &Call, seconds: f64) -> String {
    let gigabytes = call.cost.bytes(Cpu::CAPABILITIES) as f64 / 1e9;
    let gflops = match call.cost.flops {
        0.0 => String::new(),
        flops => format!(",\"gflops\":{:.1}", flops / 1e9 / seconds),
    };
    format!(
        "{{\"op\":\"{operation}\",\"call\":\"{}\",\"ms\":{:.3},\"gb_per_s\":{:.1}{gflops},\"case\":{case:?}}}",
        call.name,
        seconds * 1e3,
        gigabytes / seconds
    )
}
