//! One call of every operation on a small model's shapes, on one thread with AVX2, in each arithmetic that it has: what
//! `tools/cpu/count` runs under valgrind to count instructions. Prints a line for each call, in order.

use qwentune::device::cpu::{Arithmetic, Cpu, Isa};
use qwentune::device::{Device, Indices};
use qwentune::ops::OPERATIONS;
use qwentune::ops::check::{Call, Rig, Shape};

/// Products meet a whole block of k and the rest of another, whole tiles and the rest of one.
const SHAPE: Shape = Shape {
    tokens: 52,
    row: 52,
    chunk: 52,
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    intermediate: 320,
    vocab: 600,
    rank: 8,
    layers: 1,
    head_norm: true,
};

/// Operations with products by frozen weights.
const MULTIPLIES: [&str; 3] = ["linear", "logits", "loss"];

/// What is counted: the script knows it by its name.
#[inline(never)]
fn counted_call(call: &Call, dev: &mut Device, lists: &[Indices<'_>]) {
    call.run(dev, lists).expect("the CPU");
}

fn main() {
    let isa = Isa::available().into_iter().find(|isa| isa.name() == "avx2").expect("a processor with AVX2");
    for operation in OPERATIONS {
        let both = MULTIPLIES.contains(&operation.name);
        let arithmetics: &[Arithmetic] =
            if both { &[Arithmetic::F32, Arithmetic::Bf16] } else { &[Arithmetic::F32] };
        for case in (operation.in_model)(&SHAPE) {
            for arithmetic in arithmetics {
                let rig = Rig::to_measure(&*case, Cpu::capabilities_in(*arithmetic));
                let mut cpu = Cpu::new(rig.plan(), Some(1)).expect("a device");
                (cpu.isa, cpu.arithmetic) = (isa, *arithmetic);
                let mut dev = Device::Cpu(cpu);
                rig.load(&mut dev).expect("the CPU");
                for call in rig.calls() {
                    println!("{}\t{}\t{}\t{case:?}", operation.name, call.name, arithmetic.name());
                    let counted = |dev: &mut Device, lists: &[Indices<'_>]| {
                        counted_call(call, dev, lists);
                        Ok(())
                    };
                    rig.reset(&mut dev).expect("the CPU");
                    rig.with_lists(&mut dev, counted).expect("the CPU");
                }
            }
        }
    }
}
