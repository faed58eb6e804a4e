//! Model folders as they come: every family's config and tensor names, the weights' map, and what is refused.

use qwentune::formats::weight_map::WeightMap;
use qwentune::formats::{json, peft};
use qwentune::model::names;
use qwentune::model::spec::{self, Spec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/train");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 8);
    cases
}

/// Every tensor a model of `spec` stores, with its shape.
fn expected_tensors(spec: &Spec) -> BTreeMap<String, Vec<usize>> {
    let mut all = BTreeMap::new();
    let top = names::top(spec);
    all.insert(top.embedding, vec![spec.vocab, spec.hidden]);
    all.insert(top.head, vec![spec.vocab, spec.hidden]);
    all.insert(top.norm, vec![spec.hidden]);
    for layer in 0..spec.layers {
        let block = names::block(spec, layer);
        all.insert(block.attention_norm.clone(), vec![spec.hidden]);
        all.insert(block.mlp_norm.clone(), vec![spec.hidden]);
        for name in block.qk_norm.iter().flatten() {
            all.insert(name.clone(), vec![spec.head_dim]);
        }
        for linear in block.linears() {
            all.insert(format!("{}.weight", linear.module), linear.shape.to_vec());
            if linear.bias {
                all.insert(format!("{}.bias", linear.module), vec![linear.shape[0]]);
            }
        }
    }
    all
}

#[test]
fn names_and_shapes_are_those_transformers_wrote() {
    for case in golden() {
        let spec = spec::read(&case.join("model")).unwrap();
        let map = WeightMap::open(&case.join("model")).unwrap();
        let expected = expected_tensors(&spec);
        let found: BTreeMap<_, _> =
            map.names().into_iter().map(|n| (n.clone(), map.get(&n).unwrap().shape)).collect();
        for (name, shape) in &expected {
            assert_eq!(found.get(name), Some(shape), "{name} of {}", case.display());
        }
        let extra: Vec<_> = found.keys().filter(|n| !expected.contains_key(*n)).collect();
        assert!(
            extra.is_empty() || (spec.tied && extra == [names::STORED_HEAD]),
            "{extra:?} of {}",
            case.display()
        );
        let elements: usize = expected.values().map(|s| s.iter().product::<usize>()).sum();
        assert_eq!(elements as u64, spec.parameter_count(), "{}", case.display());
        for name in map.names() {
            assert_eq!(WeightMap::non_finite(&map.get(&name).unwrap()), 0);
        }
    }
}

#[test]
fn adapters_of_peft_are_read_and_written_to_the_same_bytes() {
    for case in golden() {
        for part in ["init", "final"] {
            let folder = case.join(part);
            let adapter = peft::read(&folder).unwrap();
            let out = crate::scratch::folder();
            peft::write(out.path(), &adapter).unwrap();
            let same = |file: &str| {
                std::fs::read(folder.join(file)).unwrap() == std::fs::read(out.join(file)).unwrap()
            };
            assert!(same("adapter_model.safetensors"), "{}", folder.display());
            assert_eq!(
                json::read_object(&folder.join("adapter_config.json"), 1 << 20).unwrap(),
                json::read_object(&out.join("adapter_config.json"), 1 << 20).unwrap(),
                "{}",
                folder.display()
            );
            assert_eq!(peft::read(out.path()).unwrap(), adapter);
        }
    }
}
