//! The launches of a training step beside those of the operations it is made of: what the operations' cases of a model ask
//! for is what the product does. `tools/kernels/count --model` sees a whole model through it: with `QT_VIEW` the launches of
//! that model's operations are counted, into the file that `QT_COUNTS` names.

use super::driver::{Counting, Emulated, Listed, listed};
use qwentune::bench::workload::{self, Options, Source};
use qwentune::config::{DeviceChoice, Dtype, Recompute};
use qwentune::device::cuda::Cuda;
use qwentune::device::cuda::driver::Driver;
use qwentune::device::{Device, Devices, Indices};
use qwentune::error::Result;
use qwentune::ops::check::{Call, Rig, Shape, described};
use qwentune::ops::{OPERATIONS, kernels};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;

fn lists(_: u32) -> Result<Box<dyn Driver>> {
    Ok(Box::new(Emulated::that_counts(Counting::Listed)))
}

/// A model of so many layers, for a device that lists.
fn options(shape: &str, tokens: usize, rank: usize, layers: Option<usize>) -> Options {
    Options {
        workload: "train".into(),
        models: vec![Source::Shape(shape.into())],
        tokens: vec![tokens],
        ranks: vec![rank],
        dtypes: vec![Dtype::Auto],
        recomputes: vec![Recompute::None],
        threads: vec![None],
        graphs: vec![false],
        layers,
        operations: Vec::new(),
        device: DeviceChoice::Cuda(0),
        devices: Devices { probe: |_| Ok(()), open: lists },
        folder: None,
    }
}

/// How often a training step of `layers` layers does the call; 0 for what it does not, or in another size.
fn times(operation: &str, call: &str, layers: usize) -> usize {
    match (operation, call) {
        // What the backward pass makes again: normed rows, turned queries and keys, the MLP's inner rows.
        ("rope" | "swiglu", "forward") | ("rmsnorm", "recompute") => 2 * layers,
        ("attention" | "rope" | "swiglu", _) | ("linear", "forward" | "backward") => layers,
        ("rmsnorm", _) => 2 * layers + 1,
        ("loss", "forward and backward") | ("adamw" | "embedding", _) | ("reduce", "sum of squares") => 1,
        _ => 0,
    }
}

/// Calls `each` with every call of the model's operations that a step does, on a device of its own.
fn parts(
    shape: &Shape,
    counting: Counting,
    mut each: impl FnMut(&'static str, &str, &Call, &mut dyn FnMut()),
) {
    for operation in OPERATIONS {
        for case in (operation.in_model)(shape) {
            let rig = Rig::to_measure(&*case, Cuda::CAPABILITIES);
            let driver = Box::new(Emulated::that_counts(counting));
            let mut device = Device::Cuda(Box::new(Cuda::new(driver, rig.plan(), &kernels()).unwrap()));
            let mut seen = Vec::new();
            for call in rig.calls() {
                if times(operation.name, call.name, 1) == 0 || seen.contains(&call.name) {
                    continue;
                }
                seen.push(call.name);
                let mut run = || {
                    let done = |device: &mut Device, lists: &[Indices<'_>]| call.run(device, lists);
                    rig.with_lists(&mut device, done).unwrap();
                };
                each(operation.name, &described(&*case), call, &mut run);
            }
        }
    }
}

fn counted(launches: Vec<Listed>, times: usize, into: &mut BTreeMap<Listed, i64>) {
    launches.into_iter().for_each(|launch| *into.entry(launch).or_default() += times as i64);
}

/// The launches of a step of the model.
fn step(options: &Options) -> Vec<Listed> {
    let case = workload::cases(options).unwrap().remove(0);
    let mut built = case.build().unwrap().remove(0);
    listed();
    built.pass().unwrap();
    listed()
}

/// Launches that a step has more often than its parts, by kernel; fewer: below zero.
fn difference(options: &Options) -> BTreeMap<String, i64> {
    let case = workload::cases(options).unwrap().remove(0);
    let (shape, layers) = (case.shape(Cuda::CAPABILITIES).unwrap(), options.layers.unwrap());
    let mut all = BTreeMap::new();
    listed();
    parts(&shape, Counting::Listed, |operation, _, call, run| {
        run();
        counted(listed(), times(operation, call.name, layers), &mut all);
    });
    for count in all.values_mut() {
        *count = -*count;
    }
    counted(step(options), 1, &mut all);
    let mut by_kernel = BTreeMap::new();
    for (launch, count) in all.into_iter().filter(|(_, count)| *count != 0) {
        *by_kernel.entry(launch.kernel).or_default() += count;
    }
    by_kernel
}

/// Beside its operations a step packs all adapters at once, moves the scored rows and adds their losses up, has a little fewer of
/// them than tokens, and leaves out what lies below the first adapters: one gradient of an input, and one norm's.
#[test]
fn a_step_is_made_of_its_operations() {
    let wanted = [
        ("adapters_pack", 1),
        ("linear_nn_256", -1),
        ("loss_rows", 0),
        ("rmsnorm_backward", -1),
        ("rows_gather", 1),
        ("rows_scatter", 1),
        ("sum", 1),
    ];
    let wanted: BTreeMap<String, i64> = wanted.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    assert_eq!(difference(&options("tiny", 64, 16, Some(2))), wanted);
    assert_eq!(difference(&options("tiny", 96, 8, Some(3))), wanted);
}

/// Recorded work is the same work: a benchmark without it has the same digest.
#[test]
fn steps_with_and_without_recorded_work_have_the_same_digest() {
    let devices = super::selftest::devices::<0>();
    let digest = |graphs| {
        let options = Options { devices, graphs: vec![graphs], ..options("tiny", 24, 8, Some(1)) };
        let case = workload::cases(&options).unwrap().remove(0);
        case.build().unwrap().remove(0).digest().unwrap()
    };
    assert_eq!(digest(true), digest(false));
}

/// Adds a line to the file of the counts.
fn write(line: &Value) {
    let path = std::env::var("QT_COUNTS").expect("QT_COUNTS names a file");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

/// `QT_VIEW`: shape, tokens, rank and layers, separated by commas.
#[test]
fn counts_of_a_model() {
    let asked = std::env::var("QT_VIEW").unwrap_or_else(|_| "tiny,64,16,2".into());
    let words: Vec<&str> = asked.split(',').collect();
    let number = |at: usize| words[at].parse::<usize>().unwrap();
    let case = workload::cases(&options(words[0], number(1), number(2), Some(number(3)))).unwrap().remove(0);
    let shape = case.shape(Cuda::CAPABILITIES).unwrap();
    // Logits are as many as the vocabulary: two smaller ones give the counts of any.
    let counting = std::env::var_os("QT_VIEW").is_some();
    let vocabularies = if counting { vec![shape.vocab, 1280, 2304] } else { vec![shape.vocab] };
    let kind = if counting { Counting::Run } else { Counting::Listed };
    let mut parts_seen = 0;
    for vocab in vocabularies {
        let small = Shape { vocab, ..shape };
        parts(&small, kind, |operation, case, call, run| {
            let of_vocab = operation == "loss";
            if (of_vocab && counting) == (vocab == shape.vocab) {
                return;
            }
            parts_seen += 1;
            if counting {
                let bytes = call.cost.bytes(Cuda::CAPABILITIES);
                let (vocab, all) = if of_vocab { (vocab, shape.vocab) } else { (1, 1) };
                write(&json!({"part": {
                    "operation": operation, "call": call.name, "case": case, "flops": call.cost.flops, "bytes": bytes,
                    "times": times(operation, call.name, number(3)), "vocab": vocab, "of_vocab": all,
                }}));
            }
            run();
        });
    }
    assert!(parts_seen > 15, "only {parts_seen} parts");
}
