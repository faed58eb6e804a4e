//! Launch code and kernels know the same things: parameter structs, kernels and the families they are compiled in.

use super::library::Library;
use qwentune::device::cuda::Parameters;
use qwentune::ops::{
    KERNELS, adamw, attention, decode_attention, linear, loss, reduce, rmsnorm, rope, rows, swiglu,
};
use std::collections::BTreeSet;

/// Names of the lines of one kind.
fn names(kind: &str) -> BTreeSet<&'static str> {
    let lines = Library::get().symbols().lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(k, _)| *k == kind).filter_map(|(_, rest)| rest.split(' ').next()).collect()
}

#[test]
fn parameter_structs_are_the_same_in_both_languages() {
    let mut checked = BTreeSet::from(["ProbeParams"]);
    let mut check = |name: &'static str, bytes: usize, fields: &[(&str, usize)]| {
        let fields: Vec<String> = fields.iter().map(|(name, offset)| format!("{name} {offset}")).collect();
        let line = format!("params {name} {bytes} {}", fields.join(" "));
        assert!(Library::get().symbols().lines().any(|l| l == line), "no such line: {line}");
        checked.insert(name);
    };
    macro_rules! check {
        ($($name:ty),* $(,)?) => { $(check(<$name>::NAME, size_of::<$name>(), <$name>::FIELDS);)* };
    }
    check!(
        adamw::cuda::AdamWParams,
        attention::cuda::AttentionForward,
        attention::cuda::AttentionBackward,
        decode_attention::cuda::DecodeParams,
        linear::cuda::Term,
        linear::cuda::Output,
        linear::cuda::LinearParams,
        linear::cuda::DropParams,
        linear::cuda::PackParams,
        linear::cuda::GradientJob,
        linear::cuda::GradientParams,
        loss::cuda::LossParams,
        reduce::cuda::SumParams,
        rmsnorm::cuda::RmsNormForward,
        rmsnorm::cuda::RmsNormBackward,
        rope::cuda::RopeParams,
        rows::cuda::RowsParams,
        swiglu::cuda::SwigluParams,
    );
    assert_eq!(names("params"), checked, "structs of one side only");
}

#[test]
fn every_kernel_is_launched_and_stands_in_the_source_of_its_family() {
    let ours: BTreeSet<&str> = KERNELS.iter().flat_map(|family| family.kernels).copied().collect();
    let theirs: BTreeSet<&str> =
        names("kernel").into_iter().filter(|name| !name.starts_with("probe_")).collect();
    assert_eq!(theirs, ours, "kernels of one side only");
    for family in KERNELS {
        let path = format!("{}/kernels/op/{}.cu", env!("CARGO_MANIFEST_DIR"), family.image);
        let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        for kernel in family.kernels {
            assert!(source.contains(&format!(" {kernel}, ")), "{kernel} is not in {path}");
        }
    }
}
