//! Every operation on the CPU, on its own table of cases: right against its f64 form, which is itself checked against
//! numerical derivatives; the same bits for every number of threads and every instruction set; and what a table of cases
//! can't show of single operations.

mod attention;
mod decode;
mod elementwise;
mod linear;
mod norm_rope;
pub mod rig;
mod state;

use qwentune::device::cpu::{Cpu, Isa, Rounding};
use qwentune::device::{Capabilities, Region, Storage};
use qwentune::element::Element;
use qwentune::ops::check::{Case, Finding, Operation, Rig, Shape};
use qwentune::ops::{OPERATIONS, rows};
use std::collections::BTreeSet;

/// All regions of a case are one allocation, whose inner borders no tool knows.
#[test]
fn what_is_written_beside_the_operands_is_noticed() {
    for beyond in [0, 1] {
        let case = rig::single(move |rig| {
            let region = rig.space(Storage::F32, 64);
            rig.call("zero", Default::default(), move |dev, _| {
                rows::zero(dev, Region { len: region.len + beyond, ..region });
                Ok(())
            });
        });
        let rig = Rig::new(&case, Cpu::CAPABILITIES);
        let done = rig.run(&mut rig::device(&rig, 1, Isa::best(), Rounding::None));
        assert_eq!(done.is_err(), beyond > 0, "{beyond} elements beyond a region");
    }
}

fn each_case(f: impl Fn(&str, &Operation, &dyn Case)) {
    for operation in OPERATIONS {
        let cases = (operation.cases)();
        assert!(!cases.is_empty(), "{} has no case", operation.name);
        for case in cases {
            assert!(case.runs_on(Cpu::CAPABILITIES), "the CPU takes every case");
            f(&format!("{}, {case:?}", operation.name), operation, &*case);
        }
    }
}

fn assert_right(what: &str, findings: &[Finding]) {
    assert!(!findings.is_empty(), "{what}: nothing is compared");
    for found in findings {
        assert!(found.error <= found.limit, "{what}: {} is off by {}", found.name, found.error);
    }
}

#[test]
fn every_case_is_right_whatever_the_threads_and_instructions() {
    each_case(|what, _, case| {
        let rig = Rig::new(case, Cpu::CAPABILITIES);
        let got = rig::run(what, &rig);
        assert_right(what, &rig.judge(&got, false));
    });
}

/// With bf16 rounding asked for, activations are stored as bf16 values and statistics stay f32.
#[test]
fn stored_activations_are_rounded_where_asked() {
    let mut statistics = BTreeSet::new();
    for operation in OPERATIONS {
        for case in (operation.cases)() {
            let rig = Rig::new(&*case, Cpu::CAPABILITIES);
            let mut dev = rig::device(&rig, 2, Isa::best(), Rounding::Bf16);
            let got = rig.run(&mut dev).expect("the CPU");
            let what = format!("{}, {case:?}, rounded", operation.name);
            assert_right(&what, &rig.judge(&got, true));
            for (region, values) in rig.results().iter().zip(&got.regions) {
                let rounded = values.iter().all(|v| v.to_bits() & 0xffff == 0);
                assert!(rounded || region.storage != Storage::Activation, "{what}: {region:?} is not bf16");
                if region.storage == Storage::F32 && !rounded {
                    statistics.insert(operation.name);
                }
            }
        }
    }
    let kept = ["adamw", "attention", "linear", "logits", "loss", "rmsnorm"];
    assert_eq!(statistics, BTreeSet::from(kept), "operations whose f32 results are not rounded");
}

#[test]
fn gradients_of_the_f64_forms_match_finite_differences() {
    let mut differentiated = BTreeSet::new();
    for operation in OPERATIONS {
        for case in (operation.cases)() {
            for (name, derivative) in Rig::new(&*case, Cpu::CAPABILITIES).derivatives() {
                rig::check_gradient(&format!("{} of {}, {case:?}", name, operation.name), &derivative);
                differentiated.insert((operation.name, name));
            }
        }
    }
    let all = [
        ("attention", "dqk"),
        ("attention", "dv"),
        ("linear", "dA"),
        ("linear", "dB"),
        ("linear", "dx"),
        ("loss", "dx"),
        ("rmsnorm", "dx"),
        ("rope", "dqkv"),
        ("swiglu", "dx"),
    ];
    assert_eq!(differentiated, BTreeSet::from(all));
}

/// What benchmarks measure: each operation has the cases of a model, whose calls run and say what they cost.
#[test]
fn every_operation_has_its_part_of_a_model() {
    let shape = Shape {
        tokens: 24,
        row: 12,
        chunk: 10,
        hidden: 64,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        intermediate: 96,
        vocab: 160,
        rank: 8,
        layers: 1,
        head_norm: true,
    };
    for operation in OPERATIONS {
        let cases = (operation.in_model)(&shape);
        assert!(!cases.is_empty(), "{} has no part in a model", operation.name);
        for case in cases {
            let rig = Rig::to_measure(&*case, Cpu::CAPABILITIES);
            let mut dev = rig::device(&rig, 1, Isa::best(), Rounding::None);
            rig.run(&mut dev).expect("the CPU");
            for call in rig.calls() {
                let cost = call.cost;
                assert!(cost.bytes(Cpu::CAPABILITIES) > 0, "{} {} moves nothing", operation.name, call.name);
                let halved = Capabilities { activation: Element::Bf16, ..*Cpu::CAPABILITIES };
                assert!(cost.bytes(&halved) <= cost.bytes(Cpu::CAPABILITIES), "{}", operation.name);
            }
        }
    }
}
