//! Launch code and kernels know the same things: parameter structs, threads, shared memory, constants; and no kernel is
//! without its place in the registry and its case there.

use super::driver::{Emulated, launched};
use super::library::Library;
use qwentune::device::cuda::{AnyKernel, Cuda};
use qwentune::device::{Device, cuda::parameters::Layout};
use qwentune::ops::check::Rig;
use qwentune::ops::{OPERATIONS, kernels};
use std::collections::{BTreeMap, BTreeSet};

/// What follows the kind in the library's lines of one kind; those of the tests' own kernels are left out.
fn lines(kind: &str) -> Vec<Vec<&'static str>> {
    let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
    let all = Library::get().symbols().lines().map(words).filter(|words| words[0] == kind);
    let own = |words: &Vec<&str>| !words[1].starts_with("probe_") && words[1] != "ProbeParams";
    all.filter(own).map(|words| words[1..].to_vec()).collect()
}

#[test]
fn parameter_structs_are_the_same_in_both_languages() {
    let ours: BTreeSet<String> = kernels()
        .into_iter()
        .flat_map(AnyKernel::parameters)
        .map(|Layout { name, bytes, fields }| {
            let fields: Vec<String> =
                fields.iter().map(|(name, offset)| format!("{name} {offset}")).collect();
            format!("{name} {bytes} {}", fields.join(" "))
        })
        .collect();
    let theirs: BTreeSet<String> = lines("params").iter().map(|words| words.join(" ")).collect();
    assert_eq!(ours, theirs);
}

#[test]
fn every_kernel_is_registered_with_its_threads_and_parameters() {
    let of =
        |k: &dyn AnyKernel| vec![k.name().to_owned(), k.threads().to_string(), k.parameters()[0].name.into()];
    let ours: BTreeSet<Vec<String>> = kernels().into_iter().map(of).collect();
    assert_eq!(ours.len(), kernels().len(), "a kernel is registered twice");
    let theirs: BTreeSet<Vec<String>> =
        lines("kernel").iter().map(|words| words.iter().map(|w| (*w).to_owned()).collect()).collect();
    assert_eq!(ours, theirs, "kernels of the registry and of the sources");
}

#[test]
fn numbers_that_both_sides_have_are_the_same() {
    let ours: BTreeSet<Vec<String>> = OPERATIONS
        .iter()
        .flat_map(|operation| operation.kernels.shared)
        .map(|(source, name, value)| vec![(*source).to_owned(), (*name).to_owned(), value.to_string()])
        .collect();
    let theirs: BTreeSet<Vec<String>> =
        lines("constant").iter().map(|words| words.iter().map(|w| (*w).to_owned()).collect()).collect();
    assert_eq!(ours, theirs);
}

/// An operation's folder, its kernels' sources and its place in the registry have one name.
#[test]
fn an_operation_has_one_name() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops");
    let folders =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: BTreeSet<String> =
        folders.filter(|name| !["mod.rs", "check"].contains(&name.as_str())).collect();
    let registered: BTreeSet<String> = OPERATIONS.iter().map(|operation| operation.name.into()).collect();
    assert_eq!(folders, registered, "folders of operations and the registry");
    let mut sources = BTreeSet::new();
    for operation in OPERATIONS {
        for kernel in operation.kernels.kernels {
            let (name, image) = (operation.name, kernel.image());
            assert!(
                image == name || image.starts_with(&format!("{name}_")),
                "{} lies in {image}",
                kernel.name()
            );
            let path = format!("{}/kernels/op/{image}.cu", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert!(source.contains(&format!(" {}, ", kernel.name())), "{} is not in {path}", kernel.name());
            sources.insert(format!("{image}.cu"));
        }
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/op")).unwrap();
    let files: BTreeSet<String> = files.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, sources, "sources and those that have kernels");
}

/// Each kernel is launched by a case of its own operation, and uses the shared memory that its launch gives, all of it.
#[test]
fn every_kernel_has_a_case_and_the_shared_memory_it_uses() {
    for operation in OPERATIONS {
        let mut missing: BTreeMap<&str, u32> =
            operation.kernels.kernels.iter().map(|k| (k.name(), k.shared_bytes())).collect();
        for case in (operation.cases)().iter().filter(|case| case.runs_on(Cuda::CAPABILITIES)) {
            let rig = Rig::new(&**case, Cuda::CAPABILITIES);
            let cuda = Cuda::new(Box::new(Emulated::new(0)), rig.plan(), &kernels()).unwrap();
            let mut dev = Device::Cuda(Box::new(cuda));
            rig.load(&mut dev).unwrap();
            rig.run(&mut dev).unwrap();
            for name in launched() {
                let Some(given) = missing.remove(name.as_str()) else { continue };
                assert_eq!(Library::get().shared_bytes(&name), given as usize, "shared memory of {name}");
            }
            if missing.is_empty() {
                break;
            }
        }
        assert!(missing.is_empty(), "{}: no case launches {:?}", operation.name, missing.keys());
    }
}
