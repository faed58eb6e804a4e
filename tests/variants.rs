//! Model folders and adapters as other tools leave them: what transformers and PEFT make of them, or what is said.

use crate::common::scratch;
use qwentune::config::Targets;
use qwentune::device::{Cpu, Device, Planner};
use qwentune::element::Element;
use qwentune::error::Kind;
use qwentune::formats::safetensors::{self, F32Tensor};
use qwentune::formats::weight_map::WeightMap;
use qwentune::generate::Model;
use qwentune::model::decode::Limits;
use qwentune::model::lora::AdapterSpec;
use qwentune::model::{Decoder, Layout, Spec};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
const PLAIN: &str = "qwen2-mha-untied-f32";

fn golden(part: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(Path::new(GOLDEN).join("variants.json")).unwrap();
    let mut all: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(all[part].take()).unwrap()
}

fn base(name: &str) -> PathBuf {
    Path::new(GOLDEN).join("train").join(name).join("model")
}

/// A copy of a golden model with other keys and names of tensors; its weights become f32, which changes no value.
fn folder(
    name: &str,
    scratch_name: &str,
    change: impl Fn(&mut serde_json::Map<String, Value>),
    rename: impl Fn(&str) -> String,
) -> PathBuf {
    let copy = scratch(scratch_name);
    let text = std::fs::read_to_string(base(name).join("config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(copy.join("config.json"), Value::Object(config).to_string()).unwrap();
    let map = WeightMap::open(&base(name)).unwrap();
    let values: Vec<(String, Vec<usize>, Vec<f32>)> = map
        .names()
        .iter()
        .map(|name| {
            let tensor = map.get(name).unwrap();
            (rename(name), tensor.shape.clone(), widened(tensor.element, tensor.bytes()))
        })
        .collect();
    let mut tensors: Vec<F32Tensor<'_>> =
        values.iter().map(|(name, shape, values)| F32Tensor { name, shape, values }).collect();
    tensors.sort_by(|a, b| a.name.cmp(b.name));
    std::fs::write(copy.join("model.safetensors"), safetensors::encode_f32(&tensors)).unwrap();
    copy
}

fn widened(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Element::F16 => unreachable!("none of these models is in f16"),
        Element::Bf16 => {
            bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
    }
}

fn logits(folder: &Path, prompt: &[u32]) -> Vec<f32> {
    let Model { spec, weights, adapter, .. } = &Model::open(folder, None).unwrap_or_else(|e| panic!("{e}"));
    let mut planner = Planner::new(Cpu::CAPABILITIES);
    let limits = Limits { slots: 1, capacity: prompt.len(), rows: prompt.len() };
    let mut decoder = Decoder::plan(&mut planner, spec, weights, adapter, limits).unwrap();
    let mut dev = Device::Cpu(Cpu::new(&planner, Some(1)).unwrap());
    decoder.upload(&mut dev, adapter).unwrap();
    decoder.prefill(&mut dev, &[(0, prompt)], &|| false).unwrap().unwrap()
}

#[test]
fn folders_of_other_tools_are_the_models_that_transformers_reads() {
    for (index, case) in golden("folders").iter().enumerate() {
        let removed: Vec<&str> =
            case["removed"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()).collect();
        let tensors = case["tensors"].as_str().unwrap();
        let copy = folder(
            case["model"].as_str().unwrap(),
            &format!("variant-{index}"),
            |config| {
                config.retain(|key, _| !removed.contains(&key.as_str()));
                config.extend(case["changed"].as_object().unwrap().clone());
            },
            |name| match tensors {
                "without the prefix" => name.trim_start_matches("model.").to_owned(),
                "head alone" if name == "model.embed_tokens.weight" => "lm_head.weight".to_owned(),
                _ => name.to_owned(),
            },
        );
        let prompt: Vec<u32> = serde_json::from_value(case["prompt"].clone()).unwrap();
        let theirs: Vec<f64> = serde_json::from_value(case["logits"].clone()).unwrap();
        let ours = logits(&copy, &prompt);
        assert_eq!(ours.len(), theirs.len());
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| f64::from(*a) - b))
            / norm(&mut theirs.iter().copied());
        assert!(error < 1e-6, "{} {} {tensors}: {error:e}", case["model"], case["changed"]);
    }
}

fn targets(value: &Value) -> Option<Targets> {
    match value {
        Value::Null => None,
        Value::String(text) if text == "all-linear" => Some(Targets::AllLinear),
        Value::String(pattern) => Some(Targets::Pattern(pattern.clone())),
        names => Some(Targets::Names(serde_json::from_value(names.clone()).unwrap())),
    }
}

#[test]
fn patterns_and_exclusions_mean_the_layers_they_mean_in_peft() {
    let mut counts = std::collections::BTreeSet::new();
    for case in golden("targets") {
        let spec = Spec::read(&base(case["model"].as_str().unwrap())).unwrap();
        let adapter = AdapterSpec {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            targets: targets(&case["target_modules"]).unwrap(),
            exclude: targets(&case["exclude_modules"]),
            rslora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            layers: None,
        };
        let layout = Layout::new(&spec, &adapter).unwrap_or_else(|e| panic!("{case}: {e}"));
        let mut found: Vec<&str> = layout.slots.iter().map(|slot| slot.module.as_str()).collect();
        found.sort_unstable();
        let expected: Vec<&str> =
            case["modules"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
        assert_eq!(found, expected, "{} {}", case["target_modules"], case["exclude_modules"]);
        counts.insert(found.len());
        // What is written names exactly these layers, whatever way they were asked for.
        let written = layout.to_peft(&adapter, "base", &vec![0.5; layout.len]);
        let again = Layout::new(&spec, &AdapterSpec::from_peft(&written.config)).unwrap();
        assert_eq!(again.slots, layout.slots, "{}", case["target_modules"]);
    }
    assert!(counts.len() >= 5, "{counts:?}");
    let spec = Spec::read(&base(PLAIN)).unwrap();
    let wrong = |targets: Targets, exclude: Option<Targets>, layers: Option<Vec<usize>>| {
        let adapter = AdapterSpec { targets, exclude, layers, ..qwentune::model::Adapter::none().spec };
        Layout::new(&spec, &adapter).unwrap_err().to_string()
    };
    let pattern = |text: &str| Targets::Pattern(text.to_owned());
    assert!(
        wrong(pattern("q_proj"), None, None).contains("matches no linear layer"),
        "a whole name is wanted"
    );
    assert!(wrong(pattern(r".*(?=q_proj).*"), None, None).contains("is not supported"));
    assert!(wrong(pattern(".*q_proj"), None, Some(vec![0])).contains("nor is it by PEFT"));
    assert!(wrong(Targets::AllLinear, Some(pattern(".*")), None).contains("leaves no layer"));
}

fn refused(name: &str, change: Value) -> String {
    let copy =
        folder(PLAIN, name, |config| config.extend(change.as_object().unwrap().clone()), str::to_owned);
    let fault = Spec::read(&copy).err().unwrap_or_else(|| panic!("{change} was accepted"));
    assert_eq!(fault.kind, Kind::Input, "{fault}");
    fault.to_string()
}

#[test]
fn a_key_that_changes_the_arithmetic_is_refused_by_name() {
    for (key, value) in [
        ("is_causal", json!(false)),
        ("logit_scale", json!(0.5)),
        ("attn_logit_softcapping", json!(50.0)),
        ("embedding_multiplier", json!(12.0)),
        ("use_qk_norm", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("no_rope_layers", json!([1])),
        ("use_mrope", json!(true)),
        ("is_encoder_decoder", json!(true)),
        ("something_new", json!("on")),
        ("quantization_config", json!({"bits": 4})),
    ] {
        let said = refused("variant-keys", json!({key: value}));
        assert!(said.contains(key) && said.contains("config.json"), "{key}: {said}");
    }
    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}});
    let said = refused("variant-yarn", yarn);
    assert!(said.contains("yarn") && said.contains("remove rope_scaling from config.json"), "{said}");
    let two = json!({"rope_theta": 10000.0, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}});
    let said = refused("variant-two", two);
    assert!(said.contains("rope_theta is 10000 but rope_scaling.rope_theta is 500000"), "{said}");
    let harmless = json!({
        "_name_or_path": "x", "use_cache": false, "pad_token_id": null, "unsloth_version": "2026.1", "use_mrope": false,
        "transformers_version": "4.51.0", "temperature": 0.7, "is_causal": true, "bos_token_id": 1, "tokenizer_class": "Q",
        "pruned_heads": {}, "output_attentions": false, "something_off": false, "rope_scaling": null, "id2label": {"0": "a"},
    });
    let copy = folder(
        PLAIN,
        "variant-harmless",
        |config| config.extend(harmless.as_object().unwrap().clone()),
        str::to_owned,
    );
    assert_eq!(Spec::read(&copy).unwrap(), Spec::read(&base(PLAIN)).unwrap());
}

#[test]
fn pointers_of_git_lfs_are_named() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12345678\n";
    for name in ["model.safetensors", "config.json"] {
        let copy = folder(PLAIN, "variant-lfs", |_| (), str::to_owned);
        std::fs::write(copy.join(name), POINTER).unwrap();
        let fault = Model::open(&copy, None).err().unwrap().to_string();
        assert!(fault.contains(name) && fault.contains("git lfs pull"), "{fault}");
    }
    let adapter = scratch("variant-lfs-adapter");
    std::fs::copy(base(PLAIN).join("../final/adapter_config.json"), adapter.join("adapter_config.json"))
        .unwrap();
    std::fs::write(adapter.join("adapter_model.safetensors"), POINTER).unwrap();
    let fault = Model::open(&base(PLAIN), Some(&adapter)).err().unwrap().to_string();
    assert!(fault.contains("git lfs pull"), "{fault}");
}

/// The program, with a cache of hub files and a home of its own.
#[cfg(feature = "text")]
fn program(home: &Path, args: &[&str]) -> (i32, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qwentune"));
    for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", home).current_dir(home).args(args);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
#[cfg(feature = "text")]
fn hub_names_are_looked_up_in_the_local_cache_and_home_is_expanded() {
    let home = scratch("variant-home");
    let cache = home.join(".cache/huggingface/hub/models--Some--Qwen");
    let snapshot = cache.join("snapshots/0123abcd");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(cache.join("refs")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(GOLDEN).join("text/small").join(name), snapshot.join(name)).unwrap();
    }
    let expected = program(&home, &["tokenize", "--model", snapshot.to_str().unwrap(), "hello"]);
    assert_eq!(expected.0, 0, "{}", expected.1);
    let ids = |model: &str| program(&home, &["tokenize", "--model", model, "hello"]);
    assert_eq!(ids("Some/Qwen"), expected, "its only snapshot");
    std::fs::create_dir_all(cache.join("snapshots/ffff")).unwrap();
    let (status, said) = ids("Some/Qwen");
    assert!(status == 65 && said.contains("2 snapshots and no refs/main"), "{said}");
    std::fs::write(cache.join("refs/main"), "0123abcd\n").unwrap();
    assert_eq!(ids("Some/Qwen"), expected);
    assert_eq!(ids(cache.to_str().unwrap()), expected, "the cache folder itself");
    assert_eq!(ids("~/.cache/huggingface/hub/models--Some--Qwen"), expected);
    let (status, said) = ids("Some/Other");
    assert!(status == 65 && said.contains("hf download Some/Other"), "{said}");
    let flag = "--model=~/.cache/huggingface/hub/models--Some--Qwen";
    assert_eq!(program(&home, &["tokenize", flag, "hello"]), expected, "what no shell expands");
    let (status, said) =
        program(&home, &["generate", "--model=~/none", "--output-file=~/answers.jsonl", "x"]);
    assert!(status != 0 && !said.contains("~/none"), "{said}");
    let (status, said) = ids("~somebody/models");
    assert!(status == 2 && said.contains("only ~/ is expanded"), "{said}");
    assert!(!home.join("~").exists());
}
