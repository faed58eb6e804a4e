//! Model folders as they come: every family's config and tensor names, the weights' map, and what is refused.

use crate::scratch::{self, Scratch};
use qwentune::config::Targets;
use qwentune::element::Element;
use qwentune::error::Kind;
use qwentune::formats::digest_cache::DigestCache;
use qwentune::formats::publish::MadeFrom;
use qwentune::formats::safetensors::{F32Tensor, Outline, encode_f32, encode_header};
use qwentune::formats::weight_map::WeightMap;
use qwentune::formats::{json, peft};
use qwentune::model::names;
use qwentune::model::spec::{AttentionSpec, LinearSpec, MixerSpec, MlpSpec, STORED_HEAD, Spec, SwiGluSpec};
use qwentune::model::weights::check_stored_head;
use serde_json::{Value, json};
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
    spec.tensors().into_iter().map(|t| (t.name, t.shape)).collect()
}

#[test]
fn names_and_shapes_are_those_transformers_wrote() {
    for case in golden() {
        let spec = Spec::read(&case.join("model")).unwrap();
        let map = WeightMap::open(&case.join("model")).unwrap();
        let expected = expected_tensors(&spec);
        let found: BTreeMap<_, _> =
            map.names().into_iter().map(|n| (n.clone(), map.get(&n).unwrap().shape)).collect();
        for (name, shape) in &expected {
            assert_eq!(found.get(name), Some(shape), "{name} of {}", case.display());
        }
        let extra: Vec<_> = found.keys().filter(|n| !expected.contains_key(*n)).collect();
        assert!(extra.is_empty() || (spec.tied && extra == [STORED_HEAD]), "{extra:?} of {}", case.display());
        let elements: usize = expected.values().map(|s| s.iter().product::<usize>()).sum();
        assert_eq!(elements as u64, spec.parameter_count(), "{}", case.display());
        for name in map.names() {
            assert_eq!(WeightMap::non_finite(&map.get(&name).unwrap()), 0);
        }
    }
}

#[test]
fn adapters_of_peft_are_read_and_written_as_they_are() {
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
            let config = |folder: &Path| {
                Value::Object(json::read_object(&folder.join("adapter_config.json"), 1 << 20).unwrap())
            };
            let name = folder.display().to_string();
            crate::common::assert_adapter_config(&config(out.path()), &config(&folder), &name);
            assert_eq!(peft::read(out.path()).unwrap(), adapter);
        }
    }
}

// ---- config.json ------------------------------------------------------------------------------------------

fn qwen2_config() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 32768,
        "tie_word_embeddings": true, "use_sliding_window": false, "sliding_window": 32768,
        "max_window_layers": 21, "attention_dropout": 0.0, "torch_dtype": "bfloat16", "use_cache": true,
        "bos_token_id": 151643, "eos_token_id": 151645, "initializer_range": 0.02, "transformers_version": "4.43.1"
    })
}

fn qwen3_config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "use_sliding_window": false, "vocab_size": 151936
    })
}

fn qwen1_config() -> Value {
    json!({
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 4096,
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
        "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32, "kv_channels": 128,
        "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0, "seq_length": 8192,
        "max_position_embeddings": 32768, "use_dynamic_ntk": true, "use_logn_attn": true, "no_bias": true,
        "scale_attn_weights": true, "tie_word_embeddings": false, "vocab_size": 151936, "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0, "use_flash_attn": "auto", "bf16": false
    })
}

fn read_spec(config: &Value) -> qwentune::error::Result<Spec> {
    let folder = scratch::folder();
    folder.file("config.json", config.to_string());
    Spec::read(folder.path())
}

/// The config with some keys changed; null removes one.
fn changed(base: &Value, changes: &Value) -> Value {
    let mut config = base.clone();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
        if value.is_null() {
            config.as_object_mut().unwrap().remove(key);
        }
    }
    config
}

fn linears(spec: &Spec) -> Vec<LinearSpec> {
    spec.linears().map(|(_, linear)| linear.clone()).collect()
}

fn attention(spec: &Spec) -> &AttentionSpec {
    let MixerSpec::Attention(attention) = &spec.layers[0].mixer;
    attention
}

fn swiglu(spec: &Spec) -> &SwiGluSpec {
    let MlpSpec::SwiGlu(mlp) = &spec.layers[0].mlp;
    mlp
}

#[test]
fn parameter_counts_of_released_models() {
    let qwen25_7b = changed(
        &qwen2_config(),
        &json!({"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": false}),
    );
    let qwen3_8b = changed(
        &qwen3_config(),
        &json!({"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
                "tie_word_embeddings": false}),
    );
    // Base parameters as published, and of adapters of rank 8 on all linear layers.
    let rows = [
        (qwen2_config(), 494_032_768, None),
        (qwen25_7b, 7_615_616_512, Some(20_185_088)),
        (qwen3_config(), 596_049_920, Some(5_046_272)),
        (qwen3_8b, 8_190_735_360, Some(21_823_488)),
        (qwen1_config(), 7_721_324_544, Some(17_891_328)),
    ];
    for (config, base, adapter) in rows {
        let spec = read_spec(&config).unwrap();
        assert_eq!(spec.parameter_count(), base);
        let lora: usize = linears(&spec).iter().map(|l| 8 * (l.shape[0] + l.shape[1])).sum();
        assert!(adapter.is_none_or(|expected| expected == lora), "{lora}");
        let stored: usize = expected_tensors(&spec).values().map(|s| s.iter().product::<usize>()).sum();
        assert_eq!(stored as u64, base);
    }
}

#[test]
fn both_spellings_of_a_config_mean_the_same() {
    let old = read_spec(&qwen2_config()).unwrap();
    let heads = attention(&old);
    assert_eq!((old.family, heads.head_dim, heads.kv_heads, old.tied), ("qwen2", 64, 2, true));
    assert_eq!((old.eos.as_slice(), old.pad), (&[151_645][..], None));
    let new = json!({
        "rope_theta": null, "torch_dtype": null, "dtype": "bfloat16", "layer_types": vec!["full_attention"; 24],
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}
    });
    assert_eq!(read_spec(&changed(&qwen2_config(), &new)).unwrap(), old);
    let listed = json!({"eos_token_id": [151645, 151643], "pad_token_id": 151643});
    let spec = read_spec(&changed(&qwen2_config(), &listed)).unwrap();
    assert_eq!((spec.eos, spec.pad), (vec![151_645, 151_643], Some(151_643)));

    let first = read_spec(&qwen1_config()).unwrap();
    assert_eq!((first.family, swiglu(&first).width, first.max_positions), ("qwen", 11008, 8192));
    let early = json!({
        "hidden_size": null, "n_embd": 4096, "num_hidden_layers": null, "n_layer": 32, "num_attention_heads": null,
        "n_head": 32, "intermediate_size": null, "ffn_hidden_size": 22016, "max_position_embeddings": null,
        "n_positions": 8192, "seq_length": null
    });
    assert_eq!(read_spec(&changed(&qwen1_config(), &early)).unwrap(), first);

    let third = read_spec(&qwen3_config()).unwrap();
    let heads = attention(&third);
    assert_eq!((heads.head_dim, heads.qk_norm.is_some(), heads.input[0].bias), (128, true, false));
    assert_eq!(read_spec(&changed(&qwen3_config(), &json!({"head_dim": null}))).unwrap(), third);
}

fn refused(case: &str, result: qwentune::error::Result<impl std::fmt::Debug>, words: &[&str]) {
    let error = result.expect_err(case);
    assert_eq!(error.kind, Kind::Input, "{case}: {error}");
    for word in words {
        assert!(error.to_string().contains(word), "{case}: no {word:?} in {error}");
    }
    assert!(error.to_string().lines().count() <= 2, "{case}: {error}");
}

#[test]
fn unsupported_and_hostile_configs_are_refused_by_name() {
    let (one, two, three) = (qwen1_config(), qwen2_config(), qwen3_config());
    let rows: Vec<(&Value, Value, &[&str])> = vec![
        (
            &two,
            json!({"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe"}),
            &["Qwen2Moe", "mixture of experts"],
        ),
        (&two, json!({"architectures": ["Qwen2VLForConditionalGeneration"]}), &["Qwen2VL", "vision"]),
        (&two, json!({"architectures": ["LlamaForCausalLM"]}), &["LlamaForCausalLM", "supported are"]),
        (&two, json!({"architectures": ["Qwen3ForCausalLM"]}), &["different families"]),
        (&two, json!({"architectures": ["Qwen2ForCausalLM", "X"]}), &["architectures"]),
        (&two, json!({"architectures": null, "model_type": null}), &["neither"]),
        (&two, json!({"architectures": null, "model_type": "gpt2"}), &["gpt2"]),
        (&two, json!({"num_experts": 8}), &["num_experts", "mixture of experts"]),
        (&one, json!({"visual": {"width": 1}}), &["visual"]),
        (&two, json!({"quantization_config": {"bits": 4}}), &["quantization_config", "quantised"]),
        (&two, json!({"use_sliding_window": true}), &["use_sliding_window", "sliding-window"]),
        (&two, json!({"layer_types": vec!["sliding_attention"; 24]}), &["layer_types", "sliding_attention"]),
        (&two, json!({"layer_types": ["full_attention"]}), &["layer_types has 1", "24"]),
        (&two, json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), &["rope_scaling", "not supported"]),
        (&two, json!({"rope_parameters": {"rope_type": "yarn"}}), &["rope_parameters", "yarn"]),
        (&two, json!({"rope_parameters": {"rope_theta": 5.0}}), &["rope_theta is 1000000", "5"]),
        (&two, json!({"hidden_act": "gelu"}), &["hidden_act", "gelu"]),
        (&two, json!({"attention_dropout": 0.1}), &["attention_dropout", "dropout"]),
        (&three, json!({"attention_bias": true}), &["attention_bias"]),
        (&one, json!({"no_bias": false}), &["no_bias"]),
        (&one, json!({"rotary_pct": 0.5}), &["rotary_pct"]),
        (&one, json!({"intermediate_size": 22017}), &["intermediate_size", "odd"]),
        (&one, json!({"kv_channels": 64}), &["kv_channels 64", "4096"]),
        (&one, json!({"n_embd": 2048}), &["hidden_size is 4096 but n_embd is 2048"]),
        (&two, json!({"hidden_size": 0}), &["hidden_size is 0"]),
        (&two, json!({"hidden_size": null}), &["hidden_size is missing"]),
        (&two, json!({"hidden_size": "896"}), &["hidden_size is \"896\""]),
        (&two, json!({"hidden_size": 895}), &["895", "14"]),
        (&two, json!({"hidden_size": 8960.5}), &["hidden_size"]),
        (&two, json!({"num_attention_heads": 13}), &["13", "multiple of num_key_value_heads 2"]),
        (&two, json!({"num_key_value_heads": 4}), &["14", "4"]),
        (&two, json!({"num_key_value_heads": null}), &["num_key_value_heads is missing"]),
        (&three, json!({"head_dim": 127}), &["127", "even"]),
        (&two, json!({"vocab_size": 2147483648_u64}), &["vocab_size is 2147483648"]),
        (&two, json!({"num_hidden_layers": 1000000000}), &["num_hidden_layers is 1000000000"]),
        (&two, json!({"rms_norm_eps": 0.0}), &["rms_norm_eps"]),
        (&two, json!({"rope_theta": "NaN"}), &["rope_theta"]),
        (&two, json!({"rope_theta": -1.0}), &["rope_theta is -1"]),
        (&two, json!({"max_position_embeddings": 0}), &["max_position_embeddings"]),
        (&two, json!({"tie_word_embeddings": "yes"}), &["tie_word_embeddings"]),
        (&two, json!({"eos_token_id": -1}), &["eos_token_id is -1"]),
        (&two, json!({"pad_token_id": 4294967296_u64}), &["pad_token_id"]),
    ];
    for (base, changes, words) in rows {
        refused(&changes.to_string(), read_spec(&changed(base, &changes)), words);
    }
}

#[test]
fn config_files_that_are_no_configs_are_refused() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "EOF"),
        ("list", b"[]".to_vec(), "not a JSON object"),
        ("deep", deep.into_bytes(), "32 deep"),
        ("twice", b"{\"hidden_size\":1,\"hidden_size\":2}".to_vec(), "\"hidden_size\" occurs twice"),
        ("NaN", b"{\"rope_theta\":NaN}".to_vec(), "line 1"),
        ("large", vec![b' '; (1 << 20) + 1], "1048576 bytes"),
        ("binary", vec![0xff; 100], "line 1"),
    ];
    for (case, bytes, word) in rows {
        let folder = scratch::folder();
        folder.file("config.json", bytes);
        refused(case, Spec::read(folder.path()), &["config.json", word]);
    }
    refused("absent", Spec::read(scratch::folder().path()), &["config.json"]);
}

// ---- names ------------------------------------------------------------------------------------------------

#[test]
fn targets_follow_the_rule_of_peft() {
    let v1 = linears(&read_spec(&qwen1_config()).unwrap());
    let v2 = linears(&read_spec(&qwen2_config()).unwrap());
    let count = |all: &[LinearSpec], targets: &[&str]| {
        let targets = Targets::Names(targets.iter().map(|t| t.to_string()).collect());
        let targets = names::Modules::new("target_modules", &targets).unwrap();
        all.iter().filter(|l| targets.has(&l.module)).count()
    };
    assert_eq!(count(&v2, &["q_proj"]), 24);
    assert_eq!(count(&v2, &["q_proj", "mlp.up_proj"]), 48);
    assert_eq!(count(&v2, &["model.layers.3.self_attn.v_proj"]), 1);
    assert_eq!(count(&v2, &["layers.3.self_attn.v_proj"]), 1);
    assert_eq!(count(&v2, &["proj", "_proj", ".q_proj", ""]), 0);
    assert_eq!(count(&v1, &["c_proj"]), 64);
    assert_eq!(count(&v1, &["attn.c_proj"]), 32);
    let all = names::Modules::new("target_modules", &Targets::AllLinear).unwrap();
    assert!(v2.iter().all(|l| all.has(&l.module)));
    assert_eq!(
        names::adapter_tensor(&v2[0].module, 'A'),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    );
}

#[test]
fn unknown_targets_are_named_beside_those_there_are() {
    let check = |config: &Value, targets: &[&str]| {
        let targets = Targets::Names(targets.iter().map(|t| t.to_string()).collect());
        names::check_targets(&targets, linears(&read_spec(config).unwrap()).iter())
    };
    check(&qwen2_config(), &["q_proj", "down_proj"]).unwrap();
    let error = check(&qwen2_config(), &["q_proj", "c_attn", "lm_head"]).unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.what.ends_with("does not have: c_attn, lm_head"), "{error}");
    let there = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    assert!(error.remedy.contains(there), "{error}");
    let error = check(&qwen1_config(), &["q_proj"]).unwrap_err();
    assert!(error.remedy.contains("c_attn, attn.c_proj, w1, w2, mlp.c_proj;"), "{error}");
    assert!(check(&qwen2_config(), &[]).is_err());
}

// ---- the weight map ---------------------------------------------------------------------------------------

fn weights(tensors: &[(&str, &[usize], f32)]) -> Vec<u8> {
    let values: Vec<Vec<f32>> = tensors.iter().map(|(_, s, v)| vec![*v; s.iter().product()]).collect();
    let all: Vec<F32Tensor<'_>> = tensors
        .iter()
        .zip(&values)
        .map(|((name, shape, _), values)| F32Tensor { name, shape, values })
        .collect();
    encode_f32(&all)
}

/// Two shards and their index, of which the test may spoil a part.
fn sharded() -> (Scratch, Value) {
    let folder = scratch::folder();
    folder.file("model-00001-of-00002.safetensors", weights(&[("a", &[2, 3], 1.0), ("b", &[4], 2.0)]));
    folder.file("model-00002-of-00002.safetensors", weights(&[("c", &[5], 3.0)]));
    let listed = json!({
        "a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors"
    });
    (folder, json!({"metadata": {"total_size": 60}, "weight_map": listed}))
}

fn open_with(folder: &Scratch, index: &Value) -> qwentune::error::Result<WeightMap> {
    folder.file("model.safetensors.index.json", index.to_string());
    WeightMap::open(folder.path())
}

#[test]
fn shards_and_index_must_agree() {
    let (folder, index) = sharded();
    let map = open_with(&folder, &index).unwrap();
    assert_eq!(map.names(), ["a", "b", "c"]);
    assert_eq!(map.get("c").unwrap().bytes(), [3.0_f32; 5].map(f32::to_le_bytes).as_flattened());
    assert_eq!(map.get("a").unwrap().shape, [2, 3]);
    assert!(map.get("d").is_none());

    let spoiled = |pointer: &str, value: Value| {
        let mut index = index.clone();
        index["weight_map"][pointer] = value;
        index
    };
    const SECOND: &str = "model-00002-of-00002.safetensors";
    let rows: Vec<(Value, &[&str])> = vec![
        (spoiled("d", json!(SECOND)), &["tensor d", "not in", SECOND]),
        (spoiled("a", json!(SECOND)), &["tensor a", "not in", SECOND]),
        (
            spoiled("c", json!("model-00003-of-00003.safetensors")),
            &["model-00003-of-00003.safetensors", "missing"],
        ),
        (spoiled("c", json!("../c.safetensors")), &["tensor c", "not a .safetensors file name"]),
        (spoiled("c", json!("/etc/passwd")), &["tensor c"]),
        (spoiled("c", json!("c.bin")), &["tensor c", "c.bin"]),
        (spoiled("c", json!(7)), &["tensor c"]),
        (json!({"weight_map": {}}), &["weight_map"]),
        (json!({"metadata": {}}), &["weight_map"]),
    ];
    for (index, words) in rows {
        refused(&index.to_string(), open_with(&folder, &index), words);
    }
    let mut short = index.clone();
    short["weight_map"].as_object_mut().unwrap().remove("b");
    refused("not listed", open_with(&folder, &short), &["tensor b", "not listed"]);
    folder.file("model-00002-of-00002.safetensors", weights(&[("c", &[5], 3.0), ("b", &[4], 2.0)]));
    refused("in both", open_with(&folder, &index), &["tensor b", "is in", "model-00001-of-00002"]);
    folder.file("model.safetensors", weights(&[("a", &[1], 0.0)]));
    refused("two sets", open_with(&folder, &index), &["two sets of weights"]);
}

#[test]
fn wrong_weight_files_are_refused() {
    let folder = scratch::folder();
    refused("empty folder", WeightMap::open(folder.path()), &["model.safetensors"]);
    folder.file("pytorch_model-00001-of-00002.bin", "pickle");
    refused(
        "only .bin",
        WeightMap::open(folder.path()),
        &[".bin", "convert them: python3", "save_pretrained"],
    );
    let whole = weights(&[("a", &[100], 1.0)]);
    for length in [0, 7, 8, 40, whole.len() - 1] {
        folder.file("model.safetensors", &whole[..length]);
        refused("cut", WeightMap::open(folder.path()), &["model.safetensors"]);
    }
    let mut file = encode_header(&[Outline { name: "w", element: Element::F32, shape: &[2] }]);
    let text =
        String::from_utf8(file[8..].to_vec()).unwrap().replace("F32", "I64").replace("[0,8]", "[0,16]");
    file.splice(8.., text.trim_end().bytes());
    let len = file.len() as u64 - 8;
    file.splice(..8, len.to_le_bytes());
    file.extend([0; 16]);
    folder.file("model.safetensors", &file);
    refused("dtype", WeightMap::open(folder.path()), &["tensor w is I64", "BF16"]);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    std::fs::create_dir(folder.join("model.safetensors")).unwrap();
    refused("a folder", WeightMap::open(folder.path()), &["not a regular file"]);
}

#[test]
fn stored_buffers_of_old_folders_are_passed_over() {
    let folder = scratch::folder();
    let buffer = "transformer.h.0.attn.rotary_emb.inv_freq";
    folder.file("model.safetensors", weights(&[("a", &[2], 1.0), (buffer, &[4], 1.0)]));
    assert_eq!(WeightMap::open(folder.path()).unwrap().names(), ["a"]);
}

#[test]
fn a_tied_model_may_store_its_head_only_as_a_copy() {
    let spec = read_spec(&changed(&qwen2_config(), &json!({"vocab_size": 3}))).unwrap();
    let check = |head: f32, shape: &[usize], tied: bool| {
        let folder = scratch::folder();
        let embedding = ("model.embed_tokens.weight", &[3, 896][..], 1.0);
        folder.file("model.safetensors", weights(&[embedding, ("lm_head.weight", shape, head)]));
        let spec = Spec { tied, ..spec.clone() };
        check_stored_head(&spec, &WeightMap::open(folder.path()).unwrap())
    };
    check(1.0, &[3, 896], true).unwrap();
    check(2.0, &[3, 896], false).unwrap();
    refused("other values", check(2.0, &[3, 896], true), &["lm_head.weight differs", "tie_word_embeddings"]);
    refused("other shape", check(1.0, &[4, 896], true), &["lm_head.weight differs"]);
}

#[test]
fn non_finite_elements_are_counted_in_every_encoding() {
    let folder = scratch::folder();
    let count = 700_001;
    let outline = |name, element| Outline { name, element, shape: &[700_001] };
    let mut file = encode_header(&[
        outline("bf16", Element::Bf16),
        outline("f16", Element::F16),
        outline("f32", Element::F32),
    ]);
    let bad = [0, 1, 524_288, count - 1];
    for (good, infinite, nan) in [(0x7f7f_u16, 0xff80_u16, 0x7fc0_u16), (0x7bff, 0xfc00, 0x7e01)] {
        for i in 0..count {
            let value = if !bad.contains(&i) {
                good
            } else if i % 2 == 0 {
                infinite
            } else {
                nan
            };
            file.extend(value.to_le_bytes());
        }
    }
    for i in 0..count {
        let value = if !bad.contains(&i) {
            f32::MAX
        } else if i % 2 == 0 {
            f32::NEG_INFINITY
        } else {
            f32::NAN
        };
        file.extend(value.to_le_bytes());
    }
    folder.file("model.safetensors", file);
    let map = WeightMap::open(folder.path()).unwrap();
    for name in ["bf16", "f16", "f32"] {
        assert_eq!(WeightMap::non_finite(&map.get(name).unwrap()), bad.len(), "{name}");
    }
}

#[test]
fn digests_are_blake3_of_the_files_and_cached_by_identity() {
    let (folder, index) = sharded();
    let cache = scratch::folder();
    let kept = DigestCache::open(cache.path()).unwrap();
    let map = open_with(&folder, &index).unwrap();
    let mut seen = Vec::new();
    let digests = map.digests(Some(&kept), &mut |done, total| seen.push((done, total))).unwrap();
    for (name, digest) in &digests {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        assert_eq!(digest, &blake3::hash(&bytes).to_hex().to_string(), "{name}");
    }
    let total = map.file_bytes();
    assert_eq!(digests.len(), 2);
    assert_eq!(seen.last(), Some(&(total, total)));
    // What is cached is what is answered: shown with an entry that is not the file's digest.
    let entries = || std::fs::read_dir(cache.join("digests")).unwrap().map(|e| e.unwrap().path());
    assert_eq!(entries().count(), 2);
    entries().for_each(|path| std::fs::write(path, format!("{}\n", "0".repeat(64))).unwrap());
    let again = map.digests(Some(&kept), &mut |_, _| ()).unwrap();
    assert!(again.values().all(|d| d.bytes().all(|b| b == b'0')), "{again:?}");
    // A torn entry, or another file of the same name, is digested anew.
    entries().for_each(|path| std::fs::write(path, "00").unwrap());
    assert_eq!(map.digests(Some(&kept), &mut |_, _| ()).unwrap(), digests);
    let second = folder.join("model-00002-of-00002.safetensors");
    let copy = std::fs::read(&second).unwrap();
    std::fs::remove_file(&second).unwrap();
    std::fs::write(&second, copy).unwrap();
    let map = WeightMap::open(folder.path()).unwrap();
    assert_eq!(map.digests(Some(&kept), &mut |_, _| ()).unwrap(), digests);
    assert_eq!(entries().count(), 3);
    assert_eq!(map.digests(None, &mut |_, _| ()).unwrap(), digests);
}

#[test]
fn digests_are_believed_only_from_a_folder_nobody_else_can_write_in() {
    use std::os::unix::fs::PermissionsExt;
    let cache = scratch::folder();
    DigestCache::open(cache.path()).unwrap();
    let digests = cache.join("digests");
    let mode = |mode| std::fs::set_permissions(&digests, std::fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(std::fs::metadata(&digests).unwrap().permissions().mode() & 0o777, 0o700);
    for open in [0o770, 0o707, 0o777] {
        mode(open);
        let error = DigestCache::open(cache.path()).unwrap_err();
        assert!(error.what.contains("others can write"), "{error}");
    }
    mode(0o755);
    DigestCache::open(cache.path()).unwrap();
    // A link in its place leads nowhere.
    std::fs::remove_dir(&digests).unwrap();
    std::os::unix::fs::symlink(cache.path(), &digests).unwrap();
    DigestCache::open(cache.path()).unwrap_err();
}

#[test]
fn a_file_edited_or_replaced_while_mapped_is_found() {
    use std::os::unix::fs::FileExt;
    let later = |path: &std::path::Path, seconds| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified + std::time::Duration::from_secs(seconds)).unwrap();
    };
    let folder = scratch::folder();
    let bytes = weights(&[("a", &[10], 1.0)]);
    let path = folder.file("model.safetensors", &bytes);
    let map = WeightMap::open(folder.path()).unwrap();
    map.check_unchanged().unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"x", bytes.len() as u64 - 1)
        .unwrap();
    later(&path, 1);
    let error = map.check_unchanged().unwrap_err();
    assert_eq!(error.kind, Kind::Io);
    assert!(error.what.contains("model.safetensors was edited in place"), "{error}");

    let map = WeightMap::open(folder.path()).unwrap();
    let other = folder.file("other", weights(&[("a", &[11], 1.0)]));
    std::fs::rename(other, &path).unwrap();
    assert!(map.check_unchanged().unwrap_err().what.contains("was replaced"));
    std::fs::remove_file(&path).unwrap();
    map.check_unchanged().unwrap();
}

/// The second half of the next test runs in a child process, this test again with a folder in the environment.
#[test]
fn a_mapped_file_that_shrinks_ends_the_process_with_one_line() {
    const CHILD: &str = "QWENTUNE_TEST_SHRINK";
    const NAME: &str = "model_files::a_mapped_file_that_shrinks_ends_the_process_with_one_line";
    if let Ok(how) = std::env::var(CHILD) {
        lose_a_mapped_file(&how);
    }
    let run = |how: &str| {
        let folder = scratch::folder();
        folder.file("model.safetensors", weights(&[("a", &[100_000], 1.0)]));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--nocapture"]).env(CHILD, how).current_dir(folder.path());
        let output = child.output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    };
    let (status, text) = run("truncate");
    assert_eq!(status.code(), Some(74), "{text}");
    assert!(text.contains("error: ./model.safetensors was truncated"), "{text}");
    assert!(text.contains("qwentune resume"), "{text}");
    // A bus error that is not ours keeps its meaning.
    use std::os::unix::process::ExitStatusExt;
    let (status, text) = run("raise");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{text}");
}

fn lose_a_mapped_file(how: &str) {
    let map = WeightMap::open(Path::new(".")).unwrap();
    let tensor = map.get("a").unwrap();
    if how == "raise" {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(10));
    }
    std::fs::File::options().write(true).open("model.safetensors").unwrap().set_len(4096).unwrap();
    let sum: u64 = tensor.bytes().iter().map(|b| u64::from(*b)).sum();
    panic!("the bytes of a truncated file were read: {sum}");
}
