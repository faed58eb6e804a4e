//! `bench`'s workloads: each on a tiny shape, what it says of itself, and the figures beside its samples.

use crate::common::scratch;
use qwentune::bench::conditions::Watch;
use qwentune::bench::report::{Better, Measurement};
use qwentune::bench::workload::{self, Options, Source};
use qwentune::bench::{roofline, sampling};
use qwentune::config::{DeviceChoice, Dtype, Recompute};
use qwentune::device::Devices;
use qwentune::error::Kind;
use std::collections::BTreeSet;

/// Seconds of a result: a warm-up and one sample.
const MOMENT: f64 = 0.001;

fn options(workload: &str) -> Options {
    Options {
        workload: workload.into(),
        models: vec![Source::Shape("tiny".into())],
        tokens: vec![16],
        ranks: vec![4],
        dtypes: vec![Dtype::Auto],
        recomputes: vec![Recompute::Auto],
        threads: vec![Some(1)],
        graphs: vec![true],
        layers: Some(1),
        operations: Vec::new(),
        device: DeviceChoice::Cpu,
        devices: Devices::default(),
        folder: Some(scratch(&format!("bench-{workload}"))),
    }
}

fn measured(options: &Options) -> Vec<Measurement> {
    let watch = Watch { gpu: None };
    let cases = workload::cases(options).unwrap();
    let of_case = |case: &workload::Case| {
        let mut built = case.build().unwrap();
        assert_eq!(built.len(), case.parts().unwrap(), "{case}");
        built
            .iter_mut()
            .map(|one| sampling::measure(one.as_mut(), MOMENT, watch).unwrap())
            .collect::<Vec<_>>()
    };
    cases.iter().flat_map(of_case).collect()
}

fn figure(m: &Measurement, name: &str) -> f64 {
    let value = m.details.get(name).unwrap_or_else(|| panic!("{} has no {name}: {:?}", m.label(), m.details));
    value.as_f64().unwrap()
}

#[test]
fn training_states_its_rates_and_memory() {
    let [m] = <[_; 1]>::try_from(measured(&options("train"))).unwrap();
    assert!(m.median > 0.0 && m.better == Better::Higher && m.digest.is_some());
    // One token of each row has no loss, and no row is padded.
    let padded = figure(&m, "processed_tokens_per_second") / figure(&m, "real_tokens_per_second");
    assert!((padded - 1.0).abs() < 1e-12, "{padded}");
    let scored = figure(&m, "scored_tokens_per_second") / figure(&m, "real_tokens_per_second");
    assert!((scored - 15.0 / 16.0).abs() < 1e-12, "{scored}");
    assert!(figure(&m, "planned_bytes") > 0.0);
    let peak = workload::cases(&options("train")).unwrap()[0].matmul_peak().unwrap().unwrap();
    let share = figure(&m.clone().beside_peak(peak), "of_matmul_peak");
    assert!((share - figure(&m, "tflops_per_second") / peak).abs() < 1e-12 && share > 0.0);
}

#[test]
fn every_operation_is_measured_under_a_label_of_its_own() {
    let all = measured(&options("ops"));
    let labels: BTreeSet<String> = all.iter().map(Measurement::label).collect();
    assert_eq!(labels.len(), all.len(), "two results of one label");
    let operations: BTreeSet<&str> =
        all.iter().map(|m| m.parameters["operation"].as_str().unwrap()).collect();
    // The shape's family has no Gated DeltaNet.
    let other = ["delta_rule", "gated_norm", "output_gate", "short_convolution"];
    let registry = qwentune::ops::OPERATIONS.iter().map(|operation| operation.name);
    let registry: BTreeSet<&str> = registry.filter(|name| !other.contains(name)).collect();
    assert_eq!(operations, registry);
    for m in &all {
        assert!(figure(m, "bytes") > 0.0 && figure(m, "ms") > 0.0 && m.digest.is_some(), "{}", m.label());
        assert!(!m.details.contains_key("bound_ms"), "nothing is known of the least time of a CPU");
    }
    let some = Options { operations: vec!["linear:1".into(), "swiglu".into()], ..options("ops") };
    let calls: Vec<String> = workload::cases(&some).unwrap().iter().map(|case| case.to_string()).collect();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls[0].ends_with("linear:1") && calls[1].ends_with("swiglu:0"), "{calls:?}");
    let wrong = Options { operations: vec!["linnear".into()], ..options("ops") };
    assert_eq!(workload::cases(&wrong).unwrap_err().kind, Kind::Usage);
}

#[test]
fn saves_and_resumes_are_timed_and_leave_nothing() {
    let [step, durable] = <[_; 2]>::try_from(measured(&options("checkpoint"))).unwrap();
    let stall = figure(&step, "stall_seconds");
    assert!((stall - (step.median - figure(&step, "step_seconds"))).abs() < 1e-12);
    assert!(durable.median > 0.0 && figure(&durable, "checkpoint_bytes") > 0.0);
    assert_eq!(step.digest, durable.digest);
    let resume = options("resume");
    let [again] = <[_; 1]>::try_from(measured(&resume)).unwrap();
    assert!(again.median > 0.0 && again.better == Better::Lower);
    let left = std::fs::read_dir(resume.folder.unwrap()).unwrap().count();
    assert_eq!(left, 0, "a folder is left");
}

#[test]
fn lists_are_measured_in_every_combination() {
    let many = Options {
        tokens: vec![8, 16],
        ranks: vec![2, 4],
        threads: vec![Some(1), Some(2)],
        graphs: vec![true, false],
        ..options("train")
    };
    let cases = workload::cases(&many).unwrap();
    let arguments: BTreeSet<Vec<String>> = cases.iter().map(workload::Case::arguments).collect();
    assert_eq!((cases.len(), arguments.len()), (16, 16));
    assert!(arguments.iter().any(|words| words.join(" ").contains("--graphs off")));
}

#[test]
fn the_least_time_on_a_known_gpu_is_that_of_its_slower_unit() {
    let card = roofline::card("NVIDIA H100 80GB HBM3").unwrap();
    assert_eq!(card.name, "H100");
    // 989 TFLOP/s dense bf16 and 3.35 TB/s, as the whitepaper has them; mma.sync reaches a part of the first.
    assert!(
        (card.flops / 989e12 - 0.649).abs() < 0.005 && (card.bytes / 3.352e12 - 1.0).abs() < 1e-9,
        "{card:?}"
    );
    let product = roofline::least(&card, 1e12, 1e6);
    assert_eq!((product.limiter, product.seconds), ("tensor", 1e12 / card.flops));
    let copy = roofline::least(&card, 0.0, 1e9);
    assert_eq!((copy.limiter, copy.seconds), ("DRAM", 1e9 / card.bytes));
    assert_eq!(roofline::card("NVIDIA H100 PCIe"), None);
}
