//! Adapters: layout, initial values, what is trained and what is not.

use crate::common::{scratch, tiny_settings, train};
use qwentune::config::{Settings, Targets};
use qwentune::formats::peft;
use qwentune::model::{AdapterSpec, Layout, Spec};
use serde_json::Value;
use std::collections::BTreeMap;

fn adapter(rank: usize, targets: Targets) -> AdapterSpec {
    let plain = AdapterSpec::from_settings(&Settings::default());
    AdapterSpec { rank, alpha: 2.0 * rank as f64, targets, ..plain }
}

#[test]
fn adapters_have_the_names_and_shapes_peft_gives_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/peft_keys.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for family in ["qwen", "qwen2", "qwen3"] {
        let folder = scratch(&format!("peft-keys-{family}"));
        std::fs::write(folder.join("config.json"), golden[family]["config"].to_string()).unwrap();
        let spec = Spec::read(&folder).unwrap();
        let rank = golden[family]["adapter_config"]["r"].as_u64().unwrap() as usize;
        let layout = Layout::new(&spec, &adapter(rank, Targets::AllLinear)).unwrap();
        let ours: BTreeMap<String, [usize; 2]> =
            layout.tensors().into_iter().map(|(name, shape, _)| (name, shape)).collect();
        let theirs: BTreeMap<String, [usize; 2]> =
            serde_json::from_value(golden[family]["tensors"].clone()).unwrap();
        assert_eq!(ours, theirs, "{family}");
    }
}

#[test]
fn flat_values_survive_the_way_through_an_adapter_folder() {
    let folder = scratch("adapter-folder");
    let settings = tiny_settings(&folder);
    let spec = Spec::read(&settings.model).unwrap();
    let wanted = adapter(4, Targets::Names(vec!["q_proj".into(), "down_proj".into()]));
    let layout = Layout::new(&spec, &wanted).unwrap();
    assert_eq!(layout.len, 2 * (4 * 32 + 32 * 4 + 4 * 48 + 32 * 4));
    let values: Vec<f32> = (0..layout.len).map(|i| i as f32 * 0.37 - 5.0).collect();
    peft::write(&folder, &layout.to_peft(&wanted, "base", &values)).unwrap();
    let read = peft::read(&folder).unwrap();
    assert_eq!(layout.values_of(&read).unwrap(), values);
    assert_eq!(read.config.target_modules, Targets::Names(vec!["down_proj".into(), "q_proj".into()]));
}

#[test]
fn initial_values_are_those_of_kaiming_uniform_and_zero() {
    let settings = tiny_settings(&scratch("initial"));
    let spec = Spec::read(&settings.model).unwrap();
    let layout = Layout::new(&spec, &adapter(16, Targets::AllLinear)).unwrap();
    let values = layout.initial(42);
    assert_eq!(values, layout.initial(42));
    assert_ne!(values, layout.initial(43));
    for slot in &layout.slots {
        let (a, b) = (&values[slot.a..slot.b], &values[slot.b..slot.b + slot.shape[0] * 16]);
        let bound = 1.0 / (slot.shape[1] as f32).sqrt();
        assert!(b.iter().all(|&v| v == 0.0), "{}", slot.module);
        assert!(a.iter().all(|v| v.abs() <= bound), "{}", slot.module);
        let (count, sum) = (a.len() as f32, a.iter().sum::<f32>());
        let square: f32 = a.iter().map(|v| v * v).sum();
        // Mean 0 and variance bound²/3, within five standard errors.
        assert!((sum / count).abs() < 5.0 * bound / (3.0 * count).sqrt(), "{}: mean", slot.module);
        let error = 5.0 * (4.0f32 / 45.0).sqrt() / count.sqrt();
        let variance = square / count / (bound * bound);
        assert!((variance - 1.0 / 3.0).abs() < error, "{}: variance {variance}", slot.module);
    }
}

/// Each of these targets ends the backward pass at another place of the lowest block.
#[test]
fn every_target_is_trained_wherever_the_backward_pass_stops() {
    let base = tiny_settings(&scratch("lowest"));
    for target in ["q_proj", "o_proj", "up_proj", "down_proj"] {
        let folder = base.output_dir.parent().unwrap();
        let run = Settings {
            output_dir: folder.join(target),
            lora_target_modules: Targets::Names(vec![target.into()]),
            lora_dropout: 0.0,
            max_steps: Some(3),
            ..base.clone()
        };
        let summary = train(&run).unwrap();
        let (first, last) = summary.loss.unwrap();
        assert!(first.is_finite() && last.is_finite());
        let trained = peft::read(&summary.adapter).unwrap();
        for tensor in trained.tensors.iter().filter(|t| t.name.contains("lora_B")) {
            assert!(tensor.values.iter().any(|&v| v != 0.0), "{} never moved", tensor.name);
        }
    }
}
