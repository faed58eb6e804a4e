//! Speed of the CPU device's matrix products on the shapes of Qwen2.5-0.5B, beside the fused multiply-adds
//! per second that the same threads reach without memory. One JSON line per shape.
//!
//! `cargo bench --bench matmul -- [threads] [tokens]`

use qwentune::device::cpu::Cpu;
use qwentune::device::cpu::matmul::{Left, Output, Product, Right, Term};
use qwentune::device::{Matrix, Planner};
use qwentune::element::Element;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let threads = numbers.first().copied();
    let tokens = numbers.get(1).copied().unwrap_or(512);
    let mut cpu = Cpu::new(&Planner::new(Cpu::CAPABILITIES), threads).expect("a pool of threads");
    let peak = peak(&mut cpu);
    println!("{{\"isa\":\"{}\",\"peak_gflops\":{peak:.1}}}", cpu.isa.name());
    let vocabulary = 151_936;
    for (name, input, output) in [
        ("q,o", 896, 896),
        ("k,v", 896, 128),
        ("gate,up", 896, 4864),
        ("down", 4864, 896),
        ("head", 896, vocabulary),
        ("tiny", 64, 192),
        ("lora A", 896, 8),
        ("lora B", 8, 4864),
    ] {
        let rows = if output == vocabulary { tokens.min(128) } else { tokens };
        let weight = weight(input, output);
        let forward = measure(&mut cpu, &weight, rows, true);
        let backward = measure(&mut cpu, &weight, rows, false);
        for (direction, gflops) in [("forward", forward), ("dx", backward)] {
            println!(
                "{{\"layer\":\"{name}\",\"direction\":\"{direction}\",\"rows\":{rows},\"in\":{input},\
                 \"out\":{output},\"gflops\":{gflops:.1},\"of_peak\":{:.3}}}",
                gflops / peak
            );
        }
    }
}

/// Pseudo-random bf16 values of about 1.
fn weight(input: usize, output: usize) -> Matrix {
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(input * output * 2);
    for _ in 0..input * output {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(&(0x3f00 | (state >> 16) as u16 & 0x80ff).to_le_bytes());
    }
    Matrix::new(Arc::new(bytes), 0, Element::Bf16, output, input)
}

/// Best GFLOP/s of `x·Wᵀ` (forward) or `dy·W`.
fn measure(cpu: &mut Cpu, weight: &Matrix, rows: usize, forward: bool) -> f64 {
    let (depth, columns) =
        if forward { (weight.cols(), weight.rows()) } else { (weight.rows(), weight.cols()) };
    let left: Vec<f32> = (0..rows * depth).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut result = vec![0.0; rows * columns];
    let flops = 2.0 * rows as f64 * depth as f64 * columns as f64;
    let (mut engine, _, _) = cpu.engine(&[], &[]);
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    let mut runs = 0;
    while runs < 2 || begin.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        // As the loss does it: the vocabulary in ranges, so that the packed left factor stays small.
        let range = if depth > 8192 { 4096 } else { depth };
        for first in (0..depth).step_by(range) {
            let depth = range.min(depth - first);
            let slice = if forward { weight.clone() } else { weight.row_range(first, depth) };
            let right = if forward { Right::weight_transposed(&slice) } else { Right::weight(&slice) };
            let terms = vec![Term { left: 0, first: 0, depth, right }];
            let outputs = [Output { column: 0, columns, terms, scale: 1.0, bias: None }];
            let lefts = [Left::new(&left[first..], left.len() / rows)];
            let p = Product {
                rows,
                lefts: &lefts,
                outputs: &outputs,
                residual: None,
                accumulate: first > 0,
                rounds: false,
            };
            engine.multiply(&p, &mut result, columns);
        }
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    black_box(&result);
    flops / best / 1e9
}

/// GFLOP/s of independent fused multiply-adds in registers, on all threads.
fn peak(cpu: &mut Cpu) -> f64 {
    const TIMES: usize = 20_000_000;
    let isa = cpu.isa;
    // Twelve vectors.
    let count = if isa.name() == "avx512" { 192 } else { 96 };
    let (engine, _, _) = cpu.engine(&[], &[]);
    let threads = engine.threads.count();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        engine.threads.on_all(|| {
            black_box(match count {
                192 => isa.run(
                    #[inline(always)]
                    || chains::<192>(black_box(0.5), TIMES),
                ),
                _ => isa.run(
                    #[inline(always)]
                    || chains::<96>(black_box(0.5), TIMES),
                ),
            });
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (2 * TIMES * count * threads) as f64 / best / 1e9
}

/// `N` independent sums.
#[inline(always)]
fn chains<const N: usize>(x: f32, times: usize) -> f32 {
    let mut sums = [1.0f32; N];
    for _ in 0..times {
        for s in &mut sums {
            *s = s.mul_add(x, x);
        }
    }
    sums.iter().sum()
}
